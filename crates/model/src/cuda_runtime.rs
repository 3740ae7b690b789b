//! NVIDIA cards: whether there are any, candle's device on one as training wants it, and the memory that it uses.
//!
//! Open a card once and clone the device: two devices opened on the same card are strangers to candle.

use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::CUmemPool_attribute as PoolAttribute;
use candle_core::cuda::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{CudaDevice, DType, Device, Tensor};
use loralei_cuda_loader::{Library, MissingLibrary};

/// Why there is no training on an NVIDIA card.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaUnavailable {
    /// No driver.
    #[error("there is no NVIDIA driver on this machine: {0}")]
    NoDriver(MissingLibrary),
    /// A driver that does not work, or not with this machine's card.
    #[error("the NVIDIA driver does not start: {0}")]
    DriverFailed(String),
    /// A driver without a card.
    #[error("the NVIDIA driver finds no card")]
    NoCard,
    /// A card that is not there.
    #[error("there is no card `cuda:{ordinal}`, the last is `cuda:{}`", count - 1)]
    NoSuchCard {
        /// The number asked for.
        ordinal: usize,
        /// How many cards there are.
        count: usize,
    },
    /// A library of the CUDA toolkit is missing.
    #[error(transparent)]
    MissingLibrary(#[from] MissingLibrary),
    /// A card on which a first small calculation failed.
    #[error("`cuda:{ordinal}` ({name}) cannot be used: {reason}")]
    Unusable {
        /// The card's number.
        ordinal: usize,
        /// What its maker calls it.
        name: String,
        /// What candle says.
        reason: String,
    },
}

impl CudaUnavailable {
    /// What its reader can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDriver(_) => "install NVIDIA's driver, or use the processor with `--device cpu`",
            Self::DriverFailed(_) | Self::NoCard => {
                "see what `nvidia-smi` says, or use the processor with `--device cpu`"
            }
            Self::NoSuchCard { .. } => "`loralei doctor` lists the cards",
            Self::MissingLibrary(_) => "install CUDA, or name its folder in LD_LIBRARY_PATH",
            Self::Unusable { .. } => {
                "the card may be in use, too old for this build, or need a newer driver: docs/gpu.md"
            }
        }
    }
}

/// A card of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What its maker calls it.
    pub name: String,
    /// Major and minor number of the instructions it has, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Memory that no program uses, in bytes.
    pub free_bytes: u64,
    /// Memory, in bytes.
    pub total_bytes: u64,
}

/// The cards of this machine in the driver's order: the place in it is the number in `cuda:N`.
///
/// Starts each card for a moment, which takes some tenths of a second where no other program holds it.
///
/// # Errors
/// There is no driver, or it does not work, or it finds no card.
pub fn cards() -> Result<Vec<Card>, CudaUnavailable> {
    (0..count()?).map(|ordinal| card(ordinal).map_err(driver_failed)).collect()
}

fn card(ordinal: usize) -> Result<Card, DriverError> {
    let context = CudaContext::new(ordinal)?;
    let (free, total) = context.mem_get_info()?;
    Ok(Card {
        name: context.name()?,
        compute_capability: context.compute_capability()?,
        free_bytes: free as u64,
        total_bytes: total as u64,
    })
}

/// How many cards there are, at least one.
fn count() -> Result<usize, CudaUnavailable> {
    loralei_cuda_loader::load(Library::Driver).map_err(CudaUnavailable::NoDriver)?;
    let count = result::init().and_then(|()| result::device::get_count());
    match count {
        Ok(0) | Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(CudaUnavailable::NoCard),
        Ok(count) => Ok(count as usize),
        Err(error) => Err(driver_failed(error)),
    }
}

/// The driver's own sentence about an error.
fn driver_failed(error: DriverError) -> CudaUnavailable {
    let sentence = error.error_string().map(|text| text.to_string_lossy().into_owned());
    CudaUnavailable::DriverFailed(sentence.unwrap_or_else(|_| format!("{:?}", error.0)))
}

/// candle's device on a card: calculations in one order on a stream of their own, and memory kept for the next step.
///
/// # Errors
/// There is no such card, CUDA's libraries are missing, or a first small calculation fails.
pub fn open(ordinal: usize) -> Result<Device, CudaUnavailable> {
    let count = count()?;
    if ordinal >= count {
        return Err(CudaUnavailable::NoSuchCard { ordinal, count });
    }
    // candle fails without either of these, and less plainly.
    loralei_cuda_loader::load(Library::Blas)?;
    loralei_cuda_loader::load(Library::Random)?;
    open_for_training(ordinal).map_err(|error| CudaUnavailable::Unusable {
        ordinal,
        name: result::device::get(ordinal as i32).and_then(result::device::get_name).unwrap_or_default(),
        reason: error.to_string().lines().next().unwrap_or_default().to_string(),
    })
}

fn open_for_training(ordinal: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    #[allow(unsafe_code, reason = "events order streams, and there is only this one until the device is dropped")]
    unsafe {
        cuda.disable_event_tracking();
    }
    if cuda.cuda_stream().context().has_async_alloc() {
        // Else the driver takes freed memory back whenever the program waits for the card, once a step or more.
        set_pool_attribute(cuda, PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    }
    // A card older than the kernels, or a driver older than their compiler, is found out here.
    Tensor::zeros(1, DType::F32, &device)?.affine(1.0, 1.0)?.to_vec1::<f32>()?;
    Ok(device)
}

/// Whether products of f32 matrices may round their factors to 10 bits of mantissa (TF32), for the whole program.
pub fn set_tf32(allowed: bool) {
    candle_core::cuda::set_gemm_reduced_precision_f32(allowed);
}

/// Memory that this program's tensors use on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolMemory {
    /// By tensors now, in bytes.
    pub used_bytes: u64,
    /// By tensors at most since the program began or [`reset_peak`], in bytes.
    pub peak_bytes: u64,
    /// Taken from the card now, used or kept for later, in bytes.
    pub reserved_bytes: u64,
}

/// What the tensors of a CUDA device use.
///
/// # Errors
/// The device is another one, or has no memory pool.
pub fn pool_memory(device: &Device) -> candle_core::Result<PoolMemory> {
    let cuda = device.as_cuda_device()?;
    Ok(PoolMemory {
        used_bytes: pool_attribute(cuda, PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        peak_bytes: pool_attribute(cuda, PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
        reserved_bytes: pool_attribute(cuda, PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
    })
}

/// Lets [`PoolMemory::peak_bytes`] begin again at what is used now.
///
/// # Errors
/// The device is another one, or has no memory pool.
pub fn reset_peak(device: &Device) -> candle_core::Result<()> {
    // The driver takes no other value than 0 for this one.
    set_pool_attribute(device.as_cuda_device()?, PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// The pool that candle's tensors come from: the card's default one.
fn pool(cuda: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let stream = cuda.cuda_stream();
    #[allow(unsafe_code, reason = "the card's number is one that the driver gave to the context")]
    unsafe { result::device::get_default_mem_pool(stream.context().cu_device()) }.w()
}

fn pool_attribute(cuda: &CudaDevice, attribute: PoolAttribute) -> candle_core::Result<u64> {
    let mut value = 0u64;
    #[allow(unsafe_code, reason = "all attributes asked for here are 64 bits long")]
    unsafe { result::mem_pool::get_attribute(pool(cuda)?, attribute, (&raw mut value).cast::<c_void>()) }.w()?;
    Ok(value)
}

fn set_pool_attribute(cuda: &CudaDevice, attribute: PoolAttribute, mut value: u64) -> candle_core::Result<()> {
    #[allow(unsafe_code, reason = "all attributes set here are 64 bits long")]
    unsafe { result::mem_pool::set_attribute(pool(cuda)?, attribute, (&raw mut value).cast::<c_void>()) }.w()
}

/// While this lives, candle keeps on the card what it uploads in pieces of up to 4 KiB, such as shapes and strides, and
/// copies it there when the same bytes are needed again.
///
/// What is kept stays until the thread ends, so numbers that differ at every step should not go up in small pieces.
/// It counts for the thread that made it and stays there.
#[must_use]
pub struct ParameterCache {
    _guard: Box<dyn Any>, // candle does not let its type be named
    _thread: PhantomData<*const ()>,
}

impl ParameterCache {
    /// Begins to keep; `None` where the device is not a CUDA one.
    pub fn start(device: &Device) -> Option<Self> {
        let guard = device.as_cuda_device().ok()?.enable_cuda_graph_htod_cache();
        Some(Self { _guard: Box::new(guard), _thread: PhantomData })
    }
}

impl std::fmt::Debug for ParameterCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParameterCache")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cards_or_a_reason_in_one_line() {
        match cards() {
            Ok(cards) => assert!(!cards.is_empty()),
            Err(error) => assert_eq!((error.to_string().lines().count(), error.hint().is_empty()), (1, false)),
        }
    }

    #[test]
    fn a_card_that_is_not_there_is_refused_without_a_panic() {
        assert!(matches!(
            open(1000),
            Err(CudaUnavailable::NoDriver(_)
                | CudaUnavailable::DriverFailed(_)
                | CudaUnavailable::NoCard
                | CudaUnavailable::NoSuchCard { ordinal: 1000, .. })
        ));
    }
}

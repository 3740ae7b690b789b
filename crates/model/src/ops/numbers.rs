//! Between candle's storages and the slices of numbers that kernels work on.
//!
//! f32 and f64 are borrowed as they lie; bf16 and f16 are widened to f32, and results narrowed back.

use super::product::{Kernel, Stored};
use candle_core::{CpuStorage, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::borrow::Cow;

/// Runs `$body` with `$t` as the type that tensors of `$dtype` are computed in.
macro_rules! with_compute_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use with_compute_type;

/// A compute type that storages can be read as.
pub(crate) trait Number: Kernel + WithDType {
    fn from_f32(values: Vec<f32>) -> Vec<Self>;
    fn into_f32(values: Vec<Self>) -> Vec<f32>;
}
impl Number for f32 {
    fn from_f32(values: Vec<f32>) -> Vec<f32> {
        values
    }
    fn into_f32(values: Vec<f32>) -> Vec<f32> {
        values
    }
}
impl Number for f64 {
    fn from_f32(values: Vec<f32>) -> Vec<f64> {
        values.into_iter().map(f64::from).collect()
    }
    fn into_f32(values: Vec<f64>) -> Vec<f32> {
        values.into_iter().map(|x| x as f32).collect()
    }
}

fn widen<H: Copy + WithDType>(half: &[H], layout: &Layout, convert: impl Fn(&[H], &mut [f32])) -> Vec<f32>
where
    [H]: ToOwned<Owned = Vec<H>>,
{
    let half = gather(half, layout);
    let mut wide = vec![0f32; half.len()];
    convert(&half, &mut wide);
    wide
}

/// The elements of a layout in order: borrowed when they lie so already.
fn gather<'a, T: Copy>(values: &'a [T], layout: &Layout) -> Cow<'a, [T]>
where
    [T]: ToOwned<Owned = Vec<T>>,
{
    if let Some((start, end)) = layout.contiguous_offsets() {
        return Cow::Borrowed(&values[start..end]);
    }
    let (dims, strides) = (layout.dims(), layout.stride());
    let (run, step) = (dims[dims.len() - 1], strides[dims.len() - 1]); // only a layout with axes is not contiguous
    let mut gathered = Vec::with_capacity(layout.shape().elem_count());
    for row in 0..layout.shape().elem_count() / run.max(1) {
        let (mut start, mut rest) = (layout.start_offset(), row);
        for axis in (0..dims.len() - 1).rev() {
            start += rest % dims[axis] * strides[axis];
            rest /= dims[axis];
        }
        gathered.extend((0..run).map(|i| values[start + i * step]));
    }
    Cow::Owned(gathered)
}

/// The numbers of a CPU storage in the compute type `T`, in row-major order.
pub(crate) fn numbers<'a, T: Number>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [T]>> {
    if let Ok(values) = T::cpu_storage_as_slice(storage) {
        return Ok(gather(values, layout));
    }
    Ok(Cow::Owned(T::from_f32(match storage {
        CpuStorage::F32(x) => gather(x, layout).into_owned(),
        CpuStorage::BF16(x) => widen::<bf16>(x, layout, HalfFloatSliceExt::convert_to_f32_slice),
        CpuStorage::F16(x) => widen::<f16>(x, layout, HalfFloatSliceExt::convert_to_f32_slice),
        other => return Err(Error::UnsupportedDTypeForOp(other.dtype(), "loralei op").bt()),
    })))
}

use candle_core::backend::BackendStorage;

/// Calls `f` with the numbers of a tensor on the CPU.
pub(crate) fn with_numbers<T: Number, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(&numbers::<T>(storage, layout)?),
        _ => Err(Error::Msg("this operation has no kernel for the device of its input".into()).bt()),
    }
}

/// Kernel output as a storage of `dtype`.
pub(crate) fn to_storage<T: Number>(values: Vec<T>, dtype: DType) -> Result<CpuStorage> {
    if dtype == T::DTYPE {
        return Ok(T::to_cpu_storage_owned(values));
    }
    let wide = T::into_f32(values);
    Ok(match dtype {
        DType::F32 => CpuStorage::F32(wide),
        DType::BF16 => {
            let mut half = vec![bf16::ZERO; wide.len()];
            half.convert_from_f32_slice(&wide);
            CpuStorage::BF16(half)
        }
        DType::F16 => {
            let mut half = vec![f16::ZERO; wide.len()];
            half.convert_from_f32_slice(&wide);
            CpuStorage::F16(half)
        }
        other => return Err(Error::UnsupportedDTypeForOp(other, "loralei op").bt()),
    })
}

/// Kernel output as a tensor of `dtype` without a graph.
pub(crate) fn to_tensor<T: Number>(values: Vec<T>, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let storage = Storage::Cpu(to_storage(values, dtype)?);
    Ok(Tensor::from_storage(storage, shape, candle_core::op::BackpropOp::none(), false))
}

/// Calls `f` with the numbers of a frozen tensor on the CPU in the type in which they are kept.
pub(crate) fn with_stored<T: Number, R>(tensor: &Tensor, f: impl FnOnce(Stored<T>) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F16(x)), Some((start, end))) => f(Stored::F16(&x[start..end])),
        (Storage::Cpu(CpuStorage::BF16(x)), Some((start, end))) => f(Stored::Bf16(&x[start..end])),
        (Storage::Cpu(storage), _) => f(Stored::Wide(&numbers::<T>(storage, layout)?)),
        _ => Err(Error::Msg("this operation has no kernel for the device of its weight".into()).bt()),
    }
}

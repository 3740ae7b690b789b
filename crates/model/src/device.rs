//! Where networks compute: all cores of the processor, or a graphics card.

use crate::error::ModelError;
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A device as users name it: `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// All cores of the processor.
    #[default]
    Cpu,
    /// An NVIDIA card, by its number.
    Cuda(usize),
    /// A card of Apple's, by its number.
    Metal(usize),
}

impl DeviceChoice {
    /// The device, if this program and this machine have it.
    ///
    /// # Errors
    /// [`ModelError::NoDevice`].
    pub fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => self.open_cuda(number),
            Self::Metal(number) => self.open_metal(number),
        }
    }

    #[cfg(feature = "cuda")]
    fn open_cuda(self, number: usize) -> Result<Device, ModelError> {
        crate::cuda_runtime::open(number).map_err(|error| self.unavailable(&error.to_string(), error.hint()))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_cuda(self, _: usize) -> Result<Device, ModelError> {
        let hint = "build it with `--features cuda` (docs/gpu.md), or compute on the cpu";
        Err(self.unavailable("this program was built without CUDA", hint))
    }

    fn open_metal(self, number: usize) -> Result<Device, ModelError> {
        if !cfg!(feature = "metal") {
            let hint = "build it with `--features metal` on a Mac, or compute on the cpu";
            return Err(self.unavailable("this program was built without Metal", hint));
        }
        Device::new_metal(number).map_err(|error| self.unavailable(&error.to_string(), "compute on the cpu"))
    }

    fn unavailable(self, reason: &str, hint: &'static str) -> ModelError {
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        ModelError::NoDevice { device: self.to_string(), reason, hint }
    }

    /// Memory that is free on it, where the system tells.
    pub fn free_bytes(self) -> Option<u64> {
        match self {
            Self::Cpu => {
                let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
                let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
                available.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => Some(crate::cuda_runtime::cards().ok()?.get(number)?.free_bytes),
            _ => None,
        }
    }

    /// The number type that suits the device: f32 on the processor; bf16 on cards that compute in it, f16 on older ones.
    pub fn usual_dtype(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Cuda(number) if !computes_bf16(number) => DType::F16,
            Self::Cuda(_) | Self::Metal(_) => DType::BF16,
        }
    }
}

/// What holds while a run computes on a device: on an NVIDIA card, the small uploads that every operation makes are kept
/// there, and products of f32 may be rounded.
#[must_use]
pub struct DeviceSession {
    #[cfg(feature = "cuda")]
    _cache: Option<crate::cuda_runtime::ParameterCache>,
}

impl DeviceSession {
    /// Begins; counts for this thread. `tf32`: whether products of f32 matrices on an NVIDIA card may round their factors
    /// to 10 bits of mantissa.
    pub fn start(device: &Device, tf32: bool) -> Self {
        #[cfg(feature = "cuda")]
        {
            if device.is_cuda() {
                crate::cuda_runtime::set_tf32(tf32);
            }
            Self { _cache: crate::cuda_runtime::ParameterCache::start(device) }
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (device, tf32);
            Self {}
        }
    }
}

/// Highest memory that tensors on a card took so far; `None` on the processor and where it is not counted.
pub fn peak_device_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return crate::cuda_runtime::pool_memory(device).ok().map(|memory| memory.peak_bytes);
    }
    let _ = device;
    None
}

/// Cards of compute capability 8.0 and above do.
#[cfg(feature = "cuda")]
fn computes_bf16(number: usize) -> bool {
    let cards = crate::cuda_runtime::cards().unwrap_or_default();
    cards.get(number).is_none_or(|card| card.compute_capability.0 >= 8)
}

#[cfg(not(feature = "cuda"))]
fn computes_bf16(_: usize) -> bool {
    true
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(0) => f.write_str("metal"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, number)) => (kind, number.parse::<usize>().ok()),
            None => (text, Some(0)),
        };
        match (kind, number) {
            ("cpu", Some(0)) => Ok(Self::Cpu),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("metal", Some(number)) => Ok(Self::Metal(number)),
            _ => Err(format!("`{text}` is no device: write cpu, cuda, cuda:N or metal")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_are_shown() {
        for name in ["cpu", "cuda", "cuda:3", "metal", "metal:1"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["gpu", "cuda:", "cuda:x", "cpu:1", "CUDA", ""] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_of_one_line() {
        for choice in [DeviceChoice::Cuda(99), DeviceChoice::Metal(99)] {
            let error = choice.open().unwrap_err();
            assert!(error.hint().is_some() && error.to_string().lines().count() == 1, "{error}");
        }
    }
}

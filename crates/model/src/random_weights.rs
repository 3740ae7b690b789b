//! Weights out of nothing: a network of any size without a file, for measuring. They stay finite through it, and no more
//! is asked of them.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};

use crate::random::{Draw, Purpose, name_hash};
use crate::weights::Result;

/// Numbers drawn once; every tensor repeats them from a place of its own. A prime, so that the rows of a matrix differ.
const BLOCK_LENGTH: usize = 65_537;

/// Random tensors by name: the same name and shape give the same numbers.
pub(crate) struct RandomWeights {
    /// Uniform in [-1, 1).
    block: Vec<f32>,
}

impl RandomWeights {
    pub(crate) fn new(seed: u64) -> Self {
        Self { block: Draw::new(seed, 0, 0, Purpose::Weights).uniform(-1.0, 1.0, BLOCK_LENGTH) }
    }

    /// Matrices and kernels lie within 1 / sqrt(fan in), gains near 1 and biases near 0. Made in `dtype` at once: a copy
    /// in f32 of a half-precision network would be the peak of its memory.
    pub(crate) fn tensor(&self, key: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let (centre, spread) = match shape {
            [_] if key.ends_with("weight") => (1.0, 0.1),
            [_] => (0.0, 0.1),
            _ => (0.0, 1.0 / (shape.iter().skip(1).product::<usize>() as f32).sqrt()),
        };
        let first = (name_hash(key) % BLOCK_LENGTH as u64) as usize;
        let scaled = |x: f32| centre + spread * x;
        Ok(match dtype {
            DType::BF16 => self.repeated(first, shape, device, |x| bf16::from_f32(scaled(x)))?,
            DType::F16 => self.repeated(first, shape, device, |x| f16::from_f32(scaled(x)))?,
            other => self.repeated(first, shape, device, scaled)?.to_dtype(other)?,
        })
    }

    fn repeated<T: WithDType>(
        &self,
        first: usize,
        shape: &[usize],
        device: &Device,
        number: impl Fn(f32) -> T,
    ) -> candle_core::Result<Tensor> {
        let count = shape.iter().product();
        let mut values = Vec::with_capacity(count);
        let mut rest = &self.block[first..];
        while values.len() < count {
            let length = rest.len().min(count - values.len());
            values.extend(rest[..length].iter().map(|x| number(*x)));
            rest = &self.block;
        }
        Tensor::from_vec(values, shape, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_of_its_name_and_scaled_by_its_fan_in() {
        let weights = RandomWeights::new(3);
        let read = |key: &str, shape: &[usize], dtype| {
            let tensor = weights.tensor(key, shape, dtype, &Device::Cpu).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let kernel = read("a.weight", &[300, 16, 3, 3], DType::F32);
        assert!(kernel.iter().all(|x| x.abs() <= 1.0 / 12.0));
        let mean_square = kernel.iter().map(|x| x * x).sum::<f32>() / kernel.len() as f32;
        assert!((mean_square * 3.0 * 144.0 - 1.0).abs() < 0.05, "{mean_square}");
        assert_ne!(kernel, read("b.weight", &[300, 16, 3, 3], DType::F32));
        let narrow = read("a.weight", &[300, 16, 3, 3], DType::BF16);
        assert!(kernel.iter().zip(&narrow).all(|(a, b)| (a - b).abs() <= a.abs() / 128.0));
        assert!(read("n.weight", &[9], DType::F16).iter().all(|x| (x - 1.0).abs() < 0.11));
        assert!(read("n.bias", &[9], DType::F32).iter().all(|x| x.abs() < 0.11));
    }
}

//! Weights out of nothing: a network of any size without a file, for measuring. They stay finite through it, and no more
//! is asked of them.

use candle_core::{DType, Device, Tensor};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::ops::{FrozenMatrix, quantize_row};
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
        let (block, first) = self.block(key, shape);
        let (block, count) = (block.as_slice(), shape.iter().product());
        let tensor = match dtype {
            DType::BF16 => {
                let mut bits = vec![0u16; count];
                let narrow =
                    |from: &[f32], to: &mut [u16]| to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from);
                repeat(block, first, &mut bits, narrow);
                Tensor::from_vec(bits.reinterpret_into::<bf16>(), shape, device)
            }
            DType::F16 => {
                let mut bits = vec![0u16; count];
                let narrow =
                    |from: &[f32], to: &mut [u16]| to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from);
                repeat(block, first, &mut bits, narrow);
                Tensor::from_vec(bits.reinterpret_into::<f16>(), shape, device)
            }
            other => {
                let mut values = vec![0f32; count];
                repeat(block, first, &mut values, |from: &[f32], to: &mut [f32]| to.copy_from_slice(from));
                Tensor::from_vec(values, shape, device).and_then(|tensor| tensor.to_dtype(other))
            }
        };
        Ok(tensor?)
    }

    /// The matrix (out, in) that [`Self::tensor`] makes, in 8 bits, on the host.
    pub(crate) fn int8(&self, key: &str, num_out: usize, num_in: usize) -> Result<FrozenMatrix> {
        let (block, first) = self.block(key, &[num_out, num_in]);
        let (mut numbers, mut row_scales) = (vec![0; num_out * num_in], vec![0.0; num_out]);
        let rows = numbers.par_chunks_mut(num_in.max(1)).zip(&mut row_scales).enumerate();
        rows.for_each_init(Vec::new, |wide, (row, (numbers, scale))| {
            wide.clear();
            wide.extend(block.iter().cycle().skip((first + row * num_in) % BLOCK_LENGTH).take(num_in));
            *scale = quantize_row(wide, numbers);
        });
        Ok(FrozenMatrix::of_rows(numbers, row_scales)?)
    }

    /// The numbers that a tensor repeats, and which of them is its first.
    fn block(&self, key: &str, shape: &[usize]) -> (Vec<f32>, usize) {
        let (centre, spread) = match shape {
            [_] if key.ends_with("weight") => (1.0, 0.1),
            [_] => (0.0, 0.1),
            _ => (0.0, 1.0 / (shape.iter().skip(1).product::<usize>() as f32).sqrt()),
        };
        let first = (name_hash(key) % BLOCK_LENGTH as u64) as usize;
        (self.block.iter().map(|x| centre + spread * x).collect(), first)
    }
}

/// Fills `values` with `block` over and over, from its place `first` on; `put` gives as many numbers as it is given.
fn repeat<T: Send>(block: &[f32], first: usize, values: &mut [T], put: impl Fn(&[f32], &mut [T]) + Sync) {
    values.par_chunks_mut(BLOCK_LENGTH).for_each(|values| {
        let (head, tail) = values.split_at_mut(values.len().min(BLOCK_LENGTH - first));
        put(&block[first..first + head.len()], head);
        put(&block[..tail.len()], tail);
    });
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

    #[test]
    fn a_matrix_in_8_bits_is_that_of_the_same_name_in_f32() {
        let weights = RandomWeights::new(3);
        let exact = weights.tensor("a.weight", &[300, 641], DType::F32, &Device::Cpu).unwrap();
        let dense = |matrix: FrozenMatrix| matrix.to_dense(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        let found = dense(weights.int8("a.weight", 300, 641).unwrap());
        assert!(found == dense(FrozenMatrix::quantized(&exact).unwrap()));
    }
}

//! The frozen weight of a linear layer: floats, or numbers of 8 bits with a scale for each row.
//!
//! Rows of 8 bits are symmetric: w = s q with whole q from -127 to 127 and s = max |w| / 127 of the row, so a number is off by at most
//! s / 2: 0.8 % of the norm of a row of a thousand normal numbers. A row is an output, which makes the scale a factor of a
//! column of y in forward and of a row of W in backward: one number for whatever lies side by side in memory.

use super::numbers::{Number, with_numbers, with_stored};
use super::product::Stored;
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// What is added to a q, so that it is a number without a sign.
pub(crate) const OFFSET: u8 = 128;
/// The largest |q|.
const LARGEST: f32 = 127.0;
/// 1.5 * 2^23: adding it rounds to a whole number, held in the low bits.
const TO_WHOLE: f32 = 12_582_912.0;

/// A matrix (out, in) that no graph ever sees.
#[derive(Clone, Debug)]
pub struct FrozenMatrix {
    /// (out, in): floats, or q + [`OFFSET`].
    numbers: Tensor,
    /// (out) in f32, of numbers of 8 bits.
    row_scales: Option<Tensor>,
}

impl From<Tensor> for FrozenMatrix {
    /// Numbers as they are.
    fn from(numbers: Tensor) -> Self {
        Self { numbers: numbers.detach(), row_scales: None }
    }
}

impl From<&Tensor> for FrozenMatrix {
    /// Numbers as they are.
    fn from(numbers: &Tensor) -> Self {
        numbers.clone().into()
    }
}

impl From<&FrozenMatrix> for FrozenMatrix {
    fn from(matrix: &FrozenMatrix) -> Self {
        matrix.clone()
    }
}

impl FrozenMatrix {
    /// `matrix` (out, in), on the CPU, with numbers of 8 bits.
    ///
    /// # Errors
    /// If it is no matrix, or not on the CPU.
    pub fn quantized(matrix: &Tensor) -> Result<Self> {
        let (num_out, num_in) = matrix.dims2()?;
        let (mut numbers, mut row_scales) = (vec![0; num_out * num_in], vec![0.0; num_out]);
        with_numbers(&matrix.to_dtype(DType::F32)?, |wide: &[f32]| {
            let rows = numbers.par_chunks_mut(num_in.max(1)).zip(&mut row_scales).zip(wide.par_chunks(num_in.max(1)));
            rows.for_each(|((numbers, scale), wide)| *scale = quantize_row(wide, numbers));
            Ok(())
        })?;
        Self::of_rows(numbers, row_scales)
    }

    /// Rows that [`quantize_row`] made, and their scales.
    pub(crate) fn of_rows(numbers: Vec<u8>, row_scales: Vec<f32>) -> Result<Self> {
        let num_out = row_scales.len();
        let numbers = Tensor::from_vec(numbers, (num_out, ()), &Device::Cpu)?;
        Ok(Self { numbers, row_scales: Some(Tensor::from_vec(row_scales, num_out, &Device::Cpu)?) })
    }

    /// The same on `device`.
    ///
    /// # Errors
    /// No memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let row_scales = self.row_scales.as_ref().map(|scales| scales.to_device(device)).transpose()?;
        Ok(Self { numbers: self.numbers.to_device(device)?, row_scales })
    }

    /// (out, in)
    ///
    /// # Errors
    /// If it is no matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        self.numbers.dims2()
    }

    /// All numbers in `dtype`. Those of 8 bits are multiplied by their scales in f32, or in f64, and rounded once.
    ///
    /// # Errors
    /// No memory.
    pub fn to_dense(&self, dtype: DType) -> Result<Tensor> {
        let Some(scales) = &self.row_scales else { return self.numbers.to_dtype(dtype) };
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let whole = self.numbers.to_dtype(wide)?.affine(1.0, -f64::from(OFFSET))?;
        whole.broadcast_mul(&scales.to_dtype(wide)?.unsqueeze(1)?)?.to_dtype(dtype)
    }

    /// Calls `f` with the numbers, on the CPU, as they are kept.
    pub(super) fn with_stored<T: Number, R>(&self, f: impl FnOnce(Stored<T>) -> Result<R>) -> Result<R> {
        let Some(scales) = &self.row_scales else { return with_stored(&self.numbers, f) };
        with_numbers(scales, |scales: &[f32]| {
            let (storage, layout) = self.numbers.storage_and_layout();
            match (&*storage, layout.contiguous_offsets()) {
                (Storage::Cpu(CpuStorage::U8(x)), Some((start, end))) => {
                    f(Stored::Int8 { numbers: &x[start..end], row_scales: scales })
                }
                _ => bail!("numbers of 8 bits that are not as they were read"),
            }
        })
    }
}

/// `row`, of finite numbers, in 8 bits; returns what they are to be multiplied by: 0 if all are 0.
pub(crate) fn quantize_row(row: &[f32], numbers: &mut [u8]) -> f32 {
    // The bits of positive floats are in the order of the floats, and their maximum vectorises.
    let largest = row.iter().fold(0, |largest, x| largest.max(x.abs().to_bits()));
    let scale = f32::from_bits(largest) / LARGEST;
    if scale == 0.0 {
        numbers.fill(OFFSET);
        return 0.0;
    }
    for (number, x) in numbers.iter_mut().zip(row) {
        let whole = (x / scale).clamp(-LARGEST, LARGEST) + TO_WHOLE;
        *number = (whole.to_bits() as u8).wrapping_add(OFFSET);
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Draw, Purpose};

    fn normal(seed: u64, shape: (usize, usize)) -> Tensor {
        let values = Draw::new(seed, 0, 0, Purpose::Check).standard_normal(shape.0 * shape.1);
        (Tensor::from_vec(values, shape, &Device::Cpu).unwrap() * 0.02).unwrap()
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
        tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn normal_weights_are_off_by_less_than_a_hundredth_and_no_number_by_more_than_half_a_step() {
        for (num_out, num_in, from, to) in [(64, 320, 0.006, 0.008), (50, 1280, 0.007, 0.009), (9, 5120, 0.008, 0.01)] {
            let exact = normal(num_in as u64, (num_out, num_in));
            let found = FrozenMatrix::quantized(&exact).unwrap().to_dense(DType::F32).unwrap();
            let (mut error, mut norm) = (0.0, 0.0);
            for (exact, found) in rows(&exact).iter().zip(rows(&found)) {
                let largest = exact.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                for (exact, found) in exact.iter().zip(found) {
                    let off = exact - found;
                    assert!(off.abs() <= largest / 254.0 * 1.0001, "{exact} {found}, at most {largest}");
                    error += f64::from(off * off);
                    norm += f64::from(exact * exact);
                }
            }
            let error = (error / norm).sqrt();
            assert!(error > from && error < to, "{num_in}: {error}");
        }
    }

    #[test]
    fn rows_have_scales_of_their_own_and_zeros_stay_zeros() {
        let mut values = vec![0.0f32; 4 * 7];
        values[7..14].copy_from_slice(&[1000.0, -1000.0, 500.0, 3.9, -4.0, 0.0, 7.9]);
        values[14..21].copy_from_slice(&[-1e-6, 0.0, 0.0, 6e-7, 0.0, 0.0, 0.0]);
        values[21] = f32::from_bits(1); // the smallest number there is
        let matrix = FrozenMatrix::quantized(&Tensor::from_vec(values, (4, 7), &Device::Cpu).unwrap()).unwrap();
        let found = rows(&matrix.to_dense(DType::F32).unwrap());
        assert_eq!((&found[0], &found[3]), (&vec![0.0; 7], &vec![0.0; 7]));
        let step = 1000.0f32 / 127.0;
        assert_eq!(found[1], [127.0 * step, -127.0 * step, 64.0 * step, 0.0, -step, 0.0, step]);
        assert!((found[2][0] + 1e-6).abs() < 1e-12 && (found[2][3] - 76.0 / 127.0 * 1e-6).abs() < 1e-12);
        assert_eq!(found[2][1..3], [0.0; 2]);
    }
}

//! What the low-rank term of a layer is multiplied with, between its factors.

use super::numbers::{Number, with_numbers};
use candle_core::{Result, Tensor, bail};

/// alpha / r, and where something is left out, a mask: x A^T becomes scale * mask * x A^T.
#[derive(Clone, Debug)]
pub struct LoraScale {
    scale: f64,
    mask: Option<Tensor>,
}

impl From<f64> for LoraScale {
    /// Without a mask.
    fn from(scale: f64) -> Self {
        Self { scale, mask: None }
    }
}

impl LoraScale {
    /// With a mask (.., r) over the rows of the layer's output, f32. It carries no gradient.
    pub fn masked(scale: f64, mask: &Tensor) -> Self {
        Self { scale, mask: Some(mask.detach()) }
    }

    /// Whether it fits `num_rows` rows of `rank` numbers.
    ///
    /// # Errors
    /// If the mask is for others.
    pub(super) fn check(&self, num_rows: usize, rank: usize) -> Result<()> {
        match &self.mask {
            Some(mask) if mask.dims().last() != Some(&rank) || mask.elem_count() != num_rows * rank => {
                bail!("a mask of shape {:?} does not fit {num_rows} rows of rank {rank}", mask.shape())
            }
            _ => Ok(()),
        }
    }

    /// Multiplies `z` (m, r).
    ///
    /// # Errors
    /// If the mask is not on the CPU.
    pub(super) fn apply<T: Number>(&self, z: &mut [T]) -> Result<()> {
        let scale = T::real(self.scale);
        z.iter_mut().for_each(|z| *z *= scale);
        let Some(mask) = &self.mask else { return Ok(()) };
        with_numbers(mask, |mask: &[T]| {
            z.iter_mut().zip(mask).for_each(|(z, mask)| *z *= *mask);
            Ok(())
        })
    }

    /// `z` (.., r) multiplied, of as many numbers as the mask.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub(super) fn applied(&self, z: &Tensor) -> Result<Tensor> {
        let scaled = (z * self.scale)?;
        match &self.mask {
            None => Ok(scaled),
            Some(mask) => scaled * mask.to_dtype(z.dtype())?.reshape(z.shape())?,
        }
    }
}

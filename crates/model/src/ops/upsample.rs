//! Nearest-neighbour upsampling by two: each pixel becomes a 2 x 2 square; backward sums the four.

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// `xs`: (b, h, w, c) -> (b, 2h, 2w, c).
///
/// # Errors
/// If `xs` has not four axes.
pub fn upsample_nearest(xs: &Tensor) -> Result<Tensor> {
    let (_, _, width, channels) = xs.dims4()?;
    if !generic::has_kernel(xs) {
        return generic::upsample_nearest(xs);
    }
    xs.apply_op1(Upsample { width, channels })
}

struct Upsample {
    width: usize,
    channels: usize,
}

impl Upsample {
    fn forward<T: Number>(&self, x: &[T]) -> Vec<T> {
        let row = self.width * self.channels;
        let mut y = vec![T::default(); 4 * x.len()];
        y.par_chunks_mut(4 * row).zip(x.par_chunks(row)).for_each(|(y, x)| {
            let (first, second) = y.split_at_mut(2 * row);
            for (pair, pixel) in first.chunks_exact_mut(2 * self.channels).zip(x.chunks_exact(self.channels)) {
                pair[..self.channels].copy_from_slice(pixel);
                pair[self.channels..].copy_from_slice(pixel);
            }
            second.copy_from_slice(first);
        });
        y
    }

    fn backward<T: Number>(&self, dy: &[T]) -> Vec<T> {
        let (row, c) = (self.width * self.channels, self.channels);
        let mut dx = vec![T::default(); dy.len() / 4];
        dx.par_chunks_mut(row).zip(dy.par_chunks(4 * row)).for_each(|(dx, dy)| {
            let (first, second) = dy.split_at(2 * row);
            for (x, pixel) in dx.chunks_exact_mut(c).enumerate() {
                let at = 2 * x * c;
                for i in 0..c {
                    pixel[i] = (first[at + i] + first[at + c + i]) + (second[at + i] + second[at + c + i]);
                }
            }
        });
        dx
    }
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let (b, h, w, c) = layout.shape().dims4()?;
        let y = with_compute_type!(dtype, T => {
            let x = numbers::<T>(x, layout)?;
            to_storage(timed(self.name(), Pass::Forward, || self.forward(&x)), dtype)?
        });
        Ok((y, (b, 2 * h, 2 * w, c).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(dy, |dy: &[T]| Ok(timed(self.name(), Pass::Backward, || self.backward(dy))))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

//! Adding one vector per sample to every pixel: how the time embedding enters a resnet.

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `xs`: (b, h, w, c), `shift`: (b, c) -> (b, h, w, c). Gradients: `xs`, and `shift` if it has a graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_per_sample(xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    if shift.dims() != [b, c] {
        bail!("a shift of shape {:?} for maps of shape {:?}", shift.shape(), xs.shape());
    }
    if !generic::has_kernel(xs) {
        return generic::add_per_sample(xs, shift);
    }
    xs.apply_op2(shift, AddPerSample { pixels: h * w, channels: c })
}

struct AddPerSample {
    pixels: usize,
    channels: usize,
}

impl AddPerSample {
    fn forward<T: Number>(&self, x: &[T], shift: &[T]) -> Vec<T> {
        let mut y = x.to_vec();
        y.par_chunks_mut(self.channels).with_min_len(64).enumerate().for_each(|(pixel, y)| {
            let b = pixel / self.pixels;
            let shift = &shift[b * self.channels..(b + 1) * self.channels];
            y.iter_mut().zip(shift).for_each(|(y, s)| *y += *s);
        });
        y
    }

    /// The gradient of the shift: dY summed over the pixels of each sample.
    fn sum_pixels<T: Number>(&self, dy: &[T]) -> Vec<T> {
        let sums = dy.par_chunks(self.pixels * self.channels).map(|dy| {
            let mut sum = vec![T::default(); self.channels];
            for dy in dy.chunks_exact(self.channels) {
                sum.iter_mut().zip(dy).for_each(|(s, d)| *s += *d);
            }
            sum
        });
        sums.collect::<Vec<_>>().concat()
    }
}

impl CustomOp2 for AddPerSample {
    fn name(&self) -> &'static str {
        "add-per-sample"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => {
            let (x, shift) = (numbers::<T>(x, x_layout)?, numbers(shift, shift_layout)?);
            to_storage(timed(self.name(), Pass::Forward, || self.forward(&x, &shift)), dtype)?
        });
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, shift: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| dy.clone());
        if !shift.track_op() {
            return Ok((dx, None));
        }
        with_compute_type!(x.dtype(), T => {
            let d_shift = with_numbers(dy, |dy: &[T]| Ok(self.sum_pixels(dy)))?;
            Ok((dx, Some(to_tensor(d_shift, shift.shape(), shift.dtype())?)))
        })
    }
}

//! Layer normalisation over the last axis (Ba et al. 2016, arXiv 1607.06450), with frozen gain and bias.
//!
//! y = (x - mean) rstd g + b. Backward in closed form, with xhat = (x - mean) rstd and dxhat = dy g:
//! dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)). A row's statistics are computed again: it lies in the cache.

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::real::{sum_by, vectorized};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `xs`: (.., c); `weight`, `bias`: (c); `eps` is added to the variance. Returns (.., c).
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = weight.elem_count();
    if xs.dims().last() != Some(&channels) || bias.elem_count() != channels {
        bail!("a layer norm of {channels} channels was given {:?}", xs.shape());
    }
    if !generic::has_kernel(xs) {
        return generic::layer_norm(xs, weight, bias, eps);
    }
    xs.apply_op1(LayerNorm { weight: weight.detach(), bias: bias.detach(), channels, eps })
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    channels: usize,
    eps: f64,
}

impl LayerNorm {
    /// (mean, 1 / standard deviation)
    #[inline(always)]
    fn statistics<T: Number>(&self, x: &[T]) -> (T, T) {
        let count = T::real(self.channels as f64);
        let mean = sum_by(x.len(), |i| x[i]) / count;
        let variance = sum_by(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / count;
        (mean, T::real(1.0 / (variance.as_f64() + self.eps).sqrt()))
    }

    fn forward<T: Number>(&self, x: &[T], gain: &[T], bias: &[T]) -> Vec<T> {
        let mut y = vec![T::default(); x.len()];
        y.par_chunks_mut(self.channels).zip(x.par_chunks(self.channels)).with_min_len(8).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    let (mean, rstd) = self.statistics(x);
                    for i in 0..x.len() {
                        y[i] = (x[i] - mean) * rstd * gain[i] + bias[i];
                    }
                },
            );
        });
        y
    }

    fn backward<T: Number>(&self, x: &[T], gain: &[T], dy: &[T]) -> Vec<T> {
        let c = self.channels;
        let count = T::real(c as f64);
        let mut dx = vec![T::default(); x.len()];
        let rows = dx.par_chunks_mut(c).zip(x.par_chunks(c)).zip(dy.par_chunks(c));
        rows.with_min_len(8).for_each(|((dx, x), dy)| {
            vectorized(
                #[inline(always)]
                || {
                    let (mean, rstd) = self.statistics(x);
                    let mean_d = sum_by(c, |i| dy[i] * gain[i]) / count;
                    let mean_dx = sum_by(c, |i| dy[i] * gain[i] * (x[i] - mean) * rstd) / count;
                    for i in 0..c {
                        dx[i] = rstd * (dy[i] * gain[i] - mean_d - (x[i] - mean) * rstd * mean_dx);
                    }
                },
            );
        });
        dx
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => with_numbers(&self.weight, |gain: &[T]| {
            with_numbers(&self.bias, |bias: &[T]| {
                let x = numbers(x, layout)?;
                to_storage(timed(self.name(), Pass::Forward, || self.forward(&x, gain, bias)), dtype)
            })
        })?);
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(&self.weight, |gain: &[T]| with_numbers(x, |xs: &[T]| {
                with_numbers(dy, |dy: &[T]| Ok(timed(self.name(), Pass::Backward, || self.backward(xs, gain, dy))))
            }))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

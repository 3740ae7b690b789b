//! Group normalisation of channels-last maps (Wu and He 2018, arXiv 1803.08494) with frozen gain and bias, and SiLU
//! after it if asked: the pair stands before every convolution of the U-Net, and fused it keeps only x.
//!
//! z = xhat g + b with xhat = (x - mean) rstd over one sample's group; y = z or z sigmoid(z). Backward in closed form,
//! with dz = dy silu'(z) and dxhat = dz g: dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)).
//! Work goes channel by channel and pixel by pixel (vectors over channels); groups appear only in the statistics.

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::real::vectorized;
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// `xs`: (b, .., c); `weight`, `bias`: (c); `eps` is added to the variance; `silu` follows if asked. Returns (b, .., c).
///
/// # Errors
/// If the shapes do not fit or the groups do not divide the channels.
pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, silu: bool) -> Result<Tensor> {
    let channels = weight.elem_count();
    if xs.rank() < 2 || xs.dims().last() != Some(&channels) || groups == 0 || !channels.is_multiple_of(groups) {
        bail!("a group norm of {groups} groups over {channels} channels was given {:?}", xs.shape());
    }
    if !generic::has_kernel(xs) {
        return generic::group_norm(xs, weight, bias, groups, eps, silu);
    }
    let pixels = xs.elem_count() / (xs.dim(0)? * channels);
    xs.apply_op1(GroupNorm { weight: weight.detach(), bias: bias.detach(), channels, groups, pixels, eps, silu })
}

struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    channels: usize,
    groups: usize,
    /// Pixels of one sample.
    pixels: usize,
    eps: f64,
    silu: bool,
}

/// Pixels per parallel piece: a fixed cut, so that sums do not depend on the number of threads.
const PIECE_PIXELS: usize = 64;

/// Mean and 1 / standard deviation of each channel's group: (b c) each.
struct Statistics<T> {
    mean: Vec<T>,
    rstd: Vec<T>,
}

impl GroupNorm {
    /// Adds up `add(pixel's offset, per-channel sums)` over all pixels of each sample; then per sample and group, in f64.
    fn sum_groups<T: Number>(&self, len: usize, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<f64> {
        let (c, per_group) = (self.channels, self.channels / self.groups);
        let samples = len / (self.pixels * c);
        let pieces = self.pixels.div_ceil(PIECE_PIXELS);
        let sums: Vec<Vec<T>> = (0..samples * pieces)
            .into_par_iter()
            .map(|i| {
                let (sample, first) = (i / pieces, i % pieces * PIECE_PIXELS);
                let mut sums = vec![T::default(); c];
                vectorized(
                    #[inline(always)]
                    || {
                        for pixel in first..self.pixels.min(first + PIECE_PIXELS) {
                            add((sample * self.pixels + pixel) * c, &mut sums);
                        }
                    },
                );
                sums
            })
            .collect();
        let mut groups = vec![0f64; samples * self.groups];
        for (i, sums) in sums.iter().enumerate() {
            for (channel, sum) in sums.iter().enumerate() {
                groups[i / pieces * self.groups + channel / per_group] += sum.as_f64();
            }
        }
        groups
    }

    /// One value per sample and group -> one per sample and channel.
    fn spread<T: Number>(&self, groups: &[f64], f: impl Fn(f64) -> f64) -> Vec<T> {
        let per_group = self.channels / self.groups;
        groups.iter().flat_map(|g| std::iter::repeat_n(T::real(f(*g)), per_group)).collect()
    }

    fn group_count(&self) -> f64 {
        (self.pixels * self.channels / self.groups) as f64
    }

    fn statistics<T: Number>(&self, x: &[T]) -> Statistics<T> {
        let (c, count) = (self.channels, self.group_count());
        let sums = self.sum_groups(
            x.len(),
            #[inline(always)]
            |at, sums: &mut [T]| {
                for (sum, x) in sums.iter_mut().zip(&x[at..at + c]) {
                    *sum += *x;
                }
            },
        );
        let mean: Vec<T> = self.spread(&sums, |sum| sum / count);
        let squares = self.sum_groups(
            x.len(),
            #[inline(always)]
            |at, sums: &mut [T]| {
                let mean = &mean[at / (self.pixels * c) * c..][..c];
                for ((sum, x), mean) in sums.iter_mut().zip(&x[at..at + c]).zip(mean) {
                    *sum += (*x - *mean) * (*x - *mean);
                }
            },
        );
        let rstd = self.spread(&squares, |squares| 1.0 / (squares / count + self.eps).sqrt());
        Statistics { mean, rstd }
    }

    fn forward<T: Number>(&self, x: &[T], gain: &[T], bias: &[T]) -> Vec<T> {
        let c = self.channels;
        let Statistics { mean, rstd } = self.statistics(x);
        let mut y = vec![T::default(); x.len()];
        y.par_chunks_mut(c).zip(x.par_chunks(c)).enumerate().with_min_len(8).for_each(|(pixel, (y, x))| {
            let at = pixel / self.pixels * c;
            let (mean, rstd) = (&mean[at..at + c], &rstd[at..at + c]);
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..c {
                        y[i] = (x[i] - mean[i]) * rstd[i] * gain[i] + bias[i];
                    }
                    if self.silu {
                        y.iter_mut().for_each(|y| *y *= y.sigmoid());
                    }
                },
            );
        });
        y
    }

    fn backward<T: Number>(&self, x: &[T], gain: &[T], bias: &[T], dy: &[T]) -> Vec<T> {
        let (c, count) = (self.channels, self.group_count());
        let Statistics { mean, rstd } = self.statistics(x);
        // dxhat, kept in the buffer that becomes dx
        let mut dx = vec![T::default(); x.len()];
        let pixels = dx.par_chunks_mut(c).zip(x.par_chunks(c)).zip(dy.par_chunks(c)).enumerate();
        pixels.with_min_len(8).for_each(|(pixel, ((dx, x), dy))| {
            let at = pixel / self.pixels * c;
            let (mean, rstd) = (&mean[at..at + c], &rstd[at..at + c]);
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..c {
                        let mut dz = dy[i];
                        if self.silu {
                            let z = (x[i] - mean[i]) * rstd[i] * gain[i] + bias[i];
                            let s = z.sigmoid();
                            dz *= s + z * s * (T::ONE - s);
                        }
                        dx[i] = dz * gain[i];
                    }
                },
            );
        });
        let sums = self.sum_groups(
            x.len(),
            #[inline(always)]
            |at, sums: &mut [T]| {
                for (sum, d) in sums.iter_mut().zip(&dx[at..at + c]) {
                    *sum += *d;
                }
            },
        );
        let dots = self.sum_groups(
            x.len(),
            #[inline(always)]
            |at, sums: &mut [T]| {
                let of_sample = at / (self.pixels * c) * c;
                let (mean, rstd) = (&mean[of_sample..][..c], &rstd[of_sample..][..c]);
                let (dx, x) = (&dx[at..at + c], &x[at..at + c]);
                for i in 0..c {
                    sums[i] += dx[i] * (x[i] - mean[i]) * rstd[i];
                }
            },
        );
        let mean_d: Vec<T> = self.spread(&sums, |sum| sum / count);
        let mean_dx: Vec<T> = self.spread(&dots, |dot| dot / count);
        dx.par_chunks_mut(c).zip(x.par_chunks(c)).enumerate().with_min_len(8).for_each(|(pixel, (dx, x))| {
            let at = pixel / self.pixels * c;
            let (mean, rstd) = (&mean[at..at + c], &rstd[at..at + c]);
            let (mean_d, mean_dx) = (&mean_d[at..at + c], &mean_dx[at..at + c]);
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..c {
                        dx[i] = rstd[i] * (dx[i] - mean_d[i] - (x[i] - mean[i]) * rstd[i] * mean_dx[i]);
                    }
                },
            );
        });
        dx
    }
}

impl CustomOp1 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
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
            let dx = with_numbers(&self.weight, |gain: &[T]| with_numbers(&self.bias, |bias: &[T]| {
                with_numbers(x, |xs: &[T]| with_numbers(dy, |dy: &[T]| Ok(timed(self.name(), Pass::Backward, || self.backward(xs, gain, bias, dy)))))
            }))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

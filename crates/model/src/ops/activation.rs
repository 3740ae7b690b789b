//! Pointwise nonlinearities: GELU (erf), quick GELU, SiLU, and the gated GEGLU. Backward from x alone.
//!
//! - GELU(x) = x Phi(x), derivative Phi(x) + x phi(x): the exact form of diffusers and transformers, not the tanh one.
//! - quick GELU(x) = x sigmoid(1.702 x), as OpenAI's CLIP has it.
//! - GEGLU(a, g) = a GELU(g), where (a, g) are the two halves of the last axis (Shazeer 2020, arXiv 2002.05202).

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::real::{Real, map, map2, vectorized};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// A pointwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x)
    Gelu,
    /// x sigmoid(1.702 x)
    QuickGelu,
    /// x sigmoid(x)
    Silu,
}

impl Activation {
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        match self {
            Self::Gelu => x * x.normal().0,
            Self::QuickGelu => x * (T::real(1.702) * x).sigmoid(),
            Self::Silu => x * x.sigmoid(),
        }
    }

    #[inline(always)]
    fn derivative<T: Real>(self, x: T) -> T {
        match self {
            Self::Gelu => {
                let (cdf, pdf) = x.normal();
                cdf + x * pdf
            }
            Self::QuickGelu => {
                let slope = T::real(1.702);
                let s = (slope * x).sigmoid();
                s + slope * x * s * (T::ONE - s)
            }
            Self::Silu => {
                let s = x.sigmoid();
                s + x * s * (T::ONE - s)
            }
        }
    }
}

/// Applies `kind` to every element of `xs`, of any shape.
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn activation(xs: &Tensor, kind: Activation) -> Result<Tensor> {
    if !generic::has_kernel(xs) {
        return generic::activation(xs, kind);
    }
    xs.apply_op1(kind)
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        // The match on the kind stands outside the loop, so that each loop vectorises.
        let y = with_compute_type!(dtype, T => {
            let x = numbers::<T>(x, layout)?;
            to_storage(match self {
                Self::Gelu => map(&x, #[inline(always)] |x| Self::Gelu.value(x)),
                Self::QuickGelu => map(&x, #[inline(always)] |x| Self::QuickGelu.value(x)),
                Self::Silu => map(&x, #[inline(always)] |x| Self::Silu.value(x)),
            }, dtype)?
        });
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(x, |xs: &[T]| with_numbers(dy, |dy: &[T]| Ok(match self {
                Self::Gelu => map2(xs, dy, #[inline(always)] |x, dy| dy * Self::Gelu.derivative(x)),
                Self::QuickGelu => map2(xs, dy, #[inline(always)] |x, dy| dy * Self::QuickGelu.derivative(x)),
                Self::Silu => map2(xs, dy, #[inline(always)] |x, dy| dy * Self::Silu.derivative(x)),
            })))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

/// The gated linear unit of the U-Net's feed-forward: `xs` (.., 2c) -> (.., c), first half times GELU of the second.
///
/// # Errors
/// If the last axis is odd.
pub fn geglu(xs: &Tensor) -> Result<Tensor> {
    match xs.dims().last() {
        Some(width) if width % 2 == 0 && !generic::has_kernel(xs) => generic::geglu(xs),
        Some(width) if width % 2 == 0 => xs.apply_op1(Geglu { half: width / 2 }),
        _ => bail!("GEGLU needs an even last axis, not {:?}", xs.shape()),
    }
}

struct Geglu {
    half: usize,
}

impl Geglu {
    fn forward<T: Number>(&self, x: &[T]) -> Vec<T> {
        let c = self.half;
        let mut y = vec![T::default(); x.len() / 2];
        y.par_chunks_mut(c).zip(x.par_chunks(2 * c)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    let (value, gate) = x.split_at(c);
                    for ((y, value), gate) in y.iter_mut().zip(value).zip(gate) {
                        *y = *value * *gate * gate.normal().0;
                    }
                },
            );
        });
        y
    }

    fn backward<T: Number>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let c = self.half;
        let mut dx = vec![T::default(); x.len()];
        dx.par_chunks_mut(2 * c).zip(x.par_chunks(2 * c)).zip(dy.par_chunks(c)).for_each(|((dx, x), dy)| {
            vectorized(
                #[inline(always)]
                || {
                    let ((d_value, d_gate), (value, gate)) = (dx.split_at_mut(c), x.split_at(c));
                    for i in 0..c {
                        let (cdf, pdf) = gate[i].normal();
                        d_value[i] = dy[i] * gate[i] * cdf;
                        d_gate[i] = dy[i] * value[i] * (cdf + gate[i] * pdf);
                    }
                },
            );
        });
        dx
    }
}

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => {
            let x = numbers::<T>(x, layout)?;
            to_storage(timed(self.name(), Pass::Forward, || self.forward(&x)), dtype)?
        });
        let mut dims = layout.dims().to_vec();
        dims.pop();
        dims.push(self.half);
        Ok((y, dims.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(x, |xs: &[T]| with_numbers(dy, |dy: &[T]| Ok(timed(self.name(), Pass::Backward, || self.backward(xs, dy)))))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

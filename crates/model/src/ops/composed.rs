//! Every operation again, as a plain composition of candle's own differentiable operations.
//!
//! This is the oracle that the kernels are tested against. It forms what the kernels avoid (gradients of frozen
//! weights, tokens x tokens matrices), so training never runs it on the CPU.
#![allow(clippy::disallowed_methods)] // the oracle is made of exactly these

use super::{Activation, ConvGeometry, LoraScale};
use candle_core::{D, Result, Tensor};

/// See [`super::linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ys = xs.broadcast_matmul(&weight.t()?)?;
    bias.map_or(Ok(ys.clone()), |bias| ys.broadcast_add(bias))
}

/// See [`super::lora_linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_linear(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    scale: impl Into<LoraScale>,
) -> Result<Tensor> {
    let low_rank = scale.into().applied(&linear(xs, &down.flatten_from(1)?, None)?)?;
    linear(xs, weight, bias)? + linear(&low_rank, &up.flatten_from(1)?, None)?
}

/// See [`super::conv2d`].
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
    let xs = xs.permute((0, 3, 1, 2))?.contiguous()?; // (b, c, h, w)
    let xs = xs.pad_with_zeros(2, geometry.pad_before, geometry.pad_after)?;
    let xs = xs.pad_with_zeros(3, geometry.pad_before, geometry.pad_after)?;
    let ys = xs.conv2d(&weight.permute((0, 3, 1, 2))?.contiguous()?, 0, geometry.stride, 1, 1)?;
    let ys = ys.permute((0, 2, 3, 1))?.contiguous()?; // (b, h', w', out)
    bias.map_or(Ok(ys.clone()), |bias| ys.broadcast_add(bias))
}

/// See [`super::lora_conv2d`].
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_conv2d(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    scale: impl Into<LoraScale>,
) -> Result<Tensor> {
    let low_rank = scale.into().applied(&conv2d(xs, &down.permute((0, 2, 3, 1))?, None, geometry)?)?;
    conv2d(xs, weight, bias, geometry)? + linear(&low_rank, &up.flatten_from(1)?, None)?
}

/// See [`super::group_norm`].
///
/// # Errors
/// If the shapes do not fit.
pub fn group_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64, silu: bool) -> Result<Tensor> {
    let (b, c) = (xs.dim(0)?, weight.elem_count());
    let grouped = xs.reshape((b, (), groups, c / groups))?.transpose(1, 2)?.flatten_from(2)?; // (b, g, pixels c/g)
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let normed = normed.reshape((b, groups, (), c / groups))?.transpose(1, 2)?.contiguous()?.reshape(xs.shape())?;
    let ys = normed.broadcast_mul(weight)?.broadcast_add(bias)?;
    if silu { activation(&ys, Activation::Silu) } else { Ok(ys) }
}

/// See [`super::layer_norm`].
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// See [`super::attention`].
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: usize, causal: bool) -> Result<Tensor> {
    let (b, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let heads = |x: &Tensor| x.reshape((b, (), num_heads, width / num_heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads(q)?, heads(k)?, heads(v)?); // (b, n, l, d)
    let scale = 1.0 / ((width / num_heads) as f64).sqrt();
    let mut scores = (q.matmul(&k.t()?)? * scale)?; // (b, n, l, keys)
    if causal {
        let mask: Vec<f64> = (0..queries * keys).map(|i| if i % keys > i / keys { -1e30 } else { 0.0 }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (queries, keys), q.device())?.to_dtype(q.dtype())?)?;
    }
    let weights = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, queries, width))
}

/// See [`super::activation`].
///
/// # Errors
/// If the dtype is not a floating-point one.
pub fn activation(xs: &Tensor, kind: Activation) -> Result<Tensor> {
    let sigmoid = |xs: &Tensor| (xs.neg()?.exp()? + 1.0)?.recip();
    match kind {
        Activation::Gelu => xs.gelu_erf(),
        Activation::QuickGelu => xs * sigmoid(&(xs * 1.702)?)?,
        Activation::Silu => xs * sigmoid(xs)?,
    }
}

/// See [`super::geglu`].
///
/// # Errors
/// If the last axis is odd.
pub fn geglu(xs: &Tensor) -> Result<Tensor> {
    let halves = xs.chunk(2, D::Minus1)?;
    &halves[0].contiguous()? * halves[1].contiguous()?.gelu_erf()?
}

/// See [`super::upsample_nearest`].
///
/// # Errors
/// If `xs` has not four axes.
pub fn upsample_nearest(xs: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    let pairs = xs.reshape((b, h, 1, w, 1, c))?;
    pairs.broadcast_as((b, h, 2, w, 2, c))?.contiguous()?.reshape((b, 2 * h, 2 * w, c))
}

/// See [`super::add_per_sample`].
///
/// # Errors
/// If the shapes do not fit.
pub fn add_per_sample(xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (b, c) = shift.dims2()?;
    xs.broadcast_add(&shift.reshape((b, 1, 1, c))?)
}

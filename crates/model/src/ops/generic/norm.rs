//! See [`crate::ops::group_norm`] and [`crate::ops::layer_norm`] for the maths.
//!
//! With x' = (x - mean) r, r = 1 / sqrt(variance + eps), and g = dY w: dX = r (g - mean(g) - x' mean(g x')).

use super::super::recorded::recorded;
use super::wide;
use candle_core::{D, Result, Tensor};

pub(in crate::ops) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (weight, bias, dtype) = (wide(weight)?, wide(bias)?, xs.dtype());
    let mean = |xs: &Tensor| xs.mean_keepdim(D::Minus1);
    let x = xs.detach();
    let (normed, _) = standardized(&wide(&x)?, eps, mean)?;
    let ys = normed.broadcast_mul(&weight)?.broadcast_add(&bias)?.to_dtype(dtype)?;
    recorded("generic-layer-norm", &[xs], ys, move |dy| {
        let (normed, inverse) = standardized(&wide(&x)?, eps, mean)?;
        let dx = gradient(&wide(dy)?.broadcast_mul(&weight)?, &normed, &inverse, mean)?;
        Ok(vec![Some(dx.to_dtype(dtype)?)])
    })
}

pub(in crate::ops) fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let (weight, bias, dtype, shape) = (wide(weight)?, wide(bias)?, xs.dtype(), xs.shape().clone());
    let (batch, channels) = (xs.dim(0)?, weight.elem_count());
    let mean = |xs: &Tensor| xs.mean_keepdim((1, 3));
    let grouped = move |xs: &Tensor| wide(xs)?.contiguous()?.reshape((batch, (), groups, channels / groups));
    let x = xs.detach();
    // (b, pixels, groups, c / groups) -> (b, pixels, c) before the nonlinearity
    let (scale, shift) = (weight.clone(), bias);
    let scaled =
        move |normed: &Tensor| normed.reshape((batch, (), channels))?.broadcast_mul(&scale)?.broadcast_add(&shift);
    let ys = scaled(&standardized(&grouped(&x)?, eps, mean)?.0)?;
    let ys = if silu { (&ys * sigmoid(&ys)?)? } else { ys };
    let ys = ys.reshape(&shape)?.to_dtype(dtype)?;
    recorded("generic-group-norm", &[xs], ys, move |dy| {
        let (normed, inverse) = standardized(&grouped(&x)?, eps, mean)?;
        let mut dy = wide(dy)?.contiguous()?.reshape((batch, (), channels))?;
        if silu {
            let y = scaled(&normed)?;
            let s = sigmoid(&y)?;
            let slope = (&s + ((&y * &s)? * s.affine(-1.0, 1.0)?)?)?; // s + y s (1 - s)
            dy = (dy * slope)?;
        }
        let dx = gradient(&grouped(&dy.broadcast_mul(&weight)?)?, &normed, &inverse, mean)?;
        Ok(vec![Some(dx.reshape(&shape)?.to_dtype(dtype)?)])
    })
}

/// (x', r)
fn standardized(xs: &Tensor, eps: f64, mean: impl Fn(&Tensor) -> Result<Tensor>) -> Result<(Tensor, Tensor)> {
    let centred = xs.broadcast_sub(&mean(xs)?)?;
    let inverse = (mean(&centred.sqr()?)? + eps)?.sqrt()?.recip()?;
    Ok((centred.broadcast_mul(&inverse)?, inverse))
}

fn gradient(g: &Tensor, normed: &Tensor, inverse: &Tensor, mean: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let along = normed.broadcast_mul(&mean(&(g * normed)?)?)?;
    (g.broadcast_sub(&mean(g)?)? - along)?.broadcast_mul(inverse)
}

pub(super) fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    (xs.neg()?.exp()? + 1.0)?.recip()
}

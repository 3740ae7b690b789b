//! See [`crate::ops::activation`], [`crate::ops::geglu`], [`crate::ops::upsample_nearest`] and
//! [`crate::ops::add_per_sample`] for the maths.

use super::super::Activation;
use super::super::recorded::recorded;
use super::norm::sigmoid;
use super::wide;
use candle_core::{D, Result, Tensor};
use std::f64::consts::{FRAC_1_SQRT_2, TAU};

pub(in crate::ops) fn activation(xs: &Tensor, kind: Activation) -> Result<Tensor> {
    let x = xs.detach();
    let ys = value(&wide(&x)?, kind)?.to_dtype(xs.dtype())?;
    recorded("generic-activation", &[xs], ys, move |dy| {
        let dx = (wide(dy)? * derivative(&wide(&x)?, kind)?)?;
        Ok(vec![Some(dx.to_dtype(x.dtype())?)])
    })
}

pub(in crate::ops) fn geglu(xs: &Tensor) -> Result<Tensor> {
    let x = xs.detach();
    let halves = |x: &Tensor| -> Result<(Tensor, Tensor)> {
        let half = x.dim(D::Minus1)? / 2;
        Ok((
            wide(&x.narrow(D::Minus1, 0, half)?.contiguous()?)?,
            wide(&x.narrow(D::Minus1, half, half)?.contiguous()?)?,
        ))
    };
    let (a, gate) = halves(&x)?;
    let ys = (a * value(&gate, Activation::Gelu)?)?.to_dtype(xs.dtype())?;
    recorded("generic-geglu", &[xs], ys, move |dy| {
        let ((a, gate), dy) = (halves(&x)?, wide(dy)?);
        let d_value = (&dy * value(&gate, Activation::Gelu)?)?;
        let d_gate = ((dy * a)? * derivative(&gate, Activation::Gelu)?)?;
        Ok(vec![Some(Tensor::cat(&[d_value, d_gate], D::Minus1)?.to_dtype(x.dtype())?)])
    })
}

pub(in crate::ops) fn upsample_nearest(xs: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = xs.dims4()?;
    let squares = xs.detach().reshape((b, h, 1, w, 1, c))?.broadcast_as((b, h, 2, w, 2, c))?;
    let ys = squares.contiguous()?.reshape((b, 2 * h, 2 * w, c))?;
    recorded("generic-upsample", &[xs], ys, move |dy| {
        let sums = wide(dy)?.contiguous()?.reshape((b, h, 2, w, 2, c))?.sum((2, 4))?;
        Ok(vec![Some(sums.to_dtype(dy.dtype())?)])
    })
}

pub(in crate::ops) fn add_per_sample(xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let (b, c) = shift.dims2()?;
    let ys = xs.detach().broadcast_add(&shift.detach().to_dtype(xs.dtype())?.reshape((b, 1, 1, c))?)?;
    let (tracked, dtype) = (shift.track_op(), shift.dtype());
    recorded("generic-add-per-sample", &[xs, shift], ys, move |dy| {
        let d_shift = || wide(dy)?.sum((1, 2))?.to_dtype(dtype);
        Ok(vec![Some(dy.clone()), tracked.then(d_shift).transpose()?])
    })
}

fn value(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::Gelu => x.gelu_erf(),
        Activation::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
        Activation::Silu => x * sigmoid(x)?,
    }
}

fn derivative(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let of_sigmoid = |slope: f64| {
        let s = sigmoid(&(x * slope)?)?;
        &s + (((x * &s)? * s.affine(-1.0, 1.0)?)? * slope)? // s + slope x s (1 - s)
    };
    match kind {
        Activation::Gelu => {
            let cdf = ((x * FRAC_1_SQRT_2)?.erf()? + 1.0)?.affine(0.5, 0.0)?;
            let pdf = (x.sqr()?.affine(-0.5, 0.0)?.exp()? / TAU.sqrt())?;
            cdf + (x * pdf)?
        }
        Activation::QuickGelu => of_sigmoid(1.702),
        Activation::Silu => of_sigmoid(1.0),
    }
}

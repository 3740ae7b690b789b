//! See [`crate::ops::linear`] and [`crate::ops::lora_linear`] for the maths.

use super::super::frozen_matrix::FrozenMatrix;
use super::super::lora_scale::LoraScale;
use super::super::recorded::recorded;
use super::rows;
use candle_core::{DType, Result, Shape, Tensor};

pub(in crate::ops) fn linear(xs: &Tensor, weight: FrozenMatrix, bias: Option<&Tensor>) -> Result<Tensor> {
    let frozen = Frozen { weight, dtype: xs.dtype(), in_shape: xs.shape().clone() };
    let ys = frozen.forward(&rows(xs)?, bias)?.reshape(frozen.out_shape()?)?;
    let tracked = xs.track_op();
    recorded("generic-linear", &[xs], ys, move |dy| {
        let dx = tracked.then(|| frozen.backward(&rows(dy)?)?.reshape(&frozen.in_shape)).transpose()?;
        Ok(vec![dx])
    })
}

pub(in crate::ops) fn lora_linear(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: FrozenMatrix,
    bias: Option<&Tensor>,
    scale: LoraScale,
) -> Result<Tensor> {
    let frozen = Frozen { weight, dtype: xs.dtype(), in_shape: xs.shape().clone() };
    let x = rows(xs)?; // (m, in)
    let (a, b) = (factor(down, xs)?, factor(up, xs)?); // (r, in), (out, r)
    let low_rank = scale.applied(&x.matmul(&a.t()?)?)?.matmul(&b.t()?)?; // (m, out)
    let ys = (frozen.forward(&x, bias)? + low_rank)?.reshape(frozen.out_shape()?)?;
    let (tracked, learns) = (xs.track_op(), down.track_op());
    let (down_shape, up_shape, dtype) = (down.shape().clone(), up.shape().clone(), down.dtype());
    recorded("generic-lora-linear", &[xs, down, up], ys, move |dy| {
        let dy = rows(dy)?; // (m, out)
        let u = scale.applied(&dy.matmul(&b)?)?; // (m, r)
        let z = scale.applied(&x.matmul(&a.t()?)?)?; // (m, r)
        let d_down = || u.t()?.matmul(&x)?.to_dtype(dtype)?.reshape(&down_shape);
        let d_up = dy.t()?.matmul(&z)?.to_dtype(dtype)?.reshape(&up_shape)?;
        let dx = || (frozen.backward(&dy)? + u.matmul(&a)?)?.reshape(&frozen.in_shape);
        Ok(vec![tracked.then(dx).transpose()?, learns.then(d_down).transpose()?, Some(d_up)])
    })
}

/// A LoRA factor as a matrix in the dtype of the activations.
pub(super) fn factor(factor: &Tensor, xs: &Tensor) -> Result<Tensor> {
    factor.detach().flatten_from(1)?.to_dtype(xs.dtype())
}

struct Frozen {
    weight: FrozenMatrix,
    dtype: DType,
    in_shape: Shape,
}

impl Frozen {
    fn out_shape(&self) -> Result<Shape> {
        let mut dims = self.in_shape.dims().to_vec();
        dims.pop();
        dims.push(self.weight.dims2()?.0);
        Ok(dims.into())
    }

    /// (out, in) in the dtype of the activations: made anew in each pass, so that never more than one layer is wide.
    fn matrix(&self) -> Result<Tensor> {
        self.weight.to_dense(self.dtype)
    }

    fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let y = x.matmul(&self.matrix()?.t()?)?; // (m, out)
        bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(&bias.detach().to_dtype(y.dtype())?))
    }

    fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        dy.matmul(&self.matrix()?) // (m, in)
    }
}

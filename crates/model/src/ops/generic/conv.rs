//! See [`crate::ops::conv2d`] and [`crate::ops::lora_conv2d`] for the maths.
//!
//! The gradient of the map is a convolution too: of dY, with zeros put between its pixels where the stride is above 1,
//! with the kernel turned by half a turn and its channels exchanged. candle's own backward of a convolution is neither.

use super::super::ConvGeometry;
use super::super::lora_scale::LoraScale;
use super::super::recorded::recorded;
use super::linear::factor;
use super::{rows, wide};
use candle_core::{Result, Tensor};

pub(in crate::ops) fn conv2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
) -> Result<Tensor> {
    let weight = weight.detach().to_dtype(xs.dtype())?;
    let ys = with_bias(&convolve(&padded(xs, geometry)?, &weight, geometry.stride)?, bias)?;
    let (_, height, width, _) = xs.dims4()?;
    recorded("generic-conv2d", &[xs], ys, move |dy| {
        Ok(vec![Some(backward_data(dy, &weight, geometry, (height, width))?)])
    })
}

pub(in crate::ops) fn lora_conv2d(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    scale: LoraScale,
) -> Result<Tensor> {
    let weight = weight.detach().to_dtype(xs.dtype())?;
    let (_, height, width, _) = xs.dims4()?;
    let x = xs.detach();
    let a = down.detach().to_dtype(xs.dtype())?.permute((0, 2, 3, 1))?.contiguous()?; // (r, kh, kw, in)
    let b = factor(up, xs)?; // (out, r)
    let low_rank = move |x: &Tensor, a: &Tensor| convolve(&padded(x, geometry)?, a, geometry.stride); // (b, h', w', r)
    let z = scale.applied(&low_rank(&x, &a)?)?;
    let ys = with_bias(&convolve(&padded(&x, geometry)?, &weight, geometry.stride)?, bias)?; // (b, h', w', out)
    let ys = (&ys + rows(&z)?.matmul(&b.t()?)?.reshape(ys.shape())?)?;
    let (tracked, learns) = (xs.track_op(), down.track_op());
    let (rank, up_shape, dtype) = (down.dim(0)?, up.shape().clone(), down.dtype());
    recorded("generic-lora-conv2d", &[xs, down, up], ys, move |dy| {
        let (batch, out_height, out_width, _) = dy.dims4()?;
        let u = rows(dy)?.matmul(&b)?.reshape((batch, out_height, out_width, rank))?;
        let u = scale.applied(&u)?; // s dY B
        let d_down = || kernel_gradient(&x, &u, geometry, a.dim(1)?)?.to_dtype(dtype);
        let z = scale.applied(&low_rank(&x, &a)?)?;
        let d_up = rows(dy)?.t()?.matmul(&rows(&z)?)?.to_dtype(dtype)?.reshape(&up_shape)?;
        let dx = || {
            let size = (height, width);
            backward_data(dy, &weight, geometry, size)? + backward_data(&u, &a, geometry, size)?
        };
        Ok(vec![tracked.then(dx).transpose()?, learns.then(d_down).transpose()?, Some(d_up)])
    })
}

/// `xs` (b, h, w, c) with the zeros of the geometry around it, without a graph.
fn padded(xs: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
    let ConvGeometry { pad_before, pad_after, .. } = geometry;
    xs.detach().pad_with_zeros(1, pad_before, pad_after)?.pad_with_zeros(2, pad_before, pad_after)
}

/// `xs` (b, h, w, in), already padded, with `kernel` (out, kh, kw, in) -> (b, h', w', out).
#[allow(clippy::disallowed_methods)] // no graph is recorded here, so no gradient of the kernel is formed
fn convolve(xs: &Tensor, kernel: &Tensor, stride: usize) -> Result<Tensor> {
    // candle's convolution on the CPU knows no bf16.
    let compute = |x: &Tensor| if x.device().is_cpu() { wide(x) } else { Ok(x.detach()) };
    let maps = compute(xs)?.permute((0, 3, 1, 2))?.contiguous()?; // (b, in, h, w)
    let kernel = compute(kernel)?.permute((0, 3, 1, 2))?.contiguous()?; // (out, in, kh, kw)
    let ys = maps.conv2d(&kernel, 0, stride, 1, 1)?.to_dtype(xs.dtype())?;
    ys.permute((0, 2, 3, 1))?.contiguous()
}

fn with_bias(ys: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    bias.map_or(Ok(ys.clone()), |bias| ys.broadcast_add(&bias.detach().to_dtype(ys.dtype())?))
}

/// The gradient of a map of `size` (height, width) from `dy` (b, h', w', out): (b, h, w, in).
fn backward_data(dy: &Tensor, kernel: &Tensor, geometry: ConvGeometry, size: (usize, usize)) -> Result<Tensor> {
    let (num_out, side, _, num_in) = kernel.dims4()?;
    let last_first: Vec<u32> = (0..(side * side) as u32).rev().collect();
    let turned = kernel
        .reshape((num_out, side * side, num_in))?
        .index_select(&Tensor::new(last_first, kernel.device())?, 1)?
        .reshape((num_out, side, side, num_in))?
        .permute((3, 1, 2, 0))?; // (in, kh, kw, out)
    let before = (side - 1) as isize - geometry.pad_before as isize;
    let dy = spread(dy, geometry.stride)?;
    let dy = fitted(&fitted(&dy, 1, before, size.0 + side - 1)?, 2, before, size.1 + side - 1)?;
    convolve(&dy, &turned, 1)
}

/// `xs` (b, h, w, c) with `stride` - 1 zeros after each pixel of both axes.
fn spread(xs: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(xs.clone());
    }
    let (b, h, w, c) = xs.dims4()?;
    let spaced = xs.reshape((b, h, 1, w, 1, c))?.pad_with_zeros(2, 0, stride - 1)?.pad_with_zeros(4, 0, stride - 1)?;
    spaced.reshape((b, h * stride, w * stride, c))
}

/// `xs` with `before` zeros put in front of `axis` (or so many left out, if negative), and zeros or cuts behind, so
/// that the axis has `length`.
fn fitted(xs: &Tensor, axis: usize, before: isize, length: usize) -> Result<Tensor> {
    let left_out = (-before).max(0) as usize;
    let xs = xs.narrow(axis, left_out, xs.dim(axis)? - left_out)?;
    let xs =
        xs.pad_with_zeros(axis, before.max(0) as usize, length.saturating_sub(xs.dim(axis)? + before.max(0) as usize))?;
    xs.narrow(axis, 0, length)
}

/// The gradient of a kernel (r, in, kh, kw) of side `side` from `u` (b, h', w', r), the gradient of its result:
/// for each tap the product of u with the pixels that the tap met.
fn kernel_gradient(xs: &Tensor, u: &Tensor, geometry: ConvGeometry, side: usize) -> Result<Tensor> {
    let (batch, out_height, out_width, rank) = u.dims4()?;
    let (stride, channels) = (geometry.stride, xs.dim(3)?);
    // Room behind, so that every tap can be cut into whole strides.
    let xs = padded(xs, geometry)?;
    let xs = fitted(&fitted(&xs, 1, 0, out_height * stride + side)?, 2, 0, out_width * stride + side)?;
    let u = rows(u)?.t()?; // (r, b h' w')
    let mut taps = Vec::with_capacity(side * side);
    for i in 0..side {
        for j in 0..side {
            let met = xs.narrow(1, i, out_height * stride)?.narrow(2, j, out_width * stride)?.contiguous()?;
            let met = met.reshape((batch, out_height, stride, out_width, stride, channels))?.narrow(2, 0, 1)?;
            let met = met.narrow(4, 0, 1)?.contiguous()?.reshape(((), channels))?; // (b h' w', in)
            taps.push(u.matmul(&met)?); // (r, in)
        }
    }
    Tensor::stack(&taps, 2)?.reshape((rank, channels, side, side))
}

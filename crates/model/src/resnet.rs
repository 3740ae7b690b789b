//! The residual block of U-Net and VAE: norm, SiLU, convolution, twice, with the time embedding added in between.
//! Checked against diffusers' `ResnetBlock2D`.

use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::ops::{self, Activation, ConvGeometry};
use crate::weights::{Result, Weights};
use candle_core::Tensor;

/// `resnets.N`.
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    output_scale_factor: f64,
}

/// What decides a resnet's shape.
#[derive(Clone, Copy)]
pub(crate) struct ResnetShape {
    pub(crate) num_in: usize,
    pub(crate) num_out: usize,
    /// Width of the time embedding; none in the VAE.
    pub(crate) time_width: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    /// Divides the sum of block and shortcut.
    pub(crate) output_scale_factor: f64,
}

impl ResnetBlock {
    pub(crate) fn new(weights: &Weights, shape: ResnetShape) -> Result<Self> {
        let ResnetShape { num_in, num_out, time_width, groups, eps, output_scale_factor } = shape;
        let (same, pointwise) = (ConvGeometry::same(3), ConvGeometry::same(1));
        let time_emb_proj = time_width.map(|width| weights.at("time_emb_proj").linear(width, num_out, true));
        let conv_shortcut =
            (num_in != num_out).then(|| weights.at("conv_shortcut").conv2d(num_in, num_out, 1, pointwise));
        Ok(Self {
            norm1: weights.at("norm1").group_norm(num_in, groups, eps)?,
            conv1: weights.at("conv1").conv2d(num_in, num_out, 3, same)?,
            time_emb_proj: time_emb_proj.transpose()?,
            norm2: weights.at("norm2").group_norm(num_out, groups, eps)?,
            conv2: weights.at("conv2").conv2d(num_out, num_out, 3, same)?,
            conv_shortcut: conv_shortcut.transpose()?,
            output_scale_factor,
        })
    }

    /// `xs`: (b, h, w, in), `time`: (b, width) -> (b, h, w, out)
    pub(crate) fn forward(&self, xs: &Tensor, time: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let mut hidden = self.conv1.forward(&self.norm1.forward_silu(xs)?)?; // (b, h, w, out)
        if let (Some(time_emb_proj), Some(time)) = (&self.time_emb_proj, time) {
            let shift = time_emb_proj.forward(&ops::activation(time, Activation::Silu)?)?; // (b, out)
            hidden = ops::add_per_sample(&hidden, &shift)?;
        }
        let hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden)?)?;
        let sum = match &self.conv_shortcut {
            Some(conv_shortcut) => (conv_shortcut.forward(xs)? + hidden)?,
            None => (xs + hidden)?,
        };
        if self.output_scale_factor == 1.0 { Ok(sum) } else { sum / self.output_scale_factor }
    }
}

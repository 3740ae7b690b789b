//! The layers that networks are made of: frozen weights, and LoRA factors where the run wants them.

use crate::lora::{LoraFactors, active};
use crate::ops::{self, ConvGeometry, FrozenMatrix};
use crate::recorded_inputs::observe;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A frozen linear layer, with or without factors.
pub struct Linear {
    pub(crate) weight: FrozenMatrix, // (out, in)
    pub(crate) bias: Option<Tensor>, // (out)
    pub(crate) lora: Option<Arc<LoraFactors>>,
}

impl Linear {
    /// (.., in) -> (.., out)
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match active(self.lora.as_ref()) {
            None => ops::linear(xs, &self.weight, self.bias.as_ref()),
            Some(lora) => {
                observe(lora, xs)?;
                let (down, up) = lora.tensors();
                let rows = &xs.dims()[..xs.rank().saturating_sub(1)];
                let scale = lora.scale_of(rows, xs.device())?;
                ops::lora_linear(xs, &down, &up, &self.weight, self.bias.as_ref(), scale)
            }
        }
    }
}

/// A frozen convolution, with or without factors.
pub struct Conv2d {
    pub(crate) weight: Tensor,       // (out, kh, kw, in)
    pub(crate) bias: Option<Tensor>, // (out)
    pub(crate) geometry: ConvGeometry,
    pub(crate) lora: Option<Arc<LoraFactors>>,
}

impl Conv2d {
    /// (b, h, w, in) -> (b, h', w', out)
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match active(self.lora.as_ref()) {
            None => ops::conv2d(xs, &self.weight, self.bias.as_ref(), self.geometry),
            Some(lora) => {
                observe(lora, xs)?;
                let (down, up) = lora.tensors();
                let (weight, bias) = (&self.weight, self.bias.as_ref());
                let ((b, h, w, _), kernel) = (xs.dims4()?, weight.dim(1)?);
                let rows = [b, self.geometry.output(h, kernel), self.geometry.output(w, kernel)];
                let scale = lora.scale_of(&rows, xs.device())?;
                ops::lora_conv2d(xs, &down, &up, weight, bias, self.geometry, scale)
            }
        }
    }
}

/// A frozen group norm.
pub struct GroupNorm {
    pub(crate) weight: Tensor, // (c)
    pub(crate) bias: Tensor,   // (c)
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl GroupNorm {
    /// (b, .., c) -> (b, .., c)
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::group_norm(xs, &self.weight, &self.bias, self.groups, self.eps, false)
    }

    /// The norm and SiLU after it, in one operation.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward_silu(&self, xs: &Tensor) -> Result<Tensor> {
        ops::group_norm(xs, &self.weight, &self.bias, self.groups, self.eps, true)
    }
}

/// A frozen layer norm.
pub struct LayerNorm {
    pub(crate) weight: Tensor, // (c)
    pub(crate) bias: Tensor,   // (c)
    pub(crate) eps: f64,
}

impl LayerNorm {
    /// (.., c) -> (.., c)
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::layer_norm(xs, &self.weight, &self.bias, self.eps)
    }
}

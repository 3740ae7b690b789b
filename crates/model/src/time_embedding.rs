//! The timestep as a vector: sinusoids of geometrically spaced frequencies (Vaswani et al. 2017, arXiv 1706.03762,
//! section 3.5, in diffusers' arrangement), and the two linear layers after them.

use crate::config::UnetConfig;
use crate::layers::Linear;
use crate::ops::{Activation, activation};
use crate::weights::{Result, Weights};
use candle_core::{DType, Device, Tensor};

/// `time_embedding` of the U-Net.
pub(crate) struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    num_sinusoids: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimeEmbedding {
    /// Width of the vector that resnets receive.
    pub(crate) fn width(config: &UnetConfig) -> usize {
        config.time_embedding_dim.unwrap_or(4 * config.block_out_channels[0])
    }

    pub(crate) fn new(weights: &Weights, config: &UnetConfig) -> Result<Self> {
        let (num_sinusoids, width) = (config.block_out_channels[0], Self::width(config));
        Ok(Self {
            linear_1: weights.at("linear_1").linear(num_sinusoids, width, true)?,
            linear_2: weights.at("linear_2").linear(width, width, true)?,
            num_sinusoids,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        })
    }

    /// b timesteps -> (b, width), in `dtype`; the sinusoids are computed in f64.
    pub(crate) fn forward(&self, timesteps: &[f64], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let half = self.num_sinusoids / 2;
        let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / (half as f64 - self.freq_shift)).exp();
        let mut values = Vec::with_capacity(timesteps.len() * self.num_sinusoids);
        for t in timesteps {
            let angles: Vec<f64> = (0..half).map(|i| t * frequency(i)).collect();
            let (cos, sin) = (angles.iter().map(|a| a.cos() as f32), angles.iter().map(|a| a.sin() as f32));
            if self.flip_sin_to_cos {
                values.extend(cos.chain(sin));
            } else {
                values.extend(sin.chain(cos));
            }
            values.extend(std::iter::repeat_n(0.0, self.num_sinusoids - 2 * half));
        }
        let xs = Tensor::from_vec(values, (timesteps.len(), self.num_sinusoids), device)?.to_dtype(dtype)?;
        let xs = activation(&self.linear_1.forward(&xs)?, Activation::Silu)?; // (b, width)
        self.linear_2.forward(&xs)
    }
}

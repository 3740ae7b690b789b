//! The timestep as a vector: sinusoids of geometrically spaced frequencies (Vaswani et al. 2017, arXiv 1706.03762,
//! section 3.5, in diffusers' arrangement), and the two linear layers after them. The same for the sizes of a picture.

use crate::conditioning::Conditioning;
use crate::config::{AddedConditioning, UnetConfig};
use crate::layers::Linear;
use crate::ops::{Activation, activation};
use crate::weights::{Result, Weights};
use candle_core::{DType, Device, Tensor, bail};

/// Numbers as vectors of sinusoids.
struct Sinusoids {
    count: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Sinusoids {
    fn new(count: usize, config: &UnetConfig) -> Self {
        Self { count, flip_sin_to_cos: config.flip_sin_to_cos, freq_shift: config.freq_shift }
    }

    /// (m, count), computed in f64 and rounded to f32 once.
    fn of(&self, numbers: &[f64]) -> Vec<f32> {
        let half = self.count / 2;
        let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / (half as f64 - self.freq_shift)).exp();
        let mut values = Vec::with_capacity(numbers.len() * self.count);
        for number in numbers {
            let angles: Vec<f64> = (0..half).map(|i| number * frequency(i)).collect();
            let (cos, sin) = (angles.iter().map(|a| a.cos() as f32), angles.iter().map(|a| a.sin() as f32));
            if self.flip_sin_to_cos {
                values.extend(cos.chain(sin));
            } else {
                values.extend(sin.chain(cos));
            }
            values.extend(std::iter::repeat_n(0.0, self.count - 2 * half));
        }
        values
    }
}

/// Two linear layers with SiLU between: `time_embedding` and `add_embedding` of the U-Net.
struct Projection {
    linear_1: Linear,
    linear_2: Linear,
}

impl Projection {
    fn new(weights: &Weights, num_in: usize, width: usize) -> Result<Self> {
        Ok(Self {
            linear_1: weights.at("linear_1").linear(num_in, width, true)?,
            linear_2: weights.at("linear_2").linear(width, width, true)?,
        })
    }

    /// (b, in) -> (b, width)
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.linear_2.forward(&activation(&self.linear_1.forward(xs)?, Activation::Silu)?)
    }
}

/// `time_embedding` of the U-Net.
pub(crate) struct TimeEmbedding {
    sinusoids: Sinusoids,
    projection: Projection,
}

impl TimeEmbedding {
    /// Width of the vector that resnets receive.
    pub(crate) fn width(config: &UnetConfig) -> usize {
        config.time_embedding_dim.unwrap_or(4 * config.block_out_channels[0])
    }

    pub(crate) fn new(weights: &Weights, config: &UnetConfig) -> Result<Self> {
        let count = config.block_out_channels[0];
        Ok(Self {
            sinusoids: Sinusoids::new(count, config),
            projection: Projection::new(weights, count, Self::width(config))?,
        })
    }

    /// b timesteps -> (b, width), in `dtype`.
    pub(crate) fn forward(&self, timesteps: &[f64], dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let shape = (timesteps.len(), self.sinusoids.count);
        let xs = Tensor::from_vec(self.sinusoids.of(timesteps), shape, device)?.to_dtype(dtype)?;
        self.projection.forward(&xs)
    }
}

/// `add_embedding` of the U-Net: the text as a whole and the sizes of the picture, added to the embedded timestep.
pub(crate) struct AddedEmbedding {
    sinusoids: Sinusoids,
    projection: Projection,
}

impl AddedEmbedding {
    pub(crate) fn new(weights: &Weights, config: &UnetConfig, added: AddedConditioning) -> Result<Self> {
        Ok(Self {
            sinusoids: Sinusoids::new(added.size_width, config),
            projection: Projection::new(weights, added.width(), TimeEmbedding::width(config))?,
        })
    }

    /// The embedding of what `conditioning` must have: (b, width), in the dtype of `like` and on its device. Sinusoids are made
    /// of the sizes before these are rounded: in bf16, 257 would be 256.
    pub(crate) fn forward(&self, conditioning: &Conditioning, like: &Tensor) -> candle_core::Result<Tensor> {
        let (Some(pooled), Some(time_ids)) = (&conditioning.text.pooled, &conditioning.time_ids) else {
            bail!("this network has to be told the pooled text and the sizes of the pictures")
        };
        let numbers: Vec<f64> = time_ids.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        let (b, count) = time_ids.dims2()?;
        let sizes = Tensor::from_vec(self.sinusoids.of(&numbers), (b, count * self.sinusoids.count), like.device())?;
        let pooled = pooled.to_device(like.device())?.to_dtype(like.dtype())?;
        let xs = Tensor::cat(&[&pooled, &sizes.to_dtype(like.dtype())?], 1)?; // (b, pooled + 6 size)
        self.projection.forward(&xs)
    }
}

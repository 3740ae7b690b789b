//! The autoencoder between pictures and latents (Kingma and Welling 2013; Rombach et al. 2022). Never trained here.
//! Checked against diffusers' `AutoencoderKL`.

use crate::config::VaeConfig;
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::ops::{self, ConvGeometry};
use crate::resnet::{ResnetBlock, ResnetShape};
use crate::weights::{Result, Weights};
use candle_core::{DType, Tensor};

const EPS: f64 = 1e-6;

/// The attention of the middle block: one head as wide as the map.
struct MidAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl MidAttention {
    fn new(weights: &Weights, channels: usize, groups: usize) -> Result<Self> {
        let layer = |name| weights.at(name).linear(channels, channels, true);
        Ok(Self {
            group_norm: weights.at("group_norm").group_norm(channels, groups, EPS)?,
            to_q: layer("to_q")?,
            to_k: layer("to_k")?,
            to_v: layer("to_v")?,
            to_out: layer("to_out.0")?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let (b, h, w, c) = xs.dims4()?;
        let normed = self.group_norm.forward(xs)?.reshape((b, h * w, c))?; // (b, h w, c)
        let (q, k, v) = (self.to_q.forward(&normed)?, self.to_k.forward(&normed)?, self.to_v.forward(&normed)?);
        self.to_out.forward(&ops::attention(&q, &k, &v, 1, false)?)?.reshape((b, h, w, c))? + xs
    }
}

struct MidBlock {
    resnet_0: ResnetBlock,
    attention: Option<MidAttention>,
    resnet_1: ResnetBlock,
}

impl MidBlock {
    fn new(weights: &Weights, channels: usize, config: &VaeConfig) -> Result<Self> {
        let resnet = resnet_shape(channels, channels, config);
        let attention = config
            .mid_block_add_attention
            .then(|| MidAttention::new(&weights.at("attentions.0"), channels, config.norm_num_groups));
        Ok(Self {
            resnet_0: ResnetBlock::new(&weights.at("resnets.0"), resnet)?,
            attention: attention.transpose()?,
            resnet_1: ResnetBlock::new(&weights.at("resnets.1"), resnet)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = self.resnet_0.forward(xs, None)?;
        if let Some(attention) = &self.attention {
            hidden = attention.forward(&hidden)?;
        }
        self.resnet_1.forward(&hidden, None)
    }
}

fn resnet_shape(num_in: usize, num_out: usize, config: &VaeConfig) -> ResnetShape {
    let groups = config.norm_num_groups;
    ResnetShape { num_in, num_out, time_width: None, groups, eps: EPS, output_scale_factor: 1.0 }
}

/// `down_blocks.N` or `up_blocks.N`: resnets, then a change of size.
struct Level {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>, // downsamplers.0.conv or upsamplers.0.conv
}

impl Level {
    fn new(
        weights: &Weights,
        (num_in, num_out): (usize, usize),
        num_resnets: usize,
        config: &VaeConfig,
    ) -> Result<Self> {
        let resnet = |i| {
            let shape = resnet_shape(if i == 0 { num_in } else { num_out }, num_out, config);
            ResnetBlock::new(&weights.at(format_args!("resnets.{i}")), shape)
        };
        Ok(Self { resnets: (0..num_resnets).map(resnet).collect::<Result<_>>()?, resample: None })
    }

    fn resnets(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.resnets.iter().try_fold(xs.clone(), |hidden, resnet| resnet.forward(&hidden, None))
    }
}

struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let (channels, same) = (&config.block_out_channels, ConvGeometry::same(3));
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        // The encoder pads only after the map, as the first autoencoders did.
        let halve = ConvGeometry { stride: 2, pad_before: 0, pad_after: 1 };
        let level = |i: usize| {
            let weights = weights.at(format_args!("down_blocks.{i}"));
            let sizes = (channels[i.saturating_sub(1)], channels[i]);
            let mut level = Level::new(&weights, sizes, config.layers_per_block, config)?;
            if i + 1 < channels.len() {
                level.resample = Some(weights.at("downsamplers.0.conv").conv2d(sizes.1, sizes.1, 3, halve)?);
            }
            Ok(level)
        };
        Ok(Self {
            conv_in: weights.at("conv_in").conv2d(config.in_channels, first, 3, same)?,
            down_blocks: (0..channels.len()).map(level).collect::<Result<_>>()?,
            mid_block: MidBlock::new(&weights.at("mid_block"), last, config)?,
            conv_norm_out: weights.at("conv_norm_out").group_norm(last, config.norm_num_groups, EPS)?,
            conv_out: weights.at("conv_out").conv2d(last, 2 * config.latent_channels, 3, same)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = self.conv_in.forward(xs)?;
        for level in &self.down_blocks {
            hidden = level.resnets(&hidden)?;
            if let Some(downsampler) = &level.resample {
                hidden = downsampler.forward(&hidden)?; // (b, h/2, w/2, c)
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&self.mid_block.forward(&hidden)?)?)
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let same = ConvGeometry::same(3);
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let level = |i: usize| {
            let weights = weights.at(format_args!("up_blocks.{i}"));
            let sizes = (channels[i.saturating_sub(1)], channels[i]);
            let mut level = Level::new(&weights, sizes, config.layers_per_block + 1, config)?;
            if i + 1 < channels.len() {
                level.resample = Some(weights.at("upsamplers.0.conv").conv2d(sizes.1, sizes.1, 3, same)?);
            }
            Ok(level)
        };
        Ok(Self {
            conv_in: weights.at("conv_in").conv2d(config.latent_channels, first, 3, same)?,
            mid_block: MidBlock::new(&weights.at("mid_block"), first, config)?,
            up_blocks: (0..channels.len()).map(level).collect::<Result<_>>()?,
            conv_norm_out: weights.at("conv_norm_out").group_norm(last, config.norm_num_groups, EPS)?,
            conv_out: weights.at("conv_out").conv2d(last, config.out_channels, 3, same)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let mut hidden = self.mid_block.forward(&self.conv_in.forward(xs)?)?;
        for level in &self.up_blocks {
            hidden = level.resnets(&hidden)?;
            if let Some(upsampler) = &level.resample {
                hidden = upsampler.forward(&ops::upsample_nearest(&hidden)?)?; // (b, 2h, 2w, c)
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)
    }
}

/// What the encoder says of a picture: a normal distribution for each latent, not yet scaled.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// (b, 4, h, w), f32.
    pub mean: Tensor,
    /// Standard deviation: (b, 4, h, w), f32.
    pub std: Tensor,
}

/// The autoencoder.
pub struct Vae {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    decoder: Decoder,
    post_quant_conv: Option<Conv2d>,
    scaling_factor: f64,
    dtype: DType,
}

impl Vae {
    /// Builds it from its weights.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let pointwise = |name, wanted: bool, channels| {
            wanted.then(|| weights.at(name).conv2d(channels, channels, 1, ConvGeometry::same(1))).transpose()
        };
        Ok(Self {
            encoder: Encoder::new(&weights.at("encoder"), config)?,
            quant_conv: pointwise("quant_conv", config.use_quant_conv, 2 * config.latent_channels)?,
            decoder: Decoder::new(&weights.at("decoder"), config)?,
            post_quant_conv: pointwise("post_quant_conv", config.use_post_quant_conv, config.latent_channels)?,
            scaling_factor: config.scaling_factor,
            dtype: weights.dtype(),
        })
    }

    /// Multiplies latents so that their variance is about one.
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }

    fn device(&self) -> &candle_core::Device {
        self.encoder.conv_in.weight.device()
    }

    /// `pixels`: (b, h, w, 3) in [-1, 1], sides multiples of [`VaeConfig::downsampling`].
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn encode(&self, pixels: &Tensor) -> candle_core::Result<Posterior> {
        let mut moments = self.encoder.forward(&pixels.to_device(self.device())?.to_dtype(self.dtype)?)?; // (b, h/8, w/8, 8)
        if let Some(quant_conv) = &self.quant_conv {
            moments = quant_conv.forward(&moments)?;
        }
        let moments = moments.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?; // (b, 8, ..)
        let moments = moments.contiguous()?.to_device(pixels.device())?;
        let halves = moments.chunk(2, 1)?;
        let std = (halves[1].clamp(-30f32, 20f32)? * 0.5)?.exp()?;
        Ok(Posterior { mean: halves[0].contiguous()?, std })
    }

    /// `latents`: (b, 4, h, w), scaled. Returns pixels (b, 8h, 8w, 3), about in [-1, 1], f32, on the device of `latents`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        let latents_here = latents.to_device(self.device())?.to_dtype(self.dtype)?;
        let xs = (latents_here / self.scaling_factor)?.permute((0, 2, 3, 1))?.contiguous()?;
        let xs = match &self.post_quant_conv {
            Some(post_quant_conv) => post_quant_conv.forward(&xs)?,
            None => xs,
        };
        self.decoder.forward(&xs)?.to_dtype(DType::F32)?.to_device(latents.device())
    }
}

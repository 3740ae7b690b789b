//! The U-Net that predicts the noise (Ronneberger et al. 2015; Rombach et al. 2022, arXiv 2112.10752): down blocks that
//! leave skips, a middle block, up blocks that take them. Checked against diffusers' `UNet2DConditionModel`.

use crate::conditioning::Conditioning;
use crate::config::UnetConfig;
use crate::layers::{Conv2d, GroupNorm};
use crate::lora::Block;
use crate::ops::{self, ConvGeometry, Segment, recompute};
use crate::resnet::{ResnetBlock, ResnetShape};
use crate::time_embedding::{AddedEmbedding, TimeEmbedding};
use crate::transformer::{Transformer, TransformerShape};
use crate::weights::{Result, Weights};
use candle_core::Tensor;
use std::sync::Arc;

/// What backward may keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Everything that backward reads.
    #[default]
    None,
    /// The inputs of each resnet and transformer, and on the processor what takes long inside; the rest is computed again.
    Block,
}

/// One resnet, transformer or encoder layer, which can be recomputed on its own.
pub(crate) struct Unit {
    segment: Arc<dyn Segment>,
}

impl Unit {
    /// `weights` is the place that the block was built from: its factors are the ones below it.
    pub(crate) fn new<F>(weights: &Weights, forward: F) -> Self
    where
        F: Fn(&[Tensor]) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    {
        Self { segment: Arc::new(Block { forward, factors: weights.factors_below() }) }
    }

    pub(crate) fn forward(&self, inputs: &[&Tensor], checkpointing: Checkpointing) -> candle_core::Result<Tensor> {
        match checkpointing {
            Checkpointing::Block => recompute(&self.segment, inputs),
            Checkpointing::None => self.segment.forward(&inputs.iter().map(|x| (*x).clone()).collect::<Vec<_>>()),
        }
    }
}

/// A resnet of the way down or of the middle: inputs hidden, time.
fn resnet_unit(weights: &Weights, shape: ResnetShape) -> Result<Unit> {
    let resnet = ResnetBlock::new(weights, shape)?;
    Ok(Unit::new(weights, move |x| resnet.forward(&x[0], Some(&x[1]))))
}

/// A resnet of the way up: inputs hidden, time, skip. The skip is joined inside, so that the joined map is not kept.
fn skip_resnet_unit(weights: &Weights, shape: ResnetShape) -> Result<Unit> {
    let resnet = ResnetBlock::new(weights, shape)?;
    Ok(Unit::new(weights, move |x| resnet.forward(&Tensor::cat(&[&x[0], &x[2]], 3)?, Some(&x[1]))))
}

/// A transformer: inputs hidden, context.
fn transformer_unit(weights: &Weights, shape: TransformerShape) -> Result<Unit> {
    let transformer = Transformer::new(weights, shape)?;
    Ok(Unit::new(weights, move |x| transformer.forward(&x[0], &x[1])))
}

struct DownBlock {
    resnets: Vec<Unit>,
    /// As many as resnets, or none.
    attentions: Vec<Unit>,
    downsampler: Option<Conv2d>, // downsamplers.0.conv
}

struct MidBlock {
    resnet_0: Unit,
    attention: Unit,
    resnet_1: Unit,
}

struct UpBlock {
    resnets: Vec<Unit>,
    /// As many as resnets, or none.
    attentions: Vec<Unit>,
    upsampler: Option<Conv2d>, // upsamplers.0.conv
}

/// The network.
pub struct Unet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    add_embedding: Option<AddedEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    dtype: candle_core::DType,
}

impl Unet {
    /// Builds the network from its weights.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(weights: &Weights, config: &UnetConfig) -> Result<Self> {
        let (channels, same) = (&config.block_out_channels, ConvGeometry::same(3));
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv_in = weights.at("conv_in").conv2d(config.in_channels, first, 3, same)?;
        let shapes = Shapes { config, time_width: TimeEmbedding::width(config) };
        let down_blocks =
            (0..channels.len()).map(|level| shapes.down_block(&weights.at(format_args!("down_blocks.{level}")), level));
        let added = config.added_conditioning();
        let add_embedding = added.map(|added| AddedEmbedding::new(&weights.at("add_embedding"), config, added));
        let up_blocks = (0..channels.len()).map(|i| shapes.up_block(&weights.at(format_args!("up_blocks.{i}")), i));
        Ok(Self {
            dtype: weights.dtype(),
            conv_in,
            time_embedding: TimeEmbedding::new(&weights.at("time_embedding"), config)?,
            add_embedding: add_embedding.transpose()?,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: config.mid_block_type.as_ref().map(|_| shapes.mid_block(weights, last)).transpose()?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: weights.at("conv_norm_out").group_norm(first, config.norm_num_groups, config.norm_eps)?,
            conv_out: weights.at("conv_out").conv2d(first, config.out_channels, 3, same)?,
        })
    }

    /// The prediction for noisy latents.
    ///
    /// `latents`: (b, 4, h, w), any floating dtype; `timesteps`: b of them, which
    /// need not be whole; `conditioning` of the same batch.
    /// Returns (b, 4, h, w) in f32 on the device of `latents`, wherever the network is. h and w must be multiples of [`UnetConfig::total_downsampling`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        conditioning: &Conditioning,
        checkpointing: Checkpointing,
    ) -> candle_core::Result<Tensor> {
        let device = self.conv_in.weight.device();
        let mut time = self.time_embedding.forward(timesteps, self.dtype, device)?; // (b, time width)
        if let Some(add_embedding) = &self.add_embedding {
            time = (&time + add_embedding.forward(conditioning, &time)?)?;
        }
        let context = conditioning.text.context.to_device(device)?.to_dtype(self.dtype)?;
        let xs = latents.to_device(device)?.to_dtype(self.dtype)?.permute((0, 2, 3, 1))?.contiguous()?; // (b, h, w, 4)

        let mut hidden = self.conv_in.forward(&xs)?; // (b, h, w, c)
        let mut skips = vec![hidden.clone()];
        for block in &self.down_blocks {
            hidden = block.forward(hidden, &time, &context, checkpointing, &mut skips)?;
        }
        if let Some(mid_block) = &self.mid_block {
            hidden = mid_block.forward(&hidden, &time, &context, checkpointing)?;
        }
        for block in &self.up_blocks {
            hidden = block.forward(hidden, &time, &context, checkpointing, &mut skips)?;
        }
        let prediction = self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?; // (b, h, w, 4)
        prediction.permute((0, 3, 1, 2))?.to_dtype(candle_core::DType::F32)?.to_device(latents.device()) // (b, 4, h, w)
    }
}

impl DownBlock {
    /// Each output is also a skip.
    fn forward(
        &self,
        mut hidden: Tensor,
        time: &Tensor,
        context: &Tensor,
        checkpointing: Checkpointing,
        skips: &mut Vec<Tensor>,
    ) -> candle_core::Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            hidden = resnet.forward(&[&hidden, time], checkpointing)?;
            if let Some(attention) = self.attentions.get(i) {
                hidden = attention.forward(&[&hidden, context], checkpointing)?;
            }
            skips.push(hidden.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden)?; // (b, h/2, w/2, c)
            skips.push(hidden.clone());
        }
        Ok(hidden)
    }
}

impl MidBlock {
    fn forward(
        &self,
        hidden: &Tensor,
        time: &Tensor,
        context: &Tensor,
        checkpointing: Checkpointing,
    ) -> candle_core::Result<Tensor> {
        let hidden = self.resnet_0.forward(&[hidden, time], checkpointing)?;
        let hidden = self.attention.forward(&[&hidden, context], checkpointing)?;
        self.resnet_1.forward(&[&hidden, time], checkpointing)
    }
}

impl UpBlock {
    fn forward(
        &self,
        mut hidden: Tensor,
        time: &Tensor,
        context: &Tensor,
        checkpointing: Checkpointing,
        skips: &mut Vec<Tensor>,
    ) -> candle_core::Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the way up has more resnets than the way down left skips")
            };
            hidden = resnet.forward(&[&hidden, time, &skip], checkpointing)?;
            if let Some(attention) = self.attentions.get(i) {
                hidden = attention.forward(&[&hidden, context], checkpointing)?;
            }
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&ops::upsample_nearest(&hidden)?), // (b, 2h, 2w, c)
            None => Ok(hidden),
        }
    }
}

/// Works out the shape of every block from the configuration.
struct Shapes<'a> {
    config: &'a UnetConfig,
    time_width: usize,
}

impl Shapes<'_> {
    fn resnet(&self, num_in: usize, num_out: usize) -> ResnetShape {
        ResnetShape {
            num_in,
            num_out,
            time_width: Some(self.time_width),
            groups: self.config.norm_num_groups,
            eps: self.config.norm_eps,
            output_scale_factor: 1.0,
        }
    }

    fn transformer(&self, level: usize) -> TransformerShape {
        TransformerShape {
            channels: self.config.block_out_channels[level],
            context: self.config.cross_attention_dim.at(level),
            num_heads: self.config.num_heads(level),
            num_blocks: self.config.transformer_layers_per_block.at(level),
            groups: self.config.norm_num_groups,
            linear_projection: self.config.use_linear_projection,
        }
    }

    fn down_block(&self, weights: &Weights, level: usize) -> Result<DownBlock> {
        let channels = &self.config.block_out_channels;
        let (num_in, num_out) = (channels[level.saturating_sub(1)], channels[level]);
        let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
        for i in 0..self.config.layers_per_block.at(level) {
            let shape = self.resnet(if i == 0 { num_in } else { num_out }, num_out);
            resnets.push(resnet_unit(&weights.at(format_args!("resnets.{i}")), shape)?);
            if self.config.down_block_types[level] == "CrossAttnDownBlock2D" {
                attentions
                    .push(transformer_unit(&weights.at(format_args!("attentions.{i}")), self.transformer(level))?);
            }
        }
        let pad = self.config.downsample_padding;
        let geometry = ConvGeometry { stride: 2, pad_before: pad, pad_after: pad };
        let downsampler = (level + 1 < channels.len())
            .then(|| weights.at("downsamplers.0.conv").conv2d(num_out, num_out, 3, geometry));
        Ok(DownBlock { resnets, attentions, downsampler: downsampler.transpose()? })
    }

    fn mid_block(&self, weights: &Weights, channels: usize) -> Result<MidBlock> {
        let weights = weights.at("mid_block");
        let output_scale_factor = self.config.mid_block_scale_factor;
        let resnet = ResnetShape { output_scale_factor, ..self.resnet(channels, channels) };
        let level = self.config.block_out_channels.len() - 1;
        Ok(MidBlock {
            resnet_0: resnet_unit(&weights.at("resnets.0"), resnet)?,
            attention: transformer_unit(&weights.at("attentions.0"), self.transformer(level))?,
            resnet_1: resnet_unit(&weights.at("resnets.1"), resnet)?,
        })
    }

    /// Up block `i` mirrors level `levels - 1 - i`; its resnets take the skips of that level, last first.
    fn up_block(&self, weights: &Weights, i: usize) -> Result<UpBlock> {
        let channels = &self.config.block_out_channels;
        let level = channels.len() - 1 - i;
        let num_out = channels[level];
        let from_below = channels[(level + 1).min(channels.len() - 1)];
        let from_above = channels[level.saturating_sub(1)];
        let num_resnets = self.config.layers_per_block.at(level) + 1;
        let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
        for j in 0..num_resnets {
            let hidden = if j == 0 { from_below } else { num_out };
            let skip = if j + 1 == num_resnets { from_above } else { num_out };
            let shape = self.resnet(hidden + skip, num_out);
            resnets.push(skip_resnet_unit(&weights.at(format_args!("resnets.{j}")), shape)?);
            if self.config.up_block_types[i] == "CrossAttnUpBlock2D" {
                attentions
                    .push(transformer_unit(&weights.at(format_args!("attentions.{j}")), self.transformer(level))?);
            }
        }
        let upsampler =
            (level > 0).then(|| weights.at("upsamplers.0.conv").conv2d(num_out, num_out, 3, ConvGeometry::same(3)));
        Ok(UpBlock { resnets, attentions, upsampler: upsampler.transpose()? })
    }
}

//! What a base is, in figures: for people, and to know before a run how much memory it will take.

use crate::base::Base;
use crate::config::{Prediction, UnetConfig};
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::Dtype;
use std::collections::BTreeSet;

/// A network of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartDescription {
    /// `U-Net`, `text encoder` or `autoencoder`.
    pub name: &'static str,
    /// Numbers in its weights.
    pub num_parameters: u64,
    /// Number types in its file.
    pub dtypes: BTreeSet<String>,
}

/// A base in figures.
#[derive(Clone, Debug)]
pub struct BaseDescription {
    /// `Stable Diffusion 1.x`, `Stable Diffusion 2.x` or `other`.
    pub family: &'static str,
    /// What the U-Net predicts.
    pub prediction: Prediction,
    /// Whether the noising process ends in pure noise.
    pub zero_terminal_snr: bool,
    /// Side in pixels of the pictures that it was trained on.
    pub native_size_px: usize,
    /// Sides of pictures must be multiples of it.
    pub size_multiple_px: usize,
    /// Width of the text that the U-Net sees.
    pub text_width: usize,
    /// Tokens of one chunk of a prompt.
    pub text_positions: usize,
    /// Its networks.
    pub parts: Vec<PartDescription>,
    unet: UnetConfig,
    latent_downsampling: usize,
}

/// Settings that decide how much memory a training run takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingSize {
    /// Width of the pictures.
    pub width_px: usize,
    /// Height of the pictures.
    pub height_px: usize,
    /// Pictures that go through the network together.
    pub batch_size: usize,
    /// Rank of the factors, in every attention of the U-Net.
    pub rank: usize,
    /// Whether blocks are computed again in backward.
    pub recompute: bool,
    /// Bytes of a number in which the base computes: 4 or 2.
    pub bytes_per_number: u64,
}

impl BaseDescription {
    /// Reads the headers of the weight files.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn of(base: &Base) -> Result<Self> {
        let mut parts = vec![part("U-Net", &base.unet_weights()?)];
        for i in 0..base.num_text_encoders() {
            parts.push(part("text encoder", &base.text_encoder_weights(i)?));
        }
        parts.push(part("autoencoder", &base.vae_weights()?));
        let text_width = base.text_widths().iter().sum();
        Ok(Self {
            family: match text_width {
                768 => "Stable Diffusion 1.x",
                1024 => "Stable Diffusion 2.x",
                _ => "other",
            },
            prediction: base.noise_schedule().prediction(),
            zero_terminal_snr: base.noise_schedule().config().rescale_betas_zero_snr,
            native_size_px: base.native_size_px(),
            size_multiple_px: base.vae_config().downsampling() * base.unet_config().total_downsampling(),
            text_width,
            text_positions: base.text_encoder_positions(),
            parts,
            unet: base.unet_config().clone(),
            latent_downsampling: base.vae_config().downsampling(),
        })
    }

    /// About how many bytes training takes: the U-Net's weights, the factors with gradient and two moments, and what
    /// backward reads. Captions and images are encoded before the U-Net is loaded, which takes less.
    pub fn training_bytes(&self, size: TrainingSize) -> u64 {
        let unet = self.parts.first().map_or(0, |part| part.num_parameters);
        let latents = (size.width_px / self.latent_downsampling) * (size.height_px / self.latent_downsampling);
        let per_picture = kept_numbers(&self.unet, latents, size.recompute);
        let factors = attention_factors(&self.unet, size.rank);
        unet * size.bytes_per_number + factors * 16 + per_picture * size.batch_size as u64 * size.bytes_per_number
    }
}

fn part(name: &'static str, weights: &WeightFiles) -> PartDescription {
    let infos = || weights.names().filter_map(|name| weights.info(name)).filter(|info| is_float(info.dtype));
    PartDescription {
        name,
        num_parameters: infos().map(|info| info.num_elements() as u64).sum(),
        dtypes: infos().map(|info| info.dtype.to_string()).collect(),
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// Numbers that a training step keeps for backward, for one picture of `tokens` latents: the outputs of the operations
/// of every resnet and transformer, or with recompute their inputs and the insides of the largest.
fn kept_numbers(config: &UnetConfig, tokens: usize, recompute: bool) -> u64 {
    let (mut sum, mut inputs, mut largest) = (0u64, 0u64, 0u64);
    for (level, channels) in config.block_out_channels.iter().enumerate() {
        let map = ((tokens >> (2 * level)) * channels) as u64;
        let down = config.layers_per_block.at(level) as u64;
        let num_resnets = 2 * down + 1;
        // Norm, convolution, time, norm, convolution, sum; on the way up the joined map and its shortcut besides.
        let resnet = 7 * map;
        sum += num_resnets * resnet + (down + 1) * map;
        inputs += num_resnets * 2 * map;
        largest = largest.max(resnet);
        if config.down_block_types[level] == "CrossAttnDownBlock2D" {
            let depth = config.transformer_layers_per_block.at(level) as u64;
            // Two attentions of norm, q, k, v, result, projection and sum; a feed-forward of 8 + 4 + 3; in and out.
            let transformer = (4 + 29 * depth) * map;
            sum += num_resnets * transformer;
            inputs += num_resnets * map;
            largest = largest.max(transformer);
        }
    }
    if recompute { inputs + largest } else { sum }
}

/// Numbers in factors of `rank` at q, k, v and out of every attention.
fn attention_factors(config: &UnetConfig, rank: usize) -> u64 {
    let last = config.block_out_channels.len() - 1;
    let of_level = |level: usize| {
        let (c, context) = (config.block_out_channels[level], config.cross_attention_dim.at(level));
        let layers = [(c, c); 6].into_iter().chain([(context, c); 2]);
        let per_block: usize = layers.map(|(num_in, num_out)| rank * (num_in + num_out)).sum();
        per_block * config.transformer_layers_per_block.at(level)
    };
    let with_text = (0..=last).filter(|level| config.down_block_types[*level] == "CrossAttnDownBlock2D");
    let levels: usize = with_text.map(|level| of_level(level) * (2 * config.layers_per_block.at(level) + 1)).sum();
    (levels + config.mid_block_type.as_ref().map_or(0, |_| of_level(last))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sd15_has_as_many_attention_factors_as_its_files_hold() {
        let config = UnetConfig::parse(r#"{"cross_attention_dim": 768}"#, "c").unwrap();
        assert_eq!(attention_factors(&config, 4), 797_184);
    }
}

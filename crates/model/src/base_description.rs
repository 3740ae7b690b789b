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
    /// Those of them in matrices and kernels of layers, which may be kept narrower than the others.
    pub num_in_layers: u64,
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
    text_layers: usize,
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
    /// Whether the text encoder has factors too.
    pub text_encoder: bool,
    /// Rank of the factors, in every attention of the U-Net.
    pub rank: usize,
    /// Whether blocks are computed again in backward.
    pub recompute: bool,
    /// Bytes of a number in a frozen matrix or kernel: 4 or 2.
    pub bytes_per_weight: u64,
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
            text_layers: base.text_encoder_config(0).num_hidden_layers,
            latent_downsampling: base.vae_config().downsampling(),
        })
    }

    /// About how many bytes training takes: the program, the weights of what trains, the factors with gradient and two
    /// moments, and what backward reads. Captions and images are encoded before the U-Net is loaded, which takes less.
    pub fn training_bytes(&self, size: TrainingSize) -> u64 {
        let (unet, text) = (self.parts.first(), self.parts.iter().filter(|part| part.name == "text encoder"));
        let trained_text = text.filter(|_| size.text_encoder);
        let of_part = |part: &PartDescription| {
            let others = part.num_parameters - part.num_in_layers;
            part.num_in_layers * size.bytes_per_weight + others * size.bytes_per_number
        };
        let weights: u64 = unet.into_iter().chain(trained_text).map(of_part).sum();
        let latents = (size.width_px / self.latent_downsampling) * (size.height_px / self.latent_downsampling);
        let mut per_picture = kept_numbers(&self.unet, latents, self.text_positions, size.recompute);
        if size.text_encoder {
            // Norm, q, k, v, result, projection, sum; norm, two of four times the width, projection, sum.
            let of_layer = if size.recompute { 1 } else { 18 };
            per_picture += (of_layer * self.text_layers * self.text_positions * self.text_width) as u64;
        }
        let factors = attention_factors(&self.unet, size.rank);
        PROGRAM_BYTES + weights + factors * 16 + per_picture * size.batch_size as u64 * size.bytes_per_number
    }
}

/// The program itself and the scratch of its operations: what is resident of runs whose networks take nothing.
const PROGRAM_BYTES: u64 = 60_000_000;

fn part(name: &'static str, weights: &WeightFiles) -> PartDescription {
    let infos = weights.names().filter_map(|name| Some((name, weights.info(name)?)));
    let mut part = PartDescription { name, num_parameters: 0, num_in_layers: 0, dtypes: BTreeSet::new() };
    for (name, info) in infos.filter(|(_, info)| is_float(info.dtype)) {
        let count = info.num_elements() as u64;
        part.num_parameters += count;
        if info.shape.len() > 1 && !name.starts_with("embeddings.") {
            part.num_in_layers += count;
        }
        part.dtypes.insert(info.dtype.to_string());
    }
    part
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// Numbers that a training step keeps for backward, for one picture of `latents` latents under a text of `text` tokens:
/// the outputs of the operations of every resnet and transformer, or with recompute their inputs and the insides of the
/// largest.
fn kept_numbers(config: &UnetConfig, latents: usize, text: usize, recompute: bool) -> u64 {
    let channels = &config.block_out_channels;
    let last = channels.len() - 1;
    let mut kept = Kept::default();
    for (level, &c) in channels.iter().enumerate() {
        let (tokens, layers) = (latents >> (2 * level), config.layers_per_block.at(level));
        let (above, below) = (channels[level.saturating_sub(1)], channels[(level + 1).min(last)]);
        let depth = config.transformer_layers_per_block.at(level);
        let mut block = |inputs: usize, resnet: usize| {
            kept.add(tokens * inputs, resnet);
            if config.down_block_types[level] == "CrossAttnDownBlock2D" {
                kept.add(tokens * c, transformer(tokens, c, text, depth));
            }
        };
        for layer in 0..layers {
            let inputs = if layer == 0 { above } else { c };
            // Norm of the input, convolution, time, norm, convolution, sum; a shortcut where the width changes.
            block(inputs, tokens * (inputs + 5 * c + if inputs == c { 0 } else { c }));
        }
        for layer in 0..=layers {
            let inputs = if layer == 0 { below } else { c } + if layer == layers { above } else { c };
            // The joined map and its norm, then as above with a shortcut.
            block(inputs, tokens * (2 * inputs + 6 * c));
        }
        // Gradients of the skips, and the upsampled map with its convolution.
        kept.sum += (layers + 1) * tokens * c + if level > 0 { 8 * tokens * c } else { 0 };
    }
    let (tokens, c) = (latents >> (2 * last), channels[last]);
    let depth = config.transformer_layers_per_block.at(last);
    kept.add(3 * tokens * c, 12 * tokens * c + transformer(tokens, c, text, depth));
    (if recompute { kept.inputs + kept.largest } else { kept.sum }) as u64
}

/// Norm, projection in and out, sum; in each layer two attentions of norm, q, k, v, result, projection and sum, of which
/// one has k and v of the text, and a feed-forward of norm, 8, 4, 1 and sum.
fn transformer(tokens: usize, c: usize, text: usize, depth: usize) -> usize {
    (4 + 27 * depth) * tokens * c + 2 * depth * text * c
}

#[derive(Default)]
struct Kept {
    sum: usize,
    inputs: usize,
    largest: usize,
}

impl Kept {
    fn add(&mut self, inputs: usize, inside: usize) {
        self.sum += inside;
        self.inputs += inputs;
        self.largest = self.largest.max(inside);
    }
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

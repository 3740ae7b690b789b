//! What a base is, in figures: for people, and to know before a run how much memory it will take.

use crate::base::Base;
use crate::config::{Prediction, UnetConfig};
use crate::number_types::WeightBytes;
use crate::ops::is_worth_keeping;
use crate::prediction_origin::PredictionOrigin;
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::Dtype;
use loralei_adapter::keys::Component;
use std::collections::BTreeSet;

/// A network of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartDescription {
    /// `U-Net`, `text encoder` (of two, `text encoder 1` and `text encoder 2`) or `autoencoder`.
    pub name: &'static str,
    /// Numbers in its weights.
    pub num_parameters: u64,
    /// Those of them in matrices of linear layers, which may be kept narrower than the others.
    pub num_in_matrices: u64,
    /// Those of them in kernels of convolutions, which may be kept narrower too.
    pub num_in_kernels: u64,
    /// Number types in its file.
    pub dtypes: BTreeSet<String>,
}

/// A base in figures.
#[derive(Clone, Debug)]
pub struct BaseDescription {
    /// `Stable Diffusion 1.x`, `Stable Diffusion 2.x`, `Stable Diffusion XL` or `other`.
    pub family: &'static str,
    /// What the U-Net predicts.
    pub prediction: Prediction,
    /// Who says so.
    pub prediction_origin: PredictionOrigin,
    /// Whether the noising process ends in pure noise.
    pub zero_terminal_snr: bool,
    /// Side in pixels of the pictures that it was trained on.
    pub native_size_px: usize,
    /// Sides of pictures must be multiples of it.
    pub size_multiple_px: usize,
    /// Latents are multiplied by it.
    pub latent_scale: f64,
    /// Width of the text that the U-Net sees.
    pub text_width: usize,
    /// Width of the pooled text, where the U-Net sees it.
    pub pooled_width: Option<usize>,
    /// Tokens of one chunk of a prompt.
    pub text_positions: usize,
    /// Its networks.
    pub parts: Vec<PartDescription>,
    unet: UnetConfig,
    text_encoders: Vec<TextEncoderSize>,
    latent_downsampling: usize,
}

/// What decides how much of a text encoder is kept for backward.
#[derive(Clone, Copy, Debug)]
struct TextEncoderSize {
    width: usize,
    num_layers: usize,
    /// Whether the U-Net's time embedding depends on it too.
    is_pooled: bool,
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
    /// Whether the text encoders have factors too, each of two; of a base with one encoder only the first counts.
    pub text_encoders: [bool; 2],
    /// Rank of the factors, in every attention of the U-Net.
    pub rank: usize,
    /// Whether blocks are computed again in backward.
    pub recompute: bool,
    /// Whether the processor computes: there recompute keeps the outputs that take long.
    pub is_cpu: bool,
    /// Bytes of a number in a frozen matrix or kernel: 4, 2 or, in a matrix, 1.
    pub bytes_per_weight: WeightBytes,
    /// Bytes of a number in which the base computes: 4 or 2.
    pub bytes_per_number: u64,
}

impl BaseDescription {
    /// Reads the headers of the weight files.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn of(base: &Base) -> Result<Self> {
        let mut parts = vec![part(Component::Unet.name(), &base.unet_weights()?)];
        let mut text_encoders = Vec::new();
        let count = base.num_text_encoders();
        for (i, component) in (0..count).filter_map(|i| Some((i, Component::text_encoder(i, count)?))) {
            let config = base.text_encoder_config(i);
            let (width, num_layers) = (config.hidden_size, config.num_hidden_layers);
            let is_pooled = base.pooled_width().is_some() && i + 1 == count;
            text_encoders.push(TextEncoderSize { width, num_layers, is_pooled });
            parts.push(part(component.name(), &base.text_encoder_weights(i)?));
        }
        parts.push(part("autoencoder", &base.vae_weights()?));
        let text_widths = base.text_widths();
        Ok(Self {
            family: match text_widths[..] {
                [768] => "Stable Diffusion 1.x",
                [1024] => "Stable Diffusion 2.x",
                [_, _] => "Stable Diffusion XL",
                _ => "other",
            },
            prediction: base.noise_schedule().prediction(),
            prediction_origin: base.prediction_origin(),
            zero_terminal_snr: base.noise_schedule().config().rescale_betas_zero_snr,
            native_size_px: base.native_size_px(),
            size_multiple_px: base.size_multiple_px(),
            latent_scale: base.vae_config().scaling_factor,
            text_width: text_widths.iter().sum(),
            pooled_width: base.pooled_width(),
            text_positions: base.text_encoder_positions(),
            parts,
            unet: base.unet_config().clone(),
            text_encoders,
            latent_downsampling: base.vae_config().downsampling(),
        })
    }

    /// About how many bytes training takes: the program, the weights of what trains, the factors with gradient and two
    /// moments, what a step keeps for backward, and its gradients. Captions and images are encoded before the U-Net is loaded,
    /// which takes less.
    pub fn training_bytes(&self, size: TrainingSize) -> u64 {
        let trained = || self.text_encoders.iter().zip(size.text_encoders).filter(|(_, is_trained)| *is_trained);
        // One that learns needs the text of all of them.
        let num_loaded = 1 + if trained().next().is_some() { self.text_encoders.len() } else { 0 };
        let of_part = |part: &PartDescription| {
            let others = part.num_parameters - part.num_in_matrices - part.num_in_kernels;
            let WeightBytes { matrices, kernels } = size.bytes_per_weight;
            part.num_in_matrices * matrices + part.num_in_kernels * kernels + others * size.bytes_per_number
        };
        let weights: u64 = self.parts.iter().take(num_loaded).map(of_part).sum();
        let latents = (size.width_px / self.latent_downsampling) * (size.height_px / self.latent_downsampling);
        let time_learns = trained().any(|(encoder, _)| encoder.is_pooled);
        let step = step_numbers(&self.unet, latents, self.text_positions, time_learns);
        let mut kept = step.kept(size.recompute, size.is_cpu);
        for (encoder, _) in trained() {
            // Norm, q, k, v, result, projection, sum; norm, two of four times the width, projection, sum.
            let of_layer = if size.recompute { 1 } else { 18 };
            kept += of_layer * encoder.num_layers * self.text_positions * encoder.width;
        }
        let factors = attention_factors(&self.unet, size.rank);
        // Operations compute 16-bit numbers in f32, what comes in and what goes out.
        let per_picture = kept as u64 * size.bytes_per_number + step.gradients as u64 * 4;
        PROGRAM_BYTES + weights + factors * 16 + per_picture * size.batch_size as u64
    }
}

/// The program itself, 40 MB in runs whose networks take next to nothing, and what is free between tensors, which the
/// allocator keeps.
const PROGRAM_BYTES: u64 = 60_000_000;

fn part(name: &'static str, weights: &WeightFiles) -> PartDescription {
    let infos = weights.names().filter_map(|name| Some((name, weights.info(name)?)));
    let mut part =
        PartDescription { name, num_parameters: 0, num_in_matrices: 0, num_in_kernels: 0, dtypes: BTreeSet::new() };
    for (name, info) in infos.filter(|(_, info)| is_float(info.dtype)) {
        let count = info.num_elements() as u64;
        part.num_parameters += count;
        match info.shape.len() {
            0 | 1 => {}
            _ if name.starts_with("embeddings.") => {}
            2 => part.num_in_matrices += count,
            _ => part.num_in_kernels += count,
        }
        part.dtypes.insert(info.dtype.to_string());
    }
    part
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// Numbers of a training step for one picture of `latents` latents under a text of `text` tokens.
///
/// Kept for backward is the output of every operation, since the graph holds an operation's inputs whether its backward reads
/// them or not. With recompute it is what lies between the units, the outputs inside that take long to compute, and the inside
/// of the largest unit. Levels on the way down before the first attention leave only their skips, unless `time_learns`: nothing
/// that goes in has a gradient.
fn step_numbers(config: &UnetConfig, latents: usize, text: usize, time_learns: bool) -> StepNumbers {
    let channels = &config.block_out_channels;
    let last = channels.len() - 1;
    let has_attention = |level: usize| config.down_block_types[level] == "CrossAttnDownBlock2D";
    let mut numbers = StepNumbers::default();
    for (level, &c) in channels.iter().enumerate() {
        let (tokens, layers) = (latents >> (2 * level), config.layers_per_block.at(level));
        let (above, below) = (channels[level.saturating_sub(1)], channels[(level + 1).min(last)]);
        let depth = config.transformer_layers_per_block.at(level);
        let skips = (layers + 1) * tokens * c; // whose gradients wait
        let is_recorded = time_learns || (0..=level).any(has_attention);
        let mut block = |resnet: Unit| {
            numbers.add(resnet, skips);
            if has_attention(level) {
                numbers.add(transformer(tokens, c, text, depth), skips);
            }
        };
        for layer in (0..layers).filter(|_| is_recorded) {
            block(resnet(tokens, if layer == 0 { above } else { c }, 0, c));
        }
        for layer in 0..=layers {
            let (hidden, skip) = (if layer == 0 { below } else { c }, if layer == layers { above } else { c });
            block(resnet(tokens, hidden, skip, c));
        }
        numbers.between += if is_recorded { 0 } else { layers * tokens * c };
        // The input of the way down: of `conv_in`, or halved from the level above.
        numbers.between += tokens * above;
        // The upsampled map and its convolution.
        numbers.between += if level > 0 { 8 * tokens * c } else { 0 };
    }
    let (tokens, c) = (latents >> (2 * last), channels[last]);
    if config.mid_block_type.is_some() {
        numbers.add(resnet(tokens, c, 0, c), 0);
        numbers.add(transformer(tokens, c, text, config.transformer_layers_per_block.at(last)), 0);
        numbers.add(resnet(tokens, c, 0, c), 0);
    }
    numbers.between += latents * channels[0]; // the last norm
    numbers
}

/// What a unit of recompute holds.
#[derive(Clone, Copy)]
struct Unit {
    /// Outputs of its operations, the last one included.
    outputs: usize,
    output: usize,
    /// Outputs that recompute keeps.
    kept: usize,
    /// The gradients that are there together where they are most.
    gradients: usize,
}

/// Norm, convolution, time, norm, convolution, sum; a shortcut where the width changes; first, with a skip, the joined map.
/// Gradients are most where the two of its input are summed: both, their sum, and the one that the second was made of.
fn resnet(tokens: usize, hidden: usize, skip: usize, c: usize) -> Unit {
    let inputs = hidden + skip;
    let joined = if skip > 0 { inputs } else { 0 };
    let shortcut = if inputs == c { 0 } else { c };
    let kept = [(9 * inputs, c), (9 * c, c), (inputs, shortcut)];
    Unit {
        outputs: tokens * (joined + inputs + 5 * c + shortcut),
        output: tokens * c,
        kept: tokens * worth_keeping(&kept),
        gradients: tokens * 4 * inputs,
    }
}

/// Norm, projection in and out, sum; in each layer two attentions of norm, q, k, v, result, projection and sum, of which
/// one has k and v of the text, and a feed-forward of norm, 8, 4, 1 and sum. Gradients are most at the gate: 4 come in, 8
/// go out and are added to zeros, which makes 8 more; one goes past.
fn transformer(tokens: usize, c: usize, text: usize, depth: usize) -> Unit {
    let outputs = (4 + 27 * depth) * tokens * c + 2 * depth * text * c;
    // Projections of c to c: in and out; q, k, v, out; q, out. Both attentions. The feed-forward.
    let of_layer = [(c, 6 * c), (2 * tokens, c), (2 * text, c), (c, 8 * c), (4 * c, c)];
    let kept = worth_keeping(&[(c, 2 * c)]) + depth * worth_keeping(&of_layer);
    Unit { outputs, output: tokens * c, kept: tokens * kept, gradients: 21 * tokens * c }
}

/// Of outputs of (multiplications per number, numbers), the numbers that recompute keeps.
fn worth_keeping(outputs: &[(usize, usize)]) -> usize {
    outputs.iter().filter(|(multiplications, _)| is_worth_keeping(*multiplications)).map(|(_, numbers)| numbers).sum()
}

/// Numbers of a step.
#[derive(Default)]
struct StepNumbers {
    /// Outputs of all operations inside of units.
    inside: usize,
    /// Of these, outputs of units.
    unit_outputs: usize,
    /// Outputs inside of units that recompute keeps.
    kept: usize,
    /// What the largest unit holds while it is computed again: outputs of its operations, its input once more, as a variable,
    /// and the gradient of its output.
    largest: usize,
    /// Outputs of operations between units.
    between: usize,
    /// Gradients, where they are most.
    gradients: usize,
}

impl StepNumbers {
    /// `waiting`: gradients of others, while the unit's are made.
    fn add(&mut self, unit: Unit, waiting: usize) {
        self.inside += unit.outputs;
        self.unit_outputs += unit.output;
        self.kept += unit.kept;
        self.largest = self.largest.max(unit.outputs + 2 * unit.output);
        self.gradients = self.gradients.max(unit.gradients + waiting);
    }

    /// Numbers that are kept for backward.
    fn kept(&self, recompute: bool, is_cpu: bool) -> usize {
        let slow = if is_cpu { self.kept } else { 0 };
        self.between + if recompute { self.unit_outputs + slow + self.largest } else { self.inside }
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

    #[test]
    fn sdxl_has_as_many_attention_factors_as_its_shapes_say() {
        assert_eq!(attention_factors(&UnetConfig::sdxl(), 1), 1_451_520);
    }

    #[test]
    fn levels_before_the_first_attention_leave_only_their_skips_unless_the_time_embedding_learns() {
        let (frozen, learning) = (
            step_numbers(&UnetConfig::sdxl(), 64 * 64, 77, false),
            step_numbers(&UnetConfig::sdxl(), 64 * 64, 77, true),
        );
        // Norm, convolution, time, norm, convolution, sum: 6 maps, of which the last is the skip. Two resnets of 320.
        let map = 64 * 64 * 320;
        assert_eq!(learning.kept(false, true) - frozen.kept(false, true), 2 * 5 * map);
        let kept_convolutions = 2 * 2 * map; // 9 * 320 multiplications each
        assert_eq!(learning.kept(true, true) - frozen.kept(true, true), kept_convolutions);
        assert_eq!(learning.kept(true, false), frozen.kept(true, false));
    }
}

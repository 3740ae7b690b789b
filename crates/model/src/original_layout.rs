//! The names that tensors have in a checkpoint of one file, as Stable Diffusion was first published: every module of a
//! diffusers network beside its place in the original, once, for reading and for writing.

use crate::config::{UnetConfig, VaeConfig};
use crate::weight_files::Part;
use loralei_adapter::TensorFiles;

/// Where the U-Net begins.
pub(crate) const UNET: &str = "model.diffusion_model.";
/// Where the autoencoder begins.
pub(crate) const VAE: &str = "first_stage_model.";
/// What a text encoder is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextNames {
    /// As in transformers.
    Transformers,
    /// As in OpenCLIP.
    OpenClip,
}

/// How a text encoder lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TextLayout {
    /// Where it begins.
    pub(crate) prefix: &'static str,
    pub(crate) names: TextNames,
    /// Whether its last layer is there and not used.
    pub(crate) has_unused_layer: bool,
    /// Whether the matrix that projects the pooled text is used.
    pub(crate) has_projection: bool,
}

/// CLIP of OpenAI (SD 1.x).
pub(crate) const CLIP: TextLayout = TextLayout {
    prefix: "cond_stage_model.transformer.text_model.",
    names: TextNames::Transformers,
    has_unused_layer: false,
    has_projection: false,
};
/// OpenCLIP (SD 2.x).
pub(crate) const OPEN_CLIP: TextLayout = TextLayout {
    prefix: "cond_stage_model.model.",
    names: TextNames::OpenClip,
    has_unused_layer: true,
    has_projection: false,
};
/// Both text encoders of SDXL.
pub(crate) const TWO_ENCODERS: [TextLayout; 2] = [
    TextLayout { prefix: "conditioner.embedders.0.transformer.text_model.", ..CLIP },
    TextLayout {
        prefix: "conditioner.embedders.1.model.",
        names: TextNames::OpenClip,
        has_unused_layer: false,
        has_projection: true,
    },
];

impl TextLayout {
    /// The same names without the level `text_model`, as some programs write them.
    pub(crate) fn without_level(self) -> Self {
        Self { prefix: self.prefix.trim_end_matches("text_model."), ..self }
    }

    /// The names of an encoder of `num_layers` layers, but for those that have no one place of their own: see
    /// [`TextLayout::stacked`] and [`PROJECTION`].
    pub(crate) fn names(self, num_layers: usize) -> Names {
        match self.names {
            TextNames::Transformers => Names { prefix: self.prefix, pairs: vec![(String::new(), String::new())] },
            TextNames::OpenClip => open_clip_names(self.prefix, num_layers),
        }
    }

    /// What its tokenizer fills up with.
    pub(crate) fn padding(self) -> &'static str {
        match self.names {
            TextNames::Transformers => "<|endoftext|>",
            TextNames::OpenClip => "!",
        }
    }

    /// The tensor that OpenCLIP stacks q, k and v of layer `i` into, and the diffusers name of each third; `leaf` is
    /// `weight` or `bias`.
    pub(crate) fn stacked(self, i: usize, leaf: &str) -> (String, [String; 3]) {
        let theirs = format!("{}transformer.resblocks.{i}.attn.in_proj_{leaf}", self.prefix);
        (theirs, STACKED.map(|third| format!("encoder.layers.{i}.self_attn.{third}.{leaf}")))
    }

    /// The tensor of `files` that projects the pooled text, and what of it is [`PROJECTION_WEIGHT`], by its name.
    pub(crate) fn projection(self, files: &TensorFiles) -> Option<(String, Part)> {
        let places = [(PROJECTION, Part::Transposed), (PROJECTION_WEIGHT, Part::Whole)];
        let mut places = places.into_iter().map(|(name, part)| (format!("{}{name}", self.prefix), part));
        places.find(|(name, _)| self.has_projection && files.info(name).is_some())
    }
}

/// The matrix P of the pooled text x P in OpenCLIP; in diffusers, [`PROJECTION_WEIGHT`] is P transposed.
pub(crate) const PROJECTION: &str = "text_projection";
/// The same in diffusers, and in files whose writer knew it only so.
pub(crate) const PROJECTION_WEIGHT: &str = "text_projection.weight";

/// Pairs of names: in diffusers, and in the original below its prefix. A pair stands for the module and all below it.
pub(crate) struct Names {
    prefix: &'static str,
    pairs: Vec<(String, String)>,
}

impl Names {
    /// The part's prefix in the file.
    pub(crate) fn prefix(&self) -> &'static str {
        self.prefix
    }

    /// The original name of a tensor of the network; `None` if the network has no such place.
    pub(crate) fn original(&self, name: &str) -> Option<String> {
        let found = self.pairs.iter().find_map(|(ours, theirs)| rename(name, ours, theirs))?;
        Some(format!("{}{found}", self.prefix))
    }

    /// The diffusers name of a tensor in the file; `None` if it is not of this part, or has no place in it.
    pub(crate) fn diffusers(&self, original: &str) -> Option<String> {
        let name = original.strip_prefix(self.prefix)?;
        self.pairs.iter().find_map(|(ours, theirs)| rename(name, theirs, ours))
    }

    fn add(&mut self, ours: impl Into<String>, theirs: impl Into<String>) {
        self.pairs.push((ours.into(), theirs.into()));
    }

    fn add_all(&mut self, ours: &str, theirs: &str, below: &[(&str, &str)]) {
        for (our_leaf, their_leaf) in below {
            self.add(format!("{ours}.{our_leaf}"), format!("{theirs}.{their_leaf}"));
        }
    }
}

/// `name` with `from` at its start replaced by `to`, if `from` is the module or one above it.
fn rename(name: &str, from: &str, to: &str) -> Option<String> {
    match name.strip_prefix(from)? {
        "" => Some(to.to_owned()),
        rest if from.is_empty() || rest.starts_with('.') => Some(format!("{to}{rest}")),
        _ => None,
    }
}

const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// The U-Net's names. The original counts all blocks of the way down, and of the way up, in one row.
pub(crate) fn unet_names(config: &UnetConfig) -> Names {
    let mut names = Names { prefix: UNET, pairs: Vec::new() };
    let levels = config.block_out_channels.len();
    names.add("conv_in", "input_blocks.0.0");
    names.add("time_embedding.linear_1", "time_embed.0");
    names.add("time_embedding.linear_2", "time_embed.2");
    if config.added_conditioning().is_some() {
        names.add("add_embedding.linear_1", "label_emb.0.0");
        names.add("add_embedding.linear_2", "label_emb.0.2");
    }
    let mut block = 1;
    for level in 0..levels {
        let ours = format!("down_blocks.{level}");
        for i in 0..config.layers_per_block.at(level) {
            names.add_all(&format!("{ours}.resnets.{i}"), &format!("input_blocks.{block}.0"), &RESNET);
            names.add(format!("{ours}.attentions.{i}"), format!("input_blocks.{block}.1"));
            block += 1;
        }
        if level + 1 < levels {
            names.add(format!("{ours}.downsamplers.0.conv"), format!("input_blocks.{block}.0.op"));
            block += 1;
        }
    }
    names.add_all("mid_block.resnets.0", "middle_block.0", &RESNET);
    names.add("mid_block.attentions.0", "middle_block.1");
    names.add_all("mid_block.resnets.1", "middle_block.2", &RESNET);
    block = 0;
    for i in 0..levels {
        let ours = format!("up_blocks.{i}");
        let has_attention = config.up_block_types[i] == "CrossAttnUpBlock2D";
        let num_resnets = config.layers_per_block.at(levels - 1 - i) + 1;
        for j in 0..num_resnets {
            names.add_all(&format!("{ours}.resnets.{j}"), &format!("output_blocks.{block}.0"), &RESNET);
            if has_attention {
                names.add(format!("{ours}.attentions.{j}"), format!("output_blocks.{block}.1"));
            }
            if j + 1 == num_resnets && i + 1 < levels {
                // The upsampler is the last layer of the level's last block.
                let place = if has_attention { 2 } else { 1 };
                names.add(format!("{ours}.upsamplers.0.conv"), format!("output_blocks.{block}.{place}.conv"));
            }
            block += 1;
        }
    }
    names.add("conv_norm_out", "out.0");
    names.add("conv_out", "out.2");
    names
}

const VAE_RESNET: [(&str, &str); 5] =
    [("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"), ("conv_shortcut", "nin_shortcut")];
const VAE_ATTENTION: [(&str, &str); 5] =
    [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];

/// The autoencoder's names. The original counts the levels of the decoder from the top.
pub(crate) fn vae_names(config: &VaeConfig) -> Names {
    let mut names = Names { prefix: VAE, pairs: Vec::new() };
    let levels = config.block_out_channels.len();
    for (half, blocks, block, resample, num_resnets) in [
        ("encoder", "down_blocks", "down", ("downsamplers.0.conv", "downsample.conv"), config.layers_per_block),
        ("decoder", "up_blocks", "up", ("upsamplers.0.conv", "upsample.conv"), config.layers_per_block + 1),
    ] {
        for level in 0..levels {
            let ours = format!("{half}.{blocks}.{level}");
            let place = if half == "encoder" { level } else { levels - 1 - level };
            let theirs = format!("{half}.{block}.{place}");
            for i in 0..num_resnets {
                names.add_all(&format!("{ours}.resnets.{i}"), &format!("{theirs}.block.{i}"), &VAE_RESNET);
            }
            names.add(format!("{ours}.{}", resample.0), format!("{theirs}.{}", resample.1));
        }
        let (ours, theirs) = (format!("{half}.mid_block"), format!("{half}.mid"));
        names.add_all(&format!("{ours}.resnets.0"), &format!("{theirs}.block_1"), &VAE_RESNET);
        names.add_all(&format!("{ours}.attentions.0"), &format!("{theirs}.attn_1"), &VAE_ATTENTION);
        names.add_all(&format!("{ours}.resnets.1"), &format!("{theirs}.block_2"), &VAE_RESNET);
        names.add_all(half, half, &[("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")]);
    }
    names.add("quant_conv", "quant_conv");
    names.add("post_quant_conv", "post_quant_conv");
    names
}

const OPEN_CLIP_LAYER: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];
/// q, k and v in the order in which the original stacks them into one tensor.
const STACKED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

fn open_clip_names(prefix: &'static str, num_layers: usize) -> Names {
    let mut names = Names { prefix, pairs: Vec::new() };
    names.add("embeddings.token_embedding.weight", "token_embedding.weight");
    names.add("embeddings.position_embedding.weight", "positional_embedding");
    for i in 0..num_layers {
        names.add_all(&format!("encoder.layers.{i}"), &format!("transformer.resblocks.{i}"), &OPEN_CLIP_LAYER);
    }
    names.add("final_layer_norm", "ln_final");
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    // The pairs are those of diffusers' convert_original_stable_diffusion_to_diffusers.py.
    #[test]
    fn blocks_of_sd15_are_counted_as_the_original_counts_them() {
        let names = unet_names(&UnetConfig::default());
        for (ours, theirs) in [
            ("conv_in.weight", "input_blocks.0.0.weight"),
            ("down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
            ("down_blocks.2.attentions.1.proj_in.weight", "input_blocks.8.1.proj_in.weight"),
            ("down_blocks.3.resnets.1.conv2.weight", "input_blocks.11.0.out_layers.3.weight"),
            ("mid_block.resnets.1.time_emb_proj.bias", "middle_block.2.emb_layers.1.bias"),
            ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
            ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
            ("up_blocks.1.attentions.0.norm.weight", "output_blocks.3.1.norm.weight"),
            ("conv_norm_out.bias", "out.0.bias"),
        ] {
            let theirs = format!("{UNET}{theirs}");
            assert_eq!(names.original(ours).as_deref(), Some(theirs.as_str()));
            assert_eq!(names.diffusers(&theirs).as_deref(), Some(ours));
        }
        assert_eq!(names.diffusers("model.diffusion_model.input_blocks.10.0.strange.weight"), None);
        assert_eq!(names.diffusers("first_stage_model.encoder.conv_in.weight"), None);
    }

    #[test]
    fn the_decoder_is_counted_from_the_top() {
        let names = vae_names(&VaeConfig::default());
        for (ours, theirs) in [
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
            ("decoder.up_blocks.2.resnets.0.conv_shortcut.bias", "decoder.up.1.block.0.nin_shortcut.bias"),
            ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
            ("encoder.mid_block.attentions.0.to_out.0.weight", "encoder.mid.attn_1.proj_out.weight"),
            ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
            ("post_quant_conv.bias", "post_quant_conv.bias"),
        ] {
            let theirs = format!("{VAE}{theirs}");
            assert_eq!(names.original(ours).as_deref(), Some(theirs.as_str()));
            assert_eq!(names.diffusers(&theirs).as_deref(), Some(ours));
        }
    }
}

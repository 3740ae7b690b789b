//! What a checkpoint's tensors tell about its networks, as the configurations that diffusers would have beside them.

use crate::config::Prediction;
use crate::original_layout::{CLIP, OPEN_CLIP, UNET, VAE};
use loralei_adapter::TensorFiles;
use serde_json::{Value, json};

/// How the text encoder's tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextLayout {
    /// As in transformers, with or without the level `text_model`.
    Clip {
        /// Whether the level is missing.
        without_level: bool,
    },
    /// As in OpenCLIP.
    OpenClip,
}

/// More numbered modules than any network has in a row.
const MAX_COUNT: usize = 1000;

/// A configuration's text, or what is missing to make it.
type Inferred = Result<String, String>;

struct Shapes<'a> {
    files: &'a TensorFiles,
    prefix: &'static str,
}

impl Shapes<'_> {
    fn of(&self, name: &str) -> Option<&[usize]> {
        self.files.info(&format!("{}{name}", self.prefix)).map(|info| info.shape.as_slice())
    }

    fn dim(&self, name: &str, i: usize) -> Result<usize, String> {
        let missing = || format!("it has no tensor `{}{name}` of the right shape", self.prefix);
        self.of(name).and_then(|shape| shape.get(i)).copied().ok_or_else(missing)
    }

    /// How many there are of a numbered module, told by one of its tensors.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..MAX_COUNT).take_while(|i| self.of(&name(*i)).is_some()).count()
    }
}

fn pretty(config: &Value) -> String {
    format!("{config:#}\n")
}

/// The levels of the way down, as far as they matter to a configuration.
#[derive(Default)]
struct Levels {
    channels: Vec<usize>,
    resnets: Vec<usize>,
    /// Transformer blocks of each attention; 0 where a level has none.
    depths: Vec<usize>,
}

fn levels(shapes: &Shapes) -> Levels {
    let mut levels = Levels::default();
    let (mut resnets, mut channels, mut depth) = (0, 0, 0);
    for block in 1..MAX_COUNT {
        if let Some(shape) = shapes.of(&format!("input_blocks.{block}.0.in_layers.2.weight")) {
            resnets += 1;
            channels = shape.first().copied().unwrap_or_default();
            let attention = |i: usize| format!("input_blocks.{block}.1.transformer_blocks.{i}.attn1.to_q.weight");
            depth = shapes.count(attention);
            continue;
        }
        if resnets > 0 {
            levels.channels.push(channels);
            levels.resnets.push(resnets);
            levels.depths.push(depth);
        }
        resnets = 0;
        if shapes.of(&format!("input_blocks.{block}.0.op.weight")).is_none() {
            break;
        }
    }
    levels
}

pub(crate) fn unet(files: &TensorFiles, text: TextLayout) -> Inferred {
    let shapes = Shapes { files, prefix: UNET };
    let found = levels(&shapes);
    let first_with_text = (1..20).find_map(|block| {
        let name = format!("input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight");
        shapes.of(&name).map(|shape| (block, shape.to_vec()))
    });
    let Some((block, attention)) = first_with_text else { return Err("its U-Net does not look at text".into()) };
    let is_linear = shapes.of(&format!("input_blocks.{block}.1.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    // SD 1.x has 8 heads on every level, SD 2.x heads of 64.
    let heads = match text {
        TextLayout::Clip { .. } => json!(8),
        TextLayout::OpenClip => found.channels.iter().map(|channels| (channels / 64).max(1)).collect(),
    };
    let names = |cross: &str, plain: &str, depths: &mut dyn Iterator<Item = &usize>| -> Value {
        depths.map(|depth| if *depth > 0 { cross } else { plain }).collect()
    };
    Ok(pretty(&json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu",
        "in_channels": shapes.dim("input_blocks.0.0.weight", 1)?, "out_channels": shapes.dim("out.2.weight", 0)?,
        "block_out_channels": found.channels, "layers_per_block": one_or_each(&found.resnets),
        "down_block_types": names("CrossAttnDownBlock2D", "DownBlock2D", &mut found.depths.iter()),
        "up_block_types": names("CrossAttnUpBlock2D", "UpBlock2D", &mut found.depths.iter().rev()),
        "cross_attention_dim": attention.get(1), "attention_head_dim": heads, "use_linear_projection": is_linear,
        "center_input_sample": false, "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32,
        "sample_size": if is_linear { 96 } else { 64 },
    })))
}

fn one_or_each(values: &[usize]) -> Value {
    match values.first() {
        Some(first) if values.iter().all(|value| value == first) => json!(first),
        _ => json!(values),
    }
}

pub(crate) fn vae(files: &TensorFiles) -> Inferred {
    let shapes = Shapes { files, prefix: VAE };
    let num_levels = shapes.count(|level| format!("encoder.down.{level}.block.0.conv1.weight"));
    let channels = (0..num_levels).map(|level| shapes.dim(&format!("encoder.down.{level}.block.0.conv1.weight"), 0));
    let channels = channels.collect::<Result<Vec<_>, _>>()?;
    Ok(pretty(&json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu",
        "in_channels": shapes.dim("encoder.conv_in.weight", 1)?, "out_channels": shapes.dim("decoder.conv_out.weight", 0)?,
        "latent_channels": shapes.dim("decoder.conv_in.weight", 1)?,
        "block_out_channels": channels, "norm_num_groups": 32, "scaling_factor": 0.18215, "sample_size": 512,
        "layers_per_block": shapes.count(|i| format!("encoder.down.0.block.{i}.conv1.weight")),
        "down_block_types": vec!["DownEncoderBlock2D"; num_levels], "up_block_types": vec!["UpDecoderBlock2D"; num_levels],
        "mid_block_add_attention": shapes.of("encoder.mid.attn_1.q.weight").is_some(),
        "use_quant_conv": shapes.of("quant_conv.weight").is_some(),
        "use_post_quant_conv": shapes.of("post_quant_conv.weight").is_some(),
    })))
}

pub(crate) fn text_encoder(files: &TensorFiles, layout: TextLayout) -> Inferred {
    let (prefix, is_open) = match layout {
        TextLayout::Clip { without_level: false } => (CLIP, false),
        TextLayout::Clip { without_level: true } => ("cond_stage_model.transformer.", false),
        TextLayout::OpenClip => (OPEN_CLIP, true),
    };
    let shapes = Shapes { files, prefix };
    let (tokens, positions, inner, layers) = if is_open {
        let inner = "transformer.resblocks.0.mlp.c_fc.weight";
        // SD 2.x takes the last layer but one.
        let layers = shapes.count(|i| format!("transformer.resblocks.{i}.ln_1.weight")).saturating_sub(1);
        ("token_embedding.weight", "positional_embedding", inner, layers)
    } else {
        let layers = shapes.count(|i| format!("encoder.layers.{i}.layer_norm1.weight"));
        let positions = "embeddings.position_embedding.weight";
        ("embeddings.token_embedding.weight", positions, "encoder.layers.0.mlp.fc1.weight", layers)
    };
    let (vocabulary, width) = (shapes.dim(tokens, 0)?, shapes.dim(tokens, 1)?);
    Ok(pretty(&json!({
        "_class_name": "CLIPTextModel", "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
        "hidden_size": width, "projection_dim": width, "intermediate_size": shapes.dim(inner, 0)?,
        "num_hidden_layers": layers, "num_attention_heads": (width / 64).max(1),
        "max_position_embeddings": shapes.dim(positions, 0)?, "vocab_size": vocabulary,
        "hidden_act": if is_open { "gelu" } else { "quick_gelu" }, "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary.saturating_sub(2), "eos_token_id": vocabulary.saturating_sub(1),
        "pad_token_id": if is_open { 0 } else { vocabulary.saturating_sub(1) },
    })))
}

/// What the U-Net predicts, where the file says so: a mark that some trainers leave, the metadata of ModelSpec, the
/// step at which SD 2's 512 px base was saved, or that it is an SD 1.x, which predicts noise.
pub(crate) fn prediction(files: &TensorFiles, text: TextLayout) -> Option<Prediction> {
    let metadata = |key: &str| files.metadata().get(key).map(String::as_str);
    if files.info("v_pred").is_some() {
        return Some(Prediction::VPrediction);
    }
    match metadata("modelspec.prediction_type") {
        Some("v" | "v_prediction") => return Some(Prediction::VPrediction),
        Some("epsilon") => return Some(Prediction::Epsilon),
        _ => {}
    }
    match metadata("modelspec.architecture") {
        Some(name) if name.starts_with("stable-diffusion-v2-768-v") => return Some(Prediction::VPrediction),
        Some(name) if name.starts_with("stable-diffusion-v2-512") => return Some(Prediction::Epsilon),
        _ => {}
    }
    if metadata("global_step") == Some("875000") {
        return Some(Prediction::Epsilon);
    }
    matches!(text, TextLayout::Clip { .. }).then_some(Prediction::Epsilon)
}

pub(crate) fn scheduler(files: &TensorFiles, prediction: Prediction) -> String {
    pretty(&json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1,
        "prediction_type": if prediction == Prediction::Epsilon { "epsilon" } else { "v_prediction" },
        "rescale_betas_zero_snr": files.info("ztsnr").is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn shapes_are_read_off_the_tensors() {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let text_keys = "hidden_size intermediate_size num_hidden_layers vocab_size hidden_act max_position_embeddings";
        for (name, layout) in [("sd1", TextLayout::Clip { without_level: false }), ("sd2", TextLayout::OpenClip)] {
            let files = TensorFiles::open(&golden.join(name).join("single-file.safetensors")).unwrap();
            let of_folder = |relative: &str| -> Value {
                let text = std::fs::read_to_string(golden.join(name).join("base").join(relative)).unwrap();
                serde_json::from_str(&text).unwrap()
            };
            let unet_keys = "in_channels out_channels block_out_channels layers_per_block down_block_types up_block_types \
                             cross_attention_dim";
            let vae_keys = "in_channels out_channels latent_channels block_out_channels layers_per_block";
            for (inferred, relative, keys) in [
                (unet(&files, layout), "unet/config.json", unet_keys),
                (vae(&files), "vae/config.json", vae_keys),
                (text_encoder(&files, layout), "text_encoder/config.json", text_keys),
            ] {
                let (inferred, expected): (Value, _) =
                    (serde_json::from_str(&inferred.unwrap()).unwrap(), of_folder(relative));
                for key in keys.split_whitespace().filter(|key| !expected[key].is_null()) {
                    assert_eq!(inferred[key], expected[key], "{name} {relative} {key}");
                }
            }
            let unet: Value = serde_json::from_str(&unet(&files, layout).unwrap()).unwrap();
            assert_eq!(unet["use_linear_projection"], json!(name == "sd2"));
            let vae: Value = serde_json::from_str(&vae(&files).unwrap()).unwrap();
            assert_eq!(vae["mid_block_add_attention"], json!(name == "sd1"));
            assert_eq!(prediction(&files, layout), (name == "sd1").then_some(Prediction::Epsilon));
        }
    }
}

//! What a checkpoint's tensors tell about its networks, as the configurations that diffusers would have beside them.

use crate::conditioning::PictureSizes;
use crate::config::{Prediction, ScheduleOverride, VaeConfig};
use crate::original_layout::{TextLayout, TextNames, UNET, VAE};
use crate::weight_files::Part;
use loralei_adapter::TensorFiles;
use serde_json::{Value, json};

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

/// Width of the input of `add_embedding`, where the U-Net is told more than text and time.
fn added_width(files: &TensorFiles) -> Option<usize> {
    files.info(&format!("{UNET}label_emb.0.0.weight")).and_then(|info| info.shape.get(1)).copied()
}

/// Width of the projected pooled text.
fn pooled_width(files: &TensorFiles, text: TextLayout) -> Option<usize> {
    let (name, part) = text.projection(files)?;
    files.info(&name)?.shape.get(usize::from(part == Part::Transposed)).copied()
}

pub(crate) fn unet(files: &TensorFiles, text: &[TextLayout]) -> Inferred {
    let shapes = Shapes { files, prefix: UNET };
    let found = levels(&shapes);
    let first_with_text = (1..20).find_map(|block| {
        let name = format!("input_blocks.{block}.1.transformer_blocks.0.attn2.to_k.weight");
        shapes.of(&name).map(|shape| (block, shape.to_vec()))
    });
    let Some((block, attention)) = first_with_text else { return Err("its U-Net does not look at text".into()) };
    let is_linear = shapes.of(&format!("input_blocks.{block}.1.proj_in.weight")).is_some_and(|shape| shape.len() == 2);
    // SD 1.x has 8 heads on every level, those that know OpenCLIP have heads of 64.
    let heads = if text.iter().any(|text| text.names == TextNames::OpenClip) {
        found.channels.iter().map(|channels| (channels / 64).max(1)).collect()
    } else {
        json!(8)
    };
    let names = |cross: &str, plain: &str, depths: &mut dyn Iterator<Item = &usize>| -> Value {
        depths.map(|depth| if *depth > 0 { cross } else { plain }).collect()
    };
    let mut config = json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu",
        "in_channels": shapes.dim("input_blocks.0.0.weight", 1)?, "out_channels": shapes.dim("out.2.weight", 0)?,
        "block_out_channels": found.channels, "layers_per_block": one_or_each(&found.resnets),
        "down_block_types": names("CrossAttnDownBlock2D", "DownBlock2D", &mut found.depths.iter()),
        "up_block_types": names("CrossAttnUpBlock2D", "UpBlock2D", &mut found.depths.iter().rev()),
        "cross_attention_dim": attention.get(1), "attention_head_dim": heads, "use_linear_projection": is_linear,
        "center_input_sample": false, "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32,
        "sample_size": if is_linear { 96 } else { 64 },
    });
    if let Some(added_width) = added_width(files) {
        let pooled_width = text.iter().find_map(|text| pooled_width(files, *text)).unwrap_or_default();
        config["sample_size"] = json!(128);
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(added_width.saturating_sub(pooled_width) / PictureSizes::COUNT);
        config["projection_class_embeddings_input_dim"] = json!(added_width);
    }
    if found.depths.iter().any(|depth| *depth > 1) {
        // A level without attention counts as one block, as diffusers has it.
        config["transformer_layers_per_block"] = found.depths.iter().map(|depth| *depth.max(&1)).collect();
    }
    Ok(pretty(&config))
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
    let mut config = json!({
        "_class_name": "AutoencoderKL", "act_fn": "silu",
        "in_channels": shapes.dim("encoder.conv_in.weight", 1)?, "out_channels": shapes.dim("decoder.conv_out.weight", 0)?,
        "latent_channels": shapes.dim("decoder.conv_in.weight", 1)?,
        "block_out_channels": channels, "norm_num_groups": 32, "scaling_factor": 0.18215, "sample_size": 512,
        "layers_per_block": shapes.count(|i| format!("encoder.down.0.block.{i}.conv1.weight")),
        "down_block_types": vec!["DownEncoderBlock2D"; num_levels], "up_block_types": vec!["UpDecoderBlock2D"; num_levels],
        "mid_block_add_attention": shapes.of("encoder.mid.attn_1.q.weight").is_some(),
        "use_quant_conv": shapes.of("quant_conv.weight").is_some(),
        "use_post_quant_conv": shapes.of("post_quant_conv.weight").is_some(),
    });
    if added_width(files).is_some() {
        config["scaling_factor"] = json!(VaeConfig::SDXL_SCALING_FACTOR);
        config["force_upcast"] = json!(true);
        config["sample_size"] = json!(1024);
    }
    Ok(pretty(&config))
}

pub(crate) fn text_encoder(files: &TensorFiles, layout: TextLayout) -> Inferred {
    let (shapes, is_open) = (Shapes { files, prefix: layout.prefix }, layout.names == TextNames::OpenClip);
    let (tokens, positions, inner, layers) = if is_open {
        let inner = "transformer.resblocks.0.mlp.c_fc.weight";
        let in_file = shapes.count(|i| format!("transformer.resblocks.{i}.ln_1.weight"));
        let layers = in_file.saturating_sub(usize::from(layout.has_unused_layer));
        ("token_embedding.weight", "positional_embedding", inner, layers)
    } else {
        let layers = shapes.count(|i| format!("encoder.layers.{i}.layer_norm1.weight"));
        let positions = "embeddings.position_embedding.weight";
        ("embeddings.token_embedding.weight", positions, "encoder.layers.0.mlp.fc1.weight", layers)
    };
    let (vocabulary, width) = (shapes.dim(tokens, 0)?, shapes.dim(tokens, 1)?);
    let class = if layout.has_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
    let projection_width = pooled_width(files, layout).unwrap_or(width);
    Ok(pretty(&json!({
        "_class_name": class, "architectures": [class], "model_type": "clip_text_model",
        "hidden_size": width, "projection_dim": projection_width, "intermediate_size": shapes.dim(inner, 0)?,
        "num_hidden_layers": layers, "num_attention_heads": (width / 64).max(1),
        "max_position_embeddings": shapes.dim(positions, 0)?, "vocab_size": vocabulary,
        "hidden_act": if is_open { "gelu" } else { "quick_gelu" }, "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary.saturating_sub(2), "eos_token_id": vocabulary.saturating_sub(1),
        "pad_token_id": if is_open { 0 } else { vocabulary.saturating_sub(1) },
    })))
}

/// What the marks say that some trainers leave: tensors that are there, whatever is in them.
pub(crate) fn marks(files: &TensorFiles) -> ScheduleOverride {
    ScheduleOverride {
        prediction: files.info("v_pred").map(|_| Prediction::VPrediction),
        zero_terminal_snr: files.info("ztsnr").map(|_| true),
    }
}

/// What the U-Net predicts, where the metadata say so: those of ModelSpec, or the step at which SD 2's 512 px base was
/// saved.
pub(crate) fn prediction_of_metadata(files: &TensorFiles) -> Option<Prediction> {
    let metadata = |key: &str| files.metadata().get(key).map(String::as_str);
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
    (metadata("global_step") == Some("875000")).then_some(Prediction::Epsilon)
}

pub(crate) fn scheduler(files: &TensorFiles, prediction: Prediction) -> String {
    let zero_terminal_snr = marks(files).zero_terminal_snr.unwrap_or(false);
    let mut config = json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1,
        "prediction_type": if prediction == Prediction::Epsilon { "epsilon" } else { "v_prediction" },
        "rescale_betas_zero_snr": zero_terminal_snr,
    });
    if added_width(files).is_some() {
        config["_class_name"] = json!("EulerDiscreteScheduler");
        config["interpolation_type"] = json!("linear");
        // What was taught pure noise has to begin with it (Lin et al. 2023, arXiv 2305.08891, section 3.3).
        config["timestep_spacing"] = json!(if zero_terminal_snr { "trailing" } else { "leading" });
    }
    pretty(&config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::original_layout::{CLIP, OPEN_CLIP, TWO_ENCODERS};
    use std::path::PathBuf;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
    }

    fn parsed(inferred: Inferred) -> Value {
        serde_json::from_str(&inferred.unwrap()).unwrap()
    }

    #[test]
    fn two_text_encoders_depths_and_added_conditioning_are_read_off_the_tensors() {
        for name in ["sdxl", "sdxl-v"] {
            let files = TensorFiles::open(&golden(name).join("single-file.safetensors")).unwrap();
            let of_folder = |relative: &str| -> Value {
                serde_json::from_str(&std::fs::read_to_string(golden(name).join("base").join(relative)).unwrap())
                    .unwrap()
            };
            let unet = parsed(unet(&files, &TWO_ENCODERS));
            let expected = of_folder("unet/config.json");
            let keys = "block_out_channels layers_per_block down_block_types up_block_types cross_attention_dim \
                        use_linear_projection addition_embed_type addition_time_embed_dim \
                        projection_class_embeddings_input_dim transformer_layers_per_block";
            for key in keys.split_whitespace() {
                assert_eq!(unet[key], expected[key], "{name} {key}");
            }
            assert_eq!((&unet["sample_size"], &unet["attention_head_dim"]), (&json!(128), &json!([1, 1, 1])));
            let keys =
                "architectures hidden_size intermediate_size num_hidden_layers vocab_size hidden_act projection_dim";
            for (layout, folder) in TWO_ENCODERS.into_iter().zip(["text_encoder", "text_encoder_2"]) {
                let (found, expected) =
                    (parsed(text_encoder(&files, layout)), of_folder(&format!("{folder}/config.json")));
                for key in keys.split_whitespace() {
                    assert_eq!(found[key], expected[key], "{name} {folder} {key}");
                }
            }
            let vae = parsed(vae(&files));
            assert_eq!((&vae["scaling_factor"], &vae["force_upcast"]), (&json!(0.13025), &json!(true)));
            let is_v = name == "sdxl-v";
            let zero_terminal_snr = is_v.then_some(true);
            let expected = ScheduleOverride { prediction: is_v.then_some(Prediction::VPrediction), zero_terminal_snr };
            assert_eq!(marks(&files), expected);
            let found: Value = serde_json::from_str(&scheduler(&files, Prediction::VPrediction)).unwrap();
            let expected = of_folder("scheduler/scheduler_config.json");
            for key in
                "_class_name beta_schedule beta_start beta_end steps_offset rescale_betas_zero_snr timestep_spacing"
                    .split_whitespace()
            {
                assert_eq!(found[key], expected[key], "{name} {key}");
            }
        }
    }

    #[test]
    fn shapes_are_read_off_the_tensors() {
        let text_keys = "hidden_size intermediate_size num_hidden_layers vocab_size hidden_act max_position_embeddings";
        for (name, layout) in [("sd1", CLIP), ("sd2", OPEN_CLIP)] {
            let files = TensorFiles::open(&golden(name).join("single-file.safetensors")).unwrap();
            let of_folder = |relative: &str| -> Value {
                let text = std::fs::read_to_string(golden(name).join("base").join(relative)).unwrap();
                serde_json::from_str(&text).unwrap()
            };
            let unet_keys = "in_channels out_channels block_out_channels layers_per_block down_block_types up_block_types \
                             cross_attention_dim";
            let vae_keys = "in_channels out_channels latent_channels block_out_channels layers_per_block";
            for (inferred, relative, keys) in [
                (unet(&files, &[layout]), "unet/config.json", unet_keys),
                (vae(&files), "vae/config.json", vae_keys),
                (text_encoder(&files, layout), "text_encoder/config.json", text_keys),
            ] {
                let (inferred, expected): (Value, _) =
                    (serde_json::from_str(&inferred.unwrap()).unwrap(), of_folder(relative));
                for key in keys.split_whitespace().filter(|key| !expected[key].is_null()) {
                    assert_eq!(inferred[key], expected[key], "{name} {relative} {key}");
                }
            }
            let unet: Value = serde_json::from_str(&unet(&files, &[layout]).unwrap()).unwrap();
            assert_eq!(unet["use_linear_projection"], json!(name == "sd2"));
            let vae: Value = serde_json::from_str(&vae(&files).unwrap()).unwrap();
            assert_eq!(vae["mid_block_add_attention"], json!(name == "sd1"));
            assert_eq!(marks(&files), ScheduleOverride::default());
            assert_eq!(prediction_of_metadata(&files), None);
        }
    }
}

//! An adapter from what a model has learned: for every layer the best low-rank factors of tuned - base.

use crate::base::Base;
use crate::base_layers::layer_paths;
use crate::error::ModelError;
use crate::lora::{Targets, matches_path};
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use half::{bf16, f16};
use loralei_adapter::keys::kohya_module;
use loralei_adapter::{Adapter, Array, Dtype, TrainingFacts, extract_module, without_unit_kernel};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Layers of the resnets and samplers, which kohya takes as soon as convolutions have a rank.
const CONVOLUTIONAL: [&str; 2] = ["*resnets.*", "*samplers.*.conv"];
/// Of the sketches. The result is as good with any.
const SEED: u64 = 0;
/// What the metadata of an extracted adapter keeps of those of a trained one: there was no training.
const KEPT_METADATA: [&str; 6] =
    ["ss_output_name", "ss_v2", "ss_base_model_version", "ss_sd_model_name", "ss_network_", "modelspec."];

/// What is to be extracted.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtractionSettings {
    /// Of linear layers and 1x1 convolutions; at most the shorter side of the weight.
    pub rank: usize,
    /// Of larger convolutions. With one, the layers of resnets and samplers are taken too, unless the U-Net has no targets.
    pub conv_rank: Option<usize>,
    /// Layers of the U-Net.
    pub unet: Targets,
    /// Layers of the text encoder.
    pub text_encoder: Targets,
    /// See [`extract_module`].
    pub clamp: f64,
}

/// One layer, and how well its factors stand for the difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExtractedLayer {
    /// kohya's module name.
    pub module: String,
    /// (out, in) or (out, in, kh, kw).
    pub weight_shape: Vec<usize>,
    /// Of the factors.
    pub rank: usize,
    /// ||tuned - base|| (Frobenius).
    pub difference_norm: f64,
    /// ||difference - BA|| / ||difference||.
    pub relative_error: f64,
}

/// What was extracted.
#[derive(Clone, Debug, PartialEq)]
pub struct Extraction {
    /// With metadata.
    pub adapter: Adapter,
    /// In the order of names.
    pub layers: Vec<ExtractedLayer>,
    /// Modules that are not in the adapter because their weights do not differ by more than the rounding of their types.
    pub unchanged: Vec<String>,
}

/// A layer of both models.
struct Layer<'a> {
    module: String,
    key: String,
    weights: [&'a WeightFiles; 2],
    shape: Vec<usize>,
    rank: usize,
}

/// Extracts an adapter named `output_name` that turns `base` into `tuned`, as far as the ranks allow. The two may have
/// different layouts and number types. `progress` is told how many layers are done, and of how many.
///
/// As many layers are in memory at a time as there are threads; the result does not depend on their number.
///
/// # Errors
/// [`ModelError::DifferentModels`], tensors that are missing, targets that match no layer, [`ModelError::NoDifference`],
/// numbers that are not finite.
pub fn extract(
    base: &Base,
    tuned: &Base,
    settings: &ExtractionSettings,
    output_name: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Extraction> {
    let mut patterns = settings.unet.patterns();
    if settings.conv_rank.is_some() && settings.unet != Targets::None {
        patterns.extend(CONVOLUTIONAL);
    }
    let unets = [base.unet_weights()?, tuned.unet_weights()?];
    let mut layers = layers_of(base.unet_prefix(), "U-Net", [&unets[0], &unets[1]], &patterns, settings)?;
    let mut texts = Vec::new();
    for (index, prefix) in base.text_prefixes().into_iter().enumerate() {
        texts.push((prefix, [base.text_encoder_weights(index)?, tuned.text_encoder_weights(index)?]));
    }
    for (prefix, [first, second]) in &texts {
        let patterns = settings.text_encoder.patterns();
        layers.extend(layers_of(prefix, "text encoder", [first, second], &patterns, settings)?);
    }

    let (mut modules, mut found, mut unchanged) = (BTreeMap::new(), Vec::new(), Vec::new());
    let num_layers = layers.len() as u64;
    for some in layers.chunks(rayon::current_num_threads().max(1)) {
        let extracted: Vec<_> = some.par_iter().map(|layer| layer.extract(settings.clamp)).collect::<Result<_>>()?;
        for (layer, extracted) in some.iter().zip(extracted) {
            match extracted {
                None => unchanged.push(layer.module.clone()),
                Some((report, factors)) => {
                    modules.insert(layer.module.clone(), factors);
                    found.push(report);
                }
            }
        }
        progress((modules.len() + unchanged.len()) as u64, num_layers);
    }
    if modules.is_empty() {
        return Err(ModelError::NoDifference { base: base.name(), tuned: tuned.name() });
    }
    found.sort_by(|a, b| a.module.cmp(&b.module));
    unchanged.sort();
    let metadata = metadata(base, settings, output_name);
    Ok(Extraction { adapter: Adapter { modules, metadata }, layers: found, unchanged })
}

fn layers_of<'a>(
    prefix: &str,
    component: &str,
    weights: [&'a WeightFiles; 2],
    patterns: &[&str],
    settings: &ExtractionSettings,
) -> Result<Vec<Layer<'a>>> {
    let mut layers = Vec::new();
    for path in layer_paths(weights[0]) {
        let key = format!("{path}.weight");
        let Some(info) = weights[0].info(&key) else { continue };
        if !patterns.iter().any(|pattern| matches_path(pattern, path)) {
            continue;
        }
        let rank = match info.shape[..] {
            [_, _] | [_, _, 1, 1] => Some(settings.rank),
            [_, _, _, _] => settings.conv_rank,
            _ => None, // a norm
        };
        let Some(rank) = rank else { continue };
        let missing = || ModelError::MissingTensor { file: weights[1].path().display().to_string(), key: key.clone() };
        let (ours, theirs) = (info.shape, weights[1].info(&key).ok_or_else(missing)?.shape);
        if without_unit_kernel(&ours) != without_unit_kernel(&theirs) {
            return Err(ModelError::DifferentModels { key, base: ours, tuned: theirs });
        }
        layers.push(Layer { module: kohya_module(prefix, path), key, weights, shape: ours, rank });
    }
    if layers.is_empty() && !patterns.is_empty() {
        return Err(ModelError::NothingMatched { pattern: patterns.join(", "), component: component.to_owned() });
    }
    Ok(layers)
}

impl Layer<'_> {
    /// `None` if the weights are the same.
    fn extract(&self, clamp: f64) -> Result<Option<(ExtractedLayer, loralei_adapter::LoraModule)>> {
        let [base, tuned] = self.weights;
        let (before, mut data) = (base.read_f32(&self.key)?, tuned.read_f32(&self.key)?);
        let rounds =
            |files: &WeightFiles| files.info(&self.key).map_or(exact as fn(f32) -> f32, |info| rounding(info.dtype));
        let (to_base, to_tuned) = (rounds(base), rounds(tuned));
        // A copy in another type is the same weight, rounded.
        let is_same = |(before, after): (&f32, &f32)| to_tuned(*before) == *after || to_base(*after) == *before;
        if before.iter().zip(&data).all(is_same) {
            return Ok(None);
        }
        data.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
        drop(before);
        let difference = Array { shape: self.shape.clone(), data };
        let found = extract_module(&self.module, &difference, self.rank, clamp, SEED)?;
        let layer = ExtractedLayer {
            module: self.module.clone(),
            weight_shape: self.shape.clone(),
            rank: found.factors.rank(),
            difference_norm: difference.norm(),
            relative_error: found.relative_error,
        };
        Ok(Some((layer, found.factors)))
    }
}

fn exact(value: f32) -> f32 {
    value
}

fn rounding(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::F16 => |value| f16::from_f32(value).to_f32(),
        Dtype::Bf16 => |value| bf16::from_f32(value).to_f32(),
        _ => exact,
    }
}

fn metadata(base: &Base, settings: &ExtractionSettings, output_name: &str) -> BTreeMap<String, String> {
    let mut network_args = BTreeMap::new();
    if let Some(rank) = settings.conv_rank {
        network_args.extend([("conv_dim".to_owned(), rank.to_string()), ("conv_alpha".to_owned(), rank.to_string())]);
    }
    let side_px = base.native_size_px() as u64;
    let facts = TrainingFacts {
        output_name: output_name.to_owned(),
        base: base.version(),
        v_prediction: base.noise_schedule().prediction() == crate::Prediction::VPrediction,
        resolution_px: (side_px, side_px),
        sd_model_name: std::path::Path::new(&base.name()).file_name().map(|name| name.to_string_lossy().into_owned()),
        network_dim: settings.rank as u64,
        network_alpha: settings.rank as f64,
        network_args,
        ..TrainingFacts::default()
    };
    let mut metadata = facts.to_metadata();
    metadata.retain(|key, _| KEPT_METADATA.iter().any(|kept| key.starts_with(kept)));
    metadata
}

//! A base in another layout: as a diffusers folder, or as one file in the original layout. One tensor is in memory at a
//! time, and nothing appears under the asked name before all of it is written.

use crate::base::Base;
use crate::clip_vocabulary;
use crate::config::Prediction;
use crate::error::ModelError;
use crate::new_folder::{make_folder, write_new_folder};
use crate::original_layout::{Names, VAE, open_clip_names, stacked, unet_names, vae_names};
use crate::single_file::METADATA_PREFIX;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::{Dtype, TensorInfo, atomic_write_bytes, write_tensors_streamed};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How a base lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder with a folder for each network.
    Diffusers,
    /// One file with the names of the first publication.
    SingleFile,
}

/// Where the values of a written tensor come from.
struct Origin<'a> {
    weights: &'a WeightFiles,
    /// Read one after the other.
    names: Vec<String>,
}

/// The tensors of a file to be.
#[derive(Default)]
struct FilePlan<'a> {
    infos: BTreeMap<String, TensorInfo>,
    origins: BTreeMap<String, Origin<'a>>,
}

/// The three networks' tensors.
struct Parts {
    unet: WeightFiles,
    vae: WeightFiles,
    text_encoder: WeightFiles,
}

/// Writes `base` to `output`, which must not exist. Tensors keep their number type, or are stored as `dtype`;
/// `progress` is told how many are written, and of how many.
///
/// # Errors
/// [`ModelError::Exists`], tensors that have no place in the networks, numbers that do not fit `dtype`, a disk that is
/// full.
pub fn convert(
    base: &Base,
    output: &Path,
    layout: Layout,
    dtype: Option<Dtype>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    if output.exists() {
        return Err(ModelError::Exists { path: output.to_owned() });
    }
    let parts =
        Parts { unet: base.unet_weights()?, vae: base.vae_weights()?, text_encoder: base.text_encoder_weights(0)? };
    let conversion = Conversion { base, parts: &parts, dtype };
    match layout {
        Layout::SingleFile => conversion.single_file(output, progress),
        Layout::Diffusers => conversion.folder(output, progress),
    }
}

struct Conversion<'a> {
    base: &'a Base,
    parts: &'a Parts,
    dtype: Option<Dtype>,
}

impl<'a> Conversion<'a> {
    fn single_file(&self, output: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut plan = FilePlan::default();
        let (unet, vae) = (unet_names(self.base.unet_config()), vae_names(self.base.vae_config()));
        self.add(&mut plan, &self.parts.unet, |name| unet.original(name))?;
        self.add(&mut plan, &self.parts.vae, |name| vae.original(name))?;
        for (name, info) in &mut plan.infos {
            // The original's attention is made of 1x1 convolutions.
            if let (true, [a, b]) = (name.starts_with(VAE) && name.contains(".attn_1."), &info.shape[..]) {
                info.shape = vec![*a, *b, 1, 1];
            }
        }
        let text = &self.parts.text_encoder;
        let config = self.base.text_encoder_config(0);
        let is_open_clip = config.hidden_act == "gelu";
        let num_layers = config.num_hidden_layers;
        let names = if is_open_clip { open_clip_names(num_layers) } else { Names::clip() };
        let stacked = if is_open_clip { self.stack(&mut plan, num_layers)? } else { BTreeSet::new() };
        let alone = text.names().filter(|name| !stacked.contains(*name));
        self.add_some(&mut plan, text, alone, |name| names.original(name))?;
        let mut done = 0;
        plan.write(output, &self.metadata()?, &mut |total| {
            done += 1;
            progress(done, total);
        })
    }

    /// Puts q, k and v of every layer into one tensor; returns the names of what was put.
    fn stack(&self, plan: &mut FilePlan<'a>, num_layers: usize) -> Result<BTreeSet<String>> {
        let weights = &self.parts.text_encoder;
        let mut thirds = BTreeSet::new();
        for (i, leaf) in (0..num_layers).flat_map(|i| [(i, "weight"), (i, "bias")]) {
            let (theirs, ours) = stacked(i, leaf);
            let Some(mut info) = weights.info(&ours[0]) else {
                let (file, key) = (weights.path().display().to_string(), ours[0].clone());
                return Err(ModelError::MissingTensor { file, key });
            };
            info.shape[0] *= 3;
            info.dtype = self.stored(info.dtype);
            thirds.extend(ours.clone());
            plan.infos.insert(theirs.clone(), info);
            plan.origins.insert(theirs, Origin { weights, names: ours.to_vec() });
        }
        Ok(thirds)
    }

    fn folder(&self, output: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let (unet, vae) = (unet_names(self.base.unet_config()), vae_names(self.base.vae_config()));
        let text = |name: &str| Some(format!("text_model.{name}"));
        let plans = [
            (
                "unet/diffusion_pytorch_model",
                self.plan(&self.parts.unet, |name| unet.original(name).map(|_| name.to_owned()))?,
            ),
            (
                "vae/diffusion_pytorch_model",
                self.plan(&self.parts.vae, |name| vae.original(name).map(|_| name.to_owned()))?,
            ),
            ("text_encoder/model", self.plan(&self.parts.text_encoder, text)?),
        ];
        let total: u64 = plans.iter().map(|(_, plan)| plan.infos.len() as u64).sum();
        let mut done = 0;
        write_new_folder(output, |unfinished| {
            self.write_folder(unfinished, plans, &mut |_| {
                done += 1;
                progress(done, total);
            })
        })
    }

    fn write_folder(&self, folder: &Path, plans: [(&str, FilePlan); 3], progress: &mut dyn FnMut(u64)) -> Result<()> {
        for name in ["unet", "vae", "text_encoder", "scheduler", "tokenizer"] {
            make_folder(&folder.join(name))?;
        }
        for (relative, text) in self.configurations()?.into_iter().chain(self.tokenizer()?) {
            atomic_write_bytes(&folder.join(relative), text.as_bytes())?;
        }
        atomic_write_bytes(&folder.join("model_index.json"), self.model_index()?.as_bytes())?;
        for (stem, mut plan) in plans {
            for (name, info) in &mut plan.infos {
                // diffusers' attention of the autoencoder is linear.
                if let (true, [a, b, 1, 1]) =
                    (stem.starts_with("vae") && name.contains(".attentions."), &info.shape[..])
                {
                    info.shape = vec![*a, *b];
                }
            }
            plan.write(&folder.join(format!("{stem}.safetensors")), &BTreeMap::from([pytorch_mark()]), progress)?;
        }
        Ok(())
    }

    fn plan(&self, weights: &'a WeightFiles, rename: impl Fn(&str) -> Option<String>) -> Result<FilePlan<'a>> {
        let mut plan = FilePlan::default();
        self.add(&mut plan, weights, rename)?;
        Ok(plan)
    }

    /// Adds all tensors of a network under their new names.
    fn add(
        &self,
        plan: &mut FilePlan<'a>,
        weights: &'a WeightFiles,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        self.add_some(plan, weights, weights.names(), rename)
    }

    fn add_some<'n>(
        &self,
        plan: &mut FilePlan<'a>,
        weights: &'a WeightFiles,
        names: impl Iterator<Item = &'n str>,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        for name in names.filter(|name| !name.ends_with("position_ids")) {
            let Some(mut info) = weights.info(name) else { continue };
            let Some(new_name) = rename(name) else {
                let file = weights.path().display().to_string();
                return Err(ModelError::UnexpectedTensors { file, count: 1, key: name.to_owned() });
            };
            info.dtype = self.stored(info.dtype);
            plan.infos.insert(new_name.clone(), info);
            plan.origins.insert(new_name, Origin { weights, names: vec![name.to_owned()] });
        }
        Ok(())
    }

    fn stored(&self, own: Dtype) -> Dtype {
        self.dtype.unwrap_or(if matches!(own, Dtype::F16 | Dtype::Bf16) { own } else { Dtype::F32 })
    }

    /// Every configuration by its place in a diffusers folder.
    fn configurations(&self) -> Result<Vec<(String, String)>> {
        let places = ["unet/config.json", "vae/config.json", "text_encoder/config.json"];
        let mut all = Vec::new();
        for place in places {
            all.extend(self.base.text_file(place)?.map(|text| (place.to_owned(), text)));
        }
        all.push(("scheduler/scheduler_config.json".to_owned(), format!("{:#}\n", self.scheduler()?)));
        Ok(all)
    }

    /// The scheduler's configuration, with the prediction that the base was opened with.
    fn scheduler(&self) -> Result<Value> {
        let text = self.base.text_file("scheduler/scheduler_config.json")?.unwrap_or_default();
        let mut config: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
        let epsilon = self.base.noise_schedule().prediction() == Prediction::Epsilon;
        config["prediction_type"] = json!(if epsilon { "epsilon" } else { "v_prediction" });
        Ok(config)
    }

    /// The tokenizer's files by their places.
    fn tokenizer(&self) -> Result<Vec<(String, String)>> {
        let TokenizerFiles { tokenizer_json, vocab, merges, config, .. } = self.base.tokenizer_files(0)?;
        let files = [
            ("tokenizer.json", tokenizer_json),
            ("vocab.json", vocab),
            ("merges.txt", merges),
            ("tokenizer_config.json", config),
        ];
        Ok(files.into_iter().filter_map(|(name, text)| Some((format!("tokenizer/{name}"), text?))).collect())
    }

    /// What one file cannot say by its tensors: configurations, and the tokenizer unless it is CLIP's.
    fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let mut kept = self.configurations()?;
        let positions = self.base.text_encoder_positions();
        let has_own = match self.base.tokenizer_files(0) {
            Ok(files) => {
                let pad = if self.base.text_encoder_config(0).hidden_act == "gelu" { "!" } else { "<|endoftext|>" };
                let built_in = Tokenizer::new(&clip_vocabulary::tokenizer_files(pad), positions)?;
                !Tokenizer::new(&files, positions)?.is_same(&built_in)
            }
            Err(ModelError::BadTokenizer { .. }) => false, // nothing to keep: there is none
            Err(error) => return Err(error),
        };
        if has_own {
            kept.extend(self.tokenizer()?);
        }
        let named = kept.into_iter().map(|(place, text)| (format!("{METADATA_PREFIX}{place}"), text));
        Ok(named.chain([pytorch_mark()]).collect())
    }

    fn model_index(&self) -> Result<String> {
        let scheduler = self.scheduler()?;
        let scheduler = scheduler.get("_class_name").and_then(Value::as_str).unwrap_or("DDIMScheduler");
        let index = json!({
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0",
            "feature_extractor": [null, null], "safety_checker": [null, null], "requires_safety_checker": false,
            "scheduler": ["diffusers", scheduler], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        Ok(format!("{index:#}\n"))
    }
}

/// transformers refuses a file without it.
fn pytorch_mark() -> (String, String) {
    ("format".to_owned(), "pt".to_owned())
}

impl FilePlan<'_> {
    /// `progress` is told the number of all tensors each time that one is written.
    fn write(&self, path: &Path, metadata: &BTreeMap<String, String>, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let total = self.infos.len() as u64;
        write_tensors_streamed(path, &self.infos, metadata, |name| {
            let mut values: Vec<f32> = Vec::new();
            if let Some(origin) = self.origins.get(name) {
                for part in &origin.names {
                    values.append(&mut origin.weights.read_f32(part)?);
                }
            }
            progress(total);
            Ok(values.into())
        })?;
        Ok(())
    }
}

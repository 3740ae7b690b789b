//! A base in another layout: as a diffusers folder, or as one file in the original layout. One tensor is in memory at a
//! time, and nothing appears under the asked name before all of it is written.

use crate::base::Base;
use crate::base_files::TEXT_FOLDERS;
use crate::clip_vocabulary;
use crate::config::{Prediction, VaeConfig};
use crate::error::ModelError;
use crate::new_folder::{make_folder, write_new_folder};
use crate::original_layout::{
    CLIP, OPEN_CLIP, PROJECTION, PROJECTION_WEIGHT, TWO_ENCODERS, TextLayout, TextNames, VAE, unet_names, vae_names,
};
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

/// The networks' tensors.
struct Parts {
    unet: WeightFiles,
    vae: WeightFiles,
    text_encoders: Vec<WeightFiles>,
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
    let mut parts = Parts { unet: base.unet_weights()?, vae: base.vae_weights()?, text_encoders: Vec::new() };
    for (index, text_layout) in text_layouts(base).into_iter().enumerate() {
        let mut weights = base.text_encoder_weights(index)?;
        if layout == Layout::SingleFile && text_layout.has_projection {
            weights.transpose(PROJECTION_WEIGHT);
        }
        parts.text_encoders.push(weights);
    }
    let conversion = Conversion { base, parts: &parts, dtype };
    match layout {
        Layout::SingleFile => conversion.single_file(output, progress),
        Layout::Diffusers => conversion.folder(output, progress),
    }
}

/// How the text encoders lie in one file.
fn text_layouts(base: &Base) -> Vec<TextLayout> {
    match base.num_text_encoders() {
        1 if base.text_encoder_config(0).hidden_act == "gelu" => vec![OPEN_CLIP],
        1 => vec![CLIP],
        _ => TWO_ENCODERS.to_vec(),
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
        for (index, layout) in text_layouts(self.base).into_iter().enumerate() {
            self.add_text_encoder(&mut plan, index, layout)?;
        }
        if self.base.unet_config().added_conditioning().is_some() {
            self.add_marks(&mut plan);
        }
        let mut done = 0;
        plan.write(output, &self.metadata()?, &mut |total| {
            done += 1;
            progress(done, total);
        })
    }

    fn add_text_encoder(&self, plan: &mut FilePlan<'a>, index: usize, layout: TextLayout) -> Result<()> {
        let weights = &self.parts.text_encoders[index];
        let num_layers = self.base.text_encoder_config(index).num_hidden_layers;
        let stacked = match layout.names {
            TextNames::OpenClip => self.stack(plan, weights, layout, num_layers)?,
            TextNames::Transformers => BTreeSet::new(),
        };
        let names = layout.names(num_layers);
        let alone = self.text_tensors(index).filter(|name| !stacked.contains(*name));
        self.add_some(plan, weights, alone, |name| match name {
            PROJECTION_WEIGHT if layout.has_projection => Some(format!("{}{PROJECTION}", layout.prefix)),
            _ => names.original(name),
        })
    }

    /// The tensors of a text encoder, but for a projection that the base does not use.
    fn text_tensors(&self, index: usize) -> impl Iterator<Item = &'a str> {
        let is_unused = text_layouts(self.base).len() > 1 && !text_layouts(self.base)[index].has_projection;
        self.parts.text_encoders[index].names().filter(move |name| !(is_unused && *name == PROJECTION_WEIGHT))
    }

    /// Empty tensors that say what the U-Net predicts: what readers of this layout look for where no configuration is.
    fn add_marks(&self, plan: &mut FilePlan<'a>) {
        let schedule = self.base.noise_schedule();
        let marks = [
            ("v_pred", schedule.prediction() == Prediction::VPrediction),
            ("ztsnr", schedule.config().rescale_betas_zero_snr),
        ];
        for (name, _) in marks.into_iter().filter(|(_, is_set)| *is_set) {
            let info = TensorInfo { dtype: self.stored(Dtype::F32), shape: vec![0] };
            plan.infos.insert(name.to_owned(), info);
            plan.origins.insert(name.to_owned(), Origin { weights: &self.parts.unet, names: Vec::new() });
        }
    }

    /// Puts q, k and v of every layer into one tensor; returns the names of what was put.
    fn stack(
        &self,
        plan: &mut FilePlan<'a>,
        weights: &'a WeightFiles,
        layout: TextLayout,
        num_layers: usize,
    ) -> Result<BTreeSet<String>> {
        let mut thirds = BTreeSet::new();
        for (i, leaf) in (0..num_layers).flat_map(|i| [(i, "weight"), (i, "bias")]) {
            let (theirs, ours) = layout.stacked(i, leaf);
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
        let text = |name: &str| match name {
            PROJECTION_WEIGHT => Some(name.to_owned()),
            _ => Some(format!("text_model.{name}")),
        };
        let mut plans = vec![
            (
                "unet/diffusion_pytorch_model".to_owned(),
                self.plan(&self.parts.unet, |name| unet.original(name).map(|_| name.to_owned()))?,
            ),
            (
                "vae/diffusion_pytorch_model".to_owned(),
                self.plan(&self.parts.vae, |name| vae.original(name).map(|_| name.to_owned()))?,
            ),
        ];
        for (index, (folder, _)) in self.text_folders().enumerate() {
            let mut plan = FilePlan::default();
            self.add_some(&mut plan, &self.parts.text_encoders[index], self.text_tensors(index), text)?;
            plans.push((format!("{folder}/model"), plan));
        }
        let total: u64 = plans.iter().map(|(_, plan)| plan.infos.len() as u64).sum();
        let mut done = 0;
        write_new_folder(output, |unfinished| {
            self.write_folder(unfinished, plans, &mut |_| {
                done += 1;
                progress(done, total);
            })
        })
    }

    /// The folders of each text encoder and of its tokenizer.
    fn text_folders(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        TEXT_FOLDERS.into_iter().take(self.base.num_text_encoders())
    }

    fn write_folder(&self, folder: &Path, plans: Vec<(String, FilePlan)>, progress: &mut dyn FnMut(u64)) -> Result<()> {
        for name in ["unet", "vae", "scheduler"].into_iter().chain(self.text_folders().flat_map(|(a, b)| [a, b])) {
            make_folder(&folder.join(name))?;
        }
        let mut texts = self.configurations()?;
        for index in 0..self.base.num_text_encoders() {
            texts.extend(self.tokenizer(index)?);
        }
        for (relative, text) in texts {
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
        let mut all = Vec::new();
        for folder in ["unet", "vae"].into_iter().chain(self.text_folders().map(|(folder, _)| folder)) {
            let place = format!("{folder}/config.json");
            let Some(text) = self.base.text_file(&place)? else { continue };
            let text = if folder == "vae" { self.with_scale(&place, text)? } else { text };
            all.push((place, text));
        }
        all.push(("scheduler/scheduler_config.json".to_owned(), format!("{:#}\n", self.scheduler()?)));
        Ok(all)
    }

    /// The autoencoder's configuration, with the scale that the base is used with.
    fn with_scale(&self, place: &str, text: String) -> Result<String> {
        let scale = self.base.vae_config().scaling_factor;
        let mut config: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
        if VaeConfig::parse(&text, place)?.scaling_factor == scale {
            return Ok(text);
        }
        (config["scaling_factor"], config["force_upcast"]) = (json!(scale), json!(true));
        Ok(format!("{config:#}\n"))
    }

    /// The scheduler's configuration, with the prediction and the end of the noising process that the base was opened with.
    fn scheduler(&self) -> Result<Value> {
        let text = self.base.text_file("scheduler/scheduler_config.json")?.unwrap_or_default();
        let mut config: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
        let schedule = self.base.noise_schedule();
        let epsilon = schedule.prediction() == Prediction::Epsilon;
        config["prediction_type"] = json!(if epsilon { "epsilon" } else { "v_prediction" });
        let zero_terminal_snr = schedule.config().rescale_betas_zero_snr;
        if config.get("rescale_betas_zero_snr").and_then(Value::as_bool).unwrap_or(false) != zero_terminal_snr {
            config["rescale_betas_zero_snr"] = json!(zero_terminal_snr);
        }
        Ok(config)
    }

    /// The files of a text encoder's tokenizer by their places.
    fn tokenizer(&self, index: usize) -> Result<Vec<(String, String)>> {
        let TokenizerFiles { tokenizer_json, vocab, merges, config, .. } = self.base.tokenizer_files(index)?;
        let (_, folder) = TEXT_FOLDERS[index];
        let files = [
            ("tokenizer.json", tokenizer_json),
            ("vocab.json", vocab),
            ("merges.txt", merges),
            ("tokenizer_config.json", config),
        ];
        Ok(files.into_iter().filter_map(|(name, text)| Some((format!("{folder}/{name}"), text?))).collect())
    }

    /// What one file cannot say by its tensors: configurations, tokenizers unless they are CLIP's, and that a missing prompt
    /// is not zeros.
    fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let mut kept = self.configurations()?;
        for (index, layout) in text_layouts(self.base).into_iter().enumerate() {
            if self.has_own_tokenizer(index, layout)? {
                kept.extend(self.tokenizer(index)?);
            }
        }
        if self.base.num_text_encoders() > 1 && !self.base.zeros_for_empty_prompt() {
            kept.push(("model_index.json".to_owned(), self.model_index()?));
        }
        let named = kept.into_iter().map(|(place, text)| (format!("{METADATA_PREFIX}{place}"), text));
        Ok(named.chain([pytorch_mark()]).collect())
    }

    /// Whether the tokenizer of a text encoder is another than the one that a file without tokenizers is read with.
    fn has_own_tokenizer(&self, index: usize, layout: TextLayout) -> Result<bool> {
        let positions = self.base.text_encoder_positions();
        match self.base.tokenizer_files(index) {
            Ok(files) => {
                let built_in = Tokenizer::new(&clip_vocabulary::tokenizer_files(layout.padding()), positions)?;
                Ok(!Tokenizer::new(&files, positions)?.is_same(&built_in))
            }
            Err(ModelError::BadTokenizer { .. }) => Ok(false), // nothing to keep: there is none
            Err(error) => Err(error),
        }
    }

    fn model_index(&self) -> Result<String> {
        let scheduler = self.scheduler()?;
        let scheduler = scheduler.get("_class_name").and_then(Value::as_str).unwrap_or("DDIMScheduler");
        let mut index = json!({
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0",
            "feature_extractor": [null, null], "safety_checker": [null, null], "requires_safety_checker": false,
            "scheduler": ["diffusers", scheduler], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        if self.base.num_text_encoders() > 1 {
            index = json!({
                "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.35.0",
                "feature_extractor": [null, null], "image_encoder": [null, null],
                "force_zeros_for_empty_prompt": self.base.zeros_for_empty_prompt(),
                "scheduler": index["scheduler"], "unet": index["unet"], "vae": index["vae"],
                "text_encoder": index["text_encoder"], "tokenizer": index["tokenizer"],
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "tokenizer_2": index["tokenizer"],
            });
        }
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

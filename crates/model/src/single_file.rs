//! A checkpoint in one file, in the layout that Stable Diffusion was first published in. Its networks' shapes are read
//! off its tensors; what tensors cannot tell comes from the file's metadata, from the configurations of a diffusers
//! folder beside it, from marks that publishers leave, or from the user.

use crate::base_files::TEXT_FOLDERS;
use crate::clip_vocabulary;
use crate::config::{Prediction, ScheduleOverride, UnetConfig, VaeConfig};
use crate::error::{ForeignModel, ModelError};
use crate::original_layout::{
    CLIP, Names, OPEN_CLIP, PROJECTION_WEIGHT, TWO_ENCODERS, TextLayout, TextNames, UNET, VAE, unet_names, vae_names,
};
use crate::prediction_origin::PredictionOrigin;
use crate::single_file_config as infer;
use crate::tokenizer::TokenizerFiles;
use crate::weight_files::{Part, WeightFiles};
use crate::weights::Result;
use loralei_adapter::TensorFiles;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Before the path of a configuration that [`crate::convert`] keeps in the metadata.
pub(crate) const METADATA_PREFIX: &str = "loralei/";

const SCHEDULER: &str = "scheduler/scheduler_config.json";
const TOKENIZER: [&str; 4] = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"];

/// The opened file.
#[derive(Clone, Debug)]
pub(crate) struct SingleFile {
    path: PathBuf,
    files: Arc<TensorFiles>,
    /// In order.
    text_layouts: Vec<TextLayout>,
    /// Configurations that were read off the tensors.
    inferred: BTreeMap<String, String>,
    /// What is stronger than the scheduler's configuration, or stands where that is silent.
    schedule: ScheduleOverride,
    prediction_origin: PredictionOrigin,
}

impl SingleFile {
    /// Opens the file and finds out what it is. `prediction` answers what no file can.
    ///
    /// # Errors
    /// Files of other models, by name; a file that lacks a part; [`ModelError::UnknownPrediction`].
    pub(crate) fn open(path: &Path, prediction: Option<Prediction>) -> Result<Self> {
        let files = Arc::new(TensorFiles::open(path)?);
        refuse_foreign(path, &files)?;
        let text_layouts = text_layouts(path, &files)?;
        for (part, prefix) in [("U-Net", UNET), ("autoencoder (VAE)", VAE)] {
            if !has_prefix(&files, prefix) {
                return Err(ModelError::MissingPart { path: path.display().to_string(), part });
            }
        }
        let mut this = Self {
            path: path.to_owned(),
            files,
            text_layouts,
            inferred: BTreeMap::new(),
            schedule: ScheduleOverride::default(),
            prediction_origin: PredictionOrigin::Default,
        };
        let mut configs = vec![
            ("unet/config.json".to_owned(), infer::unet(&this.files, &this.text_layouts)),
            ("vae/config.json".to_owned(), infer::vae(&this.files)),
        ];
        for (layout, (folder, _)) in this.text_layouts.iter().zip(TEXT_FOLDERS) {
            configs.push((format!("{folder}/config.json"), infer::text_encoder(&this.files, *layout)));
        }
        for (relative, text) in configs {
            let text = text.map_err(|reason| ModelError::BadConfig { path: path.display().to_string(), reason })?;
            this.inferred.insert(relative, text);
        }
        this.find_prediction(prediction)?;
        Ok(this)
    }

    /// Who says what the U-Net predicts: a mark, the scheduler's configuration, the metadata or what is usual.
    fn find_prediction(&mut self, told: Option<Prediction>) -> Result<()> {
        let scheduler = self.kept(SCHEDULER)?;
        let is_in_config = scheduler.as_deref().is_some_and(names_prediction);
        let (marks, of_metadata) = (infer::marks(&self.files), infer::prediction_of_metadata(&self.files));
        // Published SD 2.x are of both kinds.
        let is_usual = scheduler.is_some() || self.text_layouts != [OPEN_CLIP];
        let (says, origin) = match (marks.prediction, of_metadata) {
            (Some(marked), _) => (Some(marked), PredictionOrigin::Mark),
            _ if is_in_config => (None, PredictionOrigin::SchedulerConfig),
            (_, Some(found)) => (Some(found), PredictionOrigin::Metadata),
            _ => (is_usual.then_some(Prediction::Epsilon), PredictionOrigin::Default),
        };
        (self.schedule, self.prediction_origin) = (ScheduleOverride { prediction: says, ..marks }, origin);
        if scheduler.is_none() {
            let Some(prediction) = told.or(says) else {
                return Err(ModelError::UnknownPrediction { path: self.path.display().to_string() });
            };
            self.inferred.insert(SCHEDULER.to_owned(), infer::scheduler(&self.files, prediction));
        }
        Ok(())
    }

    /// Who says what the U-Net predicts.
    pub(crate) fn prediction_origin(&self) -> PredictionOrigin {
        self.prediction_origin
    }

    /// What is stronger than the scheduler's configuration, or stands where that is silent.
    pub(crate) fn schedule(&self) -> ScheduleOverride {
        self.schedule
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How messages call one of its configurations.
    pub(crate) fn label(&self, relative: &str) -> String {
        format!("{}: {relative}", self.path.display())
    }

    /// The configuration at the place that it has in a diffusers folder.
    pub(crate) fn text(&self, relative: &str) -> Result<Option<String>> {
        Ok(self.kept(relative)?.or_else(|| self.inferred.get(relative).cloned()))
    }

    /// The metadata, with the configurations that lie beside the file: a file elsewhere needs them too.
    pub(crate) fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let mut metadata = self.files.metadata().clone();
        let mut places = vec!["unet/config.json".to_owned(), "vae/config.json".to_owned(), SCHEDULER.to_owned()];
        for (folder, tokenizer) in &TEXT_FOLDERS[..self.text_layouts.len()] {
            places.push(format!("{folder}/config.json"));
            places.extend(TOKENIZER.map(|name| format!("{tokenizer}/{name}")));
        }
        for relative in places {
            let key = format!("{METADATA_PREFIX}{relative}");
            if !metadata.contains_key(&key)
                && let Some(text) = self.kept(&relative)?
            {
                metadata.insert(key, text);
            }
        }
        Ok(metadata)
    }

    /// What the metadata or a folder beside the file says.
    fn kept(&self, relative: &str) -> Result<Option<String>> {
        if let Some(text) = self.files.metadata().get(&format!("{METADATA_PREFIX}{relative}")) {
            return Ok(Some(text.clone()));
        }
        let beside = self.path.with_file_name(relative);
        if !beside.is_file() {
            return Ok(None);
        }
        match std::fs::read_to_string(&beside) {
            Ok(text) => Ok(Some(text)),
            Err(source) => Err(ModelError::Unreadable { path: beside, source }),
        }
    }

    /// The tokenizer's files: kept ones, or CLIP's own vocabulary where its size is the text encoder's.
    pub(crate) fn tokenizer(&self, folder: &str, vocab_size: usize) -> Result<TokenizerFiles> {
        let kept = |name: &str| self.kept(&format!("{folder}/{name}"));
        let files = TokenizerFiles {
            path: self.label(folder),
            tokenizer_json: kept("tokenizer.json")?,
            vocab: kept("vocab.json")?,
            merges: kept("merges.txt")?,
            config: kept("tokenizer_config.json")?,
        };
        if files.tokenizer_json.is_some() || files.vocab.is_some() {
            return Ok(files);
        }
        if vocab_size != clip_vocabulary::NUM_TOKENS {
            let reason =
                format!("the text encoder has {vocab_size} tokens, CLIP's vocabulary {}", clip_vocabulary::NUM_TOKENS);
            return Err(ModelError::BadTokenizer { path: self.label(folder), reason });
        }
        let mut sides = TEXT_FOLDERS.iter().zip(&self.text_layouts);
        let layout = sides.find(|((_, tokenizer), _)| *tokenizer == folder).map_or(CLIP, |(_, layout)| *layout);
        Ok(clip_vocabulary::tokenizer_files(layout.padding()))
    }

    pub(crate) fn unet(&self, config: &UnetConfig) -> WeightFiles {
        self.part(&unet_names(config))
    }

    pub(crate) fn vae(&self, config: &VaeConfig) -> WeightFiles {
        self.part(&vae_names(config))
    }

    /// The text encoder of `folder`, of `num_layers` layers.
    pub(crate) fn text_encoder(&self, folder: &str, num_layers: usize) -> WeightFiles {
        let mut sides = TEXT_FOLDERS.iter().zip(&self.text_layouts);
        let Some((_, layout)) = sides.find(|((name, _), _)| *name == folder) else {
            return WeightFiles::part_of(self.files.clone());
        };
        let mut weights = self.part(&layout.names(num_layers));
        if layout.names == TextNames::OpenClip {
            for (i, leaf) in (0..num_layers).flat_map(|i| [(i, "weight"), (i, "bias")]) {
                let (theirs, ours) = layout.stacked(i, leaf);
                if self.files.info(&theirs).is_some() {
                    let thirds = ours.into_iter().enumerate();
                    thirds.for_each(|(third, name)| weights.insert(name, theirs.clone(), Part::Third(third)));
                }
            }
        }
        if let Some((theirs, part)) = layout.projection(&self.files) {
            weights.insert(PROJECTION_WEIGHT.to_owned(), theirs, part);
        }
        weights
    }

    fn part(&self, names: &Names) -> WeightFiles {
        let mut weights = WeightFiles::part_of(self.files.clone());
        for name in self.files.names().filter(|name| name.starts_with(names.prefix())) {
            // What has no place in the network keeps its name, so that whoever loads it hears of it.
            let ours = names.diffusers(name).or_else(|| (!is_passenger(name)).then(|| name.to_owned()));
            if let Some(ours) = ours {
                weights.insert(ours, name.to_owned(), Part::Whole);
            }
        }
        weights
    }
}

/// Tensors that checkpoints carry and no picture needs: OpenCLIP's head and last layer, training's leftovers.
fn is_passenger(name: &str) -> bool {
    [OPEN_CLIP, TWO_ENCODERS[1]].iter().any(|layout| name.starts_with(layout.prefix))
        || name.starts_with("first_stage_model.loss.")
        || name.contains("model_ema")
}

fn has_prefix(files: &TensorFiles, prefix: &str) -> bool {
    files.names().any(|name| name.starts_with(prefix))
}

/// How the text encoders lie in the file, in order.
fn text_layouts(path: &Path, files: &TensorFiles) -> Result<Vec<TextLayout>> {
    let in_file = |layout: TextLayout| has_prefix(files, layout.prefix).then_some(layout);
    let either = |layout: TextLayout| in_file(layout).or_else(|| in_file(layout.without_level()));
    let found = match in_file(TWO_ENCODERS[1]) {
        Some(second) => either(TWO_ENCODERS[0]).map(|first| vec![first, second]),
        None => in_file(OPEN_CLIP).or_else(|| either(CLIP)).map(|only| vec![only]),
    };
    found.ok_or_else(|| ModelError::MissingPart { path: path.display().to_string(), part: "text encoder" })
}

/// Whether the text of a scheduler's configuration says what the U-Net predicts.
pub(crate) fn names_prediction(config: &str) -> bool {
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    config.get("prediction_type").is_some()
}

/// Other models by a tensor that only they have.
fn refuse_foreign(path: &Path, files: &TensorFiles) -> Result<()> {
    let has = |part: &str| files.names().any(|name| name.contains(part));
    let is_there = |name: &str| files.info(name).is_some();
    let channels = files.info(&format!("{UNET}input_blocks.0.0.weight")).and_then(|info| info.shape.get(1).copied());
    let found = if has("conditioner.embedders.0.model.") {
        ForeignModel::SdxlRefiner
    } else if is_there("edm_mean") && is_there("edm_std") || is_there("edm_vpred.sigma_max") {
        ForeignModel::Edm
    } else if has("joint_blocks.") {
        ForeignModel::Sd3
    } else if has("double_blocks.") {
        ForeignModel::Flux
    } else if has(".lora_down.") || has(".lora_A.") || has(".lora_up.") || has("hada_w1") || has("lokr_w1") {
        ForeignModel::Adapter
    } else if let Some(found) = channels.and_then(ForeignModel::of_channels) {
        found
    } else {
        return Ok(());
    };
    Err(ModelError::Foreign { path: path.display().to_string(), found })
}

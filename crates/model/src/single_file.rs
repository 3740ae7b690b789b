//! A checkpoint in one file, in the layout that Stable Diffusion was first published in. Its networks' shapes are read
//! off its tensors; what tensors cannot tell comes from the file's metadata, from the configurations of a diffusers
//! folder beside it, from marks that publishers leave, or from the user.

use crate::clip_vocabulary;
use crate::config::{Prediction, UnetConfig, VaeConfig};
use crate::error::{ForeignModel, ModelError};
use crate::original_layout::{CLIP, Names, OPEN_CLIP, UNET, VAE, open_clip_names, stacked, unet_names, vae_names};
use crate::single_file_config::{self as infer, TextLayout};
use crate::tokenizer::TokenizerFiles;
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::TensorFiles;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Before the path of a configuration that [`crate::convert`] keeps in the metadata.
pub(crate) const METADATA_PREFIX: &str = "loralei/";

const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// What may lie beside the file.
const CONFIGURATIONS: [&str; 8] = [
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    SCHEDULER,
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
];

/// The opened file.
#[derive(Clone, Debug)]
pub(crate) struct SingleFile {
    path: PathBuf,
    files: Arc<TensorFiles>,
    text_layout: TextLayout,
    /// Configurations that were read off the tensors.
    inferred: BTreeMap<&'static str, String>,
}

impl SingleFile {
    /// Opens the file and finds out what it is. `prediction` answers what no file can.
    ///
    /// # Errors
    /// Files of other models, by name; a file that lacks a part; [`ModelError::UnknownPrediction`].
    pub(crate) fn open(path: &Path, prediction: Option<Prediction>) -> Result<Self> {
        let files = Arc::new(TensorFiles::open(path)?);
        refuse_foreign(path, &files)?;
        let text_layout = text_layout(path, &files)?;
        for (part, prefix) in [("U-Net", UNET), ("autoencoder (VAE)", VAE)] {
            if !files.names().any(|name| name.starts_with(prefix)) {
                return Err(ModelError::MissingPart { path: path.display().to_string(), part });
            }
        }
        let mut this = Self { path: path.to_owned(), files, text_layout, inferred: BTreeMap::new() };
        for (relative, text) in [
            ("unet/config.json", infer::unet(&this.files, text_layout)),
            ("vae/config.json", infer::vae(&this.files)),
            ("text_encoder/config.json", infer::text_encoder(&this.files, text_layout)),
        ] {
            let text = text.map_err(|reason| ModelError::BadConfig { path: path.display().to_string(), reason })?;
            this.inferred.insert(relative, text);
        }
        if this.kept(SCHEDULER)?.is_none() {
            let told = prediction.or_else(|| infer::prediction(&this.files, text_layout));
            let Some(told) = told else {
                return Err(ModelError::UnknownPrediction { path: path.display().to_string() });
            };
            this.inferred.insert(SCHEDULER, infer::scheduler(&this.files, told));
        }
        Ok(this)
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
        for relative in CONFIGURATIONS {
            let key = format!("{METADATA_PREFIX}{relative}");
            if !metadata.contains_key(&key)
                && let Some(text) = self.kept(relative)?
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
    pub(crate) fn tokenizer(&self, vocab_size: usize) -> Result<TokenizerFiles> {
        let kept = |name: &str| self.kept(&format!("tokenizer/{name}"));
        let files = TokenizerFiles {
            path: self.label("tokenizer"),
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
            return Err(ModelError::BadTokenizer { path: self.label("tokenizer"), reason });
        }
        Ok(clip_vocabulary::tokenizer_files(match self.text_layout {
            TextLayout::Clip { .. } => "<|endoftext|>",
            TextLayout::OpenClip => "!",
        }))
    }

    pub(crate) fn unet(&self, config: &UnetConfig) -> WeightFiles {
        self.part(&unet_names(config))
    }

    pub(crate) fn vae(&self, config: &VaeConfig) -> WeightFiles {
        self.part(&vae_names(config))
    }

    /// A text encoder of `num_layers` layers. OpenCLIP's file has one layer more, which SD 2.x does not use.
    pub(crate) fn text_encoder(&self, num_layers: usize) -> WeightFiles {
        let mut weights = match self.text_layout {
            TextLayout::OpenClip => self.part(&open_clip_names(num_layers)),
            TextLayout::Clip { without_level: false } => self.part(&Names::clip()),
            TextLayout::Clip { without_level: true } => {
                let mut weights = WeightFiles::part_of(self.files.clone());
                let prefix = CLIP.trim_end_matches("text_model.");
                for name in self.files.names().filter(|name| name.starts_with(prefix)) {
                    weights.insert(name[prefix.len()..].to_owned(), name.to_owned(), None);
                }
                weights
            }
        };
        if self.text_layout == TextLayout::OpenClip {
            for (i, leaf) in (0..num_layers).flat_map(|i| [(i, "weight"), (i, "bias")]) {
                let (theirs, ours) = stacked(i, leaf);
                if self.files.info(&theirs).is_some() {
                    ours.into_iter()
                        .enumerate()
                        .for_each(|(third, name)| weights.insert(name, theirs.clone(), Some(third)));
                }
            }
        }
        weights
    }

    fn part(&self, names: &Names) -> WeightFiles {
        let mut weights = WeightFiles::part_of(self.files.clone());
        for name in self.files.names().filter(|name| name.starts_with(names.prefix())) {
            // What has no place in the network keeps its name, so that whoever loads it hears of it.
            let ours = names.diffusers(name).or_else(|| (!is_passenger(name)).then(|| name.to_owned()));
            if let Some(ours) = ours {
                weights.insert(ours, name.to_owned(), None);
            }
        }
        weights
    }
}

/// Tensors that checkpoints carry and no picture needs: OpenCLIP's head and last layer, training's leftovers.
fn is_passenger(name: &str) -> bool {
    name.starts_with(OPEN_CLIP) || name.starts_with("first_stage_model.loss.") || name.contains("model_ema")
}

fn text_layout(path: &Path, files: &TensorFiles) -> Result<TextLayout> {
    let has = |prefix: &str| files.names().any(|name| name.starts_with(prefix));
    if has(OPEN_CLIP) {
        Ok(TextLayout::OpenClip)
    } else if has(CLIP) {
        Ok(TextLayout::Clip { without_level: false })
    } else if has(CLIP.trim_end_matches("text_model.")) {
        Ok(TextLayout::Clip { without_level: true })
    } else {
        Err(ModelError::MissingPart { path: path.display().to_string(), part: "text encoder" })
    }
}

/// Other models by a tensor that only they have.
fn refuse_foreign(path: &Path, files: &TensorFiles) -> Result<()> {
    let has = |part: &str| files.names().any(|name| name.contains(part));
    let channels =
        files.info("model.diffusion_model.input_blocks.0.0.weight").and_then(|info| info.shape.get(1).copied());
    let found = if has("conditioner.embedders.") || has("model.diffusion_model.label_emb.") {
        ForeignModel::Sdxl
    } else if has("joint_blocks.") {
        ForeignModel::Sd3
    } else if has("double_blocks.") {
        ForeignModel::Flux
    } else if has(".lora_down.") || has(".lora_A.") || has(".lora_up.") || has("hada_w1") || has("lokr_w1") {
        ForeignModel::Adapter
    } else if channels == Some(9) {
        ForeignModel::Inpainting
    } else if let Some(channels) = channels.filter(|channels| *channels != 4) {
        ForeignModel::OtherInputs(channels)
    } else {
        return Ok(());
    };
    Err(ModelError::Foreign { path: path.display().to_string(), found })
}

//! Where the files of a base are: a diffusers folder, the program itself, or one checkpoint file.

use crate::config::{Prediction, ScheduleOverride, TextEncoderConfig, UnetConfig, VaeConfig};
use crate::error::{ForeignModel, ModelError};
use crate::prediction_origin::PredictionOrigin;
use crate::single_file::{SingleFile, names_prediction};
use crate::tokenizer::TokenizerFiles;
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::{TensorFile, TensorFiles};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the files of a base are.
#[derive(Clone, Debug)]
pub enum BaseSource {
    /// A diffusers folder.
    Folder(PathBuf),
    /// A checkpoint in one file: `.safetensors` or `.ckpt`, in the layout that Stable Diffusion was published in.
    File(PathBuf),
    /// Files in the program: a name for messages, and (path relative to the folder, content) of each.
    Bundled(&'static str, &'static [(&'static str, &'static [u8])]),
}

impl BaseSource {
    /// What is at a path: a file is a checkpoint, everything else is taken for a folder.
    pub fn at_path(path: &Path) -> Self {
        if path.is_file() { Self::File(path.to_owned()) } else { Self::Folder(path.to_owned()) }
    }
}

/// An opened source.
#[derive(Clone, Debug)]
pub(crate) enum BaseFiles {
    Folder(PathBuf),
    Bundled(&'static str, &'static [(&'static str, &'static [u8])]),
    Single(SingleFile),
}

/// One file of a base.
pub(crate) enum FileContent {
    Path(PathBuf),
    Bytes(&'static [u8]),
}

/// The folders of each text encoder and of its tokenizer, in order.
pub(crate) const TEXT_FOLDERS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// How deep folders of a base lie in each other; links could go round in a circle.
const MAX_DEPTH: usize = 4;

impl BaseFiles {
    pub(crate) fn open(source: BaseSource, prediction: Option<Prediction>) -> Result<Self> {
        let files = match source {
            BaseSource::Folder(folder) => {
                std::fs::read_dir(&folder)
                    .map_err(|error| ModelError::Unreadable { path: folder.clone(), source: error })?;
                Self::Folder(folder)
            }
            BaseSource::Bundled(name, files) => Self::Bundled(name, files),
            BaseSource::File(path) => Self::Single(SingleFile::open(&path, prediction)?),
        };
        files.refuse_foreign_pipeline()?;
        Ok(files)
    }

    /// Pipelines of other models, by the classes that `model_index.json` and the scheduler's configuration name.
    fn refuse_foreign_pipeline(&self) -> Result<()> {
        let class = |relative: &str| {
            let config: Value = serde_json::from_str(&self.text(relative)?.unwrap_or_default()).unwrap_or_default();
            Ok::<_, ModelError>(config.get("_class_name").and_then(Value::as_str).unwrap_or_default().to_owned())
        };
        let (pipeline, scheduler) = (class("model_index.json")?, class(SCHEDULER)?);
        let found = match ForeignModel::of_pipeline(&pipeline) {
            Some(found) if !pipeline.is_empty() => found,
            _ if scheduler.starts_with("EDM") => ForeignModel::Edm,
            _ => return Ok(()),
        };
        Err(self.foreign(found))
    }

    pub(crate) fn foreign(&self, found: ForeignModel) -> ModelError {
        ModelError::Foreign { path: self.name(), found }
    }

    /// Who says what the U-Net predicts.
    pub(crate) fn prediction_origin(&self) -> Result<PredictionOrigin> {
        if let Self::Single(file) = self {
            return Ok(file.prediction_origin());
        }
        let is_named = self.text(SCHEDULER)?.as_deref().is_some_and(names_prediction);
        Ok(if is_named { PredictionOrigin::SchedulerConfig } else { PredictionOrigin::Default })
    }

    /// What is stronger than the scheduler's configuration, or stands where that is silent.
    pub(crate) fn schedule(&self) -> ScheduleOverride {
        match self {
            Self::Single(file) => file.schedule(),
            _ => ScheduleOverride::default(),
        }
    }

    /// Whether the pipeline asks for zeros where a prompt is not given: unless it says otherwise, as diffusers has it.
    pub(crate) fn forces_zeros_for_empty_prompt(&self) -> Result<bool> {
        let index: Value = match self.text("model_index.json")? {
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => Value::Null,
        };
        Ok(index.get("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(true))
    }

    /// What messages call a file of it.
    pub(crate) fn label(&self, relative: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(relative).display().to_string(),
            Self::Bundled(name, _) => format!("{name}:{relative}"),
            Self::Single(file) => file.label(relative),
        }
    }

    /// What the user called it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Bundled(name, _) => (*name).to_owned(),
            Self::Single(file) => file.path().display().to_string(),
        }
    }

    /// All files by their places in the folder, sorted; hidden ones, such as what version control keeps, are left out. None for
    /// a single file.
    pub(crate) fn all(&self) -> Result<Vec<(String, FileContent)>> {
        let mut files = Vec::new();
        match self {
            Self::Single(_) => {}
            Self::Folder(folder) => list(folder, "", MAX_DEPTH, &mut files)?,
            Self::Bundled(_, bundled) => {
                files.extend(
                    bundled.iter().map(|(relative, bytes)| ((*relative).to_owned(), FileContent::Bytes(bytes))),
                );
            }
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(files)
    }

    fn missing(&self, relative: &str) -> ModelError {
        ModelError::MissingFile { path: self.name(), missing: relative.to_owned() }
    }

    /// Whether a folder, or the program, has the file.
    pub(crate) fn exists(&self, relative: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(relative).exists(),
            Self::Bundled(_, files) => files.iter().any(|(path, _)| *path == relative),
            Self::Single(_) => false,
        }
    }

    /// A small file at its place in a diffusers folder, `None` if there is none.
    pub(crate) fn text(&self, relative: &str) -> Result<Option<String>> {
        let bytes = match self {
            Self::Single(file) => return file.text(relative),
            _ if !self.exists(relative) => return Ok(None),
            Self::Folder(folder) => {
                let path = folder.join(relative);
                std::fs::read(&path).map_err(|source| ModelError::Unreadable { path, source })?
            }
            Self::Bundled(_, files) => {
                files.iter().find(|(path, _)| *path == relative).map(|(_, bytes)| bytes.to_vec()).unwrap_or_default()
            }
        };
        let reason = "it is not UTF-8 text".to_owned();
        String::from_utf8(bytes).map(Some).map_err(|_| ModelError::BadConfig { path: self.label(relative), reason })
    }

    /// A configuration that every base has.
    pub(crate) fn config<T>(&self, relative: &str, parse: impl Fn(&str, &str) -> Result<T>) -> Result<T> {
        let text = self.text(relative)?.ok_or_else(|| self.missing(relative))?;
        parse(&text, &self.label(relative))
    }

    /// The weights in `folder`: `STEM.safetensors`, its sharded index, their fp16 variants, or PyTorch's own format, in
    /// this order.
    fn tensors(&self, folder: &str, stem: &str, torch_stem: &str) -> Result<TensorFiles> {
        let names = ["safetensors", "safetensors.index.json", "fp16.safetensors", "safetensors.index.fp16.json"];
        let safe = names.iter().map(|ending| format!("{folder}/{stem}.{ending}"));
        let torch = ["bin", "fp16.bin"].iter().map(|ending| format!("{folder}/{torch_stem}.{ending}"));
        let candidates: Vec<String> = safe.chain(torch).collect();
        let Some(found) = candidates.iter().find(|path| self.exists(path)) else {
            return Err(self.missing(&candidates[0]));
        };
        match self {
            Self::Folder(folder) => Ok(TensorFiles::open(&folder.join(found))?),
            Self::Bundled(_, files) => {
                let bytes = files.iter().find(|(path, _)| path == found).map(|(_, bytes)| *bytes).unwrap_or_default();
                Ok(TensorFiles::from(TensorFile::from_bytes(&self.label(found), bytes)?))
            }
            Self::Single(_) => Err(self.missing(found)),
        }
    }

    pub(crate) fn unet(&self, config: &UnetConfig) -> Result<WeightFiles> {
        match self {
            Self::Single(file) => Ok(file.unet(config)),
            _ => self.tensors("unet", "diffusion_pytorch_model", "diffusion_pytorch_model").map(WeightFiles::from),
        }
    }

    pub(crate) fn vae(&self, config: &VaeConfig) -> Result<WeightFiles> {
        if let Self::Single(file) = self {
            return Ok(file.vae(config));
        }
        let files = self.tensors("vae", "diffusion_pytorch_model", "diffusion_pytorch_model")?;
        Ok(WeightFiles::renamed(files, current_vae_name))
    }

    /// Names begin below `text_model.`.
    pub(crate) fn text_encoder(&self, folder: &str, config: &TextEncoderConfig) -> Result<WeightFiles> {
        if let Self::Single(file) = self {
            return Ok(file.text_encoder(folder, config.num_hidden_layers));
        }
        let below = |name: &str| name.strip_prefix("text_model.").unwrap_or(name).to_owned();
        Ok(WeightFiles::renamed(self.tensors(folder, "model", "pytorch_model")?, below))
    }

    pub(crate) fn tokenizer(&self, folder: &str, vocab_size: usize) -> Result<TokenizerFiles> {
        if let Self::Single(file) = self {
            return file.tokenizer(folder, vocab_size);
        }
        let text = |name: &str| self.text(&format!("{folder}/{name}"));
        Ok(TokenizerFiles {
            path: self.label(folder),
            tokenizer_json: text("tokenizer.json")?,
            vocab: text("vocab.json")?,
            merges: text("merges.txt")?,
            config: text("tokenizer_config.json")?,
        })
    }
}

fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<(String, FileContent)>) -> Result<()> {
    let failed = |source| ModelError::Unreadable { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if path.is_file() {
            files.push((relative, FileContent::Path(path)));
        } else if path.is_dir() && depth > 0 {
            list(&path, &format!("{relative}/"), depth - 1, files)?;
        }
    }
    Ok(())
}

/// Before diffusers 0.16 the autoencoder's attention had other names.
fn current_vae_name(name: &str) -> String {
    let pairs = [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    pairs.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new))
}

//! A base checkpoint as a place to load networks from: a diffusers folder, or the same files in memory.
//!
//! Opening reads only the small files. Each network is loaded when it is wanted and dropped when it is not, because
//! together they are larger than what training needs at any one time.

use crate::config::{SchedulerConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use crate::error::ModelError;
use crate::lora::Injection;
use crate::noise_schedule::NoiseSchedule;
use crate::text_encoder::TextEncoder;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::unet::Unet;
use crate::vae::Vae;
use crate::weights::{Result, Source};
use candle_core::{DType, Device};
use loralei_adapter::keys::Component;
use loralei_adapter::{TensorFile, TensorFiles};
use std::path::{Path, PathBuf};

/// Where the files of a base are.
#[derive(Clone, Debug)]
pub enum BaseSource {
    /// A diffusers folder.
    Folder(PathBuf),
    /// Files in the program: a name for messages, and (path relative to the folder, content) of each.
    Bundled(&'static str, &'static [(&'static str, &'static [u8])]),
}

impl BaseSource {
    fn label(&self, relative: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(relative).display().to_string(),
            Self::Bundled(name, _) => format!("{name}:{relative}"),
        }
    }

    /// What the user called it.
    pub fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Bundled(name, _) => (*name).to_owned(),
        }
    }

    fn missing(&self, relative: &str) -> ModelError {
        ModelError::MissingFile { path: self.name(), missing: relative.to_owned() }
    }

    fn exists(&self, relative: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(relative).exists(),
            Self::Bundled(_, files) => files.iter().any(|(path, _)| *path == relative),
        }
    }

    fn text(&self, relative: &str) -> Result<Option<String>> {
        if !self.exists(relative) {
            return Ok(None);
        }
        let bytes = match self {
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

    fn config<T>(&self, relative: &str, parse: impl Fn(&str, &str) -> Result<T>) -> Result<T> {
        let text = self.text(relative)?.ok_or_else(|| self.missing(relative))?;
        parse(&text, &self.label(relative))
    }

    /// The weights in `folder`: `STEM.safetensors`, its sharded index, or their fp16 variants, in this order.
    fn tensors(&self, folder: &str, stem: &str) -> Result<TensorFiles> {
        let names = ["safetensors", "safetensors.index.json", "fp16.safetensors", "safetensors.index.fp16.json"];
        let candidates = names.map(|ending| format!("{folder}/{stem}.{ending}"));
        let Some(found) = candidates.iter().find(|path| self.exists(path)) else {
            return Err(self.missing(&candidates[0]));
        };
        match self {
            Self::Folder(folder) => Ok(TensorFiles::open(&folder.join(found))?),
            Self::Bundled(_, files) => {
                let bytes = files.iter().find(|(path, _)| path == found).map(|(_, bytes)| *bytes).unwrap_or_default();
                Ok(TensorFiles::from(TensorFile::from_bytes(&self.label(found), bytes)?))
            }
        }
    }
}

/// The folders of one text encoder.
struct TextSide {
    folder: &'static str,
    tokenizer: &'static str,
    config: TextEncoderConfig,
}

/// An opened base.
pub struct Base {
    source: BaseSource,
    unet: UnetConfig,
    vae: VaeConfig,
    scheduler: SchedulerConfig,
    text: Vec<TextSide>,
    dtype: DType,
    device: Device,
}

impl Base {
    /// Opens a base and reads its configurations; networks will be loaded as `dtype` on `device`.
    ///
    /// # Errors
    /// A file that is missing or makes no network.
    pub fn open(source: BaseSource, dtype: DType, device: &Device) -> Result<Self> {
        if let BaseSource::Folder(folder) = &source {
            std::fs::read_dir(folder)
                .map_err(|error| ModelError::Unreadable { path: folder.clone(), source: error })?;
        }
        let text = TextSide {
            folder: "text_encoder",
            tokenizer: "tokenizer",
            config: source.config("text_encoder/config.json", TextEncoderConfig::parse)?,
        };
        let unet = source.config("unet/config.json", UnetConfig::parse)?;
        let (width, context) = (text.config.hidden_size, unet.cross_attention_dim.at(0));
        if width != context {
            let reason = format!("cross_attention_dim is {context}, but the text encoder is {width} wide");
            return Err(ModelError::BadConfig { path: source.label("unet/config.json"), reason });
        }
        Ok(Self {
            unet,
            vae: source.config("vae/config.json", VaeConfig::parse)?,
            scheduler: source.config("scheduler/scheduler_config.json", SchedulerConfig::parse)?,
            text: vec![text],
            source,
            dtype,
            device: device.clone(),
        })
    }

    /// What the user called it.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// The U-Net's weight file on disk; none if it is bundled. Metadata records its hash.
    pub fn unet_file(&self) -> Option<PathBuf> {
        match &self.source {
            BaseSource::Folder(_) => {
                let tensors = self.source.tensors("unet", "diffusion_pytorch_model").ok()?;
                Some(Path::to_path_buf(tensors.path()))
            }
            BaseSource::Bundled(..) => None,
        }
    }

    /// `unet/config.json`.
    pub fn unet_config(&self) -> &UnetConfig {
        &self.unet
    }

    /// `vae/config.json`.
    pub fn vae_config(&self) -> &VaeConfig {
        &self.vae
    }

    /// Width of the text encoders, in order.
    pub fn text_widths(&self) -> Vec<usize> {
        self.text.iter().map(|side| side.config.hidden_size).collect()
    }

    /// Tokens that the text encoders take, marks included.
    pub fn text_encoder_positions(&self) -> usize {
        self.text.iter().map(|side| side.config.max_position_embeddings).min().unwrap_or_default()
    }

    /// The noising process.
    pub fn noise_schedule(&self) -> NoiseSchedule {
        NoiseSchedule::new(&self.scheduler)
    }

    /// kohya's prefix of the U-Net's modules.
    pub fn unet_prefix(&self) -> &'static str {
        Component::Unet.prefix()
    }

    /// kohya's prefix of each text encoder's modules, in order.
    pub fn text_prefixes(&self) -> Vec<&'static str> {
        let count = self.text.len();
        (0..count).filter_map(|i| Component::text_encoder(i, count)).map(Component::prefix).collect()
    }

    /// Refuses a picture size that the networks cannot halve often enough.
    ///
    /// # Errors
    /// [`ModelError::SizeDoesNotFit`], with the multiple that fits.
    pub fn check_size(&self, width_px: usize, height_px: usize) -> Result<()> {
        let multiple_px = self.vae.downsampling() * self.unet.total_downsampling();
        let fits = |size: usize| size > 0 && size.is_multiple_of(multiple_px);
        if fits(width_px) && fits(height_px) {
            return Ok(());
        }
        Err(ModelError::SizeDoesNotFit { width_px, height_px, multiple_px })
    }

    /// Loads the U-Net, with factors where `injection` says.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_unet(&self, injection: Option<&Injection>) -> Result<Unet> {
        let files = self.source.tensors("unet", "diffusion_pytorch_model")?;
        let source = Source::new(&files, self.dtype, &self.device, injection);
        let unet = Unet::new(&source.root(), &self.unet)?;
        source.finish(|_| false)?;
        Ok(unet)
    }

    /// Loads the autoencoder, always in f32: half precision overflows in some of them.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_vae(&self) -> Result<Vae> {
        let files = self.source.tensors("vae", "diffusion_pytorch_model")?;
        let source = Source::new(&files, DType::F32, &self.device, None);
        let vae = Vae::new(&source.root(), &self.vae)?;
        source.finish(|_| false)?;
        Ok(vae)
    }

    /// Number of text encoders.
    pub fn num_text_encoders(&self) -> usize {
        self.text.len()
    }

    /// Loads text encoder `index`, with factors where `injection` says.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_text_encoder(&self, index: usize, injection: Option<&Injection>) -> Result<TextEncoder> {
        let side = &self.text[index];
        let files = self.source.tensors(side.folder, "model")?;
        let prefix = if files.names().any(|name| name.starts_with("text_model.")) { "text_model." } else { "" };
        let source = Source::new(&files, self.dtype, &self.device, injection).with_prefix(prefix);
        let encoder = TextEncoder::new(&source.root(), &side.config)?;
        source.finish(|name| name.ends_with("position_ids"))?;
        Ok(encoder)
    }

    /// The tokenizer of text encoder `index`.
    ///
    /// # Errors
    /// Files that make no tokenizer.
    pub fn tokenizer(&self, index: usize) -> Result<Tokenizer> {
        let side = &self.text[index];
        let text = |name: &str| self.source.text(&format!("{}/{name}", side.tokenizer));
        let files = TokenizerFiles {
            path: self.source.label(side.tokenizer),
            tokenizer_json: text("tokenizer.json")?,
            vocab: text("vocab.json")?,
            merges: text("merges.txt")?,
            config: text("tokenizer_config.json")?,
        };
        Tokenizer::new(&files, side.config.max_position_embeddings)
    }
}

//! A base checkpoint as a place to load networks from.
//!
//! Opening reads only the small files. Each network is loaded when it is wanted and dropped when it is not, because
//! together they are larger than what training needs at any one time.

use crate::base_files::{BaseFiles, BaseSource};
use crate::config::{Prediction, SchedulerConfig, TextEncoderConfig, UnetConfig, VaeConfig};
use crate::error::ModelError;
use crate::lora::Injection;
use crate::noise_schedule::NoiseSchedule;
use crate::number_types::NumberTypes;
use crate::text_encoder::TextEncoder;
use crate::tokenizer::{Tokenizer, TokenizerFiles};
use crate::unet::Unet;
use crate::vae::Vae;
use crate::weight_files::WeightFiles;
use crate::weights::{Result, Source};
use candle_core::{DType, Device};
use loralei_adapter::BaseVersion;
use loralei_adapter::keys::Component;
use std::path::PathBuf;

/// The folders of one text encoder.
struct TextSide {
    folder: &'static str,
    tokenizer: &'static str,
    config: TextEncoderConfig,
}

/// An opened base.
pub struct Base {
    files: BaseFiles,
    unet: UnetConfig,
    vae: VaeConfig,
    scheduler: SchedulerConfig,
    text: Vec<TextSide>,
    types: NumberTypes,
    device: Device,
}

impl Base {
    /// Opens a base and reads its configurations; networks will be loaded in `types` (one [`DType`] stands for
    /// both) on `device`. `prediction` overrides what the base says that its U-Net predicts, and answers where it does not
    /// say.
    ///
    /// # Errors
    /// A file that is missing or makes no network, a base of another model.
    pub fn open(
        source: BaseSource,
        prediction: Option<Prediction>,
        types: impl Into<NumberTypes>,
        device: &Device,
    ) -> Result<Self> {
        let files = BaseFiles::open(source, prediction)?;
        let text = TextSide {
            folder: "text_encoder",
            tokenizer: "tokenizer",
            config: files.config("text_encoder/config.json", TextEncoderConfig::parse)?,
        };
        let unet = files.config("unet/config.json", UnetConfig::parse)?;
        let (width, context) = (text.config.hidden_size, unet.cross_attention_dim.at(0));
        if width != context {
            let reason = format!("cross_attention_dim is {context}, but the text encoder is {width} wide");
            return Err(ModelError::BadConfig { path: files.label("unet/config.json"), reason });
        }
        let mut scheduler = files.config("scheduler/scheduler_config.json", SchedulerConfig::parse)?;
        scheduler.prediction_type = prediction.unwrap_or(scheduler.prediction_type);
        Ok(Self {
            unet,
            vae: files.config("vae/config.json", VaeConfig::parse)?,
            scheduler,
            text: vec![text],
            files,
            types: types.into(),
            device: device.clone(),
        })
    }

    pub(crate) fn files(&self) -> &BaseFiles {
        &self.files
    }

    /// Where its networks compute.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the user called it.
    pub fn name(&self) -> String {
        self.files.name()
    }

    /// The file on disk that has the U-Net's weights; none if it is bundled. Metadata records its hash.
    pub fn unet_file(&self) -> Option<PathBuf> {
        match &self.files {
            BaseFiles::Bundled(..) => None,
            _ => Some(self.unet_weights().ok()?.path().to_owned()),
        }
    }

    /// A small file of the base at its place in a diffusers folder; `None` if it has none. What a single file does not
    /// have is made from its tensors.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn text_file(&self, relative: &str) -> Result<Option<String>> {
        self.files.text(relative)
    }

    /// The U-Net's tensors.
    ///
    /// # Errors
    /// Weight files that are missing or damaged.
    pub fn unet_weights(&self) -> Result<WeightFiles> {
        self.files.unet(&self.unet)
    }

    /// The autoencoder's tensors.
    ///
    /// # Errors
    /// As [`Base::unet_weights`].
    pub fn vae_weights(&self) -> Result<WeightFiles> {
        self.files.vae(&self.vae)
    }

    /// The tensors of text encoder `index`, named from below `text_model.` on.
    ///
    /// # Errors
    /// As [`Base::unet_weights`].
    pub fn text_encoder_weights(&self, index: usize) -> Result<WeightFiles> {
        let side = &self.text[index];
        self.files.text_encoder(side.folder, &side.config)
    }

    /// `text_encoder/config.json` of text encoder `index`.
    pub fn text_encoder_config(&self, index: usize) -> &TextEncoderConfig {
        &self.text[index].config
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

    /// The family, as the metadata of adapters names it. SD 2.x has a text encoder 1024 wide; every other width is named after
    /// SD 1.x, whose layout of keys it shares.
    pub fn version(&self) -> BaseVersion {
        match (self.text_widths().as_slice(), self.noise_schedule().prediction()) {
            ([1024], Prediction::VPrediction) => BaseVersion::SdV2V,
            ([1024], Prediction::Epsilon) => BaseVersion::SdV2,
            _ => BaseVersion::SdV1,
        }
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

    /// Side in pixels of the pictures that the base was trained on, as far as its configuration says: 512 otherwise.
    pub fn native_size_px(&self) -> usize {
        self.unet.sample_size.as_ref().map_or(512, |size| size.at(0) * self.vae.downsampling())
    }

    /// Refuses a picture size that the networks cannot halve often enough.
    ///
    /// # Errors
    /// [`ModelError::SizeDoesNotFit`], with the multiple that fits.
    pub fn check_size(&self, width_px: usize, height_px: usize) -> Result<()> {
        let multiple_px = self.size_multiple_px();
        let fits = |size: usize| size > 0 && size.is_multiple_of(multiple_px);
        if fits(width_px) && fits(height_px) {
            return Ok(());
        }
        Err(ModelError::SizeDoesNotFit { width_px, height_px, multiple_px })
    }

    /// Sides of pictures must be multiples of it: 64 for Stable Diffusion 1 and 2.
    pub fn size_multiple_px(&self) -> usize {
        self.vae.downsampling() * self.unet.total_downsampling()
    }

    /// Loads the U-Net, with factors where `injection` says.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_unet(&self, injection: Option<&Injection>) -> Result<Unet> {
        let files = self.unet_weights()?;
        let source = Source::new(&files, self.types, &self.device, injection);
        let unet = Unet::new(&source.root(), &self.unet)?;
        source.finish(|_| false)?;
        Ok(unet)
    }

    /// Loads the autoencoder, which always computes in f32: half precision overflows in some of them.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_vae(&self) -> Result<Vae> {
        let files = self.vae_weights()?;
        let source = Source::new(&files, self.types.with_activations(DType::F32), &self.device, None);
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
        let files = self.text_encoder_weights(index)?;
        let source = Source::new(&files, self.types, &self.device, injection);
        let encoder = TextEncoder::new(&source.root(), &self.text[index].config)?;
        source.finish(|name| name.ends_with("position_ids"))?;
        Ok(encoder)
    }

    /// The files of the tokenizer of text encoder `index`: the base's own, or CLIP's vocabulary for a single file.
    ///
    /// # Errors
    /// Files that cannot be read; a single file that needs another vocabulary than CLIP's.
    pub fn tokenizer_files(&self, index: usize) -> Result<TokenizerFiles> {
        let side = &self.text[index];
        self.files.tokenizer(side.tokenizer, side.config.vocab_size)
    }

    /// The tokenizer of text encoder `index`.
    ///
    /// # Errors
    /// As [`Base::tokenizer_files`], and files that make no tokenizer.
    pub fn tokenizer(&self, index: usize) -> Result<Tokenizer> {
        Tokenizer::new(&self.tokenizer_files(index)?, self.text[index].config.max_position_embeddings)
    }
}

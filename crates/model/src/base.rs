//! A base checkpoint as a place to load networks from.
//!
//! Opening reads only the small files. Each network is loaded when it is wanted and dropped when it is not, because
//! together they are larger than what training needs at any one time.

use crate::base_files::{BaseFiles, BaseSource, TEXT_FOLDERS};
use crate::config::{
    Prediction, ScheduleOverride, SchedulerConfig, TextEncoderConfig, TextOutput, UnetConfig, VaeConfig,
};
use crate::error::{ForeignModel, ModelError};
use crate::lora::Injection;
use crate::noise_schedule::NoiseSchedule;
use crate::number_types::NumberTypes;
use crate::original_layout::PROJECTION_WEIGHT;
use crate::prediction_origin::PredictionOrigin;
use crate::text_encoder::TextEncoder;
use crate::text_projection::is_transposed;
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
    output: TextOutput,
    /// Whether the projection of the pooled text lies the other way round than its name says.
    has_turned_projection: bool,
}

/// What one text encoder, or each of two, gives.
const ONE_TEXT_ENCODER: [TextOutput; 1] = [TextOutput::LastNormed];
const TWO_TEXT_ENCODERS: [TextOutput; 2] = [TextOutput::Penultimate, TextOutput::PenultimateAndPooled];

/// An opened base.
pub struct Base {
    files: BaseFiles,
    unet: UnetConfig,
    vae: VaeConfig,
    scheduler: SchedulerConfig,
    prediction_origin: PredictionOrigin,
    told: ScheduleOverride,
    text: Vec<TextSide>,
    zeros_for_empty_prompt: bool,
    warnings: Vec<String>,
    types: NumberTypes,
    device: Device,
}

impl Base {
    /// Opens a base and reads its configurations; networks will be loaded in `types` (one [`DType`] stands for
    /// both) on `device`. `schedule` overrides what the base says of its noising process, and answers where it does not
    /// say.
    ///
    /// # Errors
    /// A file that is missing or makes no network, a base of another model.
    pub fn open(
        source: BaseSource,
        schedule: impl Into<ScheduleOverride>,
        types: impl Into<NumberTypes>,
        device: &Device,
    ) -> Result<Self> {
        let schedule = schedule.into();
        let files = BaseFiles::open(source, schedule.prediction)?;
        let unet = files.config("unet/config.json", UnetConfig::parse)?;
        refuse_foreign_unet(&unet, &files)?;
        let mut warnings = Vec::new();
        let text = text_sides(&unet, &files, &mut warnings)?;
        check_text_widths(&text, &unet, &files)?;
        let scheduler = files.config("scheduler/scheduler_config.json", SchedulerConfig::parse)?;
        let told = schedule.prediction.map(|_| PredictionOrigin::Told);
        let prediction_origin = told.map_or_else(|| files.prediction_origin(), Ok)?;
        let (added, mut vae) = (unet.added_conditioning(), files.config("vae/config.json", VaeConfig::parse)?);
        if added.is_some() && vae.has_scale_of_sd1() {
            warnings.push(format!(
                "`{}` says `scaling_factor` 0.18215, which is that of SD 1.x and a common mistake: {} is used",
                files.label("vae/config.json"),
                VaeConfig::SDXL_SCALING_FACTOR
            ));
            vae.scaling_factor = VaeConfig::SDXL_SCALING_FACTOR;
        }
        Ok(Self {
            zeros_for_empty_prompt: added.is_some() && files.forces_zeros_for_empty_prompt()?,
            unet,
            vae,
            scheduler: scheduler.overridden(files.schedule()).overridden(schedule),
            prediction_origin,
            told: schedule,
            text,
            files,
            warnings,
            types: types.into(),
            device: device.clone(),
        })
    }

    /// What its user should know before using it.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether zeros stand for a prompt that is not given, instead of the encoded empty text.
    pub fn zeros_for_empty_prompt(&self) -> bool {
        self.zeros_for_empty_prompt
    }

    /// Width of the pooled text; `None` if there is none.
    pub fn pooled_width(&self) -> Option<usize> {
        self.unet.added_conditioning().map(|added| added.pooled_width)
    }

    /// Who says what it predicts.
    pub fn prediction_origin(&self) -> PredictionOrigin {
        self.prediction_origin
    }

    /// What it predicts, and who says so, in words: "velocity (v), zero terminal SNR, by a mark in its file".
    pub fn predicts(&self) -> String {
        let name = match self.scheduler.prediction_type {
            Prediction::Epsilon => "noise (epsilon)",
            Prediction::VPrediction => "velocity (v)",
        };
        let (snr, origin) = (self.scheduler.rescale_betas_zero_snr, self.prediction_origin);
        match (self.told.zero_terminal_snr, snr) {
            (Some(true), _) => format!("{name}, {origin}; zero terminal SNR, as told"),
            (Some(false), _) => format!("{name}, {origin}; no zero terminal SNR, as told"),
            (None, true) if self.told.prediction.is_some() => format!("{name}, {origin}; zero terminal SNR"),
            (None, true) => format!("{name}, zero terminal SNR, {origin}"),
            (None, false) => format!("{name}, {origin}"),
        }
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
        let mut weights = self.files.text_encoder(side.folder, &side.config)?;
        if side.has_turned_projection {
            weights.transpose(PROJECTION_WEIGHT);
        }
        Ok(weights)
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
            ([_, _], _) => BaseVersion::SdxlBaseV1,
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

    /// kohya's prefix and the path of every part of a text encoder that nobody reads.
    pub(crate) fn unread_text_layers(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.text_prefixes().into_iter().zip(&self.text).flat_map(|(prefix, side)| {
            TextEncoder::unread_paths(&side.config, side.output).into_iter().map(move |path| (prefix, path))
        })
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

    /// Loads text encoder `index`, with factors where `injection` says. Modules of an adapter for layers that nobody reads
    /// ([`Base::leaves_out`]) are left out of it.
    ///
    /// # Errors
    /// A weight file that does not fit its configuration.
    pub fn load_text_encoder(&self, index: usize, injection: Option<&Injection>) -> Result<TextEncoder> {
        let files = self.text_encoder_weights(index)?;
        let source = Source::new(&files, self.types, &self.device, injection);
        let TextSide { config, output, .. } = &self.text[index];
        let end = if output.is_pooled() { self.tokenizer(index)?.end() } else { 0 };
        let encoder = TextEncoder::new(&source.root(), config, *output, end)?;
        if let Some(injection) = injection {
            injection.leave_out(|module| self.leaves_out(module));
        }
        source.finish(|name| TextEncoder::leaves_out(name, config, *output))?;
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

/// Networks that only look like the U-Net of a base.
fn refuse_foreign_unet(unet: &UnetConfig, files: &BaseFiles) -> Result<()> {
    if let Some(found) = ForeignModel::of_channels(unet.in_channels) {
        return Err(files.foreign(found));
    }
    let [(first, _), (second, _)] = TEXT_FOLDERS;
    let config = |folder: &str| files.text(&format!("{folder}/config.json"));
    // The refiner sees the text of the second encoder alone.
    if unet.added_conditioning().is_some()
        && config(first)?.is_none()
        && let Some(text) = config(second)?
        && TextEncoderConfig::parse(&text, second)?.hidden_size == unet.cross_attention_dim.at(0)
    {
        return Err(files.foreign(ForeignModel::SdxlRefiner));
    }
    Ok(())
}

/// The text encoders that the U-Net has learned to listen to.
fn text_sides(unet: &UnetConfig, files: &BaseFiles, warnings: &mut Vec<String>) -> Result<Vec<TextSide>> {
    let outputs = if unet.added_conditioning().is_some() { &TWO_TEXT_ENCODERS[..] } else { &ONE_TEXT_ENCODER };
    let mut sides = Vec::new();
    for (output, (folder, tokenizer)) in outputs.iter().copied().zip(TEXT_FOLDERS) {
        let config = files.config(&format!("{folder}/config.json"), TextEncoderConfig::parse)?;
        let has_turned_projection = output.is_pooled() && is_transposed(&files.text_encoder(folder, &config)?)?;
        if has_turned_projection {
            warnings.push(format!(
                "`{}` has the text projection of its second text encoder transposed, as some programs write it: it is read                  by its numbers, not by its name",
                files.name()
            ));
        }
        sides.push(TextSide { folder, tokenizer, config, output, has_turned_projection });
    }
    Ok(sides)
}

/// The text that the U-Net expects must be what the encoders give.
fn check_text_widths(text: &[TextSide], unet: &UnetConfig, files: &BaseFiles) -> Result<()> {
    let wrong = |reason: String| Err(ModelError::BadConfig { path: files.label("unet/config.json"), reason });
    let (width, context) =
        (text.iter().map(|side| side.config.hidden_size).sum::<usize>(), unet.cross_attention_dim.at(0));
    if width != context {
        return wrong(format!("cross_attention_dim is {context}, but the text is {width} wide"));
    }
    let pools = text.iter().find(|side| side.output.is_pooled()).map(|side| &side.config);
    let pooled = pools.map(|config| config.projection_dim.unwrap_or(config.hidden_size));
    match (unet.added_conditioning(), pooled) {
        (Some(added), Some(pooled)) if added.pooled_width != pooled => wrong(format!(
            "projection_class_embeddings_input_dim leaves {} for the pooled text, which is {pooled} wide",
            added.pooled_width
        )),
        _ => Ok(()),
    }
}

//! The two sides of a base that pictures are drawn with, each loaded on its own: text first, then latents and pixels,
//! so that they need not be in memory together.

use crate::base::Base;
use crate::conditioner::{Conditioner, EncodedPrompts, TextStage};
use crate::conditioning::EncodedText;
use crate::drawing::{DrawingSettings, NoiseSource, draw_latents};
use crate::error::ModelError;
use crate::lora::{AdapterSet, Injection};
use crate::noise_schedule::NoiseSchedule;
use crate::ops::without_graph;
use crate::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use crate::unet::Unet;
use crate::vae::Vae;
use crate::weights::Result;
use candle_core::Tensor;
use loralei_adapter::Adapter;

/// An adapter, and how it takes part.
#[derive(Clone, Copy)]
pub struct AdapterUse<'a> {
    /// Its factors; of several adapters, their sum.
    pub adapter: &'a Adapter,
    /// Added to the weights once, instead of computed beside them each time.
    pub merged: bool,
}

impl AdapterUse<'_> {
    fn injection(&self, prefix: &str) -> Injection {
        if self.merged {
            Injection::merging(prefix, self.adapter)
        } else {
            Injection::from_adapter(prefix, self.adapter)
        }
    }

    /// Refuses modules that no component of the base answers for.
    fn check(&self, base: &Base) -> Result<()> {
        let prefixes: Vec<&str> = base.text_prefixes().into_iter().chain([base.unet_prefix()]).collect();
        let is_known = |module: &str| prefixes.iter().any(|prefix| module.starts_with(prefix));
        match self.adapter.modules.keys().find(|module| !is_known(module)) {
            Some(module) => Err(ModelError::ForeignAdapter { key: module.clone() }),
            None => Ok(()),
        }
    }
}

/// Text encoders with their tokenizers.
pub struct TextSide {
    stages: Vec<(Tokenizer, TextEncoder)>,
    factors: AdapterSet,
    absent_is_zeros: bool,
}

impl TextSide {
    /// Loads them.
    ///
    /// # Errors
    /// Weights that do not fit, an adapter of another base.
    pub fn load(base: &Base, adapter: Option<AdapterUse>) -> Result<Self> {
        if let Some(adapter) = &adapter {
            adapter.check(base)?;
        }
        let (mut stages, mut factors) = (Vec::new(), Vec::new());
        for (i, prefix) in base.text_prefixes().into_iter().enumerate() {
            let injection = adapter.map(|adapter| adapter.injection(prefix));
            let encoder = base.load_text_encoder(i, injection.as_ref())?;
            stages.push((base.tokenizer(i)?, encoder));
            factors.extend(injection.map_or(Ok(Vec::new()), |injection| injection.finish("text encoder"))?);
        }
        let absent_is_zeros = base.zeros_for_empty_prompt();
        Ok(Self { stages, factors: AdapterSet::new(factors), absent_is_zeros })
    }

    /// Multiplies what the adapter adds, unless it is merged.
    pub fn set_strength(&self, strength: f32) {
        self.factors.set_strength(strength);
    }

    /// Encodes a prompt and its negative prompt, if there is one; `clip_skip` as [`Conditioner::new`] has it.
    ///
    /// # Errors
    /// As there, and text that cannot be encoded.
    pub fn encode(&self, prompt: &str, negative: Option<&str>, clip_skip: usize) -> Result<EncodedPrompts> {
        let conditioner = self.conditioner(clip_skip)?;
        without_graph(|| conditioner.encode(prompt, negative))
    }

    /// One text by itself: (1, 77 n, d).
    ///
    /// # Errors
    /// Text that cannot be encoded.
    pub(crate) fn encode_alone(&self, prompt: &str) -> Result<EncodedText> {
        let conditioner = self.conditioner(1)?;
        without_graph(|| conditioner.encode_alone(prompt))
    }

    fn conditioner(&self, clip_skip: usize) -> Result<Conditioner<'_>> {
        let stages = self.stages.iter().map(|(tokenizer, encoder)| TextStage { tokenizer, encoder });
        Ok(Conditioner::new(stages.collect(), clip_skip)?.with_zeros_for_absent(self.absent_is_zeros))
    }
}

/// U-Net and autoencoder.
pub struct ImageSide {
    unet: Unet,
    vae: Vae,
    schedule: NoiseSchedule,
    factors: AdapterSet,
    latent_channels: usize,
    downsampling: usize,
}

impl ImageSide {
    /// Loads them.
    ///
    /// # Errors
    /// As [`TextSide::load`].
    pub fn load(base: &Base, adapter: Option<AdapterUse>) -> Result<Self> {
        if let Some(adapter) = &adapter {
            adapter.check(base)?;
        }
        let injection = adapter.map(|adapter| adapter.injection(base.unet_prefix()));
        let unet = base.load_unet(injection.as_ref())?;
        let factors = injection.map_or(Ok(Vec::new()), |injection| injection.finish("U-Net"))?;
        Ok(Self {
            unet,
            vae: base.load_vae()?,
            schedule: base.noise_schedule(),
            factors: AdapterSet::new(factors),
            latent_channels: base.vae_config().latent_channels,
            downsampling: base.vae_config().downsampling(),
        })
    }

    /// Multiplies what the adapter adds, unless it is merged.
    pub fn set_strength(&self, strength: f32) {
        self.factors.set_strength(strength);
    }

    /// Draws latents for pictures of `width_px` x `height_px` that share everything but prompt and noise: see
    /// [`draw_latents`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn draw(
        &self,
        prompts: &[EncodedPrompts],
        noise: &NoiseSource,
        (width_px, height_px): (usize, usize),
        settings: &DrawingSettings,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Tensor> {
        let size = (self.latent_channels, height_px / self.downsampling, width_px / self.downsampling);
        Ok(draw_latents(&self.unet, &self.schedule, prompts, noise, size, settings, progress)?)
    }

    /// The pixels of each picture, (h, w, 3) row-major, about in [-1, 1]. One at a time: the decoder's maps are large.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<Vec<f32>>> {
        let decoded = (0..latents.dim(0)?)
            .map(|i| without_graph(|| self.vae.decode(&latents.narrow(0, i, 1)?))?.flatten_all()?.to_vec1::<f32>());
        Ok(decoded.collect::<candle_core::Result<_>>()?)
    }
}

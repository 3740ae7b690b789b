//! Pictures of prompts and seeds, by the networks at hand, a few at a time.

use candle_core::Tensor;
use loralei_model::{
    Base, Conditioner, DrawingSettings, EncodedPrompts, NoiseSchedule, NoiseSource, TextEncoder, TextStage, Unet, Vae,
    draw_latents, ops,
};
use loralei_picture::Picture;

use crate::config::SamplesConfig;
use crate::error::TrainError;

/// Latents that are drawn together: as many pictures as this is times theirs, so that large ones come one by one.
pub(crate) const LATENTS_AT_ONCE: usize = 64 * 64;

/// What is needed to draw.
pub(crate) struct Drawer<'a> {
    pub(crate) base: &'a Base,
    pub(crate) unet: &'a Unet,
    pub(crate) schedule: &'a NoiseSchedule,
    pub(crate) vae: &'a Vae,
    /// Width and height.
    pub(crate) size_px: (usize, usize),
    /// Sampler, steps, guidance, negative prompt; neither its prompts nor its seed.
    pub(crate) settings: &'a SamplesConfig,
}

impl Drawer<'_> {
    /// The prompts as the U-Net takes them.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub(crate) fn encode(
        &self,
        encoders: &[&TextEncoder],
        prompts: &[String],
    ) -> Result<Vec<EncodedPrompts>, TrainError> {
        let tokenizers = (0..encoders.len()).map(|i| self.base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
        let stages = tokenizers.iter().zip(encoders).map(|(tokenizer, encoder)| TextStage { tokenizer, encoder });
        let conditioner = Conditioner::new(stages.collect(), 1)?;
        let encode = |prompt: &String| conditioner.encode(prompt, &self.settings.negative);
        Ok(ops::without_graph(|| prompts.iter().map(encode).collect::<Result<Vec<_>, _>>())?)
    }

    /// How many are drawn together.
    pub(crate) fn at_once(&self) -> usize {
        let (_, height, width) = self.latents();
        (LATENTS_AT_ONCE / (height * width).max(1)).max(1)
    }

    /// A picture of each of `prompts`, with the seed in the same place. `progress` is told of steps made.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub(crate) fn pictures(
        &self,
        prompts: &[EncodedPrompts],
        seeds: Vec<u64>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Picture>, TrainError> {
        let settings = DrawingSettings {
            sampler: self.settings.sampler.0,
            steps: self.settings.steps,
            guidance_scale: self.settings.guidance_scale,
        };
        let mut pictures = Vec::with_capacity(prompts.len());
        let mut seeds = seeds.into_iter();
        // Prompts of another number of chunks cannot be drawn together.
        let alike = prompts.chunk_by(|a, b| a.prompt.dims() == b.prompt.dims());
        for prompts in alike.flat_map(|prompts| prompts.chunks(self.at_once())) {
            let noise = NoiseSource::Seeds(seeds.by_ref().take(prompts.len()).collect());
            let step = &mut |_| progress(prompts.len());
            let latents = draw_latents(self.unet, self.schedule, prompts, &noise, self.latents(), &settings, step)?;
            for j in 0..prompts.len() {
                pictures.push(self.decode(&latents.narrow(0, j, 1)?)?);
            }
        }
        Ok(pictures)
    }

    /// Channels, height and width.
    fn latents(&self) -> (usize, usize, usize) {
        let (vae, (width_px, height_px)) = (self.base.vae_config(), self.size_px);
        let side = vae.downsampling();
        (vae.latent_channels, height_px / side, width_px / side)
    }

    fn decode(&self, latents: &Tensor) -> Result<Picture, TrainError> {
        let pixels = ops::without_graph(|| self.vae.decode(latents))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Picture::from_unit(&pixels, (self.size_px.0 as u32, self.size_px.1 as u32))?)
    }
}

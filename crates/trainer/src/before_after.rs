//! The same prompts and seeds drawn by the base and by the base with what was learned, side by side.

use std::path::PathBuf;

use candle_core::Tensor;
use loralei_model::{
    Base, Conditioner, DrawingSettings, EncodedPrompts, NoiseSource, TextEncoder, TextStage, Vae, draw_latents, ops,
    without_factors,
};
use loralei_picture::{Grid, Picture};

use crate::config::SamplesConfig;
use crate::error::TrainError;
use crate::event::Event;
use crate::network::Network;
use crate::plan::Plan;

/// Latents that are drawn together: as many pictures as this is times theirs, so that large ones come one by one.
pub(crate) const LATENTS_AT_ONCE: usize = 64 * 64;

/// How much the pictures changed.
#[derive(Debug, Clone, PartialEq)]
pub struct BeforeAfter {
    /// The grid.
    pub path: PathBuf,
    /// Mean absolute difference of the pictures whose prompt has the trigger, of the range from black to white; `None`
    /// if there are none.
    pub changed_with_trigger: Option<f64>,
    /// The same of the other pictures.
    pub changed_without_trigger: Option<f64>,
}

/// What is needed to draw.
pub(crate) struct SampleRun<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) samples: &'a SamplesConfig,
    pub(crate) base: &'a Base,
    pub(crate) network: &'a Network,
}

impl SampleRun<'_> {
    /// Draws every prompt twice and writes `before-after.png`.
    ///
    /// # Errors
    /// Networks that cannot be loaded, a disk that cannot be written.
    pub(crate) fn draw(&self, events: &mut dyn FnMut(Event)) -> Result<BeforeAfter, TrainError> {
        let steps = 2 * self.samples.steps * self.samples.prompts.len();
        events(Event::PhaseStarted { name: "drawing before and after".into(), total: Some(steps as u64) });
        let vae = self.base.load_vae()?;
        // Text encoders that are not trained were dropped once the captions were encoded.
        let num_loaded = self.network.text_encoders().len();
        let more = (num_loaded..self.base.num_text_encoders()).map(|i| self.base.load_text_encoder(i, None));
        let more = more.collect::<Result<Vec<_>, _>>()?;
        let encoders: Vec<&TextEncoder> = self.network.text_encoders().iter().chain(&more).collect();
        let mut done = 0;
        let mut progress = |steps: usize| {
            done += steps as u64;
            events(Event::PhaseProgress { done });
        };
        let before = without_factors(|| self.pictures(&encoders, &vae, &mut progress))?;
        let after = self.pictures(&encoders, &vae, &mut progress)?;
        let path = self.plan.output_folder.join("before-after.png");
        let prompts = &self.samples.prompts;
        let rows = prompts.iter().zip(before.iter().zip(&after));
        let grid = Grid::before_after(rows.map(|(prompt, (b, a))| (prompt.clone(), vec![b.clone()], vec![a.clone()])))?;
        let bytes = grid.render()?.to_png(None)?;
        loralei_adapter::atomic_write_bytes(&path, &bytes)?;
        events(Event::Saved { path: path.clone(), num_bytes: bytes.len() as u64 });
        let change = |has_trigger: bool| -> Result<Option<f64>, TrainError> {
            let wanted = (0..prompts.len()).filter(|i| self.has_trigger(&prompts[*i]) == has_trigger);
            let changes = wanted.map(|i| before[i].mean_abs_difference(&after[i])).collect::<Result<Vec<_>, _>>()?;
            Ok((!changes.is_empty()).then(|| changes.iter().sum::<f64>() / changes.len() as f64))
        };
        Ok(BeforeAfter { path, changed_with_trigger: change(true)?, changed_without_trigger: change(false)? })
    }

    fn has_trigger(&self, prompt: &str) -> bool {
        self.plan.trigger.as_deref().is_none_or(|trigger| prompt.contains(trigger))
    }

    /// One picture of each prompt.
    fn pictures(
        &self,
        encoders: &[&TextEncoder],
        vae: &Vae,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Picture>, TrainError> {
        let (samples, side) = (self.samples, self.base.vae_config().downsampling());
        let size = (self.base.vae_config().latent_channels, self.plan.height_px / side, self.plan.width_px / side);
        let settings = DrawingSettings {
            sampler: samples.sampler.0,
            steps: samples.steps,
            guidance_scale: samples.guidance_scale,
        };
        let at_once = (LATENTS_AT_ONCE / (size.1 * size.2)).max(1);
        let encoded = self.encode(encoders)?;
        let mut pictures = Vec::with_capacity(encoded.len());
        // Prompts of another number of chunks cannot be drawn together.
        let runs = encoded.chunk_by(|a, b| a.prompt.dims() == b.prompt.dims()).flat_map(|run| run.chunks(at_once));
        for prompts in runs {
            let first = pictures.len() as u64;
            let seeds = (first..first + prompts.len() as u64).map(|i| samples.seed.wrapping_add(i)).collect();
            let (unet, schedule) = (self.network.unet(), self.network.schedule());
            let noise = NoiseSource::Seeds(seeds);
            let latents = draw_latents(unet, schedule, prompts, &noise, size, &settings, &mut |_| {
                progress(prompts.len());
            })?;
            for j in 0..prompts.len() {
                pictures.push(self.decode(vae, &latents.narrow(0, j, 1)?)?);
            }
        }
        Ok(pictures)
    }

    fn encode(&self, encoders: &[&TextEncoder]) -> Result<Vec<EncodedPrompts>, TrainError> {
        let tokenizers = (0..encoders.len()).map(|i| self.base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
        let stages = tokenizers.iter().zip(encoders).map(|(tokenizer, encoder)| TextStage { tokenizer, encoder });
        let conditioner = Conditioner::new(stages.collect(), 1)?;
        let encode = |prompt: &String| conditioner.encode(prompt, &self.samples.negative);
        let encoded = ops::without_graph(|| self.samples.prompts.iter().map(encode).collect::<Result<Vec<_>, _>>())?;
        Ok(encoded)
    }

    fn decode(&self, vae: &Vae, latents: &Tensor) -> Result<Picture, TrainError> {
        let pixels = ops::without_graph(|| vae.decode(latents))?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Picture::from_unit(&pixels, (self.plan.width_px as u32, self.plan.height_px as u32))?)
    }
}

//! Drawing a picture: noise, the sampler's steps with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598),
//! the autoencoder's decoder.

use crate::conditioner::EncodedPrompts;
use crate::conditioning::{Conditioning, EncodedText, PictureSizes};
use crate::noise_schedule::NoiseSchedule;
use crate::ops::without_graph;
use crate::random::{Draw, Purpose};
use crate::sampler::{Sampler, SamplerKind};
use crate::unet::{Checkpointing, Unet};
use candle_core::{Device, Result, Tensor};

/// How pictures are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawingSettings {
    /// Which sampler.
    pub sampler: SamplerKind,
    /// 1 to 1000.
    pub steps: usize,
    /// How far the prompt's prediction is exaggerated against the negative prompt's; at 1 or less only the prompt's is
    /// made, which takes half the time.
    pub guidance_scale: f64,
    /// What the network is told about the size of the pictures, if it listens.
    pub sizes: PictureSizes,
}

/// The noise of pictures that are drawn together.
#[derive(Clone, Debug)]
pub enum NoiseSource {
    /// A seed for each: the same seed gives the same picture, whatever it is drawn together with.
    Seeds(Vec<u64>),
    /// Given numbers, of variance 1.
    Given {
        /// What the pictures begin as: (n, 4, h, w).
        latents: Tensor,
        /// What the sampler adds at each step: (steps, n, 4, h, w). Drawn from the picture's number if absent.
        steps: Option<Tensor>,
    },
}

impl NoiseSource {
    fn num_pictures(&self) -> Result<usize> {
        match self {
            Self::Seeds(seeds) => Ok(seeds.len()),
            Self::Given { latents, .. } => latents.dim(0),
        }
    }

    /// (n, 4, h, w).
    pub(crate) fn initial(&self, shape: (usize, usize, usize)) -> Result<Tensor> {
        match self {
            Self::Seeds(seeds) => drawn(seeds, 0, Purpose::InitialNoise, shape),
            Self::Given { latents, .. } => Ok(latents.clone()),
        }
    }

    pub(crate) fn at_step(&self, step: usize, shape: (usize, usize, usize)) -> Result<Tensor> {
        match self {
            Self::Seeds(seeds) => drawn(seeds, step, Purpose::SamplerNoise, shape),
            Self::Given { steps: Some(steps), .. } => steps.get(step),
            Self::Given { latents, steps: None } => {
                let numbers: Vec<u64> = (0..latents.dim(0)? as u64).collect();
                drawn(&numbers, step, Purpose::SamplerNoise, shape)
            }
        }
    }
}

fn drawn(seeds: &[u64], step: usize, purpose: Purpose, (c, h, w): (usize, usize, usize)) -> Result<Tensor> {
    let of_each = seeds.iter().flat_map(|seed| Draw::new(*seed, step as u64, 0, purpose).standard_normal(c * h * w));
    Tensor::from_vec(of_each.collect::<Vec<f32>>(), (seeds.len(), c, h, w), &Device::Cpu)
}

/// Where a drawing is before it makes a step.
pub struct DrawingStop<'a> {
    /// How many steps are made.
    pub step: usize,
    /// The noisy latents: (n, 4, h, w), f32.
    pub latents: &'a Tensor,
    /// What is predicted for them, guidance included: (n, 4, h, w), f32.
    pub prediction: &'a Tensor,
    sampler: &'a Sampler,
}

impl DrawingStop<'_> {
    /// What the network takes for x_0: (n, 4, h, w), f32.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn clean(&self) -> Result<Tensor> {
        self.sampler.clean(self.latents, self.prediction)
    }
}

/// Walks from noise to latents for `prompts`, one for each picture and all of one length; `latent_size` is (channels,
/// height, width). `progress` is told the steps that are done. Returns (n, 4, h, w), f32, scaled.
///
/// # Errors
/// If shapes do not fit.
pub fn draw_latents(
    unet: &Unet,
    schedule: &NoiseSchedule,
    prompts: &[EncodedPrompts],
    noise: &NoiseSource,
    latent_size: (usize, usize, usize),
    settings: &DrawingSettings,
    progress: &mut dyn FnMut(usize),
) -> Result<Tensor> {
    draw_latents_observed(unet, schedule, prompts, noise, latent_size, settings, &mut |stop| {
        progress(stop.step + 1);
        Ok(())
    })
}

/// The same, with a look at each stop: `observe` is called between the prediction and the step.
///
/// # Errors
/// If shapes do not fit, and what `observe` returns.
pub fn draw_latents_observed(
    unet: &Unet,
    schedule: &NoiseSchedule,
    prompts: &[EncodedPrompts],
    noise: &NoiseSource,
    latent_size: (usize, usize, usize),
    settings: &DrawingSettings,
    observe: &mut dyn FnMut(&DrawingStop) -> Result<()>,
) -> Result<Tensor> {
    let n = noise.num_pictures()?;
    if n != prompts.len() {
        candle_core::bail!("{} prompts for noise of {n} pictures", prompts.len());
    }
    let guided = settings.guidance_scale > 1.0;
    let negative = prompts.iter().map(|p| &p.negative).filter(|_| guided);
    let text = EncodedText::cat(&negative.chain(prompts.iter().map(|p| &p.prompt)).collect::<Vec<_>>())?;
    let num_rows = text.context.dim(0)?; // 2n or n
    let time_ids = PictureSizes::tensor(&vec![settings.sizes; num_rows])?;
    let conditioning = Conditioning::new(text, Some(time_ids)); // (2n or n, 77 k, d)
    let mut sampler = Sampler::new(settings.sampler, schedule, settings.steps);
    let mut latents = sampler.begin(&noise.initial(latent_size)?)?;
    let mut step = 0;
    while let Some(timestep) = sampler.timestep() {
        let prediction = without_graph(|| {
            let both = if guided { Tensor::cat(&[&latents, &latents], 0)? } else { latents.clone() };
            let times = vec![timestep; num_rows];
            unet.forward(&both, &times, &conditioning, Checkpointing::None)
        })?;
        let prediction = if guided {
            let (without, with) = (prediction.narrow(0, 0, n)?, prediction.narrow(0, n, n)?);
            (&without + ((with - &without)? * settings.guidance_scale)?)?
        } else {
            prediction
        };
        observe(&DrawingStop { step, latents: &latents, prediction: &prediction, sampler: &sampler })?;
        let fresh = sampler.wants_noise().then(|| noise.at_step(step, latent_size)).transpose()?;
        latents = sampler.step(&latents, &prediction, fresh.as_ref())?;
        step += 1;
    }
    Ok(latents)
}

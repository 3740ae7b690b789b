//! How much an adapter changes what its base predicts, with its trigger and without: what changes without it has leaked.
//!
//! For a set P of prompts, L(P) is the mean of ||e' - e||^2 / ||e||^2 over fixed noisy latents and the prompts of P, with e
//! the prediction of the base and e' that with the adapter. The leak is L(without the trigger) / L(with it): 0 is an adapter
//! that does nothing unless called, 1 one that does not listen for its trigger. What is compared is what the network predicts, noise
//! or velocity, so figures of bases that predict differently are not to be held against each other.

use candle_core::{DType, Device, Tensor};
use loralei_model::{Checkpointing, Conditioning, Draw, EncodedText, NoiseSchedule, Purpose, ops, without_factors};

use crate::drawer::LATENTS_AT_ONCE;
use crate::error::TrainError;
use crate::network::{Network, Text, tensor};

/// What is drawn at a point; the numbers are part of every score.
const NOISE: u64 = 0;
const TIMESTEP: u64 = 1;
const LATENTS: u64 = 2;

/// The places at which predictions are compared.
#[derive(Debug, Clone)]
pub struct LeakProbes {
    /// Scaled latents: (n, 4, h, w), f32.
    pub latents: Tensor,
    /// Standard normal: (n, 4, h, w), f32.
    pub noise: Tensor,
    /// n of them, ascending, one in each n-th of the noise schedule.
    pub timesteps: Vec<i64>,
}

impl LeakProbes {
    /// `num_points` places at latents of pictures: scaled, (m, 4, h, w), f32, on the processor, each in its turn. Noise and
    /// timesteps are functions of `seed`, the same for all prompts.
    ///
    /// # Errors
    /// If `latents` are not of this shape.
    pub fn new(latents: &Tensor, num_points: usize, schedule: &NoiseSchedule, seed: u64) -> Result<Self, TrainError> {
        let (m, channels, h, w) = latents.dims4()?;
        let of_point: Vec<u32> = (0..num_points).map(|point| (point % m.max(1)) as u32).collect();
        let of_point = Tensor::from_vec(of_point, num_points, &Device::Cpu)?;
        let noise = (0..num_points).flat_map(|i| at(seed, i, NOISE).standard_normal(channels * h * w)).collect();
        // One timestep for each stretch of the schedule: the change differs most between early and late ones.
        let bound = |i: usize| (i * schedule.num_timesteps() / num_points.max(1)) as i64;
        let timestep = |i: usize| at(seed, i, TIMESTEP).integers(bound(i)..bound(i + 1).max(bound(i) + 1), 1);
        Ok(Self {
            latents: latents.index_select(&of_point, 0)?,
            noise: tensor(noise, (num_points, channels, h, w))?,
            timesteps: (0..num_points).flat_map(timestep).collect(),
        })
    }

    /// `num_points` places at standard normal latents, 4 x `height` x `width`, where there are no pictures.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn without_pictures(
        (height, width): (usize, usize),
        num_points: usize,
        schedule: &NoiseSchedule,
        seed: u64,
    ) -> Result<Self, TrainError> {
        let normal = (0..num_points).flat_map(|i| at(seed, i, LATENTS).standard_normal(4 * height * width)).collect();
        Self::new(&tensor(normal, (num_points, 4, height, width))?, num_points, schedule, seed)
    }
}

fn at(seed: u64, point: usize, what: u64) -> Draw {
    Draw::new(seed, point as u64, what, Purpose::LeakScore)
}

/// A prompt that is asked with and without the adapter.
pub struct LeakPrompt {
    /// As the user wrote it.
    pub prompt: String,
    /// Whether the adapter is meant to answer to it.
    pub has_trigger: bool,
    /// The same for the network, a batch of one: tokens where the network has text encoders with factors.
    pub text: Text,
}

/// What one prompt gave.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptChange {
    /// The prompt.
    pub prompt: String,
    /// Whether the adapter is meant to answer to it.
    pub has_trigger: bool,
    /// Mean of ||e' - e||^2 / ||e||^2 over the places.
    pub change: f64,
}

/// The change with and without the trigger.
#[derive(Debug, Clone, PartialEq)]
pub struct LeakScore {
    /// Mean over the prompts with the trigger; 0 if there are none.
    pub with_trigger: f64,
    /// Mean over the prompts without it; 0 if there are none.
    pub without_trigger: f64,
    /// Each prompt, in the order given.
    pub per_prompt: Vec<PromptChange>,
}

impl LeakScore {
    /// Compares `network` with and without its factors for every prompt at every place. `progress` is called with the number
    /// of comparisons done, of `prompts.len()` times the number of places.
    ///
    /// # Errors
    /// [`TrainError::NonFinitePrediction`]; shapes that do not fit.
    pub fn measure(
        network: &Network,
        probes: &LeakProbes,
        prompts: &[LeakPrompt],
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, TrainError> {
        let noisy = network.schedule().add_noise(&probes.latents, &probes.noise, &probes.timesteps)?;
        let noisy = noisy.to_device(network.device())?;
        let num_places = probes.timesteps.len();
        let mut per_prompt = Vec::with_capacity(prompts.len());
        for LeakPrompt { prompt, has_trigger, text } in prompts {
            let done_before = per_prompt.len() * num_places;
            let mut progress = |done: usize| progress((done_before + done) as u64);
            let changes = ops::without_graph(|| changes(network, &noisy, &probes.timesteps, text, &mut progress))?;
            let change = mean(changes.into_iter());
            if !change.is_finite() {
                return Err(TrainError::NonFinitePrediction { prompt: prompt.clone() });
            }
            per_prompt.push(PromptChange { prompt: prompt.clone(), has_trigger: *has_trigger, change });
        }
        let over =
            |has_trigger: bool| mean(per_prompt.iter().filter(|of| of.has_trigger == has_trigger).map(|of| of.change));
        Ok(Self { with_trigger: over(true), without_trigger: over(false), per_prompt })
    }

    /// The change without the trigger over that with it; `None` if the adapter changes nothing with it.
    pub fn leak(&self) -> Option<f64> {
        (self.with_trigger > 0.0).then(|| self.without_trigger / self.with_trigger)
    }
}

/// ||e' - e||^2 / ||e||^2 at each place, for one prompt.
fn changes(
    network: &Network,
    noisy: &Tensor,
    timesteps: &[i64],
    text: &Text,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, TrainError> {
    let (base_text, text) = (without_factors(|| network.encoded(text))?, network.encoded(text)?);
    let (n, _, h, w) = noisy.dims4()?;
    let at_once = (LATENTS_AT_ONCE / (h * w)).max(1);
    let mut changes = Vec::with_capacity(n);
    for start in (0..n).step_by(at_once) {
        let b = at_once.min(n - start);
        let latents = noisy.narrow(0, start, b)?;
        let times: Vec<f64> = timesteps[start..start + b].iter().map(|t| *t as f64).collect();
        let predict = |text: &EncodedText| {
            let conditioning = Conditioning::new(text.repeated(b)?, network.whole_sizes(b, (h, w))?);
            let prediction = network.unet().forward(&latents, &times, &conditioning, Checkpointing::None)?;
            prediction.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>() // (b, 4 h w)
        };
        let (base, adapted) = (without_factors(|| predict(&base_text))?, predict(&text)?);
        changes.extend(base.iter().zip(&adapted).map(|(base, adapted)| relative_change(base, adapted)));
        progress(start + b);
    }
    Ok(changes)
}

/// ||adapted - base||^2 / ||base||^2, summed in f64. Not finite where a number is not.
pub(crate) fn relative_change(base: &[f32], adapted: &[f32]) -> f64 {
    let difference = base.iter().zip(adapted).map(|(e, changed)| (f64::from(*changed) - f64::from(*e)).powi(2));
    difference.sum::<f64>() / base.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>()
}

/// 0 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

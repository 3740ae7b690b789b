//! DDIM without added noise (Song et al. 2020, arXiv 2010.02502, equation 12 with sigma = 0).

use super::time_grid::{LEAST_ALPHA_CUMPROD, Mix, timesteps};
use super::{Estimate, Solver, Walk, combine};
use crate::config::{Prediction, TimestepSpacing};
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};

pub(super) struct Ddim {
    /// Where each step ends.
    next: Vec<Mix>,
    clip: Option<f64>,
}

impl Ddim {
    /// With diffusers' reading of the keys: a step ends a fixed number of timesteps lower, not at the next grid point.
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Self) {
        let mut times = timesteps(schedule, num_steps, TimestepSpacing::Leading, false);
        times.iter_mut().for_each(|t| *t = t.round_ties_even());
        let config = schedule.config();
        let ends_clean = config.set_alpha_to_one.unwrap_or(true);
        let last = if ends_clean { Mix::CLEAN } else { Mix::of_alpha_cumprod(schedule.alpha_cumprod(0)) };
        let gap = (schedule.num_timesteps() / num_steps) as f64;
        // A velocity gives x_0 even where there is no signal; from the noise alone it cannot be told. diffusers divides by 0.
        let least = if schedule.prediction() == Prediction::Epsilon { LEAST_ALPHA_CUMPROD } else { 0.0 };
        let at = |t: f64| Mix::of_alpha_cumprod(schedule.alpha_cumprod(t as usize).max(least));
        let next = times.iter().map(|t| if t - gap >= 0.0 { at(t - gap) } else { last }).collect();
        let mixes = times.iter().map(|t| at(*t)).collect();
        let clip = config.clip_sample.unwrap_or(true).then_some(config.clip_sample_range);
        (Walk { times, mixes, first_noise: 1.0 }, Self { next, clip })
    }
}

impl Solver for Ddim {
    fn step(&mut self, i: usize, _: &Tensor, estimate: &Estimate, _: Option<&Tensor>) -> Result<Tensor> {
        let Mix { alpha, sigma } = self.next[i];
        let clean = match self.clip {
            Some(range) => estimate.clean.clamp(-range, range)?,
            None => estimate.clean.clone(),
        };
        combine(&[(alpha, &clean), (sigma, &estimate.noise)])
    }
}

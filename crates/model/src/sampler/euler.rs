//! Euler's method on the noise-to-signal ratio: Karras et al. 2022, arXiv 2206.00364, algorithm 2 without churn.

use super::time_grid::{Mix, mix_at, timesteps};
use super::{Estimate, Solver, Walk, combine};
use crate::config::TimestepSpacing;
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};

pub(super) struct Euler {
    /// Each grid point and the end.
    mixes: Vec<Mix>,
}

impl Euler {
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Self) {
        let (walk, mixes) = euler_walk(schedule, num_steps);
        (walk, Self { mixes })
    }
}

/// The grid of Euler's methods: timesteps that need not be whole, then no noise.
pub(super) fn euler_walk(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Vec<Mix>) {
    let times = timesteps(schedule, num_steps, TimestepSpacing::Linspace, false);
    let mixes: Vec<Mix> = times.iter().map(|t| mix_at(schedule, *t)).collect();
    // Where the last timestep is on the grid, the picture begins with exactly the grid's noise.
    let is_leading = schedule.config().timestep_spacing == Some(TimestepSpacing::Leading);
    let first_noise = if is_leading { 1.0 } else { mixes.first().map_or(1.0, |mix| mix.sigma) };
    let with_end = mixes.iter().copied().chain([Mix::CLEAN]).collect();
    (Walk { times, mixes, first_noise }, with_end)
}

impl Solver for Euler {
    /// With the signal kept at 1, x' = x_0 + (sigma'/alpha') noise.
    fn step(&mut self, i: usize, _: &Tensor, estimate: &Estimate, _: Option<&Tensor>) -> Result<Tensor> {
        let Mix { alpha, sigma } = self.mixes[i + 1];
        combine(&[(alpha, &estimate.clean), (sigma, &estimate.noise)])
    }
}

//! DPM-Solver++ of second order, multistep, midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

use super::time_grid::{Mix, mix_at, timesteps};
use super::{Estimate, Solver, Walk, combine};
use crate::config::TimestepSpacing;
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};

pub(super) struct DpmPp2m {
    /// Each grid point and the end.
    mixes: Vec<Mix>,
    /// The clean latents as the step before saw them.
    before: Option<Tensor>,
}

impl DpmPp2m {
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Self) {
        let (walk, mixes) = solver_walk(schedule, num_steps);
        (walk, Self { mixes, before: None })
    }
}

/// The grid of the solvers that work on the logarithm of the signal-to-noise ratio: whole timesteps, then no noise.
pub(super) fn solver_walk(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Vec<Mix>) {
    let mut times = timesteps(schedule, num_steps, TimestepSpacing::Linspace, true);
    times.iter_mut().for_each(|t| *t = t.round_ties_even());
    let mixes: Vec<Mix> = times.iter().map(|t| mix_at(schedule, *t)).collect();
    let with_end = mixes.iter().copied().chain([Mix::CLEAN]).collect();
    (Walk { times, mixes, first_noise: 1.0 }, with_end)
}

impl Solver for DpmPp2m {
    fn step(&mut self, i: usize, sample: &Tensor, estimate: &Estimate, _: Option<&Tensor>) -> Result<Tensor> {
        let (from, to) = (self.mixes[i], self.mixes[i + 1]);
        let h = to.half_log_snr() - from.half_log_snr(); // infinite in the last step
        let toward = -to.alpha * (-h).exp_m1();
        let before = self.before.replace(estimate.clean.clone());
        let clean = match before.filter(|_| i + 1 < self.mixes.len() - 1) {
            // The last step and the first are of first order.
            None => estimate.clean.clone(),
            Some(before) => {
                let r = (from.half_log_snr() - self.mixes[i - 1].half_log_snr()) / h;
                combine(&[(1.0 + 0.5 / r, &estimate.clean), (-0.5 / r, &before)])?
            }
        };
        combine(&[(to.sigma / from.sigma, sample), (toward, &clean)])
    }
}

//! Euler's method with noise added at each step, as in k-diffusion: Karras et al. 2022, arXiv 2206.00364, on the
//! ancestral steps of Song et al. 2020, arXiv 2010.02502, equation 16.

use super::euler::euler_walk;
use super::time_grid::Mix;
use super::{Estimate, Solver, Walk, combine};
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};

pub(super) struct EulerAncestral {
    /// Each grid point and the end.
    mixes: Vec<Mix>,
}

impl EulerAncestral {
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Self) {
        let (walk, mixes) = euler_walk(schedule, num_steps);
        (walk, Self { mixes })
    }
}

impl Solver for EulerAncestral {
    /// With the signal kept at 1: x' = x_0 + down noise + up fresh, down^2 + up^2 = the next point's variance.
    fn step(&mut self, i: usize, _: &Tensor, estimate: &Estimate, fresh: Option<&Tensor>) -> Result<Tensor> {
        let (from, to) = (self.mixes[i].noise_to_signal(), self.mixes[i + 1].noise_to_signal());
        let up = (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt();
        let down = (to * to - up * up).max(0.0).sqrt();
        let alpha = self.mixes[i + 1].alpha;
        let next = combine(&[(alpha, &estimate.clean), (alpha * down, &estimate.noise)])?;
        match fresh {
            Some(fresh) if up > 0.0 => next + (fresh * (alpha * up))?,
            _ => Ok(next),
        }
    }

    fn adds_noise(&self) -> bool {
        true
    }
}

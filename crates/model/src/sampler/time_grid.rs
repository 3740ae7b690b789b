//! Where a sampler stops on its way from noise to latents.

use crate::config::{SchedulerConfig, TimestepSpacing};
use crate::noise_schedule::NoiseSchedule;

/// What a schedule that ends in pure noise is held at where something divides by its signal.
pub(super) const LEAST_ALPHA_CUMPROD: f64 = 1.0 / 16_777_216.0; // 2^-24

/// How much of a noisy latent is signal and how much is noise: x = alpha x_0 + sigma noise, alpha^2 + sigma^2 = 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mix {
    pub(crate) alpha: f64,
    pub(crate) sigma: f64,
}

impl Mix {
    /// No noise at all.
    pub(crate) const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };

    /// From the product of alphas.
    pub(crate) fn of_alpha_cumprod(alpha_cumprod: f64) -> Self {
        Self { alpha: alpha_cumprod.sqrt(), sigma: (1.0 - alpha_cumprod).sqrt() }
    }

    /// sigma / alpha: the noise where the signal is kept at 1.
    pub(crate) fn noise_to_signal(self) -> f64 {
        self.sigma / self.alpha
    }

    fn of_noise_to_signal(ratio: f64) -> Self {
        let alpha = (ratio * ratio + 1.0).sqrt().recip();
        Self { alpha, sigma: ratio * alpha }
    }

    /// Half the logarithm of the signal-to-noise ratio; infinite for [`Mix::CLEAN`].
    pub(crate) fn half_log_snr(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

/// The timesteps of `num_steps` steps, highest first. With `both_ends`, the way is cut into `num_steps` + 1 parts and
/// the last point is left out, as solvers do that end at no noise by themselves.
pub(crate) fn timesteps(
    schedule: &NoiseSchedule,
    num_steps: usize,
    default_spacing: TimestepSpacing,
    both_ends: bool,
) -> Vec<f64> {
    let config: &SchedulerConfig = schedule.config();
    let (last, num) = (schedule.num_timesteps(), num_steps);
    let parts = if both_ends { num + 1 } else { num };
    match config.timestep_spacing.unwrap_or(default_spacing) {
        TimestepSpacing::Linspace => {
            let gap = (last - 1) as f64 / (parts.max(2) - 1) as f64;
            (parts - num..parts).rev().map(|i| i as f64 * gap).collect()
        }
        TimestepSpacing::Leading => {
            let (gap, offset) = (last / parts, config.steps_offset.unwrap_or(0));
            (parts - num..parts).rev().map(|i| (i * gap + offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let gap = last as f64 / num as f64;
            // numpy rounds halves to even; so does this.
            (0..num).map(|i| (last as f64 - i as f64 * gap).round_ties_even() - 1.0).collect()
        }
    }
}

/// The mix at a timestep that need not be whole: the noise-to-signal ratio is interpolated, as Euler's method has it.
/// A schedule that ends in pure noise is held just short of it, or the ratio would be infinite.
pub(crate) fn mix_at(schedule: &NoiseSchedule, timestep: f64) -> Mix {
    let ratio = |t: f64| {
        let alpha_cumprod = schedule.alpha_cumprod(t as usize).max(LEAST_ALPHA_CUMPROD);
        Mix::of_alpha_cumprod(alpha_cumprod).noise_to_signal()
    };
    let (below, above) = (timestep.floor(), timestep.ceil());
    let part = timestep - below;
    Mix::of_noise_to_signal(ratio(below) * (1.0 - part) + ratio(above) * part)
}

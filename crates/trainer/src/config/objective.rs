//! `[noise]` and `[loss]`: what the network has to predict, and how its error is counted.

use serde::{Deserialize, Serialize};

/// `[noise]`: the noise that is added to the latents and the timesteps at which it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseConfig {
    /// Adds to the noise of each channel one normal number times this, so that very dark and very bright images can be
    /// learned; 0.05 to 0.1. 0 turns it off.
    pub offset: f64,
    /// Adds to `offset` this times the absolute mean of the channel's latents.
    pub offset_adaptive: f64,
    /// Whether the offset is multiplied by a random number from 0 to 1 each time.
    pub offset_random: bool,
    /// Adds coarser and coarser noise to the noise, this many times (pyramid noise); 6 to 10. 0 turns it off.
    pub pyramid_iterations: usize,
    /// How much weaker each coarser noise is, 0 to 1.
    pub pyramid_discount: f64,
    /// Noises the latents with noise that has this much more noise in it than the one to predict (arXiv 2301.11706); 0.1.
    /// 0 turns it off.
    pub input_perturbation: f64,
    /// First timestep that is drawn.
    pub min_timestep: usize,
    /// Timestep before which drawn ones lie. Unset: the end of the base's schedule, 1000.
    pub max_timestep: Option<usize>,
}

/// `[loss]`: how the distance between prediction and target is counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// `l2`, the mean squared error; `l1`; `huber` and `smooth-l1`, which count large errors less than `l2` does.
    pub kind: LossKind,
    /// Where `huber` and `smooth-l1` turn from squared to linear.
    pub huber_c: f64,
    /// How that changes with the timestep: `snr`, `exponential` or `constant`.
    pub huber_schedule: HuberSchedule,
    /// Weight of a timestep: `none`; `min-snr` (arXiv 2303.09556), which counts easy timesteps less; `debiased` (arXiv
    /// 2310.08442), which counts noisy ones more; `v-like-noise`, for a base that predicts velocity to be weighted as if it
    /// predicted noise.
    pub weighting: Weighting,
    /// Gamma of `min-snr`. The signal-to-noise ratio is that of the latents as they are trained on: of the rescaled schedule where
    /// the last timestep is pure noise.
    pub min_snr_gamma: f64,
    /// Adds this times the loss that a velocity prediction of the same error would have. 0 turns it off.
    pub v_pred_like_loss: f64,
}

impl Default for NoiseConfig {
    fn default() -> Self {
        Self {
            offset: 0.0,
            offset_adaptive: 0.0,
            offset_random: false,
            pyramid_iterations: 0,
            pyramid_discount: 0.3,
            input_perturbation: 0.0,
            min_timestep: 0,
            max_timestep: None,
        }
    }
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: LossKind::L2,
            huber_c: 0.1,
            huber_schedule: HuberSchedule::Snr,
            weighting: Weighting::None,
            min_snr_gamma: 5.0,
            v_pred_like_loss: 0.0,
        }
    }
}

/// The distance of two numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Squared.
    #[default]
    L2,
    /// Absolute.
    L1,
    /// 2 c (sqrt(d^2 + c^2) - c).
    Huber,
    /// 2 (sqrt(d^2 + c^2) - c).
    SmoothL1,
}

/// How c of the Huber loss changes with the timestep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HuberSchedule {
    /// (1 - c) / (1 + sigma)^2 + c.
    #[default]
    Snr,
    /// exp(ln(c) t / T).
    Exponential,
    /// c.
    Constant,
}

/// Weight of a timestep in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// 1.
    #[default]
    None,
    /// min(SNR, gamma) / SNR; of a velocity, / (SNR + 1).
    MinSnr,
    /// 1 / sqrt(min(SNR, 1000)); of a velocity, 1 / (SNR + 1).
    Debiased,
    /// SNR / (SNR + 1), SNR at most 1000.
    VLikeNoise,
}

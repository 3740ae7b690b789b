//! How the distance between a prediction and its target is counted: the distance of two numbers, and the weight of a
//! timestep, after sd-scripts (`library/custom_train_functions.py`, `library/train_util.py`).
//!
//! With a_t as in the noise schedule, SNR = a_t / (1 - a_t) and sigma = sqrt(1 / SNR). On a schedule that ends in pure noise
//! the last SNR is 0. Where a formula divides by it, it counts as 1/1000, as SNR counts as at most 1000 at the other end;
//! min-SNR of noise prediction is then its limit, 1; of a velocity it is 0, as the formula says.

use candle_core::{Device, Tensor};
use loralei_model::{NoiseSchedule, Prediction};

use crate::config::{HuberSchedule, LossConfig, LossKind, Weighting};

/// The largest SNR, and one by the smallest that is divided by.
const MAX_SNR: f64 = 1000.0;

impl LossConfig {
    /// The distances of all numbers: (b, 4, h, w), as `prediction` and `target`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn distances(
        &self,
        prediction: &Tensor,
        target: &Tensor,
        timesteps: &[i64],
        schedule: &NoiseSchedule,
    ) -> candle_core::Result<Tensor> {
        let difference = (prediction - target)?;
        match self.kind {
            LossKind::L2 => difference.sqr(),
            LossKind::L1 => difference.abs(),
            LossKind::Huber | LossKind::SmoothL1 => {
                let c = per_sample(timesteps.iter().map(|t| self.huber_c_at(*t, schedule)), &difference)?;
                let squares = difference.sqr()?;
                // sqrt(d^2 + c^2) - c, without the cancellation where d is small.
                let root = squares.broadcast_add(&c.sqr()?)?.sqrt()?;
                let distances = (squares.div(&root.broadcast_add(&c)?)? * 2.0)?;
                if self.kind == LossKind::Huber { distances.broadcast_mul(&c) } else { Ok(distances) }
            }
        }
    }

    /// Where the loss turns from squared to linear at timestep `t`.
    fn huber_c_at(&self, t: i64, schedule: &NoiseSchedule) -> f64 {
        let c = self.huber_c;
        match self.huber_schedule {
            HuberSchedule::Constant => c,
            HuberSchedule::Exponential => (c.ln() * t as f64 / schedule.num_timesteps() as f64).exp(),
            HuberSchedule::Snr => {
                let a = schedule.alpha_cumprod(t as usize);
                (1.0 - c) / (1.0 + ((1.0 - a) / a).sqrt()).powi(2) + c
            }
        }
    }

    /// The weight of each timestep; `None` where all of them are 1.
    pub(crate) fn timestep_weights(&self, timesteps: &[i64], schedule: &NoiseSchedule) -> Option<Vec<f64>> {
        let weights = self.weighting != Weighting::None || self.v_pred_like_loss != 0.0;
        weights.then(|| timesteps.iter().map(|t| self.weight_at(*t, schedule)).collect())
    }

    fn weight_at(&self, t: i64, schedule: &NoiseSchedule) -> f64 {
        let a = schedule.alpha_cumprod(t as usize);
        let snr = a / (1.0 - a);
        let (at_most, within) = (snr.min(MAX_SNR), snr.clamp(1.0 / MAX_SNR, MAX_SNR));
        let predicts_v = schedule.prediction() == Prediction::VPrediction;
        let weight = match self.weighting {
            Weighting::None => 1.0,
            Weighting::MinSnr if predicts_v => snr.min(self.min_snr_gamma) / (snr + 1.0),
            Weighting::MinSnr if snr <= self.min_snr_gamma => 1.0,
            Weighting::MinSnr => self.min_snr_gamma / snr,
            Weighting::Debiased if predicts_v => 1.0 / (at_most + 1.0),
            Weighting::Debiased => 1.0 / within.sqrt(),
            Weighting::VLikeNoise => at_most / (at_most + 1.0),
        };
        let like_v = self.v_pred_like_loss;
        if like_v == 0.0 { weight } else { weight * (1.0 + like_v * (within + 1.0) / within) }
    }
}

/// One number for each sample, shaped to go with `like` (b, 4, h, w).
fn per_sample(values: impl Iterator<Item = f64>, like: &Tensor) -> candle_core::Result<Tensor> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let b = values.len();
    Tensor::from_vec(values, (b, 1, 1, 1), &Device::Cpu)?.to_device(like.device())?.to_dtype(like.dtype())
}

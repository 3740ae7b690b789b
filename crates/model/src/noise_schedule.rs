//! The noising process of diffusion training: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, where a_t is the product of
//! 1 - beta up to t (Ho et al. 2020, arXiv 2006.11239, equation 4), and what the network is asked to predict from x_t.

use crate::config::{Prediction, SchedulerConfig};
use candle_core::{Result, Tensor};

/// The process of one base.
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
    config: SchedulerConfig,
}

impl NoiseSchedule {
    /// As diffusers' `DDPMScheduler` makes it from the same file.
    pub fn new(config: &SchedulerConfig) -> Self {
        let betas = config.trained_betas.clone().unwrap_or_else(|| {
            let scaled = config.beta_schedule == "scaled_linear";
            let (start, end) = (config.beta_start, config.beta_end);
            let (start, end) = if scaled { (start.sqrt(), end.sqrt()) } else { (start, end) };
            let last = (config.num_train_timesteps - 1) as f64;
            let at = |t: usize| start + (end - start) * t as f64 / last;
            (0..config.num_train_timesteps).map(|t| if scaled { at(t).powi(2) } else { at(t) }).collect()
        });
        let mut product = 1.0;
        let mut alphas_cumprod: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut alphas_cumprod);
        }
        Self { alphas_cumprod, config: config.clone() }
    }

    /// Timesteps run from 0 to this, exclusive.
    pub fn num_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// a_t. `t` beyond the last timestep gives the last.
    pub fn alpha_cumprod(&self, t: usize) -> f64 {
        self.alphas_cumprod[t.min(self.alphas_cumprod.len() - 1)]
    }

    /// What the network is asked for.
    pub fn prediction(&self) -> Prediction {
        self.config.prediction_type
    }

    /// The file that it was made from, with what the base asks of samplers.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// One coefficient per sample, shaped to multiply (b, c, h, w).
    fn coefficients(&self, like: &Tensor, timesteps: &[i64], f: impl Fn(f64) -> f64) -> Result<Tensor> {
        let values: Vec<f32> = timesteps.iter().map(|t| f(self.alpha_cumprod(*t as usize)) as f32).collect();
        Tensor::from_vec(values, (timesteps.len(), 1, 1, 1), like.device())?.to_dtype(like.dtype())
    }

    /// x_t. `latents`, `noise`: (b, 4, h, w); `timesteps`: b of them, in 0..[`NoiseSchedule::num_timesteps`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        let signal = self.coefficients(latents, timesteps, f64::sqrt)?;
        let spread = self.coefficients(latents, timesteps, |a| (1.0 - a).sqrt())?;
        latents.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?
    }

    /// What the prediction is compared with: the noise, or the velocity sqrt(a_t) noise - sqrt(1 - a_t) x_0.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn target(&self, latents: &Tensor, noise: &Tensor, timesteps: &[i64]) -> Result<Tensor> {
        match self.prediction() {
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::VPrediction => {
                let signal = self.coefficients(latents, timesteps, f64::sqrt)?;
                let spread = self.coefficients(latents, timesteps, |a| (1.0 - a).sqrt())?;
                noise.broadcast_mul(&signal)? - latents.broadcast_mul(&spread)?
            }
        }
    }
}

/// Shifts and scales sqrt(a) so that its last value is 0 and its first stays (Lin et al. 2023, arXiv 2305.08891,
/// algorithm 1).
fn rescale_to_zero_snr(alphas_cumprod: &mut [f64]) {
    let (Some(first), Some(last)) = (alphas_cumprod.first(), alphas_cumprod.last()) else { return };
    let (first, last) = (first.sqrt(), last.sqrt());
    for a in alphas_cumprod {
        *a = ((a.sqrt() - last) * first / (first - last)).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // from diffusers import DDPMScheduler
    // s = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=Z)
    // print(s.alphas_cumprod[[0, 1, 500, 998, 999]])
    #[test]
    fn products_of_alphas_are_those_of_diffusers() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        for (t, expected) in [(0, 0.99915), (1, 0.998_296), (500, 0.276_332), (998, 0.004_717), (999, 0.004_660)] {
            assert!((schedule.alpha_cumprod(t) - expected).abs() < 2e-6, "{t} {}", schedule.alpha_cumprod(t));
        }
        let zero = SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::default() };
        let schedule = NoiseSchedule::new(&zero);
        for (t, expected) in [(0, 0.99915), (1, 0.998_233), (500, 0.241_019), (999, 0.0)] {
            assert!((schedule.alpha_cumprod(t) - expected).abs() < 2e-6, "{t} {}", schedule.alpha_cumprod(t));
        }
    }
}

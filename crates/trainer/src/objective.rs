//! The noise-prediction loss of one micro-batch: how far the network's prediction for noisy latents is from its target.
//!
//! A step's loss is sum(w_i l_i) / W over all its samples, with l_i the mean squared error of sample i and W the sum of
//! the weights. A micro-batch contributes sum(w_i l_i); the division by W comes once, at the step, so that splitting a
//! step into micro-batches changes nothing (see [`crate::GradientTree`]).

use candle_core::{DType, Device, Tensor, backprop::GradStore};
use loralei_model::{Checkpointing, Conditioning, NoiseSchedule, Unet};

use crate::error::TrainError;

/// Samples that go through the network together.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    /// Scaled latents: (b, 4, h, w), f32.
    pub latents: Tensor,
    /// Standard normal: (b, 4, h, w), f32.
    pub noise: Tensor,
    /// b of them, within the noise schedule.
    pub timesteps: Vec<i64>,
    /// Where the loss counts, 0 to 1: (b, 1, h, w), f32. Everywhere if `None`.
    pub loss_mask: Option<Tensor>,
    /// How much each sample counts: b numbers, not negative. One each if `None`.
    pub sample_weight: Option<Vec<f32>>,
}

/// What a micro-batch gave.
pub struct Outcome {
    /// The network's prediction: (b, 4, h, w), f32, without a graph.
    pub prediction: Tensor,
    /// sum(w_i l_i), a scalar on the device: reading it would wait for all that the device has still to do.
    pub weighted_loss: Tensor,
    /// sum(w_i).
    pub weight: f64,
    /// Gradients of the weighted loss times the loss scale.
    pub gradients: GradStore,
}

impl MicroBatch {
    /// The same on `device`.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn to_device(&self, device: &Device) -> candle_core::Result<Self> {
        Ok(Self {
            latents: self.latents.to_device(device)?,
            noise: self.noise.to_device(device)?,
            timesteps: self.timesteps.clone(),
            loss_mask: self.loss_mask.as_ref().map(|mask| mask.to_device(device)).transpose()?,
            sample_weight: self.sample_weight.clone(),
        })
    }

    /// Forward and backward through `unet`; `loss_scale` multiplies the gradients.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn run(
        &self,
        unet: &Unet,
        conditioning: &Conditioning,
        schedule: &NoiseSchedule,
        checkpointing: Checkpointing,
        loss_scale: f64,
    ) -> Result<Outcome, TrainError> {
        let noisy = schedule.add_noise(&self.latents, &self.noise, &self.timesteps)?;
        let target = schedule.target(&self.latents, &self.noise, &self.timesteps)?;
        let prediction = unet.forward(&noisy, &self.times(), conditioning, checkpointing)?;
        self.compare(&prediction, &target, loss_scale)
    }

    /// The timesteps as the network takes them.
    pub(crate) fn times(&self) -> Vec<f64> {
        self.timesteps.iter().map(|t| *t as f64).collect()
    }

    /// Backward of the distance between a prediction and what it should be, both (b, 4, h, w), f32.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn compare(&self, prediction: &Tensor, target: &Tensor, loss_scale: f64) -> Result<Outcome, TrainError> {
        let (loss, weight) = self.weighted_loss(prediction, target)?;
        let gradients = if loss_scale == 1.0 { loss.backward()? } else { (&loss * loss_scale)?.backward()? };
        // Losses are summed in f64; cards without it sum in f32.
        let wide = if loss.device().is_metal() { DType::F32 } else { DType::F64 };
        let weighted_loss = loss.detach().to_dtype(wide)?;
        Ok(Outcome { prediction: prediction.detach(), weighted_loss, weight, gradients })
    }

    /// (sum(w_i l_i), sum(w_i)). With a mask, l_i is the mean over the masked area.
    fn weighted_loss(&self, prediction: &Tensor, target: &Tensor) -> Result<(Tensor, f64), TrainError> {
        let squares = (prediction - target)?.sqr()?; // (b, 4, h, w)
        let (b, channels, _, _) = squares.dims4()?;
        let losses = match &self.loss_mask {
            None => squares.flatten_from(1)?.mean(1)?, // (b)
            Some(mask) => {
                let area = (mask.flatten_from(1)?.sum(1)? * channels as f64)?; // (b)
                // An empty mask asks for nothing: its loss is 0, not 0 / 0.
                let area = area.maximum(1e-6)?;
                squares.broadcast_mul(mask)?.flatten_from(1)?.sum(1)?.div(&area)? // (b)
            }
        };
        match &self.sample_weight {
            None => Ok((losses.sum_all()?, b as f64)),
            Some(weights) => {
                let total = weights.iter().map(|w| f64::from(*w)).sum();
                let weights = Tensor::from_slice(weights, b, losses.device())?;
                Ok(((losses * weights)?.sum_all()?, total))
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use loralei_model::{Draw, Purpose};

    fn batch(mask: Option<Tensor>, sample_weight: Option<Vec<f32>>) -> (MicroBatch, Tensor, Tensor) {
        let normal = |step| {
            let values = Draw::new(5, step, 0, Purpose::Noise).standard_normal(2 * 4 * 3 * 2);
            Tensor::from_vec(values, (2, 4, 3, 2), &Device::Cpu).unwrap()
        };
        let (latents, noise) = (normal(0), normal(1));
        let micro = MicroBatch { latents, noise, timesteps: vec![3, 700], loss_mask: mask, sample_weight };
        (micro, normal(2), normal(3))
    }

    fn by_hand(a: &Tensor, b: &Tensor, keep: impl Fn(usize, usize) -> f64, weights: [f64; 2]) -> f64 {
        let read = |x: &Tensor| x.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        let (a, b) = (read(a), read(b));
        let sample = |i: usize| {
            let at = |j: usize| keep(i, j % 6);
            let error: f64 = (0..24).map(|j| at(j) * f64::from(a[i][j] - b[i][j]).powi(2)).sum();
            error / (0..24).map(at).sum::<f64>()
        };
        weights[0] * sample(0) + weights[1] * sample(1)
    }

    #[test]
    fn the_loss_is_the_sum_of_each_samples_mean_squared_error() {
        let (micro, prediction, target) = batch(None, None);
        let (loss, weight) = micro.weighted_loss(&prediction, &target).unwrap();
        let expected = by_hand(&prediction, &target, |_, _| 1.0, [1.0, 1.0]);
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-5);
        assert!((weight - 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_mask_is_normalised_by_its_area_and_samples_by_their_weight() {
        let mask: Vec<f32> = vec![0.0, 1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.25, 0.0];
        let keep = mask.clone();
        let mask = Tensor::from_vec(mask, (2, 1, 3, 2), &Device::Cpu).unwrap();
        let (micro, prediction, target) = batch(Some(mask), Some(vec![0.5, 3.0]));
        let (loss, weight) = micro.weighted_loss(&prediction, &target).unwrap();
        let expected = by_hand(&prediction, &target, |i, j| f64::from(keep[i * 6 + j]), [0.5, 3.0]);
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-5);
        assert!((weight - 3.5).abs() < 1e-12);
    }

    #[test]
    fn an_empty_mask_gives_no_loss_and_no_nan() {
        let mask = Tensor::zeros((2, 1, 3, 2), DType::F32, &Device::Cpu).unwrap();
        let (micro, prediction, target) = batch(Some(mask), None);
        let (loss, _) = micro.weighted_loss(&prediction, &target).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().abs() < 1e-12);
    }
}

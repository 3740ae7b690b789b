//! The noise-prediction loss of one micro-batch: how far the network's prediction for noisy latents is from its target.
//!
//! A step's loss is sum(w_i s_i l_i) / W over all its samples, with l_i the mean distance of sample i (its squared error, unless
//! the settings say otherwise), w_i its weight, s_i the weight of its timestep, 1 by default, and W the sum of the w_i. A
//! micro-batch contributes sum(w_i s_i l_i); the division by W comes once, at the step, so that splitting a step into
//! micro-batches changes nothing (see [`crate::GradientTree`]).

use candle_core::{DType, Device, Tensor, backprop::GradStore};
use loralei_model::{Checkpointing, Conditioning, Dropout, NoiseSchedule, Unet};

use crate::config::LossConfig;
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
    /// What the latents are noised with, where that is not `noise` itself: (b, 4, h, w), f32. The target stays that of `noise`.
    pub input_noise: Option<Tensor>,
    /// What the network is told about the sizes of the pictures, if it listens: (b, 6), f32, on the processor. See
    /// [`loralei_model::PictureSizes`].
    pub time_ids: Option<Tensor>,
    /// How distances are counted.
    pub loss: LossConfig,
    /// What the adapter leaves out, if it does.
    pub dropout: Option<Dropout>,
}

/// What a micro-batch gave.
pub struct Outcome {
    /// The network's prediction: (b, 4, h, w), f32, without a graph.
    pub prediction: Tensor,
    /// sum(w_i s_i l_i), a scalar on the device: reading it would wait for all that the device has still to do.
    pub weighted_loss: Tensor,
    /// sum(w_i).
    pub weight: f64,
    /// Gradients of the weighted loss times the loss scale.
    pub gradients: GradStore,
}

impl MicroBatch {
    /// With the mean squared error everywhere, every sample the same, and nothing left out.
    pub fn new(latents: Tensor, noise: Tensor, timesteps: Vec<i64>) -> Self {
        Self {
            latents,
            noise,
            timesteps,
            loss_mask: None,
            sample_weight: None,
            input_noise: None,
            time_ids: None,
            loss: LossConfig::default(),
            dropout: None,
        }
    }

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
            input_noise: self.input_noise.as_ref().map(|noise| noise.to_device(device)).transpose()?,
            time_ids: self.time_ids.clone(),
            ..*self
        })
    }

    /// Forward and backward through `unet`; `loss_scale` multiplies the gradients. What the adapter leaves out is up to the
    /// caller: see [`crate::Network::run`].
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
        let noisy = self.noisy(schedule)?;
        let target = schedule.target(&self.latents, &self.noise, &self.timesteps)?;
        let prediction = unet.forward(&noisy, &self.times(), conditioning, checkpointing)?;
        self.compare(&prediction, &target, schedule, loss_scale)
    }

    /// The latents with noise, as the network sees them: (b, 4, h, w), f32.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn noisy(&self, schedule: &NoiseSchedule) -> candle_core::Result<Tensor> {
        schedule.add_noise(&self.latents, self.input_noise.as_ref().unwrap_or(&self.noise), &self.timesteps)
    }

    /// The timesteps as the network takes them.
    pub(crate) fn times(&self) -> Vec<f64> {
        self.timesteps.iter().map(|t| *t as f64).collect()
    }

    /// Backward of the distance between a prediction and what it should be, both (b, 4, h, w), f32.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub(crate) fn compare(
        &self,
        prediction: &Tensor,
        target: &Tensor,
        schedule: &NoiseSchedule,
        loss_scale: f64,
    ) -> Result<Outcome, TrainError> {
        let (loss, weight) = self.weighted_loss(prediction, target, schedule)?;
        let gradients = if loss_scale == 1.0 { loss.backward()? } else { (&loss * loss_scale)?.backward()? };
        // Losses are summed in f64; cards without it sum in f32.
        let wide = if loss.device().is_metal() { DType::F32 } else { DType::F64 };
        let weighted_loss = loss.detach().to_dtype(wide)?;
        Ok(Outcome { prediction: prediction.detach(), weighted_loss, weight, gradients })
    }

    /// (sum(w_i s_i l_i), sum(w_i)). With a mask, l_i is the mean over the masked area.
    fn weighted_loss(
        &self,
        prediction: &Tensor,
        target: &Tensor,
        schedule: &NoiseSchedule,
    ) -> Result<(Tensor, f64), TrainError> {
        let distances = self.loss.distances(prediction, target, &self.timesteps, schedule)?; // (b, 4, h, w)
        let (b, channels, _, _) = distances.dims4()?;
        let losses = match &self.loss_mask {
            None => distances.flatten_from(1)?.mean(1)?, // (b)
            Some(mask) => {
                let area = (mask.flatten_from(1)?.sum(1)? * channels as f64)?; // (b)
                // An empty mask asks for nothing: its loss is 0, not 0 / 0.
                let area = area.maximum(1e-6)?;
                distances.broadcast_mul(mask)?.flatten_from(1)?.sum(1)?.div(&area)? // (b)
            }
        };
        let total = self.sample_weight.as_ref().map_or(b as f64, |all| all.iter().map(|w| f64::from(*w)).sum());
        match self.weights(schedule) {
            None => Ok((losses.sum_all()?, total)),
            Some(weights) => {
                let weights = Tensor::from_vec(weights, b, losses.device())?.to_dtype(losses.dtype())?;
                Ok(((losses * weights)?.sum_all()?, total))
            }
        }
    }

    /// The w_i s_i; `None` where all of them are 1.
    fn weights(&self, schedule: &NoiseSchedule) -> Option<Vec<f32>> {
        match (self.loss.timestep_weights(&self.timesteps, schedule), &self.sample_weight) {
            (None, own) => own.clone(),
            (Some(of_timesteps), None) => Some(of_timesteps.into_iter().map(|s| s as f32).collect()),
            (Some(of_timesteps), Some(own)) => {
                Some(of_timesteps.iter().zip(own).map(|(s, w)| (s * f64::from(*w)) as f32).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::config::{HuberSchedule, LossKind, Weighting};
    use candle_core::Var;
    use loralei_model::{Draw, Prediction, Purpose, SchedulerConfig};

    fn schedule(prediction_type: Prediction) -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig { prediction_type, ..SchedulerConfig::default() })
    }

    fn weighted_loss(micro: &MicroBatch, prediction: &Tensor, target: &Tensor) -> (Tensor, f64) {
        micro.weighted_loss(prediction, target, &schedule(Prediction::Epsilon)).unwrap()
    }

    fn batch(loss_mask: Option<Tensor>, sample_weight: Option<Vec<f32>>) -> (MicroBatch, Tensor, Tensor) {
        let normal = |step| {
            let values = Draw::new(5, step, 0, Purpose::Noise).standard_normal(2 * 4 * 3 * 2);
            Tensor::from_vec(values, (2, 4, 3, 2), &Device::Cpu).unwrap()
        };
        let micro = MicroBatch { loss_mask, sample_weight, ..MicroBatch::new(normal(0), normal(1), vec![3, 700]) };
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
        let (loss, weight) = weighted_loss(&micro, &prediction, &target);
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
        let (loss, weight) = weighted_loss(&micro, &prediction, &target);
        let expected = by_hand(&prediction, &target, |i, j| f64::from(keep[i * 6 + j]), [0.5, 3.0]);
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-5);
        assert!((weight - 3.5).abs() < 1e-12);
    }

    #[test]
    fn an_empty_mask_gives_no_loss_and_no_nan() {
        let mask = Tensor::zeros((2, 1, 3, 2), DType::F32, &Device::Cpu).unwrap();
        let (micro, prediction, target) = batch(Some(mask), None);
        let (loss, _) = weighted_loss(&micro, &prediction, &target);
        assert!(loss.to_scalar::<f32>().unwrap().abs() < 1e-12);
    }

    fn kind(kind: LossKind) -> LossConfig {
        LossConfig { kind, ..LossConfig::default() }
    }

    fn weighting(weighting: Weighting) -> LossConfig {
        LossConfig { weighting, ..LossConfig::default() }
    }

    /// sum(f(a i + b)) in f64: (3, channels, 3, 2).
    fn wave(channels: usize, f: impl Fn(f64) -> f64, a: f64, b: f64) -> Tensor {
        let values: Vec<f64> = (0..18 * channels).map(|i| f(i as f64 * a + b)).collect();
        Tensor::from_vec(values, (3, channels, 3, 2), &Device::Cpu).unwrap()
    }

    fn scalar(tensor: &Tensor) -> f64 {
        tensor.to_scalar().unwrap()
    }

    /// What is counted, for which prediction, whether with a mask; the loss, the sum of its gradient times a wave, and the
    /// gradient's norm, by sd-scripts' formulas in torch (with our mean over the mask):
    /// ```python
    /// import math, torch
    /// betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    /// def golden(kind, schedule, weighting, v, like, masked):
    ///     wave = lambda f, a, b: f(torch.arange(72, dtype=torch.float64) * a + b).reshape(3, 4, 3, 2)
    ///     prediction, target = (1.3 * wave(torch.sin, 0.7, 0.3)).requires_grad_(), 0.9 * wave(torch.cos, 1.1, 0.0)
    ///     t = torch.tensor([3, 420, 990])
    ///     a = torch.cumprod(1 - betas, 0)[t]
    ///     c = {"constant": torch.full((3,), 0.1, dtype=torch.float64),
    ///          "exponential": torch.exp(math.log(0.1) / 1000 * t.double()),
    ///          "snr": 0.9 / (1 + ((1 - a) / a) ** 0.5) ** 2 + 0.1}[schedule].view(3, 1, 1, 1)
    ///     d = prediction - target
    ///     root = torch.sqrt(d**2 + c**2) - c
    ///     loss = {"l2": d**2, "l1": d.abs(), "huber": 2 * c * root, "smooth-l1": 2 * root}[kind]
    ///     mask = 0.5 + 0.5 * torch.sin(torch.arange(18, dtype=torch.float64)).reshape(3, 1, 3, 2)
    ///     loss = (loss * mask).sum((1, 2, 3)) / (4 * mask.sum((1, 2, 3))) if masked else loss.mean((1, 2, 3))
    ///     loss = loss * torch.tensor([0.5, 3.0, 1.0])
    ///     snr = a / (1 - a)
    ///     capped = torch.clamp(snr, max=1000)
    ///     if weighting == "min-snr": loss = loss * torch.clamp(snr, max=5) / (snr + 1 if v else snr)
    ///     if weighting == "debiased": loss = loss * (1 / (capped + 1) if v else 1 / capped.sqrt())
    ///     if weighting == "v-like-noise": loss = loss * capped / (capped + 1)
    ///     if like: loss = loss + loss / (capped / (capped + 1)) * like
    ///     loss.sum().backward()
    ///     g = prediction.grad
    ///     print(loss.sum().item(), (g * wave(torch.cos, 0.37, 0.1)).sum().item(), g.norm().item())
    /// ```
    fn goldens() -> Vec<(LossConfig, Prediction, bool, [f64; 3])> {
        use Prediction::{Epsilon, VPrediction};
        let scheduled = |of, huber_schedule| LossConfig { huber_schedule, ..kind(of) };
        let like = LossConfig { v_pred_like_loss: 0.25, ..LossConfig::default() };
        let all = LossConfig { weighting: Weighting::MinSnr, v_pred_like_loss: 0.5, ..kind(LossKind::Huber) };
        let (constant, exponential) = (HuberSchedule::Constant, HuberSchedule::Exponential);
        let (min_snr, debiased) = (weighting(Weighting::MinSnr), weighting(Weighting::Debiased));
        vec![
            (kind(LossKind::L2), Epsilon, false, [5.247180208782609, 0.19582125114011883, 1.3548412780371042]),
            (kind(LossKind::L1), Epsilon, false, [4.0274746978001925, 0.35696710515550145, 0.6535161308899217]),
            (kind(LossKind::Huber), Epsilon, false, [1.7158272930097374, 0.14405911606144672, 0.32423706004223785]),
            (kind(LossKind::SmoothL1), Epsilon, false, [6.1424206618403785, 0.6021986676179544, 1.1397793763722481]),
            (
                scheduled(LossKind::Huber, constant),
                Epsilon,
                true,
                [0.6854506253052173, 0.03484770259694082, 0.14796226569959645],
            ),
            (
                scheduled(LossKind::SmoothL1, constant),
                Epsilon,
                true,
                [6.854506253052172, 0.3484770259694083, 1.4796226569959645],
            ),
            (
                scheduled(LossKind::Huber, exponential),
                Epsilon,
                true,
                [1.8757688055778305, 0.22431015436719537, 0.4506559256353345],
            ),
            (
                scheduled(LossKind::SmoothL1, exponential),
                Epsilon,
                true,
                [5.528299509109708, 0.2357325145290023, 1.2058443575890905],
            ),
            (min_snr, Epsilon, true, [4.447724099497066, -0.5375403345438462, 1.560408003357669]),
            (debiased, Epsilon, true, [24.89809334903932, -9.862830785585913, 8.589542036992]),
            (min_snr, VPrediction, true, [1.1599807238201232, 0.07528560206720035, 0.5647331658068847]),
            (debiased, VPrediction, true, [3.290282068109283, -0.6117846370785401, 1.061309547899422]),
            (
                weighting(Weighting::VLikeNoise),
                VPrediction,
                false,
                [1.9313716398157807, 0.205616206601092, 0.544258577398023],
            ),
            (like, Epsilon, true, [81.14231681730593, -35.221574665407346, 29.92855523115076]),
            (all, Epsilon, true, [21.741758832264438, -1.6486959291095302, 4.763596196376852]),
        ]
    }

    #[test]
    fn losses_and_gradients_are_those_of_sd_scripts_divided_by_the_weights_of_samples_alone() {
        for (loss, predicts, masked, [expected, projected, norm]) in goldens() {
            let target = (wave(4, f64::cos, 1.1, 0.0) * 0.9).unwrap();
            let prediction = Var::from_tensor(&(wave(4, f64::sin, 0.7, 0.3) * 1.3).unwrap()).unwrap();
            let micro = MicroBatch {
                loss_mask: masked.then(|| ((wave(1, f64::sin, 1.0, 0.0) * 0.5).unwrap() + 0.5).unwrap()),
                sample_weight: Some(vec![0.5, 3.0, 1.0]),
                loss,
                ..MicroBatch::new(target.clone(), target.clone(), vec![3, 420, 990])
            };
            let (found, weight) = micro.weighted_loss(&prediction, &target, &schedule(predicts)).unwrap();
            let gradients = found.backward().unwrap();
            let gradient = gradients.get(&prediction).unwrap();
            let along = (gradient * wave(4, f64::cos, 0.37, 0.1)).unwrap().sum_all().unwrap();
            let length = gradient.sqr().unwrap().sum_all().unwrap();
            // Weights are f32.
            let is_near = |found: f64, expected: f64| (found - expected).abs() < 2e-6 * norm.max(expected.abs());
            assert!(is_near(scalar(&found), expected), "{loss:?}: {} {expected}", scalar(&found));
            assert!(is_near(scalar(&along), projected), "{loss:?}: {} {projected}", scalar(&along));
            assert!(is_near(scalar(&length).sqrt(), norm), "{loss:?}: {} {norm}", scalar(&length).sqrt());
            assert!((weight - 4.5).abs() < 1e-12);
        }
    }

    #[test]
    fn pure_noise_at_the_end_of_a_schedule_gives_finite_weights() {
        let config = |prediction_type| SchedulerConfig {
            prediction_type,
            rescale_betas_zero_snr: true,
            ..SchedulerConfig::default()
        };
        let at_the_end = |loss: LossConfig, predicts| {
            let schedule = NoiseSchedule::new(&config(predicts));
            assert!(schedule.alpha_cumprod(999).abs() < 1e-12);
            loss.timestep_weights(&[999], &schedule).unwrap()[0]
        };
        let (min_snr, debiased) = (weighting(Weighting::MinSnr), weighting(Weighting::Debiased));
        let like = LossConfig { v_pred_like_loss: 1.0, ..LossConfig::default() };
        for (loss, predicts, expected) in [
            (min_snr, Prediction::Epsilon, 1.0),
            (min_snr, Prediction::VPrediction, 0.0),
            (debiased, Prediction::Epsilon, 1000f64.sqrt()),
            (debiased, Prediction::VPrediction, 1.0),
            (weighting(Weighting::VLikeNoise), Prediction::VPrediction, 0.0),
            (like, Prediction::Epsilon, 1002.0),
        ] {
            let found = at_the_end(loss, predicts);
            assert!((found - expected).abs() < 1e-6 * expected.max(1e-6), "{loss:?}: {found} {expected}");
        }
        let (mut micro, prediction, target) = batch(None, None);
        (micro.timesteps, micro.loss) = (vec![999, 999], kind(LossKind::Huber));
        let schedule = NoiseSchedule::new(&config(Prediction::VPrediction));
        let (loss, _) = micro.weighted_loss(&prediction, &target, &schedule).unwrap();
        let constant = LossConfig { huber_schedule: HuberSchedule::Constant, ..kind(LossKind::Huber) };
        let (at_c, _) = MicroBatch { loss: constant, ..micro }.weighted_loss(&prediction, &target, &schedule).unwrap();
        let (loss, at_c) = (loss.to_scalar::<f32>().unwrap(), at_c.to_scalar::<f32>().unwrap());
        assert!(loss > 0.0 && (loss - at_c).abs() < 1e-6, "{loss} {at_c}");
    }
}

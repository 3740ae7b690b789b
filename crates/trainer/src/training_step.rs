//! One optimizer step: every micro-batch forward and backward, then clipping, then the update.
//!
//! On a card nothing of it waits for the result: loss and norm stay on the device until they are read, and meanwhile the
//! processor makes the next batch ready.

use loralei_data::batch_at;
use loralei_model::{Draw, Purpose};
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::adamw::AdamW;
use crate::clip::{clip_global_norm, clip_on_device};
use crate::encoded::EncodedData;
use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::loss_scale::LossScale;
use crate::network::{Network, Text, tensor};
use crate::objective::MicroBatch;
use crate::plan::Plan;

/// What one step did.
pub(crate) struct StepDone {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    /// Before clipping. Infinite for a step in f16 that was left out because it overflowed.
    pub(crate) grad_norm: f64,
    pub(crate) learning_rate: f64,
}

/// The same, with numbers that may still be on their way.
pub(crate) struct StepUnderWay {
    step: u64,
    loss: Number,
    grad_norm: Number,
    learning_rate: f64,
}

enum Number {
    Known(f64),
    OnDevice { sum: Tensor, divisor: f64 },
}

impl Number {
    fn read(&self) -> Result<f64, TrainError> {
        match self {
            Self::Known(value) => Ok(*value),
            Self::OnDevice { sum, divisor } => {
                Ok(sum.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()? / divisor)
            }
        }
    }
}

impl StepUnderWay {
    /// Waits for the numbers.
    ///
    /// # Errors
    /// A loss or norm that is not finite.
    pub(crate) fn read(self) -> Result<StepDone, TrainError> {
        let Self { step, learning_rate, .. } = self;
        let (loss, grad_norm) = (self.loss.read()?, self.grad_norm.read()?);
        let is_checked = matches!(self.grad_norm, Number::Known(_));
        if !loss.is_finite() || (!is_checked && !grad_norm.is_finite()) {
            return Err(TrainError::NonFiniteLoss { step, loss });
        }
        Ok(StepDone { step, loss, grad_norm, learning_rate })
    }
}

/// The moving parts of a run.
pub(crate) struct TrainingStep<'a> {
    plan: &'a Plan,
    network: &'a Network,
    data: &'a EncodedData,
    factors: BTreeMap<String, Var>,
    adamw: AdamW,
    loss_scale: LossScale,
}

impl<'a> TrainingStep<'a> {
    pub(crate) fn new(plan: &'a Plan, network: &'a Network, data: &'a EncodedData) -> Self {
        let (adamw, loss_scale) = (AdamW::new(plan.adamw), LossScale::for_dtype(plan.dtype.into()));
        Self { plan, network, data, factors: network.factors().vars(), adamw, loss_scale }
    }

    pub(crate) fn device(&self) -> &Device {
        self.network.device()
    }

    pub(crate) fn step(&mut self, step: u64) -> Result<StepUnderWay, TrainError> {
        let mut summed = self.summed_gradient(step)?;
        let ratio = self.plan.schedule.ratio(step);
        let learning_rate = ratio * self.plan.learning_rate();
        let max_grad_norm = self.plan.max_grad_norm;
        let waits = self.device().is_cpu() || self.loss_scale.adapts();
        let (loss, grad_norm) = if waits {
            let loss = summed.loss()?;
            if !loss.is_finite() {
                return Err(TrainError::NonFiniteLoss { step, loss });
            }
            let norm = match clip_global_norm(&mut summed.gradients, max_grad_norm) {
                Err(TrainError::NonFiniteGradient { .. }) if self.loss_scale.update(false) => {
                    let (loss, grad_norm) = (Number::Known(loss), Number::Known(f64::INFINITY));
                    return Ok(StepUnderWay { step, loss, grad_norm, learning_rate });
                }
                other => other?,
            };
            // Of finite gradients the scale never complains.
            let _ = self.loss_scale.update(true);
            (Number::Known(loss), Number::Known(norm))
        } else {
            let norm = clip_on_device(&mut summed.gradients, max_grad_norm)?;
            let loss = Number::OnDevice { sum: summed.loss_sum.clone(), divisor: summed.weight };
            (loss, Number::OnDevice { sum: norm, divisor: 1.0 })
        };
        self.adamw.step(&self.factors, &summed.gradients, |key| ratio * self.plan.learning_rate_of(key))?;
        Ok(StepUnderWay { step, loss, grad_norm, learning_rate })
    }

    fn summed_gradient(&self, step: u64) -> Result<StepGradient, TrainError> {
        let mut tree = GradientTree::new();
        for micro in 0..self.plan.accumulate as u64 {
            let (batch, text) = self.micro_batch(step, micro)?;
            let outcome = self.network.run(&batch, &text, self.loss_scale.factor())?;
            let mut gradients = self.network.factors().take_gradients(&outcome.gradients)?;
            self.add_prior(step, micro, &batch, &mut gradients)?;
            self.loss_scale.remove(&mut gradients)?;
            tree.push(gradients, outcome.weighted_loss, outcome.weight)?;
        }
        tree.finish()?.ok_or(TrainError::StepWeight { weight: 0.0 })
    }

    /// On the prior's steps, adds its weighted gradient. The loss that is shown stays that of the images.
    fn add_prior(
        &self,
        step: u64,
        micro: u64,
        batch: &MicroBatch,
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let Some(prior) = self.plan.prior.as_ref().filter(|prior| step.is_multiple_of(prior.every_steps)) else {
            return Ok(());
        };
        let draw = Draw::new(self.plan.seed, step, micro, Purpose::PriorCaption);
        let Some(text) = self.data.prior_text(batch.timesteps.len(), draw)? else { return Ok(()) };
        let outcome = self.network.run_prior(batch, &text, self.loss_scale.factor())?;
        for (name, gradient) in self.network.factors().take_gradients(&outcome.gradients)? {
            let Some(sum) = gradients.get_mut(&name) else { return Err(TrainError::GradientNames { name }) };
            *sum = (&*sum + (gradient * prior.weight)?)?;
        }
        Ok(())
    }

    /// The numbers of micro-batch `micro` of `step`, on the device: a function of these and of the seed.
    fn micro_batch(&self, step: u64, micro: u64) -> Result<(MicroBatch, Text), TrainError> {
        let Plan { seed, batch_size, accumulate, .. } = *self.plan;
        let indices = batch_at(seed, self.data.len(), batch_size, step * accumulate as u64 + micro);
        let draw = |purpose| Draw::new(seed, step, micro, purpose);
        let latents = self.data.latents(&indices, draw(Purpose::LatentSample))?;
        let noise = tensor(draw(Purpose::Noise).standard_normal(latents.elem_count()), latents.shape())?;
        let last = self.network.schedule().num_timesteps() as i64;
        let timesteps = draw(Purpose::Timesteps).integers(0..last, batch_size);
        let sample_weight = Some(self.data.weights(&indices));
        let batch = MicroBatch { latents, noise, timesteps, loss_mask: None, sample_weight };
        Ok((batch.to_device(self.device())?, self.data.text(&indices)?))
    }
}

//! One optimizer step: every micro-batch forward and backward, then clipping, then the update.
//!
//! On a card nothing of it waits for the result: loss and norm stay on the device until they are read, and meanwhile the
//! processor makes the next batch ready.

use candle_core::Device;
use loralei_data::batch_at;
use loralei_model::{Draw, Purpose};

use crate::encoded::EncodedData;
use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::network::{Network, Text, tensor};
use crate::objective::{MicroBatch, Outcome};
use crate::plan::Plan;
use crate::update::{StepUnderWay, Update};

/// The moving parts of a run.
pub(crate) struct TrainingStep<'a> {
    plan: &'a Plan,
    network: &'a Network,
    data: &'a EncodedData,
    update: Update,
}

impl<'a> TrainingStep<'a> {
    pub(crate) fn new(plan: &'a Plan, network: &'a Network, data: &'a EncodedData) -> Self {
        let update = Update::new(network, plan.adamw, plan.max_grad_norm, plan.dtype.into());
        Self { plan, network, data, update }
    }

    pub(crate) fn device(&self) -> &Device {
        self.network.device()
    }

    pub(crate) fn step(&mut self, step: u64) -> Result<StepUnderWay, TrainError> {
        let summed = self.summed_gradient(step)?;
        let ratio = self.plan.schedule.ratio(step);
        let learning_rate = ratio * self.plan.learning_rate();
        self.update.apply(step, summed, learning_rate, |key| ratio * self.plan.learning_rate_of(key))
    }

    fn summed_gradient(&self, step: u64) -> Result<StepGradient, TrainError> {
        let mut tree = GradientTree::new();
        for micro in 0..self.plan.accumulate as u64 {
            let (batch, text) = self.micro_batch(step, micro)?;
            let loss_scale = self.update.loss_scale().factor();
            let Outcome { weighted_loss, weight, gradients: store, .. } =
                self.network.run(&batch, &text, loss_scale)?;
            let mut gradients = self.network.factors().take_gradients(&store)?;
            drop(store); // candle's store holds on to the whole graph, which the prior must not find in memory
            self.add_prior(step, micro, &batch, &mut gradients)?;
            self.update.loss_scale().remove(&mut gradients)?;
            tree.push(gradients, weighted_loss, weight)?;
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
        let outcome = self.network.run_prior(batch, &text, self.update.loss_scale().factor())?;
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

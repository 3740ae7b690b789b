//! One optimizer step: every micro-batch forward and backward, then clipping, then the update.
//!
//! On a card nothing of it waits for the result: loss and norm stay on the device until they are read, and meanwhile the
//! processor makes the next batch ready.

use candle_core::Device;

use crate::data_plan::PriorTerm;
use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::network::Network;
use crate::objective::{MicroBatch, Outcome};
use crate::plan::Plan;
use crate::training_data::TrainingData;
use crate::update::{StepUnderWay, Update};

/// The moving parts of a run.
pub(crate) struct TrainingStep<'a> {
    plan: &'a Plan,
    network: &'a Network,
    data: &'a TrainingData,
    update: Update,
}

impl<'a> TrainingStep<'a> {
    pub(crate) fn new(plan: &'a Plan, network: &'a Network, data: &'a TrainingData) -> Self {
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
            let (batch, text) = self.data.subject(self.plan, step, micro, self.network.schedule().num_timesteps())?;
            let batch = batch.to_device(self.device())?;
            let loss_scale = self.update.loss_scale().factor();
            let Outcome { weighted_loss, weight, gradients: store, .. } =
                self.network.run(&batch, &text, loss_scale)?;
            let mut gradients = self.network.factors().take_gradients(&store)?;
            drop(store); // candle's store holds on to the whole graph, which the prior must not find in memory
            self.add_prior(step, micro, &batch, weight, &mut gradients)?;
            self.update.loss_scale().remove(&mut gradients)?;
            tree.push(gradients, weighted_loss, weight)?;
        }
        tree.finish()?.ok_or(TrainError::StepWeight { weight: 0.0 })
    }

    /// On the prior's steps, adds its gradient: of its mean loss times its weight, for every unit of `weight`, which the images
    /// of the micro-batch have together, since the whole step is divided by that. The loss that is shown stays that of the
    /// images.
    fn add_prior(
        &self,
        step: u64,
        micro: u64,
        batch: &MicroBatch,
        weight: f64,
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let Some(prior) = self.plan.prior.as_ref().filter(|prior| step.is_multiple_of(prior.every_steps)) else {
            return Ok(());
        };
        let loss_scale = self.update.loss_scale().factor();
        let outcome = match prior.kind {
            PriorTerm::Base(_) => {
                let text = self.data.prior_text(self.plan, step, micro, batch.timesteps.len())?;
                // Where a mask leaves out, the subject is not learned, but the base is held to all the same.
                let everywhere = MicroBatch { loss_mask: None, ..batch.clone() };
                self.network.run_prior(&everywhere, &text, loss_scale)?
            }
            PriorTerm::Images { .. } => {
                let index = step / prior.every_steps * self.plan.accumulate as u64 + micro;
                let num_timesteps = self.network.schedule().num_timesteps();
                let (batch, text) = self.data.class(self.plan, index, step, micro, num_timesteps)?;
                self.network.run(&batch.to_device(self.device())?, &text, loss_scale)?
            }
        };
        let scale = prior.weight * (weight / outcome.weight);
        for (name, gradient) in self.network.factors().take_gradients(&outcome.gradients)? {
            let Some(sum) = gradients.get_mut(&name) else { return Err(TrainError::GradientNames { name }) };
            *sum = (&*sum + (gradient * scale)?)?;
        }
        Ok(())
    }
}

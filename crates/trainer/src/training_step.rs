//! One optimizer step: every micro-batch forward and backward, then clipping, then the update.
//!
//! On a card nothing of it waits for the result: loss and norm stay on the device until they are read, and meanwhile the
//! processor makes the next batch ready.

use std::path::PathBuf;

use candle_core::Device;

use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::network::Network;
use crate::objective::{MicroBatch, Outcome};
use crate::optimizer::OptimizerState;
use crate::plan::Plan;
use crate::plan::PriorTerm;
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
    pub(crate) fn new(plan: &'a Plan, network: &'a Network, data: &'a TrainingData) -> Result<Self, TrainError> {
        let (factors, dtype) = (network.factors(), plan.dtype.into());
        let path_of = |key: &str| factors.path_of(key).unwrap_or_default().to_owned();
        let rates = plan.factor_rates(factors.vars().into_keys().map(|key| (key.clone(), path_of(&key))));
        let update = Update::new(&plan.optimizer, rates, factors, network.device(), dtype)?;
        Ok(Self { plan, network, data, update })
    }

    pub(crate) fn update(&self) -> &Update {
        &self.update
    }

    pub(crate) fn device(&self) -> &Device {
        self.network.device()
    }

    /// The optimizer's state.
    pub(crate) fn state(&self) -> OptimizerState {
        self.update.state()
    }

    /// Goes on from the optimizer's state.
    pub(crate) fn load(&mut self, state: OptimizerState) -> Result<(), TrainError> {
        self.update.load(state)
    }

    /// The images that `step` sees.
    pub(crate) fn images_of(&self, step: u64) -> Vec<PathBuf> {
        self.data.paths(self.plan, step)
    }

    pub(crate) fn step(&mut self, step: u64) -> Result<StepUnderWay, TrainError> {
        let summed = self.summed_gradient(step)?;
        self.update.apply(step, summed, self.plan.schedule.ratio(step))
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
                let index = self.plan.class_batches(step)[micro as usize];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLayers;
    use candle_core::DType;
    use loralei_model::{Base, BaseSource};
    use std::path::Path;

    #[test]
    fn latents_that_are_not_finite_stop_the_first_step_that_sees_them_and_it_names_them() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let images = repository.join("datasets/octopus");
        let mut layers = ConfigLayers::new();
        layers.set_text("data.images", &images.display().to_string()).unwrap();
        for set in ["data.size_px=32", "data.cache=off", "train.batch_size=2", "train.accumulate=2"] {
            layers.set(set).unwrap();
        }
        let plan = Plan::new(&layers.resolve().unwrap().config).unwrap();
        let folder = repository.join("tests/golden/sd1/base");
        let base = Base::open(BaseSource::Folder(folder), None, DType::F32, &Device::Cpu).unwrap();
        let (_, data) = TrainingData::prepare(&plan, &base, &mut |_| ()).unwrap();
        let network = Network::load(&base, plan.unet.as_ref(), &[], plan.seed, plan.checkpointing).unwrap();
        let mut training = TrainingStep::new(&plan, &network, &data).unwrap();

        let spoiled = data.images.subject.path(3).to_owned();
        data.images.spoil(3);
        let (mut step, mut factors) = (0, network.factors().to_adapter().unwrap());
        while !training.images_of(step).contains(&spoiled) {
            training.step(step).unwrap();
            (step, factors) = (step + 1, network.factors().to_adapter().unwrap());
        }
        let error = training.step(step).err().unwrap();
        assert!(error.is_non_finite_step(), "{error}");
        assert_eq!(network.factors().to_adapter().unwrap(), factors);
        assert!(step < 8, "an epoch has {} micro-batches", data.images.subject.batches_per_epoch());
    }
}

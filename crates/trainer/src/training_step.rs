//! One optimizer step: every micro-batch forward and backward, then clipping, then the update.
//!
//! On a card nothing of it waits for the result: loss and norm stay on the device until they are read, and meanwhile the
//! processor makes the next batch ready.

use candle_core::Device;
use loralei_model::{Draw, Purpose};

use crate::captions::Captions;
use crate::data_plan::PriorTerm;
use crate::encoded::{EncodedData, EncodedImages, Latents};
use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::network::{Network, Text, tensor};
use crate::objective::{MicroBatch, Outcome};
use crate::plan::Plan;
use crate::update::{StepUnderWay, Update};

/// All that a run learns from.
pub(crate) struct TrainingData {
    pub(crate) images: EncodedData,
    pub(crate) captions: Captions,
    /// For the prior, not of any image.
    pub(crate) prior_captions: Vec<String>,
}

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
            let index = step * self.plan.accumulate as u64 + micro;
            let (batch, text) = self.micro_batch(&self.data.images.subject, index, step, micro, &OF_SUBJECT)?;
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
        let loss_scale = self.update.loss_scale().factor();
        let outcome = match prior.kind {
            PriorTerm::Base(_) => {
                let draw = Draw::new(self.plan.seed, step, micro, Purpose::PriorCaption);
                let b = batch.timesteps.len();
                let drawn = draw.integers(0..self.data.prior_captions.len() as i64, b);
                let captions: Vec<&str> = drawn.iter().map(|i| self.data.prior_captions[*i as usize].as_str()).collect();
                // Where a mask leaves out, the subject is not learned, but the base is held to all the same.
                let everywhere = MicroBatch { loss_mask: None, ..batch.clone() };
                self.network.run_prior(&everywhere, &self.data.captions.text(&captions)?, loss_scale)?
            }
            PriorTerm::Images { .. } => {
                let index = step / prior.every_steps * self.plan.accumulate as u64 + micro;
                let (batch, text) = self.micro_batch(&self.data.images.class, index, step, micro, &OF_CLASS)?;
                self.network.run(&batch, &text, loss_scale)?
            }
        };
        for (name, gradient) in self.network.factors().take_gradients(&outcome.gradients)? {
            let Some(sum) = gradients.get_mut(&name) else { return Err(TrainError::GradientNames { name }) };
            *sum = (&*sum + (gradient * prior.weight)?)?;
        }
        Ok(())
    }

    /// Micro-batch number `index` of `images`, on the device; its random numbers are those of `micro` in `step`.
    fn micro_batch(
        &self,
        images: &EncodedImages,
        index: u64,
        step: u64,
        micro: u64,
        purposes: &Purposes,
    ) -> Result<(MicroBatch, Text), TrainError> {
        let draw = |purpose| Draw::new(self.plan.seed, step, micro, purpose);
        let shown = images.shown(index);
        let Latents { latents, loss_mask, sample_weight } =
            self.data.images.latents(images, &shown, draw(purposes.latent_sample))?;
        let noise = tensor(draw(purposes.noise).standard_normal(latents.elem_count()), latents.shape())?;
        let last = self.network.schedule().num_timesteps() as i64;
        let timesteps = draw(purposes.timesteps).integers(0..last, shown.len());
        let batch = MicroBatch { latents, noise, timesteps, loss_mask, sample_weight: Some(sample_weight) };
        let captions: Vec<&str> = shown.iter().map(|shown| shown.caption.as_str()).collect();
        Ok((batch.to_device(self.device())?, self.data.captions.text(&captions)?))
    }
}

/// What the random numbers of a micro-batch are drawn for.
struct Purposes {
    latent_sample: Purpose,
    noise: Purpose,
    timesteps: Purpose,
}

const OF_SUBJECT: Purposes =
    Purposes { latent_sample: Purpose::LatentSample, noise: Purpose::Noise, timesteps: Purpose::Timesteps };
const OF_CLASS: Purposes =
    Purposes { latent_sample: Purpose::PriorLatentSample, noise: Purpose::PriorNoise, timesteps: Purpose::PriorTimesteps };

//! A training run from a checked plan to the adapter's file.
//!
//! The state of a run is the factors, the optimizer's moments and the step; batch order, noise, timesteps and the draws
//! of latents are functions of (seed, step, micro-batch), the learning rate a function of the step.

use loralei_data::{CaptionRules, Folder, batch_at};
use loralei_model::{Base, BaseSource};
use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Var};
use std::collections::BTreeMap;

use crate::adamw::AdamW;
use crate::before_after::{BeforeAfter, SampleRun};
use crate::clip::clip_global_norm;
use crate::encoded::EncodedData;
use crate::error::TrainError;
use crate::event::{Event, StepReport};
use crate::gradient_tree::{GradientTree, Gradients, StepGradient};
use crate::memory::{peak_resident_bytes, resident_bytes};
use crate::metrics::MetricsWriter;
use crate::network::{Network, tensor};
use crate::objective::MicroBatch;
use crate::plan::Plan;
use crate::prior::prior_captions;
use crate::result::{AdapterFile, WrittenAdapter, adapter_path};
use crate::smoothed_loss::SmoothedLoss;
use loralei_model::{Draw, Purpose};

/// What a finished run left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The adapter.
    pub adapter: WrittenAdapter,
    /// Mean loss of the first and of the last tenth of the steps.
    pub losses: (f64, f64),
    /// Pictures before and after, if the settings ask for some.
    pub samples: Option<BeforeAfter>,
}

/// Trains as `plan` says and reports to `events`. `resolved_toml` is written beside the result.
///
/// # Errors
/// Anything that [`TrainError`] names; no adapter is written then.
pub fn train(
    plan: &Plan,
    resolved_toml: &str,
    base: BaseSource,
    events: &mut dyn FnMut(Event),
) -> Result<Finished, TrainError> {
    let started = Instant::now();
    let base = Base::open(base, plan.prediction, plan.dtype.into(), &Device::Cpu)?;
    base.check_size(plan.width_px, plan.height_px)?;
    let folder = read_folder(plan, events)?;
    let size_px = (plan.width_px, plan.height_px);
    let prior = prior_captions(plan, &folder)?;
    let data = EncodedData::new(&base, &folder, size_px, plan.text_encoder.is_some(), prior, events)?;
    events(Event::PhaseStarted { name: "loading the base".into(), total: None });
    let (unet, text) = (plan.unet.as_ref(), plan.text_encoder.as_ref());
    let network = Network::load(&base, unet, text, plan.seed, plan.checkpointing)?;
    let mut metrics = open_folder(plan, resolved_toml)?;

    let mut run = Run::new(plan, &network, &data);
    let mut smoothed = SmoothedLoss::new();
    let mut losses = Vec::with_capacity(plan.steps as usize);
    events(Event::PhaseStarted { name: "training".into(), total: Some(plan.steps) });
    for step in 0..plan.steps {
        let step_started = Instant::now();
        let done = run.step(step)?;
        let step_s = step_started.elapsed().as_secs_f64();
        let report = StepReport {
            step,
            loss: done.loss,
            smoothed_loss: smoothed.update(done.loss),
            learning_rate: done.learning_rate,
            grad_norm: done.grad_norm,
            step_s,
            images_per_s: plan.samples_per_step() as f64 / step_s,
            resident_bytes: resident_bytes(),
        };
        losses.push(done.loss);
        metrics.write(&report)?;
        events(Event::Step(report));
    }

    let file = AdapterFile { plan, base: &base, folder: &folder, resolved_toml };
    let adapter = file.write(network.factors(), events)?;
    let samples = plan.samples.as_ref().map(|samples| SampleRun { plan, samples, base: &base, network: &network });
    let samples = samples.map(|run| run.draw(events)).transpose()?;
    let finished = Finished { adapter, losses: first_and_last(&losses), samples };
    let elapsed_s = started.elapsed().as_secs_f64();
    events(Event::Done { num_steps: plan.steps, elapsed_s, peak_resident_bytes: peak_resident_bytes() });
    Ok(finished)
}

/// Means over the first and the last tenth, each at least one step long.
fn first_and_last(losses: &[f64]) -> (f64, f64) {
    let tenth = losses.len().div_ceil(10).max(1);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    (mean(&losses[..tenth.min(losses.len())]), mean(&losses[losses.len().saturating_sub(tenth)..]))
}

/// The images and captions; what was found and what was left aside is said.
fn read_folder(plan: &Plan, events: &mut dyn FnMut(Event)) -> Result<Folder, TrainError> {
    let rules = CaptionRules { prompt: plan.prompt.as_deref(), trigger: plan.trigger.as_deref() };
    let folder = Folder::read(&plan.images, rules)?;
    for skipped in &folder.skipped {
        let message = format!("left aside `{}`: {}", skipped.path.display(), skipped.reason);
        events(Event::Warning { message });
    }
    let (images, captions) = (folder.samples.len(), folder.num_caption_files);
    events(Event::Note {
        message: format!("{images} images, {captions} with a caption file, in `{}`", plan.images.display()),
    });
    Ok(folder)
}

/// Makes the run's folder, with the settings in it. Nothing of an earlier run is touched but its `metrics.jsonl` and
/// `run.toml`, which describe the run that is in the folder now.
fn open_folder(plan: &Plan, resolved_toml: &str) -> Result<MetricsWriter, TrainError> {
    let disk = |path: &Path, source| TrainError::Disk { path: path.to_path_buf(), source };
    std::fs::create_dir_all(&plan.output_folder).map_err(|error| disk(&plan.output_folder, error))?;
    loralei_adapter::atomic_write_bytes(&plan.output_folder.join("run.toml"), resolved_toml.as_bytes())?;
    let metrics = plan.output_folder.join("metrics.jsonl");
    if metrics.exists() {
        std::fs::remove_file(&metrics).map_err(|error| disk(&metrics, error))?;
    }
    let adapter = adapter_path(plan);
    if adapter.is_dir() {
        return Err(disk(&adapter, std::io::ErrorKind::IsADirectory.into()));
    }
    MetricsWriter::append(&metrics)
}

/// What one step did.
struct StepDone {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
}

/// The moving parts of the loop.
struct Run<'a> {
    plan: &'a Plan,
    network: &'a Network,
    data: &'a EncodedData,
    factors: BTreeMap<String, Var>,
    adamw: AdamW,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, network: &'a Network, data: &'a EncodedData) -> Self {
        let adamw = AdamW::new(plan.adamw);
        Self { plan, network, data, factors: network.factors().vars(), adamw }
    }

    /// One optimizer step: every micro-batch, then clipping, then the update.
    fn step(&mut self, step: u64) -> Result<StepDone, TrainError> {
        let mut tree = GradientTree::new();
        for micro in 0..self.plan.accumulate as u64 {
            let (batch, text) = self.micro_batch(step, micro)?;
            let outcome = self.network.run(&batch, &text)?;
            let mut gradients = self.network.factors().take_gradients(&outcome.gradients)?;
            self.add_prior(step, micro, &batch, &mut gradients)?;
            tree.push(gradients, outcome.weighted_loss, outcome.weight)?;
        }
        let Some(StepGradient { mut gradients, loss, .. }) = tree.finish()? else {
            return Err(TrainError::StepWeight { weight: 0.0 });
        };
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteLoss { step, loss });
        }
        let grad_norm = clip_global_norm(&mut gradients, self.plan.max_grad_norm)?;
        let ratio = self.plan.schedule.ratio(step);
        self.adamw.step(&self.factors, &gradients, |key| ratio * self.plan.learning_rate_of(key))?;
        Ok(StepDone { loss, grad_norm, learning_rate: ratio * self.plan.learning_rate() })
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
        let outcome = self.network.run_prior(batch, &text)?;
        for (name, gradient) in self.network.factors().take_gradients(&outcome.gradients)? {
            let Some(sum) = gradients.get_mut(&name) else { return Err(TrainError::GradientNames { name }) };
            *sum = (&*sum + (gradient * prior.weight)?)?;
        }
        Ok(())
    }

    /// The numbers of micro-batch `micro` of `step`: a function of these and of the seed.
    fn micro_batch(&self, step: u64, micro: u64) -> Result<(MicroBatch, crate::network::Text), TrainError> {
        let Plan { seed, batch_size, accumulate, .. } = *self.plan;
        let indices = batch_at(seed, self.data.len(), batch_size, step * accumulate as u64 + micro);
        let draw = |purpose| Draw::new(seed, step, micro, purpose);
        let latents = self.data.latents(&indices, draw(Purpose::LatentSample))?;
        let noise = tensor(draw(Purpose::Noise).standard_normal(latents.elem_count()), latents.shape())?;
        let last = self.network.schedule().num_timesteps() as i64;
        let timesteps = draw(Purpose::Timesteps).integers(0..last, batch_size);
        let sample_weight = Some(self.data.weights(&indices));
        Ok((MicroBatch { latents, noise, timesteps, loss_mask: None, sample_weight }, self.data.text(&indices)?))
    }
}

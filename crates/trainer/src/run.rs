//! A training run from a checked plan to the adapter's file.
//!
//! The state of a run is the factors, the optimizer's moments and the step; batch order, noise, timesteps and the draws
//! of latents are functions of (seed, step, micro-batch), the learning rate a function of the step.

use loralei_model::{Base, BaseDescription, BaseSource, DeviceChoice, DeviceSession, peak_device_bytes};
use std::path::Path;
use std::time::Instant;

use crate::before_after::{BeforeAfter, SampleRun};
use crate::error::TrainError;
use crate::event::{Event, StepReport};
use crate::memory::{peak_resident_bytes, resident_bytes};
use crate::memory_switch::MemorySwitch;
use crate::metrics::MetricsWriter;
use crate::network::Network;
use crate::plan::Plan;
use crate::result::{AdapterFile, WrittenAdapter, adapter_path};
use crate::smoothed_loss::SmoothedLoss;
use crate::training_data::TrainingData;
use crate::training_step::TrainingStep;
use crate::update::StepUnderWay;

/// Steps between two readings on a card.
const READ_EVERY_STEPS: usize = 10;

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
    let mut expected_bytes = None;
    let trained =
        plan.ops.run(|| plan.compute.run(|| train_here(plan, resolved_toml, base, &mut expected_bytes, events)));
    trained.map_err(|error| error.or_out_of_memory(plan.device, expected_bytes))
}

fn train_here(
    plan: &Plan,
    resolved_toml: &str,
    base: BaseSource,
    expected_bytes: &mut Option<u64>,
    events: &mut dyn FnMut(Event),
) -> Result<Finished, TrainError> {
    let started = Instant::now();
    let base = Base::open(base, plan.prediction, plan.number_types, &plan.device.open()?)?;
    let _session = DeviceSession::start(base.device(), plan.tf32);
    let (width_px, height_px) = plan.data.largest_px();
    base.check_size(width_px, height_px)?;
    *expected_bytes = Some(expect_memory(plan, &base, events)?);
    let (images, data) = TrainingData::prepare(plan, &base, events)?;
    events(Event::PhaseStarted { name: "loading the base".into(), total: None });
    let (unet, text) = (plan.unet.as_ref(), plan.text_encoder.as_ref());
    let network = Network::load(&base, unet, text, plan.seed, plan.checkpointing)?;
    let mut metrics = open_folder(plan, resolved_toml)?;

    let losses = run_steps(plan, &network, &data, &mut metrics, events)?;
    let file = AdapterFile { plan, base: &base, images: &images, encoded: &data.images.subject, resolved_toml };
    let adapter = file.write(network.factors(), events)?;
    let samples = plan.samples.as_ref().map(|samples| SampleRun { plan, samples, base: &base, network: &network });
    let samples = samples.map(|run| run.draw(events)).transpose()?;
    let finished = Finished { adapter, losses: first_and_last(&losses), samples };
    let elapsed_s = started.elapsed().as_secs_f64();
    let (peak_resident_bytes, peak_device_bytes) = (peak_resident_bytes(), peak_device_bytes(base.device()));
    events(Event::Done { num_steps: plan.steps, elapsed_s, peak_resident_bytes, peak_device_bytes });
    Ok(finished)
}

/// How much memory the run will take, said before anything large is loaded, with a warning where there is less.
fn expect_memory(plan: &Plan, base: &Base, events: &mut dyn FnMut(Event)) -> Result<u64, TrainError> {
    let (width_px, height_px) = plan.data.largest_px();
    let size = plan.training_size(width_px, height_px);
    let found = BaseDescription::of(base)?;
    let (expected, switches) =
        (found.training_bytes(size), MemorySwitch::of(&found, size, plan.device == DeviceChoice::Cpu));
    let switches = MemorySwitch::list(&switches);
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let device = plan.device;
    let less = if switches.is_empty() { String::new() } else { format!("; less with {switches}") };
    events(Event::Note { message: format!("memory: about {} on {device}{less}", gigabytes(expected)) });
    if let Some(free) = device.free_bytes().filter(|free| *free < expected) {
        let (expected, free) = (gigabytes(expected), gigabytes(free));
        let remedy = if switches.is_empty() { "no setting lowers it".to_owned() } else { format!("try {switches}") };
        let message = format!("{device} has {free} free, the run will take about {expected}: {remedy}");
        events(Event::Warning { message });
    }
    Ok(expected)
}

/// All steps; returns their losses. On a card, losses are read only now and then, because a reading waits for all work.
fn run_steps(
    plan: &Plan,
    network: &Network,
    data: &TrainingData,
    metrics: &mut MetricsWriter,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<f64>, TrainError> {
    let mut run = TrainingStep::new(plan, network, data);
    let read_every = if run.device().is_cpu() { 1 } else { READ_EVERY_STEPS };
    let (mut smoothed, mut losses) = (SmoothedLoss::new(), Vec::with_capacity(plan.steps as usize));
    let (mut unread, mut read_at) = (Vec::new(), Instant::now());
    events(Event::PhaseStarted { name: "training".into(), total: Some(plan.steps) });
    for step in 0..plan.steps {
        unread.push(run.step(step)?);
        if unread.len() < read_every && step + 1 < plan.steps {
            continue;
        }
        let read = unread.drain(..).map(StepUnderWay::read).collect::<Result<Vec<_>, _>>()?;
        let step_s = read_at.elapsed().as_secs_f64() / read.len() as f64;
        read_at = Instant::now();
        for done in read {
            let report = StepReport {
                step: done.step,
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
    }
    Ok(losses)
}

/// Means over the first and the last tenth, each at least one step long.
fn first_and_last(losses: &[f64]) -> (f64, f64) {
    let tenth = losses.len().div_ceil(10).max(1);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    (mean(&losses[..tenth.min(losses.len())]), mean(&losses[losses.len().saturating_sub(tenth)..]))
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

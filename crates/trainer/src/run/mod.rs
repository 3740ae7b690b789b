//! A training run from a checked plan to the adapter's file, through any number of interruptions.
//!
//! The state of a run is the factors, the optimizer's tensors and the step; batch order, noise, timesteps and the draws of
//! latents are functions of (seed, step, micro-batch), the learning rate a function of the step. So a [`snapshot`] is enough
//! to go on from, to the bit.

mod control;
mod fingerprint;
mod folder;
mod journal;
mod json_lines;
mod metrics;
mod observation;
mod snapshot;
mod status;
mod steps;

use std::time::Instant;

use loralei_adapter::keys::Component;
use loralei_data::Depth;
use loralei_model::{Base, BaseDescription, BaseSource, DeviceSession, peak_device_bytes};

use crate::before_after::BeforeAfter;
use crate::config::ResolvedConfig;
use crate::data_check::DataCheck;
use crate::error::TrainError;
use crate::event::Event;
use crate::memory::peak_resident_bytes;
use crate::memory_switch::MemorySwitch;
use crate::model_card::{model_card, write_card};
use crate::network::Network;
use crate::plan::Plan;
use crate::result::{AdapterFile, WrittenAdapter};
use crate::run_summary::{RunRecord, RunSummary};
use crate::training_data::TrainingData;
use crate::training_images::TrainingImages;
use fingerprint::Fingerprint;
use folder::RunFolder;
use journal::Journal;
use snapshot::Snapshot;
use steps::{Steps, Surroundings};

pub use control::{Control, Interruption, Request};
pub use folder::{RunHandle, Start};
pub use metrics::{MetricsLine, MetricsWriter, read_metrics};
pub use status::{RunState, RunStatus};

/// How a plan is to be run.
#[derive(Debug, Clone)]
pub struct RunOptions<'a> {
    /// The settings that the plan was made of, as they are written down.
    pub resolved: &'a ResolvedConfig,
    /// What to do with a run that the folder holds already.
    pub start: Start,
    /// Ends the run after so many steps, with a snapshot.
    pub until: Option<u64>,
    /// Signals.
    pub control: Control,
}

impl<'a> RunOptions<'a> {
    /// A new run from its first step to its last.
    pub fn new(resolved: &'a ResolvedConfig) -> Self {
        Self { resolved, start: Start::New, until: None, control: Control::new() }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// All steps are made.
    Finished(Box<Finished>),
    /// It was stopped, and can go on.
    Stopped(Stopped),
}

impl Ended {
    /// The adapter as far as it got.
    pub fn adapter(&self) -> &WrittenAdapter {
        match self {
            Self::Finished(finished) => &finished.adapter,
            Self::Stopped(stopped) => &stopped.adapter,
        }
    }
}

/// What a finished run left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The adapter.
    pub adapter: WrittenAdapter,
    /// Pictures before and after, if the settings ask for some.
    pub samples: Option<BeforeAfter>,
    /// What it says of itself.
    pub summary: RunSummary,
}

/// What a run left behind that was stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Stopped {
    /// Steps made.
    pub step: u64,
    /// Steps of the whole run.
    pub num_steps: u64,
    /// The adapter as far as it got.
    pub adapter: WrittenAdapter,
    /// Whether a signal stopped it.
    pub by_signal: bool,
}

/// Trains as `plan` says and reports to `events`.
///
/// # Errors
/// Anything that [`TrainError`] names; no snapshot and no adapter is touched then.
pub fn train(
    plan: &Plan,
    base: BaseSource,
    options: &RunOptions,
    events: &mut dyn FnMut(Event),
) -> Result<Ended, TrainError> {
    let folder = RunFolder::open(&plan.output_folder, &plan.output_name, options.start)?;
    let mut journal = Journal::open(&folder, events)?;
    let mut expected_bytes = None;
    let run = Run { plan, options, folder: &folder };
    let ended = plan.ops.run(|| plan.compute.run(|| run.train(base, &mut expected_bytes, &mut journal)));
    let ended = ended.map_err(|error| error.or_out_of_memory(plan.device, expected_bytes));
    let (state, message) = match &ended {
        Ok(Ended::Finished(_)) => (RunState::Finished, "finished".to_owned()),
        Ok(Ended::Stopped(Stopped { step, .. })) => (RunState::Stopped, format!("stopped after step {step}")),
        Err(error) => (RunState::Failed, error.to_string()),
    };
    let (said, has_begun) = (journal.state(state, &message), journal.has_begun());
    drop(journal);
    if ended.is_err() && !has_begun {
        folder.give_up();
    }
    // What went wrong first is what matters.
    ended.and_then(|ended| said.map(|()| ended))
}

struct Run<'a> {
    plan: &'a Plan,
    options: &'a RunOptions<'a>,
    folder: &'a RunFolder,
}

impl Run<'_> {
    fn train(
        &self,
        base: BaseSource,
        expected_bytes: &mut Option<u64>,
        journal: &mut Journal,
    ) -> Result<Ended, TrainError> {
        let (plan, started) = (self.plan, Instant::now());
        let found = self.newest_snapshot(journal)?;
        let base = Base::open(base, plan.noising, plan.number_types, &plan.device.open()?)?;
        let _session = DeviceSession::start(base.device(), plan.tf32);
        let (width_px, height_px) = plan.data.largest_px();
        base.check_size(width_px, height_px)?;
        say_what_the_base_is(plan, &base, journal);
        *expected_bytes = Some(expect_memory(plan, &base, journal)?);
        let (images, data) = TrainingData::prepare(plan, &base, &mut |event| journal.say(event))?;
        let plan = &plan.with_steps(plan.steps_of(data.images.subject.batches_per_epoch()));
        let fingerprint = Fingerprint::of(&self.options.resolved.config, plan, &base, &data)?;
        self.check_same(found.as_ref(), &fingerprint, journal)?;

        let check =
            DataCheck { plan, base: Some(&base), size_multiple_px: base.size_multiple_px(), depth: Depth::Header };
        let report = serde_json::to_vec(&check.run(|_, _, _| ())?.report).unwrap_or_default();
        loralei_adapter::atomic_write_bytes(&self.folder.file("data.json"), &report)?;

        journal.say(Event::PhaseStarted { name: "loading the base".into(), total: None });
        let network = Network::load(&base, plan.unet.as_ref(), &plan.text_encoders, plan.seed, plan.checkpointing)?;
        journal.note(what_learns(&network, base.num_text_encoders()));
        if let (None, Some(path)) = (&found, &plan.start_from) {
            network.start_from(&base, path)?.into_iter().for_each(|message| journal.note(message));
        }
        let resolved_toml = self.options.resolved.to_toml();
        loralei_adapter::atomic_write_bytes(&self.folder.file("run.toml"), resolved_toml.as_bytes())?;
        let settings = self.options.resolved.config.to_toml();
        let file =
            AdapterFile { plan, base: &base, images: &images, encoded: &data.images.subject, settings: &settings };

        let (options, folder) = (self.options, self.folder);
        let around = Surroundings { plan, options, folder, base: &base, network: &network, data: &data, file: &file };
        let mut steps = Steps::new(around, fingerprint, journal)?;
        if let Some(snapshot) = found {
            steps.load(snapshot)?;
        }
        if let Some(stopped) = steps.run(journal)? {
            return Ok(Ended::Stopped(stopped));
        }
        let finished = self.finish(plan, &steps, &images, journal)?;
        let (num_steps, elapsed_s) = (steps.step(), started.elapsed().as_secs_f64());
        let (peak_resident_bytes, peak_device_bytes) = (peak_resident_bytes(), peak_device_bytes(base.device()));
        journal.say(Event::Done { num_steps, elapsed_s, peak_resident_bytes, peak_device_bytes });
        Ok(Ended::Finished(Box::new(finished)))
    }

    /// The adapter and what is to be said of it.
    fn finish(
        &self,
        plan: &Plan,
        steps: &Steps,
        images: &TrainingImages,
        journal: &mut Journal,
    ) -> Result<Finished, TrainError> {
        let written = steps.write_adapter(self.folder.adapter(), journal)?;
        let adapter = written.checked(&mut |event| journal.say(event))?;
        let (observation, losses) = (steps.observation(), steps.losses()?);
        let (first, last) = observation.first_and_last_pictures();
        // The adapter is on the disk: pictures that somebody took away are no reason to end with an error.
        let samples = BeforeAfter::write(plan, first, last, &mut |event| journal.say(event)).unwrap_or_else(|error| {
            journal.warn(format!("no picture of before and after: {error}"));
            None
        });
        let record = RunRecord {
            plan,
            num_images: images.subject.len(),
            losses: &losses,
            validation: observation.history().points(),
            written: &written,
            adapter: &adapter,
        };
        let summary = RunSummary::of(&record);
        summary.write(self.folder.path())?;
        let card = model_card(&record, &summary, steps.step(), last);
        write_card(&self.folder.file("README.md"), &card)?;
        Ok(Finished { adapter: written, samples, summary })
    }

    /// What to go on from.
    fn newest_snapshot(&self, journal: &mut Journal) -> Result<Option<Snapshot>, TrainError> {
        if !matches!(self.options.start, Start::Resume { .. }) {
            return Ok(None);
        }
        let (found, damaged) = Snapshot::newest(&self.folder.snapshots()?)?;
        damaged.into_iter().for_each(|message| journal.warn(message));
        journal.note(match &found {
            Some(snapshot) => format!("goes on after step {}", snapshot.step),
            None => "there is no snapshot yet: begins at step 0".to_owned(),
        });
        Ok(found)
    }

    /// Whether what is to go on is this run.
    fn check_same(&self, found: Option<&Snapshot>, now: &Fingerprint, journal: &mut Journal) -> Result<(), TrainError> {
        let differences = found.map(|snapshot| snapshot.fingerprint.differences(now)).unwrap_or_default();
        if differences.is_empty() {
            return Ok(());
        }
        if self.options.start != (Start::Resume { anyway: true }) {
            return Err(TrainError::AnotherRun { differences });
        }
        differences.into_iter().for_each(|difference| journal.warn(format!("goes on though it differs: {difference}")));
        Ok(())
    }
}

/// What the base predicts, who says so, and what is to be known of it.
fn say_what_the_base_is(plan: &Plan, base: &Base, journal: &mut Journal) {
    journal.note(format!("predicts {}", base.predicts()));
    base.warnings().iter().for_each(|warning| journal.warn(warning.clone()));
    plan.objective_warning(&base.noise_schedule()).into_iter().for_each(|warning| journal.warn(warning));
    let (native_px, (width_px, height_px)) = (base.native_size_px(), plan.data.largest_px());
    if 2 * width_px * height_px < native_px * native_px {
        journal.note(format!(
            "images are {width_px} x {height_px} px, the base has learned at {native_px} px (`data.size_px`)"
        ));
    }
}

/// `U-Net 560 modules, text encoder 1 none, text encoder 2 192`.
fn what_learns(network: &Network, num_text_encoders: usize) -> String {
    let count = |component: Component| {
        let of_it =
            network.factors().modules().filter(|factors| Component::of_module(factors.module()) == Some(component));
        match of_it.count() {
            0 => "none".to_owned(),
            count => format!("{count} modules"),
        }
    };
    let texts = (0..num_text_encoders).filter_map(|i| Component::text_encoder(i, num_text_encoders));
    let each = [Component::Unet].into_iter().chain(texts).map(|part| format!("{} {}", part.name(), count(part)));
    format!("learns: {}", each.collect::<Vec<_>>().join(", "))
}

/// How much memory the run will take, said before anything large is loaded, with a warning where there is less.
fn expect_memory(plan: &Plan, base: &Base, journal: &mut Journal) -> Result<u64, TrainError> {
    let (width_px, height_px) = plan.data.largest_px();
    let size = plan.training_size(width_px, height_px);
    let found = BaseDescription::of(base)?;
    let (expected, switches) = (found.training_bytes(size), MemorySwitch::of(&found, size));
    let switches = MemorySwitch::list(&switches);
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let device = plan.device;
    let less = if switches.is_empty() { String::new() } else { format!("; less with {switches}") };
    journal.note(format!("memory: about {} on {device}{less}", gigabytes(expected)));
    if let Some(free) = device.free_bytes().filter(|free| *free < expected) {
        let (expected, free) = (gigabytes(expected), gigabytes(free));
        let remedy = if switches.is_empty() { "no setting lowers it".to_owned() } else { format!("try {switches}") };
        journal.warn(format!("{device} has {free} free, the run will take about {expected}: {remedy}"));
    }
    Ok(expected)
}

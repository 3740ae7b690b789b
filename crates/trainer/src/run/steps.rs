//! The steps of a run, one after the other: what is due after each, what is asked in between, and when to stop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use loralei_model::Base;
use serde::Serialize;

use super::control::Request;
use super::fingerprint::Fingerprint;
use super::folder::RunFolder;
use super::journal::Journal;
use super::observation::Observation;
use super::snapshot::Snapshot;
use super::status::RunState;
use super::{RunOptions, Stopped, read_metrics};
use crate::error::TrainError;
use crate::event::{Event, StepReport};
use crate::memory::resident_bytes;
use crate::network::Network;
use crate::plan::{Plan, usual_snapshot_steps};
use crate::result::{AdapterFile, WrittenAdapter};
use crate::smoothed_loss::SmoothedLoss;
use crate::training_data::TrainingData;
use crate::training_step::TrainingStep;
use crate::update::StepUnderWay;

/// Steps between two readings on a card.
const READ_EVERY_STEPS: usize = 10;

/// What a run works with.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a RunOptions<'a>,
    pub(super) folder: &'a RunFolder,
    pub(super) base: &'a Base,
    pub(super) network: &'a Network,
    pub(super) data: &'a TrainingData,
    pub(super) file: &'a AdapterFile<'a>,
}

/// The run between its first and its last step.
pub(super) struct Steps<'a> {
    plan: &'a Plan,
    options: &'a RunOptions<'a>,
    folder: &'a RunFolder,
    network: &'a Network,
    file: &'a AdapterFile<'a>,
    fingerprint: Fingerprint,
    training: TrainingStep<'a>,
    observation: Observation<'a>,
    /// Steps made.
    step: u64,
    smoothed: SmoothedLoss,
    /// Steps of which the numbers were not read yet.
    unread: Vec<StepUnderWay>,
    read_at: Instant,
    /// The step of the newest snapshot.
    saved_at: Option<u64>,
}

/// `nan-report.json`: what is known of a step whose numbers were not finite.
#[derive(Serialize)]
struct NanReport<'a> {
    step: u64,
    learning_rate: f64,
    problem: String,
    images: &'a [PathBuf],
}

impl<'a> Steps<'a> {
    /// # Errors
    /// Prompts that cannot be read, encoded images that are gone, no memory.
    pub(super) fn new(
        of: Surroundings<'a>,
        fingerprint: Fingerprint,
        journal: &mut Journal,
    ) -> Result<Self, TrainError> {
        let Surroundings { plan, options, folder, base, network, data, file } = of;
        Ok(Self {
            plan,
            options,
            folder,
            network,
            file,
            fingerprint,
            training: TrainingStep::new(plan, network, data)?,
            observation: Observation::prepare(plan, base, network, data, options.control.clone(), journal)?,
            step: 0,
            smoothed: SmoothedLoss::new(),
            unread: Vec::new(),
            read_at: Instant::now(),
            saved_at: None,
        })
    }

    /// Goes on from `snapshot`.
    ///
    /// # Errors
    /// [`TrainError::Snapshot`] if its factors are not those of the network.
    pub(super) fn load(&mut self, snapshot: Snapshot) -> Result<(), TrainError> {
        let Snapshot { step, factors, optimizer, .. } = snapshot;
        let path = self.folder.snapshot(step);
        let vars = self.network.factors().vars();
        let fits = |(key, var): (&String, &candle_core::Var)| {
            factors.get(key).is_some_and(|tensor| tensor.dims() == var.dims())
        };
        if vars.len() != factors.len() || !vars.iter().all(fits) {
            let reason = "its factors are not those that the settings ask for".to_owned();
            return Err(TrainError::Snapshot { path, reason });
        }
        for (key, var) in &vars {
            var.set(&factors[key].to_device(self.network.device())?)?;
        }
        self.training.load(optimizer)?;
        (self.step, self.saved_at) = (step, Some(step));
        Ok(())
    }

    /// Makes the steps that are left. `None` once all are made.
    ///
    /// # Errors
    /// Numbers that are not finite, a disk that cannot be written.
    pub(super) fn run(&mut self, journal: &mut Journal) -> Result<Option<Stopped>, TrainError> {
        self.folder.prune(self.plan.keep_snapshots)?;
        if self.step < self.plan.steps {
            self.folder.forget("summary.json")?; // of a run that was finished and is made longer
        }
        self.observation.resume(self.folder, self.step)?;
        for line in journal.begin(self.step, self.plan.steps, self.plan.tensorboard)? {
            self.smoothed.update(line.loss.unwrap_or_default());
        }
        journal.say(Event::PhaseStarted { name: "training".into(), total: Some(self.plan.steps) });
        self.read_at = Instant::now();
        self.options.control.set_something_to_save(true);
        let stopped = self.make_steps(journal);
        self.options.control.set_something_to_save(false);
        stopped
    }

    fn make_steps(&mut self, journal: &mut Journal) -> Result<Option<Stopped>, TrainError> {
        loop {
            self.look(journal)?;
            if self.step >= self.plan.steps || self.stops_early(journal)? {
                return Ok(None);
            }
            if let Some(stopped) = self.stop_if_asked(journal)? {
                return Ok(Some(stopped));
            }
            let under_way = self.training.step(self.step).map_err(|error| self.diverged(self.step, error))?;
            self.unread.push(under_way);
            self.step += 1;
            let read_every = if self.network.device().is_cpu() { 1 } else { READ_EVERY_STEPS };
            if self.unread.len() >= read_every {
                self.read(journal)?;
            }
            let is_due = |every: u64| every > 0 && self.step.is_multiple_of(every);
            if is_due(self.save_every_steps()) || self.step == self.plan.steps {
                self.save(journal)?;
            }
        }
    }

    /// Validation and pictures, where they are due. The step is saved before, because they may take long.
    fn look(&mut self, journal: &mut Journal) -> Result<(), TrainError> {
        if !self.observation.is_due(self.step) {
            return Ok(());
        }
        if self.step > 0 && self.saved_at != Some(self.step) {
            self.save(journal)?;
        }
        let (observation, step) = (&mut self.observation, self.step);
        let (file, network, best) = (self.file, self.network, self.folder.best_adapter());
        let keep = |journal: &mut Journal| {
            file.write(network.factors(), step, best, &mut |event| journal.say(event)).map(drop)
        };
        self.training.update().with_factors_to_use(|| observation.look(step, journal, keep))?;
        journal.state(RunState::Training, "training")?;
        self.read_at = Instant::now();
        Ok(())
    }

    /// Whether validation has not got better for as long as the settings allow. Then the step is saved.
    fn stops_early(&mut self, journal: &mut Journal) -> Result<bool, TrainError> {
        if !self.observation.should_stop() {
            return Ok(false);
        }
        self.save(journal)?;
        let best = self.observation.history().best().map_or_else(String::new, |best| {
            format!("; `{}` is the best, of step {}", self.folder.best_adapter().display(), best.step)
        });
        journal.note(format!("ends after {} steps: validation does not get better{best}", self.step));
        Ok(true)
    }

    /// Does what signals and files ask for.
    fn stop_if_asked(&mut self, journal: &mut Journal) -> Result<Option<Stopped>, TrainError> {
        let asked = self.folder.asked();
        let by_signal = self.options.control.is_interrupted();
        let stops = by_signal || asked.contains(&Request::Stop) || self.options.until.is_some_and(|n| self.step >= n);
        let mut adapter = None;
        if stops || asked.contains(&Request::Save) {
            adapter = Some(self.save(journal)?);
        }
        if asked.contains(&Request::Sample) {
            let (observation, step) = (&mut self.observation, self.step);
            self.training.update().with_factors_to_use(|| observation.draw(step, journal))?;
            self.read_at = Instant::now();
        }
        for request in asked {
            self.folder.fulfil(request)?;
        }
        let Some(adapter) = adapter.filter(|_| stops) else { return Ok(None) };
        Ok(Some(Stopped { step: self.step, num_steps: self.plan.steps, adapter, by_signal }))
    }

    fn save_every_steps(&self) -> u64 {
        self.plan.save_every_steps.unwrap_or_else(|| usual_snapshot_steps(self.plan.steps))
    }

    /// Waits for the numbers of all steps made, and reports them.
    fn read(&mut self, journal: &mut Journal) -> Result<(), TrainError> {
        let count = self.unread.len();
        let mut read = Vec::with_capacity(count);
        for under_way in std::mem::take(&mut self.unread) {
            let step = under_way.step();
            read.push(under_way.read().map_err(|error| self.diverged(step, error))?);
        }
        let step_s = self.read_at.elapsed().as_secs_f64() / count.max(1) as f64;
        self.read_at = Instant::now();
        for done in read {
            journal.step(StepReport {
                step: done.step,
                loss: done.loss,
                smoothed_loss: self.smoothed.update(done.loss),
                learning_rate: done.learning_rate,
                grad_norm: done.grad_norm,
                step_s,
                images_per_s: self.plan.samples_per_step() as f64 / step_s,
                resident_bytes: resident_bytes(),
                scalars: done.scalars,
            })?;
        }
        Ok(())
    }

    /// The same error with the images of its step, which are written down as well.
    fn diverged(&self, step: u64, error: TrainError) -> TrainError {
        if !error.is_non_finite_step() {
            return error;
        }
        let images = self.training.images_of(step);
        let learning_rate = self.plan.schedule.ratio(step) * self.plan.learning_rate();
        let report = NanReport { step, learning_rate, problem: error.to_string(), images: &images };
        let bytes = serde_json::to_vec_pretty(&report).unwrap_or_default();
        // The error itself says the same.
        let _ = loralei_adapter::atomic_write_bytes(&self.folder.file("nan-report.json"), &bytes);
        TrainError::Diverged { step, images, source: Box::new(error) }
    }

    /// Writes the adapter and the state as they are, verifies both, and only then removes old ones.
    fn save(&mut self, journal: &mut Journal) -> Result<WrittenAdapter, TrainError> {
        self.read(journal)?;
        let (path, state) = (self.folder.adapter_of(self.step), self.folder.snapshot(self.step));
        let adapter = self.write_adapter(path, journal)?;
        if self.saved_at != Some(self.step) {
            self.snapshot().write(&state)?;
            self.saved_at = Some(self.step);
            self.folder.prune(self.plan.keep_snapshots)?;
        }
        journal.state(RunState::Training, "training")?;
        Ok(adapter)
    }

    /// Writes what is to be used, as it is: not always the factors that learn.
    pub(super) fn write_adapter(&self, path: PathBuf, journal: &mut Journal) -> Result<WrittenAdapter, TrainError> {
        self.training.update().with_factors_to_use(|| {
            self.file.write(self.network.factors(), self.step, path, &mut |event| journal.say(event))
        })
    }

    fn snapshot(&self) -> Snapshot {
        let factors = self.network.factors().vars();
        let factors: BTreeMap<String, Tensor> =
            factors.into_iter().map(|(key, var)| (key, var.as_detached_tensor())).collect();
        let (optimizer, fingerprint) = (self.training.state(), self.fingerprint.clone());
        Snapshot { step: self.step, factors, optimizer, fingerprint }
    }

    /// Steps made.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// What was measured and drawn.
    pub(super) fn observation(&self) -> &Observation<'a> {
        &self.observation
    }

    /// The loss of every step.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(super) fn losses(&self) -> Result<Vec<f64>, TrainError> {
        let lines = read_metrics(&self.folder.file("metrics.jsonl"))?;
        Ok(lines.into_iter().filter_map(|line| line.loss).collect())
    }
}

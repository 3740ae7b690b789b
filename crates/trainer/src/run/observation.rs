//! What is looked at between steps: validation and pictures, before the first step, at intervals and after the last.
//!
//! Neither touches the factors or the run's random numbers. What was looked at is in files, so a run that goes on looks only
//! at what it has not seen.

use super::control::Control;
use super::folder::RunFolder;
use super::journal::Journal;
use super::json_lines::JsonLines;
use super::status::RunState;
use crate::error::TrainError;
use crate::event::Event;
use crate::network::Network;
use crate::plan::Plan;
use crate::samples::{SampleLine, Samples};
use crate::training_data::TrainingData;
use crate::validation::Validation;
use crate::validation_history::{BestTracker, ValidationPoint};
use loralei_model::Base;

/// What a run looks at, and what it has seen.
pub(super) struct Observation<'a> {
    plan: &'a Plan,
    network: &'a Network,
    data: &'a TrainingData,
    control: Control,
    validation: Option<Validation>,
    history: BestTracker,
    samples: Option<Samples<'a>>,
    drawn: Vec<SampleLine>,
    files: Option<(JsonLines, JsonLines)>,
}

impl<'a> Observation<'a> {
    /// # Errors
    /// Prompts that cannot be read, encoded images that are gone.
    pub(super) fn prepare(
        plan: &'a Plan,
        base: &'a Base,
        network: &'a Network,
        data: &'a TrainingData,
        control: Control,
        journal: &mut Journal,
    ) -> Result<Self, TrainError> {
        let validation = Validation::prepare(plan, data)?;
        let samples = Samples::prepare(plan, base, &mut |event| journal.say(event))?;
        let (history, drawn) = (BestTracker::default(), Vec::new());
        Ok(Self { plan, network, data, control, validation, history, samples, drawn, files: None })
    }

    /// Takes up what a run had seen after `step` steps.
    ///
    /// # Errors
    /// A disk that cannot be read or written.
    pub(super) fn resume(&mut self, folder: &RunFolder, step: u64) -> Result<(), TrainError> {
        let is_measured = |point: &ValidationPoint| point.step <= step;
        let (points, measured) = JsonLines::resume(&folder.file("validation.jsonl"), is_measured)?;
        self.history = BestTracker::from_history(measured);
        let (lines, drawn) = JsonLines::resume(&folder.file("samples.jsonl"), |line: &SampleLine| line.step <= step)?;
        (self.drawn, self.files) = (drawn, Some((points, lines)));
        Ok(())
    }

    fn measures(&self, step: u64) -> bool {
        let plan = self.plan.validation.as_ref().filter(|_| self.validation.is_some());
        plan.is_some_and(|plan| plan.is_due(step, self.plan.steps)) && !self.history.has(step)
    }

    fn draws(&self, step: u64) -> bool {
        let is_due = self.samples.as_ref().is_some_and(|samples| samples.is_due(step));
        is_due && self.drawn.iter().all(|line| line.step != step)
    }

    /// Whether something is to be looked at after `step` steps.
    pub(super) fn is_due(&self, step: u64) -> bool {
        self.measures(step) || self.draws(step)
    }

    /// Looks at what is due. The factors of the network must be those that are to be used; `keep` writes them as the best, before
    /// it is written down that they are. A signal ends the process at once meanwhile, so the step must be saved.
    ///
    /// # Errors
    /// Numbers that are not finite, a disk that cannot be written.
    pub(super) fn look(
        &mut self,
        step: u64,
        journal: &mut Journal,
        keep: impl FnOnce(&mut Journal) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.control.set_something_to_save(false);
        let measured = if self.measures(step) { self.measure(step, journal, keep) } else { Ok(()) };
        let seen = measured.and_then(|()| if self.draws(step) { self.draw(step, journal) } else { Ok(()) });
        self.control.set_something_to_save(true);
        seen
    }

    fn measure(
        &mut self,
        step: u64,
        journal: &mut Journal,
        keep: impl FnOnce(&mut Journal) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let Some(validation) = &mut self.validation else { return Ok(()) };
        journal.state(RunState::Training, "measuring")?;
        let point = self.history.add(validation.measure(self.network, self.data, step)?);
        if point.best {
            keep(journal)?;
        }
        if let Some((file, _)) = &mut self.files {
            file.write(&point)?;
        }
        journal.validation(&point);
        Ok(())
    }

    /// Draws, whether it is due or not.
    ///
    /// # Errors
    /// As [`Observation::look`].
    pub(super) fn draw(&mut self, step: u64, journal: &mut Journal) -> Result<(), TrainError> {
        let Some(samples) = &mut self.samples else {
            journal.warn("there is nothing to draw: `samples.prompts` is empty");
            return Ok(());
        };
        journal.state(RunState::Training, "drawing")?;
        let lines = samples.draw(self.network, step, &mut |event| journal.say(event))?;
        self.drawn.retain(|line| line.step != step);
        if let Some((_, file)) = &mut self.files {
            lines.iter().try_for_each(|line| file.write(line))?;
        }
        journal.samples(&lines)?;
        self.drawn.extend(lines);
        if step < self.plan.steps {
            journal.say(Event::PhaseStarted { name: "training".into(), total: Some(self.plan.steps) });
        }
        Ok(())
    }

    /// Whether as many measurements as the settings allow have passed without a better one.
    pub(super) fn should_stop(&self) -> bool {
        self.history.should_stop(self.plan.validation.as_ref().and_then(|validation| validation.patience))
    }

    pub(super) fn history(&self) -> &BestTracker {
        &self.history
    }

    /// The first pictures and those of the last step that has some.
    pub(super) fn first_and_last_pictures(&self) -> (&[SampleLine], &[SampleLine]) {
        let of_first =
            self.drawn.first().map_or(0, |first| self.drawn.iter().take_while(|line| line.step == first.step).count());
        let of_last = self
            .drawn
            .last()
            .map_or(0, |last| self.drawn.iter().rev().take_while(|line| line.step == last.step).count());
        (&self.drawn[..of_first], &self.drawn[self.drawn.len() - of_last..])
    }
}

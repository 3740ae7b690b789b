//! What a run writes about itself as it goes: figures, status, what it said, its page and TensorBoard's file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use loralei_report::{EventWriter, ReportError, write_page};

use super::folder::RunFolder;
use super::metrics::{MetricsLine, MetricsWriter};
use super::status::{RunState, StatusWriter};
use crate::error::TrainError;
use crate::event::{Event, StepReport};
use crate::samples::SampleLine;
use crate::validation_history::{LeakChange, ValidationPoint};

/// Shortest time between two pages while nothing but steps happens.
const PAGE_INTERVAL: Duration = Duration::from_secs(10);
/// Part of the run's time that its page may take.
const PAGE_SHARE: f64 = 0.002;

/// Tells whoever runs the run, and writes it down.
pub(crate) struct Journal<'a> {
    folder: &'a RunFolder,
    events: &'a mut dyn FnMut(Event),
    status: StatusWriter,
    log: Log,
    metrics: Option<MetricsWriter>,
    /// TensorBoard's file, if the settings ask for it.
    tensorboard: Option<EventWriter>,
    /// When the page is made again, if only steps happen.
    next_page: Instant,
    /// Whether the page or TensorBoard's file could not be written.
    is_shown_badly: bool,
    /// What went wrong in writing down what was said, until a step asks.
    failed: Option<TrainError>,
}

/// `log.txt`.
struct Log {
    path: PathBuf,
    file: File,
}

impl<'a> Journal<'a> {
    /// Of a run that prepares; whatever `events` hears is written down too.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub(crate) fn open(folder: &'a RunFolder, events: &'a mut dyn FnMut(Event)) -> Result<Self, TrainError> {
        let path = folder.file("log.txt");
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|source| TrainError::Disk { path: path.clone(), source })?;
        let mut status = StatusWriter::new(folder.path());
        status.say(RunState::Preparing, "preparing")?;
        Ok(Self {
            folder,
            events,
            status,
            log: Log { path, file },
            metrics: None,
            tensorboard: None,
            next_page: Instant::now(),
            is_shown_badly: false,
            failed: None,
        })
    }

    /// The steps begin: `num_steps` in all, `step` of which are made. Returns their figures.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub(crate) fn begin(
        &mut self,
        step: u64,
        num_steps: u64,
        tensorboard: bool,
    ) -> Result<Vec<MetricsLine>, TrainError> {
        if tensorboard {
            match EventWriter::create(&self.folder.file("tensorboard"), step) {
                Ok(writer) => self.tensorboard = Some(writer),
                Err(error) => self.shown(Err(error)),
            }
        }
        let (metrics, made) = MetricsWriter::resume(&self.folder.file("metrics.jsonl"), step)?;
        self.metrics = Some(metrics);
        self.status.begin(step, num_steps);
        self.status.say(RunState::Training, "training")?;
        Ok(made)
    }

    /// After a step.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub(crate) fn step(&mut self, report: StepReport) -> Result<(), TrainError> {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&report)?;
        }
        self.status.step(&report)?;
        self.scalars(
            report.step,
            [("loss/train", report.loss), ("learning_rate", report.learning_rate), ("grad_norm", report.grad_norm)]
                .into_iter()
                .chain(report.scalars.iter().map(|(name, value)| (*name, *value))),
        );
        (self.events)(Event::Step(report));
        if Instant::now() >= self.next_page {
            self.page();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// After a measurement.
    pub(crate) fn validation(&mut self, point: &ValidationPoint) {
        let mut values = vec![("loss/validation".to_owned(), point.loss)];
        values.extend(point.bins.iter().map(|bin| (format!("validation/timestep {}", bin.timestep), bin.loss)));
        values.extend(point.train_loss.map(|loss| ("loss/validation of training images".to_owned(), loss)));
        if let Some(LeakChange { with_trigger, without_trigger }) = point.leak {
            values.push(("leak/with trigger".to_owned(), with_trigger));
            values.push(("leak/without trigger".to_owned(), without_trigger));
        }
        self.scalars(point.step, values.iter().map(|(tag, value)| (tag.as_str(), *value)));
        let leak = point.leak.map(|leak| {
            format!(
                ", predictions changed by {:.4} with the trigger, {:.4} without",
                leak.with_trigger, leak.without_trigger
            )
        });
        let best = if point.best { ", the best so far" } else { "" };
        self.note(format!(
            "validation after {} steps: loss {:.4}{best}{}",
            point.step,
            point.loss,
            leak.unwrap_or_default()
        ));
        self.page();
    }

    /// After pictures were drawn.
    ///
    /// # Errors
    /// A picture that is gone.
    pub(crate) fn samples(&mut self, lines: &[SampleLine]) -> Result<(), TrainError> {
        for line in lines {
            let Some(tensorboard) = &mut self.tensorboard else { break };
            let path = self.folder.file(&line.file);
            let png = std::fs::read(&path).map_err(|source| TrainError::Disk { path, source })?;
            let (width_px, height_px) = (line.width_px as u32, line.height_px as u32);
            let written = tensorboard.image(&line.prompt, line.step, &png, width_px, height_px);
            self.shown(written);
        }
        self.page();
        Ok(())
    }

    /// Numbers for TensorBoard.
    fn scalars<'s>(&mut self, step: u64, values: impl IntoIterator<Item = (&'s str, f64)>) {
        if let Some(tensorboard) = &mut self.tensorboard {
            let written = values.into_iter().try_for_each(|(tag, value)| tensorboard.scalar(tag, step, value));
            self.shown(written);
        }
    }

    /// Makes the page anew, and hands what waits for TensorBoard to the system.
    fn page(&mut self) {
        let began = Instant::now();
        let written = write_page(self.folder.path()).map(drop);
        self.shown(written);
        if let Some(tensorboard) = &mut self.tensorboard {
            let flushed = tensorboard.flush();
            self.shown(flushed);
        }
        self.next_page = Instant::now() + PAGE_INTERVAL.max(began.elapsed().div_f64(PAGE_SHARE));
    }

    /// What only shows the run does not end it: the first failure is said.
    fn shown(&mut self, outcome: Result<(), ReportError>) {
        if let Err(error) = outcome
            && !std::mem::replace(&mut self.is_shown_badly, true)
        {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            self.warn(format!("the run goes on, but its page or TensorBoard's file is not current: {error}{cause}"));
        }
    }

    /// Whether the steps have begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.metrics.is_some()
    }

    /// When the run begins something else.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub(crate) fn state(&mut self, state: RunState, message: &str) -> Result<(), TrainError> {
        self.status.say(state, message)?;
        self.page();
        Ok(())
    }

    /// Anything but a step.
    pub(crate) fn say(&mut self, event: Event) {
        let logged = match &event {
            Event::PhaseStarted { name, .. } => self.log.line(name),
            Event::Note { message } => self.log.line(message),
            Event::Warning { message } => self.log.line(&format!("warning: {message}")),
            Event::Saved { path, num_bytes } => {
                self.log.line(&format!("saved `{}` ({num_bytes} bytes)", path.display()))
            }
            _ => Ok(()),
        };
        if let Err(error) = logged {
            self.failed.get_or_insert(error);
        }
        (self.events)(event);
    }

    pub(crate) fn note(&mut self, message: impl Into<String>) {
        self.say(Event::Note { message: message.into() });
    }

    pub(crate) fn warn(&mut self, message: impl Into<String>) {
        self.say(Event::Warning { message: message.into() });
    }
}

impl Log {
    fn line(&mut self, text: &str) -> Result<(), TrainError> {
        let written = self.file.write_all(format!("{text}\n").as_bytes());
        written.map_err(|source| TrainError::Disk { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Start;
    use super::*;
    use std::collections::BTreeMap;

    /// What a step costs the journal, with the pages that are made meanwhile; the quickstart's take 100 ms.
    #[test]
    #[ignore = "measures: cargo test --release -p loralei-trainer --lib journal -- --ignored --nocapture"]
    fn writing_down_a_step_takes_less_than_a_millisecond() {
        const STEPS: u64 = 20_000;
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path(), "a", Start::New).unwrap();
        let mut events = |_| ();
        let mut journal = Journal::open(&folder, &mut events).unwrap();
        journal.begin(0, STEPS, true).unwrap();
        let began = Instant::now();
        for step in 0..STEPS {
            let (loss, smoothed_loss, learning_rate, grad_norm) = (0.1234567, 0.2345678, 1.25e-4, 0.3456789);
            journal
                .step(StepReport {
                    step,
                    loss,
                    smoothed_loss,
                    learning_rate,
                    grad_norm,
                    step_s: 0.1,
                    images_per_s: 40.0,
                    resident_bytes: crate::memory::resident_bytes(),
                    scalars: BTreeMap::new(),
                })
                .unwrap();
        }
        let (step_s, page) = (began.elapsed().as_secs_f64() / STEPS as f64, Instant::now());
        journal.page();
        let page_s = page.elapsed().as_secs_f64();
        println!("{:.1} us a step, {:.1} ms a page of {STEPS} steps", 1e6 * step_s, 1e3 * page_s);
        assert!(step_s < 1e-3, "{step_s}");
    }
}

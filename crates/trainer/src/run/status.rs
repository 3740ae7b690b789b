//! `status.json`: how far a run is, for whoever asks from outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::event::StepReport;

/// Time between two writings while nothing but steps happens.
const INTERVAL: Duration = Duration::from_secs(2);

/// What a run is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It reads images and loads networks.
    #[default]
    Preparing,
    /// It makes steps, or draws or measures between them.
    Training,
    /// It has made all steps.
    Finished,
    /// It was stopped and can go on.
    Stopped,
    /// It ended with an error.
    Failed,
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunStatus {
    /// What it is doing, as it said last: a process that was killed could not say so.
    pub state: RunState,
    /// Steps made.
    pub step: u64,
    /// Steps of the whole run.
    pub num_steps: u64,
    /// Of the last step.
    pub loss: Option<f64>,
    /// Running mean of the loss.
    pub smoothed_loss: Option<f64>,
    /// Seconds a step takes, as a running mean.
    pub step_s: Option<f64>,
    /// Seconds left, by that mean.
    pub eta_s: Option<f64>,
    /// Seconds since the process began the run.
    pub elapsed_s: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// The process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// What it does now, or why it ended.
    pub message: String,
}

impl RunStatus {
    /// The status of the run in `folder`; `None` if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is not a status.
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        let path = folder.join(FILE_NAME);
        let failed = |source| TrainError::ConfigRead { path: path.clone(), source };
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        }
    }
}

const FILE_NAME: &str = "status.json";

/// Writes the status, but not with every step.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    path: PathBuf,
    started: Instant,
    written: Option<Instant>,
    status: RunStatus,
}

impl StatusWriter {
    pub(crate) fn new(folder: &Path) -> Self {
        let status = RunStatus { pid: std::process::id(), host: host_name(), ..RunStatus::default() };
        Self { path: folder.join(FILE_NAME), started: Instant::now(), written: None, status }
    }

    /// The steps of the run, of which `step` are made.
    pub(crate) fn begin(&mut self, step: u64, num_steps: u64) {
        (self.status.step, self.status.num_steps) = (step, num_steps);
    }

    /// After a step.
    pub(crate) fn step(&mut self, report: &StepReport) -> Result<(), TrainError> {
        let status = &mut self.status;
        status.step = report.step + 1;
        status.loss = Some(report.loss).filter(|loss| loss.is_finite());
        status.smoothed_loss = Some(report.smoothed_loss).filter(|loss| loss.is_finite());
        let mean_s = status.step_s.map_or(report.step_s, |mean_s| 0.9 * mean_s + 0.1 * report.step_s);
        status.step_s = Some(mean_s);
        status.eta_s = Some(mean_s * status.num_steps.saturating_sub(status.step) as f64);
        status.resident_bytes = report.resident_bytes;
        if self.written.is_none_or(|written| written.elapsed() >= INTERVAL) { self.write() } else { Ok(()) }
    }

    /// When the run begins something else.
    pub(crate) fn say(&mut self, state: RunState, message: &str) -> Result<(), TrainError> {
        (self.status.state, self.status.message) = (state, message.to_owned());
        if state != RunState::Training {
            self.status.eta_s = None;
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), TrainError> {
        self.status.elapsed_s = self.started.elapsed().as_secs_f64();
        self.written = Some(Instant::now());
        let bytes = serde_json::to_vec(&self.status).unwrap_or_default();
        Ok(loralei_adapter::replace_bytes(&self.path, &bytes)?)
    }
}

/// The name of this machine, as far as the system tells without a library.
pub(crate) fn host_name() -> String {
    let from_file = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let from_environment = || ["HOSTNAME", "COMPUTERNAME"].iter().find_map(|name| std::env::var(name).ok());
    let name = from_file().or_else(from_environment).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64, step_s: f64) -> StepReport {
        StepReport {
            step,
            loss: 0.5,
            smoothed_loss: 0.25,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            step_s,
            images_per_s: 1.0,
            resident_bytes: Some(7),
            scalars: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_written_reads_back_with_what_is_left() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunStatus::read(folder.path()).unwrap(), None);
        let mut writer = StatusWriter::new(folder.path());
        writer.begin(0, 10);
        writer.say(RunState::Training, "training").unwrap();
        writer.step(&report(0, 2.0)).unwrap();
        writer.step(&report(1, 4.0)).unwrap();
        // The steps came right after the writing: they wait.
        assert_eq!(RunStatus::read(folder.path()).unwrap().unwrap().step, 0);
        writer.say(RunState::Training, "drawing").unwrap();
        let read = RunStatus::read(folder.path()).unwrap().unwrap();
        assert_eq!((read.step, read.num_steps, read.message.as_str()), (2, 10, "drawing"));
        assert!((read.step_s.unwrap() - 2.2).abs() < 1e-12 && (read.eta_s.unwrap() - 17.6).abs() < 1e-9);
        writer.say(RunState::Stopped, "stopped").unwrap();
        assert_eq!(RunStatus::read(folder.path()).unwrap().unwrap().eta_s, None);
    }
}

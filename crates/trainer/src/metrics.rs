//! `metrics.jsonl`: one JSON object a step, for plots and for other programs.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::TrainError;
use crate::event::StepReport;

/// Appends to a metrics file, a whole line at a time, so that it can be read while the run goes on and after it died.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

/// The fields of a line, in its order.
#[derive(Serialize)]
struct MetricsLine {
    step: u64,
    loss: f64,
    learning_rate: f64,
    grad_norm: f64,
    step_s: f64,
}

impl MetricsWriter {
    /// Opens `path` for appending; makes it if missing.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub fn append(path: &Path) -> Result<Self, TrainError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| TrainError::Disk { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Writes one line: `{"step":0,"loss":0.1,"learning_rate":0.0001,"grad_norm":0.2,"step_s":1.5}`. Numbers that are
    /// not finite become `null`, as JSON has no word for them.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub fn write(&mut self, report: &StepReport) -> Result<(), TrainError> {
        let StepReport { step, loss, learning_rate, grad_norm, step_s, .. } = *report;
        let line = serde_json::to_string(&MetricsLine { step, loss, learning_rate, grad_norm, step_s });
        let written = line.map_err(std::io::Error::from).and_then(|mut line| {
            line.push('\n');
            self.file.write_all(line.as_bytes())
        });
        written.map_err(|source| TrainError::Disk { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 0.125,
            smoothed_loss: 0.2,
            learning_rate: 1e-4,
            grad_norm: 0.5,
            step_s: 1.5,
            images_per_s: 2.0,
            resident_bytes: Some(1),
        }
    }

    #[test]
    fn every_step_is_a_line_of_json_and_a_second_run_appends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::append(&path).unwrap();
        writer.write(&report(0)).unwrap();
        // Read before the writer is dropped: nothing waits in a buffer.
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        writer.write(&report(1)).unwrap();
        MetricsWriter::append(&path).unwrap().write(&report(2)).unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with('\n'));
        for (step, line) in text.lines().enumerate() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["step"], step);
            assert!((value["learning_rate"].as_f64().unwrap() - 1e-4).abs() < 1e-18);
            assert!((value["loss"].as_f64().unwrap() - 0.125).abs() < 1e-18);
        }
    }

    #[test]
    fn a_folder_that_does_not_exist_is_a_disk_error_with_its_path() {
        let error = MetricsWriter::append(Path::new("no-such-folder/metrics.jsonl")).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("no-such-folder/metrics.jsonl"));
    }
}

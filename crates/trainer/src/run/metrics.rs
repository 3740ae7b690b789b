//! `metrics.jsonl`: one JSON object a step, for plots and for other programs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::json_lines::{self, JsonLines};
use crate::error::TrainError;
use crate::event::StepReport;

/// A line, its fields in their order. What is not finite is `null`, as JSON has no word for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// The step, from 0.
    pub step: u64,
    /// Its loss.
    pub loss: Option<f64>,
    /// As in [`StepReport`].
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: Option<f64>,
    /// Time of the step.
    pub step_s: f64,
    /// What only some runs have: `d`, `num_scaled`.
    #[serde(flatten)]
    pub more: BTreeMap<String, f64>,
}

impl MetricsLine {
    fn of(report: &StepReport) -> Self {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        Self {
            step: report.step,
            loss: finite(report.loss),
            learning_rate: report.learning_rate,
            grad_norm: finite(report.grad_norm),
            step_s: report.step_s,
            more: report.scalars.iter().map(|(name, x)| ((*name).to_owned(), *x)).collect(),
        }
    }
}

/// Appends to a metrics file.
#[derive(Debug)]
pub struct MetricsWriter(JsonLines);

impl MetricsWriter {
    /// Opens `path` for appending; makes it if missing.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub fn append(path: &Path) -> Result<Self, TrainError> {
        JsonLines::append(path).map(Self)
    }

    /// Opens `path` for a run that goes on after `step` steps: lines of later ones, which it makes again, go. Returns the
    /// lines that stay.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub fn resume(path: &Path, step: u64) -> Result<(Self, Vec<MetricsLine>), TrainError> {
        let (lines, made) = JsonLines::resume(path, |line: &MetricsLine| line.step < step)?;
        Ok((Self(lines), made))
    }

    /// Writes one line: `{"step":0,"loss":0.1,"learning_rate":0.0001,"grad_norm":0.2,"step_s":1.5}`.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub fn write(&mut self, report: &StepReport) -> Result<(), TrainError> {
        self.0.write(&MetricsLine::of(report))
    }
}

/// The lines of a metrics file. One that is not whole, as a killed process may leave it, is passed over.
///
/// # Errors
/// [`TrainError::Disk`] for a file that is there and cannot be read.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsLine>, TrainError> {
    json_lines::read(path)
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
            scalars: BTreeMap::from([("d", 0.25)]),
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
    #[expect(clippy::disallowed_methods, reason = "the test writes what a killed process leaves")]
    fn a_resumed_run_keeps_the_lines_before_its_step_and_no_half_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::append(&path).unwrap();
        (0..5).for_each(|step| writer.write(&report(step)).unwrap());
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"step\":5,\"lo")).unwrap();
        let (mut writer, kept) = MetricsWriter::resume(&path, 3).unwrap();
        assert_eq!(kept.iter().map(|line| line.step).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(kept[2].more["d"], 0.25);
        (3..5).for_each(|step| writer.write(&report(step)).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn what_is_not_finite_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let overflowed = StepReport { grad_norm: f64::INFINITY, ..report(0) };
        MetricsWriter::append(&path).unwrap().write(&overflowed).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"grad_norm\":null"));
        assert_eq!(read_metrics(&path).unwrap()[0].grad_norm, None);
    }

    #[test]
    fn a_folder_that_does_not_exist_is_a_disk_error_with_its_path() {
        let error = MetricsWriter::append(Path::new("no-such-folder/metrics.jsonl")).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("no-such-folder/metrics.jsonl"));
    }
}

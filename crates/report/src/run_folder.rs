//! What lies in a run's folder, read as far as it is there.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::ReportError;
use crate::data_report::DataReport;
use crate::json_lines;
use crate::settings_text::Settings;

/// A line of `metrics.jsonl`, kept small: a long run has many. `step` counts from 0, so it is the number of steps that were
/// made before.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct StepMetrics {
    step: u32,
    #[serde(default)]
    loss: Figure,
    #[serde(default)]
    learning_rate: Figure,
    #[serde(default)]
    grad_norm: Figure,
    /// Prodigy's step size.
    #[serde(default)]
    d: Figure,
    /// Modules whose norm was cut.
    #[serde(default)]
    num_scaled: Figure,
}

/// A number in four bytes; NaN where there is none.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(from = "Option<f32>")]
struct Figure(f32);

impl From<Option<f32>> for Figure {
    fn from(number: Option<f32>) -> Self {
        Self(number.unwrap_or(f32::NAN))
    }
}

impl Default for Figure {
    fn default() -> Self {
        None.into()
    }
}

impl Figure {
    fn get(self) -> Option<f64> {
        Some(f64::from(self.0)).filter(|number| !number.is_nan())
    }
}

impl StepMetrics {
    /// Bytes of its line in the file, at least.
    const MIN_LINE_BYTES: u64 = 64;

    pub(crate) fn step(&self) -> u64 {
        u64::from(self.step)
    }

    pub(crate) fn loss(&self) -> Option<f64> {
        self.loss.get()
    }

    pub(crate) fn learning_rate(&self) -> Option<f64> {
        self.learning_rate.get()
    }

    pub(crate) fn grad_norm(&self) -> Option<f64> {
        self.grad_norm.get()
    }

    pub(crate) fn d(&self) -> Option<f64> {
        self.d.get()
    }

    pub(crate) fn num_scaled(&self) -> Option<f64> {
        self.num_scaled.get()
    }
}

/// A line of `validation.jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Validation {
    /// Steps made.
    pub step: u64,
    pub loss: Option<f64>,
    #[serde(default)]
    pub bins: Vec<Bin>,
    pub train_loss: Option<f64>,
    pub leak: Option<Leak>,
    #[serde(default)]
    pub best: bool,
}

/// The loss near one timestep.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Bin {
    pub timestep: f64,
    pub loss: Option<f64>,
}

/// How far predictions change with the trigger and without it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Leak {
    pub with_trigger: Option<f64>,
    pub without_trigger: Option<f64>,
}

/// A line of `samples.jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sample {
    /// Steps made.
    pub step: u64,
    /// Relative to the run's folder.
    pub file: String,
    pub prompt: String,
    #[serde(default)]
    pub seed: u64,
    pub width_px: u32,
    pub height_px: u32,
}

/// `status.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub state: String,
    pub step: Option<u64>,
    pub num_steps: Option<u64>,
    pub loss: Option<f64>,
    pub smoothed_loss: Option<f64>,
    pub step_s: Option<f64>,
    pub eta_s: Option<f64>,
    pub elapsed_s: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub message: Option<String>,
}

/// `summary.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Summary {
    pub adapter: Option<String>,
    pub num_bytes: Option<u64>,
    pub num_parameters: Option<u64>,
    pub num_modules: Option<u64>,
    pub rank: Option<u64>,
    pub loss_first: Option<f64>,
    pub loss_last: Option<f64>,
    pub best_step: Option<u64>,
    pub blocks: Vec<Block>,
    pub advice: Vec<String>,
    pub command: Option<String>,
}

/// How far a block moved.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Block {
    pub block: String,
    pub frobenius: Option<f64>,
    #[serde(default)]
    pub num_modules: u64,
}

/// Everything that a page says about a run.
#[derive(Debug, Default)]
pub(crate) struct RunRecord {
    /// Name of the folder.
    pub folder_name: String,
    pub settings: Settings,
    pub status: Option<Status>,
    pub metrics: Vec<StepMetrics>,
    pub validation: Vec<Validation>,
    pub samples: Vec<Sample>,
    pub data: Option<DataReport>,
    pub summary: Option<Summary>,
    /// Results and records at the top of the folder, by name, sorted.
    pub files: Vec<String>,
    /// What is there and could not be understood, in words.
    pub unreadable: Vec<String>,
}

impl RunRecord {
    /// Reads the folder. Each of its files may be missing, or have a last line that is still being written.
    ///
    /// # Errors
    /// [`ReportError::NoFolder`]; [`ReportError::Read`] if a file is there and the system refuses to read it.
    pub(crate) fn read(folder: &Path) -> Result<Self, ReportError> {
        let mut record = Self { folder_name: folder_name(folder), ..Self::default() };
        record.files = result_files(folder)?;
        record.settings = read_text(folder, "run.toml")?.map(|text| Settings::of(&text)).unwrap_or_default();
        record.status = record.json(folder, "status.json")?;
        record.summary = record.json(folder, "summary.json")?;
        record.data = record.json(folder, "data.json")?;

        // Room for all from the start: a list that grows is there twice while it does.
        let num_bytes = fs::metadata(folder.join("metrics.jsonl")).map_or(0, |file| file.len());
        let mut metrics = Vec::with_capacity((num_bytes / StepMetrics::MIN_LINE_BYTES) as usize);
        let (mut validation, mut samples) = (Vec::new(), Vec::new());
        record.lines(folder, "metrics.jsonl", |line| json_lines::add_step(&mut metrics, line, StepMetrics::step))?;
        record.lines(folder, "validation.jsonl", |line: Validation| {
            json_lines::add_step(&mut validation, line, |line| line.step);
        })?;
        record.lines(folder, "samples.jsonl", |line| samples.push(line))?;
        (record.metrics, record.validation, record.samples) = (metrics, validation, samples);
        Ok(record)
    }

    fn lines<T: DeserializeOwned>(
        &mut self,
        folder: &Path,
        name: &str,
        take: impl FnMut(T),
    ) -> Result<(), ReportError> {
        let path = folder.join(name);
        let num_unreadable = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            other => other.and_then(|file| json_lines::read(BufReader::new(file), take)),
        };
        match num_unreadable {
            Err(source) => return Err(ReportError::Read { path, source }),
            Ok(0) => {}
            Ok(num_unreadable) => self.unreadable.push(format!("{num_unreadable} lines of {name}")),
        }
        Ok(())
    }

    fn json<T: DeserializeOwned>(&mut self, folder: &Path, name: &str) -> Result<Option<T>, ReportError> {
        let Some(text) = read_text(folder, name)? else { return Ok(None) };
        let object = serde_json::from_str(&text).ok();
        if object.is_none() {
            self.unreadable.push(name.to_owned());
        }
        Ok(object)
    }
}

fn folder_name(folder: &Path) -> String {
    let resolved = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    resolved.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The content of a file; `None` if there is none. Bytes that are no UTF-8 become replacement characters.
fn read_text(folder: &Path, name: &str) -> Result<Option<String>, ReportError> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(
            String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Read { path, source }),
    }
}

/// Names of the files that a reader may want to open.
fn result_files(folder: &Path) -> Result<Vec<String>, ReportError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(ReportError::NoFolder { path: folder.to_owned() });
        }
        Err(source) => return Err(ReportError::Read { path: folder.to_owned(), source }),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_shown = |name: &String| {
        Path::new(name).extension().is_some_and(|extension| extension == "safetensors")
            || ["README.md", "before-after.png", "log.txt", "run.toml", "metrics.jsonl"].contains(&name.as_str())
    };
    let mut names: Vec<String> = names.filter(is_shown).collect();
    names.sort();
    Ok(names)
}

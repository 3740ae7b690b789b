//! What can go wrong in a run, which exit code it has, and what the user can do.

use std::fmt;
use std::path::PathBuf;

use loralei_data::DataError;
use loralei_model::{DeviceChoice, ModelError};

/// A setting out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The dotted key, `train.steps`.
    pub key: String,
    /// What is wrong, with the value found: `0 is below 1`.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.problem)
    }
}

/// An error of the trainer. Its text is one line; [`TrainError::hint`] says what to do, [`TrainError::exit_code`] what
/// the program ends with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A configuration file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    ConfigRead {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A configuration is not TOML, or a value has the wrong type.
    #[error("{place}: {message}")]
    ConfigValue {
        /// Where: `run.toml, line 3` or `--set train.steps`.
        place: String,
        /// What is wrong there, one line.
        message: String,
    },
    /// A key that no setting has.
    #[error("{place}: unknown key `{key}`")]
    UnknownKey {
        /// Where: `run.toml, line 3` or `--set`.
        place: String,
        /// The dotted key.
        key: String,
        /// The valid key that resembles it most.
        nearest: String,
    },
    /// `--set` without `=`.
    #[error("`--set {argument}` is not of the form key=value")]
    SetForm {
        /// What was given.
        argument: String,
    },
    /// A preset that does not exist.
    #[error("{place}: unknown preset `{name}`")]
    UnknownPreset {
        /// Where it was named.
        place: String,
        /// The name given.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// Settings out of range: all that were found.
    #[error("{}", joined(violations.iter().map(ToString::to_string)))]
    Settings {
        /// At least one.
        violations: Vec<Violation>,
    },
    /// The loss became infinite or undefined.
    #[error("the loss of step {step} is {loss}")]
    NonFiniteLoss {
        /// The optimizer step, from 0.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// A gradient became infinite or undefined.
    #[error("the gradient of `{name}` is not finite")]
    NonFiniteGradient {
        /// The first such factor by name.
        name: String,
    },
    /// The gradients of a step are infinite or undefined, as read after it.
    #[error("the gradient norm of step {step} is not finite")]
    NonFiniteNorm {
        /// The optimizer step, from 0.
        step: u64,
    },
    /// A step whose numbers are not finite. Nothing of it reached the factors.
    #[error("step {step} stopped the run: {source}; its images: {}", several_paths(images))]
    Diverged {
        /// The optimizer step, from 0.
        step: u64,
        /// The images that it saw.
        images: Vec<PathBuf>,
        /// What is not finite.
        #[source]
        source: Box<TrainError>,
    },
    /// Another process works in the run's folder.
    #[error("`{}` belongs to a run that goes on: process {pid} on {host}", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
        /// The process.
        pid: u32,
        /// Its machine.
        host: String,
    },
    /// The folder holds an earlier run.
    #[error("`{}` holds a run that got to step {step}", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
        /// Steps of its newest snapshot.
        step: u64,
    },
    /// The run that is to go on is another one.
    #[error("the run cannot go on, because these differ: {}", joined(differences.iter().cloned()))]
    AnotherRun {
        /// One line each: name, then and now.
        differences: Vec<String>,
    },
    /// A file that is no state of a run, or not of this one.
    #[error("`{}` is not the state of this run: {reason}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder without a run.
    #[error("there is no run in `{}`", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// A run that is asked something and does not work any more.
    #[error("the run in `{}` is not running", path.display())]
    NotRunning {
        /// The folder.
        path: PathBuf,
    },
    /// An adapter that a run cannot begin with.
    #[error("`{}` is not an adapter of what is trained: {}", path.display(), first_few(differences, 3))]
    StartDiffers {
        /// The file.
        path: PathBuf,
        /// One line each, at least one.
        differences: Vec<String>,
    },
    /// A factor without a gradient, or a gradient without a factor.
    #[error("the factors and the gradients differ at `{name}`")]
    GradientNames {
        /// The first name that only one side has.
        name: String,
    },
    /// A saved state that the optimizer cannot go on from.
    #[error("the saved state is not of this optimizer: {reason}")]
    OptimizerState {
        /// What is missing or does not belong.
        reason: String,
    },
    /// A step whose samples weigh nothing.
    #[error("the samples of a step weigh {weight} together: nothing to divide by")]
    StepWeight {
        /// Sum of the sample weights.
        weight: f64,
    },
    /// A file of the run cannot be written.
    #[error("cannot write `{}`", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The device has not enough memory.
    #[error("`{device}` has not enough memory for this run{}", expected(*expected_bytes))]
    OutOfMemory {
        /// Where it computes.
        device: DeviceChoice,
        /// What the run was expected to take.
        expected_bytes: Option<u64>,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[source] Box<candle_core::Error>),
    /// The autoencoder made of an image what no training can use.
    #[error("the latents of `{}` are not finite", path.display())]
    NonFiniteLatents {
        /// The image.
        path: PathBuf,
    },
    /// A network predicts what is not a number.
    #[error("the prediction for {prompt:?} is not finite")]
    NonFinitePrediction {
        /// The prompt.
        prompt: String,
    },
    /// The numbers given to `verify step` are not what they should be.
    #[error("`{}` is not a batch: {reason}", path.display())]
    Batch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Operations of a device that do not compute what they should.
    #[error("{count} operations are off by more than {tolerance:e}, worst `{operation}` by {error:.1e}")]
    OperationsDiffer {
        /// How many.
        count: usize,
        /// The worst.
        operation: String,
        /// Its relative error.
        error: f64,
        /// What was allowed.
        tolerance: f64,
    },
    /// Images or captions that stop a run: all that were found.
    #[error("{}", several(problems))]
    Dataset {
        /// At least one.
        problems: Vec<DataError>,
    },
    /// An encoded image or caption is gone while the run goes on.
    #[error("an encoded image or caption was removed while the run needs it")]
    EncodedMissing,
    /// The images or captions cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The base cannot be used.
    #[error(transparent)]
    Model(#[from] loralei_model::ModelError),
    /// Pictures that cannot be made into a file.
    #[error(transparent)]
    Picture(#[from] loralei_picture::PictureError),
    /// An adapter or another tensor file cannot be read or written.
    #[error(transparent)]
    Adapter(#[from] loralei_adapter::AdapterError),
}

impl From<Violation> for TrainError {
    fn from(violation: Violation) -> Self {
        TrainError::Settings { violations: vec![violation] }
    }
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        TrainError::Tensor(Box::new(error))
    }
}

fn expected(bytes: Option<u64>) -> String {
    bytes.map_or(String::new(), |bytes| format!(", which was expected to take about {:.2} GB", bytes as f64 / 1e9))
}

impl TrainError {
    /// This error, or [`TrainError::OutOfMemory`] if it is a card's way of saying so.
    #[must_use]
    pub(crate) fn or_out_of_memory(self, device: DeviceChoice, expected_bytes: Option<u64>) -> Self {
        let text = match &self {
            Self::Tensor(error) => error.to_string(),
            Self::Model(ModelError::Tensor(error)) => error.to_string(),
            _ => return self,
        };
        let text = text.to_lowercase();
        if text.contains("out_of_memory") || text.contains("out of memory") {
            return Self::OutOfMemory { device, expected_bytes };
        }
        self
    }

    /// Whether it says that numbers of a step are not finite.
    pub(crate) fn is_non_finite_step(&self) -> bool {
        matches!(self, Self::NonFiniteLoss { .. } | Self::NonFiniteGradient { .. } | Self::NonFiniteNorm { .. })
    }

    /// The program's exit code: 1 internal, 2 usage or configuration, 3 data, 4 model file, 5 non-finite numbers, 6 disk.
    pub fn exit_code(&self) -> u8 {
        match self {
            TrainError::ConfigRead { .. }
            | TrainError::ConfigValue { .. }
            | TrainError::UnknownKey { .. }
            | TrainError::SetForm { .. }
            | TrainError::UnknownPreset { .. }
            | TrainError::Settings { .. }
            | TrainError::FolderInUse { .. }
            | TrainError::RunExists { .. }
            | TrainError::AnotherRun { .. }
            | TrainError::Snapshot { .. }
            | TrainError::NoRun { .. }
            | TrainError::NotRunning { .. }
            | TrainError::StartDiffers { .. }
            | TrainError::Model(
                ModelError::SizeDoesNotFit { .. }
                | ModelError::NothingMatched { .. }
                | ModelError::WeightBeyondRange { .. }
                | ModelError::ClipSkip { .. }
                | ModelError::UnknownPrediction { .. }
                | ModelError::NoDevice { .. }
                | ModelError::Exists { .. },
            ) => 2,
            TrainError::StepWeight { .. }
            | TrainError::Data(_)
            | TrainError::Dataset { .. }
            | TrainError::Batch { .. } => 3,
            TrainError::Diverged { .. }
            | TrainError::NonFiniteLoss { .. }
            | TrainError::NonFiniteGradient { .. }
            | TrainError::NonFiniteNorm { .. }
            | TrainError::NonFiniteLatents { .. }
            | TrainError::NonFinitePrediction { .. }
            | TrainError::OperationsDiffer { .. }
            | TrainError::Model(ModelError::NonFiniteWeight { .. } | ModelError::NonFinitePicture { .. }) => 5,
            TrainError::Model(ModelError::File(error)) | TrainError::Adapter(error) if error.is_disk() => 6,
            TrainError::Disk { .. } | TrainError::EncodedMissing => 6,
            TrainError::GradientNames { .. }
            | TrainError::Tensor(_)
            | TrainError::OutOfMemory { .. }
            | TrainError::Picture(_)
            | TrainError::Model(ModelError::Tensor(_)) => 1,
            TrainError::OptimizerState { .. } | TrainError::Model(_) | TrainError::Adapter(_) => 4,
        }
    }

    /// What the user can do, one line; `None` where there is nothing to advise.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TrainError::ConfigRead { .. } => {
                "paths are relative to the current directory; `configs/quickstart.toml` is an example".to_string()
            }
            TrainError::ConfigValue { .. } => {
                "every key, its type and its default: docs/reference/config.md".to_string()
            }
            TrainError::UnknownKey { nearest, .. } => format!("did you mean `{nearest}`?"),
            TrainError::SetForm { .. } => "for example --set train.steps=500".to_string(),
            TrainError::UnknownPreset { known, .. } => format!("presets: {}", known.join(", ")),
            TrainError::Settings { violations } => joined(violations.iter().map(|v| v.hint.clone())),
            TrainError::Diverged { images, source, .. } if images.is_empty() => return source.hint(),
            TrainError::FolderInUse { .. } => {
                "wait for it, end it with `loralei run stop`, or give another --output".to_string()
            }
            TrainError::RunExists { .. } => {
                "--resume goes on with it, --overwrite begins anew, and another --output leaves it alone".to_string()
            }
            TrainError::AnotherRun { .. } => {
                "give the settings and images it began with, or another --output; --resume-anyway goes on all the same"
                    .to_string()
            }
            TrainError::Snapshot { .. } => "begin anew with --overwrite, or with another --output".to_string(),
            TrainError::NoRun { .. } => "give the folder that `loralei train --output` was given".to_string(),
            TrainError::NotRunning { .. } => "`loralei train --resume` goes on with it".to_string(),
            TrainError::Diverged { .. }
            | TrainError::NonFiniteLoss { .. }
            | TrainError::NonFiniteGradient { .. }
            | TrainError::NonFiniteNorm { .. } => {
                "lower `optimizer.learning_rate`, lengthen `schedule.warmup_steps`, or set `model.dtype` to \"f32\""
                    .to_string()
            }
            TrainError::OutOfMemory { .. } => "set `train.checkpointing` to \"block\", `train.batch_size` to 1 with \
                 `train.accumulate` instead, `model.dtype` to \"bf16\", or a smaller `data.size_px`"
                .to_string(),
            TrainError::OptimizerState { .. } => {
                "go on with the settings of `[optimizer]` and `[lora]` that the run was begun with".to_string()
            }
            TrainError::StartDiffers { .. } => {
                "set `lora.rank`, `lora.unet.targets` and `lora.text_encoder.targets` to those of the file".to_string()
            }
            TrainError::StepWeight { .. } => "give at least one sample of every step a weight above 0".to_string(),
            TrainError::Disk { .. } => {
                "check that the folder of `output.folder` can be written and has room".to_string()
            }
            TrainError::NonFiniteLatents { .. } => {
                "the base's autoencoder is damaged, or the image is: try another of either".to_string()
            }
            TrainError::NonFinitePrediction { .. } => {
                "the base or the adapter is damaged, or the adapter's scale is too large for this number type: try --dtype f32"
                    .to_string()
            }
            TrainError::Batch { .. } => "the tensors and their shapes: `loralei verify step --help`".to_string(),
            TrainError::OperationsDiffer { .. } => {
                "`--ops generic` computes with the tensor library's operations; a card that fails these too is at fault"
                    .to_string()
            }
            TrainError::Data(error) => return error.hint(),
            TrainError::Dataset { problems } => {
                let first = problems.first().and_then(DataError::hint);
                let all = "`loralei dataset check` lists everything that is wrong";
                first.map_or_else(|| all.to_owned(), |first| format!("{first}; {all}"))
            }
            TrainError::EncodedMissing => {
                "start the run again and leave the folder of `data.cache` alone, or set it to \"off\"".to_string()
            }
            TrainError::Model(error) => return error.hint(),
            TrainError::Adapter(error) => return error.hint(),
            TrainError::Picture(error) => return error.hint(),
            TrainError::GradientNames { .. } | TrainError::Tensor(_) => return None,
        })
    }
}

/// The first few problems in one line, and how many there are besides.
fn several(problems: &[DataError]) -> String {
    const MOST: usize = 5;
    let first = problems.iter().take(MOST).map(ToString::to_string);
    let more = (problems.len() > MOST).then(|| format!("and {} more", problems.len() - MOST));
    joined(first.chain(more))
}

fn several_paths(paths: &[PathBuf]) -> String {
    const MOST: usize = 8;
    first_few(&paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>(), MOST)
}

/// The first few lines as one, and how many there are besides.
fn first_few(lines: &[String], most: usize) -> String {
    let more = (lines.len() > most).then(|| format!("and {} more", lines.len() - most));
    joined(lines.iter().take(most).cloned().chain(more))
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join("; ")
}

//! What a run reports while it works. The trainer prints nothing: who runs it decides how to show these.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A phase begins; the one before it is over.
    PhaseStarted {
        /// What is done, in the words of the user: `reading images`.
        name: String,
        /// Units of work, where known.
        total: Option<u64>,
    },
    /// Progress within the phase. In the training phase [`Event::Step`] takes its place.
    PhaseProgress {
        /// Units of work done so far.
        done: u64,
    },
    /// An optimizer step was made.
    Step(StepReport),
    /// Something worth one line that is not a problem.
    Note {
        /// One line.
        message: String,
    },
    /// Something was not done as the settings say, or will probably disappoint. One line.
    Warning {
        /// What and why.
        message: String,
    },
    /// A file was written and read back.
    Saved {
        /// The file.
        path: PathBuf,
        /// Its size.
        num_bytes: u64,
    },
    /// The run is complete.
    Done {
        /// Steps made.
        num_steps: u64,
        /// Time of the whole run, loading included.
        elapsed_s: f64,
        /// Highest resident memory of the process, where the system tells.
        peak_resident_bytes: Option<u64>,
        /// Highest memory of tensors on a card.
        peak_device_bytes: Option<u64>,
    },
}

/// The figures of one optimizer step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step, from 0.
    pub step: u64,
    /// Mean loss of the step's samples.
    pub loss: f64,
    /// Running mean of the loss: see [`SmoothedLoss`](crate::SmoothedLoss).
    pub smoothed_loss: f64,
    /// Learning rate of the U-Net, or of the text encoder if the U-Net is frozen.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Time of the step.
    pub step_s: f64,
    /// Samples that a second of this step processed.
    pub images_per_s: f64,
    /// Resident memory after the step, where the system tells.
    pub resident_bytes: Option<u64>,
    /// What only some settings have, by name: `d`, Prodigy's estimate; `num_scaled`, modules that `lora.max_norm` shortened.
    pub scalars: BTreeMap<&'static str, f64>,
}

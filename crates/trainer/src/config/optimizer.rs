//! `[optimizer]`, `[schedule]`, `[train]`: how a step moves the factors, and how many there are.

use serde::{Deserialize, Serialize};

/// `[optimizer]`: how a gradient moves the factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw`; `lion`; `prodigy`, which finds the learning rate itself; `schedule-free`, AdamW that needs no schedule;
    /// `adafactor`, which keeps less.
    pub kind: OptimizerKind,
    /// Full learning rate, before the schedule. Unset: 1e-4; 2e-5 for `lion`; for `prodigy` 1, a factor of what it finds.
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay: factors shrink by learning rate * weight decay each step.
    pub weight_decay: f64,
    /// Decay of the running mean of the gradient. Unset: 0.9. Not for `adafactor`.
    pub beta1: Option<f64>,
    /// Decay of the running mean of the squared gradient (for `lion` of the gradient). Unset: 0.999; 0.99 for `lion`.
    /// Not for `adafactor`.
    pub beta2: Option<f64>,
    /// Added to the denominator of the update. Not for `lion`.
    pub eps: f64,
    /// Largest norm of all gradients together; longer ones are scaled down to it. 0 turns this off.
    pub max_grad_norm: f64,
    /// Learning rate of B as a multiple of A's (LoRA+, arXiv 2402.12354; 16 in the paper). Not for `prodigy`.
    pub loraplus_ratio: f64,
    /// Whether gradients are multiplied by the inverse of the other factor's r x r Gram matrix before the optimizer sees them
    /// (scaled AdamW, arXiv 2402.02347): less depends on the learning rate.
    pub preconditioned: bool,
    /// Added to the diagonal of that matrix, above 0.
    pub preconditioner_damping: f64,
    /// Decay of a running mean of the factors, which is what is saved and drawn with; 0.999 for long runs. Unset: the factors
    /// themselves.
    pub ema_decay: Option<f64>,
    /// What `prodigy` does besides.
    pub prodigy: ProdigyConfig,
}

/// `[optimizer.prodigy]`: the step size that Prodigy finds (Mishchenko and Defazio 2023, arXiv 2306.06101).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProdigyConfig {
    /// Its first estimate, above 0.
    pub initial_d: f64,
    /// Factor on the estimate; 0.5 to 2.
    pub d_coefficient: f64,
    /// Largest estimate: it never falls again, so one bad step would spoil the rest. Unset: no limit.
    pub max_d: Option<f64>,
    /// Whether the learning rate of the warm-up is left out of the estimate's denominator, so that it does not grow too far.
    pub safeguard_warmup: bool,
    /// Whether the moments are corrected for their start, as in Adam.
    pub bias_correction: bool,
}

/// `[schedule]`: the learning rate over the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// How the learning rate falls after the warm-up: `constant`, `cosine`, `linear`, `restarts` (cosine, `cycles` times from
    /// the top) or `polynomial`.
    pub kind: ScheduleKind,
    /// Steps over which the learning rate rises from 0 at the start.
    pub warmup_steps: u64,
    /// Part of the full learning rate that is left at the end, 0 to 1. Not for `constant`.
    pub final_ratio: f64,
    /// Number of times that `restarts` falls.
    pub cycles: u64,
    /// Exponent of `polynomial`: 1 is linear, 2 falls faster at first.
    pub power: f64,
}

/// `[train]`: the length of the run and the size of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepsConfig {
    /// Optimizer steps of the run. About 100 for each image is a start for a subject.
    pub steps: u64,
    /// Length of the run in epochs instead: each shows every image as often as it is repeated. Unset: `steps`.
    pub epochs: Option<u64>,
    /// Images that go through the model together.
    pub batch_size: usize,
    /// Batches whose gradients are summed to one step: a step sees `batch_size` * `accumulate` images and needs no more
    /// memory than one batch.
    pub accumulate: usize,
    /// All randomness of the run comes from it: the same seed gives the same bytes.
    pub seed: u64,
    /// What is kept for the backward pass: `none` keeps every activation, `block` only the inputs of blocks and, on the
    /// processor, what takes long inside of them, and computes the rest again (less memory, more time, the same result up
    /// to rounding).
    pub checkpointing: Checkpointing,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            learning_rate: None,
            weight_decay: 1e-2,
            beta1: None,
            beta2: None,
            eps: 1e-8,
            max_grad_norm: 1.0,
            loraplus_ratio: 1.0,
            preconditioned: false,
            preconditioner_damping: 1e-2,
            ema_decay: None,
            prodigy: ProdigyConfig::default(),
        }
    }
}

impl OptimizerConfig {
    /// The learning rate as set, or the usual one of the kind.
    pub fn full_learning_rate(&self) -> f64 {
        self.learning_rate.unwrap_or(match self.kind {
            OptimizerKind::Adamw | OptimizerKind::ScheduleFree | OptimizerKind::Adafactor => 1e-4,
            OptimizerKind::Lion => 2e-5,
            OptimizerKind::Prodigy => 1.0,
        })
    }
}

impl Default for ProdigyConfig {
    fn default() -> Self {
        Self { initial_d: 1e-6, d_coefficient: 1.0, max_d: None, safeguard_warmup: true, bias_correction: true }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Constant, warmup_steps: 0, final_ratio: 0.0, cycles: 1, power: 1.0 }
    }
}

impl Default for StepsConfig {
    fn default() -> Self {
        Self { steps: 1000, epochs: None, batch_size: 1, accumulate: 1, seed: 0, checkpointing: Checkpointing::None }
    }
}

/// How a gradient moves the factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Loshchilov and Hutter 2019, arXiv 1711.05101.
    #[default]
    Adamw,
    /// Chen et al. 2023, arXiv 2302.06675.
    Lion,
    /// Mishchenko and Defazio 2023, arXiv 2306.06101.
    Prodigy,
    /// Defazio et al. 2024, arXiv 2405.15682.
    ScheduleFree,
    /// Shazeer and Stern 2018, arXiv 1804.04235.
    Adafactor,
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Not at all.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// In equal parts.
    Linear,
    /// Along half a cosine, several times from the top.
    Restarts,
    /// As a power of what is left.
    Polynomial,
}

/// What is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Every activation that backward needs.
    None,
    /// The inputs of blocks and what takes long inside; the rest is computed again.
    Block,
}

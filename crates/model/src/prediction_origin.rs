//! Who said what a base predicts.

use std::fmt;

/// What told what the U-Net predicts, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionOrigin {
    /// The user.
    Told,
    /// A tensor `v_pred` in the file.
    Mark,
    /// `scheduler_config.json`, or what a single file keeps of it.
    SchedulerConfig,
    /// The metadata of a single file.
    Metadata,
    /// Nothing: noise is what is usual.
    Default,
}

impl fmt::Display for PredictionOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Told => "as told",
            Self::Mark => "by a mark in its file",
            Self::SchedulerConfig => "by its scheduler's configuration",
            Self::Metadata => "by its metadata",
            Self::Default => "by default",
        })
    }
}

impl PredictionOrigin {
    /// One word, for programs: `told`, `mark`, `scheduler-config`, `metadata` or `default`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Mark => "mark",
            Self::SchedulerConfig => "scheduler-config",
            Self::Metadata => "metadata",
            Self::Default => "default",
        }
    }
}

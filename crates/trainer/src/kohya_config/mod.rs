//! Settings of kohya's trainer (sd-scripts) as ours: its `--dataset_config` and its `--config_file`.
//!
//! What its keys mean, and what they are where nothing is set, is after sd-scripts v0.10 (`library/config_util.py`,
//! `library/train_util.py`, `networks/lora.py`). Its defaults are written out where ours differ. Nothing is dropped in silence: a
//! key is carried over, left out with a reason, or says what is so anyway: that something is off.

mod arguments;
mod blocks;
mod datasets;
mod files;
mod learning;
mod network;
mod objective;
mod outside;
mod written;

use std::path::{Path, PathBuf};

use toml::Value;

use crate::config::TrainConfig;
use crate::plan::Plan;
use arguments::Arguments;
use datasets::Datasets;

/// Settings of kohya's trainer, as ours.
#[derive(Debug, Clone, PartialEq)]
pub struct KohyaImport {
    /// A configuration file, in which a comment says what each key was called there. Both lists below are comments at its end.
    pub text: String,
    /// What was not carried over.
    pub left_out: Vec<LeftOut>,
    /// Where a run will differ from what kohya's trainer would do, one line each.
    pub warnings: Vec<String>,
}

/// A key of kohya's that has no place here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name, with the place in a data set's file: `datasets[0].color_aug`.
    pub key: String,
    /// Its value, as TOML.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// A file of settings that cannot be read as one of kohya's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KohyaConfigError {
    /// Not there, or not readable.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// Neither TOML nor JSON.
    #[error("`{}`: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, one line.
        message: String,
    },
    /// `datasets` or `subsets` is no list of tables.
    #[error("`{}`: `{key}` is not a list of tables", path.display())]
    NoTables {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// Two files of the same kind.
    #[error("`{}` and `{}` are both {kind}", first.display(), second.display())]
    Twice {
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// Which kind.
        kind: &'static str,
    },
}

impl KohyaConfigError {
    /// What the user can do, one line.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "paths are relative to the current directory",
            Self::Syntax { .. } => "TOML is read, and JSON from files that end in .json",
            Self::NoTables { .. } => "a data set is `[[datasets]]`, and each of its folders `[[datasets.subsets]]`",
            Self::Twice { .. } => "give at most one file for --config_file and one for --dataset_config",
        }
    }
}

impl KohyaImport {
    /// Reads one file, or one of each kind. Which kind it is, is seen by its `datasets`. A `config_file` that names its
    /// `dataset_config` needs not be accompanied by it.
    ///
    /// # Errors
    /// [`KohyaConfigError`].
    pub fn read(paths: &[PathBuf]) -> Result<Self, KohyaConfigError> {
        let files = files::read(paths)?;
        let has_options = files.arguments.is_some();
        let mut import = Import { arguments: Arguments::new(files.arguments.unwrap_or_default()), ..Import::default() };
        if has_options {
            import.of_arguments();
        } else {
            import.warn("only data sets are given: rank, rates, steps and all else are as they are here by default");
        }
        let datasets = Datasets::new(files.datasets, &mut import.arguments);
        import.data(&datasets);
        import.rest();
        Ok(import.finish(paths))
    }
}

/// A setting of ours and what it came from.
#[derive(Debug, Clone, PartialEq)]
struct Carried {
    /// Our dotted key; of a source, relative to it.
    key: &'static str,
    value: Value,
    /// The comment.
    from: String,
}

/// The result, as it grows.
#[derive(Default)]
struct Import {
    arguments: Arguments,
    settings: Vec<Carried>,
    /// Tables of `[[data.sources]]`.
    sources: Vec<Vec<Carried>>,
    left_out: Vec<LeftOut>,
    warnings: Vec<String>,
}

impl Import {
    fn of_arguments(&mut self) {
        self.model();
        self.network();
        self.optimizer();
        self.schedule();
        self.steps();
        self.noise_and_loss();
        self.outside();
    }

    /// Sets a key of ours; what is already set stays.
    fn set(&mut self, key: &'static str, value: impl Into<Value>, from: impl Into<String>) {
        if !self.has(key) {
            self.settings.push(Carried { key, value: value.into(), from: from.into() });
        }
    }

    /// As [`Self::set`], for a key of kohya's that has been taken.
    fn carry(&mut self, key: &'static str, value: impl Into<Value>, theirs: &str) {
        self.set(key, value, format!("kohya: {theirs}"));
    }

    fn has(&self, key: &str) -> bool {
        self.settings.iter().any(|carried| carried.key == key)
    }

    fn leave(&mut self, key: &str, value: &Value, reason: impl Into<String>) {
        let (value, reason) = (value.to_string().replace(['\n', '\r'], " "), reason.into());
        self.left_out.push(LeftOut { key: key.to_owned(), value, reason });
    }

    /// Leaves out a key if it is there and not off.
    fn leave_argument(&mut self, key: &str, reason: impl Into<String>) {
        if let Some(value) = self.arguments.take(key) {
            self.leave(key, &value, reason);
        }
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(message.into());
    }

    /// What nothing has asked for.
    fn rest(&mut self) {
        for (key, value, reason) in self.arguments.wrong() {
            self.leave(&key, &value, reason);
        }
        for (key, value) in self.arguments.rest() {
            let reason = outside::reason(&key).unwrap_or("no key of kohya's that is known here");
            self.leave(&key, &value, reason);
        }
    }

    fn finish(mut self, paths: &[PathBuf]) -> KohyaImport {
        let names: Vec<String> = paths.iter().map(|path| file_name(path)).collect();
        let body = written::body(&names.join(" and "), &self.settings, &self.sources);
        let refused = match toml::from_str::<TrainConfig>(&body) {
            Ok(config) => Plan::new(&config).err().map(|error| error.to_string()),
            Err(error) => Some(error.message().replace(['\n', '\r'], " ")),
        };
        self.warnings.extend(refused.map(|refused| format!("a run would refuse this as it is: {refused}")));
        let Self { left_out, warnings, .. } = self;
        let text = body + &written::lists(&left_out, &warnings);
        KohyaImport { text, left_out, warnings }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

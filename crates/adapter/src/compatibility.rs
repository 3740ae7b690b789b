//! Which programs would load every key of an adapter, which keys they would leave out, and where they would scale wrongly.
//!
//! The rules were found by running the programs on such files, or, where noted in the project's research, by reading their
//! source: A1111 1.8 to 1.10, ComfyUI 0.3.64, diffusers 0.42.1 and 0.35.2, stable-diffusion.cpp 97d2990, InvokeAI 8e71a8a,
//! sd-scripts 48d368f, additional-networks e9f3d62. Later versions may differ.

mod facts;
mod programs;

use std::collections::BTreeMap;
use std::path::Path;

use facts::Facts;
use serde::Serialize;

use crate::adapter_file::{AdapterFile, Format};
use crate::base_family::BaseFamily;
use crate::error::AdapterError;
use crate::source_key::SourceKey;

/// The most examples of keys in a group.
const MAX_EXAMPLES: usize = 3;

/// What programs make of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compatibility {
    /// Name of the file or folder.
    pub file: String,
    /// Format it is in.
    pub format: Format,
    /// Base it belongs to.
    pub family: BaseFamily,
    /// Tensors in it.
    pub num_keys: usize,
    /// What is strange about the file itself.
    pub remarks: Vec<String>,
    /// Each program's answer.
    pub programs: Vec<ProgramReport>,
}

/// How much of an adapter a program loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every key.
    All,
    /// Some keys.
    Part,
    /// No key, and it says so at most in a log.
    None,
    /// It stops with an error.
    Refuses,
}

/// One program's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProgramReport {
    /// Its name.
    pub program: &'static str,
    /// How much it loads.
    pub verdict: Verdict,
    /// Keys that have an effect.
    pub num_keys_loaded: usize,
    /// Why it refuses.
    pub refusals: Vec<String>,
    /// Keys that it leaves out, by reason.
    pub ignored: Vec<IgnoredKeys>,
    /// Modules that it loads and scales otherwise than they were trained.
    pub wrong_scales: Vec<WrongScale>,
    /// What else people should know.
    pub notes: Vec<String>,
}

/// Keys that a program leaves out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IgnoredKeys {
    /// Why.
    pub reason: String,
    /// How many.
    pub num_keys: usize,
    /// Up to three of them.
    pub examples: Vec<String>,
}

/// Modules whose change comes out larger or smaller than it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrongScale {
    /// Why.
    pub reason: String,
    /// How many.
    pub num_modules: usize,
}

impl Compatibility {
    /// Reads an adapter and asks the rules of every program.
    ///
    /// # Errors
    /// Those of [`AdapterFile::read_with_unknown_keys`].
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        Ok(Self::of(&AdapterFile::read_with_unknown_keys(path)?))
    }

    /// The same of an adapter that was read.
    pub fn of(file: &AdapterFile) -> Self {
        let facts = Facts::of(file);
        Self {
            file: file.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            format: file.format,
            family: facts.family,
            num_keys: file.keys.len(),
            remarks: file.remarks(),
            programs: programs::all(&facts),
        }
    }
}

/// A program's answer while it is collected.
struct Answer<'a> {
    facts: &'a Facts<'a>,
    program: &'static str,
    refusals: Vec<String>,
    ignored: BTreeMap<usize, &'static str>,
    wrong_scales: Vec<WrongScale>,
    notes: Vec<String>,
}

impl<'a> Answer<'a> {
    fn new(facts: &'a Facts<'a>, program: &'static str) -> Self {
        Self {
            facts,
            program,
            refusals: Vec::new(),
            ignored: BTreeMap::new(),
            wrong_scales: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn refuse_if(&mut self, is_so: bool, reason: impl Into<String>) {
        if is_so {
            self.refusals.push(reason.into());
        }
    }

    fn note_if(&mut self, is_so: bool, note: impl Into<String>) {
        if is_so {
            self.notes.push(note.into());
        }
    }

    /// Keys that are left out; the first reason given for a key stays.
    fn ignore(&mut self, reason: &'static str, is_ignored: impl Fn(&SourceKey) -> bool) {
        for (index, key) in self.facts.keys.iter().enumerate() {
            if is_ignored(key) {
                self.ignored.entry(index).or_insert(reason);
            }
        }
    }

    fn wrong_scale(&mut self, num_modules: usize, reason: impl Into<String>) {
        if num_modules > 0 {
            self.wrong_scales.push(WrongScale { reason: reason.into(), num_modules });
        }
    }

    fn finish(self) -> ProgramReport {
        let num_keys = self.facts.keys.len();
        let is_refused = !self.refusals.is_empty();
        let num_keys_loaded = if is_refused { 0 } else { num_keys - self.ignored.len() };
        let verdict = match num_keys_loaded {
            _ if is_refused => Verdict::Refuses,
            0 => Verdict::None,
            loaded if loaded == num_keys => Verdict::All,
            _ => Verdict::Part,
        };
        let mut ignored: BTreeMap<&str, IgnoredKeys> = BTreeMap::new();
        for (index, reason) in &self.ignored {
            let empty = || IgnoredKeys { reason: (*reason).to_owned(), num_keys: 0, examples: Vec::new() };
            let group = ignored.entry(reason).or_insert_with(empty);
            group.num_keys += 1;
            if group.examples.len() < MAX_EXAMPLES {
                group.examples.push(self.facts.keys[*index].key.clone());
            }
        }
        let wrong_scales = if num_keys_loaded == 0 { Vec::new() } else { self.wrong_scales };
        ProgramReport {
            program: self.program,
            verdict,
            num_keys_loaded,
            refusals: self.refusals,
            ignored: ignored.into_values().collect(),
            wrong_scales,
            notes: self.notes,
        }
    }
}

#[cfg(test)]
mod tests;

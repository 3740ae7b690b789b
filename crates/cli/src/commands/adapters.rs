//! Adapters of a command, what is said of them, and their sum where they are given as `--adapter FILE[=SCALE]`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use loralei_adapter::{Adapter, AdapterFile};
use loralei_model::Base;
use loralei_picture::AdapterUse;
use loralei_trainer::{Event, TrainError};

use crate::report::Reporter;

/// The adapters of the command line.
pub(crate) struct Adapters {
    files: Vec<(PathBuf, f32)>,
    /// What all of them do together; `None` without adapters.
    pub(crate) sum: Option<Adapter>,
    hashes: Vec<Option<String>>,
}

impl Adapters {
    pub(crate) fn read(arguments: &[String], reporter: &mut Reporter) -> anyhow::Result<Self> {
        let files: Vec<(PathBuf, f32)> = arguments.iter().map(|argument| split(argument)).collect();
        let mut adapters = Vec::with_capacity(files.len());
        for (path, scale) in &files {
            let adapter = read(path, reporter)?.to_adapter().map_err(TrainError::from)?;
            adapters.push((adapter, *scale));
        }
        let hashes = adapters.iter().map(|(adapter, _)| adapter.metadata.get("sshs_model_hash").cloned()).collect();
        let parts: Vec<(&Adapter, f32)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
        let sum = match parts.as_slice() {
            [] => None,
            parts => Some(Adapter::sum(parts).map_err(TrainError::from).context("the adapters do not fit together")?),
        };
        Ok(Self { files, sum, hashes })
    }

    /// As a picture's parameters name them.
    pub(crate) fn in_use(&self, strength: f32) -> Vec<AdapterUse> {
        let named = self.files.iter().zip(&self.hashes).map(|((path, scale), hash)| AdapterUse {
            name: stem(path),
            scale: f64::from((scale * strength * 1000.0).round()) / 1000.0,
            hash: hash.clone(),
        });
        named.collect()
    }
}

/// Reads an adapter, and says what of it is left out.
pub(crate) fn read(path: &Path, reporter: &mut Reporter) -> anyhow::Result<AdapterFile> {
    let file = AdapterFile::read(path).map_err(TrainError::from)?;
    for remark in file.remarks() {
        reporter.show(&Event::Warning { message: format!("`{}`: {remark}", path.display()) });
    }
    Ok(file)
}

/// Says which modules of an adapter do nothing over a base.
pub(crate) fn note_unread(base: &Base, adapter: &Adapter, reporter: &mut Reporter) {
    if let Some(message) = base.note_on_unread(adapter) {
        reporter.show(&Event::Note { message });
    }
}

pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The scale is what follows the last `=`, if that is a number: paths may have one too.
pub(crate) fn split(argument: &str) -> (PathBuf, f32) {
    let scaled = argument.rsplit_once('=').and_then(|(path, scale)| {
        let scale: f32 = scale.trim().parse().ok()?;
        (scale.is_finite() && !Path::new(argument).exists()).then(|| (PathBuf::from(path), scale))
    });
    scaled.unwrap_or_else(|| (PathBuf::from(argument), 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_follows_the_last_equals_sign_if_it_is_a_number() {
        let path = |text: &str| PathBuf::from(text);
        assert_eq!(split("a.safetensors"), (path("a.safetensors"), 1.0));
        assert_eq!(split("a.safetensors=-0.5"), (path("a.safetensors"), -0.5));
        assert_eq!(split("x=1/a.safetensors"), (path("x=1/a.safetensors"), 1.0));
        assert_eq!(split("x=1/a=2.safetensors=0.25"), (path("x=1/a=2.safetensors"), 0.25));
    }
}

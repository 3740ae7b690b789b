//! A folder of small files, and a source that reads it.
#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::path::{Path, PathBuf};

use loralei_data::{Alpha, BucketRules, CaptionRules, Dataset, Role, SkipReason, Source};

/// A folder that goes when it is dropped.
pub(crate) struct Tree(tempfile::TempDir);

impl Tree {
    /// Files by path and content; folders around them are made.
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            tree.write(name, content);
        }
        tree
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.0.path().to_owned() } else { self.0.path().join(name) }
    }

    /// A path below this folder, with `/`.
    pub(crate) fn name_of(&self, path: &Path) -> String {
        path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().replace('\\', "/")
    }

    /// The source of a folder of this tree.
    pub(crate) fn source(&self, folder: &str) -> Source {
        source(&self.path(folder))
    }

    /// The paths of the samples.
    pub(crate) fn images(&self, dataset: &Dataset) -> Vec<String> {
        dataset.samples.iter().map(|sample| self.name_of(&sample.path)).collect()
    }

    /// The paths, lines and repeats of the samples.
    pub(crate) fn texts(&self, dataset: &Dataset) -> Vec<(String, String, u32)> {
        let text = |lines: &[String]| lines.join(" / ");
        let of = |s: &loralei_data::Sample| (self.name_of(&s.path), text(&s.caption.lines), s.repeats);
        dataset.samples.iter().map(of).collect()
    }

    pub(crate) fn skipped(&self, dataset: &Dataset) -> Vec<(String, SkipReason)> {
        dataset.skipped.iter().map(|entry| (self.name_of(&entry.path), entry.reason)).collect()
    }

    /// The problems as text, with paths below this folder.
    pub(crate) fn problems(&self, dataset: &Dataset) -> Vec<String> {
        let root = format!("{}/", self.0.path().display());
        dataset.problems.iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }

    /// The warnings as text, with paths below this folder, which is `.` itself.
    pub(crate) fn warnings(&self, dataset: &Dataset) -> Vec<String> {
        let root = self.0.path().display().to_string();
        let short = |text: String| text.replace(&format!("{root}/"), "").replace(&root, ".");
        dataset.warnings.iter().map(|warning| short(warning.to_string())).collect()
    }
}

pub(crate) fn source(path: &Path) -> Source {
    Source {
        path: path.to_owned(),
        role: Role::Subject,
        repeats: None,
        captions: CaptionRules::default(),
        buckets: BucketRules {
            width_px: 512,
            height_px: 512,
            enabled: false,
            min_px: 256,
            max_px: 1024,
            step_px: 64,
            no_upscale: false,
        },
        alpha: Alpha::Over([255; 3]),
        flip: false,
        weight: 1.0,
    }
}

pub(crate) fn with_prompt(mut source: Source, prompt: &str) -> Source {
    source.captions.prompt = Some(prompt.to_owned());
    source
}

pub(crate) fn owned<const N: usize>(rows: [(&str, &str, u32); N]) -> Vec<(String, String, u32)> {
    rows.iter().map(|(path, text, repeats)| ((*path).to_owned(), (*text).to_owned(), *repeats)).collect()
}

pub(crate) fn reasons<const N: usize>(rows: [(&str, SkipReason); N]) -> Vec<(String, SkipReason)> {
    rows.iter().map(|(path, reason)| ((*path).to_owned(), *reason)).collect()
}

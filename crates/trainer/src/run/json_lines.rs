//! Files of one JSON object a line that a run appends to, and cuts back to its step when it goes on.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;

/// Appends whole lines, so that the file can be read while the run goes on and after it died.
#[derive(Debug)]
pub(crate) struct JsonLines {
    path: PathBuf,
    file: File,
}

impl JsonLines {
    /// Opens `path` for appending; makes it if missing.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn append(path: &Path) -> Result<Self, TrainError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| TrainError::Disk { path: path.to_path_buf(), source })?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Keeps the lines that `stays`, byte for byte, opens the file for more and returns what is in it.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn resume<T: DeserializeOwned>(
        path: &Path,
        stays: impl Fn(&T) -> bool,
    ) -> Result<(Self, Vec<T>), TrainError> {
        let (mut values, mut text) = (Vec::new(), String::new());
        for (value, line) in read_with_text(path)? {
            if stays(&value) {
                text.push_str(&line);
                text.push('\n');
                values.push(value);
            }
        }
        loralei_adapter::atomic_write_bytes(path, text.as_bytes())?;
        Ok((Self::append(path)?, values))
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn write(&mut self, value: &impl Serialize) -> Result<(), TrainError> {
        let line = serde_json::to_string(value);
        let written = line.map_err(std::io::Error::from).and_then(|mut line| {
            line.push('\n');
            self.file.write_all(line.as_bytes())
        });
        written.map_err(|source| TrainError::Disk { path: self.path.clone(), source })
    }
}

/// What is in the file, if there is one. A line that is not whole, as a killed process may leave it, is passed over.
///
/// # Errors
/// [`TrainError::Disk`] for a file that is there and cannot be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, TrainError> {
    Ok(read_with_text(path)?.into_iter().map(|(value, _)| value).collect())
}

fn read_with_text<T: DeserializeOwned>(path: &Path) -> Result<Vec<(T, String)>, TrainError> {
    let parse = |line: &str| serde_json::from_str(line).ok().map(|value| (value, line.to_owned()));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(parse).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(TrainError::Disk { path: path.to_path_buf(), source }),
    }
}

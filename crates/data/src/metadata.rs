//! Captions in `metadata.jsonl`, as diffusers and datasets have it: a JSON object a line, with `file_name` (from the
//! file's own folder) and the text as `text`, else `prompt`, else `caption`. Other columns are left alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::DataError;
use crate::caption_file::{CaptionFile, MAX_CAPTION_BYTES, utf8};

/// Largest `metadata.jsonl` that is read, in bytes.
pub const MAX_METADATA_BYTES: u64 = 64 * 1024 * 1024;

/// Columns that may hold the text, the first wins.
const TEXT_COLUMNS: [&str; 3] = ["text", "prompt", "caption"];

/// What is wrong with a line of `metadata.jsonl`. Its `Display` is the rest of a sentence that starts with the place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LineFault {
    /// It is not a JSON object.
    NotJson {
        /// What the parser said.
        message: String,
        /// Where, from 1; 0 if the whole line is something else.
        column: usize,
    },
    /// `file_name` is missing or not a text.
    NoFileName,
    /// No column holds a text.
    NoText,
    /// The text is far larger than any caption.
    TextTooLong,
    /// `file_name` leads out of the folder.
    Outside {
        /// The name.
        name: String,
    },
    /// `file_name` is none of the pictures found.
    Missing {
        /// The name.
        name: String,
    },
    /// `file_name` stands in an earlier line, of this file or of that of a folder around it.
    Twice {
        /// The name.
        name: String,
    },
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { message, column: 0 } => f.write_str(message),
            Self::NotJson { message, column } => write!(f, "{message} at column {column}"),
            Self::NoFileName => f.write_str("`file_name` is missing"),
            Self::NoText => f.write_str("none of `text`, `prompt`, `caption` holds a text"),
            Self::TextTooLong => write!(f, "the text is larger than {MAX_CAPTION_BYTES} bytes"),
            Self::Outside { name } => write!(f, "`{name}` is outside the folder"),
            Self::Missing { name } => write!(f, "`{name}` is none of the images found in the folder"),
            Self::Twice { name } => write!(f, "`{name}` has a line already"),
        }
    }
}

/// One line: the text of a picture.
pub(crate) struct MetadataCaption {
    pub(crate) text: CaptionFile,
    file: PathBuf,
    line: usize,
    name: String,
}

/// The lines of all `metadata.jsonl` of a source, by the picture's path from the source's folder.
#[derive(Default)]
pub(crate) struct MetadataCaptions(BTreeMap<PathBuf, MetadataCaption>);

impl MetadataCaptions {
    /// Adds the lines of the file at `path`, which lies in the folder `below_root`. Gives what is wrong with them.
    pub(crate) fn add(&mut self, path: &Path, below_root: &Path) -> Vec<DataError> {
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) => return vec![error],
        };
        let text = match utf8(&bytes) {
            Ok(text) => text,
            Err((offset_bytes, found)) => {
                return vec![DataError::CaptionEncoding { path: path.to_owned(), offset_bytes, found }];
            }
        };
        let mut problems = Vec::new();
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            if let Err(fault) = self.add_line(line, number, path, below_root) {
                problems.push(DataError::MetadataLine { path: path.to_owned(), line: number, fault });
            }
        }
        problems
    }

    /// Takes the line of a picture out.
    pub(crate) fn take(&mut self, below_root: &Path) -> Option<MetadataCaption> {
        self.0.remove(below_root)
    }

    /// Problems with lines that no picture took.
    pub(crate) fn not_taken(self) -> impl Iterator<Item = DataError> {
        let mut left: Vec<MetadataCaption> = self.0.into_values().collect();
        left.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        left.into_iter().map(|MetadataCaption { file: path, line, name, .. }| {
            let fault = LineFault::Missing { name };
            DataError::MetadataLine { path, line, fault }
        })
    }

    fn add_line(&mut self, line: &str, number: usize, file: &Path, below_root: &Path) -> Result<(), LineFault> {
        let columns = parse(line)?;
        let name = columns.get("file_name").and_then(Value::as_str).ok_or(LineFault::NoFileName)?.to_owned();
        let text = TEXT_COLUMNS.iter().find_map(|column| columns.get(*column)?.as_str()).ok_or(LineFault::NoText)?;
        if text.len() as u64 > MAX_CAPTION_BYTES {
            return Err(LineFault::TextTooLong);
        }
        let Some(relative) = inside(&name) else { return Err(LineFault::Outside { name }) };
        let text = CaptionFile::of_text(text);
        match self.0.entry(below_root.join(relative)) {
            Entry::Occupied(_) => Err(LineFault::Twice { name }),
            Entry::Vacant(entry) => {
                entry.insert(MetadataCaption { text, file: file.to_owned(), line: number, name });
                Ok(())
            }
        }
    }
}

fn parse(line: &str) -> Result<Map<String, Value>, LineFault> {
    let value = serde_json::from_str(line).map_err(|error| {
        let text = error.to_string();
        // The parser counts lines too, but knows only of this one.
        let message = text.split(" at line ").next().unwrap_or_default().to_owned();
        LineFault::NotJson { message, column: error.column() }
    })?;
    match value {
        Value::Object(columns) => Ok(columns),
        _ => Err(LineFault::NotJson { message: "not a JSON object".to_owned(), column: 0 }),
    }
}

/// The path that a `file_name` is, unless it leads out of the folder.
fn inside(name: &str) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let fail = |cause| DataError::CaptionRead { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_METADATA_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_METADATA_BYTES {
        return Err(DataError::MetadataTooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

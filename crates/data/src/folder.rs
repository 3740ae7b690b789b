//! One flat folder of pictures as a sorted list of samples, and of everything that was not used.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::decode::has_image_extension;
use crate::{CaptionRules, DataError, Sample};

/// What was found in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Folder {
    /// The pictures, sorted by file name (bytewise), so that every machine sees the same order.
    pub samples: Vec<Sample>,
    /// How many of them have a caption file; the rest use the run's prompt.
    pub num_caption_files: usize,
    /// Every other entry and why it was not used, sorted by file name. Hidden files are not listed.
    pub skipped: Vec<Skipped>,
}

/// An entry of the folder that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The entry.
    pub path: PathBuf,
    /// Why it is not used.
    pub reason: SkipReason,
}

/// Why an entry of a folder is not used. Its `Display` is the reason in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// A subfolder: only the folder itself is read.
    Subfolder,
    /// Neither a picture of a known kind nor a caption.
    UnknownKind,
    /// A caption file without a picture of its name.
    CaptionWithoutImage,
    /// A second caption file for the same picture, its extension written otherwise (`a.TXT` beside `a.txt`).
    SecondCaption,
    /// A link to something outside the folder.
    LinkOutside,
    /// A link to nothing, a device, a pipe, a socket.
    NotAFile,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subfolder => "subfolders are not searched",
            Self::UnknownKind => "neither jpg, jpeg, png, webp nor txt",
            Self::CaptionWithoutImage => "a caption without an image of its name",
            Self::SecondCaption => "a second caption for the same image",
            Self::LinkOutside => "a link that leaves the folder",
            Self::NotAFile => "not a regular file",
        })
    }
}

impl Folder {
    /// Lists `dir` and reads its captions. Pictures are not opened yet.
    ///
    /// # Errors
    /// The folder is missing, unreadable or holds no picture; a caption is missing, unreadable or not UTF-8.
    pub fn read(dir: &Path, rules: CaptionRules<'_>) -> Result<Self, DataError> {
        let mut listing = Listing::of(dir)?;
        if listing.images.is_empty() {
            let has_folders = listing.skipped.iter().any(|entry| entry.reason == SkipReason::Subfolder);
            let num_skipped = listing.skipped.len() + listing.captions.len();
            return Err(DataError::NoImages { path: dir.to_owned(), num_skipped, has_folders });
        }
        let mut samples = Vec::with_capacity(listing.images.len());
        let mut used_captions = BTreeMap::new();
        let mut num_caption_files = 0;
        for path in listing.images {
            let stem = path.file_stem().unwrap_or_default().to_owned();
            if let Some(file) = listing.captions.remove(&stem) {
                used_captions.insert(stem.clone(), file);
            }
            // Two pictures may share one caption: `a.jpg` and `a.png` with `a.txt`.
            let file = used_captions.get(&stem);
            num_caption_files += usize::from(file.is_some());
            let caption = rules.caption(&path, file.map(PathBuf::as_path))?;
            samples.push(Sample { path, caption, weight: 1.0 });
        }
        let mut skipped = listing.skipped;
        let reason = SkipReason::CaptionWithoutImage;
        skipped.extend(listing.captions.into_values().map(|path| Skipped { path, reason }));
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        tracing::info!(images = samples.len(), captions = num_caption_files, skipped = skipped.len(), "folder read");
        Ok(Self { samples, num_caption_files, skipped })
    }
}

/// The entries of a folder by kind; captions by the stem of the picture they belong to.
struct Listing {
    images: Vec<PathBuf>,
    captions: BTreeMap<OsString, PathBuf>,
    skipped: Vec<Skipped>,
}

impl Listing {
    fn of(dir: &Path) -> Result<Self, DataError> {
        let fail = |cause: std::io::Error| match cause.kind() {
            ErrorKind::NotFound => DataError::FolderMissing { path: dir.to_owned() },
            ErrorKind::NotADirectory => DataError::NotAFolder { path: dir.to_owned() },
            _ => DataError::FolderRead { path: dir.to_owned(), cause },
        };
        let root = fs::canonicalize(dir).map_err(fail)?;
        if !root.is_dir() {
            return Err(DataError::NotAFolder { path: dir.to_owned() });
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&root).map_err(fail)? {
            names.push(entry.map_err(fail)?.file_name());
        }
        names.sort(); // the system lists in any order
        let mut listing = Self { images: Vec::new(), captions: BTreeMap::new(), skipped: Vec::new() };
        for name in names.iter().filter(|name| !name.as_encoded_bytes().starts_with(b".")) {
            listing.add(dir.join(name), &root);
        }
        Ok(listing)
    }

    fn add(&mut self, path: PathBuf, root: &Path) {
        if let Some(reason) = not_a_file_of(root, &path) {
            self.skipped.push(Skipped { path, reason });
        } else if has_image_extension(&path) {
            self.images.push(path);
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
            let stem = path.file_stem().unwrap_or_default().to_owned();
            // Names come sorted, capitals first, so `a.txt` takes the place of `a.TXT`.
            if let Some(path) = self.captions.insert(stem, path) {
                self.skipped.push(Skipped { path, reason: SkipReason::SecondCaption });
            }
        } else {
            self.skipped.push(Skipped { path, reason: SkipReason::UnknownKind });
        }
    }
}

/// Why `path` may not be opened, if so: opening a pipe waits for ever, and a link must not lead out of the data.
fn not_a_file_of(root: &Path, path: &Path) -> Option<SkipReason> {
    let Ok(target) = fs::canonicalize(path) else { return Some(SkipReason::NotAFile) };
    if !target.starts_with(root) {
        Some(SkipReason::LinkOutside)
    } else if target.is_dir() {
        Some(SkipReason::Subfolder)
    } else if target.is_file() {
        None
    } else {
        Some(SkipReason::NotAFile)
    }
}

//! A folder and the folders within it: the files of each by kind, and what cannot be one of them.
//!
//! Links to files within are followed. Links to folders are not: what they lead to is either outside, or searched where
//! it is. So no loop of links can be entered.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use crate::decode::has_image_extension;
use crate::{DataError, SkipReason, Skipped};

/// OneTrainer's mark of a mask: `a-masklabel.png` is the mask of `a.jpg`.
const MASK_SUFFIX: &str = "-masklabel";

/// Everything below the folder of a source.
pub(crate) struct Tree {
    /// The folder as it was given.
    pub(crate) root: PathBuf,
    /// Where that is.
    pub(crate) canonical: PathBuf,
    /// The folder itself and those within, hidden ones left out.
    pub(crate) folders: Vec<Folder>,
    pub(crate) skipped: Vec<Skipped>,
    /// Folders that cannot be read.
    pub(crate) problems: Vec<DataError>,
}

/// The files of one folder, by name.
#[derive(Default)]
pub(crate) struct Folder {
    /// Its path from the root.
    pub(crate) below_root: PathBuf,
    pub(crate) images: BTreeSet<OsString>,
    /// By the stem of the picture.
    pub(crate) captions: BTreeMap<OsString, OsString>,
    /// By the stem of the picture.
    masks: BTreeMap<OsString, OsString>,
    pub(crate) metadata: Option<OsString>,
    /// Metadata in a form that is not read.
    pub(crate) other_metadata: Vec<OsString>,
    /// Pictures that are links lead here.
    pub(crate) targets: BTreeMap<OsString, PathBuf>,
}

impl Tree {
    /// Lists a folder. No file is opened.
    ///
    /// # Errors
    /// The folder itself is missing, no folder, or unreadable. What goes wrong below it is in `problems`.
    pub(crate) fn of(root: &Path) -> Result<Self, DataError> {
        let canonical = fs::canonicalize(root).map_err(|cause| cannot_list(root, cause))?;
        let mut tree =
            Self { root: root.to_owned(), canonical, folders: Vec::new(), skipped: Vec::new(), problems: Vec::new() };
        let mut waiting = vec![PathBuf::new()];
        while let Some(below_root) = waiting.pop() {
            match tree.list(&below_root) {
                Ok(folders) => waiting.extend(folders),
                Err(error) if below_root.as_os_str().is_empty() => return Err(error),
                Err(error) => tree.problems.push(error),
            }
        }
        tree.folders.sort_by_cached_key(|folder| path_bytes(&folder.below_root));
        Ok(tree)
    }

    /// Lists one folder and gives those within it.
    fn list(&mut self, below_root: &Path) -> Result<Vec<PathBuf>, DataError> {
        let path = under(&self.root, below_root);
        let fail = |cause| cannot_list(&path, cause);
        let mut folder = Folder { below_root: below_root.to_owned(), ..Folder::default() };
        let mut folders = Vec::new();
        let mut is_empty = true;
        for entry in fs::read_dir(&path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let (name, kind) = (entry.file_name(), entry.file_type().map_err(fail)?);
            is_empty = false;
            let is_hidden = name.as_encoded_bytes().starts_with(b".");
            if kind.is_dir() && is_hidden {
                self.skip(path.join(name), SkipReason::HiddenFolder);
            } else if is_hidden {
                // Programs leave such files everywhere; nobody looks for them here.
            } else if kind.is_dir() {
                folders.push(below_root.join(name));
            } else if kind.is_symlink() {
                match self.target_of(&path.join(&name)) {
                    Ok(target) => self.add(&mut folder, name, Some(target)),
                    Err(reason) => self.skip(path.join(name), reason),
                }
            } else if kind.is_file() {
                self.add(&mut folder, name, None);
            } else {
                self.skip(path.join(name), SkipReason::NotAFile); // opening a pipe would wait for ever
            }
        }
        if is_empty && !below_root.as_os_str().is_empty() {
            self.skip(path, SkipReason::EmptyFolder);
        }
        self.folders.push(folder);
        Ok(folders)
    }

    /// The file that a link leads to, or why it is not used.
    fn target_of(&self, link: &Path) -> Result<PathBuf, SkipReason> {
        let target = fs::canonicalize(link).map_err(|_| SkipReason::NotAFile)?; // leads nowhere or to itself
        if !target.starts_with(&self.canonical) {
            Err(SkipReason::LinkOutside)
        } else if target.is_dir() {
            Err(SkipReason::LinkToFolder)
        } else if target.is_file() {
            Ok(target)
        } else {
            Err(SkipReason::NotAFile)
        }
    }

    fn add(&mut self, folder: &mut Folder, name: OsString, target: Option<PathBuf>) {
        let path = Path::new(&name);
        let stem = path.file_stem().unwrap_or_default().to_owned();
        let has_extension =
            |wanted: &str| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted));
        if has_extension("png") && stem.as_encoded_bytes().ends_with(MASK_SUFFIX.as_bytes()) {
            folder.masks.insert(stem, name);
        } else if has_image_extension(path) {
            folder.targets.extend(target.map(|target| (name.clone(), target)));
            folder.images.insert(name);
        } else if has_extension("txt") || has_extension("caption") {
            self.add_caption(folder, stem, name);
        } else if path == Path::new("metadata.jsonl") {
            folder.metadata = Some(name);
        } else if path == Path::new("metadata.csv") || path == Path::new("metadata.parquet") {
            folder.other_metadata.push(name);
        } else {
            let path = under(&self.root, &folder.below_root).join(name);
            self.skip(path, SkipReason::UnknownKind);
        }
    }

    /// `.txt` wins over `.caption`, and small letters over capitals, in whatever order the system lists them.
    fn add_caption(&mut self, folder: &mut Folder, stem: OsString, name: OsString) {
        let rank = |name: &OsStr| {
            let extension = Path::new(name).extension().unwrap_or_default();
            (extension.eq_ignore_ascii_case("txt"), extension.to_owned())
        };
        let kept = folder.captions.entry(stem).or_insert_with(|| name.clone());
        if *kept == name {
            return;
        }
        let loser = if rank(&name) > rank(kept) { std::mem::replace(kept, name) } else { name };
        let path = under(&self.root, &folder.below_root).join(loser);
        self.skip(path, SkipReason::SecondCaption);
    }

    fn skip(&mut self, path: PathBuf, reason: SkipReason) {
        self.skipped.push(Skipped { path, reason });
    }
}

impl Folder {
    /// The file of the mask of a picture with this stem.
    pub(crate) fn mask_of(&self, stem: &OsStr) -> Option<&OsString> {
        self.masks.get(&mask_stem(stem))
    }

    /// All masks, as the stem with the mark and the file.
    pub(crate) fn masks(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.masks.iter()
    }
}

/// The stem of the mask of a picture.
pub(crate) fn mask_stem(stem: &OsStr) -> OsString {
    let mut marked = stem.to_owned();
    marked.push(MASK_SUFFIX);
    marked
}

/// A path below `root`, without a separator at its end where it is `root` itself.
pub(crate) fn under(root: &Path, below_root: &Path) -> PathBuf {
    if below_root.as_os_str().is_empty() { root.to_owned() } else { root.join(below_root) }
}

/// What paths are sorted by: their bytes, with one separator on every system.
pub(crate) fn path_bytes(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().map(|&byte| if std::path::is_separator(byte.into()) { b'/' } else { byte }).collect()
}

fn cannot_list(path: &Path, cause: Error) -> DataError {
    let path = path.to_owned();
    match cause.kind() {
        ErrorKind::NotFound => DataError::FolderMissing { path },
        ErrorKind::NotADirectory => DataError::NotAFolder { path },
        _ => DataError::FolderRead { path, cause },
    }
}

//! One repository in the cache, laid out as Python's `huggingface_hub` does it.
//!
//! ```text
//! models--OWNER--NAME/blobs/ETAG                 content
//! models--OWNER--NAME/snapshots/COMMIT/PATH      link to ../../blobs/ETAG, or the content itself
//! models--OWNER--NAME/refs/REVISION              the commit
//! .locks/models--OWNER--NAME/ETAG.lock           held (flock) while ETAG is written
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::id::{is_safe_path, is_safe_word};
use crate::{HubError, HubId};

#[derive(Debug)]
pub(crate) struct RepoCache {
    root: PathBuf,
    repo_folder: PathBuf,
    locks: PathBuf,
    use_symlinks: bool,
}

impl RepoCache {
    pub(crate) fn new(root: &Path, id: &HubId, use_symlinks: bool) -> Self {
        let name = format!("models--{}--{}", id.owner(), id.name());
        Self {
            root: root.to_owned(),
            repo_folder: root.join(&name),
            locks: root.join(".locks").join(name),
            use_symlinks,
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that stands for the repository at `commit`.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo_folder.join("snapshots").join(commit)
    }

    /// Where `file` of `commit` is, or would be.
    pub(crate) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.repo_folder.join("blobs").join(etag)
    }

    /// Where the first part of a blob is kept until the rest has arrived.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.repo_folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The commit that `revision` stood for when it was last asked for.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_safe_word(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.repo_folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_safe_word(commit))
    }

    /// Notes which commit `revision` stands for.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.repo_folder.join("refs").join(revision);
        create_parent(&path)?;
        put(&path, |temporary| new_file(temporary)?.write_all(commit.as_bytes()))
            .map_err(|source| HubError::Write { path, source })
    }

    /// The files of `commit` that are here, as sorted paths with forward slashes.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        collect_files(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    /// Locks a blob against other processes until the file that is returned is dropped. `wait` is told if it takes long.
    pub(crate) fn lock(&self, etag: &str, wait: impl FnOnce()) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    wait();
                    file.lock()?;
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    tracing::warn!(path = %path.display(), "this file system has no locks");
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(file)
        };
        lock().map_err(|source| HubError::Write { path: path.clone(), source })
    }

    /// Makes an incomplete blob, now verified and synchronised, the blob.
    #[expect(clippy::disallowed_methods, reason = "its content was verified just before")]
    pub(crate) fn complete(&self, etag: &str) -> Result<(), HubError> {
        let path = self.blob(etag);
        let rename = || {
            fs::rename(self.incomplete(etag), &path)?;
            synchronise_folder(&self.repo_folder.join("blobs"))
        };
        rename().map_err(|source| HubError::Write { path: path.clone(), source })
    }

    /// Makes `file` of `commit` the blob `etag`. Where links do not work, a blob that is new is moved there, since
    /// nothing else can refer to it; any other is copied.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str, is_new: bool) -> Result<(), HubError> {
        let (blob, path) = (self.blob(etag), self.file(commit, file));
        create_parent(&path)?;
        let link = || {
            if self.use_symlinks && put(&path, |temporary| symlink(&relative_blob(etag, file), temporary)).is_ok() {
                return Ok(());
            }
            if is_new { move_to(&blob, &path) } else { put(&path, |temporary| fs::copy(&blob, temporary).map(|_| ())) }
        };
        link().map_err(|source| HubError::Write { path: path.clone(), source })
    }
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|source| HubError::Write { path: parent.to_owned(), source })
}

/// Where a blob is, as seen from the folder of `file` in a snapshot.
fn relative_blob(etag: &str, file: &str) -> PathBuf {
    let depth = file.split('/').count() + 1; // folders between the file and the repository's: its own, COMMIT, snapshots
    let mut path: PathBuf = std::iter::repeat_n("..", depth).collect();
    path.push("blobs");
    path.push(etag);
    path
}

/// Makes something beside `path`, then lets it take that place in one step.
#[expect(clippy::disallowed_methods, reason = "this is the step that makes it whole or not at all")]
fn put(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    let result = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

#[expect(clippy::disallowed_methods, reason = "the blob was verified before it came to its place")]
fn move_to(blob: &Path, path: &Path) -> io::Result<()> {
    fs::rename(blob, path)
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _path: &Path) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

/// Makes a rename survive a power cut, where the system can.
fn synchronise_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

/// Appends the files below `folder`; links to files count if their target is there, links to folders do not.
fn collect_files(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_files(&entry.path(), &path, found);
        } else if is_safe_path(&path) && entry.path().is_file() {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_climbs_out_of_as_many_folders_as_the_file_is_in() {
        assert_eq!(relative_blob("e", "x.json"), Path::new("../../blobs/e"));
        assert_eq!(relative_blob("e", "unet/deep/x.bin"), Path::new("../../../../blobs/e"));
    }

    #[test]
    fn a_lock_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), &"a/b".parse().unwrap(), true);
        let held = cache.lock("e", || panic!("nobody else has it")).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = cache.lock("e", || sender.send("waits").unwrap()).unwrap();
                sender.send("has it").unwrap();
            });
            assert_eq!(receiver.recv().unwrap(), "waits");
            assert!(receiver.recv_timeout(std::time::Duration::from_millis(50)).is_err());
            drop(held);
            assert_eq!(receiver.recv().unwrap(), "has it");
        });
    }
}

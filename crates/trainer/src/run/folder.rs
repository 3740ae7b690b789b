//! The folder of a run: the names of its files, and that only one process works in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::Request;
use super::status::{RunStatus, host_name};
use crate::error::TrainError;

/// A run's folder that this process works in. The system gives it free when the process ends, in whatever way.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    name: String,
    /// Whether the folder was not there before.
    is_new: bool,
    _lock: File,
}

/// Who works in a folder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Owner {
    pid: u32,
    host: String,
}

/// What to do with a run that the folder holds already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// Refuse to touch it.
    #[default]
    New,
    /// Begin again at step 0; what it left is replaced.
    Overwrite,
    /// Go on where it ended; at step 0 if it has not got to a snapshot.
    Resume {
        /// Also where settings, data or base differ, which are then said.
        anyway: bool,
    },
}

fn disk(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Disk { path: path.to_path_buf(), source }
}

impl RunFolder {
    /// Makes the folder if it is missing, and takes it for this process. `name` is that of the adapter.
    ///
    /// # Errors
    /// [`TrainError::FolderInUse`] if another process has it, [`TrainError::RunExists`] if there is a run in it that `start`
    /// must not touch, [`TrainError::Disk`].
    pub(crate) fn open(path: &Path, name: &str, start: Start) -> Result<Self, TrainError> {
        let (checkpoints, is_new) = (path.join("checkpoints"), !path.exists());
        std::fs::create_dir_all(&checkpoints).map_err(|error| disk(&checkpoints, error))?;
        let lock = lock(path)?;
        let folder = Self { path: path.to_owned(), name: name.to_owned(), is_new, _lock: lock };
        if folder.adapter().is_dir() {
            return Err(disk(&folder.adapter(), std::io::ErrorKind::IsADirectory.into()));
        }
        let snapshots = folder.snapshots()?;
        match (start, snapshots.last()) {
            (Start::New, Some((step, _))) => {
                return Err(TrainError::RunExists { path: path.to_owned(), step: *step });
            }
            (Start::New | Start::Overwrite, _) => folder.clear()?,
            (Start::Resume { .. }, _) => {}
        }
        loralei_adapter::remove_unfinished(path)?;
        loralei_adapter::remove_unfinished(&checkpoints)?;
        Request::ALL.into_iter().try_for_each(|request| folder.fulfil(request))?;
        Ok(folder)
    }

    /// Removes what an earlier run left that would be taken for this one's.
    fn clear(&self) -> Result<(), TrainError> {
        self.snapshots()?.iter().try_for_each(|(_, state)| remove(state))?;
        self.adapter_steps()?.into_iter().try_for_each(|step| remove(&self.adapter_of(step)))?;
        for file in
            ["metrics.jsonl", "validation.jsonl", "samples.jsonl", "summary.json", "nan-report.json", "index.html"]
        {
            remove(&self.path.join(file))?;
        }
        remove(&self.best_adapter())?;
        let is_picture = |name: &str| {
            let digits = name.bytes().take_while(u8::is_ascii_digit).count();
            digits >= 6 && Path::new(name).extension().is_some_and(|extension| extension == "png")
        };
        Self::remove_all(&self.path.join("samples"), is_picture)?;
        Self::remove_all(&self.path.join("tensorboard"), |name| name.starts_with("events.out.tfevents."))?;
        Ok(())
    }

    /// Removes the files of `folder` whose name is one of ours: who knows what else lies there.
    fn remove_all(folder: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(), TrainError> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
        let ours = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&is_ours));
        ours.map(|entry| entry.path()).try_for_each(|path| remove(&path))
    }

    /// Of a run that could not begin: nothing of it stays where there was no folder before.
    pub(crate) fn give_up(self) {
        if !self.is_new {
            return;
        }
        // What cannot be removed stays: the reason why the run ended is said, and matters more.
        for file in ["log.txt", "status.json", "index.html", "data.json", "run.toml", "run.lock"] {
            let _ = std::fs::remove_file(self.path.join(file));
        }
        for folder in [".thumbnails", "checkpoints", ""] {
            let _ = std::fs::remove_dir(self.path.join(folder));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The adapter of the finished run.
    pub(crate) fn adapter(&self) -> PathBuf {
        self.path.join(format!("{}.safetensors", self.name))
    }

    /// The adapter after `step` steps.
    pub(crate) fn adapter_of(&self, step: u64) -> PathBuf {
        self.path.join(format!("{}-{step:06}.safetensors", self.name))
    }

    /// The adapter with the best validation.
    pub(crate) fn best_adapter(&self) -> PathBuf {
        self.path.join(format!("{}-best.safetensors", self.name))
    }

    /// The state after `step` steps.
    pub(crate) fn snapshot(&self, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("step-{step:06}.state"))
    }

    /// All states by step, the oldest first.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn snapshots(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let folder = self.path.join("checkpoints");
        let entries = std::fs::read_dir(&folder).map_err(|error| disk(&folder, error))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| disk(&folder, error))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".state"));
            found.extend(step.and_then(|step| step.parse().ok()).map(|step: u64| (step, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Removes all states but the newest `keep`, and the adapters of those that are gone: the state first, so that there is
    /// never a state without its adapter. What a process that was killed left half done goes as well.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn prune(&self, keep: usize) -> Result<(), TrainError> {
        let snapshots = self.snapshots()?;
        let num_old = snapshots.len().saturating_sub(keep.max(1));
        snapshots[..num_old].iter().try_for_each(|(_, state)| remove(state))?;
        let kept: Vec<u64> = snapshots[num_old..].iter().map(|(step, _)| *step).collect();
        let Some(newest) = kept.last() else { return Ok(()) };
        let is_old = |step: &u64| step < newest && !kept.contains(step);
        self.adapter_steps()?.iter().filter(|step| is_old(step)).try_for_each(|step| remove(&self.adapter_of(*step)))
    }

    /// Steps of which there is an adapter.
    fn adapter_steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = std::fs::read_dir(&self.path).map_err(|error| disk(&self.path, error))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let step = |name: String| {
            let digits = name.strip_prefix(&self.name)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        Ok(names.filter_map(step).collect())
    }

    /// Removes a file of the run that does not hold any more.
    ///
    /// # Errors
    /// [`TrainError::Disk`].
    pub(crate) fn forget(&self, name: &str) -> Result<(), TrainError> {
        remove(&self.path.join(name))
    }

    /// What is asked by files.
    pub(crate) fn asked(&self) -> Vec<Request> {
        Request::ALL.into_iter().filter(|request| self.path.join(request.file_name()).exists()).collect()
    }

    /// Says that what was asked is done.
    ///
    /// # Errors
    /// [`TrainError::Disk`] for a file that cannot be removed.
    pub(crate) fn fulfil(&self, request: Request) -> Result<(), TrainError> {
        remove(&self.path.join(request.file_name()))
    }
}

/// Removes a file if it is there.
fn remove(path: &Path) -> Result<(), TrainError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(disk(path, error)),
        _ => Ok(()),
    }
}

fn open_lock(folder: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join("run.lock"))
}

fn lock(folder: &Path) -> Result<File, TrainError> {
    let path = folder.join("run.lock");
    let mut file = open_lock(folder).map_err(|error| disk(&path, error))?;
    // Who only looks whether the run works holds the lock for a moment.
    let mut tried = file.try_lock();
    for _ in 0..5 {
        if matches!(tried, Err(TryLockError::WouldBlock)) {
            std::thread::sleep(Duration::from_millis(20));
            tried = file.try_lock();
        }
    }
    match tried {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // What cannot be read is not said.
            let _ = file.read_to_string(&mut text);
            let Owner { pid, host } = serde_json::from_str(&text).unwrap_or_default();
            return Err(TrainError::FolderInUse { path: folder.to_owned(), pid, host });
        }
        // Some network file systems have no locks and say so: then it is for the user not to start two.
        Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) => return Err(disk(&path, error)),
    }
    let owner = Owner { pid: std::process::id(), host: host_name() };
    let text = serde_json::to_string(&owner).unwrap_or_default();
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|error| disk(&path, error))?;
    Ok(file)
}

/// A run seen from another process.
#[derive(Debug, Clone)]
pub struct RunHandle {
    path: PathBuf,
}

impl RunHandle {
    /// The run in the folder at `path`.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] if there is none.
    pub fn new(path: &Path) -> Result<Self, TrainError> {
        if path.join("run.lock").is_file() || path.join("status.json").is_file() {
            Ok(Self { path: path.to_owned() })
        } else {
            Err(TrainError::NoRun { path: path.to_owned() })
        }
    }

    /// Whether a process works in the folder now.
    ///
    /// # Errors
    /// [`TrainError::Disk`] if its lock cannot be opened.
    pub fn is_running(&self) -> Result<bool, TrainError> {
        let path = self.path.join("run.lock");
        let file = match OpenOptions::new().read(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|error| disk(&path, error))?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(disk(&path, error)),
        }
    }

    /// What the run said last.
    ///
    /// # Errors
    /// [`TrainError::NoRun`] if it never said anything; a file that cannot be read.
    pub fn status(&self) -> Result<RunStatus, TrainError> {
        RunStatus::read(&self.path)?.ok_or_else(|| TrainError::NoRun { path: self.path.clone() })
    }

    /// Asks something of the run, which must be running.
    ///
    /// # Errors
    /// [`TrainError::NotRunning`], [`TrainError::Disk`].
    pub fn ask(&self, request: Request) -> Result<(), TrainError> {
        if !self.is_running()? {
            return Err(TrainError::NotRunning { path: self.path.clone() });
        }
        let path = self.path.join(request.file_name());
        OpenOptions::new().create(true).append(true).open(&path).map(drop).map_err(|error| disk(&path, error))
    }

    /// Whether the run has still to do what was asked.
    pub fn is_waiting(&self, request: Request) -> bool {
        self.path.join(request.file_name()).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        OpenOptions::new().create(true).append(true).open(path).unwrap();
    }

    fn steps(folder: &RunFolder) -> Vec<u64> {
        folder.snapshots().unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn two_runs_in_one_folder_are_refused_with_the_process_that_has_it() {
        let place = tempfile::tempdir().unwrap();
        let first = RunFolder::open(place.path(), "a", Start::New).unwrap();
        let handle = RunHandle::new(place.path()).unwrap();
        assert!(handle.is_running().unwrap());
        for start in [Start::New, Start::Overwrite, Start::Resume { anyway: true }] {
            let error = RunFolder::open(place.path(), "a", start).unwrap_err();
            assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        drop(first);
        assert!(!handle.is_running().unwrap());
        assert!(handle.ask(Request::Stop).is_err());
        RunFolder::open(place.path(), "a", Start::New).unwrap();
    }

    #[test]
    fn a_run_that_is_there_is_touched_only_where_the_start_says_so() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path(), "a", Start::New).unwrap();
        for path in
            [folder.snapshot(20), folder.snapshot(1_000_000), folder.adapter_of(20), folder.file("metrics.jsonl")]
        {
            touch(&path);
        }
        touch(&place.path().join("checkpoints/step-old.state"));
        touch(&place.path().join("checkpoints/.loralei-0123456789abcdef.tmp"));
        drop(folder);
        let error = RunFolder::open(place.path(), "a", Start::New).unwrap_err();
        assert!(error.to_string().contains("1000000"), "{error}");
        let folder = RunFolder::open(place.path(), "a", Start::Resume { anyway: false }).unwrap();
        assert_eq!(steps(&folder), [20, 1_000_000]);
        assert!(!place.path().join("checkpoints/.loralei-0123456789abcdef.tmp").exists());
        drop(folder);
        let folder = RunFolder::open(place.path(), "a", Start::Overwrite).unwrap();
        assert!(steps(&folder).is_empty() && !folder.adapter_of(20).exists() && !folder.file("metrics.jsonl").exists());
    }

    #[test]
    fn the_newest_states_are_kept_and_the_others_go_with_their_adapters() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path(), "a", Start::New).unwrap();
        for step in [5, 10, 15] {
            touch(&folder.snapshot(step));
            touch(&folder.adapter_of(step));
        }
        folder.prune(2).unwrap();
        assert_eq!(steps(&folder), [10, 15]);
        assert!(!folder.adapter_of(5).exists() && folder.adapter_of(10).exists());
        // Killed before it could remove the adapter of a state that is gone.
        touch(&folder.adapter_of(7));
        folder.prune(0).unwrap();
        assert_eq!(steps(&folder), [15]);
        assert_eq!(folder.adapter_steps().unwrap(), [15]);
    }

    #[test]
    fn what_is_asked_stands_until_it_is_done() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(place.path(), "a", Start::New).unwrap();
        let handle = RunHandle::new(place.path()).unwrap();
        handle.ask(Request::Save).unwrap();
        touch(&place.path().join("stop"));
        assert_eq!(folder.asked(), [Request::Save, Request::Stop]);
        assert!(handle.is_waiting(Request::Save));
        folder.fulfil(Request::Save).unwrap();
        assert_eq!(folder.asked(), [Request::Stop]);
        assert!(!handle.is_waiting(Request::Save));
        drop(folder);
        let folder = RunFolder::open(place.path(), "a", Start::New).unwrap();
        assert_eq!(folder.asked(), [], "what was asked of a run that is gone");
    }
}

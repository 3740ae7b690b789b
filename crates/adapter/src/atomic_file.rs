//! The one way in which files are written: whole or not at all.
//!
//! A temporary file beside the target is written, flushed and synchronised, read back by the caller, renamed over the
//! target, and the folder is synchronised. Whenever anything fails, the old file is still there and the temporary one
//! is gone. A process killed in between leaves at most a file called `.loralei-<16 hex digits>.tmp`.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::AdapterError;

const BUFFER_BYTES: usize = 1 << 20;
const PREFIX: &str = ".loralei-";
const SUFFIX: &str = ".tmp";

/// Writes a file whole or not at all.
///
/// `write` puts the content into a buffered writer. `verify` then gets the path of the finished temporary file, and
/// what it refuses never reaches `path`. The file gets the permissions that the umask leaves of 0666, so that other
/// users and containers can read it.
///
/// # Errors
/// Whatever `verify` returns, or [`AdapterError::Write`] with `path` for any failure of `write` or of the system. The
/// file that was at `path` before is then unchanged and no temporary file is left (only a failure to synchronise
/// the folder, the very last act, comes after the new file has taken its place).
pub fn atomic_write<E: From<AdapterError>>(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    verify: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| AdapterError::Write { path: path.to_owned(), source };
    if path.file_name().is_none() {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)).into());
    }
    let folder = folder_of(path);

    let (temporary, file) = Temporary::create_in(folder).map_err(failed)?;
    fill(file, write).map_err(failed)?;
    verify(&temporary.path)?;
    temporary.rename_to(path).map_err(failed)?;
    synchronise_folder(folder).map_err(failed)?;
    Ok(())
}

/// [`atomic_write`] of bytes that are at hand, read back and compared.
///
/// # Errors
/// [`AdapterError::Write`], or [`AdapterError::ReadBack`] if the disk returns other bytes.
pub fn atomic_write_bytes(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let verify = |temporary: &Path| {
        let read = std::fs::read(temporary).map_err(|source| AdapterError::Read { path: path.to_owned(), source });
        let problem = match read {
            Ok(found) if found == bytes => return Ok(()),
            Ok(_) => AdapterError::ContentDiffers { path: path.to_owned(), tensor: String::from("(all)") },
            Err(error) => error,
        };
        Err(AdapterError::ReadBack { path: path.to_owned(), source: Box::new(problem) })
    };
    atomic_write(path, |out| out.write_all(bytes), verify)
}

/// [`atomic_write_bytes`] for what is written again and again and can be made anew, such as a status: whole or not at all for
/// whoever reads it and when the process is killed, but not synchronised, so that it costs the disk nothing. After a power
/// cut it may be empty.
///
/// # Errors
/// [`AdapterError::Write`].
pub fn replace_bytes(path: &Path, bytes: &[u8]) -> Result<(), AdapterError> {
    let replace = || {
        let (temporary, mut file) = Temporary::create_in(folder_of(path))?;
        file.write_all(bytes)?;
        temporary.rename_to(path)
    };
    replace().map_err(|source| AdapterError::Write { path: path.to_owned(), source })
}

/// Removes what killed processes left of files that they were writing in `folder`. Only for who knows that no other process
/// writes there.
///
/// # Errors
/// [`AdapterError::Write`] with `folder`.
pub fn remove_unfinished(folder: &Path) -> Result<(), AdapterError> {
    let remove = || {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                std::fs::remove_file(&path)?;
            }
        }
        Ok(())
    };
    remove().map_err(|source| AdapterError::Write { path: folder.to_owned(), source })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn fill(file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    write(&mut out)?;
    // `into_inner` flushes, and unlike dropping it reports what fails.
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// A temporary file that is removed when dropped, also while a panic unwinds.
struct Temporary {
    path: PathBuf,
    is_renamed: bool,
}

impl Temporary {
    fn create_in(folder: &Path) -> io::Result<(Self, File)> {
        // The keys of RandomState come from the operating system: nobody can guess the name and put a link there first.
        let unpredictable = RandomState::new().build_hasher().finish();
        let path = folder.join(format!("{PREFIX}{unpredictable:016x}{SUFFIX}"));
        // Created the plain way (mode 0666 less the umask), because a file of the usual temporary-file libraries
        // keeps their private mode 0600 after the rename.
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok((Self { path, is_renamed: false }, file))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that may rename")]
    fn rename_to(mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_renamed
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file could not be removed");
        }
    }
}

/// Makes the rename itself survive a power cut.
#[cfg(unix)]
fn synchronise_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems cannot synchronise folders and say so; there is nothing more to do there.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

/// Other systems have no handle of a folder to synchronise.
#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "same signature as on Unix")]
fn synchronise_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

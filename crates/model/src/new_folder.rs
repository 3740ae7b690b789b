//! A folder that is there whole or not at all.

use crate::weights::Result;
use loralei_adapter::AdapterError;
use std::path::Path;

/// Lets `fill` make the content of `folder`, which must not exist, under another name beside it.
///
/// # Errors
/// Those of `fill`, and of the disk; nothing is left then.
pub(crate) fn write_new_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = folder.with_file_name(format!("{name}.unfinished-{}", std::process::id()));
    let written = make_folder(&unfinished).and_then(|()| fill(&unfinished));
    let disk = |source| AdapterError::Write { path: folder.to_owned(), source };
    #[expect(clippy::disallowed_methods, reason = "a whole folder takes its name in one step")]
    let placed = written.and_then(|()| Ok(std::fs::rename(&unfinished, folder).map_err(disk)?));
    if placed.is_err() {
        // The first error is what matters; what cannot be removed can only be left.
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    placed
}

/// With all folders above it.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    let disk = |source| AdapterError::Write { path: path.to_owned(), source };
    Ok(std::fs::create_dir_all(path).map_err(disk)?)
}

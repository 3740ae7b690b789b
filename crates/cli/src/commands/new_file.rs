//! Files that a user may have written by hand: they are not replaced unless that is asked for.

use std::path::Path;

use loralei_trainer::TrainError;

use crate::usage::UsageError;

pub(crate) fn write_new(path: &Path, text: &str, may_replace: bool) -> anyhow::Result<()> {
    refuse_existing(path, may_replace)?;
    Ok(loralei_adapter::atomic_write_bytes(path, text.as_bytes()).map_err(TrainError::from)?)
}

/// Before any work is done for it.
pub(crate) fn refuse_existing(path: &Path, may_replace: bool) -> anyhow::Result<()> {
    if path.exists() && !may_replace {
        let message = format!("`{}` is there already", path.display());
        return Err(UsageError::new(message, "name another file, or replace it with --force").into());
    }
    Ok(())
}

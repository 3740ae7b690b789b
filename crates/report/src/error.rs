//! What can go wrong while a run reports.

use std::io;
use std::path::PathBuf;

use loralei_adapter::AdapterError;

/// The error of this crate. Display is one line; [`ReportError::hint`] says what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum ReportError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Append { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Write(#[from] AdapterError),
    #[error("{} is no folder of a run", .path.display())]
    NoFolder { path: PathBuf },
    #[error("the page of the run could not be put together")]
    Json(#[from] serde_json::Error),
}

impl ReportError {
    /// What the user can do about it, as one line without a full stop; `None` where nothing useful can be said.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Write(error) => error.hint(),
            Self::NoFolder { .. } => Some("name the folder that `loralei train` wrote its files to".to_owned()),
            Self::Append { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room on the disk; the run itself does not need this file".to_owned())
            }
            Self::Read { source, .. } | Self::Append { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("check the permissions of the folder".to_owned())
            }
            _ => None,
        }
    }
}

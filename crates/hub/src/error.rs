//! What can go wrong between a hub id and a local folder.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The error of this crate. Display is one line; [`HubError::hint`] says what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum HubError {
    #[error("{id:?} is no id of a model on the hub: {reason}")]
    BadId { id: String, reason: &'static str },
    #[error("no home folder is known, so there is no place for the cache")]
    NoHome,
    #[error("the endpoint {endpoint:?} is no http or https address")]
    BadEndpoint { endpoint: String },
    #[error("the certificates in {} cannot be used", .path.display())]
    BadCertificates { path: PathBuf, source: Box<ureq::Error> },

    #[error("cannot reach {url}")]
    Connect { url: String, source: Box<ureq::Error> },
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16, code: Option<String>, retry_after: Option<Duration> },
    #[error("{file}: the connection broke after {done_bytes} bytes")]
    Dropped { file: String, done_bytes: u64, source: Option<io::Error> },
    #[error("{url} is redirected to {location:?}, which is not followed")]
    Redirect { url: String, location: String },
    #[error("{repo} is gated: its licence has to be accepted first")]
    Gated { repo: String, page: String, has_token: bool },
    #[error("{repo} does not exist or is private")]
    NoSuchRepo { repo: String, page: String, has_token: bool },
    #[error("{repo} has no revision {revision}")]
    NoSuchRevision { repo: String, revision: String },
    #[error("{repo} has no file {file}")]
    NoSuchFile { repo: String, file: String, others: Vec<String> },

    #[error("{url} did not answer with a list of files")]
    BadListing { url: String, source: serde_json::Error },
    #[error("{repo} lists the file {file:?}, a name that could leave its folder")]
    UnsafeName { repo: String, file: String },
    #[error("{repo}: the commit {commit:?} is no word of letters and digits")]
    BadCommit { repo: String, commit: String },
    #[error("{file}: the server sent version {found} where {expected} was asked for")]
    OtherCommit { file: String, expected: String, found: String },
    #[error("{file}: the server named no usable ETag{}", .etag.as_ref().map_or(String::new(), |e| format!(" but {e:?}")))]
    NoEtag { file: String, etag: Option<String> },
    #[error("{file}: {expected_bytes} bytes were announced, but more came")]
    TooLong { file: String, expected_bytes: u64 },
    #[error("{file}: the checksum is {found} where {expected} is due; the download was thrown away")]
    WrongChecksum { file: String, expected: String, found: String },

    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{repo} (revision {revision}) is not in the cache {}", .cache.display())]
    NotCached { repo: String, revision: String, cache: PathBuf },

    #[error("{repo} lacks {part}, so it is no pipeline of Stable Diffusion")]
    MissingPart { repo: String, part: String },
    #[error("{repo} has {found} text encoders; pipelines with {limit} are supported")]
    TooManyTextEncoders { repo: String, found: usize, limit: usize },
    #[error("{repo} has no model_index.json and no .safetensors or .ckpt file at the top")]
    NoModel { repo: String },
    #[error("{repo} holds {} checkpoints: {}", .files.len(), .files.join(", "))]
    SeveralModels { repo: String, files: Vec<String> },
}

impl HubError {
    /// Whether the disk (or the folder's permissions) is to blame.
    pub fn is_disk(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }

    /// Whether the way to the server, or the server's health, is to blame; the same call may work later.
    pub fn is_network(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Dropped { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether an attempt a moment later is worth it: not where the certificate or the address is at fault.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                !is_tls(source) && !matches!(**source, ureq::Error::BadUri(_) | ureq::Error::Http(_))
            }
            _ => self.is_network(),
        }
    }

    /// The message with its causes, in one line.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    /// Whether the hub refused, or could not be asked: what the cache has may still be used.
    pub(crate) fn is_no_listing(&self) -> bool {
        self.is_network() || matches!(self, Self::Gated { .. } | Self::NoSuchRepo { .. } | Self::Status { .. })
    }

    /// What the user can do about it, as one line without a full stop; `None` where nothing useful can be said.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadId { .. } => {
                "write OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME/FILE; or check the path, if it is one"
            }
            Self::NoHome => "set HF_HOME to a folder",
            Self::BadEndpoint { .. } => "set HF_ENDPOINT to something like https://huggingface.co, or unset it",
            Self::BadCertificates { .. } => {
                "REQUESTS_CA_BUNDLE or SSL_CERT_FILE must be a file of certificates in PEM format"
            }
            Self::Connect { source, .. } if is_tls(source) => {
                "if a proxy of your network replaces certificates, set SSL_CERT_FILE to its own"
            }
            Self::Connect { .. } => {
                "check the network (a proxy goes into HTTPS_PROXY, a mirror into HF_ENDPOINT); what is on the disk already is kept"
            }
            Self::Dropped { .. } => "run it again: the download goes on where it stopped",
            Self::Status { status: 429, .. } => "the hub limits requests; wait some minutes, or set HF_TOKEN",
            Self::Status { .. } => "try again later; the download goes on where it stopped",
            Self::Redirect { .. } | Self::BadListing { .. } | Self::NoEtag { .. } | Self::OtherCommit { .. } => {
                "the server does not behave like a hub; check HF_ENDPOINT"
            }
            Self::Gated { page, has_token, .. } => return Some(gated_hint(page, *has_token)),
            Self::NoSuchRepo { page, has_token, .. } => return Some(no_repo_hint(page, *has_token)),
            Self::NoSuchRevision { .. } => "leave @REVISION out for the newest",
            Self::NoSuchFile { others, .. } if others.is_empty() => return None,
            Self::NoSuchFile { others, .. } => return Some(format!("it has {}", others.join(", "))),
            Self::UnsafeName { .. } | Self::BadCommit { .. } => {
                "do not use this repository: its listing is made to mislead"
            }
            Self::TooLong { .. } | Self::WrongChecksum { .. } => {
                "run it again; if that does not help, the server or a proxy changes the file"
            }
            Self::Read { source, .. } | Self::Write { source, .. } => {
                return disk_hint(source.kind()).map(str::to_owned);
            }
            Self::NotCached { .. } => "unset HF_HUB_OFFLINE and connect to the network once, or check the id",
            Self::MissingPart { .. } | Self::NoModel { .. } => {
                "only Stable Diffusion 1.x, 2.x and XL are read: a diffusers folder, or one .safetensors or .ckpt file"
            }
            Self::TooManyTextEncoders { .. } => {
                "this is a later family; choose a Stable Diffusion 1.x, 2.x or XL model"
            }
            Self::SeveralModels { repo, files } => {
                return files.first().map(|file| format!("name one, as in {repo}/{file}"));
            }
        };
        Some(hint.to_owned())
    }
}

/// Whether the encryption failed; what a handshake refuses comes as an I/O error of invalid data.
fn is_tls(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

fn gated_hint(page: &str, has_token: bool) -> String {
    if has_token {
        format!("accept the licence at {page} with the account that the token belongs to")
    } else {
        format!("accept the licence at {page}, then set HF_TOKEN to a token from your account's settings")
    }
}

fn no_repo_hint(page: &str, has_token: bool) -> String {
    if has_token {
        format!("check the id at {page}, and whether the token may read it")
    } else {
        format!("check the id at {page}; if it is private, set HF_TOKEN")
    }
}

fn disk_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
            "free some space (the download then goes on where it stopped), or set HF_HOME to a folder on another disk",
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("set HF_HOME to a folder that you may change")
        }
        _ => None,
    }
}

//! A hub id becomes a local folder.
//!
//! # Brief overview
//!
//! - [`HubId`] is what the user writes: `OWNER/NAME`, with a file or a revision if need be.
//! - [`HubSettings`] says where the hub and its cache are; [`HubSettings::from_env`] reads the variables that Python's
//!   `huggingface_hub` reads, and the cache has the same layout, so that a model is downloaded once for both.
//! - [`Hub::fetch_base`] brings a base of Stable Diffusion into the cache and returns its path; [`BaseFiles`] says which
//!   files those are. [`Hub::fetch`] does it for any choice of files.
//! - [`HubEvent`] is what happens meanwhile, for a progress bar.
//!
//! A broken connection is resumed, in the same run or the next. A file counts only after its checksum was verified.
//! The token goes to the endpoint alone. The crate knows no model and reads no weights.
//!
//! # Example
//!
//! Without a network, from a cache that some program has filled:
//!
//! ```
//! use loralei_hub::{Hub, HubSettings};
//! # use std::fs;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let cache = tempfile::tempdir()?;
//! # let cache = cache.path();
//! # let repo = cache.join("models--owner--name");
//! # let commit = "0123456789abcdef0123456789abcdef01234567";
//! # fs::create_dir_all(repo.join("refs"))?;
//! # fs::create_dir_all(repo.join("snapshots").join(commit))?;
//! # fs::write(repo.join("refs/main"), commit)?;
//! # fs::write(repo.join("snapshots").join(commit).join("style.safetensors"), "")?;
//! let hub = Hub::new(HubSettings { is_offline: true, ..HubSettings::new(cache) })?;
//! let path = hub.fetch_base(&"owner/name".parse()?, &Default::default(), &mut |_event| {})?;
//! assert!(path.ends_with(format!("models--owner--name/snapshots/{commit}/style.safetensors")));
//! # Ok(())
//! # }
//! ```

mod cache;
mod checksum;
mod download;
mod error;
mod event;
mod http;
mod hub;
mod id;
mod pipeline_files;
mod settings;

pub use error::HubError;
pub use event::HubEvent;
pub use hub::{Choose, Hub, Listing, Snapshot};
pub use id::HubId;
pub use pipeline_files::{BaseFiles, BaseOptions};
pub use settings::HubSettings;

//! From an id to files on the disk: list, choose, download what is missing; or the cache alone.

use std::io::Read;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cache::RepoCache;
use crate::download::{Download, OnEvent, Retries};
use crate::http::Http;
use crate::id::{climbs, is_safe_path, is_safe_word};
use crate::pipeline_files::{BaseFiles, BaseOptions};
use crate::{HubError, HubEvent, HubId, HubSettings};

/// More than the listing of any repository of a model.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// A function that picks, from all files of a repository, those that are wanted.
pub type Choose<'a> = &'a dyn Fn(&[String]) -> Result<Vec<String>, HubError>;

/// A hub, its cache, and the connection between them.
pub struct Hub {
    settings: HubSettings,
    http: Http,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Paths in the repository, sorted.
    pub files: Vec<String>,
}

/// Files that are on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder that stands for the repository. Other files than those wanted may be in it.
    pub folder: PathBuf,
    /// The commit they are of.
    pub commit: String,
    /// The files that were wanted, as paths in the folder.
    pub files: Vec<String>,
}

impl Hub {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// [`HubError::BadEndpoint`]; [`HubError::Read`] and [`HubError::BadCertificates`] for the file of certificates.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        Ok(Self { http: Http::new(&settings)?, settings })
    }

    /// Asks the hub for the files of a repository.
    ///
    /// # Errors
    /// What the hub refuses, the network, and listings that are none or would lead out of the cache.
    pub fn list(&self, id: &HubId) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }

        let url = self.http.listing_url(id);
        let answer = self.http.get(&url, 0).map_err(|error| self.http.explain(id, None, error))?;
        let mut text = Vec::new();
        let mut body = answer.response.into_body().into_reader().take(MAX_LISTING_BYTES);
        body.read_to_end(&mut text).map_err(|source| HubError::Dropped {
            file: url.clone(),
            done_bytes: text.len() as u64,
            source: Some(source),
        })?;
        let answer: Answer = serde_json::from_slice(&text).map_err(|source| HubError::BadListing { url, source })?;
        if !is_safe_word(&answer.sha) {
            return Err(HubError::BadCommit { repo: id.repo(), commit: answer.sha });
        }
        let mut files: Vec<String> = answer.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(file) = files.iter().find(|file| climbs(file)) {
            return Err(HubError::UnsafeName { repo: id.repo(), file: file.clone() });
        }
        // Pictures in a repository may have names that not every file system takes; no base does.
        files.retain(|file| is_safe_path(file));
        files.sort();
        Ok(Listing { commit: answer.sha, files })
    }

    /// Brings the files that `choose` picks into the cache. It may be called more than once: with the hub's list, and
    /// with that of the cache when the hub does not answer; an error of `choose` then means that the cache lacks some.
    ///
    /// # Errors
    /// Those of [`Hub::list`] and of `choose`, failed downloads, and [`HubError::NotCached`] when offline.
    pub fn fetch(&self, id: &HubId, choose: Choose<'_>, on_event: OnEvent<'_>) -> Result<Snapshot, HubError> {
        let cache = RepoCache::new(&self.settings.cache, id, self.settings.use_symlinks);
        if self.settings.is_offline {
            return cached(&cache, id, choose);
        }
        let mut retries = Retries::new(&self.settings);
        let listing = loop {
            let error = match self.list(id) {
                Ok(listing) => break listing,
                Err(error) => error,
            };
            if error.is_no_listing()
                && let Ok(snapshot) = cached(&cache, id, choose)
            {
                on_event(HubEvent::CacheInstead { reason: error.with_causes() });
                return Ok(snapshot);
            }
            retries.wait_after(error, 0, on_event)?;
        };
        let files = choose(&listing.files)?;
        self.download_missing(&cache, id, &listing, &files, on_event)?;
        if let Err(error) = cache.write_ref(id.revision(), &listing.commit) {
            tracing::warn!(%error, "the cache does not note which commit the revision is, so it will not be found offline");
        }
        Ok(Snapshot { folder: cache.snapshot(&listing.commit), commit: listing.commit, files })
    }

    /// Brings a base into the cache: the folder of a diffusers pipeline, or one checkpoint file. Which of the two the
    /// path is, a look at the disk tells.
    ///
    /// # Errors
    /// Those of [`Hub::fetch`] and of [`BaseFiles::choose`].
    pub fn fetch_base(&self, id: &HubId, options: &BaseOptions, on_event: OnEvent<'_>) -> Result<PathBuf, HubError> {
        let choose = |files: &[String]| Ok(BaseFiles::choose(id, files, options)?.all());
        let snapshot = self.fetch(id, &choose, on_event)?;
        Ok(match BaseFiles::choose(id, &snapshot.files, options)? {
            BaseFiles::Pipeline { .. } => snapshot.folder,
            BaseFiles::SingleFile(file) => snapshot.folder.join(file),
        })
    }

    fn download_missing(
        &self,
        cache: &RepoCache,
        id: &HubId,
        listing: &Listing,
        files: &[String],
        on_event: OnEvent<'_>,
    ) -> Result<(), HubError> {
        if let Some(file) = files.iter().find(|file| !listing.files.contains(file)) {
            return Err(HubError::NoSuchFile { repo: id.repo(), file: file.clone(), others: Vec::new() });
        }
        let commit = listing.commit.as_str();
        let missing: Vec<&String> = files.iter().filter(|file| !cache.file(commit, file).is_file()).collect();
        on_event(HubEvent::Chosen { commit, num_files: files.len(), num_cached: files.len() - missing.len() });
        for file in missing {
            Download { http: &self.http, cache, settings: &self.settings, id, commit, file }.run(on_event)?;
            on_event(HubEvent::Done { file });
        }
        Ok(())
    }
}

/// What the cache has of a revision, if that is all that is wanted.
fn cached(cache: &RepoCache, id: &HubId, choose: Choose<'_>) -> Result<Snapshot, HubError> {
    let commit = cache.commit_of(id.revision()).ok_or_else(|| HubError::NotCached {
        repo: id.repo(),
        revision: id.revision().to_owned(),
        cache: cache.root().to_owned(),
    })?;
    let files = choose(&cache.files(&commit))?;
    Ok(Snapshot { folder: cache.snapshot(&commit), commit, files })
}

//! One file from the server into the cache: resumed where it broke off, verified before it counts.
//!
//! Bytes go to `blobs/ETAG.incomplete` under a lock. Whatever breaks the connection leaves them there, for the next
//! attempt or the next run. Only what has the checksum that the ETag promises is renamed to `blobs/ETAG`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::cache::{RepoCache, create_parent};
use crate::http::{Answer, Http, RemoteFile};
use crate::id::is_safe_word;
use crate::{HubError, HubEvent, HubId, HubSettings, checksum};

const BUFFER_BYTES: usize = 1 << 18;
const MAX_WAIT: Duration = Duration::from_mins(1);

pub(crate) type OnEvent<'a> = &'a mut dyn FnMut(HubEvent<'_>);

/// What to download, and with what.
pub(crate) struct Download<'a> {
    pub(crate) http: &'a Http,
    pub(crate) cache: &'a RepoCache,
    pub(crate) settings: &'a HubSettings,
    pub(crate) id: &'a HubId,
    pub(crate) commit: &'a str,
    pub(crate) file: &'a str,
}

impl Download<'_> {
    /// Gets the file into the cache, with as many attempts as the settings allow since the last new byte.
    pub(crate) fn run(&self, on_event: OnEvent<'_>) -> Result<(), HubError> {
        let mut partial = None;
        let mut retries = Retries::new(self.settings);
        loop {
            let result = self.attempt(&mut partial, on_event);
            let num_bytes = partial.as_ref().map_or(0, |partial: &Partial| partial.num_bytes);
            match result {
                Ok(()) => return Ok(()),
                Err(error) => retries.wait_after(error, num_bytes, &mut *on_event)?,
            }
        }
    }

    fn attempt(&self, known: &mut Option<Partial>, on_event: OnEvent<'_>) -> Result<(), HubError> {
        let url = self.http.file_url(self.id, self.commit, self.file);
        let get = |first_byte| {
            self.http.get(&url, first_byte).map_err(|error| self.http.explain(self.id, Some(self.file), error))
        };
        let first_byte = known.as_ref().map_or(0, |partial| partial.num_bytes);
        let mut answer = get(first_byte)?;
        let partial = if let Some(partial) = known {
            partial
        } else {
            let etag = self.checked_etag(&answer.remote)?;
            let lock = self.cache.lock(&etag, || on_event(HubEvent::WaitingForLock { file: self.file }))?;
            // Another process may have got it meanwhile, or another commit may have the same content.
            if self.cache.file(self.commit, self.file).is_file() {
                return Ok(());
            }
            if self.cache.blob(&etag).is_file() {
                return self.cache.link(&etag, self.commit, self.file, false);
            }
            let partial = known.insert(Partial::open(self, etag, answer.remote.size_bytes, lock)?);
            if partial.num_bytes > 0 && !partial.is_complete() {
                drop(answer);
                answer = get(partial.num_bytes)?;
            }
            partial
        };
        if !partial.is_complete() {
            partial.receive(answer, |done_bytes, total_bytes| {
                on_event(HubEvent::Progress { file: self.file, done_bytes, total_bytes });
            })?;
        }
        on_event(HubEvent::Verifying { file: self.file });
        if !partial.verify()? {
            on_event(HubEvent::Unverified { file: self.file });
        }
        self.cache.complete(&partial.etag)?;
        self.cache.link(&partial.etag, self.commit, self.file, true)
    }

    fn checked_etag(&self, remote: &RemoteFile) -> Result<String, HubError> {
        let file = || self.file.to_owned();
        if let Some(found) = remote.commit.as_ref().filter(|commit| *commit != self.commit) {
            let (expected, found) = (self.commit.to_owned(), found.clone());
            return Err(HubError::OtherCommit { file: file(), expected, found });
        }
        let bare = remote.etag.as_deref().map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        match bare {
            Some(etag) if is_safe_word(etag) => Ok(etag.to_owned()),
            _ => Err(HubError::NoEtag { file: file(), etag: remote.etag.clone() }),
        }
    }
}

/// The part of a blob that is here.
struct Partial {
    name: String,
    etag: String,
    path: PathBuf,
    file: File,
    num_bytes: u64,
    total_bytes: Option<u64>,
    _lock: File,
}

impl Partial {
    fn open(download: &Download<'_>, etag: String, total_bytes: Option<u64>, lock: File) -> Result<Self, HubError> {
        let path = download.cache.incomplete(&etag);
        create_parent(&path)?;
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let num_bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, num_bytes))
        };
        let (file, num_bytes) = open().map_err(|source| HubError::Write { path: path.clone(), source })?;
        let name = download.file.to_owned();
        let mut partial = Self { name, etag, path, file, num_bytes, total_bytes, _lock: lock };
        if total_bytes.is_some_and(|total| num_bytes > total) {
            partial.start_anew()?;
        }
        Ok(partial)
    }

    fn is_complete(&self) -> bool {
        self.total_bytes == Some(self.num_bytes)
    }

    /// Appends what comes; an error leaves in the file what has come.
    fn receive(&mut self, answer: Answer, mut progress: impl FnMut(u64, Option<u64>)) -> Result<(), HubError> {
        match answer.response.status().as_u16() {
            206 => {
                let range = answer.content_range();
                let fits = range.is_some_and(|(first, total)| {
                    first == self.num_bytes
                        && (total.is_none() || self.total_bytes.is_none() || total == self.total_bytes)
                });
                if !fits {
                    self.start_anew()?;
                    return Err(self.dropped(None));
                }
            }
            // The server does not know ranges: this is the file from its start.
            200 if self.num_bytes == 0 => {}
            200 => self.start_anew()?,
            _ => {
                self.start_anew()?;
                return Err(self.dropped(None));
            }
        }
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read_bytes = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read_bytes) => read_bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.dropped(Some(error))),
            };
            self.append(&buffer[..read_bytes])?;
            progress(self.num_bytes, self.total_bytes);
        }
        if self.total_bytes.is_some() && !self.is_complete() { Err(self.dropped(None)) } else { Ok(()) }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        let num_bytes = self.num_bytes + bytes.len() as u64;
        if let Some(expected_bytes) = self.total_bytes.filter(|total| num_bytes > *total) {
            self.remove();
            return Err(HubError::TooLong { file: self.name.clone(), expected_bytes });
        }
        self.file.write_all(bytes).map_err(|source| self.write_error(source))?;
        self.num_bytes = num_bytes;
        Ok(())
    }

    /// Whether the content has the checksum that its ETag promises; `false` if the ETag is no checksum.
    fn verify(&self) -> Result<bool, HubError> {
        self.file.sync_all().map_err(|source| self.write_error(source))?;
        let found = checksum::of_kind(&self.etag, &self.path)
            .map_err(|source| HubError::Read { path: self.path.clone(), source })?;
        match found {
            None => Ok(false),
            Some(found) if found.eq_ignore_ascii_case(&self.etag) => Ok(true),
            Some(found) => {
                self.remove();
                Err(HubError::WrongChecksum { file: self.name.clone(), expected: self.etag.clone(), found })
            }
        }
    }

    fn start_anew(&mut self) -> Result<(), HubError> {
        let mut clear = || {
            self.file.set_len(0)?;
            self.file.rewind()
        };
        clear().map_err(|source| self.write_error(source))?;
        self.num_bytes = 0;
        Ok(())
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a bad download could not be removed");
        }
    }

    fn dropped(&self, source: Option<io::Error>) -> HubError {
        HubError::Dropped { file: self.name.clone(), done_bytes: self.num_bytes, source }
    }

    fn write_error(&self, source: io::Error) -> HubError {
        HubError::Write { path: self.path.clone(), source }
    }
}

/// Counts failures since the last new byte, and waits longer after each.
pub(crate) struct Retries {
    num_left: u32,
    num_attempts: u32,
    wait: Duration,
    first_wait: Duration,
    most_bytes: u64,
}

impl Retries {
    pub(crate) fn new(settings: &HubSettings) -> Self {
        let (num_attempts, first_wait) = (settings.num_attempts.max(1), settings.first_wait);
        Self { num_left: num_attempts, num_attempts, wait: first_wait, first_wait, most_bytes: 0 }
    }

    /// Waits before the next attempt, or returns `error` if there should be none.
    pub(crate) fn wait_after(
        &mut self,
        error: HubError,
        num_bytes: u64,
        on_event: OnEvent<'_>,
    ) -> Result<(), HubError> {
        if num_bytes > self.most_bytes {
            (self.num_left, self.wait, self.most_bytes) = (self.num_attempts, self.first_wait, num_bytes);
        }
        self.num_left -= 1;
        if self.num_left == 0 || !error.is_transient() {
            return Err(error);
        }
        let asked = if let HubError::Status { retry_after, .. } = &error { *retry_after } else { None };
        let wait = asked.unwrap_or(self.wait).min(MAX_WAIT);
        on_event(HubEvent::Retry { reason: error.with_causes(), wait });
        std::thread::sleep(wait);
        self.wait *= 2;
        Ok(())
    }
}

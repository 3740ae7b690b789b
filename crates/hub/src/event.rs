//! What a caller may want to show while files arrive.

use std::time::Duration;

/// Something that happened; [`crate::Hub`] prints nothing itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubEvent<'a> {
    /// The files wanted are known.
    Chosen {
        /// The commit that the revision stands for.
        commit: &'a str,
        /// How many files are wanted.
        num_files: usize,
        /// How many of them the cache has.
        num_cached: usize,
    },
    /// Part of a file is on the disk.
    Progress {
        /// Path in the repository.
        file: &'a str,
        /// Bytes on the disk, those of earlier attempts included.
        done_bytes: u64,
        /// Size of the file, if the server says.
        total_bytes: Option<u64>,
    },
    /// All bytes are there; the checksum of a large file takes seconds.
    Verifying {
        /// Path in the repository.
        file: &'a str,
    },
    /// A file is complete and in the cache.
    Done {
        /// Path in the repository.
        file: &'a str,
    },
    /// Another process is downloading this file.
    WaitingForLock {
        /// Path in the repository.
        file: &'a str,
    },
    /// Warning: an attempt failed; another follows.
    Retry {
        /// What failed.
        reason: String,
        /// Time until the next attempt.
        wait: Duration,
    },
    /// Warning: the hub did not answer as it should; the cache is used, which may be older.
    CacheInstead {
        /// What failed.
        reason: String,
    },
    /// Warning: the server named no checksum of this file that can be verified.
    Unverified {
        /// Path in the repository.
        file: &'a str,
    },
}

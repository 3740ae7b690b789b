//! Every picture of a data set looked at once, on all cores and within a fixed amount of memory, before a run begins:
//! its size, what it holds, what it looks like, and whether it can be read at all.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::DataError;
use crate::bucket::Size;
use crate::budget::Budget;
use crate::decode::{Alpha, MAX_ALLOC_BYTES, MAX_FILE_BYTES, Note, Opened, read, size_on_disk};
use crate::look::Look;

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Reads the file and judges its header. Pixels that are broken later in the file are not found.
    Header,
    /// Decodes the pixels too.
    Pixels,
}

/// The SHA-256 of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

/// What was seen of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Surveyed {
    /// Size of the upright picture.
    pub size: Size,
    /// What the file holds, to the byte.
    pub content: ContentHash,
    /// What it looks like; `None` with [`Depth::Header`], and for a picture of one colour.
    pub look: Option<Look>,
    /// Whether the file can hold transparent pixels.
    pub has_alpha: bool,
    /// What decoding does to it (with [`Depth::Header`], as far as the header tells).
    pub notes: Vec<Note>,
}

/// Looks at every picture, on the threads of the current rayon pool.
///
/// Returns what was found in the order of `paths`. `on_seen` is called after each picture, from any thread, with the
/// number of pictures seen so far. Beside the results it takes at most [`MAX_FILE_BYTES`] for files and
/// [`MAX_ALLOC_BYTES`] for pixels in all, whatever the number of threads: pictures that would need more wait.
pub fn survey(paths: &[PathBuf], depth: Depth, on_seen: impl Fn(usize) + Sync) -> Vec<Result<Surveyed, DataError>> {
    // Taken in this order by every thread, so none waits for another in a circle. Nothing done while holding a share may
    // hand work to the pool: the thread might pick up another picture meanwhile, and wait for itself.
    let (files, pixels) = (Budget::new(MAX_FILE_BYTES), Budget::new(MAX_ALLOC_BYTES));
    let num_seen = AtomicUsize::new(0);
    let see = |path: &PathBuf| {
        let _file_share = files.take(size_on_disk(path)?);
        let bytes = read(path)?;
        let content = ContentHash::of(&bytes);
        let opened = Opened::new(path, bytes)?;
        let (size, has_alpha) = (opened.header.size, opened.header.has_alpha);
        if depth == Depth::Header {
            return Ok(Surveyed { size, content, look: None, has_alpha, notes: opened.header.notes });
        }
        let _pixel_share = pixels.take(opened.header.needed_bytes);
        let decoded = opened.decode(Alpha::default())?;
        Ok(Surveyed { size, content, look: Look::of(&decoded.rgb), has_alpha, notes: decoded.notes })
    };
    paths
        .par_iter()
        .with_max_len(1)
        .map(|path| {
            let surveyed = see(path);
            on_seen(num_seen.fetch_add(1, Ordering::Relaxed) + 1);
            surveyed
        })
        .collect()
}

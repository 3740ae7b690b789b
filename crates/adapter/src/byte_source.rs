//! The bytes of a file, on disk or in memory, read at any position.
//!
//! Nothing is mapped into memory and nothing is read ahead.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::AdapterError;

/// How many bytes are read and converted at a time: few enough to stay in the processor's cache. A multiple of 8.
const CHUNK_BYTES: usize = 1 << 19;

/// An open file, or bytes in memory with a label that stands for their path.
#[derive(Debug)]
pub(crate) struct ByteSource {
    path: PathBuf,
    num_bytes: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(File),
    Memory(Cow<'static, [u8]>),
}

impl ByteSource {
    pub(crate) fn open(path: &Path) -> Result<Self, AdapterError> {
        let failed = |source| AdapterError::Read { path: path.to_owned(), source };
        // Asked before opening: to open a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(AdapterError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        let num_bytes = file.metadata().map_err(failed)?.len();
        Ok(Self { path: path.to_owned(), num_bytes, content: Content::File(file) })
    }

    pub(crate) fn from_bytes(label: &str, bytes: Cow<'static, [u8]>) -> Self {
        Self { path: PathBuf::from(label), num_bytes: bytes.len() as u64, content: Content::Memory(bytes) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// The first bytes: `max_bytes` of them, or all if there are fewer.
    pub(crate) fn start(&self, max_bytes: u64) -> Result<Vec<u8>, AdapterError> {
        self.read(0, max_bytes.min(self.num_bytes))
    }

    /// The bytes from `position` on. The caller has checked `num_bytes` against a limit.
    pub(crate) fn read(&self, position: u64, num_bytes: u64) -> Result<Vec<u8>, AdapterError> {
        let mut bytes = vec![0; num_bytes as usize];
        self.read_exact_at(position, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills the buffer with the bytes from `position` on. Several threads may read at once.
    pub(crate) fn read_exact_at(&self, position: u64, buffer: &mut [u8]) -> Result<(), AdapterError> {
        let result = match &self.content {
            Content::File(file) => read_exact_at(file, position, buffer),
            Content::Memory(bytes) => {
                let part = usize::try_from(position)
                    .ok()
                    .and_then(|begin| bytes.get(begin..)?.get(..buffer.len()))
                    .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
                part.map(|part| buffer.copy_from_slice(part))
            }
        };
        result.map_err(|source| AdapterError::Read { path: self.path.clone(), source })
    }

    /// Gives the bytes of a range piece by piece; every piece but the last is a multiple of 8 bytes.
    pub(crate) fn for_each_chunk(&self, range: Range<u64>, mut consume: impl FnMut(&[u8])) -> Result<(), AdapterError> {
        let mut buffer = vec![0; range.end.saturating_sub(range.start).min(CHUNK_BYTES as u64) as usize];
        let mut position = range.start;
        while position < range.end {
            let chunk = &mut buffer[..(range.end - position).min(CHUNK_BYTES as u64) as usize];
            self.read_exact_at(position, chunk)?;
            consume(chunk);
            position += chunk.len() as u64;
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, position)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut position: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, position) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => (position, buffer) = (position + length as u64, &mut buffer[length..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

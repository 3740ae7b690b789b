//! The hashes by which other programs recognise adapters and checkpoints.
//!
//! Definitions from sd-scripts (`precalculate_safetensors_hashes`, `model_hash`, `calculate_sha256`); facts in
//! ModelSpec 1.0.1.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::TensorView;
use crate::error::AdapterError;
use crate::tensor_file_writer::Serialised;

/// The bytes of a file that the old short hash looks at.
const LEGACY_START: u64 = 0x10_0000;
const LEGACY_BYTES: u64 = 0x1_0000;
const LEGACY_HEX_DIGITS: usize = 8;

/// The two hashes in the metadata of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterHashes {
    /// `sshs_model_hash`: SHA-256 of the tensors' bytes in file order, 64 hex digits. No metadata changes it.
    pub model: String,
    /// `sshs_legacy_hash`: the first 8 hex digits of the SHA-256 of bytes 0x100000..0x110000 of the file as it would be
    /// with only its `ss_*` metadata. The same for all files under 1 MiB.
    pub legacy: String,
}

impl AdapterHashes {
    /// The hashes of a file with these tensors and this metadata (of which only `ss_*` counts).
    ///
    /// # Errors
    /// Those of [`crate::write_tensors`] that need no disk.
    pub fn of(
        tensors: &BTreeMap<String, TensorView<'_>>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, AdapterError> {
        let reduced: BTreeMap<String, String> =
            metadata.iter().filter(|(key, _)| key.starts_with("ss_")).map(|(k, v)| (k.clone(), v.clone())).collect();
        let nowhere = Path::new("adapter");
        let serialised = Serialised::new(nowhere, tensors, Some(&reduced))?;

        let failed = |source| AdapterError::Write { path: nowhere.to_owned(), source };
        let mut whole = RangeHash::new(0, u64::MAX);
        serialised.write_content_to(&mut whole).map_err(failed)?;
        let mut range = RangeHash::new(LEGACY_START, LEGACY_START + LEGACY_BYTES);
        serialised.write_to(&mut range).map_err(failed)?;
        Ok(Self { model: whole.hex(), legacy: range.hex()[..LEGACY_HEX_DIGITS].to_owned() })
    }
}

/// The two hashes of a single-file checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointHashes {
    /// `ss_new_sd_model_hash`: SHA-256 of the file, 64 hex digits.
    pub sha256: String,
    /// `ss_sd_model_hash`: the first 8 hex digits of the SHA-256 of bytes 0x100000..0x110000.
    pub legacy: String,
}

impl CheckpointHashes {
    /// Reads the whole file (seconds for 4 GB).
    ///
    /// # Errors
    /// [`AdapterError::Read`].
    pub fn of_file(path: &Path) -> Result<Self, AdapterError> {
        let compute = || -> io::Result<Self> {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(LEGACY_START))?;
            let mut range = Vec::new();
            (&file).take(LEGACY_BYTES).read_to_end(&mut range)?;
            file.seek(SeekFrom::Start(0))?;
            let mut whole = RangeHash::new(0, u64::MAX);
            let mut buffer = vec![0; 1 << 20];
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    num_bytes => whole.write_all(&buffer[..num_bytes])?,
                }
            }
            Ok(Self { sha256: whole.hex(), legacy: sha256_hex(&range)[..LEGACY_HEX_DIGITS].to_owned() })
        };
        compute().map_err(|source| AdapterError::Read { path: path.to_owned(), source })
    }
}

/// The SHA-256 of bytes at hand, 64 hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of bytes that come piece by piece.
#[derive(Default)]
pub struct StreamedHash(Sha256);

impl StreamedHash {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all of them, 64 hex digits.
    pub fn hex(self) -> String {
        hex(&self.0.finalize())
    }
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A writer that hashes the part of what it is given that lies in `begin..end`.
struct RangeHash {
    hasher: Sha256,
    position: u64,
    begin: u64,
    end: u64,
}

impl RangeHash {
    fn new(begin: u64, end: u64) -> Self {
        Self { hasher: Sha256::new(), position: 0, begin, end }
    }

    fn hex(self) -> String {
        hex(&self.hasher.finalize())
    }
}

impl Write for RangeHash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        let from = self.begin.saturating_sub(self.position).min(length) as usize;
        let to = self.end.saturating_sub(self.position).min(length) as usize;
        self.hasher.update(&bytes[from..to]);
        self.position += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

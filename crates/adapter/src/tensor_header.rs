//! The header of a safetensors file, parsed with every rule of the format and the limits of a careful reader.
//!
//! Layout: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without holes. The reference
//! library accepts a name given twice, any name, any rank, unknown fields and headers of 100 MB; this reader does not.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{AdapterError, ForeignFormat};
use crate::{Dtype, TensorInfo};

/// Bytes of the length field in front of the header.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// Upper limit of a header in bytes. SDXL checkpoints have about 0.4 MB.
pub(crate) const MAX_HEADER_BYTES: u64 = 16 << 20;
/// A header up to this size in bytes is accepted whatever the file's size; a larger one may be a quarter of the file.
pub(crate) const ALWAYS_ACCEPTED_HEADER_BYTES: u64 = 1 << 20;
pub(crate) const MAX_TENSORS: usize = 100_000;
pub(crate) const MAX_RANK: usize = 8;
const MAX_NAME_BYTES: usize = 512;
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// One tensor: what it is, and where its bytes are, counted from the end of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A header that has passed all checks.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The length of the header in bytes, from the first bytes of a file (at least 8 unless the file is shorter).
pub(crate) fn header_bytes(path: &Path, start: &[u8], file_bytes: u64) -> Result<u64, AdapterError> {
    let path = || path.to_owned();
    if let Some(kind) = foreign_format(start) {
        return Err(AdapterError::Foreign { path: path(), kind });
    }
    let Some(length) = start.first_chunk::<{ LENGTH_BYTES as usize }>() else {
        return Err(AdapterError::Truncated { path: path(), expected_bytes: LENGTH_BYTES, found_bytes: file_bytes });
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(AdapterError::HeaderTooLarge { path: path(), header_bytes, limit_bytes: MAX_HEADER_BYTES });
    }
    if LENGTH_BYTES + header_bytes > file_bytes {
        let expected_bytes = LENGTH_BYTES + header_bytes;
        return Err(AdapterError::Truncated { path: path(), expected_bytes, found_bytes: file_bytes });
    }
    let limit_bytes = ALWAYS_ACCEPTED_HEADER_BYTES.max(file_bytes / 4);
    if header_bytes > limit_bytes {
        return Err(AdapterError::HeaderTooLarge { path: path(), header_bytes, limit_bytes });
    }
    Ok(header_bytes)
}

fn foreign_format(start: &[u8]) -> Option<ForeignFormat> {
    if start.starts_with(b"PK\x03\x04") {
        Some(ForeignFormat::Zip)
    } else if matches!(start, [0x80, 2..=5, rest @ ..] if rest.iter().take(6).any(|byte| *byte != 0))
        && start.first_chunk().is_none_or(|length| u64::from_le_bytes(*length) > MAX_HEADER_BYTES)
    {
        Some(ForeignFormat::Pickle)
    } else if start.starts_with(b"version https://git-lfs") {
        Some(ForeignFormat::GitLfsPointer)
    } else if start.starts_with(b"GGUF") {
        Some(ForeignFormat::Gguf)
    } else {
        let text = start.trim_ascii_start();
        let is_html = [b"<!doctype".as_slice(), b"<html"]
            .iter()
            .any(|tag| text.get(..tag.len()).is_some_and(|head| head.eq_ignore_ascii_case(tag)));
        is_html.then_some(ForeignFormat::Html)
    }
}

/// Parses and checks a header; `data_bytes` is what the file holds behind it.
pub(crate) fn parse(path: &Path, json: &[u8], data_bytes: u64) -> Result<Header, AdapterError> {
    if json.first() != Some(&b'{') {
        return Err(AdapterError::HeaderNotObject { path: path.to_owned() });
    }
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|source| AdapterError::HeaderJson { path: path.to_owned(), source })?;
    match raw.problem {
        Some(Problem::Duplicate(name)) => return Err(AdapterError::DuplicateName { path: path.to_owned(), name }),
        Some(Problem::TooManyTensors) => {
            return Err(AdapterError::TooManyTensors { path: path.to_owned(), limit: MAX_TENSORS });
        }
        None => {}
    }
    let mut tensors = BTreeMap::new();
    for (name, raw) in raw.tensors {
        let entry = check_entry(path, &name, raw)?;
        tensors.insert(name, entry);
    }
    check_extent(path, &tensors, LENGTH_BYTES + json.len() as u64, data_bytes)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Whether a name may stand in a tensor file: 1 to 512 bytes, no control characters (they could steer a terminal).
pub(crate) fn is_tensor_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control) && name != METADATA_KEY
}

pub(crate) fn bad_name(path: &Path, name: &str) -> AdapterError {
    AdapterError::BadTensorName { path: path.to_owned(), name: name.chars().take(64).collect() }
}

fn check_entry(path: &Path, name: &str, raw: RawEntry) -> Result<Entry, AdapterError> {
    if !is_tensor_name(name) {
        return Err(bad_name(path, name));
    }
    let (path, tensor) = (|| path.to_owned(), || name.to_owned());
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        let dtype = raw.dtype.chars().take(32).collect();
        return Err(AdapterError::UnsupportedDtype { path: path(), tensor: tensor(), dtype });
    };
    if raw.shape.rank > MAX_RANK {
        let rank = raw.shape.rank;
        return Err(AdapterError::RankTooHigh { path: path(), tensor: tensor(), rank, limit: MAX_RANK });
    }
    let (begin, end) = raw.data_offsets;
    let dims = raw.shape.dims;
    let shape: Option<Vec<usize>> = dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let num_bytes = dims.iter().try_fold(dtype.size_bytes() as u64, |product, dim| product.checked_mul(*dim));
    match shape {
        Some(shape) if num_bytes.is_some() && num_bytes == end.checked_sub(begin) => {
            Ok(Entry { info: TensorInfo { dtype, shape }, begin, end })
        }
        _ => Err(AdapterError::ByteRange { path: path(), tensor: tensor(), dtype, shape: dims, begin, end }),
    }
}

/// The tensors must fill the file from the header to its end: no hole, no overlap, nothing behind.
fn check_extent(
    path: &Path,
    tensors: &BTreeMap<String, Entry>,
    data_start: u64,
    data_bytes: u64,
) -> Result<(), AdapterError> {
    let mut by_position: Vec<_> = tensors.iter().collect();
    by_position.sort_by_key(|(_, entry)| (entry.begin, entry.end));
    let mut expected = 0;
    for (name, entry) in by_position {
        if entry.begin != expected {
            let (path, tensor) = (path.to_owned(), name.clone());
            return Err(AdapterError::NotContiguous { path, tensor, expected, found: entry.begin });
        }
        expected = entry.end;
    }
    if expected > data_bytes {
        let (expected_bytes, found_bytes) = (data_start.saturating_add(expected), data_start + data_bytes);
        return Err(AdapterError::Truncated { path: path.to_owned(), expected_bytes, found_bytes });
    }
    if expected < data_bytes {
        return Err(AdapterError::TrailingBytes { path: path.to_owned(), extra_bytes: data_bytes - expected });
    }
    Ok(())
}

/// The header as JSON has it. Names are kept unique here, where a map of serde would let the last one win.
#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
    problem: Option<Problem>,
}

impl RawHeader {
    fn insert(&mut self, name: String, entry: RawEntry) {
        let is_full = self.tensors.len() == MAX_TENSORS;
        match self.tensors.entry(name) {
            btree_map::Entry::Occupied(place) => self.problem = Some(Problem::Duplicate(place.key().clone())),
            btree_map::Entry::Vacant(_) if is_full => self.problem = Some(Problem::TooManyTensors),
            btree_map::Entry::Vacant(place) => {
                place.insert(entry);
            }
        }
    }
}

enum Problem {
    Duplicate(String),
    TooManyTensors,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: RawShape,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if header.problem.is_some() {
                        map.next_value::<IgnoredAny>()?; // the rest costs no memory
                    } else if name == METADATA_KEY {
                        let unique: UniqueStrings = map.next_value()?;
                        header.metadata = unique.entries;
                        header.problem = unique.duplicate.or(has_metadata.then_some(name)).map(Problem::Duplicate);
                        has_metadata = true;
                    } else {
                        header.insert(name, map.next_value()?);
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map from text to text that remembers a key given twice.
#[derive(Default)]
pub(crate) struct UniqueStrings {
    pub(crate) entries: BTreeMap<String, String>,
    pub(crate) duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = UniqueStrings;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object whose values are text")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut unique = UniqueStrings::default();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match unique.entries.entry(key) {
                        btree_map::Entry::Vacant(place) => {
                            place.insert(value);
                        }
                        btree_map::Entry::Occupied(place) => unique.duplicate = Some(place.key().clone()),
                    }
                }
                Ok(unique)
            }
        }
        deserializer.deserialize_map(StringsVisitor)
    }
}

/// The first `MAX_RANK` dimensions and how many there were, so that a shape of a million dimensions costs nothing.
struct RawShape {
    dims: Vec<u64>,
    rank: usize,
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = RawShape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<RawShape, A::Error> {
                let mut shape = RawShape { dims: Vec::new(), rank: 0 };
                while let Some(dim) = dims.next_element::<u64>()? {
                    shape.rank += 1;
                    if shape.rank <= MAX_RANK {
                        shape.dims.push(dim);
                    }
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

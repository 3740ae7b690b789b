//! The hashes by which programs and sites recognise an adapter on the disk.
//!
//! Definitions: A1111's `sha256` and `addnet_hash_safetensors`; AutoV2 and AutoV3 are their first digits on Civitai.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::AdapterError;
use crate::hashes::{StreamedHash, sha256_hex};
use crate::tensor_header::LENGTH_BYTES;
use crate::tensor_layout::{header, in_file_order};
use crate::{TensorFile, TensorInfo};

/// The bytes that `sshs_legacy_hash` looks at.
const LEGACY_START: u64 = 0x10_0000;
const LEGACY_END: u64 = 0x11_0000;
const BUFFER_BYTES: usize = 1 << 18;

/// By name: `sha256` and `autov2` (its first 10 digits) of any file; `sshs_model_hash` (of the tensors), `autov3` (its
/// first 12) and `sshs_legacy_hash` of a safetensors file too. The file is read in pieces.
///
/// # Errors
/// [`AdapterError::Read`].
pub(crate) fn file_hashes(path: &Path) -> Result<BTreeMap<String, String>, AdapterError> {
    let tensors = TensorFile::open(path).ok();
    let data_start = tensors.as_ref().map(|_| data_start(path)).transpose()?;
    let (whole, content) = rayon::join(|| sha256_from(path, 0), || data_start.map(|at| sha256_from(path, at)));
    let whole = whole?;
    let mut hashes = BTreeMap::new();
    hashes.insert("autov2".to_owned(), whole[..10].to_owned());
    hashes.insert("sha256".to_owned(), whole);
    if let (Some(content), Some(tensors)) = (content.transpose()?, tensors) {
        hashes.insert("autov3".to_owned(), content[..12].to_owned());
        hashes.insert("sshs_model_hash".to_owned(), content);
        hashes.insert("sshs_legacy_hash".to_owned(), legacy_hash(&tensors)?);
    }
    Ok(hashes)
}

/// Whether the hashes that metadata names are those of the file; `None` if it names none.
pub(crate) fn match_metadata(hashes: &BTreeMap<String, String>, metadata: &BTreeMap<String, String>) -> Option<bool> {
    let named = [
        ("sshs_model_hash", "sshs_model_hash"),
        ("sshs_legacy_hash", "sshs_legacy_hash"),
        ("modelspec.hash_sha256", "sshs_model_hash"),
    ];
    let matches: Vec<bool> = named
        .into_iter()
        .filter_map(|(key, hash)| {
            let (said, found) = (metadata.get(key)?, hashes.get(hash)?);
            Some(said.strip_prefix("0x").unwrap_or(said).eq_ignore_ascii_case(found))
        })
        .collect();
    (!matches.is_empty()).then(|| matches.into_iter().all(|matches| matches))
}

/// Where the tensors begin.
fn data_start(path: &Path) -> Result<u64, AdapterError> {
    let mut length = [0; LENGTH_BYTES as usize];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut length));
    read.map_err(|source| AdapterError::Read { path: path.to_owned(), source })?;
    Ok(LENGTH_BYTES + u64::from_le_bytes(length))
}

fn sha256_from(path: &Path, offset: u64) -> Result<String, AdapterError> {
    let compute = || -> io::Result<String> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let (mut hash, mut buffer) = (StreamedHash::default(), vec![0; BUFFER_BYTES]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hash.hex()),
                num_bytes => hash.update(&buffer[..num_bytes]),
            }
        }
    };
    compute().map_err(|source| AdapterError::Read { path: path.to_owned(), source })
}

/// Of the file as it would be with only its `ss_*` metadata: see [`crate::AdapterHashes`]. Reads the few tensors that
/// reach into the range.
fn legacy_hash(file: &TensorFile) -> Result<String, AdapterError> {
    let infos: BTreeMap<String, TensorInfo> =
        file.names().filter_map(|name| Some((name.to_owned(), file.info(name)?.clone()))).collect();
    let reduced: BTreeMap<String, String> =
        file.metadata().iter().filter(|(key, _)| key.starts_with("ss_")).map(|(k, v)| (k.clone(), v.clone())).collect();
    let in_order = in_file_order(&infos, |info| info);
    let header = header(file.path(), in_order.iter().copied(), Some(&reduced))?;
    let mut range = header.get(LEGACY_START as usize..).unwrap_or_default().to_vec();
    range.truncate((LEGACY_END - LEGACY_START) as usize);
    let mut position = header.len() as u64;
    for (name, info) in in_order {
        let end = position + (info.num_elements() * info.dtype.size_bytes()) as u64;
        let part = LEGACY_START.clamp(position, end)..LEGACY_END.clamp(position, end);
        if !part.is_empty() {
            let mut bytes = vec![0; (part.end - part.start) as usize];
            file.read_part(name, part.start - position, &mut bytes)?;
            range.extend(bytes);
        }
        position = end;
    }
    Ok(sha256_hex(&range)[..8].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adapter, Array, LoraModule, SaveDtype};

    /// An adapter of this size with metadata of all kinds.
    fn written(folder: &Path, width: usize) -> std::path::PathBuf {
        let data = |count: usize| (0..count).map(|i| ((i * 31) % 97) as f32 / 97.0).collect::<Vec<f32>>();
        let module = |rank: usize| LoraModule {
            down: Array { shape: vec![rank, width], data: data(rank * width) },
            up: Array { shape: vec![width, rank], data: data(rank * width) },
            alpha: Some(2.0),
        };
        let modules = [("lora_unet_b".to_owned(), module(4)), ("lora_te_a".to_owned(), module(3))].into();
        let metadata = [("ss_v2", "False"), ("modelspec.title", "A title \"in\" quotes"), ("note", "n")];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let path = folder.join(format!("{width}.safetensors"));
        Adapter { modules, metadata }.write(&path, SaveDtype::F16).unwrap();
        path
    }

    #[test]
    fn hashes_of_a_file_are_those_that_its_writer_put_into_the_metadata() {
        let folder = tempfile::tempdir().unwrap();
        for width in [100, 60_000, 200_000] {
            let path = written(folder.path(), width);
            let hashes = file_hashes(&path).unwrap();
            let metadata = TensorFile::open(&path).unwrap().metadata().clone();
            for key in ["sshs_model_hash", "sshs_legacy_hash"] {
                assert_eq!(hashes[key], metadata[key], "{width} {key}");
            }
            assert_eq!(hashes["sha256"], sha256_hex(&std::fs::read(&path).unwrap()));
            assert_eq!(match_metadata(&hashes, &metadata), Some(true));
            assert_eq!(match_metadata(&hashes, &BTreeMap::new()), None);
            for key in ["sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"] {
                let mut stale = metadata.clone();
                stale.insert(key.to_owned(), "0x00".to_owned());
                assert_eq!(match_metadata(&hashes, &stale), Some(false), "{key}");
            }
        }
    }

    #[test]
    fn a_file_of_another_format_has_the_hash_of_its_bytes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pt");
        crate::atomic_write_bytes(&path, b"PK\x03\x04 not safetensors").unwrap();
        assert_eq!(file_hashes(&path).unwrap().into_keys().collect::<Vec<_>>(), ["autov2", "sha256"]);
    }
}

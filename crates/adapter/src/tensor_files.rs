//! One set of tensors that may be spread over several files.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::byte_source::ByteSource;
use crate::error::AdapterError;
use crate::tensor_header::UniqueStrings;
use crate::zip_directory::ZIP_MAGIC;
use crate::{TensorBytes, TensorFile, TensorInfo, TorchFile};

/// Upper limit of an index file in bytes. That of the largest model with an index seen so far has 0.2 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// How the name of an index ends behind the extension of its shards.
const INDEX_SUFFIX: &str = ".index.json";
/// The extensions of shards that an index may list.
const SHARD_SUFFIXES: [&str; 2] = [".safetensors", ".bin"];

/// The tensors of one model: a single safetensors or PyTorch file, or all shards that an index lists.
#[derive(Debug)]
pub struct TensorFiles {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Name of a tensor to the position of its shard.
    shard_of: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueStrings,
}

/// One file of either format.
#[derive(Debug)]
enum Shard {
    Safetensors(TensorFile),
    Torch(TorchFile),
}

impl From<TensorFile> for TensorFiles {
    fn from(file: TensorFile) -> Self {
        Shard::Safetensors(file).into()
    }
}

impl From<TorchFile> for TensorFiles {
    fn from(file: TorchFile) -> Self {
        Shard::Torch(file).into()
    }
}

impl From<Shard> for TensorFiles {
    fn from(shard: Shard) -> Self {
        let shard_of = shard.names().into_iter().map(|name| (name.to_owned(), 0)).collect();
        Self { path: shard.path().to_owned(), shards: vec![shard], shard_of }
    }
}

impl TensorFiles {
    /// Opens a safetensors file, a PyTorch file (`.ckpt`, `.pt`, `.bin`; read as data, see [`TorchFile`]), or an index
    /// whose name ends in `.safetensors.index.json` or `.bin.index.json` with all its shards. Which of the formats a
    /// file has is told from its content, not from its name.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`] or [`TorchFile::open`] for each file; [`AdapterError::IndexJson`],
    /// [`AdapterError::DuplicateName`], [`AdapterError::BadShardName`] for a broken index,
    /// [`AdapterError::ShardLacksTensor`] if a shard does not hold what the index says.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        match index_suffix(path) {
            Some(shard_suffix) => Self::open_index(path, shard_suffix),
            None => Ok(Shard::open(path)?.into()),
        }
    }

    fn open_index(path: &Path, shard_suffix: &str) -> Result<Self, AdapterError> {
        let weight_map = read_weight_map(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<Shard> = Vec::new();
        let mut position_of: BTreeMap<String, usize> = BTreeMap::new();
        let mut shard_of = BTreeMap::new();
        for (tensor, shard) in weight_map {
            let position = if let Some(position) = position_of.get(&shard) {
                *position
            } else {
                if !is_plain_file_name(&shard, shard_suffix) {
                    return Err(AdapterError::BadShardName { path: path.to_owned(), shard });
                }
                shards.push(Shard::open(&folder.join(&shard))?);
                position_of.insert(shard, shards.len() - 1);
                shards.len() - 1
            };
            let file = &shards[position];
            if file.info(&tensor).is_none() {
                let (index, shard) = (path.to_owned(), file.path().to_owned());
                return Err(AdapterError::ShardLacksTensor { index, shard, tensor });
            }
            shard_of.insert(tensor, position);
        }
        for (position, shard) in shards.iter().enumerate() {
            for tensor in shard.names().into_iter().filter(|name| shard_of.get(*name) != Some(&position)) {
                tracing::warn!(shard = %shard.path().display(), tensor, "the index does not list this tensor: ignored");
            }
        }
        Ok(Self { path: path.to_owned(), shards, shard_of })
    }

    /// The path of the file or of the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The paths of the files that hold the tensors.
    pub fn file_paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(Shard::path)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor, `None` if no file has one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of(name).ok()?.info(name)
    }

    /// The metadata of the first file: see [`TensorFile::metadata`] and [`TorchFile::metadata`].
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.shards.first().map_or(&NONE, Shard::metadata)
    }

    /// See [`TensorFile::read_f32`].
    ///
    /// # Errors
    /// As there.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, AdapterError> {
        match self.file_of(name)? {
            Shard::Safetensors(file) => file.read_f32(name),
            Shard::Torch(file) => file.read_f32(name),
        }
    }

    /// See [`TensorFile::read_i64`].
    ///
    /// # Errors
    /// As there.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, AdapterError> {
        match self.file_of(name)? {
            Shard::Safetensors(file) => file.read_i64(name),
            Shard::Torch(file) => file.read_i64(name),
        }
    }

    /// See [`TensorFile::read_bytes`].
    ///
    /// # Errors
    /// As there.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, AdapterError> {
        match self.file_of(name)? {
            Shard::Safetensors(file) => file.read_bytes(name),
            Shard::Torch(file) => file.read_bytes(name),
        }
    }

    /// See [`TensorFile::bytes`].
    ///
    /// # Errors
    /// As there and in [`TorchFile::bytes`].
    pub fn bytes(&self, name: &str) -> Result<TensorBytes<'_>, AdapterError> {
        match self.file_of(name)? {
            Shard::Safetensors(file) => file.bytes(name),
            Shard::Torch(file) => file.bytes(name),
        }
    }

    fn file_of(&self, name: &str) -> Result<&Shard, AdapterError> {
        let missing = || AdapterError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.shard_of.get(name).map(|position| &self.shards[*position]).ok_or_else(missing)
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, AdapterError> {
        let source = ByteSource::open(path)?;
        // No safetensors file starts like this: its header would have 67 MB.
        Ok(if source.start(ZIP_MAGIC.len() as u64)? == ZIP_MAGIC {
            Self::Torch(TorchFile::from_source(source)?)
        } else {
            Self::Safetensors(TensorFile::from_source(source)?)
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Safetensors(file) => file.path(),
            Self::Torch(file) => file.path(),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::Safetensors(file) => file.names().collect(),
            Self::Torch(file) => file.names().collect(),
        }
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            Self::Safetensors(file) => file.info(name),
            Self::Torch(file) => file.info(name),
        }
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Safetensors(file) => file.metadata(),
            Self::Torch(file) => file.metadata(),
        }
    }
}

/// The extension of the shards if a path is that of an index.
fn index_suffix(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy();
    let stem = name.strip_suffix(INDEX_SUFFIX)?;
    SHARD_SUFFIXES.into_iter().find(|suffix| stem.ends_with(suffix))
}

fn read_weight_map(path: &Path) -> Result<BTreeMap<String, String>, AdapterError> {
    let failed = |source| AdapterError::Read { path: path.to_owned(), source };
    let attributes = std::fs::metadata(path).map_err(failed)?;
    if !attributes.is_file() {
        return Err(AdapterError::NotAFile { path: path.to_owned() });
    }
    if attributes.len() > MAX_INDEX_BYTES {
        let (path, header_bytes) = (path.to_owned(), attributes.len());
        return Err(AdapterError::HeaderTooLarge { path, header_bytes, limit_bytes: MAX_INDEX_BYTES });
    }
    let mut json = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut json).map_err(failed)?;
    let index: Index =
        serde_json::from_slice(&json).map_err(|source| AdapterError::IndexJson { path: path.to_owned(), source })?;
    match index.weight_map.duplicate {
        Some(name) => Err(AdapterError::DuplicateName { path: path.to_owned(), name }),
        None => Ok(index.weight_map.entries),
    }
}

/// A name that can only mean a file in the index's own folder, on every system.
fn is_plain_file_name(name: &str, shard_suffix: &str) -> bool {
    name.ends_with(shard_suffix) && !name.contains(['/', '\\', ':', '\0'])
}

//! The one reader of PyTorch files (`.ckpt`, `.pt`, `.pth`, `.bin`), which runs nothing that is in them.
//!
//! Since PyTorch 1.6 such a file is a zip archive of uncompressed entries: `PREFIX/data.pkl` is a pickle that describes
//! the tensors, `PREFIX/data/KEY` holds the elements of one storage, `PREFIX/byteorder` says `little`
//! (`torch/serialization.py`). The pickle is read as data; see `pickle_machine`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::byte_source::ByteSource;
use crate::elements::{f32_decoder, i64_decoder};
use crate::error::AdapterError;
use crate::pickle::{Pickle, TensorRecord};
use crate::strided_view::StridedView;
use crate::tensor_file::{INTEGERS_THAT_FIT, wrong_dtype};
use crate::tensor_header::{ALWAYS_ACCEPTED_HEADER_BYTES, MAX_HEADER_BYTES};
use crate::torch_state::TorchState;
use crate::zip_directory::ZipDirectory;
use crate::{Dtype, TensorBytes, TensorInfo};

const PICKLE_NAME: &str = "data.pkl";

/// An open PyTorch file (zip format, PyTorch 1.6 and later) whose every tensor is known to lie inside it.
///
/// Read as data: nothing in it is executed, and a file that names any function beyond the few that rebuild tensors is
/// refused. The limits are those of [`crate::TensorFile`]: a pickle of at most 16 MB (and 1 MB or a quarter of the
/// file), 100,000 tensors of at most 8 dimensions, names of 1 to 512 bytes without control characters, no name twice.
/// Several names may share one tensor.
#[derive(Debug)]
pub struct TorchFile {
    source: ByteSource,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// One tensor: what it is, how it lies in its storage, and where the storage is in the file.
#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    view: StridedView,
    storage: Range<u64>,
}

impl Entry {
    /// Where the elements are in the file, with what lies between them.
    fn span(&self) -> Range<u64> {
        let element_bytes = self.info.dtype.size_bytes() as u64;
        let begin = self.storage.start + self.view.offset * element_bytes;
        begin..begin + self.view.span * element_bytes
    }
}

impl TorchFile {
    /// Opens a file, reads what describes its tensors and checks it. The tensors stay on disk.
    ///
    /// # Errors
    /// [`AdapterError::UnsafePickle`] if it names a function that no checkpoint needs,
    /// [`AdapterError::PickleOperation`], [`AdapterError::BadPickle`] or [`AdapterError::BadZip`] if it is not what
    /// PyTorch writes, [`AdapterError::NoTensors`], [`AdapterError::OutsideStorage`], [`AdapterError::BigEndian`], the
    /// limits, and [`AdapterError::Read`] or [`AdapterError::NotAFile`].
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        Self::from_source(ByteSource::open(path)?)
    }

    /// The same for a file whose bytes are in memory. `label` stands for the path in messages.
    ///
    /// # Errors
    /// As [`TorchFile::open`].
    pub fn from_bytes(label: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, AdapterError> {
        Self::from_source(ByteSource::from_bytes(label, bytes.into()))
    }

    pub(crate) fn from_source(source: ByteSource) -> Result<Self, AdapterError> {
        let directory = ZipDirectory::read(&source)?;
        let prefix = prefix(&source, &directory)?;
        check_byte_order(&source, &directory, &prefix)?;
        let pickle = read_pickle(&source, &directory, &prefix)?;
        let state = TorchState::of(source.path(), &pickle)?;

        let mut storages = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, record) in state.tensors {
            let key = pickle.text(record.storage.key).unwrap_or_default();
            let storage = if let Some(range) = storages.get(key) {
                Option::clone(range)
            } else {
                let range = directory.range(&source, &format!("{prefix}data/{key}"))?;
                storages.insert(key.to_owned(), range.clone());
                range
            };
            let entry = storage.and_then(|storage| check_tensor(record, storage));
            let outside = || AdapterError::OutsideStorage { path: source.path().to_owned(), tensor: name.clone() };
            let entry = entry.ok_or_else(outside)?;
            tensors.insert(name, entry);
        }
        Ok(Self { tensors, metadata: state.settings, source })
    }

    /// The path it was opened from, or the label of its bytes.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The names of all tensors, sorted: those inside `state_dict` where there is one, positions (`0`, `1`, ...) for a
    /// list of tensors.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor, `None` if the file has none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    /// Numbers and texts that lie beside the tensors at the top, such as `global_step` and `epoch`, as text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor of F64, F32, F16 or BF16 as f32, row-major. Memory: the result plus one chunk of 0.5 MB, or, for
    /// a tensor that is a transposed view, plus the part of its storage that it spans.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`], [`AdapterError::WrongDtype`] or [`AdapterError::Read`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, AdapterError> {
        let entry = self.entry(name)?;
        let decode = f32_decoder(entry.info.dtype)
            .ok_or_else(|| wrong_dtype(self.path(), name, &entry.info, "a floating type"))?;
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.for_each_chunk(entry, |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads a tensor of integers of up to 64 bits with sign or 32 bits without as i64, row-major.
    ///
    /// # Errors
    /// As [`TorchFile::read_f32`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, AdapterError> {
        let entry = self.entry(name)?;
        let decode = i64_decoder(entry.info.dtype)
            .ok_or_else(|| wrong_dtype(self.path(), name, &entry.info, INTEGERS_THAT_FIT))?;
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.for_each_chunk(entry, |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads the bytes of a tensor: little-endian, and row-major however it lies in the file.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`] or [`AdapterError::Read`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, AdapterError> {
        let entry = self.entry(name)?;
        let span = entry.span();
        let bytes = self.source.read(span.start, span.end - span.start)?;
        let is_ordered = entry.view.is_contiguous();
        Ok(if is_ordered { bytes } else { entry.view.gather(&bytes, entry.info.dtype.size_bytes()) })
    }

    /// The bytes of a tensor, to be read part by part. Those of a transposed view are read and put in order here.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`] or [`AdapterError::Read`].
    pub fn bytes(&self, name: &str) -> Result<TensorBytes<'_>, AdapterError> {
        let entry = self.entry(name)?;
        Ok(if entry.view.is_contiguous() {
            TensorBytes::stored(name, &entry.info, &self.source, entry.span())
        } else {
            TensorBytes::gathered(name, &entry.info, self.path(), self.read_bytes(name)?)
        })
    }

    fn for_each_chunk(&self, entry: &Entry, mut consume: impl FnMut(&[u8])) -> Result<(), AdapterError> {
        if entry.view.is_contiguous() {
            return self.source.for_each_chunk(entry.span(), consume);
        }
        let span = entry.span();
        let bytes = self.source.read(span.start, span.end - span.start)?;
        consume(&entry.view.gather(&bytes, entry.info.dtype.size_bytes()));
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry, AdapterError> {
        let missing = || AdapterError::MissingTensor { path: self.path().to_owned(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }
}

/// The folder that all entries lie in, with its slash: the archive's name when it was written.
fn prefix(source: &ByteSource, directory: &ZipDirectory) -> Result<String, AdapterError> {
    let folder_of = |name: &str| name.strip_suffix(PICKLE_NAME).filter(|folder| is_folder(folder)).map(str::to_owned);
    let mut prefixes = directory.names().filter_map(folder_of);
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) => Ok(prefix),
        (None, _) => Err(AdapterError::NotTorch { path: source.path().to_owned() }),
        _ => Err(AdapterError::BadZip { path: source.path().to_owned(), problem: "it holds data.pkl more than once" }),
    }
}

fn is_folder(text: &str) -> bool {
    text.strip_suffix('/').is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

fn check_byte_order(source: &ByteSource, directory: &ZipDirectory, prefix: &str) -> Result<(), AdapterError> {
    const LITTLE: &[u8] = b"little";
    match directory.range(source, &format!("{prefix}byteorder"))? {
        Some(range) => {
            let order = source.read(range.start, (range.end - range.start).min(LITTLE.len() as u64))?;
            if order == LITTLE { Ok(()) } else { Err(AdapterError::BigEndian { path: source.path().to_owned() }) }
        }
        None => Ok(()), // older than this entry, and then always little-endian
    }
}

fn read_pickle(source: &ByteSource, directory: &ZipDirectory, prefix: &str) -> Result<Pickle, AdapterError> {
    let range = directory.range(source, &format!("{prefix}{PICKLE_NAME}"))?.unwrap_or_default();
    let header_bytes = range.end - range.start;
    let limit_bytes = MAX_HEADER_BYTES.min(ALWAYS_ACCEPTED_HEADER_BYTES.max(source.num_bytes() / 4));
    if header_bytes > limit_bytes {
        return Err(AdapterError::HeaderTooLarge { path: source.path().to_owned(), header_bytes, limit_bytes });
    }
    Pickle::parse(source.path(), &source.read(range.start, header_bytes)?)
}

/// `None` if the tensor reaches out of its storage, or the storage out of its entry.
fn check_tensor(record: &TensorRecord, storage: Range<u64>) -> Option<Entry> {
    let dtype: Dtype = record.storage.dtype;
    let storage_bytes = record.storage.num_elements.checked_mul(dtype.size_bytes() as u64)?;
    (storage_bytes <= storage.end - storage.start).then_some(())?;
    let view = StridedView::of(record)?;
    Some(Entry { info: TensorInfo { dtype, shape: view.shape.clone() }, view, storage })
}

//! The one reader of safetensors files.
//!
//! A checkpoint of several gigabytes is read one tensor at a time, so that it never lies in memory twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use crate::byte_source::ByteSource;
use crate::elements::{f32_decoder, i64_decoder};
use crate::error::AdapterError;
use crate::tensor_header::{self, Entry, Header, LENGTH_BYTES};
use crate::{Dtype, TensorBytes};

/// Enough of a file to recognise what people take for a safetensors file.
const MAGIC_BYTES: u64 = 64;

/// Element type and shape of a tensor in a file. A scalar has the empty shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first; at most 8.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The product of the dimensions. It cannot overflow for a tensor that is in a file.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open safetensors file that has passed every check of the format.
///
/// Checked when it is opened: the header's size (at most 16 MB, and 1 MB or a quarter of the file), at most 100,000
/// tensors of at most 8 dimensions, names of 1 to 512 bytes without control characters, no name twice, known element
/// types, shape times element size = byte range, no hole, no overlap, nothing behind the last tensor. Values are not
/// checked: they may be infinite or NaN.
#[derive(Debug)]
pub struct TensorFile {
    source: ByteSource,
    data_start: u64,
    header: Header,
}

impl TensorFile {
    /// Opens a file, reads its header and checks it. The tensors stay on disk.
    ///
    /// # Errors
    /// [`AdapterError::Read`], [`AdapterError::NotAFile`], [`AdapterError::Foreign`] for pickles, zip archives and the
    /// like, [`AdapterError::Truncated`], or the rule of the format that is broken.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        Self::from_source(ByteSource::open(path)?)
    }

    /// The same for a file whose bytes are in memory, such as one built into the program. `label` stands for the path
    /// in messages.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn from_bytes(label: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, AdapterError> {
        Self::from_source(ByteSource::from_bytes(label, bytes.into()))
    }

    pub(crate) fn from_source(source: ByteSource) -> Result<Self, AdapterError> {
        let file_bytes = source.num_bytes();
        let header_bytes = tensor_header::header_bytes(source.path(), &source.start(MAGIC_BYTES)?, file_bytes)?;
        let json = source.read(LENGTH_BYTES, header_bytes)?;
        let data_start = LENGTH_BYTES + header_bytes;
        let header = tensor_header::parse(source.path(), &json, file_bytes.saturating_sub(data_start))?;
        Ok(Self { source, data_start, header })
    }

    /// The path it was opened from, or the label of its bytes.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor, `None` if the file has none of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name).map(|entry| &entry.info)
    }

    /// The metadata of the header; empty if there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Reads a tensor of F64, F32, F16 or BF16 as f32, row-major. Memory: the result plus one chunk of 0.5 MB.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`], [`AdapterError::WrongDtype`] or [`AdapterError::Read`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, AdapterError> {
        let entry = self.entry(name)?;
        let decode = f32_decoder(entry.info.dtype)
            .ok_or_else(|| wrong_dtype(self.path(), name, &entry.info, "a floating type"))?;
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.source.for_each_chunk(self.range(entry), |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads a tensor of integers of up to 64 bits with sign or 32 bits without as i64, row-major.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, AdapterError> {
        let entry = self.entry(name)?;
        let decode = i64_decoder(entry.info.dtype)
            .ok_or_else(|| wrong_dtype(self.path(), name, &entry.info, INTEGERS_THAT_FIT))?;
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.source.for_each_chunk(self.range(entry), |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads the bytes of a tensor as they are in the file: row-major, little-endian.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`] or [`AdapterError::Read`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, AdapterError> {
        let range = self.range(self.entry(name)?);
        self.source.read(range.start, range.end - range.start)
    }

    /// The bytes of a tensor, to be read part by part.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`].
    pub fn bytes(&self, name: &str) -> Result<TensorBytes<'_>, AdapterError> {
        let entry = self.entry(name)?;
        Ok(TensorBytes::stored(name, &entry.info, &self.source, self.range(entry)))
    }

    /// Fills `buffer` with the tensor's bytes from `offset_bytes` (within the tensor) on.
    pub(crate) fn read_part(&self, name: &str, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), AdapterError> {
        self.source.read_exact_at(self.range(self.entry(name)?).start + offset_bytes, buffer)
    }

    fn entry(&self, name: &str) -> Result<&Entry, AdapterError> {
        let missing = || AdapterError::MissingTensor { path: self.path().to_owned(), tensor: name.to_owned() };
        self.header.tensors.get(name).ok_or_else(missing)
    }

    /// Where a tensor's bytes are, counted from the start of the file.
    fn range(&self, entry: &Entry) -> Range<u64> {
        self.data_start + entry.begin..self.data_start + entry.end
    }
}

/// What [`TensorFile::read_i64`] and its kind can read, for messages.
pub(crate) const INTEGERS_THAT_FIT: &str = "an integer type of at most 63 bits";

pub(crate) fn wrong_dtype(path: &Path, tensor: &str, info: &TensorInfo, wanted: &'static str) -> AdapterError {
    AdapterError::WrongDtype { path: path.to_owned(), tensor: tensor.to_owned(), dtype: info.dtype, wanted }
}

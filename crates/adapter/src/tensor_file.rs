//! The one reader of safetensors files.
//!
//! Nothing is mapped into memory and nothing is read ahead: a checkpoint of several gigabytes is read one tensor at
//! a time, so that it never lies in memory twice.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Dtype;
use crate::error::AdapterError;
use crate::tensor_header::{self, Entry, Header, LENGTH_BYTES};

/// How many bytes are read and converted at a time: few enough to stay in the processor's cache. A multiple of 8.
const CHUNK_BYTES: usize = 1 << 19;
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
    path: PathBuf,
    source: Source,
    data_start: u64,
    header: Header,
}

#[derive(Debug)]
enum Source {
    File(Mutex<File>),
    Bytes(Cow<'static, [u8]>),
}

impl TensorFile {
    /// Opens a file, reads its header and checks it. The tensors stay on disk.
    ///
    /// # Errors
    /// [`AdapterError::Read`], [`AdapterError::NotAFile`], [`AdapterError::Foreign`] for pickles, zip archives and the
    /// like, [`AdapterError::Truncated`], or the rule of the format that is broken.
    pub fn open(path: &Path) -> Result<Self, AdapterError> {
        let failed = |source| AdapterError::Read { path: path.to_owned(), source };
        // Asked before opening: to open a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(AdapterError::NotAFile { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut start = Vec::new();
        (&file).take(MAGIC_BYTES).read_to_end(&mut start).map_err(failed)?;
        let header_bytes = tensor_header::header_bytes(path, &start, file_bytes)?;

        let mut json = vec![0; header_bytes as usize];
        file.seek(SeekFrom::Start(LENGTH_BYTES)).map_err(failed)?;
        file.read_exact(&mut json).map_err(failed)?;
        let data_start = LENGTH_BYTES + header_bytes;
        let header = tensor_header::parse(path, &json, file_bytes.saturating_sub(data_start))?;
        Ok(Self { path: path.to_owned(), source: Source::File(Mutex::new(file)), data_start, header })
    }

    /// The same for a file whose bytes are in memory, such as one built into the program. `label` stands for the path
    /// in messages.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn from_bytes(label: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, AdapterError> {
        let (path, bytes) = (PathBuf::from(label), bytes.into());
        let file_bytes = bytes.len() as u64;
        let start = &bytes[..bytes.len().min(MAGIC_BYTES as usize)];
        let data_start = LENGTH_BYTES + tensor_header::header_bytes(&path, start, file_bytes)?;
        let json = &bytes[LENGTH_BYTES as usize..data_start as usize];
        let header = tensor_header::parse(&path, json, file_bytes - data_start)?;
        Ok(Self { path, source: Source::Bytes(bytes), data_start, header })
    }

    /// The path it was opened from, or the label of its bytes.
    pub fn path(&self) -> &Path {
        &self.path
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
        let decode = match entry.info.dtype {
            Dtype::F32 => extend_from_f32,
            Dtype::F16 => extend_from_f16,
            Dtype::Bf16 => extend_from_bf16,
            Dtype::F64 => extend_from_f64,
            _ => return Err(self.wrong_dtype(name, entry, "a floating type")),
        };
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.for_each_chunk(entry, |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads a tensor of integers of up to 64 bits with sign or 32 bits without as i64, row-major.
    ///
    /// # Errors
    /// As [`TensorFile::read_f32`].
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, AdapterError> {
        let entry = self.entry(name)?;
        let decode: fn(&mut Vec<i64>, &[u8]) = match entry.info.dtype {
            Dtype::I64 => |out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b))),
            Dtype::I32 => {
                |out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))))
            }
            Dtype::U32 => {
                |out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))))
            }
            Dtype::I16 => {
                |out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(i16::from_le_bytes(*b))))
            }
            Dtype::U16 => {
                |out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))))
            }
            Dtype::I8 => |out, bytes| out.extend(bytes.iter().map(|b| i64::from(b.cast_signed()))),
            Dtype::U8 | Dtype::Bool => |out, bytes| out.extend(bytes.iter().map(|b| i64::from(*b))),
            _ => return Err(self.wrong_dtype(name, entry, "an integer type of at most 63 bits")),
        };
        let mut values = Vec::with_capacity(entry.info.num_elements());
        self.for_each_chunk(entry, |bytes| decode(&mut values, bytes))?;
        Ok(values)
    }

    /// Reads the bytes of a tensor as they are in the file: row-major, little-endian.
    ///
    /// # Errors
    /// [`AdapterError::MissingTensor`] or [`AdapterError::Read`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>, AdapterError> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; (entry.end - entry.begin) as usize];
        self.read_exact_at(self.data_start + entry.begin, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buffer` with the tensor's bytes from `offset_bytes` (within the tensor) on.
    pub(crate) fn read_part(&self, name: &str, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), AdapterError> {
        let entry = self.entry(name)?;
        self.read_exact_at(self.data_start + entry.begin + offset_bytes, buffer)
    }

    fn entry(&self, name: &str) -> Result<&Entry, AdapterError> {
        let missing = || AdapterError::MissingTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.header.tensors.get(name).ok_or_else(missing)
    }

    fn wrong_dtype(&self, name: &str, entry: &Entry, wanted: &'static str) -> AdapterError {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        AdapterError::WrongDtype { path, tensor, dtype: entry.info.dtype, wanted }
    }

    fn for_each_chunk(&self, entry: &Entry, mut consume: impl FnMut(&[u8])) -> Result<(), AdapterError> {
        let mut buffer = vec![0; (entry.end - entry.begin).min(CHUNK_BYTES as u64) as usize];
        let mut position = entry.begin;
        while position < entry.end {
            let chunk = &mut buffer[..(entry.end - position).min(CHUNK_BYTES as u64) as usize];
            self.read_exact_at(self.data_start + position, chunk)?;
            consume(chunk);
            position += chunk.len() as u64;
        }
        Ok(())
    }

    fn read_exact_at(&self, position: u64, buffer: &mut [u8]) -> Result<(), AdapterError> {
        let result = match &self.source {
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(position)).and_then(|_| file.read_exact(buffer))
            }
            Source::Bytes(bytes) => match bytes.get(position as usize..position as usize + buffer.len()) {
                Some(part) => {
                    buffer.copy_from_slice(part);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        };
        result.map_err(|source| AdapterError::Read { path: self.path.clone(), source })
    }
}

fn extend_from_f32(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
}

fn extend_from_f64(out: &mut Vec<f32>, bytes: &[u8]) {
    out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32));
}

fn extend_from_bf16(out: &mut Vec<f32>, bytes: &[u8]) {
    // A bf16 is the upper half of an f32.
    out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)));
}

fn extend_from_f16(out: &mut Vec<f32>, bytes: &[u8]) {
    // By whole slices, because only there `half` uses the processor's conversion eight values at a time.
    let halves: Vec<f16> = bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
    let start = out.len();
    out.resize(start + halves.len(), 0.0);
    halves.convert_to_f32_slice(&mut out[start..]);
}

//! The one writer of safetensors files: the same tensors always give the same bytes.
//!
//! The writer of the reference library is not used because it puts metadata in random order, panics on a name given
//! twice and leaves files that only their owner can read.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::atomic_file::atomic_write;
use crate::error::AdapterError;
use crate::tensor_layout::{compare_header, header, in_file_order};
use crate::{Dtype, TensorFile, TensorInfo};

/// How many values are converted and written at a time.
const CHUNK_ELEMENTS: usize = 1 << 16;
/// The smallest magnitude that rounds to infinity in f16 (halfway between its largest number, 65504, and 65536).
const F16_OVERFLOW: f32 = 65520.0;
/// The same in bf16.
const BF16_OVERFLOW: f32 = f32::from_bits(0x7F7F_8000);

/// A tensor to be written: borrowed values, and how they are stored.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    info: TensorInfo,
    values: Values<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
    Raw(&'a [u8]),
}

impl<'a> TensorView<'a> {
    /// Row-major f32 values, stored as F32. The empty shape is a scalar of one value.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        Self::f32_stored_as(Dtype::F32, shape, values)
    }

    /// Row-major f32 values, stored as F32, F16 or BF16 (rounded to nearest, ties to even).
    pub fn f32_stored_as(dtype: Dtype, shape: &[usize], values: &'a [f32]) -> Self {
        Self { info: TensorInfo { dtype, shape: shape.to_vec() }, values: Values::F32(values) }
    }

    /// Row-major i64 values, stored as I64.
    pub fn i64(shape: &[usize], values: &'a [i64]) -> Self {
        Self { info: TensorInfo { dtype: Dtype::I64, shape: shape.to_vec() }, values: Values::I64(values) }
    }

    /// Row-major little-endian bytes of elements of any type, stored as they are.
    pub fn raw(dtype: Dtype, shape: &[usize], bytes: &'a [u8]) -> Self {
        Self { info: TensorInfo { dtype, shape: shape.to_vec() }, values: Values::Raw(bytes) }
    }

    /// Element type in the file, and shape.
    pub fn info(&self) -> &TensorInfo {
        &self.info
    }

    /// Checks that the values can be stored as they are to be.
    pub(crate) fn check(&self, tensor: &str) -> Result<(), AdapterError> {
        let TensorInfo { dtype, shape } = &self.info;
        let (num_values, is_storable) = match self.values {
            Values::F32(values) => (values.len(), matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)),
            Values::I64(values) => (values.len(), *dtype == Dtype::I64),
            Values::Raw(bytes) => (bytes.len() / dtype.size_bytes(), bytes.len() % dtype.size_bytes() == 0),
        };
        if !is_storable {
            return Err(AdapterError::CannotStoreAs { tensor: tensor.to_owned(), dtype: *dtype });
        }
        let num_elements = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
        if num_elements != Some(num_values) {
            return Err(AdapterError::DataLength { tensor: tensor.to_owned(), shape: shape.clone(), num_values });
        }
        self.check_overflow(tensor)
    }

    fn check_overflow(&self, tensor: &str) -> Result<(), AdapterError> {
        let limit = match self.info.dtype {
            Dtype::F16 => F16_OVERFLOW,
            Dtype::Bf16 => BF16_OVERFLOW,
            _ => return Ok(()),
        };
        let Values::F32(values) = self.values else { return Ok(()) };
        match values.iter().find(|value| value.is_finite() && value.abs() >= limit) {
            Some(&value) => Err(AdapterError::Overflow { tensor: tensor.to_owned(), value, dtype: self.info.dtype }),
            None => Ok(()),
        }
    }

    /// Gives the stored bytes piece by piece, so that no second copy of a tensor exists.
    pub(crate) fn for_each_chunk<E>(&self, mut consume: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut bytes: Vec<u8> = Vec::with_capacity(CHUNK_ELEMENTS * size_of::<i64>());
        match self.values {
            Values::F32(values) => {
                for chunk in values.chunks(CHUNK_ELEMENTS) {
                    bytes.clear();
                    match self.info.dtype {
                        Dtype::F16 => extend_as_f16(&mut bytes, chunk),
                        Dtype::Bf16 => bytes.extend(chunk.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
                        _ => bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes())),
                    }
                    consume(&bytes)?;
                }
            }
            Values::I64(values) => {
                for chunk in values.chunks(CHUNK_ELEMENTS) {
                    bytes.clear();
                    bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
                    consume(&bytes)?;
                }
            }
            Values::Raw(raw) => {
                for chunk in raw.chunks(CHUNK_ELEMENTS) {
                    consume(chunk)?;
                }
            }
        }
        Ok(())
    }
}

fn extend_as_f16(bytes: &mut Vec<u8>, values: &[f32]) {
    // By whole slices, because only there `half` uses the processor's conversion eight values at a time.
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    bytes.extend(halves.iter().flat_map(|v| v.to_le_bytes()));
}

/// Writes a safetensors file atomically and reads it back: it is put in place only if the guarded reader opens it and
/// finds the same names, types, shapes, metadata and bytes. Empty metadata is left out.
///
/// # Errors
/// [`AdapterError::DataLength`], [`AdapterError::CannotStoreAs`] or [`AdapterError::BadTensorName`] for an impossible
/// tensor, [`AdapterError::Overflow`] if a finite value would become infinite in F16 or BF16, and the errors of
/// [`atomic_write`], [`AdapterError::ReadBack`] among them.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), AdapterError> {
    let serialised = Serialised::new(path, tensors, (!metadata.is_empty()).then_some(metadata))?;
    let verify = |temporary: &Path| {
        compare(path, temporary, tensors, metadata)
            .map_err(|error| AdapterError::ReadBack { path: path.to_owned(), source: Box::new(error) })
    };
    atomic_write(path, |out| serialised.write_to(out), verify)
}

fn compare(
    path: &Path,
    temporary: &Path,
    tensors: &BTreeMap<String, TensorView<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), AdapterError> {
    let differs = |tensor: &str| AdapterError::ContentDiffers { path: path.to_owned(), tensor: tensor.to_owned() };
    let file = TensorFile::open(temporary)?;
    compare_header(path, &file, tensors, TensorView::info, metadata)?;
    let mut found = Vec::new();
    for (name, view) in tensors {
        let mut offset_bytes = 0;
        view.for_each_chunk(|expected| {
            found.resize(expected.len(), 0);
            file.read_part(name, offset_bytes, &mut found)?;
            offset_bytes += expected.len() as u64;
            if found == expected { Ok(()) } else { Err(differs(name)) }
        })?;
    }
    Ok(())
}

/// A file ready to be streamed: what comes before the tensors, and the tensors in file order.
pub(crate) struct Serialised<'a> {
    header: Vec<u8>,
    tensors: Vec<(&'a str, &'a TensorView<'a>)>,
}

impl<'a> Serialised<'a> {
    /// Checks everything that can be checked before the first byte is written. `metadata` of `Some(empty)` gives an
    /// empty entry, as other programs write it. `path` only serves messages.
    pub(crate) fn new(
        path: &Path,
        tensors: &'a BTreeMap<String, TensorView<'a>>,
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, AdapterError> {
        let tensors = in_file_order(tensors, TensorView::info);
        tensors.iter().try_for_each(|(name, view)| view.check(name))?;
        let header = header(path, tensors.iter().map(|(name, view)| (*name, view.info())), metadata)?;
        Ok(Self { header, tensors })
    }

    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header)?;
        self.write_content_to(out)
    }

    /// Only the tensors' bytes, which no metadata can change.
    pub(crate) fn write_content_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.tensors.iter().try_for_each(|(_, view)| view.for_each_chunk(|bytes| out.write_all(bytes)))
    }
}

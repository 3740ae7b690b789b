//! One tensor of a file, read in any part and by several threads at once.

use std::ops::Range;
use std::path::Path;

use crate::byte_source::ByteSource;
use crate::elements::f32_decoder;
use crate::error::AdapterError;
use crate::tensor_file::wrong_dtype;
use crate::{Dtype, TensorInfo};

/// A tensor of a file, row-major. Its bytes stay on disk until a part of them is read; only those of a transposed matrix
/// are in memory.
#[derive(Debug)]
pub struct TensorBytes<'a> {
    path: &'a Path,
    name: String,
    info: TensorInfo,
    content: Content<'a>,
}

#[derive(Debug)]
enum Content<'a> {
    /// Where they are in the file.
    Stored(&'a ByteSource, Range<u64>),
    Gathered(Vec<u8>),
}

impl<'a> TensorBytes<'a> {
    pub(crate) fn stored(name: &str, info: &TensorInfo, source: &'a ByteSource, range: Range<u64>) -> Self {
        let content = Content::Stored(source, range);
        Self { path: source.path(), name: name.to_owned(), info: info.clone(), content }
    }

    pub(crate) fn gathered(name: &str, info: &TensorInfo, path: &'a Path, bytes: Vec<u8>) -> Self {
        Self { path, name: name.to_owned(), info: info.clone(), content: Content::Gathered(bytes) }
    }

    /// Element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// Part `index` of `count` equal parts along the first dimension; what is left over belongs to none.
    #[must_use]
    pub fn part(mut self, index: usize, count: usize) -> Self {
        let Some(rows) = self.info.shape.first_mut() else { return self };
        *rows /= count.max(1);
        let num_bytes = self.info.num_elements() * self.info.dtype.size_bytes();
        let begin = index * num_bytes;
        match &mut self.content {
            Content::Stored(_, range) => {
                let begin = range.start + begin as u64;
                *range = begin..begin + num_bytes as u64;
            }
            Content::Gathered(bytes) => *bytes = bytes[begin..begin + num_bytes].to_vec(),
        }
        self
    }

    /// A matrix with rows and columns exchanged, in memory. What is no matrix stays as it is.
    ///
    /// # Errors
    /// [`AdapterError::Read`].
    pub fn transposed(self) -> Result<Self, AdapterError> {
        let [rows, columns] = self.info.shape[..] else { return Ok(self) };
        let (mut bytes, size) = (Vec::new(), self.info.dtype.size_bytes());
        self.read(0, rows * columns, &mut bytes)?;
        let mut turned = Vec::with_capacity(bytes.len());
        for place in (0..columns).flat_map(|column| (0..rows).map(move |row| (row * columns + column) * size)) {
            turned.extend_from_slice(&bytes[place..place + size]);
        }
        let info = TensorInfo { dtype: self.info.dtype, shape: vec![columns, rows] };
        Ok(Self { info, content: Content::Gathered(turned), ..self })
    }

    /// Replaces the content of `bytes` by the `count` elements from `first` on, little-endian.
    ///
    /// # Errors
    /// [`AdapterError::Read`].
    ///
    /// # Panics
    /// If the tensor has fewer elements.
    pub fn read(&self, first: usize, count: usize, bytes: &mut Vec<u8>) -> Result<(), AdapterError> {
        assert!(first + count <= self.info.num_elements(), "a part that reaches out of its tensor");
        let size = self.info.dtype.size_bytes();
        let (begin, length) = (first * size, count * size);
        bytes.resize(length, 0);
        match &self.content {
            Content::Stored(source, range) => source.read_exact_at(range.start + begin as u64, bytes),
            Content::Gathered(all) => {
                bytes.copy_from_slice(&all[begin..begin + length]);
                Ok(())
            }
        }
    }

    /// The same for elements of F64, F32, F16 or BF16, as f32 into `values`; `bytes` is scratch.
    ///
    /// # Errors
    /// [`AdapterError::WrongDtype`] or [`AdapterError::Read`].
    ///
    /// # Panics
    /// As [`TensorBytes::read`].
    pub fn read_f32(
        &self,
        first: usize,
        count: usize,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f32>,
    ) -> Result<(), AdapterError> {
        let decode = f32_decoder(self.info.dtype)
            .ok_or_else(|| wrong_dtype(self.path, &self.name, &self.info, "a floating type"))?;
        self.read(first, count, bytes)?;
        values.clear();
        decode(values, bytes);
        Ok(())
    }
}

//! The writer for files that are larger than memory: one tensor at a time.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use crate::atomic_file::atomic_write;
use crate::error::AdapterError;
use crate::hashes::{CheckpointHashes, StreamedHash};
use crate::tensor_layout::{compare_header, header, in_file_order};
use crate::{TensorFile, TensorInfo, TensorView};

/// The values of one tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorValues {
    /// To be stored as F32, F16 or BF16 (rounded to nearest, ties to even).
    F32(Vec<f32>),
    /// To be stored as I64.
    I64(Vec<i64>),
    /// Little-endian bytes of elements of any type, stored as they are.
    Raw(Vec<u8>),
}

impl From<Vec<f32>> for TensorValues {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl TensorValues {
    fn view(&self, info: &TensorInfo) -> TensorView<'_> {
        match self {
            Self::F32(values) => TensorView::f32_stored_as(info.dtype, &info.shape, values),
            Self::I64(values) => TensorView::i64(&info.shape, values),
            Self::Raw(bytes) => TensorView::raw(info.dtype, &info.shape, bytes),
        }
    }
}

/// Writes the file that [`crate::write_tensors`] would write, to the byte, with one tensor in memory at a time.
///
/// `plan` gives the element type and shape of every tensor. `produce` is asked once for the values of each, in file
/// order, not in that of the plan. What was written is read back and compared by its SHA-256 before it is put in place.
///
/// # Errors
/// Whatever `produce` returns, and the errors of [`crate::write_tensors`]: [`AdapterError::DataLength`] and
/// [`AdapterError::CannotStoreAs`] where values do not go with the plan, [`AdapterError::Overflow`],
/// [`AdapterError::ReadBack`] and so on. The file that was at `path` before is then unchanged.
pub fn write_tensors_streamed(
    path: &Path,
    plan: &BTreeMap<String, TensorInfo>,
    metadata: &BTreeMap<String, String>,
    mut produce: impl FnMut(&str) -> Result<TensorValues, AdapterError>,
) -> Result<(), AdapterError> {
    let in_order = in_file_order(plan, |info| info);
    let header = header(path, in_order.iter().copied(), (!metadata.is_empty()).then_some(metadata))?;
    // What the closures below leave for each other and for the end.
    let (written, failure) = (Cell::new(None), Cell::new(None));

    let write = |out: &mut dyn Write| -> io::Result<()> {
        let mut hash = StreamedHash::default();
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            out.write_all(bytes)
        };
        put(&header)?;
        for (name, info) in in_order {
            let values = produce(name).and_then(|values| {
                let view = values.view(info);
                if view.info() != info {
                    return Err(AdapterError::CannotStoreAs { tensor: name.to_owned(), dtype: info.dtype });
                }
                view.check(name).map(|()| values)
            });
            match values {
                Ok(values) => values.view(info).for_each_chunk(&mut put)?,
                Err(error) => {
                    failure.set(Some(error));
                    return Err(io::Error::other("there is nothing to write"));
                }
            }
        }
        written.set(Some(hash.hex()));
        Ok(())
    };
    let verify = |temporary: &Path| {
        compare(path, temporary, plan, metadata, written.take().as_deref())
            .map_err(|error| AdapterError::ReadBack { path: path.to_owned(), source: Box::new(error) })
    };
    let result = atomic_write(path, write, verify);
    failure.take().map_or(result, Err)
}

fn compare(
    path: &Path,
    temporary: &Path,
    plan: &BTreeMap<String, TensorInfo>,
    metadata: &BTreeMap<String, String>,
    written: Option<&str>,
) -> Result<(), AdapterError> {
    compare_header(path, &TensorFile::open(temporary)?, plan, |info| info, metadata)?;
    if written == Some(CheckpointHashes::of_file(temporary)?.sha256.as_str()) {
        Ok(())
    } else {
        Err(AdapterError::ContentDiffers { path: path.to_owned(), tensor: String::from("(all)") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    #[test]
    fn a_file_that_reads_back_with_one_other_bit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let plan = [("w".to_owned(), TensorInfo { dtype: Dtype::F32, shape: vec![2] })].into();
        let none = BTreeMap::new();
        write_tensors_streamed(&path, &plan, &none, |_| Ok(vec![1.0, 2.0].into())).unwrap();
        let written = CheckpointHashes::of_file(&path).unwrap().sha256;
        compare(&path, &path, &plan, &none, Some(&written)).unwrap();

        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        crate::atomic_write_bytes(&path, &bytes).unwrap();
        let error = compare(&path, &path, &plan, &none, Some(&written)).unwrap_err();
        assert!(matches!(error, AdapterError::ContentDiffers { .. }));
    }
}

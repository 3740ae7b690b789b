//! A tensor of a file as one of ours: read, checked, converted and turned in one pass over its bytes, by all threads.
//! Nothing of it is ever in f32 but what a thread has just read, unless f32 is what is wanted.

use candle_core::{DType, Device, Tensor};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use loralei_adapter::{AdapterError, Dtype, TensorBytes};
use rayon::prelude::*;

use crate::number_types::WeightType;
use crate::ops::{FrozenMatrix, quantize_row};

/// How many bytes of the file a thread reads and converts at a time: few enough to stay in its cache.
const PART_BYTES: usize = 1 << 18;
/// The bits that are all ones in an infinity and in NaN.
const F32_EXPONENT: u32 = 0x7f80_0000;

/// A tensor of a file, and what becomes of it besides its number type.
pub(crate) struct StoredWeight<'a> {
    pub(crate) bytes: TensorBytes<'a>,
    /// Shape of the result: as many numbers as the file has.
    pub(crate) shape: Vec<usize>,
    /// kh kw of a kernel (out, in, kh, kw) that is turned to (out, kh, kw, in); 1 leaves the order as it is.
    pub(crate) pixels: usize,
    /// What is added in f32, in the order of the file.
    pub(crate) addend: Option<Vec<f32>>,
}

/// Why a tensor cannot be used.
pub(crate) enum Unusable {
    /// It cannot be read.
    File(AdapterError),
    /// It holds an infinity or NaN.
    NotFinite,
    /// It holds a number that would be infinite in this type.
    BeyondRange(DType),
    /// No memory.
    Tensor(candle_core::Error),
}

impl From<AdapterError> for Unusable {
    fn from(error: AdapterError) -> Self {
        Self::File(error)
    }
}

impl From<candle_core::Error> for Unusable {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

type Result<T> = std::result::Result<T, Unusable>;

/// A type of 16 bits.
struct HalfType {
    in_file: Dtype,
    here: DType,
    /// The bits that are all ones in an infinity and in NaN.
    exponent: u16,
    narrow: fn(&[f32], &mut [u16]),
}

const F16: HalfType = HalfType {
    in_file: Dtype::F16,
    here: DType::F16,
    exponent: 0x7c00,
    narrow: |wide, bits| bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide),
};
const BF16: HalfType = HalfType {
    in_file: Dtype::Bf16,
    here: DType::BF16,
    exponent: 0x7f80,
    narrow: |wide, bits| bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(wide),
};

/// A thread's memory for one part.
#[derive(Default)]
struct Scratch<T> {
    bytes: Vec<u8>,
    wide: Vec<f32>,
    unturned: Vec<T>,
}

impl StoredWeight<'_> {
    /// The tensor on the host. [`WeightType::Int8`] is for matrices, see [`Self::read_int8`]; other tensors are then as
    /// [`WeightType::Half`] has them.
    pub(crate) fn read(&self, wanted: WeightType) -> Result<Tensor> {
        match (wanted, self.bytes.dtype()) {
            (WeightType::Exactly(dtype), _) => self.read_as(dtype),
            (WeightType::Half | WeightType::Int8, Dtype::Bf16) => self.read_as(DType::BF16),
            (WeightType::Half | WeightType::Int8, _) => match self.read_as(DType::F16) {
                Err(Unusable::BeyondRange(_)) => self.read_as(DType::BF16),
                other => other,
            },
        }
    }

    /// A matrix (out, in) on the host in 8 bits.
    pub(crate) fn read_int8(&self) -> Result<FrozenMatrix> {
        let (count, num_out) = (self.shape.iter().product::<usize>(), self.shape.first().copied().unwrap_or(1));
        let num_in = (count / num_out.max(1)).max(1);
        let rows = self.rows_of_part(num_in);
        let (mut numbers, mut row_scales) = (vec![0; count], vec![0.0; num_out]);
        let parts = numbers.par_chunks_mut(rows * num_in).zip(row_scales.par_chunks_mut(rows)).enumerate();
        parts.try_for_each_init(Scratch::<u8>::default, |Scratch { bytes, wide, .. }, (i, (numbers, scales))| {
            self.read_wide(i * rows * num_in, numbers.len(), bytes, wide)?;
            let rows = wide.chunks_exact(num_in).zip(numbers.chunks_exact_mut(num_in)).zip(scales);
            rows.for_each(|((wide, numbers), scale)| *scale = quantize_row(wide, numbers));
            Ok::<_, Unusable>(())
        })?;
        Ok(FrozenMatrix::of_rows(numbers, row_scales)?)
    }

    fn read_as(&self, dtype: DType) -> Result<Tensor> {
        let (shape, host) = (self.shape.as_slice(), &Device::Cpu);
        Ok(match dtype {
            DType::F16 => Tensor::from_vec(self.halves(&F16)?.reinterpret_into::<f16>(), shape, host)?,
            DType::BF16 => Tensor::from_vec(self.halves(&BF16)?.reinterpret_into::<bf16>(), shape, host)?,
            other => Tensor::from_vec(self.floats()?, shape, host)?.to_dtype(other)?,
        })
    }

    fn floats(&self) -> Result<Vec<f32>> {
        self.read_parts(|first, bytes, wide, out: &mut [f32]| {
            self.read_wide(first, out.len(), bytes, wide)?;
            out.copy_from_slice(wide);
            Ok(())
        })
    }

    /// The bits of numbers of 16 bits. Those of the file itself are never widened.
    fn halves(&self, half: &HalfType) -> Result<Vec<u16>> {
        let is_kept = self.bytes.dtype() == half.in_file && self.addend.is_none();
        self.read_parts(|first, bytes, wide, out: &mut [u16]| {
            if is_kept {
                self.bytes.read(first, out.len(), bytes)?;
                out.iter_mut().zip(bytes.as_chunks().0).for_each(|(bits, pair)| *bits = u16::from_le_bytes(*pair));
            } else {
                self.read_wide(first, out.len(), bytes, wide)?;
                (half.narrow)(wide, out);
            }
            // Folded without a way out, which vectorises.
            let infinite = out.iter().fold(0, |any, bits| any | u16::from(bits & half.exponent == half.exponent));
            match (infinite != 0, is_kept) {
                (false, _) => Ok(()),
                (true, true) => Err(Unusable::NotFinite),
                (true, false) => Err(Unusable::BeyondRange(half.here)),
            }
        })
    }

    /// `count` finite numbers from `first` on, with the addend.
    fn read_wide(&self, first: usize, count: usize, bytes: &mut Vec<u8>, wide: &mut Vec<f32>) -> Result<()> {
        self.bytes.read_f32(first, count, bytes, wide)?;
        if let Some(addend) = &self.addend {
            wide.iter_mut().zip(&addend[first..first + count]).for_each(|(x, more)| *x += more);
        }
        let infinite = wide.iter().fold(0, |any, x| any | u32::from(x.to_bits() & F32_EXPONENT == F32_EXPONENT));
        if infinite != 0 { Err(Unusable::NotFinite) } else { Ok(()) }
    }

    /// How many rows of `row` numbers a thread takes at a time.
    fn rows_of_part(&self, row: usize) -> usize {
        (PART_BYTES / self.bytes.dtype().size_bytes() / row).max(1)
    }

    /// All numbers. `read` fills a part of whole rows, of which it is told the first number, in the order of the file.
    fn read_parts<T: Copy + Default + Send + Sync>(
        &self,
        read: impl Fn(usize, &mut Vec<u8>, &mut Vec<f32>, &mut [T]) -> Result<()> + Sync,
    ) -> Result<Vec<T>> {
        let count = self.shape.iter().product::<usize>();
        let row = (count / self.shape.first().copied().unwrap_or(1).max(1)).max(1);
        let part = self.rows_of_part(row) * row;
        // Zeroed memory comes from the system untouched: each thread meets its own pages first.
        let mut values = vec![T::default(); count];
        let parts = values.par_chunks_mut(part).enumerate();
        parts.try_for_each_init(Scratch::default, |Scratch { bytes, wide, unturned }, (i, out)| {
            if self.pixels == 1 {
                return read(i * part, bytes, wide, out);
            }
            unturned.resize(out.len(), T::default());
            read(i * part, bytes, wide, unturned)?;
            let rows = unturned.chunks_exact(row).zip(out.chunks_exact_mut(row));
            rows.for_each(|(from, to)| turn(from, to, self.pixels));
            Ok(())
        })?;
        Ok(values)
    }
}

/// (in, pixels) -> (pixels, in)
fn turn<T: Copy>(from: &[T], to: &mut [T], pixels: usize) {
    for (pixel, to) in to.chunks_exact_mut(from.len() / pixels).enumerate() {
        to.iter_mut().zip(from.iter().skip(pixel).step_by(pixels)).for_each(|(to, from)| *to = *from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_adapter::{TensorFile, TensorView, write_tensors};
    use std::collections::BTreeMap;

    /// Numbers without a pattern.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 10_007) as f32 / 5003.0 - 1.0).collect()
    }

    /// A file of one tensor `w`.
    fn file(dtype: Dtype, shape: &[usize], values: &[f32]) -> TensorFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let view = TensorView::f32_stored_as(dtype, shape, values);
        write_tensors(&path, &[("w".to_owned(), view)].into(), &BTreeMap::new()).unwrap();
        TensorFile::from_bytes("w", std::fs::read(path).unwrap()).unwrap()
    }

    fn plain(file: &TensorFile) -> StoredWeight<'_> {
        let bytes = file.bytes("w").unwrap();
        StoredWeight { shape: bytes.shape().to_vec(), bytes, pixels: 1, addend: None }
    }

    fn read(stored: &StoredWeight, wanted: WeightType) -> (DType, Vec<f32>) {
        let tensor = stored.read(wanted).map_err(|_| "unusable").unwrap();
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (tensor.dtype(), values)
    }

    #[test]
    fn numbers_of_16_bits_are_kept_and_wider_ones_become_f16() {
        let values = numbers(300 * 1000);
        let of = |dtype| file(dtype, &[300, 1000], &values);
        let as_f16: Vec<f32> = values.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        let as_bf16: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert!(as_f16 != values && as_bf16 != as_f16);
        assert_eq!(read(&plain(&of(Dtype::F16)), WeightType::Half), (DType::F16, as_f16.clone()));
        assert_eq!(read(&plain(&of(Dtype::Bf16)), WeightType::Half), (DType::BF16, as_bf16.clone()));
        assert_eq!(read(&plain(&of(Dtype::F32)), WeightType::Half), (DType::F16, as_f16.clone()));
        assert_eq!(read(&plain(&of(Dtype::F16)), WeightType::Exactly(DType::F32)), (DType::F32, as_f16));
        assert_eq!(read(&plain(&of(Dtype::F32)), WeightType::Exactly(DType::BF16)), (DType::BF16, as_bf16));
        assert_eq!(read(&plain(&of(Dtype::F32)), WeightType::Exactly(DType::F64)), (DType::F64, values));
    }

    #[test]
    fn a_number_beyond_f16_makes_its_tensor_bf16_or_is_refused() {
        let mut values = numbers(200_000);
        values[150_001] = -65_519.0; // rounds to the largest f16
        let fits = file(Dtype::F32, &[200_000], &values);
        assert_eq!(read(&plain(&fits), WeightType::Half).0, DType::F16);
        values[150_001] = -65_520.0;
        let (wide, bf16) = (file(Dtype::F32, &[200_000], &values), file(Dtype::Bf16, &[200_000], &values));
        let (dtype, kept) = read(&plain(&wide), WeightType::Half);
        assert_eq!((dtype, kept[150_001]), (DType::BF16, -65_536.0));
        for file in [&wide, &bf16] {
            let refused = plain(file).read(WeightType::Exactly(DType::F16));
            assert!(matches!(refused, Err(Unusable::BeyondRange(DType::F16))));
        }
    }

    #[test]
    fn infinities_and_nan_are_found_wherever_they_are() {
        for (place, poison) in [(0, f32::NAN), (131_072, f32::INFINITY), (299_999, f32::NEG_INFINITY)] {
            let mut values = numbers(300_000);
            values[place] = poison;
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let file = file(dtype, &[3, 100_000], &values);
                for wanted in [WeightType::Half, WeightType::Exactly(DType::F32), WeightType::Exactly(DType::BF16)] {
                    let refused = plain(&file).read(wanted);
                    assert!(matches!(refused, Err(Unusable::NotFinite)), "{poison} at {place}: {dtype} {wanted:?}");
                }
            }
        }
    }

    #[test]
    fn a_kernel_is_turned_and_what_is_added_is_added_before_rounding() {
        let (num_out, num_in) = (700, 33); // more than one part
        let count = num_out * num_in * 6;
        let (values, addend) = (numbers(count), numbers(count).iter().map(|x| x * 0.003).collect::<Vec<_>>());
        for (dtype, kept) in [(Dtype::F32, DType::F16), (Dtype::F16, DType::F16), (Dtype::Bf16, DType::BF16)] {
            let file = file(dtype, &[num_out, num_in, 2, 3], &values);
            for addend in [None, Some(addend.clone())] {
                let stored = StoredWeight {
                    bytes: file.bytes("w").unwrap(),
                    shape: vec![num_out, 2, 3, num_in],
                    pixels: 6,
                    addend: addend.clone(),
                };
                let exact = Tensor::from_vec(file.read_f32("w").unwrap(), (num_out, num_in, 2, 3), &Device::Cpu);
                let more = addend.unwrap_or_else(|| vec![0.0; count]);
                let more = Tensor::from_vec(more, (num_out, num_in, 2, 3), &Device::Cpu).unwrap();
                let expected = (exact.unwrap() + more).unwrap().permute((0, 2, 3, 1)).unwrap().to_dtype(kept).unwrap();
                let expected = expected.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                assert_eq!(read(&stored, WeightType::Half), (kept, expected), "{dtype}");
            }
        }
    }

    #[test]
    fn a_matrix_in_8_bits_is_that_of_its_numbers_with_what_is_added() {
        let (num_out, num_in) = (700, 1033); // more than one part
        let (values, mut addend) = (numbers(num_out * num_in), vec![0.0; num_out * num_in]);
        addend[..3 * num_in].iter_mut().zip(&values).for_each(|(more, x)| *more = x * 0.5);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let file = file(dtype, &[num_out, num_in], &values);
            for addend in [None, Some(addend.clone())] {
                let exact = Tensor::from_vec(file.read_f32("w").unwrap(), (num_out, num_in), &Device::Cpu).unwrap();
                let more = addend.clone().unwrap_or_else(|| vec![0.0; num_out * num_in]);
                let exact = (exact + Tensor::from_vec(more, (num_out, num_in), &Device::Cpu).unwrap()).unwrap();
                let found = StoredWeight { addend, ..plain(&file) }.read_int8().map_err(|_| "unusable").unwrap();
                let dense = |matrix: FrozenMatrix| matrix.to_dense(DType::F32).unwrap().to_vec2::<f32>().unwrap();
                assert!(dense(found) == dense(FrozenMatrix::quantized(&exact).unwrap()), "{dtype}");
            }
            let mut values = values.clone();
            values[600 * num_in] = f32::NAN;
            let refused = plain(&self::file(dtype, &[num_out, num_in], &values)).read_int8();
            assert!(matches!(refused, Err(Unusable::NotFinite)), "{dtype}");
        }
    }
}

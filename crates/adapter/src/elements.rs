//! Elements of tensor files (little-endian bytes) as numbers.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::Dtype;

/// Appends the numbers of some bytes: whole elements of one type.
pub(crate) type Decoder<T> = fn(&mut Vec<T>, &[u8]);

/// How F64, F32, F16 and BF16 become f32; `None` for other types.
pub(crate) fn f32_decoder(dtype: Dtype) -> Option<Decoder<f32>> {
    match dtype {
        Dtype::F32 => Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))),
        Dtype::F64 => Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32))),
        Dtype::F16 => Some(extend_from_f16),
        Dtype::Bf16 => Some(extend_from_bf16),
        _ => None,
    }
}

/// How integers of up to 64 bits with sign or 32 bits without become i64; `None` for other types.
pub(crate) fn i64_decoder(dtype: Dtype) -> Option<Decoder<i64>> {
    match dtype {
        Dtype::I64 => Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)))),
        Dtype::I32 => {
            Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b)))))
        }
        Dtype::U32 => {
            Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b)))))
        }
        Dtype::I16 => {
            Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(i16::from_le_bytes(*b)))))
        }
        Dtype::U16 => {
            Some(|out, bytes| out.extend(bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b)))))
        }
        Dtype::I8 => Some(|out, bytes| out.extend(bytes.iter().map(|b| i64::from(b.cast_signed())))),
        Dtype::U8 | Dtype::Bool => Some(|out, bytes| out.extend(bytes.iter().map(|b| i64::from(*b)))),
        _ => None,
    }
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

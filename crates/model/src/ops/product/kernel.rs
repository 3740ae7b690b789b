//! The innermost loops: a tile of the result, held in registers while k passes by.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::instructions::Instructions;
use crate::ops::real::Real;
use half::{bf16, f16};

/// Columns of the widest panel.
pub(super) const WIDEST: usize = 32;
/// Rows of the highest tile.
pub(crate) const HIGHEST: usize = 12;
/// What the numbers of a tile start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<T> {
    Zero,
    /// A number for each column, the same for all rows.
    Bias(*const T),
    /// What `out` holds.
    Out,
}

/// out (rows, cols) = start + rows (rows, k) panel (k, cols).
pub(crate) struct Tile<'a, T> {
    /// As many rows as `out` has, at most [`Kernel::most_rows`], of `k` numbers.
    pub(crate) rows: *const T,
    /// Numbers from one row to the next.
    pub(crate) row_stride: usize,
    pub(crate) k: usize,
    /// `k` times `panel_width` numbers.
    pub(crate) panel: *const T,
    pub(crate) panel_width: usize,
    /// Columns that are stored, at most the panel's width.
    pub(crate) cols: usize,
    pub(crate) out: &'a [*mut T],
    pub(crate) start: Start<T>,
}

/// A number type with kernels.
#[allow(unsafe_code)]
pub(crate) trait Kernel: Real {
    /// Columns of a panel; one of half as many is used for fewer columns.
    fn panel_width(instructions: Instructions) -> usize;
    /// Rows of a tile, at most.
    fn most_rows(instructions: Instructions) -> usize;

    /// Computes a tile.
    ///
    /// # Safety
    /// The processor has `instructions`; all pointers are valid for what [`Tile`] says of them.
    unsafe fn tile(instructions: Instructions, tile: &Tile<Self>);

    /// Transposes: `out` (k, width), with k at least 1, from `numbers`, of which `n` rows of `k` lie `stride` apart.
    /// Columns of `out` from `n` on are left alone.
    fn turn(instructions: Instructions, numbers: &[Self], stride: usize, k: usize, out: &mut [Self], n: usize);

    fn widen_f16(instructions: Instructions, numbers: &[f16], out: &mut [Self]);
    fn widen_bf16(instructions: Instructions, numbers: &[bf16], out: &mut [Self]);
}

#[allow(unsafe_code)]
impl Kernel for f32 {
    fn panel_width(instructions: Instructions) -> usize {
        if instructions == Instructions::Avx512 { 32 } else { 16 }
    }

    fn most_rows(instructions: Instructions) -> usize {
        match instructions {
            Instructions::Avx512 => 12,
            Instructions::Avx2 => 6,
            Instructions::Portable => portable::ROWS,
        }
    }

    unsafe fn tile(instructions: Instructions, tile: &Tile<f32>) {
        // SAFETY: as this function's.
        unsafe {
            match instructions {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => avx512::tile(tile),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => avx2::tile(tile),
                _ => portable::tile(tile),
            }
        }
    }

    fn turn(instructions: Instructions, numbers: &[f32], stride: usize, k: usize, out: &mut [f32], n: usize) {
        #[cfg(target_arch = "x86_64")]
        if instructions != Instructions::Portable {
            // SAFETY: the processor has AVX2, which AVX-512 includes.
            return unsafe { avx2::turn(numbers, stride, k, out, n) };
        }
        portable::turn(numbers, stride, k, out, n);
    }

    fn widen_f16(instructions: Instructions, numbers: &[f16], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if instructions != Instructions::Portable {
            // SAFETY: the processor has F16C, which both of the others ask for.
            return unsafe { avx2::widen_f16(numbers, out) };
        }
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_f32());
    }

    fn widen_bf16(instructions: Instructions, numbers: &[bf16], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if instructions != Instructions::Portable {
            // SAFETY: the processor has AVX2, which AVX-512 includes.
            return unsafe { avx2::widen_bf16(numbers, out) };
        }
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_f32());
    }
}

#[allow(unsafe_code)]
impl Kernel for f64 {
    fn panel_width(_: Instructions) -> usize {
        16
    }

    fn most_rows(_: Instructions) -> usize {
        portable::ROWS
    }

    unsafe fn tile(_: Instructions, tile: &Tile<f64>) {
        // SAFETY: as this function's.
        unsafe { portable::tile(tile) }
    }

    fn turn(_: Instructions, numbers: &[f64], stride: usize, k: usize, out: &mut [f64], n: usize) {
        portable::turn(numbers, stride, k, out, n);
    }

    fn widen_f16(_: Instructions, numbers: &[f16], out: &mut [f64]) {
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_f64());
    }

    fn widen_bf16(_: Instructions, numbers: &[bf16], out: &mut [f64]) {
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_f64());
    }
}

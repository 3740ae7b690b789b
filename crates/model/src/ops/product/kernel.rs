//! The innermost loops: a tile of the result, held in registers while k passes by.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Scratch;
use super::instructions::Instructions;
use crate::ops::frozen_matrix::OFFSET;
use crate::ops::real::Real;
use half::{bf16, f16};
use std::cell::RefCell;

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
    /// Whether terms may round their factors to bf16.
    const ROUNDS: bool;

    /// Runs `f` with what this thread works in: it is kept, because getting memory anew takes longer than a small product.
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
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

    /// Computes a tile whose factors are pairs of bf16 in the place of one number each: rows and panel hold numbers 2k and
    /// 2k + 1.
    ///
    /// # Safety
    /// As [`Self::tile`]; and [`Instructions::multiply_bf16`].
    unsafe fn bf16_tile(instructions: Instructions, tile: &Tile<Self>);

    /// `numbers` rounded to bf16, in pairs: half as many.
    fn pairs(instructions: Instructions, numbers: &[Self], out: &mut [Self]);

    /// `first` and `second` rounded to bf16, number by number in a pair.
    fn interleave(instructions: Instructions, first: &[Self], second: &[Self], out: &mut [Self]);

    /// As [`Self::interleave`], of numbers that are bf16 already; zeros where `out` is longer.
    fn interleave_bf16(instructions: Instructions, first: &[bf16], second: &[bf16], out: &mut [Self]);

    /// As [`Self::pairs`], of numbers that are bf16 already.
    fn pairs_of_bf16(numbers: &[bf16], out: &mut [Self]);

    fn widen_f16(instructions: Instructions, numbers: &[f16], out: &mut [Self]);
    fn widen_bf16(instructions: Instructions, numbers: &[bf16], out: &mut [Self]);

    /// (numbers - 128) times `scale`, rounded once: the same on every processor.
    fn widen_int8(instructions: Instructions, numbers: &[u8], scale: f32, out: &mut [Self]);
}

/// What an 8-bit number stands for.
fn scaled(number: u8, scale: f32) -> f32 {
    (f32::from(number) - f32::from(OFFSET)) * scale
}

/// Two bf16 in the place of an f32.
fn pair_bits(first: bf16, second: bf16) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

#[allow(unsafe_code)]
impl Kernel for f32 {
    const ROUNDS: bool = true;

    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        thread_local! {
            static SCRATCH: RefCell<Scratch<f32>> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(f)
    }

    fn panel_width(instructions: Instructions) -> usize {
        if matches!(instructions, Instructions::Avx512Bf16 | Instructions::Avx512) { 32 } else { 16 }
    }

    fn most_rows(instructions: Instructions) -> usize {
        match instructions {
            Instructions::Avx512Bf16 | Instructions::Avx512 => 12,
            Instructions::Avx2 => 6,
            Instructions::Portable => portable::ROWS,
        }
    }

    unsafe fn tile(instructions: Instructions, tile: &Tile<f32>) {
        // SAFETY: as this function's.
        unsafe {
            match instructions {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Bf16 | Instructions::Avx512 => avx512::tile(tile),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => avx2::tile(tile),
                _ => portable::tile(tile),
            }
        }
    }

    unsafe fn bf16_tile(instructions: Instructions, tile: &Tile<f32>) {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as this function's.
            Instructions::Avx512Bf16 => unsafe { avx512::bf16_tile(tile) },
            other => unreachable!("products of bf16 with {other:?}"),
        }
    }

    fn pairs(instructions: Instructions, numbers: &[f32], out: &mut [f32]) {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has them.
            Instructions::Avx512Bf16 => unsafe { avx512::pairs(numbers, out) },
            other => unreachable!("pairs of bf16 with {other:?}"),
        }
    }

    fn interleave(instructions: Instructions, first: &[f32], second: &[f32], out: &mut [f32]) {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has them.
            Instructions::Avx512Bf16 => unsafe { avx512::interleave(first, second, out) },
            other => unreachable!("pairs of bf16 with {other:?}"),
        }
    }

    fn interleave_bf16(instructions: Instructions, first: &[bf16], second: &[bf16], out: &mut [f32]) {
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has them.
            Instructions::Avx512Bf16 => unsafe { avx512::interleave_bf16(first, second, out) },
            other => unreachable!("pairs of bf16 with {other:?}"),
        }
    }

    fn pairs_of_bf16(numbers: &[bf16], out: &mut [f32]) {
        let pairs = numbers.chunks_exact(2).map(|pair| pair_bits(pair[0], pair[1]));
        out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = pair);
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
        if matches!(instructions, Instructions::Avx512Bf16 | Instructions::Avx512) {
            // SAFETY: the processor has AVX-512 F.
            return unsafe { avx512::widen_f16(numbers, out) };
        }
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

    fn widen_int8(instructions: Instructions, numbers: &[u8], scale: f32, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if matches!(instructions, Instructions::Avx512Bf16 | Instructions::Avx512) {
            // SAFETY: the processor has AVX-512 F.
            return unsafe { avx512::widen_int8(numbers, scale, out) };
        }
        #[cfg(target_arch = "x86_64")]
        if instructions != Instructions::Portable {
            // SAFETY: the processor has AVX2 and FMA.
            return unsafe { avx2::widen_int8(numbers, scale, out) };
        }
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = scaled(*x, scale));
    }
}

#[allow(unsafe_code)]
impl Kernel for f64 {
    const ROUNDS: bool = false;

    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        thread_local! {
            static SCRATCH: RefCell<Scratch<f64>> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(f)
    }

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

    unsafe fn bf16_tile(_: Instructions, _: &Tile<f64>) {
        unreachable!("f64 is not rounded to bf16");
    }

    fn pairs(_: Instructions, _: &[f64], _: &mut [f64]) {
        unreachable!("f64 is not rounded to bf16");
    }

    fn interleave(_: Instructions, _: &[f64], _: &[f64], _: &mut [f64]) {
        unreachable!("f64 is not rounded to bf16");
    }

    fn interleave_bf16(_: Instructions, _: &[bf16], _: &[bf16], _: &mut [f64]) {
        unreachable!("f64 is not rounded to bf16");
    }

    fn pairs_of_bf16(_: &[bf16], _: &mut [f64]) {
        unreachable!("f64 is not rounded to bf16");
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

    fn widen_int8(_: Instructions, numbers: &[u8], scale: f32, out: &mut [f64]) {
        let whole = |x: u8| f64::from(x) - f64::from(OFFSET);
        out.iter_mut().zip(numbers).for_each(|(out, x)| *out = whole(*x) * f64::from(scale));
    }
}

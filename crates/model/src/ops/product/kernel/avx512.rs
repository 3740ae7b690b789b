//! Tiles of f32 in 512-bit registers: up to twelve rows of two, which leaves room for the panel and one row's number. The
//! same with pairs of bf16 in the place of numbers.

use super::{OFFSET, Start, Tile};
use half::{bf16, f16};
use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512bh, __m512i, __mmask16, _mm256_loadu_si256, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtph_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_or_si512, _mm512_permutexvar_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512,
};
use std::mem::transmute;

const LANES: usize = 16;

macro_rules! of_rows {
    ($sums:ident, $tile:ident: $($rows:literal)*) => {
        // SAFETY: as the caller's.
        unsafe {
            match ($tile.out.len(), $tile.panel_width == LANES) {
                $(($rows, true) => $sums::<$rows, 1>($tile), ($rows, false) => $sums::<$rows, 2>($tile),)*
                (rows, _) => unreachable!("a tile of {rows} rows"),
            }
        }
    };
}

/// # Safety
/// As [`super::Kernel::tile`], on a processor with AVX-512 F; the panel is 16 or 32 wide.
#[allow(unsafe_code)]
pub(super) unsafe fn tile(tile: &Tile<f32>) {
    of_rows!(sums, tile: 1 2 3 4 5 6 7 8 9 10 11 12);
}

/// # Safety
/// As [`super::Kernel::bf16_tile`], on a processor with AVX-512 BF16; the panel is 16 or 32 wide.
#[allow(unsafe_code)]
pub(super) unsafe fn bf16_tile(tile: &Tile<f32>) {
    of_rows!(bf16_sums, tile: 1 2 3 4 5 6 7 8 9 10 11 12);
}

/// The two differ in one instruction.
macro_rules! sums {
    ($name:ident, $features:literal, $multiply_add:expr) => {
        #[target_feature(enable = $features)]
        #[allow(unsafe_code)]
        #[allow(clippy::needless_range_loop)] // constant bounds on both axes keep the sums in registers
        unsafe fn $name<const ROWS: usize, const VECTORS: usize>(tile: &Tile<f32>) {
            let mask: [__mmask16; VECTORS] = std::array::from_fn(|v| {
                let lanes = tile.cols.saturating_sub(v * LANES).min(LANES);
                ((1u32 << lanes) - 1) as __mmask16
            });
            let mut sums: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
            // SAFETY: rows have `k` numbers, the panel `k` rows of its width, out and bias what the mask lets
            // through.
            unsafe {
                let out: [*mut f32; ROWS] = std::array::from_fn(|row| tile.out[row]);
                match tile.start {
                    Start::Zero => {}
                    Start::Bias(bias) => {
                        for row in 0..ROWS {
                            for v in 0..VECTORS {
                                sums[row][v] = _mm512_maskz_loadu_ps(mask[v], bias.add(v * LANES));
                            }
                        }
                    }
                    Start::Out => {
                        for row in 0..ROWS {
                            for v in 0..VECTORS {
                                sums[row][v] = _mm512_maskz_loadu_ps(mask[v], out[row].add(v * LANES));
                            }
                        }
                    }
                }
                let rows: [*const f32; ROWS] = std::array::from_fn(|row| tile.rows.add(row * tile.row_stride));
                let mut panel = tile.panel;
                for k in 0..tile.k {
                    let columns: [__m512; VECTORS] = std::array::from_fn(|v| _mm512_loadu_ps(panel.add(v * LANES)));
                    for row in 0..ROWS {
                        let x = _mm512_set1_ps(*rows[row].add(k));
                        for v in 0..VECTORS {
                            sums[row][v] = $multiply_add(x, columns[v], sums[row][v]);
                        }
                    }
                    panel = panel.add(VECTORS * LANES);
                }
                for row in 0..ROWS {
                    for v in 0..VECTORS {
                        _mm512_mask_storeu_ps(out[row].add(v * LANES), mask[v], sums[row][v]);
                    }
                }
            }
        }
    };
}

sums!(sums, "avx512f", _mm512_fmadd_ps);
sums!(bf16_sums, "avx512f,avx512bf16", dot_of_pairs);

/// sum + first product + second product of pairs of bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
#[allow(unsafe_code)]
fn dot_of_pairs(x: __m512, columns: __m512, sum: __m512) -> __m512 {
    // SAFETY: both are 512 bits without meaning of their own.
    let (x, columns) = unsafe { (transmute::<__m512, __m512bh>(x), transmute::<__m512, __m512bh>(columns)) };
    _mm512_dpbf16_ps(sum, x, columns)
}

/// As [`super::Kernel::pairs`].
///
/// # Safety
/// On a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn pairs(numbers: &[f32], out: &mut [f32]) {
    for (numbers, out) in numbers.chunks(2 * LANES).zip(out.chunks_mut(LANES)) {
        let mask = |first: usize| ((1u32 << numbers.len().saturating_sub(first).min(LANES)) - 1) as __mmask16;
        // SAFETY: the masks let through what the slices have.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(0), numbers.as_ptr());
            let high = _mm512_maskz_loadu_ps(mask(LANES), numbers.as_ptr().wrapping_add(LANES));
            let pairs = transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_ps(out.as_mut_ptr(), ((1u32 << out.len()) - 1) as __mmask16, pairs);
        }
    }
}

/// As [`super::Kernel::interleave`].
///
/// # Safety
/// On a processor with AVX-512 BF16 and BW.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code)]
pub(super) unsafe fn interleave(first: &[f32], second: &[f32], out: &mut [f32]) {
    // Word 2n from the first half, 2n + 1 from the second.
    const ORDER: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut n = 0;
        while n < LANES {
            order[2 * n] = n as u16;
            order[2 * n + 1] = (LANES + n) as u16;
            n += 1;
        }
        order
    };
    for ((first, second), out) in first.chunks(LANES).zip(second.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        let mask = ((1u32 << first.len()) - 1) as __mmask16;
        assert!(first.len() == second.len() && first.len() == out.len(), "rows of unlike length");
        // SAFETY: the mask lets through what the slices have.
        unsafe {
            let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
            let (first, second) =
                (_mm512_maskz_loadu_ps(mask, first.as_ptr()), _mm512_maskz_loadu_ps(mask, second.as_ptr()));
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let pairs = transmute::<__m512i, __m512>(_mm512_permutexvar_epi16(order, halves));
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, pairs);
        }
    }
}

/// As [`super::Kernel::interleave_bf16`].
///
/// # Safety
/// On a processor with AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code)]
pub(super) unsafe fn interleave_bf16(first: &[bf16], second: &[bf16], out: &mut [f32]) {
    out.fill(0.0);
    for ((first, second), out) in first.chunks(LANES).zip(second.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        if let (Ok(first), Ok(second), Ok(out)) = (
            <&[bf16; LANES]>::try_from(first),
            <&[bf16; LANES]>::try_from(second),
            <&mut [f32; LANES]>::try_from(&mut *out),
        ) {
            // SAFETY: three arrays of sixteen numbers.
            unsafe {
                let [first, second] =
                    [first, second].map(|row| _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.as_ptr().cast())));
                let pairs = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs);
            }
        } else {
            let pairs = first.iter().zip(second).map(|(first, second)| super::pair_bits(*first, *second));
            out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = pair);
        }
    }
}

/// # Safety
/// On a processor with AVX-512 F.
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, clippy::cast_ptr_alignment)] // read as unaligned
pub(super) unsafe fn widen_f16(numbers: &[f16], out: &mut [f32]) {
    assert_eq!(numbers.len(), out.len(), "f16 to f32");
    let whole = numbers.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: sixteen numbers from `at` on are in both slices.
        unsafe {
            let narrow = numbers.as_ptr().add(at).cast::<__m256i>().read_unaligned();
            _mm512_storeu_ps(out.as_mut_ptr().add(at), _mm512_cvtph_ps(narrow));
        }
    }
    out[whole..].iter_mut().zip(&numbers[whole..]).for_each(|(out, x)| *out = x.to_f32());
}

/// As [`super::Kernel::widen_int8`]: s x - 128 s, of which s x is not rounded, is s (x - 128) rounded once.
///
/// # Safety
/// On a processor with AVX-512 F.
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, clippy::cast_ptr_alignment)] // read as unaligned
pub(super) unsafe fn widen_int8(numbers: &[u8], scale: f32, out: &mut [f32]) {
    assert_eq!(numbers.len(), out.len(), "8 bits to f32");
    let whole = numbers.len() / LANES * LANES;
    let (scales, zeros) = (_mm512_set1_ps(scale), _mm512_set1_ps(-f32::from(OFFSET) * scale));
    for at in (0..whole).step_by(LANES) {
        // SAFETY: sixteen numbers from `at` on are in both slices.
        unsafe {
            let narrow = numbers.as_ptr().add(at).cast::<__m128i>().read_unaligned();
            let wide = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(narrow));
            _mm512_storeu_ps(out.as_mut_ptr().add(at), _mm512_fmadd_ps(wide, scales, zeros));
        }
    }
    out[whole..].iter_mut().zip(&numbers[whole..]).for_each(|(out, x)| *out = super::scaled(*x, scale));
}

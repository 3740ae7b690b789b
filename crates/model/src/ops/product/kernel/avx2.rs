//! Tiles of f32 in 256-bit registers: up to six rows of two; and how narrow numbers are widened and matrices turned.

use super::{OFFSET, Start, Tile};
use half::{bf16, f16};
use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_loadl_epi64, _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps,
    _mm256_maskstore_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

const LANES: usize = 8;

/// # Safety
/// As [`super::Kernel::tile`], on a processor with AVX2 and FMA; the panel is 8 or 16 wide.
#[allow(unsafe_code)]
pub(super) unsafe fn tile(tile: &Tile<f32>) {
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            // SAFETY: as this function's.
            unsafe {
                match (tile.out.len(), tile.panel_width == LANES) {
                    $(($rows, true) => sums::<$rows, 1>(tile), ($rows, false) => sums::<$rows, 2>(tile),)*
                    (rows, _) => unreachable!("a tile of {rows} rows"),
                }
            }
        };
    }
    of_rows!(1 2 3 4 5 6);
}

#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code)]
#[allow(clippy::needless_range_loop)] // constant bounds on both axes keep the sums in registers
unsafe fn sums<const ROWS: usize, const VECTORS: usize>(tile: &Tile<f32>) {
    // All bits of a lane that is let through.
    let lanes: [[i32; LANES]; VECTORS] =
        std::array::from_fn(|v| std::array::from_fn(|lane| -i32::from(v * LANES + lane < tile.cols)));
    let mut sums: [[__m256; VECTORS]; ROWS] = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    // SAFETY: rows have `k` numbers, the panel `k` rows of its width, out and bias what the mask lets
    // through.
    unsafe {
        let out: [*mut f32; ROWS] = std::array::from_fn(|row| tile.out[row]);
        let mask: [__m256i; VECTORS] = std::array::from_fn(|v| _mm256_loadu_si256(lanes[v].as_ptr().cast()));
        match tile.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                for row in 0..ROWS {
                    for v in 0..VECTORS {
                        sums[row][v] = _mm256_maskload_ps(bias.add(v * LANES), mask[v]);
                    }
                }
            }
            Start::Out => {
                for row in 0..ROWS {
                    for v in 0..VECTORS {
                        sums[row][v] = _mm256_maskload_ps(out[row].add(v * LANES), mask[v]);
                    }
                }
            }
        }
        let rows: [*const f32; ROWS] = std::array::from_fn(|row| tile.rows.add(row * tile.row_stride));
        let mut panel = tile.panel;
        for k in 0..tile.k {
            let columns: [__m256; VECTORS] = std::array::from_fn(|v| _mm256_loadu_ps(panel.add(v * LANES)));
            for row in 0..ROWS {
                let x = _mm256_set1_ps(*rows[row].add(k));
                for v in 0..VECTORS {
                    sums[row][v] = _mm256_fmadd_ps(x, columns[v], sums[row][v]);
                }
            }
            panel = panel.add(VECTORS * LANES);
        }
        for row in 0..ROWS {
            for v in 0..VECTORS {
                _mm256_maskstore_ps(out[row].add(v * LANES), mask[v], sums[row][v]);
            }
        }
    }
}

/// As [`super::Kernel::turn`], in squares of eight.
///
/// # Safety
/// On a processor with AVX2.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub(super) unsafe fn turn(numbers: &[f32], stride: usize, k: usize, out: &mut [f32], n: usize) {
    let width = out.len() / k;
    let (whole_n, whole_k) = (n / LANES * LANES, k / LANES * LANES);
    assert!(n <= width && (n == 0 || (n - 1) * stride + k <= numbers.len()));
    for column in (0..whole_n).step_by(LANES) {
        for at in (0..whole_k).step_by(LANES) {
            // SAFETY: eight rows from `column` on have eight numbers from `at` on, and so has `out`, by the assertion.
            unsafe {
                let square = std::array::from_fn(|i| _mm256_loadu_ps(numbers.as_ptr().add((column + i) * stride + at)));
                for (i, row) in turned(square).into_iter().enumerate() {
                    _mm256_storeu_ps(out.as_mut_ptr().add((at + i) * width + column), row);
                }
            }
        }
    }
    for column in 0..n {
        let first = if column < whole_n { whole_k } else { 0 };
        for at in first..k {
            out[at * width + column] = numbers[column * stride + at];
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn turned(rows: [__m256; 8]) -> [__m256; 8] {
    // Pairs of numbers, then of pairs, then halves of registers.
    let pairs: [__m256; 8] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_ps(rows[i], rows[i + 1]),
        _ => _mm256_unpackhi_ps(rows[i - 1], rows[i]),
    });
    let fours: [__m256; 8] = std::array::from_fn(|i| {
        let (first, column) = (i / 4 * 4, i % 4);
        let (a, b) = (pairs[first + column / 2], pairs[first + 2 + column / 2]);
        if column.is_multiple_of(2) { _mm256_shuffle_ps(a, b, 0x44) } else { _mm256_shuffle_ps(a, b, 0xEE) }
    });
    std::array::from_fn(|i| match i / 4 {
        0 => _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20),
        _ => _mm256_permute2f128_ps(fours[i - 4], fours[i], 0x31),
    })
}

/// # Safety
/// On a processor with AVX and F16C.
#[target_feature(enable = "avx,f16c")]
#[allow(unsafe_code, clippy::cast_ptr_alignment)] // read as unaligned
pub(super) unsafe fn widen_f16(numbers: &[f16], out: &mut [f32]) {
    let whole = numbers.len().min(out.len()) / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: eight numbers from `at` on are in both slices.
        unsafe {
            let narrow = numbers.as_ptr().add(at).cast::<__m128i>().read_unaligned();
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_cvtph_ps(narrow));
        }
    }
    out[whole..].iter_mut().zip(&numbers[whole..]).for_each(|(out, x)| *out = x.to_f32());
}

/// # Safety
/// On a processor with AVX2.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, clippy::cast_ptr_alignment)] // read as unaligned
pub(super) unsafe fn widen_bf16(numbers: &[bf16], out: &mut [f32]) {
    let whole = numbers.len().min(out.len()) / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: eight numbers from `at` on are in both slices.
        unsafe {
            let narrow = numbers.as_ptr().add(at).cast::<__m128i>().read_unaligned();
            let wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_castsi256_ps(wide));
        }
    }
    out[whole..].iter_mut().zip(&numbers[whole..]).for_each(|(out, x)| *out = x.to_f32());
}

/// As [`super::Kernel::widen_int8`]: s x - 128 s, of which s x is not rounded, is s (x - 128) rounded once.
///
/// # Safety
/// On a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
#[allow(unsafe_code, clippy::cast_ptr_alignment)] // read as unaligned
pub(super) unsafe fn widen_int8(numbers: &[u8], scale: f32, out: &mut [f32]) {
    let whole = numbers.len().min(out.len()) / LANES * LANES;
    let (scales, zeros) = (_mm256_set1_ps(scale), _mm256_set1_ps(-f32::from(OFFSET) * scale));
    for at in (0..whole).step_by(LANES) {
        // SAFETY: eight numbers from `at` on are in both slices.
        unsafe {
            let narrow = _mm_loadl_epi64(numbers.as_ptr().add(at).cast::<__m128i>());
            let wide = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(narrow));
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_fmadd_ps(wide, scales, zeros));
        }
    }
    out[whole..].iter_mut().zip(&numbers[whole..]).for_each(|(out, x)| *out = super::scaled(*x, scale));
}

//! Tiles of f32 in 512-bit registers: up to twelve rows of two, which leaves room for the panel and one row's number.

use super::{Start, Tile};
use std::arch::x86_64::{
    __m512, __mmask16, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
    _mm512_setzero_ps,
};

const LANES: usize = 16;

/// # Safety
/// As [`super::Kernel::tile`], on a processor with AVX-512 F; the panel is 16 or 32 wide.
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
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[target_feature(enable = "avx512f")]
#[allow(unsafe_code)]
#[allow(clippy::needless_range_loop)] // constant bounds on both axes keep the sums in registers
unsafe fn sums<const ROWS: usize, const VECTORS: usize>(tile: &Tile<f32>) {
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
                    sums[row][v] = _mm512_fmadd_ps(x, columns[v], sums[row][v]);
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

//! Plain loops, for any number type and any processor.

use super::{Start, Tile, WIDEST};
use crate::ops::real::{Real, vectorized};

/// Rows of a tile.
pub(super) const ROWS: usize = 4;

/// # Safety
/// As [`super::Kernel::tile`].
#[allow(unsafe_code)]
pub(super) unsafe fn tile<T: Real>(tile: &Tile<T>) {
    vectorized(
        #[inline(always)]
        || {
            for (row, out) in tile.out.iter().enumerate() {
                let mut sums = [T::default(); WIDEST];
                let sums = &mut sums[..tile.panel_width];
                // SAFETY: as this function's: the row has `k` numbers, the panel `k` rows, out and bias `cols`.
                unsafe {
                    let row = tile.rows.add(row * tile.row_stride);
                    match tile.start {
                        Start::Zero => {}
                        Start::Bias(bias) => (0..tile.cols).for_each(|n| sums[n] = *bias.add(n)),
                        Start::Out => (0..tile.cols).for_each(|n| sums[n] = *out.add(n)),
                    }
                    for k in 0..tile.k {
                        let x = *row.add(k);
                        let panel = std::slice::from_raw_parts(tile.panel.add(k * tile.panel_width), tile.panel_width);
                        sums.iter_mut().zip(panel).for_each(|(sum, b)| *sum += x * *b);
                    }
                    (0..tile.cols).for_each(|n| *out.add(n) = sums[n]);
                }
            }
        },
    );
}

/// As [`super::Kernel::turn`].
pub(super) fn turn<T: Copy>(numbers: &[T], stride: usize, k: usize, out: &mut [T], n: usize) {
    let width = out.len() / k.max(1);
    for column in 0..n {
        let row = &numbers[column * stride..column * stride + k];
        row.iter().enumerate().for_each(|(at, x)| out[at * width + column] = *x);
    }
}

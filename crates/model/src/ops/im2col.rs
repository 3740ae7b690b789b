//! The matrix of patches that turns a convolution into a product, and its adjoint.

use super::numbers::Number;
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one convolution over channels-last maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patches {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows and columns of zeros before the first pixel.
    pub(crate) pad: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
}

impl Patches {
    /// Numbers in one patch: kh kw c.
    pub(crate) fn patch_len(&self) -> usize {
        self.kernel * self.kernel * self.channels
    }

    /// The input row or column that kernel tap `k` of output position `o` reads, if it is not in the padding.
    fn source(&self, o: usize, k: usize, size: usize) -> Option<usize> {
        (o * self.stride + k).checked_sub(self.pad).filter(|i| *i < size)
    }

    /// The patches of output pixels `rows` (counted over batch, height, width): (rows, kh kw c), from `x` (b, h, w, c).
    pub(crate) fn gather<T: Number>(&self, x: &[T], rows: Range<usize>) -> Vec<T> {
        let mut col = vec![T::default(); rows.len() * self.patch_len()];
        let patches = col.par_chunks_mut(self.patch_len()).enumerate().with_min_len(16);
        patches.for_each(|(i, patch)| self.fill(patch, x, rows.start + i));
        col
    }

    /// The same on the calling thread alone.
    pub(crate) fn gather_here<T: Number>(&self, x: &[T], rows: Range<usize>) -> Vec<T> {
        let mut col = vec![T::default(); rows.len() * self.patch_len()];
        let patches = col.chunks_exact_mut(self.patch_len()).enumerate();
        patches.for_each(|(i, patch)| self.fill(patch, x, rows.start + i));
        col
    }

    /// The patch of output pixel `row`, into zeros.
    fn fill<T: Number>(&self, patch: &mut [T], x: &[T], row: usize) {
        let (b, oy, ox) = self.position(row);
        for ky in 0..self.kernel {
            let Some(y) = self.source(oy, ky, self.height) else { continue };
            for kx in 0..self.kernel {
                let Some(x_at) = self.source(ox, kx, self.width) else { continue };
                let from = ((b * self.height + y) * self.width + x_at) * self.channels;
                let to = (ky * self.kernel + kx) * self.channels;
                patch[to..to + self.channels].copy_from_slice(&x[from..from + self.channels]);
            }
        }
    }

    /// Adds the gradient of patches `rows`, `d_col` (rows, kh kw c), to the gradient of the map, `dx` (b, h, w, c).
    /// Each row of the map is one task, so the order of additions does not depend on the number of threads.
    pub(crate) fn scatter_add<T: Number>(&self, d_col: &[T], rows: Range<usize>, dx: &mut [T]) {
        dx.par_chunks_mut(self.width * self.channels).enumerate().for_each(|(i, dx_row)| {
            let (b, y) = (i / self.height, i % self.height);
            for ky in 0..self.kernel {
                let Some(oy) = self.target(y, ky, self.out_height) else { continue };
                for x in 0..self.width {
                    let dx = &mut dx_row[x * self.channels..(x + 1) * self.channels];
                    for kx in 0..self.kernel {
                        let Some(ox) = self.target(x, kx, self.out_width) else { continue };
                        let row = (b * self.out_height + oy) * self.out_width + ox;
                        if rows.contains(&row) {
                            let from = (row - rows.start) * self.patch_len() + (ky * self.kernel + kx) * self.channels;
                            dx.iter_mut().zip(&d_col[from..from + self.channels]).for_each(|(dx, d)| *dx += *d);
                        }
                    }
                }
            }
        });
    }

    /// The output position whose kernel tap `k` reads input position `i`, if there is one.
    fn target(&self, i: usize, k: usize, size: usize) -> Option<usize> {
        let o = (i + self.pad).checked_sub(k)?;
        (o % self.stride == 0 && o / self.stride < size).then_some(o / self.stride)
    }

    fn position(&self, row: usize) -> (usize, usize, usize) {
        let area = self.out_height * self.out_width;
        (row / area, row % area / self.out_width, row % self.out_width)
    }
}

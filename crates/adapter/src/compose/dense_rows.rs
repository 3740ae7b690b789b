//! Changes written out, some rows at a time.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::LoraModule;

/// Rows of a change that are in memory at once for each member.
const ROWS_AT_ONCE: usize = 64;

/// The blocks of rows in which every pass goes over a change, so that each pass sees the same bits.
pub(crate) fn row_blocks(num_rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..num_rows).step_by(ROWS_AT_ONCE).map(move |from| from..(from + ROWS_AT_ONCE).min(num_rows))
}

/// Writes these rows of up * down, (rows, in * kh * kw) row-major, for a module of scale 1.
pub(crate) fn write_rows(module: &LoraModule, rows: Range<usize>, to: &mut [f32]) {
    let rank = module.rank();
    let num_columns = module.down.data.len() / rank;
    let up = MatRef::from_row_major_slice(&module.up.data[rows.start * rank..rows.end * rank], rows.len(), rank);
    let down = MatRef::from_row_major_slice(&module.down.data, rank, num_columns);
    let to = MatMut::from_row_major_slice_mut(to, rows.len(), num_columns);
    matmul(to, Accum::Replace, up, down, 1.0, Par::Seq);
}

//! Matrices that factors make, row-major.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::Array;

/// Rows of a task. Cut by shape alone, so that the number of threads changes no bit.
const ROWS_AT_ONCE: usize = 64;

/// (rows, columns).
pub(super) struct Matrix<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) data: Cow<'a, [f32]>,
}

impl<'a> Matrix<'a> {
    /// An array flattened from its second dimension on.
    pub(super) fn flattened(array: &'a Array) -> Self {
        let rows = array.shape.first().copied().unwrap_or(0);
        Self { rows, columns: array.data.len() / rows.max(1), data: Cow::Borrowed(&array.data) }
    }

    pub(super) fn identity(size: usize) -> Self {
        let mut data = vec![0.0; size * size];
        data.iter_mut().step_by(size + 1).for_each(|value| *value = 1.0);
        Self { rows: size, columns: size, data: Cow::Owned(data) }
    }

    pub(super) fn transposed(&self) -> Self {
        let column = |j| (0..self.rows).map(move |i| self.data[i * self.columns + j]);
        let data = (0..self.columns).flat_map(column).collect();
        Self { rows: self.columns, columns: self.rows, data: Cow::Owned(data) }
    }

    /// scale * self * right, summed in f32.
    pub(super) fn product(&self, right: &Matrix, scale: f32) -> Matrix<'static> {
        let (inner, columns) = (self.columns, right.columns);
        let mut data = vec![0.0; self.rows * columns];
        if inner > 0 && columns > 0 {
            let right = MatRef::from_row_major_slice(&right.data, inner, columns);
            let parts = data.par_chunks_mut(ROWS_AT_ONCE * columns).zip(self.data.par_chunks(ROWS_AT_ONCE * inner));
            parts.for_each(|(sum, left)| {
                let rows = left.len() / inner;
                let sum = MatMut::from_row_major_slice_mut(sum, rows, columns);
                matmul(sum, Accum::Replace, MatRef::from_row_major_slice(left, rows, inner), right, scale, Par::Seq);
            });
        }
        Matrix { rows: self.rows, columns, data: Cow::Owned(data) }
    }

    /// The Kronecker product, times `scale`: block (i, j) is self[i, j] * right.
    pub(super) fn kronecker(&self, right: &Matrix, scale: f32) -> Matrix<'static> {
        let (rows, columns) = (self.rows * right.rows, self.columns * right.columns);
        let mut data = Vec::with_capacity(rows * columns);
        for left_row in self.data.chunks(self.columns.max(1)) {
            for right_row in right.data.chunks(right.columns.max(1)) {
                for left in left_row {
                    data.extend(right_row.iter().map(|right| scale * left * right));
                }
            }
        }
        Matrix { rows, columns, data: Cow::Owned(data) }
    }

    /// Two matrices whose product this is, of the smallest rank that is known without a decomposition: its shorter side.
    pub(super) fn split(self) -> (Self, Self) {
        if self.rows <= self.columns {
            (Self::identity(self.rows), self)
        } else {
            let identity = Self::identity(self.columns);
            (self, identity)
        }
    }
}

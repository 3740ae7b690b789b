//! Matrix products on strided views, checked and safe; the arithmetic is the `gemm` crate's.

use super::real::Real;
use gemm::Parallelism;

/// A matrix that lies in a slice with any row and column stride (in elements).
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// `rows` x `cols` in row-major order, rows `row_stride` elements apart.
    pub(crate) fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// `rows` x `cols` in row-major order without gaps.
    pub(crate) fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row_stride + (self.cols.max(1) - 1) * self.col_stride;
        self.rows == 0 || self.cols == 0 || last < self.data.len()
    }
}

/// Who works on a product: all cores, or only the calling thread (inside a parallel loop).
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cores {
    All,
    This,
}

/// `out = scale * a b`, or `out += scale * a b`. `out` is row-major without gaps, `a.rows` x `b.cols`.
///
/// # Panics
/// If shapes and slices do not fit each other: a mistake of the caller, never of the user.
#[allow(unsafe_code)]
pub(crate) fn gemm<T: Real>(out: &mut [T], add: bool, scale: T, a: Matrix<T>, b: Matrix<T>, cores: Cores) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(k == b.rows && out.len() == m * n && a.fits() && b.fits(), "gemm: {m}x{k} by {}x{n}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    // A product this small is over before a second thread has woken up.
    let cores = if m * n * k < 1 << 16 { Cores::This } else { cores };
    let parallelism = if cores == Cores::All { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: the assertion above keeps every element of the three strided matrices inside its slice; `out` is
    // borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

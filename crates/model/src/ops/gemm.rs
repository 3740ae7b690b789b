//! Matrix products on strided views, checked and safe; the arithmetic is the `gemm` crate's.

use super::real::Real;
use gemm::Parallelism;
use rayon::prelude::*;

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

    /// From row `first` on, `rows` of them.
    fn rows(self, first: usize, rows: usize) -> Self {
        Self { data: &self.data[first * self.row_stride..], rows, ..self }
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

/// Multiplications below which a second thread would take longer to wake up than the product takes.
const WORTH_A_THREAD: usize = 1 << 18;
/// Numbers of `b` up to which every task may bring it into the order of the kernel for itself.
const SMALL_B: usize = 1 << 19;

/// Rows of `out` that one task makes, if the product is better cut into rows here than inside: then threads meet only
/// at the end. Depends on the shape alone, never on the machine, because it decides the order of additions.
pub(crate) fn rows_per_task(m: usize, n: usize, k: usize) -> Option<usize> {
    let rows = m.div_ceil(8).next_multiple_of(16).max(64);
    (m * n * k >= WORTH_A_THREAD && n * k <= SMALL_B && rows < m).then_some(rows)
}

/// `out = scale * a b`, or `out += scale * a b`. `out` is row-major without gaps, `a.rows` x `b.cols`.
///
/// # Panics
/// If shapes and slices do not fit each other: a mistake of the caller, never of the user.
pub(crate) fn gemm<T: Real>(out: &mut [T], add: bool, scale: T, a: Matrix<T>, b: Matrix<T>, cores: Cores) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    match rows_per_task(m, n, k).filter(|_| cores == Cores::All) {
        Some(rows) => out.par_chunks_mut(rows * n).enumerate().for_each(|(i, out)| {
            product(out, add, scale, a.rows(i * rows, out.len() / n), b, Cores::This);
        }),
        None if m * n * k < WORTH_A_THREAD => product(out, add, scale, a, b, Cores::This),
        None => product(out, add, scale, a, b, cores),
    }
}

#[allow(unsafe_code)]
fn product<T: Real>(out: &mut [T], add: bool, scale: T, a: Matrix<T>, b: Matrix<T>, cores: Cores) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(k == b.rows && out.len() == m * n && a.fits() && b.fits(), "gemm: {m}x{k} by {}x{n}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
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

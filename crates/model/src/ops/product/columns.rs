//! The right operand of a product: a matrix in any of its number types, read along either axis.

use super::rows::Starts;
use half::{bf16, f16};
use std::ops::Range;

/// Numbers as they are kept.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a, T> {
    /// In the type of the product.
    Wide(&'a [T]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    /// 128 more than whole numbers, which are multiplied by the scale of the row in which they lie.
    Int8 {
        numbers: &'a [u8],
        row_scales: &'a [f32],
    },
}

impl<T> Stored<'_, T> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Wide(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::Int8 { numbers, .. } => numbers.len(),
        }
    }

    fn from(self, first: usize) -> Self {
        match self {
            Self::Wide(x) => Self::Wide(&x[first..]),
            Self::F16(x) => Self::F16(&x[first..]),
            Self::Bf16(x) => Self::Bf16(&x[first..]),
            Self::Int8 { numbers, row_scales } => Self::Int8 { numbers: &numbers[first..], row_scales },
        }
    }
}

impl<T> Stored<'_, T> {
    fn fetch(&self, numbers: Range<usize>) {
        match self {
            Self::Wide(x) => fetch_lines(&x[numbers]),
            Self::F16(x) => fetch_lines(&x[numbers]),
            Self::Bf16(x) => fetch_lines(&x[numbers]),
            Self::Int8 { numbers: x, .. } => fetch_lines(&x[numbers]),
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

#[allow(unsafe_code)]
fn fetch_lines<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let Range { start, end } = numbers.as_ptr_range();
        let first_line = start.map_addr(|address| address / LINE * LINE);
        for line in (0..end.addr() - first_line.addr()).step_by(LINE) {
            // SAFETY: a hint, never an access; every processor of this architecture has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(first_line.cast::<i8>().wrapping_add(line)) };
        }
    }
}

/// k x n numbers: number (k, n) lies at the start of k plus n, or the other way round.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a, T> {
    pub(super) stored: Stored<'a, T>,
    pub(super) starts: Starts<'a>,
    pub(super) along: Along,
}

/// Which numbers lie side by side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Along {
    /// Those of one k: the matrix lies as (k, n).
    N,
    /// Those of one column: the matrix lies as (n, k).
    K,
}

impl<'a, T> Columns<'a, T> {
    /// A matrix that lies as (n, k), such as the weight (out, in) of a layer; rows `stride` apart, from `first` on.
    pub(crate) fn weight(stored: Stored<'a, T>, first: usize, stride: usize) -> Self {
        Self { stored: stored.from(first), starts: Starts::Every(stride), along: Along::K }
    }

    /// A matrix that lies as (k, n): what backward makes of a weight; rows `stride` apart, from `first` on.
    pub(crate) fn matrix(stored: Stored<'a, T>, first: usize, stride: usize) -> Self {
        Self { stored: stored.from(first), starts: Starts::Every(stride), along: Along::N }
    }

    /// A matrix that lies as (k, n), whose rows start where `table` says.
    pub(crate) fn table(numbers: &'a [T], table: &'a [u32]) -> Self {
        Self { stored: Stored::Wide(numbers), starts: Starts::Table(table), along: Along::N }
    }

    pub(super) fn fit(&self, n: usize, k: usize) -> bool {
        let (rows, length) = if self.along == Along::K { (n, k) } else { (k, n) };
        self.starts.fit(rows, length, 1, self.stored.len())
    }

    /// Where row `row` of the stored matrix starts, unless it is padding.
    pub(super) fn start(&self, row: usize) -> Option<usize> {
        (!self.starts.is_padding(row)).then(|| self.starts.of(row))
    }

    /// Asks the memory for part `of` of `parts` of the numbers `block` x `cols`, which will be wanted soon: a weight is read
    /// once a pass, in pieces too short for the processor to see where they lead.
    pub(crate) fn fetch(&self, block: &Range<usize>, cols: &Range<usize>, part: usize, parts: usize) {
        let (rows, along) = if self.along == Along::K { (cols, block) } else { (block, cols) };
        let of = |part: usize| rows.start + part * rows.len() / parts;
        for start in (of(part)..of(part + 1)).filter_map(|row| self.start(row)) {
            self.stored.fetch(start + along.start..start + along.end);
        }
    }
}

//! The left operand of a product: rows of activations, wherever they lie.

/// Where the rows of a matrix start in its slice.
#[derive(Clone, Copy)]
pub(crate) enum Starts<'a> {
    /// Row i at i times this.
    Every(usize),
    /// Row i at the i-th of these; [`PADDING`] is a row of zeros.
    Table(&'a [u32]),
}

/// A row that lies nowhere: outside of a map.
pub(crate) const PADDING: u32 = u32::MAX;

impl Starts<'_> {
    pub(crate) fn of(&self, row: usize) -> usize {
        match self {
            Self::Every(stride) => row * stride,
            Self::Table(starts) => starts[row] as usize,
        }
    }

    pub(super) fn is_padding(&self, row: usize) -> bool {
        matches!(self, Self::Table(starts) if starts[row] == PADDING)
    }

    /// Whether `rows` rows of `length` numbers, each `stride` from the next, lie within `all` numbers.
    pub(crate) fn fit(&self, rows: usize, length: usize, stride: usize, all: usize) -> bool {
        let reach = (length.max(1) - 1) * stride;
        match self {
            _ if rows == 0 || length == 0 => true,
            Self::Every(every) => (rows - 1) * every + reach < all,
            Self::Table(starts) => {
                let real = || starts.iter().filter(|start| **start != PADDING);
                starts.len() == rows && real().max().is_none_or(|last| *last as usize + reach < all)
            }
        }
    }
}

/// m rows of k numbers.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) starts: Starts<'a>,
    pub(super) k_stride: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Rows `row_stride` apart, their numbers side by side.
    pub(crate) fn strided(numbers: &'a [T], row_stride: usize) -> Self {
        Self { numbers, starts: Starts::Every(row_stride), k_stride: 1 }
    }

    /// The columns of a row-major matrix of `width` columns, as rows.
    pub(crate) fn transposed(numbers: &'a [T], width: usize) -> Self {
        Self { numbers, starts: Starts::Every(1), k_stride: width }
    }

    /// Rows that start where `table` says.
    pub(crate) fn table(numbers: &'a [T], table: &'a [u32]) -> Self {
        Self { numbers, starts: Starts::Table(table), k_stride: 1 }
    }

    pub(super) fn fit(&self, m: usize, k: usize) -> bool {
        self.starts.fit(m, k, self.k_stride, self.numbers.len())
    }

    /// Where `row` starts, unless it is padding.
    pub(super) fn start(&self, row: usize) -> Option<usize> {
        (!self.starts.is_padding(row)).then(|| self.starts.of(row))
    }
}

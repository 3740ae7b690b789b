//! The columns of one task in one block of k, in the order in which a kernel reads them: panels of a few columns, and in
//! a panel for each k as many numbers as it is wide, widened to the type of the product. Columns beyond the matrix are
//! zeros.

use super::columns::{Along, Columns, Stored};
use super::instructions::Instructions;
use super::kernel::{Kernel, WIDEST};
use super::rows::Starts;
use super::{BLOCK_K, Precision, Range};

/// panels x k x width numbers.
#[derive(Default)]
pub(crate) struct Panels<T> {
    numbers: Vec<T>,
    instructions: Instructions,
    /// Columns that a panel has room for.
    widest: usize,
    /// Columns of the matrix that all panels have together.
    cols: Range<usize>,
}

/// k of one transposition: what is widened before it is turned stays in the first cache beside the panel.
const TURN_K: usize = 64;

impl<T: Kernel> Panels<T> {
    /// Makes room for a block of `cols` columns in panels of at most `widest`.
    pub(crate) fn make_room(&mut self, instructions: Instructions, widest: usize, cols: usize) {
        (self.instructions, self.widest) = (instructions, widest);
        let count = cols.next_multiple_of(widest) * BLOCK_K;
        if self.numbers.len() < count {
            self.numbers.resize(count, T::default());
        }
    }

    /// Panel `i`: where its numbers start, how wide it is, its first column and how many are real.
    pub(super) fn panel(&self, i: usize) -> (*const T, usize, usize, usize) {
        let first = i * self.widest;
        let cols = (self.cols.len() - first).min(self.widest);
        (self.numbers[first * BLOCK_K..].as_ptr(), self.width(cols), self.cols.start + first, cols)
    }

    /// All panels.
    pub(crate) fn numbers(&self) -> &[T] {
        &self.numbers
    }

    /// How wide the first panel is.
    pub(crate) fn first_width(&self) -> usize {
        self.width(self.cols.len().min(self.widest))
    }

    /// The narrowest width that there is a kernel for.
    fn width(&self, cols: usize) -> usize {
        if cols <= self.widest / 2 { self.widest / 2 } else { self.widest }
    }

    /// Takes the numbers `block` x `cols` of `columns`, as they are or in pairs of bf16 along k.
    pub(crate) fn fill(&mut self, columns: &Columns<T>, block: Range<usize>, cols: Range<usize>, precision: Precision) {
        self.cols = cols.clone();
        match (columns.along, precision) {
            (Along::N, Precision::Full) => self.copy(columns, block, &cols),
            (Along::N, Precision::Bf16) => self.copy_pairs(columns, block, &cols),
            (Along::K, _) => {
                for i in 0..cols.len().div_ceil(self.widest) {
                    let cols = cols.start + i * self.widest..cols.end.min(cols.start + (i + 1) * self.widest);
                    let width = self.width(cols.len());
                    let panel = &mut self.numbers[i * BLOCK_K * self.widest..][..BLOCK_K * width];
                    for first in block.clone().step_by(TURN_K) {
                        let part = first..block.end.min(first + TURN_K);
                        // Two k of a pair are one row of the panel.
                        let per_row = if precision == Precision::Bf16 { 2 } else { 1 };
                        let at = (first - block.start) / per_row * width;
                        let panel = &mut panel[at..][..part.len() / per_row * width];
                        turn(self.instructions, panel, columns, part, &cols, precision);
                    }
                }
            }
        }
    }

    /// Two rows at a time, into one of pairs.
    fn copy_pairs(&mut self, columns: &Columns<T>, block: Range<usize>, cols: &Range<usize>) {
        for k in block.clone().step_by(2) {
            for (i, first) in cols.clone().step_by(self.widest).enumerate() {
                let real = (cols.end - first).min(self.widest);
                let width = self.width(real);
                let at = i * BLOCK_K * self.widest + (k - block.start) / 2 * width;
                let out = &mut self.numbers[at..at + width];
                if let (Stored::Bf16(numbers), Some(one), Some(two)) =
                    (columns.stored, columns.start(k), columns.start(k + 1))
                {
                    let [one, two] = [one, two].map(|start| &numbers[start + first..start + first + real]);
                    T::interleave_bf16(self.instructions, one, two, out);
                    continue;
                }
                let mut wide = [[T::default(); WIDEST]; 2];
                for (row, k) in wide.iter_mut().zip(k..) {
                    if let Some(start) = columns.start(k) {
                        widen(self.instructions, columns.stored, k, start + first, &mut row[..real]);
                    }
                }
                T::interleave(self.instructions, &wide[0][..width], &wide[1][..width], out);
            }
        }
    }

    /// Row by row, because memory is read fastest along a row.
    fn copy(&mut self, columns: &Columns<T>, block: Range<usize>, cols: &Range<usize>) {
        for k in block.clone() {
            let start = columns.start(k);
            for (i, first) in cols.clone().step_by(self.widest).enumerate() {
                let real = (cols.end - first).min(self.widest);
                let width = self.width(real);
                let at = i * BLOCK_K * self.widest + (k - block.start) * width;
                let (row, beyond) = self.numbers[at..at + width].split_at_mut(real);
                beyond.fill(T::default());
                match start {
                    Some(start) => widen(self.instructions, columns.stored, k, start + first, row),
                    None => row.fill(T::default()),
                }
            }
        }
    }
}

/// Numbers `part` x `cols` of a matrix that lies as (n, k), into the rows of a panel.
fn turn<T: Kernel>(
    instructions: Instructions,
    panel: &mut [T],
    columns: &Columns<T>,
    part: Range<usize>,
    cols: &Range<usize>,
    precision: Precision,
) {
    let is_rounded = precision == Precision::Bf16;
    let rows = if is_rounded { part.len() / 2 } else { part.len() };
    if cols.len() * rows < panel.len() {
        panel.fill(T::default());
    }
    if is_rounded {
        let mut wide = [T::default(); TURN_K];
        let mut pairs = [T::default(); WIDEST * TURN_K / 2];
        for (pairs, n) in pairs.chunks_exact_mut(TURN_K / 2).zip(cols.clone()) {
            if let Some(start) = columns.start(n) {
                if let Stored::Bf16(numbers) = columns.stored {
                    let numbers = &numbers[start + part.start..start + part.end];
                    T::pairs_of_bf16(numbers, &mut pairs[..rows]);
                    continue;
                }
                let wide = &mut wide[..part.len()];
                widen(instructions, columns.stored, n, start + part.start, wide);
                T::pairs(instructions, wide, &mut pairs[..rows]);
            }
        }
        return T::turn(instructions, &pairs, TURN_K / 2, rows, panel, cols.len());
    }
    if let (Stored::Wide(numbers), Starts::Every(stride)) = (columns.stored, columns.starts) {
        return T::turn(
            instructions,
            &numbers[cols.start * stride + part.start..],
            stride,
            part.len(),
            panel,
            cols.len(),
        );
    }
    let mut wide = [T::default(); WIDEST * TURN_K];
    for (wide, n) in wide.chunks_exact_mut(TURN_K).zip(cols.clone()) {
        if let Some(start) = columns.start(n) {
            widen(instructions, columns.stored, n, start + part.start, &mut wide[..part.len()]);
        }
    }
    T::turn(instructions, &wide, TURN_K, part.len(), panel, cols.len());
}

/// Numbers from `first` on, which lie in row `row`.
fn widen<T: Kernel>(instructions: Instructions, stored: Stored<T>, row: usize, first: usize, out: &mut [T]) {
    match stored {
        Stored::Wide(numbers) => out.copy_from_slice(&numbers[first..first + out.len()]),
        Stored::F16(numbers) => T::widen_f16(instructions, &numbers[first..first + out.len()], out),
        Stored::Bf16(numbers) => T::widen_bf16(instructions, &numbers[first..first + out.len()], out),
        Stored::Int8 { numbers, row_scales } => {
            T::widen_int8(instructions, &numbers[first..first + out.len()], row_scales[row], out);
        }
    }
}

//! The columns of one task in one block of k, in the order in which a kernel reads them: panels of a few columns, and in
//! a panel for each k as many numbers as it is wide, widened to the type of the product. Columns beyond the matrix are
//! zeros.

use super::columns::{Along, Columns, Stored};
use super::instructions::Instructions;
use super::kernel::{Kernel, WIDEST};
use super::rows::Starts;
use super::{BLOCK_K, Range};

/// panels x k x width numbers.
pub(crate) struct Panels<T> {
    numbers: Vec<T>,
    instructions: Instructions,
    /// Columns that a panel has room for.
    widest: usize,
    /// Columns that it has, of all panels together.
    cols: usize,
}

/// k of one transposition: what is widened before it is turned stays in the first cache beside the panel.
const TURN_K: usize = 64;

impl<T: Kernel> Panels<T> {
    /// Room for a block of `cols` columns in panels of at most `widest`.
    pub(crate) fn new(instructions: Instructions, widest: usize, cols: usize) -> Self {
        let numbers = vec![T::default(); cols.next_multiple_of(widest) * BLOCK_K];
        Self { numbers, instructions, widest, cols: 0 }
    }

    /// Panel `i`: where its numbers start, how wide it is, and how many of its columns are real.
    pub(super) fn panel(&self, i: usize) -> (*const T, usize, usize) {
        let cols = (self.cols - i * self.widest).min(self.widest);
        (self.numbers[i * BLOCK_K * self.widest..].as_ptr(), self.width(cols), cols)
    }

    /// All panels.
    pub(crate) fn numbers(&self) -> &[T] {
        &self.numbers
    }

    /// How wide the first panel is.
    pub(crate) fn first_width(&self) -> usize {
        self.width(self.cols.min(self.widest))
    }

    /// The narrowest width that there is a kernel for.
    fn width(&self, cols: usize) -> usize {
        if cols <= self.widest / 2 { self.widest / 2 } else { self.widest }
    }

    /// Takes the numbers `block` x `cols` of `columns`.
    pub(crate) fn fill(&mut self, columns: &Columns<T>, block: Range<usize>, cols: Range<usize>) {
        self.cols = cols.len();
        match columns.along {
            Along::N => self.copy(columns, block, &cols),
            Along::K => {
                for i in 0..cols.len().div_ceil(self.widest) {
                    let cols = cols.start + i * self.widest..cols.end.min(cols.start + (i + 1) * self.widest);
                    let width = self.width(cols.len());
                    let panel = &mut self.numbers[i * BLOCK_K * self.widest..][..BLOCK_K * width];
                    for first in block.clone().step_by(TURN_K) {
                        let part = first..block.end.min(first + TURN_K);
                        let panel = &mut panel[(first - block.start) * width..][..part.len() * width];
                        turn(self.instructions, panel, columns, part, &cols);
                    }
                }
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
                    Some(start) => widen(self.instructions, columns.stored, start + first, row),
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
) {
    if cols.len() * part.len() < panel.len() {
        panel.fill(T::default());
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
            widen(instructions, columns.stored, start + part.start, &mut wide[..part.len()]);
        }
    }
    T::turn(instructions, &wide, TURN_K, part.len(), panel, cols.len());
}

fn widen<T: Kernel>(instructions: Instructions, stored: Stored<T>, first: usize, out: &mut [T]) {
    match stored {
        Stored::Wide(numbers) => out.copy_from_slice(&numbers[first..first + out.len()]),
        Stored::F16(numbers) => T::widen_f16(instructions, &numbers[first..first + out.len()], out),
        Stored::Bf16(numbers) => T::widen_bf16(instructions, &numbers[first..first + out.len()], out),
    }
}

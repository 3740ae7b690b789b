//! A few columns of the right operand in the order in which a kernel reads them: for each k, as many numbers as the
//! panel is wide, widened to the type of the product. Columns beyond the matrix are zeros.

use super::columns::{Along, Columns, Stored};
use super::instructions::Instructions;
use super::kernel::{Kernel, WIDEST};
use super::rows::Starts;
use super::{BLOCK_K, Range};

/// k x width numbers.
pub(super) struct Panel<T> {
    numbers: Vec<T>,
    instructions: Instructions,
    /// Columns that it has room for.
    widest: usize,
    /// Columns that it has.
    width: usize,
}

/// k of one transposition: what is widened before it is turned stays in the first cache beside the panel.
const TURN_K: usize = 64;

impl<T: Kernel> Panel<T> {
    /// Room for a block of at most `widest` columns.
    pub(super) fn new(instructions: Instructions, widest: usize) -> Self {
        Self { numbers: vec![T::default(); BLOCK_K * widest], instructions, widest, width: widest }
    }

    pub(super) fn numbers(&self) -> *const T {
        self.numbers.as_ptr()
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Takes the numbers `block` x `cols` of `columns`, in the narrowest width that there is a kernel for.
    pub(super) fn fill(&mut self, columns: &Columns<T>, block: Range<usize>, cols: Range<usize>) {
        self.width = if cols.len() <= self.widest / 2 { self.widest / 2 } else { self.widest };
        match columns.along {
            Along::N => self.copy(columns, block, &cols),
            Along::K => {
                for first in block.clone().step_by(TURN_K) {
                    let part = first..block.end.min(first + TURN_K);
                    self.turn(columns, part, first - block.start, &cols);
                }
            }
        }
    }

    fn copy(&mut self, columns: &Columns<T>, block: Range<usize>, cols: &Range<usize>) {
        for (row, k) in self.numbers.chunks_exact_mut(self.width).zip(block) {
            let (row, beyond) = row.split_at_mut(cols.len());
            beyond.fill(T::default());
            match columns.start(k) {
                Some(start) => widen(self.instructions, columns.stored, start + cols.start, row),
                None => row.fill(T::default()),
            }
        }
    }

    /// Numbers `part` x `cols` of a matrix that lies as (n, k), into the rows of the panel from `first` on.
    fn turn(&mut self, columns: &Columns<T>, part: Range<usize>, first: usize, cols: &Range<usize>) {
        let mut wide = [T::default(); WIDEST * TURN_K];
        let turned = &mut self.numbers[first * self.width..(first + part.len()) * self.width];
        if cols.len() < self.width {
            turned.fill(T::default());
        }
        if let (Stored::Wide(numbers), Starts::Every(stride)) = (columns.stored, columns.starts) {
            let numbers = &numbers[cols.start * stride + part.start..];
            T::turn(self.instructions, numbers, stride, part.len(), turned, cols.len());
            return;
        }
        for (wide, n) in wide.chunks_exact_mut(TURN_K).zip(cols.clone()) {
            if let Some(start) = columns.start(n) {
                widen(self.instructions, columns.stored, start + part.start, &mut wide[..part.len()]);
            }
        }
        T::turn(self.instructions, &wide, TURN_K, part.len(), turned, cols.len());
    }
}

fn widen<T: Kernel>(instructions: Instructions, stored: Stored<T>, first: usize, out: &mut [T]) {
    match stored {
        Stored::Wide(numbers) => out.copy_from_slice(&numbers[first..first + out.len()]),
        Stored::F16(numbers) => T::widen_f16(instructions, &numbers[first..first + out.len()], out),
        Stored::Bf16(numbers) => T::widen_bf16(instructions, &numbers[first..first + out.len()], out),
    }
}

//! The rows of one task in one block of k, copied side by side: rows of a weight's width would fall on the same few lines
//! of the first cache.

use super::instructions::Instructions;
use super::kernel::Kernel;
use super::rows::Rows;
use super::{BLOCK_K, Precision, Range};

/// Numbers from one row to the next: an odd number of cache lines, so that rows fall on different ones.
pub(super) const STRIDE: usize = BLOCK_K + 16;

/// rows x k numbers.
#[derive(Default)]
pub(super) struct Gathered<T> {
    numbers: Vec<T>,
    /// Whether each row is zeros because it lies nowhere.
    padding: Vec<bool>,
    instructions: Instructions,
    k: usize,
}

impl<T: Kernel> Gathered<T> {
    /// Makes room for `rows` rows.
    pub(super) fn make_room(&mut self, instructions: Instructions, rows: usize) {
        self.instructions = instructions;
        if self.padding.len() < rows {
            self.numbers.resize(rows * STRIDE, T::default());
            self.padding.resize(rows, false);
        }
    }

    /// Takes the numbers `rows` x `block` of `operand`, as they are or in pairs of bf16.
    pub(super) fn gather(&mut self, operand: &Rows<T>, rows: Range<usize>, block: Range<usize>, precision: Precision) {
        let is_rounded = precision == Precision::Bf16;
        self.k = if is_rounded { block.len() / 2 } else { block.len() };
        if operand.k_stride != 1 {
            self.turn(operand, rows.clone(), block.clone());
            if is_rounded {
                let mut wide = [T::default(); STRIDE];
                for row in self.numbers.chunks_exact_mut(STRIDE).take(rows.len()) {
                    wide.copy_from_slice(row);
                    T::pairs(self.instructions, &wide[..block.len()], &mut row[..block.len() / 2]);
                }
            }
            return;
        }
        for ((to, padding), row) in self.numbers.chunks_exact_mut(STRIDE).zip(&mut self.padding).zip(rows) {
            let to = &mut to[..self.k];
            let start = operand.start(row);
            *padding = start.is_none();
            match start.map(|start| &operand.numbers[start + block.start..start + block.end]) {
                Some(numbers) if is_rounded => T::pairs(self.instructions, numbers, to),
                Some(numbers) => to.copy_from_slice(numbers),
                None => to.fill(T::default()),
            }
        }
    }

    /// Rows that are the columns of a matrix.
    fn turn(&mut self, operand: &Rows<T>, rows: Range<usize>, block: Range<usize>) {
        let (stride, first) = (operand.k_stride, operand.start(rows.start).unwrap_or_default());
        self.padding.fill(false);
        if block.is_empty() {
            return;
        }
        let numbers = &operand.numbers[first + block.start * stride..];
        T::turn(self.instructions, numbers, stride, rows.len(), &mut self.numbers[..rows.len() * STRIDE], block.len());
    }

    /// Whether all of `rows`, counted from the task's first, lie nowhere.
    pub(super) fn is_padding(&self, rows: Range<usize>) -> bool {
        self.padding[rows].iter().all(|padding| *padding)
    }

    /// `row`, counted from the task's first: [`Self::k`] numbers or pairs.
    pub(super) fn row(&self, row: usize) -> *const T {
        self.numbers[row * STRIDE..].as_ptr()
    }

    pub(super) fn k(&self) -> usize {
        self.k
    }
}

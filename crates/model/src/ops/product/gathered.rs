//! The rows of one task in one block of k, copied side by side: rows of a weight's width would fall on the same few lines
//! of the first cache. Where few panels pass by, copying would take longer than it saves, and rows are read where they lie.

use super::instructions::Instructions;
use super::kernel::Kernel;
use super::rows::{Rows, Starts};
use super::{BLOCK_K, Precision, Range};

/// Numbers from one row to the next: an odd number of cache lines, so that rows fall on different ones.
const STRIDE: usize = BLOCK_K + 16;

/// Panels for which rows are not worth copying.
const FEW_PANELS: usize = 2;
/// Numbers of a row that are not worth copying.
const SHORT_ROW: usize = 64;
/// Rows that are a multiple of this many bytes apart fall on the same lines of the first cache.
const SAME_LINES: usize = 4096;

/// Rows of a task in a block of k, as a kernel reads them.
#[derive(Clone, Copy)]
pub(super) struct TaskRows<'a, T> {
    first: *const T,
    /// Numbers from one row to the next.
    pub(super) stride: usize,
    /// Numbers, or pairs, of a row.
    pub(super) k: usize,
    /// Whether each row is zeros because it lies nowhere.
    padding: &'a [bool],
}

impl<T> TaskRows<'_, T> {
    /// Whether all of `rows`, counted from the task's first, lie nowhere.
    pub(super) fn is_padding(&self, rows: Range<usize>) -> bool {
        self.padding.get(rows).is_some_and(|padding| padding.iter().all(|padding| *padding))
    }

    /// Where `row`, counted from the task's first, starts.
    pub(super) fn row(&self, row: usize) -> *const T {
        self.first.wrapping_add(row * self.stride)
    }
}

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

    /// The numbers `rows` x `block` of `operand`, as they are or in pairs of bf16, for so many panels.
    pub(super) fn rows<'a>(
        &'a mut self,
        operand: &Rows<'a, T>,
        rows: Range<usize>,
        block: Range<usize>,
        precision: Precision,
        panels: usize,
    ) -> TaskRows<'a, T> {
        if let Starts::Every(stride) = operand.starts
            && operand.k_stride == 1
            && precision == Precision::Full
            && (panels <= FEW_PANELS || block.len() <= SHORT_ROW)
            && !(stride * size_of::<T>()).is_multiple_of(SAME_LINES)
        {
            let first = operand.numbers[rows.start * stride + block.start..].as_ptr();
            return TaskRows { first, stride, k: block.len(), padding: &[] };
        }
        self.gather(operand, rows.clone(), block, precision);
        TaskRows { first: self.numbers.as_ptr(), stride: STRIDE, k: self.k, padding: &self.padding[..rows.len()] }
    }

    fn gather(&mut self, operand: &Rows<T>, rows: Range<usize>, block: Range<usize>, precision: Precision) {
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
}

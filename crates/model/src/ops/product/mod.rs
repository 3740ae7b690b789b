//! Products with few operands that change and many that never do: out = start + sum over terms of rows times columns.
//!
//! A linear layer is one term, its low-rank addition a second one; a convolution of channels-last maps is a term for each
//! tap of its kernel, whose rows are the pixels themselves, found by a table (Dukhan 2019, "The Indirect Convolution
//! Algorithm", arXiv 1907.02129). So nothing is unrolled into patches, and a backward pass is the same product with the
//! other view of the same weight, which is kept once, in whatever type, row after row as the file has it.
//!
//! The work is cut into tasks of some rows times some columns, and along `k` into blocks. The rows of a block are gathered
//! side by side, which the second cache holds; its columns are brought into the order of the kernel panel by panel, and
//! widened on the way, and a panel stays in the first cache while the rows pass by. A number of `out` is always the same
//! additions in the same order: for each term, for each block, along `k`; so the result depends neither on the number of
//! threads nor on how the work was cut.

mod columns;
mod gathered;
mod instructions;
mod kernel;
mod panel;
mod precision;
mod rows;

pub(crate) use columns::{Columns, Stored};
pub(crate) use instructions::Instructions;
pub(crate) use kernel::{HIGHEST, Kernel, Start, Tile};
pub(crate) use panel::Panels;
pub(crate) use precision::Precision;
pub use precision::{multiplies_bf16, with_bf16_products};
pub(crate) use rows::{PADDING, Rows, Starts};

use gathered::{Gathered, TaskRows};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// One product of a sum: `rows` (m, k) times `columns` (k, n).
pub(crate) struct Term<'a, T> {
    rows: Rows<'a, T>,
    columns: Columns<'a, T>,
    k: usize,
    /// What both are rounded to. An odd k is not rounded.
    precision: Precision,
}

impl<'a, T: Kernel> Term<'a, T> {
    /// `rows` (m, k) times `columns` (k, n), unrounded.
    pub(crate) fn new(rows: Rows<'a, T>, columns: Columns<'a, T>, k: usize) -> Self {
        Self { rows, columns, k, precision: Precision::Full }
    }

    /// The same with factors rounded as `precision` says.
    pub(crate) fn rounded(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// What both are rounded to on a processor with `instructions`.
    fn precision(&self, instructions: Instructions) -> Precision {
        let rounds = T::ROUNDS && instructions.multiply_bf16() && self.k.is_multiple_of(2);
        if rounds { self.precision } else { Precision::Full }
    }

    /// 0..k in blocks of the same length, but for the last. Pairs of bf16 take as much room as one number, so that twice
    /// as many numbers fill a block.
    fn blocks(&self, instructions: Instructions) -> impl Iterator<Item = Range<usize>> + use<T> {
        let is_rounded = self.precision(instructions) == Precision::Bf16 && self.rows.k_stride == 1;
        let (most, k) = (if is_rounded { 2 * BLOCK_K } else { BLOCK_K }, self.k);
        let length = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(8).max(1);
        (0..k).step_by(length).map(move |start| start..k.min(start + length))
    }
}

/// What the sum starts from.
#[derive(Clone, Copy)]
pub(crate) enum Initial<'a, T> {
    Zero,
    /// The same `n` numbers for every row.
    Bias(&'a [T]),
    /// What `out` holds.
    Out,
}

/// Who works on a product: all cores, or only the calling thread (inside a parallel loop).
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cores {
    All,
    This,
}

/// Numbers of one block of `k`: a panel of 32 columns has 20 KB, which leaves the first cache room for the rows.
const BLOCK_K: usize = 160;
/// Rows of one task, at most: enough to pay for bringing the panel in order, few enough for the second cache.
const TASK_ROWS: usize = 512;
/// Panels of one task, at most: enough to pay for gathering the rows.
const TASK_PANELS: usize = 8;
/// Rows of one task, at least.
const FEWEST_TASK_ROWS: usize = 48;
/// Multiplications below which a second thread would take longer to wake up than the product takes.
const WORTH_A_THREAD: usize = 1 << 18;

/// Where the result goes: row i of `m` starts at `starts[i]`, and no two rows overlap.
pub(crate) struct Out<'a, T> {
    numbers: &'a mut [T],
    starts: Starts<'a>,
    rows: usize,
    cols: usize,
}

impl<'a, T> Out<'a, T> {
    /// Row-major without gaps.
    pub(crate) fn new(numbers: &'a mut [T], cols: usize) -> Self {
        let rows = numbers.len().checked_div(cols).unwrap_or(0);
        Self { numbers, starts: Starts::Every(cols), rows, cols }
    }

    /// Rows of `cols` numbers in the order of `starts`: a permutation of the rows of a matrix without gaps.
    pub(crate) fn permuted(numbers: &'a mut [T], starts: &'a [u32], cols: usize) -> Self {
        Self { numbers, starts: Starts::Table(starts), rows: starts.len(), cols }
    }
}

/// `out = initial + sum of terms`.
///
/// # Panics
/// If shapes and slices do not fit each other: a mistake of the caller, never of the user.
pub(crate) fn product<T: Kernel>(out: Out<T>, initial: Initial<T>, terms: &[Term<T>], cores: Cores) {
    product_on(Instructions::of_this_processor(), out, initial, terms, cores);
}

fn product_on<T: Kernel>(
    instructions: Instructions,
    out: Out<T>,
    initial: Initial<T>,
    terms: &[Term<T>],
    cores: Cores,
) {
    let Out { numbers, starts, rows: m, cols: n } = out;
    if m == 0 || n == 0 {
        return;
    }
    assert!(starts.fit(m, n, 1, numbers.len()), "{m} rows of {n} in {} numbers", numbers.len());
    for term in terms {
        assert!(term.rows.fit(m, term.k) && term.columns.fit(n, term.k), "a term of {m} x {} x {n}", term.k);
    }
    assert!(terms.iter().any(|term| term.k > 0), "a product of nothing");
    if let Initial::Bias(bias) = initial {
        assert_eq!(bias.len(), n, "bias");
    }
    let width = T::panel_width(instructions);
    let multiplications = m * n * terms.iter().map(|term| term.k).sum::<usize>();
    let alone = cores == Cores::This || multiplications < WORTH_A_THREAD;
    let cut = Cut::new(m, n.div_ceil(width), if alone { 1 } else { rayon::current_num_threads() });
    let job = Job { instructions, out: Writable::new(numbers), starts, initial, terms, width };
    let task = |i: usize| {
        let rows = i / cut.groups * cut.rows..m.min((i / cut.groups + 1) * cut.rows);
        let cols = i % cut.groups * cut.panels * width..n.min((i % cut.groups + 1) * cut.panels * width);
        // SAFETY: the assertions above; tasks are disjoint rectangles of rows that do not overlap.
        #[allow(unsafe_code)]
        unsafe {
            T::with_scratch(|scratch| job.run(rows, cols, scratch));
        }
    };
    let tasks = 0..m.div_ceil(cut.rows) * cut.groups;
    if alone { tasks.for_each(task) } else { tasks.into_par_iter().for_each(task) }
}

/// How a result is cut into tasks.
struct Cut {
    /// Rows of a task.
    rows: usize,
    /// Panels of a task.
    panels: usize,
    /// Tasks side by side.
    groups: usize,
}

impl Cut {
    /// Tasks alike in size, and several for every thread, as many for each, where there is enough to do.
    fn new(m: usize, panels: usize, threads: usize) -> Self {
        let enough = if threads == 1 { 1 } else { 4 * threads };
        let of = |blocks: usize, panels_each: usize| {
            let groups = panels.div_ceil(panels_each);
            Self { rows: m.div_ceil(blocks), panels: panels.div_ceil(groups), groups }
        };
        let tasks = |cut: &Self| m.div_ceil(cut.rows) * cut.groups;
        let most_blocks = m.div_ceil(TASK_ROWS).max(m / FEWEST_TASK_ROWS);
        let cuts = || {
            let blocks = m.div_ceil(TASK_ROWS)..=most_blocks;
            blocks.flat_map(|blocks| (1..=TASK_PANELS.min(panels)).rev().map(move |each| of(blocks, each)))
        };
        let is_even = |cut: &Self| tasks(cut).is_multiple_of(threads);
        let plenty = |cut: &Self| tasks(cut) >= enough;
        let best = cuts().find(|cut| plenty(cut) && is_even(cut)).or_else(|| cuts().find(plenty));
        best.unwrap_or_else(|| of(most_blocks, 1))
    }
}

/// Numbers that tasks write side by side.
pub(crate) struct Writable<'a, T> {
    first: *mut T,
    count: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever writes sees to it that no number is written by two.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for Writable<'_, T> {}

impl<'a, T> Writable<'a, T> {
    pub(crate) fn new(numbers: &'a mut [T]) -> Self {
        Self { first: numbers.as_mut_ptr(), count: numbers.len(), borrowed: PhantomData }
    }

    /// `count` numbers from `first` on.
    ///
    /// # Safety
    /// Nobody else holds any of them.
    #[allow(unsafe_code, clippy::mut_from_ref)] // that is what it is for
    pub(crate) unsafe fn part(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first + count <= self.count, "{count} of {} numbers from {first} on", self.count);
        // SAFETY: they lie in the borrowed slice, and nobody else holds them.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(first), count) }
    }
}

/// What a thread works in.
#[derive(Default)]
pub(crate) struct Scratch<T> {
    gathered: Gathered<T>,
    panels: Panels<T>,
}

struct Job<'a, T> {
    instructions: Instructions,
    out: Writable<'a, T>,
    starts: Starts<'a>,
    initial: Initial<'a, T>,
    terms: &'a [Term<'a, T>],
    width: usize,
}

impl<T: Kernel> Job<'_, T> {
    /// The rectangle `rows` x `cols` of the result.
    ///
    /// # Safety
    /// `rows` and `cols` lie in the result, operands hold what the terms ask for, nobody else touches the rectangle.
    #[allow(unsafe_code)]
    unsafe fn run(&self, rows: Range<usize>, cols: Range<usize>, Scratch { gathered, panels }: &mut Scratch<T>) {
        gathered.make_room(self.instructions, rows.len());
        panels.make_room(self.instructions, self.width, cols.len());
        let mut initial = self.initial;
        let parts = cols.len().div_ceil(self.width);
        let of_term = |term| Term::blocks(term, self.instructions).map(move |block| (term, block));
        let mut steps = self.terms.iter().flat_map(of_term).peekable();
        while let Some((term, block)) = steps.next() {
            let precision = term.precision(self.instructions);
            let task_rows = gathered.rows(&term.rows, rows.clone(), block.clone(), precision, parts);
            panels.fill(&term.columns, block, cols.clone(), precision);
            for i in 0..parts {
                if let Some((term, block)) = steps.peek() {
                    term.columns.fetch(block, &cols, i, parts);
                }
                // SAFETY: as this function's.
                unsafe { self.pass(task_rows, panels, i, precision, initial, rows.clone()) };
            }
            initial = Initial::Out;
        }
    }

    /// One block of `k` of a panel for all `rows`, tile by tile.
    ///
    /// # Safety
    /// As of [`Self::run`]; `task_rows` and panels are of `precision`.
    #[allow(unsafe_code)]
    unsafe fn pass(
        &self,
        task_rows: TaskRows<'_, T>,
        panels: &Panels<T>,
        panel: usize,
        precision: Precision,
        initial: Initial<T>,
        rows: Range<usize>,
    ) {
        let (panel, panel_width, first_col, cols) = panels.panel(panel);
        let start = match initial {
            Initial::Zero => Start::Zero,
            Initial::Out => Start::Out,
            Initial::Bias(bias) => Start::Bias(bias[first_col..first_col + cols].as_ptr()),
        };
        let tiles = rows.len().div_ceil(T::most_rows(self.instructions));
        let mut out = [std::ptr::null_mut(); kernel::HIGHEST];
        for i in 0..tiles {
            let tile = i * rows.len() / tiles..(i + 1) * rows.len() / tiles;
            if matches!(start, Start::Out) && task_rows.is_padding(tile.clone()) {
                continue;
            }
            for (out, row) in out.iter_mut().zip(tile.clone()) {
                // SAFETY: as this function's.
                *out = unsafe { self.out.part(self.starts.of(rows.start + row) + first_col, cols) }.as_mut_ptr();
            }
            let tile = Tile {
                rows: task_rows.row(tile.start),
                row_stride: task_rows.stride,
                k: task_rows.k,
                panel,
                panel_width,
                cols,
                out: &out[..tile.len()],
                start,
            };
            // SAFETY: rows and panel hold `k` numbers each, every out row `cols` numbers.
            unsafe {
                match precision {
                    Precision::Full => T::tile(self.instructions, &tile),
                    Precision::Bf16 => T::bf16_tile(self.instructions, &tile),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

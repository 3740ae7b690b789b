//! What the factors of a product are rounded to.

use super::Instructions;
use crate::ops::recompute::turned;
use std::cell::Cell;

/// What the factors of a term are rounded to before they are multiplied; sums are f32 or wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Nothing.
    Full,
    /// bf16, two products in one instruction. For terms of f32 with an even k.
    Bf16,
}

thread_local! {
    static IN_BF16: Cell<bool> = const { Cell::new(false) };
}

impl Precision {
    /// That of the operations that this thread makes.
    pub(crate) fn of_this_thread() -> Self {
        if IN_BF16.get() { Self::Bf16 } else { Self::Full }
    }
}

/// Whether this processor multiplies bf16 (AVX-512 BF16).
pub fn multiplies_bf16() -> bool {
    Instructions::of_this_processor().multiply_bf16()
}

/// Runs `f` with operations on f32 whose products with frozen weights, and of queries, keys and values, round their
/// factors to bf16, where the processor multiplies them; sums, norms and nonlinearities stay f32.
pub fn with_bf16_products<R>(f: impl FnOnce() -> R) -> R {
    turned(&IN_BF16, multiplies_bf16(), f)
}

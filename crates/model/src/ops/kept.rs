//! What recompute keeps of a segment besides its inputs: outputs that take long to compute and little room, such as those
//! of 3x3 convolutions and of attention over many tokens. The second pass is given them in the order of the first, and
//! computes only what lies between.
//!
//! What pays is known from the operation: multiplications per number of its output. `docs/speed.md` has what it brings.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::vec::IntoIter;

/// Multiplications per number of an output from which on it is kept.
const WORTH_KEEPING: usize = 1000;

/// Whether recompute keeps an output whose numbers take so many multiplications each.
pub(crate) fn is_worth_keeping(multiplications: usize) -> bool {
    multiplications >= WORTH_KEEPING
}

/// What forward leaves for backward besides the output.
pub(crate) type Left = Arc<OnceLock<CpuStorage>>;

/// What one operation left in the first pass.
pub(crate) struct Kept {
    output: Tensor,
    left: Left,
}

enum Tape {
    Off,
    Keeping(Vec<Kept>),
    Giving(IntoIter<Kept>),
}

thread_local! {
    static TAPE: RefCell<Tape> = const { RefCell::new(Tape::Off) };
}

/// Runs the first pass `f`, and returns what its operations left.
pub(crate) fn keeping<R>(f: impl FnOnce() -> R) -> (R, Vec<Kept>) {
    let (result, tape) = with_tape(Tape::Keeping(Vec::new()), f);
    (result, if let Tape::Keeping(kept) = tape { kept } else { Vec::new() })
}

/// Runs the second pass `f` with what the first one left; with nothing, everything is computed.
pub(crate) fn giving<R>(kept: Vec<Kept>, f: impl FnOnce() -> R) -> R {
    let tape = if kept.is_empty() { Tape::Off } else { Tape::Giving(kept.into_iter()) };
    with_tape(tape, f).0
}

/// Runs `f` with `tape`, and puts the one of before back, also if `f` panics.
fn with_tape<R>(tape: Tape, f: impl FnOnce() -> R) -> (R, Tape) {
    struct Restore(Tape);
    impl Drop for Restore {
        fn drop(&mut self) {
            TAPE.replace(std::mem::replace(&mut self.0, Tape::Off));
        }
    }
    let _before = Restore(TAPE.replace(tape));
    let result = f();
    (result, TAPE.replace(Tape::Off))
}

/// Runs an operation that takes so many multiplications per number of its output. `run` makes the operation from what the
/// first pass computed, if this is the second, and from where it puts what backward needs besides the output.
///
/// # Errors
/// As `run`; or if the second pass has more operations than the first.
pub(crate) fn kept(multiplications: usize, run: impl FnOnce(Given, Left) -> Result<Tensor>) -> Result<Tensor> {
    if !is_worth_keeping(multiplications) {
        return run(Given::default(), Left::default());
    }
    let from_first_pass = TAPE.with_borrow_mut(|tape| match tape {
        Tape::Giving(kept) => Some(kept.next()),
        Tape::Off | Tape::Keeping(_) => None,
    });
    match from_first_pass {
        Some(Some(Kept { output, left })) => return run(Given(Mutex::new(Some(output))), left),
        Some(None) => bail!("a segment ran more operations in its second pass than in its first"),
        None => {}
    }
    let left = Left::default();
    let output = run(Given::default(), left.clone())?;
    TAPE.with_borrow_mut(|tape| {
        if let Tape::Keeping(kept) = tape {
            kept.push(Kept { output: output.clone(), left });
        }
    });
    Ok(output)
}

/// An output from the first pass, to be handed over once.
#[derive(Default)]
pub(crate) struct Given(Mutex<Option<Tensor>>);

impl Given {
    /// Its numbers, if there are some: `count` of them.
    ///
    /// # Errors
    /// If the first pass was another operation: its output has another size.
    pub(crate) fn take(&self, count: usize) -> Result<Option<CpuStorage>> {
        let Some(output) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(None) };
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) if output.elem_count() == count => storage.try_clone(layout).map(Some),
            _ => bail!("a segment's second pass differs from its first"),
        }
    }
}

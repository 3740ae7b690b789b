//! Recompute ("gradient checkpointing", Chen et al. 2016, arXiv 1604.06174): a segment of the network runs without a
//! graph and keeps only its inputs, and the few outputs inside that are worth it (see [`super::kept`]); backward runs it
//! again with a graph, takes the gradients, and drops everything.
//!
//! Two traps that this file exists to avoid. The graph-free pass must see *detached* factors, or it records a graph
//! after all: [`without_graph`] tells the layers. And an operation whose inputs carry no gradient is not recorded, so a
//! segment that has factors but no tracked input gets its first input made a variable, or its factors never learn.

use super::kept::{Kept, giving, keeping};
use super::recorded::{InputGradients, recorded};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::LocalKey;

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
}

/// Whether layers on this thread should hand out their factors as variables.
pub fn is_recording() -> bool {
    RECORDING.get()
}

/// Runs `f` with all factors detached: no operation inside is recorded unless its inputs already have a graph.
pub fn without_graph<R>(f: impl FnOnce() -> R) -> R {
    turned_off(&RECORDING, f)
}

/// Runs `f` with a switch of this thread off.
pub(crate) fn turned_off<R>(switch: &'static LocalKey<Cell<bool>>, f: impl FnOnce() -> R) -> R {
    turned(switch, false, f)
}

/// Runs `f` with a switch of this thread at `to`, and puts it back as it was, also if `f` panics.
pub(crate) fn turned<T: Copy, R>(switch: &'static LocalKey<Cell<T>>, to: T, f: impl FnOnce() -> R) -> R {
    struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(switch, switch.replace(to));
    f()
}

/// A piece of the network that can be run twice.
pub trait Segment: Send + Sync {
    /// Its output. Must be a pure function of the inputs and of the factors.
    ///
    /// # Errors
    /// As the operations inside.
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor>;

    /// Whether it holds factors that learn.
    fn has_factors(&self) -> bool;

    /// Keeps the gradients of its factors out of `gradients`, which is dropped afterwards.
    ///
    /// # Errors
    /// As the additions inside.
    fn keep_gradients(&self, gradients: &GradStore) -> Result<()>;
}

/// Runs `segment` on `inputs`, of which at most three carry gradients, so that only the inputs are kept.
///
/// # Errors
/// As the segment's own operations; or if more than three inputs carry gradients.
pub fn recompute(segment: &Arc<dyn Segment>, inputs: &[&Tensor]) -> Result<Tensor> {
    let mut inputs: Vec<Tensor> = inputs.iter().map(|x| (*x).clone()).collect();
    let mut tracked: Vec<usize> = (0..inputs.len()).filter(|i| inputs[*i].track_op()).collect();
    if !is_recording() || (tracked.is_empty() && !segment.has_factors()) {
        return segment.forward(&inputs);
    }
    if tracked.is_empty() {
        inputs[0] = Var::from_tensor(&inputs[0])?.into_inner();
        tracked.push(0);
    }
    let detached: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let (output, kept) = keeping(|| without_graph(|| segment.forward(&detached)));
    let arguments: Vec<&Tensor> = tracked.iter().map(|i| &inputs[*i]).collect();
    let (segment, positions, kept) = (segment.clone(), tracked.clone(), Mutex::new(kept));
    recorded("recompute", &arguments, output?, move |dy| {
        let kept = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
        gradients(segment.as_ref(), &detached, kept, &positions, dy)
    })
}

/// Runs `segment` again with a graph. `tracked` are the positions of the inputs that carry gradients, `kept` is what the
/// first pass left.
fn gradients(
    segment: &dyn Segment,
    detached: &[Tensor],
    kept: Vec<Kept>,
    tracked: &[usize],
    dy: &Tensor,
) -> Result<InputGradients> {
    let mut inputs = detached.to_vec();
    for i in tracked {
        inputs[*i] = Var::from_tensor(&inputs[*i])?.into_inner();
    }
    let output = giving(kept, || segment.forward(&inputs))?;
    let gradients = seeded(&output, dy)?.backward()?;
    segment.keep_gradients(&gradients)?;
    Ok(tracked.iter().map(|i| gradients.get(&inputs[*i]).cloned()).collect())
}

/// A scalar whose gradient with respect to `output` is `dy`: how `backward`, which always starts from ones, is started
/// from an upstream gradient, without a product that would round or be kept.
fn seeded(output: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (scalar, dy) = (Tensor::zeros((), output.dtype(), output.device())?, dy.clone());
    recorded("seed", &[output], scalar, move |_| Ok(vec![Some(dy.clone())]))
}

//! Recompute ("gradient checkpointing", Chen et al. 2016, arXiv 1604.06174): a segment of the network runs without a
//! graph and keeps only its inputs; backward runs it again with a graph, takes the gradients, and drops everything.
//!
//! Two traps that this file exists to avoid. The graph-free pass must see *detached* factors, or it records a graph
//! after all: [`without_graph`] tells the layers. And an operation whose inputs carry no gradient is not recorded, so a
//! segment that has factors but no tracked input gets its first input made a variable, or its factors never learn.

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, Var, bail};
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

/// Runs `f` with a switch of this thread off, and puts it back as it was, also if `f` panics.
pub(crate) fn turned_off<R>(switch: &'static LocalKey<Cell<bool>>, f: impl FnOnce() -> R) -> R {
    struct Restore(&'static LocalKey<Cell<bool>>, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(switch, switch.replace(false));
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
    let kept: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let output = without_graph(|| segment.forward(&kept))?.contiguous()?;
    let op = Recompute { segment: segment.clone(), kept, tracked, output: Mutex::new(Some(output)) };
    match op.tracked[..] {
        [i] => inputs[i].apply_op1(op),
        [i, j] => inputs[i].apply_op2(&inputs[j], op),
        [i, j, k] => inputs[i].apply_op3(&inputs[j], &inputs[k], op),
        _ => bail!("a recomputed segment has {} inputs with gradients, at most 3 are possible", op.tracked.len()),
    }
}

struct Recompute {
    segment: Arc<dyn Segment>,
    /// The inputs, without a graph.
    kept: Vec<Tensor>,
    /// Which of them carry gradients, in the order of the operation's arguments.
    tracked: Vec<usize>,
    /// Computed before the operation is recorded, and handed over in its forward.
    output: Mutex<Option<Tensor>>,
}

impl Recompute {
    fn output(&self) -> Result<(CpuStorage, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(output) = output else { bail!("a recomputed segment was recorded twice") };
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            // `output` is contiguous and whole, so the storage is exactly its elements.
            Storage::Cpu(storage) if layout.start_offset() == 0 => {
                Ok((storage.try_clone(layout)?, output.shape().clone()))
            }
            _ => bail!("recompute has no forward for the device of its input"),
        }
    }

    fn gradients(&self, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut inputs = self.kept.clone();
        for i in &self.tracked {
            inputs[*i] = Var::from_tensor(&inputs[*i])?.into_inner();
        }
        let output = self.segment.forward(&inputs)?;
        let gradients = output.apply_op1(Seed(dy.clone()))?.backward()?;
        drop(output);
        self.segment.keep_gradients(&gradients)?;
        Ok(self.tracked.iter().map(|i| gradients.get(&inputs[*i]).cloned()).collect())
    }
}

impl CustomOp1 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(&self, _: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(dy)?.swap_remove(0))
    }
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(dy)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl CustomOp3 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.output()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients(dy)?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}

/// A scalar whose gradient with respect to its input is the given one: how `backward`, which always starts from ones,
/// is started from an upstream gradient, without a product that would round or be kept.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _y: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

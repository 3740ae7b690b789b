//! LoRA in the network: which layers get factors, the factors themselves, and their gradients.
//!
//! W x becomes W x + (alpha / r) B A x with A (r, in) and B (out, r), W frozen (Hu et al. 2021, arXiv 2106.09685).
//! Factors are f32 whatever the dtype of the base. A set of factors is ordered by kohya's module names, so that a sum
//! over all of them is the same in every run.

use crate::dropout;
use crate::error::ModelError;
use crate::ops::{LoraScale, Segment, is_recording, turned_off};
use crate::weights::Result;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use loralei_adapter::keys::{Leaf, kohya_key, kohya_module};
use loralei_adapter::{Adapter, Array, LoraModule};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static FACTORS_ARE_ON: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f` on this thread with the networks as if they had no factors: what the frozen base would do.
pub fn without_factors<R>(f: impl FnOnce() -> R) -> R {
    turned_off(&FACTORS_ARE_ON, f)
}

/// The factors that a layer is to add now, if it has some and they are not turned off.
pub(crate) fn active(factors: Option<&Arc<LoraFactors>>) -> Option<&Arc<LoraFactors>> {
    factors.filter(|factors| FACTORS_ARE_ON.get() && factors.strength() != 0.0)
}

/// The low-rank factors of one layer.
pub struct LoraFactors {
    path: String,
    module: String,
    down: Var, // A: (r, in) or (r, in, kh, kw)
    up: Var,   // B: (out, r) or (out, r, 1, 1)
    alpha: f32,
    /// Whether A stays as it is: then it has no gradient, and no optimizer sees it.
    has_fixed_down: bool,
    /// Bits of an f32 that multiplies what the factors add.
    strength: AtomicU32,
    /// Gradients of A, unless it is fixed, and B that a recomputed segment has already taken.
    kept: Mutex<Option<(Option<Tensor>, Tensor)>>,
}

impl LoraFactors {
    /// Where the layer is in its network, as `mid_block.attentions.0.proj_in`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// kohya's name of the module, as `lora_unet_mid_block_attentions_0_proj_in`.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The numerator of the scale.
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// Shapes of A and B.
    pub fn shapes(&self) -> (Vec<usize>, Vec<usize>) {
        (self.down.dims().to_vec(), self.up.dims().to_vec())
    }

    /// alpha / r, times the strength.
    pub fn scale(&self) -> f64 {
        f64::from(self.alpha) / self.rank() as f64 * f64::from(self.strength())
    }

    /// What x A^T is multiplied with now, for rows of shape `rows`, of which the first axis is the samples: the scale, and the
    /// mask of what is left out.
    ///
    /// # Errors
    /// If there is no memory for the mask.
    pub(crate) fn scale_of(&self, rows: &[usize], device: &Device) -> candle_core::Result<LoraScale> {
        let mask = dropout::mask(&self.module, rows, self.rank(), device)?;
        Ok(mask.map_or_else(|| self.scale().into(), |mask| LoraScale::masked(self.scale(), &mask)))
    }

    fn strength(&self) -> f32 {
        f32::from_bits(self.strength.load(Ordering::Relaxed))
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.down.dims()[0]
    }

    /// A where it does not learn: (r, in) or (r, in, kh, kw).
    pub fn fixed_down(&self) -> Option<Tensor> {
        self.has_fixed_down.then(|| self.down.as_detached_tensor())
    }

    /// Whether the layer is a convolution that looks at more than one pixel.
    pub(crate) fn has_wide_kernel(&self) -> bool {
        self.down.dims()[2..].iter().any(|side| *side > 1)
    }

    /// (A, B): variables while a graph is recorded, plain tensors otherwise, as a fixed A always is.
    pub(crate) fn tensors(&self) -> (Tensor, Tensor) {
        if is_recording() && self.has_fixed_down {
            (self.down.as_detached_tensor(), self.up.as_tensor().clone())
        } else if is_recording() {
            (self.down.as_tensor().clone(), self.up.as_tensor().clone())
        } else {
            (self.down.as_detached_tensor(), self.up.as_detached_tensor())
        }
    }

    fn keep(&self, gradients: &GradStore) -> candle_core::Result<()> {
        let Some(up) = gradients.get(&self.up) else { return Ok(()) };
        let down = gradients.get(&self.down);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(match kept.take() {
            None => (down.cloned(), up.clone()),
            Some((d, u)) => (d.zip(down).map(|(d, down)| d + down).transpose()?, (u + up)?),
        });
        Ok(())
    }
}

/// What a layer looks like to LoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerShape {
    /// A linear layer.
    Linear {
        /// Inputs.
        num_in: usize,
        /// Outputs.
        num_out: usize,
    },
    /// A convolution with a square kernel.
    Conv2d {
        /// Channels in.
        num_in: usize,
        /// Channels out.
        num_out: usize,
        /// Side of the kernel.
        kernel: usize,
    },
}

impl LayerShape {
    /// Shapes of A and B at a rank, as files have them.
    pub fn factor_shapes(self, rank: usize) -> (Vec<usize>, Vec<usize>) {
        match self {
            Self::Linear { num_in, num_out } => (vec![rank, num_in], vec![num_out, rank]),
            Self::Conv2d { num_in, num_out, kernel } => (vec![rank, num_in, kernel, kernel], vec![num_out, rank, 1, 1]),
        }
    }
}

/// Which layers of one component get factors, by the path of their module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// No layer.
    None,
    /// U-Net: q, k, v, out of every attention. Text encoder: the four attention projections.
    Attention,
    /// U-Net: q, k, v, out of the attentions to the text.
    CrossAttention,
    /// kohya's set: attention, feed-forward, proj_in and proj_out; text encoder: attention and MLP.
    Full,
    /// Patterns over module paths, in which `*` stands for any run of characters.
    Patterns(Vec<String>),
}

const ATTENTION: [&str; 8] = [
    "*.transformer_blocks.*.attn?.to_q",
    "*.transformer_blocks.*.attn?.to_k",
    "*.transformer_blocks.*.attn?.to_v",
    "*.transformer_blocks.*.attn?.to_out.0",
    "*.self_attn.q_proj",
    "*.self_attn.k_proj",
    "*.self_attn.v_proj",
    "*.self_attn.out_proj",
];
const CROSS_ATTENTION: [&str; 4] = [
    "*.transformer_blocks.*.attn2.to_q",
    "*.transformer_blocks.*.attn2.to_k",
    "*.transformer_blocks.*.attn2.to_v",
    "*.transformer_blocks.*.attn2.to_out.0",
];
const FEED_FORWARD: [&str; 6] = [
    "*.transformer_blocks.*.ff.net.0.proj",
    "*.transformer_blocks.*.ff.net.2",
    "*.attentions.*.proj_in",
    "*.attentions.*.proj_out",
    "*.mlp.fc1",
    "*.mlp.fc2",
];

impl Targets {
    /// The set's name, or the patterns.
    pub(crate) fn patterns(&self) -> Vec<&str> {
        match self {
            Self::None => Vec::new(),
            Self::Attention => ATTENTION.to_vec(),
            Self::CrossAttention => CROSS_ATTENTION.to_vec(),
            Self::Full => ATTENTION.iter().chain(&FEED_FORWARD).copied().collect(),
            Self::Patterns(patterns) => patterns.iter().map(String::as_str).collect(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Attention => "attention",
            Self::CrossAttention => "cross-attention",
            Self::Full => "full",
            Self::Patterns(_) => "patterns",
        }
    }
}

/// Whether `pattern`, in which `*` stands for any run of characters and `?` for one, is the path of a module.
pub fn matches_path(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.as_bytes(), path.as_bytes());
    // The last star, and where in the path it was met: if the rest fails, the star takes one character more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.first(), path.first()) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                pattern = &pattern[1..];
                retry = Some((pattern, path));
                continue;
            }
            (Some(p), Some(c)) if *p == b'?' || p == c => {
                (pattern, path) = (&pattern[1..], &path[1..]);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((after_star, at)) if !at.is_empty() => {
                (pattern, path) = (after_star, &at[1..]);
                retry = Some((after_star, path));
            }
            _ => return false,
        }
    }
}

/// The first values of one layer's factors.
pub struct FactorValues {
    /// A, of the first shape of [`LayerShape::factor_shapes`].
    pub down: Vec<f32>,
    /// B, of the second.
    pub up: Vec<f32>,
    /// The numerator of the scale.
    pub alpha: f32,
    /// r, at least 1.
    pub rank: usize,
}

/// Gives a layer's first values: kohya's module name and the layer's shape.
pub type Initialize<'a> = Box<dyn Fn(&str, LayerShape) -> FactorValues + 'a>;

/// The same by block: the place in the list of the first block that matches the layer, if one does. `None` gives the layer no
/// factors.
pub type InitializeByBlock<'a> = Box<dyn Fn(&str, LayerShape, Option<usize>) -> Option<FactorValues> + 'a>;

enum Wanted {
    Targets {
        targets: Targets,
        blocks: Vec<String>,
        initialize: InitializeByBlock<'static>,
        matched: RefCell<BTreeSet<usize>>,
        matched_blocks: RefCell<BTreeSet<usize>>,
    },
    Adapter(BTreeMap<String, LoraModule>),
    /// Modules that become part of the weights, and the paths where they did.
    Merged(BTreeMap<String, LoraModule>, RefCell<BTreeSet<String>>),
}

/// The factors of one component of the network, made while it is built.
pub struct Injection {
    /// kohya's prefix of the component, as `lora_unet_`.
    prefix: String,
    wanted: Wanted,
    has_fixed_down: bool,
    /// By path of the module.
    made: RefCell<BTreeMap<String, Arc<LoraFactors>>>,
    /// Modules of the adapter that nobody will ask for.
    left_out: RefCell<BTreeSet<String>>,
}

impl Injection {
    /// New factors for `targets`, with first values by `initialize`. `prefix` is the component's in kohya's names.
    pub fn new(prefix: &str, targets: Targets, initialize: Initialize<'static>) -> Self {
        let initialize = move |module: &str, shape: LayerShape, _| Some(initialize(module, shape));
        Self::by_block(prefix, targets, Vec::new(), Box::new(initialize))
    }

    /// The same for layers that differ: `blocks` are patterns over the paths of modules, of which the first that matches a
    /// layer counts.
    pub fn by_block(
        prefix: &str,
        targets: Targets,
        blocks: Vec<String>,
        initialize: InitializeByBlock<'static>,
    ) -> Self {
        let (matched, matched_blocks) = (RefCell::default(), RefCell::default());
        let wanted = Wanted::Targets { targets, blocks, initialize, matched, matched_blocks };
        Self::of(prefix, wanted)
    }

    fn of(prefix: &str, wanted: Wanted) -> Self {
        let (made, left_out) = (RefCell::default(), RefCell::default());
        Self { prefix: prefix.to_owned(), wanted, has_fixed_down: false, made, left_out }
    }

    /// The same with an A that stays as it is: only B learns.
    #[must_use]
    pub fn with_fixed_down(self) -> Self {
        Self { has_fixed_down: true, ..self }
    }

    /// The factors of an adapter: its modules that carry the component's `prefix`.
    pub fn from_adapter(prefix: &str, adapter: &Adapter) -> Self {
        let wanted = Wanted::Adapter(modules_of(prefix, adapter));
        Self::of(prefix, wanted)
    }

    /// The same modules added to the weights while these are loaded: nothing is left to turn off or to learn.
    pub fn merging(prefix: &str, adapter: &Adapter) -> Self {
        let wanted = Wanted::Merged(modules_of(prefix, adapter), RefCell::default());
        Self::of(prefix, wanted)
    }

    /// Lets pass those modules of an adapter for which the network, as it is built, has no layer.
    pub(crate) fn leave_out(&self, is_left_out: impl Fn(&str) -> bool) {
        if let Wanted::Adapter(modules) | Wanted::Merged(modules, _) = &self.wanted {
            self.left_out.borrow_mut().extend(modules.keys().filter(|module| is_left_out(module)).cloned());
        }
    }

    /// What a merged adapter adds to the weight (out, in, ..) of the layer at `path`, row-major.
    pub(crate) fn merged(&self, path: &str, shape: LayerShape) -> Result<Option<Vec<f32>>> {
        let Wanted::Merged(modules, merged) = &self.wanted else { return Ok(None) };
        let module = kohya_module(&self.prefix, path);
        let Some(found) = modules.get(&module) else { return Ok(None) };
        check_shape(found, shape, &module)?;
        merged.borrow_mut().insert(module);
        Ok(Some(found.delta().data))
    }

    /// The factors for the layer at `path`, if it is to have some.
    pub(crate) fn factors(&self, path: &str, shape: LayerShape, device: &Device) -> Result<Option<Arc<LoraFactors>>> {
        let module = kohya_module(&self.prefix, path);
        let values = match &self.wanted {
            Wanted::Targets { targets, blocks, initialize, matched, matched_blocks } => {
                let patterns = targets.patterns();
                let hits = (0..patterns.len()).filter(|i| matches_path(patterns[*i], path)).collect::<Vec<_>>();
                if hits.is_empty() {
                    return Ok(None);
                }
                matched.borrow_mut().extend(hits);
                let block = blocks.iter().position(|pattern| matches_path(pattern, path));
                matched_blocks.borrow_mut().extend(block);
                let Some(values) = initialize(&module, shape, block) else { return Ok(None) };
                values
            }
            Wanted::Adapter(modules) => {
                let Some(found) = modules.get(&module) else { return Ok(None) };
                let rank = found.rank();
                check_shape(found, shape, &module)?;
                let (down, up) = (found.down.data.clone(), found.up.data.clone());
                FactorValues { down, up, alpha: found.alpha.unwrap_or(rank as f32), rank }
            }
            Wanted::Merged(..) => return Ok(None),
        };
        let (down_shape, up_shape) = shape.factor_shapes(values.rank);
        let var = |values, shape: Vec<usize>| Var::from_tensor(&Tensor::from_vec(values, shape, device)?);
        let factors = Arc::new(LoraFactors {
            path: path.to_owned(),
            module,
            down: var(values.down, down_shape)?,
            up: var(values.up, up_shape)?,
            alpha: values.alpha,
            has_fixed_down: self.has_fixed_down,
            strength: AtomicU32::new(1f32.to_bits()),
            kept: Mutex::default(),
        });
        self.made.borrow_mut().insert(path.to_owned(), factors.clone());
        Ok(Some(factors))
    }

    pub(crate) fn below(&self, path: &str) -> Vec<Arc<LoraFactors>> {
        let inside = |name: &str| name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.made.borrow().iter().filter(|(name, _)| path.is_empty() || inside(name)).map(|(_, f)| f.clone()).collect()
    }

    /// The factors that were made, once the network is built.
    ///
    /// # Errors
    /// A pattern that matched no layer, or only those of earlier blocks; a set that matched none at all; a module of the
    /// adapter that fits none.
    pub fn finish(self, component: &str) -> Result<Vec<Arc<LoraFactors>>> {
        let made: Vec<Arc<LoraFactors>> = self.made.into_inner().into_values().collect();
        let left_out = self.left_out.into_inner();
        match self.wanted {
            Wanted::Targets { targets, blocks, matched, matched_blocks, .. } => {
                let (matched, matched_blocks, patterns) =
                    (matched.into_inner(), matched_blocks.into_inner(), targets.patterns());
                let idle = match &targets {
                    Targets::Patterns(_) => (0..patterns.len()).find(|i| !matched.contains(i)).map(|i| patterns[i]),
                    Targets::None => None,
                    set => matched.is_empty().then_some(set.name()),
                };
                let idle_block = (0..blocks.len()).find(|i| !matched_blocks.contains(i)).map(|i| blocks[i].as_str());
                let idle = idle.or(idle_block);
                if let Some(pattern) = idle {
                    let (pattern, component) = (pattern.to_owned(), component.to_owned());
                    return Err(ModelError::NothingMatched { pattern, component });
                }
            }
            Wanted::Adapter(modules) => {
                let names: BTreeSet<&str> =
                    made.iter().map(|f| f.module()).chain(left_out.iter().map(String::as_str)).collect();
                if let Some(key) = modules.into_keys().find(|name| !names.contains(name.as_str())) {
                    return Err(ModelError::ForeignAdapter { key });
                }
            }
            Wanted::Merged(modules, merged) => {
                let is_foreign = |name: &String| !merged.borrow().contains(name) && !left_out.contains(name);
                if let Some(key) = modules.into_keys().find(is_foreign) {
                    return Err(ModelError::ForeignAdapter { key });
                }
            }
        }
        Ok(made)
    }
}

fn modules_of(prefix: &str, adapter: &Adapter) -> BTreeMap<String, LoraModule> {
    let modules = adapter.modules.iter().filter(|(name, _)| name.starts_with(prefix));
    modules.map(|(name, module)| (name.clone(), module.clone())).collect()
}

fn check_shape(module: &LoraModule, shape: LayerShape, name: &str) -> Result<()> {
    let (down, up) = shape.factor_shapes(module.rank());
    let fits = |array: &Array, shape: &[usize]| array.data.len() == shape.iter().product::<usize>();
    if fits(&module.down, &down) && fits(&module.up, &up) {
        return Ok(());
    }
    Err(ModelError::ForeignAdapter { key: name.to_owned() })
}

/// All factors of a run, by kohya's names: what the optimizer moves and the file holds.
#[derive(Clone, Default)]
pub struct AdapterSet {
    factors: BTreeMap<String, Arc<LoraFactors>>,
}

impl AdapterSet {
    /// The factors of all components together.
    pub fn new(factors: impl IntoIterator<Item = Arc<LoraFactors>>) -> Self {
        Self { factors: factors.into_iter().map(|f| (f.module.clone(), f)).collect() }
    }

    /// Number of modules.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whether there is no module at all.
    pub fn is_empty(&self) -> bool {
        self.factors.is_empty()
    }

    /// Whether there are factors for kohya's `module`.
    pub fn contains(&self, module: &str) -> bool {
        self.factors.contains_key(module)
    }

    /// The factors of every module, by kohya's names.
    pub fn modules(&self) -> impl Iterator<Item = &LoraFactors> {
        self.factors.values().map(AsRef::as_ref)
    }

    /// The path of the layer whose factor has this `key` in the file.
    pub fn path_of(&self, key: &str) -> Option<&str> {
        let module = key.split_once('.').map_or(key, |(module, _)| module);
        self.factors.get(module).map(|factors| factors.path())
    }

    /// Multiplies what every factor adds: 1 as trained, 0 nothing, negative pushes the other way.
    pub fn set_strength(&self, strength: f32) {
        self.factors.values().for_each(|f| f.strength.store(strength.to_bits(), Ordering::Relaxed));
    }

    /// Every factor that learns under its key in the file, as `MODULE.lora_down.weight`: all but a fixed A.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let named = self.factors.iter().flat_map(|(module, f)| {
            let down = (!f.has_fixed_down).then(|| (kohya_key(module, Leaf::Down), f.down.clone()));
            down.into_iter().chain([(kohya_key(module, Leaf::Up), f.up.clone())])
        });
        named.collect()
    }

    /// The gradients of one backward pass under the same keys, those of recomputed segments included; what was kept
    /// for them is given up. A factor that got no gradient is absent.
    ///
    /// # Errors
    /// As the additions inside.
    pub fn take_gradients(&self, gradients: &GradStore) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (module, factors) in &self.factors {
            factors.keep(gradients)?;
            if let Some((down, up)) = factors.kept.lock().unwrap_or_else(PoisonError::into_inner).take() {
                all.extend(down.map(|down| (kohya_key(module, Leaf::Down), down)));
                all.insert(kohya_key(module, Leaf::Up), up);
            }
        }
        Ok(all)
    }

    /// Gives every factor the values of `adapter`, whose modules have the same names and shapes. What it adds stays what the
    /// adapter adds: B takes up where the scales alpha / r differ.
    ///
    /// # Errors
    /// [`ModelError::ForeignAdapter`] with the first module that only one side has, or of another shape.
    pub fn set_values(&self, adapter: &Adapter) -> Result<()> {
        let foreign = |key: &str| ModelError::ForeignAdapter { key: key.to_owned() };
        if let Some(strange) = adapter.modules.keys().find(|module| !self.contains(module)) {
            return Err(foreign(strange));
        }
        for (module, factors) in &self.factors {
            let given = adapter.modules.get(module).ok_or_else(|| foreign(module))?;
            let ratio = f64::from(given.alpha.unwrap_or(given.rank() as f32)) / f64::from(factors.alpha);
            let set = |var: &Var, array: &Array, ratio: f64| -> Result<()> {
                if var.elem_count() != array.data.len() {
                    return Err(foreign(module));
                }
                let scaled = |x: &f32| (f64::from(*x) * ratio) as f32;
                let values = Tensor::from_vec(array.data.iter().map(scaled).collect(), var.shape(), var.device())?;
                Ok(var.set(&values)?)
            };
            set(&factors.down, &given.down, 1.0)?;
            set(&factors.up, &given.up, ratio)?;
        }
        Ok(())
    }

    /// The factors as an adapter, without metadata.
    ///
    /// # Errors
    /// If a factor cannot be copied to the host.
    pub fn to_adapter(&self) -> candle_core::Result<Adapter> {
        let array = |var: &Var| -> candle_core::Result<Array> {
            Ok(Array { shape: var.dims().to_vec(), data: var.as_detached_tensor().flatten_all()?.to_vec1()? })
        };
        let modules = self.factors.iter().map(|(module, f)| {
            Ok((module.clone(), LoraModule { down: array(&f.down)?, up: array(&f.up)?, alpha: Some(f.alpha) }))
        });
        Ok(Adapter { modules: modules.collect::<candle_core::Result<_>>()?, metadata: BTreeMap::new() })
    }
}

/// A block of the network with the factors inside it, as recompute wants it.
pub(crate) struct Block<F> {
    pub(crate) forward: F,
    pub(crate) factors: Vec<Arc<LoraFactors>>,
}

impl<F: Fn(&[Tensor]) -> candle_core::Result<Tensor> + Send + Sync> Segment for Block<F> {
    fn forward(&self, inputs: &[Tensor]) -> candle_core::Result<Tensor> {
        (self.forward)(inputs)
    }

    fn has_factors(&self) -> bool {
        !self.factors.is_empty()
    }

    fn keep_gradients(&self, gradients: &GradStore) -> candle_core::Result<()> {
        self.factors.iter().try_for_each(|f| f.keep(gradients))
    }
}

#[cfg(test)]
mod tests {
    use super::matches_path;

    #[test]
    fn patterns_match_whole_paths() {
        let path = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0";
        for pattern in ["*", path, "*.attn2.*", "down_blocks.*.to_out.0", "*.attn?.to_out.0", "*0*1*2*0"] {
            assert!(matches_path(pattern, path), "{pattern}");
        }
        for pattern in ["", "attn2", "*.attn2", "*.attn2.to_out", "up_blocks.*", "*.attn?to_out.0", "?"] {
            assert!(!matches_path(pattern, path), "{pattern}");
        }
    }
}

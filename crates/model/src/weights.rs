//! From the tensors of a file to the layers of a network: every tensor is asked for by name and shape, and what nobody
//! asked for is an error. Instead of a file there may be random numbers.
//!
//! A [`Weights`] stands at one place in the network, as the name of a module does; `weights.at("attn1").at("to_q")` is
//! the module `attn1.to_q`. It also carries the [`Injection`], so that a layer gets its LoRA factors where it is made.

use crate::error::ModelError;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::lora::{Injection, LayerShape, LoraFactors};
use crate::number_types::{NumberTypes, WeightType};
use crate::ops::{ConvGeometry, FrozenMatrix};
use crate::random_weights::RandomWeights;
use crate::stored_weight::{StoredWeight, Unusable};
use crate::weight_files::WeightFiles;
use candle_core::{DType, Device, Tensor};
use loralei_adapter::TensorBytes;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;

/// One place in a weight file.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a Source<'a>,
    path: String,
}

/// What all places of one file share.
pub struct Source<'a> {
    origin: Origin<'a>,
    types: NumberTypes,
    device: Device,
    asked: RefCell<BTreeSet<String>>,
    injection: Option<&'a Injection>,
}

/// Where numbers come from.
enum Origin<'a> {
    Files(&'a WeightFiles),
    Random(RandomWeights),
}

impl<'a> Source<'a> {
    /// Tensors of `files` in `types` (one [`DType`] stands for both) on `device`, with factors where `injection` says.
    pub fn new(
        files: &'a WeightFiles,
        types: impl Into<NumberTypes>,
        device: &Device,
        injection: Option<&'a Injection>,
    ) -> Self {
        Self::of(Origin::Files(files), types.into(), device, injection)
    }

    /// Whatever is asked for, with random numbers, as if they were f32 in a file: for measuring a network of a size
    /// without having it. Nothing is merged into them.
    pub fn random(seed: u64, types: impl Into<NumberTypes>, device: &Device, injection: Option<&'a Injection>) -> Self {
        Self::of(Origin::Random(RandomWeights::new(seed)), types.into(), device, injection)
    }

    fn of(origin: Origin<'a>, types: NumberTypes, device: &Device, injection: Option<&'a Injection>) -> Self {
        Self { origin, types, device: device.clone(), asked: RefCell::default(), injection }
    }

    /// The root of the network.
    pub fn root(&'a self) -> Weights<'a> {
        Weights { source: self, path: String::new() }
    }

    /// Complains about tensors that no layer asked for, but for names that `ignore` knows.
    ///
    /// # Errors
    /// [`ModelError::UnexpectedTensors`].
    pub fn finish(&self, ignore: impl Fn(&str) -> bool) -> Result<()> {
        let Origin::Files(files) = self.origin else { return Ok(()) };
        let asked = self.asked.borrow();
        let mut unexpected = files.names().filter(|name| !asked.contains(*name) && !ignore(name));
        match unexpected.next() {
            None => Ok(()),
            Some(first) => Err(ModelError::UnexpectedTensors {
                file: files.path().display().to_string(),
                count: 1 + unexpected.count(),
                key: first.to_owned(),
            }),
        }
    }
}

impl Weights<'_> {
    /// The module `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { source: self.source, path }
    }

    /// The path of this module, as diffusers names it.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn key(&self, name: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{name}", self.path)
    }

    /// Number type of the activations.
    pub fn dtype(&self) -> DType {
        self.source.types.activations
    }

    /// The tensor `name` of this module in the activations' type. It must have `shape`, or the same with two trailing
    /// ones.
    ///
    /// # Errors
    /// A missing tensor, another shape, a number that is not finite or too large for the type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.load(name, shape, WeightType::Exactly(self.dtype()), None)
    }

    /// The weight (out, in) of this linear layer as such are kept, with what an adapter that is to be merged adds. It may
    /// stand as a 1x1 kernel in the file.
    fn matrix(&self, num_in: usize, num_out: usize) -> Result<FrozenMatrix> {
        let (source, shape, layer) = (self.source, [num_out, num_in], LayerShape::Linear { num_in, num_out });
        let wanted = source.types.weights;
        if wanted != WeightType::Int8 {
            return Ok(self.load("weight", &shape, wanted, Some(layer))?.into());
        }
        let key = self.key("weight");
        let matrix = match &source.origin {
            Origin::Files(files) => {
                let stored = self.stored(files, &key, &shape, Some(layer))?;
                stored.read_int8().map_err(|reason| unusable(reason, files, &key))?
            }
            Origin::Random(random) => random.int8(&key, num_out, num_in)?,
        };
        source.asked.borrow_mut().insert(key);
        Ok(matrix.to_device(&source.device)?)
    }

    /// The kernel (out, kh, kw, in) of this convolution as such are kept, with what an adapter that is to be merged adds. A
    /// 1x1 kernel may stand as a matrix in the file.
    fn kernel(&self, num_in: usize, num_out: usize, kernel: usize) -> Result<Tensor> {
        let (shape, layer) = ([num_out, num_in, kernel, kernel], LayerShape::Conv2d { num_in, num_out, kernel });
        self.load("weight", &shape, self.source.types.kernels(), Some(layer))
    }

    /// `shape` is that of the file; the weight of a `layer` is turned.
    fn load(&self, name: &str, shape: &[usize], wanted: WeightType, layer: Option<LayerShape>) -> Result<Tensor> {
        let (key, source) = (self.key(name), self.source);
        let tensor = match &source.origin {
            Origin::Files(files) => {
                let stored = self.stored(files, &key, shape, layer)?;
                let tensor = stored.read(wanted).map_err(|reason| unusable(reason, files, &key))?;
                tensor.to_device(&source.device)?
            }
            Origin::Random(random) => {
                let dtype = match wanted {
                    WeightType::Half | WeightType::Int8 => DType::F16,
                    WeightType::Exactly(dtype) => dtype,
                };
                random.tensor(&key, &turned(shape, layer).0, dtype, &source.device)?
            }
        };
        source.asked.borrow_mut().insert(key);
        Ok(tensor)
    }

    /// The tensor `key` of a file, not read yet.
    fn stored<'f>(
        &self,
        files: &'f WeightFiles,
        key: &str,
        shape: &[usize],
        layer: Option<LayerShape>,
    ) -> Result<StoredWeight<'f>> {
        let bytes = in_file(files, key, shape)?;
        let addend = match (self.source.injection, layer) {
            (Some(injection), Some(layer)) => injection.merged(&self.path, layer)?,
            _ => None,
        };
        let (shape, pixels) = turned(shape, layer);
        Ok(StoredWeight { bytes, shape, pixels, addend })
    }

    fn bias(&self, size: usize, wanted: bool) -> Result<Option<Tensor>> {
        wanted.then(|| self.tensor("bias", &[size])).transpose()
    }

    /// The factors that the run wants for this layer, if any.
    fn factors(&self, shape: LayerShape) -> Result<Option<Arc<LoraFactors>>> {
        match self.source.injection {
            Some(injection) => injection.factors(&self.path, shape, &self.source.device),
            None => Ok(None),
        }
    }

    /// All factors made so far at or below this module.
    pub fn factors_below(&self) -> Vec<Arc<LoraFactors>> {
        self.source.injection.map(|injection| injection.below(&self.path)).unwrap_or_default()
    }

    /// A linear layer `num_in` -> `num_out`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn linear(&self, num_in: usize, num_out: usize, bias: bool) -> Result<Linear> {
        let shape = LayerShape::Linear { num_in, num_out };
        Ok(Linear {
            weight: self.matrix(num_in, num_out)?,
            bias: self.bias(num_out, bias)?,
            lora: self.factors(shape)?,
        })
    }

    /// A linear layer `num_in` -> `num_out` without bias, which never has factors.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn linear_without_factors(&self, num_in: usize, num_out: usize) -> Result<Linear> {
        Ok(Linear { weight: self.matrix(num_in, num_out)?, bias: None, lora: None })
    }

    /// A convolution `num_in` -> `num_out` with bias.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn conv2d(&self, num_in: usize, num_out: usize, kernel: usize, geometry: ConvGeometry) -> Result<Conv2d> {
        let shape = LayerShape::Conv2d { num_in, num_out, kernel };
        Ok(Conv2d {
            weight: self.kernel(num_in, num_out, kernel)?,
            bias: self.bias(num_out, true)?,
            geometry,
            lora: self.factors(shape)?,
        })
    }

    /// A group norm over `channels`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn group_norm(&self, channels: usize, groups: usize, eps: f64) -> Result<GroupNorm> {
        let (weight, bias) = (self.tensor("weight", &[channels])?, self.tensor("bias", &[channels])?);
        Ok(GroupNorm { weight, bias, groups, eps })
    }

    /// A layer norm over `channels`.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn layer_norm(&self, channels: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm { weight: self.tensor("weight", &[channels])?, bias: self.tensor("bias", &[channels])?, eps })
    }
}

/// The shape here of a weight of a `layer` that has `shape` in a file, and the pixels of its kernel.
fn turned(shape: &[usize], layer: Option<LayerShape>) -> (Vec<usize>, usize) {
    match (shape, layer) {
        ([num_out, num_in, height, width], Some(_)) => (vec![*num_out, *height, *width, *num_in], height * width),
        _ => (shape.to_vec(), 1),
    }
}

/// The tensor `key`, if it has `shape`.
fn in_file<'a>(files: &'a WeightFiles, key: &str, shape: &[usize]) -> Result<TensorBytes<'a>> {
    let (file, key) = (|| files.path().display().to_string(), key.to_owned());
    if files.info(&key).is_none() {
        return Err(ModelError::MissingTensor { file: file(), key });
    }
    let bytes = files.bytes(&key)?;
    let squeezed = |shape: &[usize]| match shape {
        [a, b, 1, 1] => vec![*a, *b],
        other => other.to_vec(),
    };
    let (found, expected) = (bytes.shape().to_vec(), shape.to_vec());
    if squeezed(&found) != squeezed(&expected) {
        return Err(ModelError::WrongShape { file: file(), key, found, expected });
    }
    Ok(bytes)
}

fn unusable(reason: Unusable, files: &WeightFiles, key: &str) -> ModelError {
    let (file, key) = (files.path().display().to_string(), key.to_owned());
    match reason {
        Unusable::File(error) => error.into(),
        Unusable::NotFinite => ModelError::NonFiniteWeight { file, key },
        Unusable::BeyondRange(dtype) => ModelError::WeightBeyondRange { file, key, dtype: dtype.as_str() },
        Unusable::Tensor(error) => error.into(),
    }
}

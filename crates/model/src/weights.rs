//! From the tensors of a file to the layers of a network: every tensor is asked for by name and shape, and what nobody
//! asked for is an error. Instead of a file there may be random numbers.
//!
//! A [`Weights`] stands at one place in the network, as the name of a module does; `weights.at("attn1").at("to_q")` is
//! the module `attn1.to_q`. It also carries the [`Injection`], so that a layer gets its LoRA factors where it is made.

use crate::error::ModelError;
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::lora::{Injection, LayerShape, LoraFactors};
use crate::ops::ConvGeometry;
use crate::random_weights::RandomWeights;
use crate::weight_files::WeightFiles;
use candle_core::{DType, Device, Tensor};
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
    dtype: DType,
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
    /// Tensors of `files` as `dtype` on `device`, with factors where `injection` says.
    pub fn new(files: &'a WeightFiles, dtype: DType, device: &Device, injection: Option<&'a Injection>) -> Self {
        Self::of(Origin::Files(files), dtype, device, injection)
    }

    /// Whatever is asked for, with random numbers: for measuring a network of a size without having it.
    pub fn random(seed: u64, dtype: DType, device: &Device, injection: Option<&'a Injection>) -> Self {
        Self::of(Origin::Random(RandomWeights::new(seed)), dtype, device, injection)
    }

    fn of(origin: Origin<'a>, dtype: DType, device: &Device, injection: Option<&'a Injection>) -> Self {
        Self { origin, dtype, device: device.clone(), asked: RefCell::default(), injection }
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

    /// The tensor `name` of this module, which must have `shape`, or the same with two trailing ones (1x1 kernels that
    /// stand where a linear layer is wanted, or the other way round) as it is wanted here.
    ///
    /// # Errors
    /// A missing tensor, another shape, a number that is not finite.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (key, source) = (self.key(name), self.source);
        let tensor = match &source.origin {
            Origin::Files(files) => {
                from_files(files, &key, shape)?.to_dtype(source.dtype)?.to_device(&source.device)?
            }
            Origin::Random(random) => random.tensor(&key, shape, source.dtype, &source.device)?,
        };
        source.asked.borrow_mut().insert(key);
        Ok(tensor)
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

    /// The weight with what an adapter that is to be merged adds to it.
    fn merged(&self, weight: Tensor, shape: LayerShape) -> Result<Tensor> {
        match self.source.injection {
            Some(injection) => injection.merge(&self.path, shape, weight),
            None => Ok(weight),
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
            weight: self.merged(self.tensor("weight", &[num_out, num_in])?, shape)?,
            bias: self.bias(num_out, bias)?,
            lora: self.factors(shape)?,
        })
    }

    /// A convolution `num_in` -> `num_out` with bias; the kernel is turned to (out, kh, kw, in).
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn conv2d(&self, num_in: usize, num_out: usize, kernel: usize, geometry: ConvGeometry) -> Result<Conv2d> {
        let shape = LayerShape::Conv2d { num_in, num_out, kernel };
        let weight = self.merged(self.tensor("weight", &[num_out, num_in, kernel, kernel])?, shape)?;
        Ok(Conv2d {
            weight: weight.permute((0, 2, 3, 1))?.contiguous()?,
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

/// The tensor `key` in f32 on the host, if it has `shape`.
fn from_files(files: &WeightFiles, key: &str, shape: &[usize]) -> Result<Tensor> {
    let (file, named) = (|| files.path().display().to_string(), || key.to_owned());
    let Some(info) = files.info(key) else { return Err(ModelError::MissingTensor { file: file(), key: named() }) };
    let found = info.shape;
    let squeezed = |shape: &[usize]| match shape {
        [a, b, 1, 1] => vec![*a, *b],
        other => other.to_vec(),
    };
    if squeezed(&found) != squeezed(shape) {
        return Err(ModelError::WrongShape { file: file(), key: named(), found, expected: shape.to_vec() });
    }
    let values = files.read_f32(key)?;
    // The sum of x * 0 is 0 for finite numbers and NaN otherwise, and vectorises.
    if !values.chunks(4096).all(|chunk| chunk.iter().map(|x| x * 0.0).sum::<f32>() == 0.0) {
        return Err(ModelError::NonFiniteWeight { file: file(), key: named() });
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

//! `verify step`: training steps on given numbers, for comparing with another program.
//!
//! Reads a base, factors and batches; writes the prediction and every gradient of step 0, the loss of every step, and
//! the factors after the last. AdamW with betas 0.9 and 0.999, eps 1e-8, no clipping, a constant learning rate.

use candle_core::{DType, Device, Tensor};
use loralei_adapter::keys::{kohya_key, parse_kohya_key, with_diffusers_blocks};
use loralei_adapter::{Adapter, TensorFile, TensorView, write_tensors};
use loralei_model::{Base, BaseSource, DeviceChoice, DeviceSession, ScheduleOverride};
use std::collections::BTreeMap;
use std::path::Path;

use crate::config::{Checkpointing, Compute, Dtype, Ops, WeightDtype};
use crate::error::TrainError;
use crate::gradient_tree::{GradientTree, Gradients};
use crate::network::{Network, Text, tensor};
use crate::objective::MicroBatch;
use crate::optimizer::{AdamWSettings, Optimizer, OptimizerSettings};

/// What `verify step` is asked for.
pub struct StepVerification<'a> {
    /// The base.
    pub base: BaseSource,
    /// Its noising process, against or instead of what it says.
    pub schedule: ScheduleOverride,
    /// Factors in kohya's keys with alpha.
    pub adapter: &'a Path,
    /// `latents`, `noise` (steps, b, 4, h, w) f32; `timesteps` (steps, b), `input_ids` (steps, b, 77) i64; for a base with two
    /// text encoders `input_ids_2`, likewise, and for one that is told sizes `time_ids` (steps, b, 6) f32; optionally
    /// `loss_mask` (steps, b, 1, h, w) and `sample_weight` (steps, b) f32.
    pub batch: &'a Path,
    /// Constant learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number type in which the base computes.
    pub dtype: Dtype,
    /// How its frozen weights are kept.
    pub weights: WeightDtype,
    /// What products round to.
    pub compute: Compute,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Which implementation of the operations.
    pub ops: Ops,
    /// What backward keeps.
    pub checkpointing: Checkpointing,
}

/// What came out.
pub struct Verified {
    /// Prediction of step 0: (b, 4, h, w).
    pub prediction: Tensor,
    /// Loss of each step.
    pub losses: Vec<f32>,
    /// Gradients of step 0, by key of the factor.
    pub gradients: Gradients,
    /// Factors after the last step, by key.
    pub factors: Gradients,
}

impl StepVerification<'_> {
    /// Runs the steps; `progress` is called with the number done and of all.
    ///
    /// # Errors
    /// Files that are missing or do not fit each other.
    pub fn run(self, progress: impl FnMut(u64, u64)) -> Result<Verified, TrainError> {
        let (ops, compute) = (self.ops, self.compute);
        ops.run(|| compute.run(|| self.run_here(progress)))
    }

    fn run_here(self, mut progress: impl FnMut(u64, u64)) -> Result<Verified, TrainError> {
        let device = self.device.open()?;
        let _session = DeviceSession::start(&device, false);
        self.compute.check(self.ops, device.is_cpu())?;
        let types = self.compute.weights(self.weights).number_types(self.dtype, self.ops, device.is_cpu())?;
        let base = Base::open(self.base, self.schedule, types, &device)?;
        let batches = Batches::open(self.batch, &base)?;
        let file = TensorFile::open(self.adapter)?;
        let adapter = Adapter::from_tensors(&file)?;
        let network = Network::with_adapter(&base, &adapter, self.checkpointing.into())?;
        batches.check(base.text_encoder_positions(), network.schedule().num_timesteps())?;
        let factors = network.factors().vars();
        let adamw = AdamWSettings { weight_decay: self.weight_decay, ..AdamWSettings::default() };
        let mut optimizer = Optimizer::new(OptimizerSettings::AdamW(adamw));
        let mut first: Option<(Tensor, Gradients)> = None;
        let mut losses = Vec::with_capacity(batches.steps);
        for step in 0..batches.steps {
            let (batch, text) = batches.at(step)?;
            let outcome = network.run(&batch.to_device(&device)?, &text, 1.0)?;
            let gradients = network.factors().take_gradients(&outcome.gradients)?;
            let mut tree = GradientTree::new();
            tree.push(gradients, outcome.weighted_loss, outcome.weight)?;
            let Some(summed) = tree.finish()? else { break };
            optimizer.step(&factors, &summed.gradients, 1.0, |_| self.learning_rate)?;
            losses.push(summed.loss()? as f32);
            first.get_or_insert((outcome.prediction, summed.gradients));
            progress(step as u64 + 1, batches.steps as u64);
        }
        let Some((prediction, gradients)) = first else {
            return Err(TrainError::Batch { path: self.batch.to_path_buf(), reason: "it holds no step".into() });
        };
        let factors = factors.into_iter().map(|(key, var)| (key, var.as_detached_tensor())).collect();
        let as_in_file = |tensors: Gradients| tensors_as_in_file(tensors, &file);
        Ok(Verified { prediction, losses, gradients: as_in_file(gradients), factors: as_in_file(factors) })
    }
}

/// Factors under the keys of the `file` that they are of: inside, the U-Net's blocks are named as in diffusers.
fn tensors_as_in_file(tensors: Gradients, file: &TensorFile) -> Gradients {
    let ours = |key: &str| {
        let (module, leaf) = parse_kohya_key(key)?;
        Some(kohya_key(&with_diffusers_blocks(module)?, leaf))
    };
    let in_file: BTreeMap<String, &str> = file.names().filter_map(|key| Some((ours(key)?, key))).collect();
    let renamed = |key: String| in_file.get(&key).map(|key| (*key).to_owned()).unwrap_or(key);
    tensors.into_iter().map(|(key, tensor)| (renamed(key), tensor)).collect()
}

impl Verified {
    /// Writes `pred`, `loss`, `grad.KEY` and `final.KEY`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        let named = |prefix: &str, tensors: &Gradients| -> Vec<(String, Tensor)> {
            tensors.iter().map(|(key, tensor)| (format!("{prefix}.{key}"), tensor.clone())).collect()
        };
        let mut all = vec![("pred".to_owned(), self.prediction.clone())];
        all.extend(named("grad", &self.gradients));
        all.extend(named("final", &self.factors));
        all.push(("loss".to_owned(), tensor(self.losses.clone(), self.losses.len())?));
        let values = all
            .iter()
            .map(|(name, tensor)| {
                let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                Ok((name.clone(), (tensor.dims().to_vec(), values)))
            })
            .collect::<candle_core::Result<BTreeMap<_, _>>>()?;
        let views = values.iter().map(|(name, (shape, values))| (name.clone(), TensorView::f32(shape, values)));
        write_tensors(path, &views.collect(), &BTreeMap::new())?;
        Ok(())
    }
}

/// The numbers of `--batch`.
struct Batches<'a> {
    path: &'a Path,
    steps: usize,
    b: usize,
    h: usize,
    w: usize,
    tokens: usize,
    latents: Vec<f32>,
    noise: Vec<f32>,
    timesteps: Vec<i64>,
    /// For each text encoder.
    input_ids: Vec<Vec<i64>>,
    time_ids: Option<Vec<f32>>,
    loss_mask: Option<Vec<f32>>,
    sample_weight: Option<Vec<f32>>,
}

impl<'a> Batches<'a> {
    fn open(path: &'a Path, base: &Base) -> Result<Self, TrainError> {
        let file = TensorFile::open(path)?;
        let wrong = |reason: String| TrainError::Batch { path: path.to_path_buf(), reason };
        let shape = |name: &str| {
            let info = file.info(name).ok_or_else(|| wrong(format!("it has no tensor `{name}`")))?;
            Ok::<_, TrainError>(info.shape.clone())
        };
        let [steps, b, 4, h, w] = shape("latents")?[..] else {
            return Err(wrong(format!("`latents` is {:?}, not (steps, b, 4, h, w)", shape("latents")?)));
        };
        let tokens = shape("input_ids")?.get(2).copied().unwrap_or_default();
        let expect = |name: &str, expected: &[usize]| {
            let found = shape(name)?;
            if found == expected { Ok(()) } else { Err(wrong(format!("`{name}` is {found:?}, not {expected:?}"))) }
        };
        expect("noise", &[steps, b, 4, h, w])?;
        expect("timesteps", &[steps, b])?;
        let mut input_ids = Vec::new();
        for (name, is_wanted) in [("input_ids", true), ("input_ids_2", base.num_text_encoders() > 1)] {
            if is_wanted {
                expect(name, &[steps, b, tokens])?;
                input_ids.push(file.read_i64(name)?);
            } else if file.info(name).is_some() {
                return Err(wrong(format!("`{name}` is for a second text encoder, and the base has one")));
            }
        }
        let optional = |name: &str, expected: &[usize]| -> Result<Option<Vec<f32>>, TrainError> {
            if file.info(name).is_none() {
                return Ok(None);
            }
            expect(name, expected)?;
            Ok(Some(file.read_f32(name)?))
        };
        let time_ids = optional("time_ids", &[steps, b, 6])?;
        match (&time_ids, base.pooled_width()) {
            (None, Some(_)) => return Err(wrong("it has no tensor `time_ids`".to_owned())),
            (Some(_), None) => {
                return Err(wrong("`time_ids` are sizes of pictures, and the base is told none".to_owned()));
            }
            _ => (),
        }
        Ok(Self {
            path,
            steps,
            b,
            h,
            w,
            tokens,
            latents: file.read_f32("latents")?,
            noise: file.read_f32("noise")?,
            timesteps: file.read_i64("timesteps")?,
            input_ids,
            time_ids,
            loss_mask: optional("loss_mask", &[steps, b, 1, h, w])?,
            sample_weight: optional("sample_weight", &[steps, b])?,
        })
    }

    fn check(&self, positions: usize, num_timesteps: usize) -> Result<(), TrainError> {
        let wrong = |reason: String| Err(TrainError::Batch { path: self.path.to_path_buf(), reason });
        if self.tokens == 0 || self.tokens > positions {
            return wrong(format!("`input_ids` has {} tokens, the encoder takes up to {positions}", self.tokens));
        }
        match self.timesteps.iter().find(|t| **t < 0 || **t >= num_timesteps as i64) {
            Some(t) => wrong(format!("timestep {t} is not within 0 to {}", num_timesteps - 1)),
            None => Ok(()),
        }
    }

    fn at(&self, step: usize) -> Result<(MicroBatch, Text), TrainError> {
        let Self { b, h, w, tokens, .. } = *self;
        let part = |values: &[f32], len: usize| values[step * len..(step + 1) * len].to_vec();
        let maps = |values: &[f32], c: usize| tensor(part(values, b * c * h * w), (b, c, h, w));
        let ids = |ids: &Vec<i64>| {
            Tensor::from_vec(ids[step * b * tokens..(step + 1) * b * tokens].to_vec(), (b, tokens), &Device::Cpu)
        };
        let timesteps = self.timesteps[step * b..(step + 1) * b].to_vec();
        let batch = MicroBatch {
            loss_mask: self.loss_mask.as_ref().map(|mask| maps(mask, 1)).transpose()?,
            sample_weight: self.sample_weight.as_ref().map(|weights| part(weights, b)),
            time_ids: self.time_ids.as_ref().map(|ids| tensor(part(ids, b * 6), (b, 6))).transpose()?,
            ..MicroBatch::new(maps(&self.latents, 4)?, maps(&self.noise, 4)?, timesteps)
        };
        Ok((batch, Text::tokens(self.input_ids.iter().map(ids).collect::<candle_core::Result<_>>()?)))
    }
}

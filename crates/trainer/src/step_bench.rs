//! `bench step`: how long a training step takes on a U-Net of a given size with random weights.
//!
//! Latents and text are given, as in a run that has encoded them before, so a step is: noise added, the U-Net forward
//! and backward, the norm clipped, the factors moved. All of it is the run's own code.

use candle_core::{DType, Device, Tensor};
use loralei_model::ops::OpTimes;
use loralei_model::{
    DeviceSession, Draw, EncodedText, NumberTypes, PictureSizes, Purpose, UnetConfig, UnetCost, ops, peak_device_bytes,
};
use std::time::Instant;

use crate::config::{Checkpointing, Compute, Dtype, Ops, Targets, WeightDtype};
use crate::error::TrainError;
use crate::gradient_tree::GradientTree;
use crate::memory::peak_resident_bytes;
use crate::network::{Network, Text, tensor};
use crate::objective::MicroBatch;
use crate::optimizer::FactorRates;
use crate::plan::{ComponentPlan, OptimizerPlan};
use crate::update::{StepUnderWay, Update};

/// Tokens of the text, as CLIP has them.
const TOKENS: usize = 77;
const LEARNING_RATE: f64 = 1e-4;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct StepBench {
    /// The network.
    pub unet: UnetConfig,
    /// Height and width of the latents: a multiple of what the network divides by.
    pub latent: usize,
    /// Samples that go through together.
    pub batch: usize,
    /// Rank of the factors.
    pub rank: usize,
    /// Layers that get some.
    pub targets: Targets,
    /// Number type in which the network computes.
    pub dtype: Dtype,
    /// How its frozen weights are kept; they count as f32 in a file.
    pub weights: WeightDtype,
    /// What products round to.
    pub compute: Compute,
    /// What backward keeps.
    pub checkpointing: Checkpointing,
    /// Which implementation of the operations.
    pub ops: Ops,
    /// Whether products of f32 on an NVIDIA card may be rounded.
    pub tf32: bool,
    /// Whether the time of each kind of operation is measured too.
    pub profile: bool,
    /// Steps that are measured, at least 1.
    pub steps: usize,
    /// Steps before these.
    pub warmup: usize,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct StepTimes {
    /// Seconds of each step.
    pub step_s: Vec<f64>,
    /// Loss of the last step.
    pub loss: f64,
    /// Numbers that learn.
    pub trainable: usize,
    /// Arithmetic of a step: [`UnetCost::lora_step_flops`] of all samples.
    pub flops_per_step: u64,
    /// What the kernels took in the measured steps, if it was asked for.
    pub op_times: OpTimes,
    /// Highest memory of the process, where the system tells.
    pub peak_resident_bytes: Option<u64>,
    /// Highest memory on a card.
    pub peak_device_bytes: Option<u64>,
}

impl StepTimes {
    /// The fastest step, in seconds.
    pub fn min_s(&self) -> f64 {
        self.step_s.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median step, in seconds: of an even number of steps the mean of the middle two.
    pub fn median_s(&self) -> f64 {
        let mut sorted = self.step_s.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }
}

impl StepBench {
    /// Measures on `device`; `progress` is called with the number of steps done and of all.
    ///
    /// # Errors
    /// Sizes that do not fit the network, no memory.
    pub fn run(&self, device: &Device, mut progress: impl FnMut(u64, u64)) -> Result<StepTimes, TrainError> {
        self.in_these_ops(|| self.run_here(device, &mut progress))
    }

    /// The number types of the network.
    ///
    /// # Errors
    /// Types that the device does not compute in.
    pub fn number_types(&self, device: &Device) -> Result<NumberTypes, TrainError> {
        self.compute.check(self.ops, device.is_cpu())?;
        Ok(self.compute.weights(self.weights).number_types(self.dtype, self.ops, device.is_cpu())?)
    }

    /// Runs `f` with the operations that are measured.
    pub fn in_these_ops<R>(&self, f: impl FnOnce() -> R) -> R {
        self.ops.run(|| self.compute.run(f))
    }

    fn run_here(&self, device: &Device, progress: &mut dyn FnMut(u64, u64)) -> Result<StepTimes, TrainError> {
        let _session = DeviceSession::start(device, self.tf32);
        let plan = ComponentPlan {
            targets: self.targets.clone(),
            rank: self.rank,
            alpha: self.rank as f64,
            subspace: None,
            learning_rate: LEARNING_RATE,
            blocks: Vec::new(),
        };
        let dtype = self.dtype.into();
        let types = self.number_types(device)?;
        let network = Network::random(&self.unet, &plan, types, device, self.checkpointing.into())?;
        let rates = FactorRates::uniform(network.factors().vars().keys(), LEARNING_RATE);
        let mut update = Update::new(&OptimizerPlan::default(), rates, network.factors(), device, dtype)?;
        let shape = (self.batch, self.unet.in_channels, self.latent, self.latent);
        let latents = normal(shape, 0, Purpose::LatentSample, DType::F32, device)?;
        let context = (self.batch, TOKENS, self.unet.cross_attention_dim.at(0));
        let context = normal(context, 0, Purpose::Check, dtype, device)?;
        let added = self.unet.added_conditioning();
        let pooled = added.map(|added| normal((self.batch, added.pooled_width), 1, Purpose::Check, dtype, device));
        let text = Text::Encoded(EncodedText { context, pooled: pooled.transpose()? });
        let time_ids = added.map(|_| self.time_ids()).transpose()?;

        let all = (self.warmup + self.steps) as u64;
        let (mut step_s, mut loss, mut op_times) = (Vec::with_capacity(self.steps), f64::NAN, OpTimes::new());
        for step in 0..all {
            device.synchronize()?;
            let started = Instant::now();
            let mut run = || self.step(step, &latents, (&text, time_ids.as_ref()), &network, &mut update);
            let (done, times) = if self.profile { ops::op_times(run) } else { (run(), OpTimes::new()) };
            let done = done?;
            device.synchronize()?;
            if step >= self.warmup as u64 {
                step_s.push(started.elapsed().as_secs_f64());
                add_times(&mut op_times, &times);
            }
            loss = done.read()?.loss;
            progress(step + 1, all);
        }
        let cost = UnetCost::new(&self.unet, self.latent, self.latent, TOKENS);
        Ok(StepTimes {
            step_s,
            loss,
            trainable: network.factors().vars().values().map(|var| var.elem_count()).sum(),
            flops_per_step: cost.lora_step_flops() * self.batch as u64,
            op_times,
            peak_resident_bytes: peak_resident_bytes(),
            peak_device_bytes: peak_device_bytes(device),
        })
    }

    /// Sizes of pictures of many kinds, a latent of which is 8 pixels wide.
    fn time_ids(&self) -> candle_core::Result<Tensor> {
        let drawn = Draw::new(0, 2, 0, Purpose::Check).integers(512..2049, 2 * self.batch);
        let sizes = drawn.chunks_exact(2).map(|original| PictureSizes {
            original_px: (original[0] as usize, original[1] as usize),
            ..PictureSizes::whole((8 * self.latent, 8 * self.latent))
        });
        PictureSizes::tensor(&sizes.collect::<Vec<_>>())
    }

    fn step(
        &self,
        step: u64,
        latents: &Tensor,
        (text, time_ids): (&Text, Option<&Tensor>),
        network: &Network,
        update: &mut Update,
    ) -> Result<StepUnderWay, TrainError> {
        let last = network.schedule().num_timesteps() as i64;
        let noise = normal(latents.shape(), step, Purpose::Noise, DType::F32, latents.device())?;
        let timesteps = Draw::new(0, step, 0, Purpose::Timesteps).integers(0..last, self.batch);
        let mut batch = MicroBatch::new(latents.clone(), noise, timesteps);
        batch.time_ids = time_ids.cloned();
        let outcome = network.run(&batch, text, update.loss_scale().factor())?;
        let mut gradients = network.factors().take_gradients(&outcome.gradients)?;
        update.loss_scale().remove(&mut gradients)?;
        let mut tree = GradientTree::new();
        tree.push(gradients, outcome.weighted_loss, outcome.weight)?;
        let summed = tree.finish()?.ok_or(TrainError::StepWeight { weight: 0.0 })?;
        update.apply(step, summed, 1.0)
    }
}

fn add_times(all: &mut OpTimes, times: &OpTimes) {
    for (kind, time) in times {
        let sum = all.entry(*kind).or_default();
        sum.calls += time.calls;
        sum.elapsed += time.elapsed;
    }
}

fn normal(
    shape: impl Into<candle_core::Shape>,
    step: u64,
    purpose: Purpose,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let shape = shape.into();
    let values = Draw::new(0, step, 0, purpose).standard_normal(shape.elem_count());
    tensor(values, shape)?.to_device(device)?.to_dtype(dtype)
}

/// What a large square product reaches on `device`, in floating-point operations a second: the best of several. What the
/// step reaches is to be seen beside it.
///
/// # Errors
/// No memory.
pub fn matmul_flops_per_s(dtype: Dtype, device: &Device) -> Result<f64, TrainError> {
    let (side, repeats) = if device.is_cpu() { (2048, 5) } else { (8192, 10) };
    let square = |step| -> candle_core::Result<Tensor> {
        let values = Draw::new(0, step, 0, Purpose::Check).uniform(-1.0, 1.0, side * side);
        tensor(values, (side, side))?.to_dtype(dtype.into())?.to_device(device)
    };
    let (a, b) = (square(0)?, square(1)?);
    let mut best_s = f64::INFINITY;
    // The first one pays for what is set up at the first use.
    for _ in 0..=repeats {
        device.synchronize()?;
        let started = Instant::now();
        let product = ops::linear(&a, &b, None)?;
        device.synchronize()?;
        best_s = best_s.min(started.elapsed().as_secs_f64());
        drop(product);
    }
    Ok(2.0 * (side as f64).powi(3) / best_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_model::ops::Pass;

    fn tiny() -> StepBench {
        let unet = r#"{"block_out_channels": [32, 64], "cross_attention_dim": 24, "attention_head_dim": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "norm_num_groups": 8,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1}"#;
        StepBench {
            unet: UnetConfig::parse(unet, "test").unwrap(),
            latent: 8,
            batch: 2,
            rank: 3,
            targets: Targets::Attention,
            dtype: Dtype::F32,
            weights: WeightDtype::F32,
            compute: Compute::F32,
            checkpointing: Checkpointing::None,
            ops: Ops::Auto,
            tf32: false,
            profile: false,
            steps: 2,
            warmup: 1,
        }
    }

    #[test]
    fn steps_are_counted_and_stay_finite() {
        let mut seen = Vec::new();
        let times = tiny().run(&Device::Cpu, |done, all| seen.push((done, all))).unwrap();
        assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
        assert_eq!(times.step_s.len(), 2);
        assert!(times.min_s() > 0.0 && times.min_s() <= times.median_s());
        assert!(times.loss.is_finite() && times.loss > 0.0);
        // Transformers of width 32: one down, two up; of width 64: the middle. Six projections of c to c, two from 24.
        let of_width = |c: usize| 3 * (6 * (c + c) + 2 * (24 + c));
        assert_eq!(times.trainable, 3 * of_width(32) + of_width(64));
        assert!(times.peak_device_bytes.is_none());
    }

    #[test]
    fn every_number_type_and_policy_measures_the_same_loss() {
        let loss = |bench: StepBench| bench.run(&Device::Cpu, |_, _| ()).unwrap().loss;
        let expected = loss(tiny());
        let full = loss(StepBench { targets: Targets::Full, checkpointing: Checkpointing::Block, ..tiny() });
        assert!((full / expected - 1.0).abs() < 0.01, "{full} {expected}");
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let narrow = loss(StepBench { dtype, ..tiny() });
            assert!((narrow / expected - 1.0).abs() < 0.05, "{dtype:?}: {narrow} {expected}");
        }
        for (weights, tolerance) in
            [(WeightDtype::Auto, 1e-3), (WeightDtype::F16, 1e-3), (WeightDtype::Bf16, 1e-2), (WeightDtype::Int8, 1e-2)]
        {
            let narrow = loss(StepBench { weights, ..tiny() });
            let d = (narrow / expected - 1.0).abs();
            assert!(d > 0.0 && d < tolerance, "{weights:?}: {narrow} {expected}");
        }
        let generic = loss(StepBench { ops: Ops::Generic, ..tiny() });
        assert!((generic / expected - 1.0).abs() < 1e-4, "{generic} {expected}");
    }

    #[test]
    fn a_profile_counts_the_kernels_of_the_measured_steps_within_their_time() {
        assert!(tiny().run(&Device::Cpu, |_, _| ()).unwrap().op_times.is_empty());
        let times = StepBench { profile: true, ..tiny() }.run(&Device::Cpu, |_, _| ()).unwrap();
        let calls = |name, pass| times.op_times[&(name, pass)].calls;
        // Four transformers of two attentions each, two steps.
        assert_eq!((calls("attention", Pass::Forward), calls("attention", Pass::Backward)), (16, 16));
        assert_eq!(calls("lora-linear", Pass::Forward), 4 * 8 * 2);
        let in_kernels: f64 = times.op_times.values().map(|time| time.elapsed.as_secs_f64()).sum();
        assert!(in_kernels > 0.0 && in_kernels < times.step_s.iter().sum(), "{in_kernels} {:?}", times.step_s);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let of = |step_s: &[f64]| {
            let (loss, trainable, flops_per_step) = (0.0, 0, 0);
            let (op_times, peak_resident_bytes, peak_device_bytes) = (OpTimes::new(), None, None);
            let step_s = step_s.to_vec();
            StepTimes { step_s, loss, trainable, flops_per_step, op_times, peak_resident_bytes, peak_device_bytes }
                .median_s()
        };
        assert_eq!((of(&[3.0, 1.0, 2.0]), of(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
    }
}

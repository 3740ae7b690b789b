//! `loralei bench step`: how fast this machine trains, as one JSON object. Fields that other programs' figures have too
//! are named as in the scripts that measure those.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use candle_core::{DType, Device};
use loralei_model::WeightType;
use loralei_model::ops::Pass;
use loralei_trainer::{
    BenchKind, Checkpointing, Compute, Dtype, Event, Ops, StepBench, StepTimes, Targets, TrainError, matmul_flops_per_s,
};
use serde::Serialize;

use crate::args::BenchStepArguments;
use crate::commands::{base, doctor};
use crate::report::Reporter;
use crate::usage::UsageError;

/// What is printed.
#[derive(Debug, Serialize)]
struct Figures {
    kind: BenchKind,
    latent: usize,
    batch: usize,
    steps: usize,
    warmup: usize,
    rank: usize,
    targets: &'static str,
    dtype: Dtype,
    /// In which frozen weights are kept.
    weights: &'static str,
    /// What products round to.
    compute: Compute,
    device: String,
    threads: usize,
    checkpointing: bool,
    channels_last: bool,
    compile: bool,
    full_finetune: bool,
    loralei: &'static str,
    ops: &'static str,
    tf32: bool,
    processor: Option<String>,
    /// Vector instructions that the processor has.
    simd: Vec<&'static str>,
    /// Of the last step.
    loss: f64,
    trainable: usize,
    step_s_min: f64,
    step_s_median: f64,
    images_per_s: f64,
    /// On a card what its tensors took, otherwise what the process took.
    peak_gb: Option<f64>,
    peak_resident_gb: Option<f64>,
    peak_device_gb: Option<f64>,
    gflop_per_step: f64,
    gflop_per_s: f64,
    matmul_peak_gflop_per_s: f64,
    /// Of a step, by operation; what is left is in `other`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    profile: BTreeMap<&'static str, OpFigures>,
}

/// What one kind of operation took in a step.
#[derive(Debug, Default, Serialize)]
struct OpFigures {
    calls: f64,
    forward_s: f64,
    backward_s: f64,
}

/// Seconds of a step in each kind of operation, and outside of all.
fn profile(times: &StepTimes) -> BTreeMap<&'static str, OpFigures> {
    let mut figures: BTreeMap<&'static str, OpFigures> = BTreeMap::new();
    if times.op_times.is_empty() {
        return figures;
    }
    let steps = times.step_s.len() as f64;
    let mut other_s = times.step_s.iter().sum::<f64>() / steps;
    for ((name, pass), time) in &times.op_times {
        let of_op = figures.entry(name).or_default();
        let elapsed_s = time.elapsed.as_secs_f64() / steps;
        other_s -= elapsed_s;
        match pass {
            Pass::Forward => {
                of_op.forward_s = rounded(elapsed_s);
                of_op.calls = time.calls as f64 / steps;
            }
            Pass::Backward => of_op.backward_s = rounded(elapsed_s),
        }
    }
    figures.insert("other", OpFigures { forward_s: rounded(other_s), ..OpFigures::default() });
    figures
}

pub(crate) fn step(arguments: &BenchStepArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let bench = bench(arguments)?;
    let device = arguments.device.open().map_err(base::model)?;
    let weights = kept_weights(&bench, &device)?;
    let total = Some((bench.warmup + bench.steps) as u64);
    reporter.show(&Event::PhaseStarted { name: "measuring".into(), total });
    let times = bench.run(&device, |done, _| reporter.show(&Event::PhaseProgress { done }))?;
    let peak_flops_per_s = bench.in_these_ops(|| matmul_flops_per_s(bench.dtype, &device))?;
    reporter.finish();
    let figures =
        Figures::new(arguments.kind, &bench, (arguments.device.to_string(), weights), &times, peak_flops_per_s);
    writeln!(stdout(), "{}", serde_json::to_string(&figures)?)?;
    Ok(())
}

fn bench(arguments: &BenchStepArguments) -> anyhow::Result<StepBench> {
    let unet = arguments.kind.unet()?;
    let (latent, multiple) = (usize::from(arguments.latent), unet.total_downsampling());
    if !latent.is_multiple_of(multiple) {
        let message = format!("--latent {latent}: the network halves its maps until they are {multiple} times smaller");
        return Err(UsageError::new(message, format!("take a multiple of {multiple}, such as 64 for 512 px")).into());
    }
    Ok(StepBench {
        unet,
        latent,
        batch: arguments.batch.into(),
        rank: arguments.rank.into(),
        targets: arguments.targets.clone(),
        dtype: arguments.dtype,
        weights: arguments.weights,
        compute: arguments.compute,
        checkpointing: arguments.checkpointing,
        ops: arguments.ops,
        tf32: arguments.tf32,
        profile: arguments.profile,
        steps: arguments.steps.into(),
        warmup: arguments.warmup.into(),
    })
}

/// The type in which `bench` keeps frozen weights.
fn kept_weights(bench: &StepBench, device: &Device) -> Result<&'static str, TrainError> {
    Ok(match bench.number_types(device)?.weights {
        WeightType::Half => DType::F16.as_str(),
        WeightType::Exactly(dtype) => dtype.as_str(),
        WeightType::Int8 => "int8",
    })
}

impl Figures {
    fn new(
        kind: BenchKind,
        bench: &StepBench,
        (device, weights): (String, &'static str),
        times: &StepTimes,
        peak_flops_per_s: f64,
    ) -> Self {
        let gigabytes = |bytes: Option<u64>| bytes.map(|bytes| rounded(bytes as f64 / 1e9));
        let simd = doctor::simd().into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
        Self {
            kind,
            latent: bench.latent,
            batch: bench.batch,
            steps: bench.steps,
            warmup: bench.warmup,
            rank: bench.rank,
            targets: if bench.targets == Targets::Full { "full" } else { "attention" },
            dtype: bench.dtype,
            weights,
            compute: bench.compute,
            device,
            threads: rayon::current_num_threads(),
            checkpointing: bench.checkpointing == Checkpointing::Block,
            channels_last: true,
            compile: false,
            full_finetune: false,
            loralei: env!("CARGO_PKG_VERSION"),
            ops: if bench.ops == Ops::Generic { "generic" } else { "auto" },
            tf32: bench.tf32,
            processor: doctor::field(&doctor::proc_file("cpuinfo"), "model name").map(str::to_string),
            simd: simd.collect(),
            loss: times.loss,
            trainable: times.trainable,
            step_s_min: rounded(times.min_s()),
            step_s_median: rounded(times.median_s()),
            images_per_s: rounded(bench.batch as f64 / times.median_s()),
            peak_gb: gigabytes(times.peak_device_bytes.or(times.peak_resident_bytes)),
            peak_resident_gb: gigabytes(times.peak_resident_bytes),
            peak_device_gb: gigabytes(times.peak_device_bytes),
            gflop_per_step: rounded(times.flops_per_step as f64 / 1e9),
            gflop_per_s: rounded(times.flops_per_step as f64 / 1e9 / times.median_s()),
            matmul_peak_gflop_per_s: rounded(peak_flops_per_s / 1e9),
            profile: profile(times),
        }
    }
}

/// To four decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use loralei_model::ops::OpTimes;

    use super::*;
    use crate::args::{Arguments, BenchCommand, Command};

    fn parsed(more: &[&str]) -> anyhow::Result<StepBench> {
        let words = ["loralei", "bench", "step"].iter().chain(more);
        let Command::Bench(BenchCommand::Step(step)) = Arguments::try_parse_from(words)?.command else {
            anyhow::bail!("another command")
        };
        bench(&step)
    }

    #[test]
    fn the_object_has_the_names_that_the_peers_have() {
        let bench = parsed(&["--batch", "2", "--checkpointing", "block", "--dtype", "bf16"]).unwrap();
        let times = StepTimes {
            step_s: vec![0.5, 0.25, 1.0],
            loss: 1.0,
            trainable: 797_184,
            flops_per_step: 1_000_000_000,
            op_times: OpTimes::new(),
            peak_resident_bytes: Some(2_500_000_000),
            peak_device_bytes: None,
        };
        let object =
            serde_json::to_value(Figures::new(BenchKind::Sd15, &bench, ("cpu".into(), "f16"), &times, 3e9)).unwrap();
        for name in ["latent", "loss", "steps", "warmup", "rank", "targets", "device", "threads", "channels_last"] {
            assert!(object.get(name).is_some(), "{name}");
        }
        assert_eq!((&object["kind"], &object["dtype"]), (&"sd15".into(), &"bf16".into()));
        assert_eq!(object["checkpointing"], true);
        assert_eq!(kept_weights(&bench, &Device::Cpu).unwrap(), "f16");
        for weights in ["f32", "int8"] {
            let bench = parsed(&["--weights", weights]).unwrap();
            assert_eq!(kept_weights(&bench, &Device::Cpu).unwrap(), weights);
        }
        assert_eq!((&object["step_s_min"], &object["step_s_median"]), (&0.25.into(), &0.5.into()));
        assert_eq!((&object["images_per_s"], &object["gflop_per_s"]), (&4.0.into(), &2.0.into()));
        assert_eq!((&object["peak_gb"], &object["peak_device_gb"]), (&2.5.into(), &serde_json::Value::Null));
    }

    #[test]
    fn a_size_that_the_network_cannot_halve_is_refused() {
        let error = parsed(&["--latent", "12"]).unwrap_err();
        assert!(error.to_string().contains("8 times"), "{error}");
        assert_eq!(parsed(&["--latent", "24"]).unwrap().latent, 24);
        assert_eq!(parsed(&["--latent", "12", "--kind", "sdxl"]).unwrap().latent, 12);
    }
}

//! Training with an A that stays as it is: rows of a subspace that a number names.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and its files need no atomic write

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Adapter, LoraModule};
use loralei_model::{Base, BaseSource, Checkpointing as Recompute};
use loralei_trainer::{
    Checkpointing, ConfigLayers, Draw, Ended, Gradients, MicroBatch, Network, Plan, Purpose, RunOptions, Start, Text,
    TrainError, train,
};
use std::path::{Path, PathBuf};

const BOTH: &str = "lora.text_encoder.targets=attention";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn source() -> BaseSource {
    BaseSource::Folder(golden("sd1/base"))
}

fn plan(settings: &[&str]) -> Plan {
    let mut layers = ConfigLayers::new();
    for setting in ["data.images=unused"].iter().chain(settings) {
        layers.set(setting).unwrap();
    }
    Plan::new(&layers.resolve().unwrap().config).unwrap()
}

fn load(settings: &[&str], checkpointing: Checkpointing) -> Result<Network, TrainError> {
    let base = Base::open(source(), None, DType::F32, &Device::Cpu).unwrap();
    let plan = plan(settings);
    Network::load(&base, plan.unet.as_ref(), &plan.text_encoders, plan.seed, checkpointing)
}

/// A run of some steps on the octopus, with `settings`.
fn run(place: &Path, name: &str, settings: &[&str], start: Start, until: Option<u64>) -> Result<Ended, TrainError> {
    let mut layers = ConfigLayers::new();
    let octopus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/octopus");
    layers.set_text("data.images", octopus.to_str().unwrap()).unwrap();
    layers.set_text("output.folder", place.join(name).to_str().unwrap()).unwrap();
    let common = ["data.size_px=32", "data.cache=off", "train.steps=4", "train.batch_size=2", "output.precision=f32"];
    for setting in common.iter().chain(&["optimizer.learning_rate=1e-2", "lora.rank=2", BOTH]).chain(settings) {
        layers.set(setting).unwrap();
    }
    let resolved = layers.resolve().unwrap();
    let options = RunOptions { start, until, ..RunOptions::new(&resolved) };
    train(&Plan::new(&resolved.config).unwrap(), source(), &options, &mut |_| ())
}

fn trained(place: &Path, name: &str, settings: &[&str]) -> Adapter {
    Adapter::read(&run(place, name, settings, Start::New, None).unwrap().adapter().path).unwrap()
}

/// The largest number of A_i A_j^T.
fn overlap(a: &LoraModule, b: &LoraModule) -> f64 {
    let rows = |module: &LoraModule| {
        let width = module.down.data.len() / module.rank();
        module.down.data.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let product = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let others = rows(b);
    rows(a).iter().flat_map(|x| others.iter().map(move |y| product(x, y).abs())).fold(0.0, f64::max)
}

#[test]
fn adapters_of_different_numbers_do_not_meet_whatever_their_seeds_and_a_never_moves() {
    let place = tempfile::tempdir().unwrap();
    let everything = ["train.checkpointing=block", "lora.max_norm=0.02", "optimizer.ema_decay=0.5", "lora.dropout=0.1"];
    let first = trained(place.path(), "a", &[&["lora.orthogonal=0", "train.seed=3"], &everything[..]].concat());
    let second = trained(place.path(), "b", &["lora.orthogonal=3", "train.seed=8"]);
    let begin = load(&["lora.orthogonal=0", "lora.rank=2", BOTH], Checkpointing::None).unwrap();
    let begin = begin.factors().to_adapter().unwrap();
    assert!(first.modules_that_never_moved().is_empty() && second.modules_that_never_moved().is_empty());
    assert!(first.modules.keys().eq(begin.modules.keys()) && first.modules.keys().eq(second.modules.keys()));
    assert!(first.modules.keys().any(|name| name.starts_with("lora_te_")));
    for (name, module) in &first.modules {
        assert_eq!(module.down, begin.modules[name].down, "{name}");
        assert!(overlap(module, module) > 0.3, "{name}");
        assert!(overlap(module, &second.modules[name]) < 1e-6, "{name}");
        assert!(module.delta_norm() < 0.02 * 1.001, "{name}: {}", module.delta_norm());
    }
    assert!(first.modules.values().any(|module| module.delta_norm() > 0.02 * 0.9), "the limit was met");
    assert_eq!(first.metadata["ss_network_args"], "{\"orthogonal\":\"0\"}");
    assert_eq!(second.metadata["ss_network_args"], "{\"orthogonal\":\"3\"}");
}

#[test]
fn a_number_beyond_the_narrowest_layer_is_refused_with_the_last_that_fits() {
    let refused = |settings: &[&str]| load(settings, Checkpointing::None).err().unwrap();
    let error = refused(&["lora.orthogonal=2", "lora.rank=3"]);
    assert_eq!(error.exit_code(), 2);
    let (said, hint) = (error.to_string(), error.hint().unwrap_or_default());
    let all = format!("{said} {hint}");
    assert!(all.contains("lora.orthogonal") && all.contains("8 inputs: 2 subspaces of rank 3"), "{all}");
    assert!(all.contains("from 0 to 1"), "{all}");
    assert!(load(&["lora.orthogonal=1", "lora.rank=3"], Checkpointing::None).is_ok());
    assert!(refused(&["lora.orthogonal=0", "lora.rank=9"]).to_string().contains("0 subspaces of rank 9"));
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_was_not_stopped_and_keeps_its_number() {
    let place = tempfile::tempdir().unwrap();
    let settings = ["lora.orthogonal=2", "optimizer.kind=prodigy"];
    let straight = trained(place.path(), "straight", &settings);
    run(place.path(), "stopped", &settings, Start::New, Some(2)).unwrap();
    let resume = Start::Resume { anyway: false };
    let other = ["lora.orthogonal=1", "optimizer.kind=prodigy"];
    let error = run(place.path(), "stopped", &other, resume, None).unwrap_err();
    assert!(format!("{error:?}").contains("lora.orthogonal: 2 -> 1"), "{error:?}");
    let resumed = run(place.path(), "stopped", &settings, resume, None).unwrap();
    assert!(Adapter::read(&resumed.adapter().path).unwrap().modules == straight.modules);
}

fn gradients(network: &Network) -> Gradients {
    let normal = |step| {
        let values = Draw::new(1, step, 0, Purpose::Noise).standard_normal(2 * 4 * 12 * 8);
        Tensor::from_vec(values, (2, 4, 12, 8), &Device::Cpu).unwrap()
    };
    let base = Base::open(source(), None, DType::F32, &Device::Cpu).unwrap();
    let tokenizer = base.tokenizer(0).unwrap();
    let ids: Vec<i64> = ["a dog", "sks"].iter().flat_map(|c| tokenizer.encode(c).unwrap().input_ids).collect();
    let text = Text::tokens(vec![Tensor::from_vec(ids, (2, 77), &Device::Cpu).unwrap()]);
    let batch = MicroBatch { dropout: None, ..MicroBatch::new(normal(0), normal(1), vec![120, 840]) };
    network.factors().take_gradients(&network.run(&batch, &text, 1.0).unwrap().gradients).unwrap()
}

#[test]
fn b_has_the_gradient_that_it_has_beside_an_a_that_learns_and_a_has_none() {
    let settings =
        ["lora.orthogonal=1", "lora.rank=2", BOTH, "lora.unet.targets=[\"*.to_?\", \"*.conv1\", \"*.proj_in\"]"];
    for checkpointing in [Checkpointing::None, Checkpointing::Block] {
        let fixed = load(&settings, checkpointing).unwrap();
        for (i, var) in fixed.factors().vars().values().enumerate() {
            let values = Draw::new(4, i as u64, 0, Purpose::Check).uniform(-0.3, 0.3, var.elem_count());
            var.set(&Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
        let base = Base::open(source(), None, DType::F32, &Device::Cpu).unwrap();
        let recompute = if checkpointing == Checkpointing::Block { Recompute::Block } else { Recompute::None };
        let free = Network::with_adapter(&base, &fixed.factors().to_adapter().unwrap(), recompute).unwrap();
        let (of_fixed, of_free) = (gradients(&fixed), gradients(&free));
        assert_eq!((of_fixed.len(), of_free.len()), (fixed.factors().len(), 2 * fixed.factors().len()));
        assert_eq!(
            fixed.factors().vars().into_keys().collect::<Vec<_>>(),
            of_fixed.keys().cloned().collect::<Vec<_>>()
        );
        for (key, gradient) in &of_fixed {
            let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(key.ends_with("lora_up.weight"), "{key}");
            assert_eq!(numbers(gradient), numbers(&of_free[key]), "{key}");
            assert!(numbers(gradient).iter().any(|x| *x != 0.0), "{key}");
        }
    }
}

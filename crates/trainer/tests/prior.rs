//! The base's own prediction as prior: what it measures, and that a run with it stays nearer to the base.
#![allow(clippy::unwrap_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::Adapter;
use loralei_model::{Base, BaseSource, Checkpointing};
use loralei_trainer::{ConfigLayers, Draw, MicroBatch, Network, Plan, Purpose, RunOptions, Text, train};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn base() -> Base {
    Base::open(BaseSource::Folder(repository().join("tests/golden/sd1/base")), None, DType::F32, &Device::Cpu).unwrap()
}

fn batch(seed: u64) -> MicroBatch {
    let normal = |step| {
        let values = Draw::new(seed, step, 0, Purpose::Noise).standard_normal(2 * 4 * 12 * 8);
        Tensor::from_vec(values, (2, 4, 12, 8), &Device::Cpu).unwrap()
    };
    let (latents, noise) = (normal(0), normal(1));
    MicroBatch::new(latents, noise, vec![120, 840])
}

fn text(base: &Base, captions: [&str; 2]) -> Text {
    let tokenizer = base.tokenizer(0).unwrap();
    let ids: Vec<i64> = captions.iter().flat_map(|c| tokenizer.encode(c).unwrap().input_ids).collect();
    Text::tokens(vec![Tensor::from_vec(ids, (2, 77), &Device::Cpu).unwrap()])
}

/// The adapter with B = 0: it changes nothing.
fn zeroed(adapter: &Adapter) -> Adapter {
    let mut adapter = adapter.clone();
    adapter.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    adapter
}

/// Sum over samples of the mean squared difference of two networks' predictions.
fn apart(base: &Base, a: &Adapter, b: &Adapter, batch: &MicroBatch, text: &Text) -> f64 {
    let predict = |adapter| {
        let network = Network::with_adapter(base, adapter, Checkpointing::None).unwrap();
        network.run(batch, text, 1.0).unwrap().prediction
    };
    let squares = (predict(a) - predict(b)).unwrap().sqr().unwrap();
    f64::from(squares.flatten_from(1).unwrap().mean(1).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
}

#[test]
fn the_prior_is_the_distance_to_the_base_and_nothing_where_nothing_was_learned() {
    let base = base();
    let adapter = Adapter::read(&repository().join("tests/golden/sd1/adapter.safetensors")).unwrap();
    let (batch, text) = (batch(1), text(&base, ["a dog on sand", ""]));
    let expected = apart(&base, &adapter, &zeroed(&adapter), &batch, &text);
    assert!(expected > 1e-3);
    for checkpointing in [Checkpointing::None, Checkpointing::Block] {
        let network = Network::with_adapter(&base, &adapter, checkpointing).unwrap();
        let outcome = network.run_prior(&batch, &text, 1.0).unwrap();
        let loss = outcome.weighted_loss.to_scalar::<f64>().unwrap();
        assert!((loss - expected).abs() < 1e-4 * expected, "{loss} {expected}");
        let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
        assert_eq!(gradients.len(), 2 * network.factors().len());
    }
    let new = Network::with_adapter(&base, &zeroed(&adapter), Checkpointing::None).unwrap();
    assert!(new.run_prior(&batch, &text, 1.0).unwrap().weighted_loss.to_scalar::<f64>().unwrap() < 1e-12);
}

#[test]
fn a_run_with_the_prior_stays_nearer_to_the_base_on_other_captions() {
    let place = tempfile::tempdir().unwrap();
    let captions = place.path().join("captions.txt");
    loralei_adapter::atomic_write_bytes(&captions, b"a dog\nthe photo of sand\n\nsks\n").unwrap();
    let trained = |name: &str, settings: &[&str]| {
        let mut layers = ConfigLayers::new();
        layers.set_text("data.images", repository().join("datasets/octopus").to_str().unwrap()).unwrap();
        layers.set_text("output.folder", place.path().join(name).to_str().unwrap()).unwrap();
        layers.set_text("prior.captions", captions.to_str().unwrap()).unwrap();
        let common = ["data.size_px=32", "train.steps=60", "train.batch_size=2", "optimizer.learning_rate=1e-2"];
        for setting in common.iter().chain(settings) {
            layers.set(setting).unwrap();
        }
        let resolved = layers.resolve().unwrap();
        let plan = Plan::new(&resolved.config).unwrap();
        let source = BaseSource::Folder(repository().join("tests/golden/sd1/base"));
        let ended = train(&plan, source, &RunOptions::new(&resolved), &mut |_| ()).unwrap();
        Adapter::read(&ended.adapter().path).unwrap()
    };
    let (free, held) =
        (trained("free", &[]), trained("held", &["prior.kind=base", "prior.weight=4", "prior.every_steps=1"]));
    let base = base();
    let (batch, text) = (batch(2), text(&base, ["a dog", "sks"]));
    let leak = |adapter: &Adapter| apart(&base, adapter, &zeroed(adapter), &batch, &text);
    let (free, held) = (leak(&free), leak(&held));
    assert!(held < 0.7 * free, "without {free}, with {held}");
}

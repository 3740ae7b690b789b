//! Learning that is real: two images, the same noise and timesteps in every step, and the loss must fall.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use candle_core::{DType, Device};
use loralei_model::{Base, BaseSource};
use loralei_trainer::{
    AdamWSettings, Checkpointing, ComponentPlan, ConfigLayers, GradientTree, MicroBatch, Network, Optimizer,
    OptimizerSettings, Plan, Targets, TrainingData,
};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn overfitting_two_images_more_than_halves_the_loss() {
    let images = tempfile::tempdir().unwrap();
    for name in ["01-red", "05-blue"] {
        for ending in ["png", "txt"] {
            let file = format!("{name}.{ending}");
            std::fs::copy(repository().join("datasets/octopus").join(&file), images.path().join(&file)).unwrap();
        }
    }
    let source = BaseSource::Folder(repository().join("tests/golden/sd1/base"));
    let base = Base::open(source, None, DType::F32, &Device::Cpu).unwrap();
    let mut layers = ConfigLayers::new();
    layers.set_text("data.images", &images.path().display().to_string()).unwrap();
    for set in ["data.width_px=32", "data.height_px=48", "data.buckets=false", "data.cache=off", "train.seed=3"] {
        layers.set(set).unwrap();
    }
    for set in ["train.batch_size=2", "lora.text_encoder.targets=full"] {
        layers.set(set).unwrap();
    }
    let run = Plan::new(&layers.resolve().unwrap().config).unwrap();
    let (_, data) = TrainingData::prepare(&run, &base, &mut |_| ()).unwrap();
    let (targets, blocks) = (Targets::Full, Vec::new());
    let plan = ComponentPlan { targets, rank: 16, alpha: 16.0, subspace: None, learning_rate: 1e-2, blocks };
    let network = Network::load(&base, Some(&plan), &[Some(plan.clone())], 3, Checkpointing::None).unwrap();

    let (batch, text) = data.subject(&run, 0, 0, 1000).unwrap();
    let batch = MicroBatch { timesteps: vec![700, 300], ..batch };
    assert_eq!(batch.latents.dims(), [2, 4, 12, 8]);
    let factors = network.factors().vars();
    let mut optimizer = Optimizer::new(OptimizerSettings::AdamW(AdamWSettings::default()));
    let mut losses = Vec::new();
    for _ in 0..200 {
        let outcome = network.run(&batch, &text, 1.0).unwrap();
        let mut tree = GradientTree::new();
        let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
        tree.push(gradients, outcome.weighted_loss, outcome.weight).unwrap();
        let step = tree.finish().unwrap().unwrap();
        optimizer.step(&factors, &step.gradients, 1.0, |_| plan.learning_rate).unwrap();
        losses.push(step.loss().unwrap());
    }
    let (first, last) = (losses[0], losses[199]);
    assert!(last < 0.5 * first, "the loss went from {first} to {last}");
}

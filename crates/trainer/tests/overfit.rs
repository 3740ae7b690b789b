//! Learning that is real: two images, the same noise and timesteps in every step, and the loss must fall.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_data::{CaptionRules, Folder};
use loralei_model::{Base, BaseSource};
use loralei_trainer::{
    AdamW, AdamWSettings, Checkpointing, ComponentPlan, Draw, EncodedData, GradientTree, MicroBatch, Network, Purpose,
    Targets,
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
    let folder = Folder::read(images.path(), CaptionRules::default()).unwrap();
    let source = BaseSource::Folder(repository().join("tests/golden/sd1/base"));
    let base = Base::open(source, None, DType::F32, &Device::Cpu).unwrap();
    let data = EncodedData::new(&base, &folder, (32, 48), true, Vec::new(), &mut |_| ()).unwrap();
    let plan = ComponentPlan { targets: Targets::Full, rank: 16, alpha: 16.0, learning_rate: 1e-2 };
    let network = Network::load(&base, Some(&plan), Some(&plan), 3, Checkpointing::None).unwrap();

    let latents = data.latents(&[0, 1], Draw::new(3, 0, 0, Purpose::LatentSample)).unwrap();
    let noise = Draw::new(3, 0, 0, Purpose::Noise).standard_normal(latents.elem_count());
    let noise = Tensor::from_vec(noise, latents.shape(), &Device::Cpu).unwrap();
    let batch = MicroBatch { latents, noise, timesteps: vec![700, 300], loss_mask: None, sample_weight: None };
    let text = data.text(&[0, 1]).unwrap();
    let factors = network.factors().vars();
    let mut adamw = AdamW::new(AdamWSettings::default());
    let mut losses = Vec::new();
    for _ in 0..200 {
        let outcome = network.run(&batch, &text, 1.0).unwrap();
        let mut tree = GradientTree::new();
        let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
        tree.push(gradients, outcome.weighted_loss, outcome.weight).unwrap();
        let step = tree.finish().unwrap().unwrap();
        adamw.step(&factors, &step.gradients, |_| plan.learning_rate).unwrap();
        losses.push(step.loss().unwrap());
    }
    let (first, last) = (losses[0], losses[199]);
    assert!(last < 0.5 * first, "the loss went from {first} to {last}");
}

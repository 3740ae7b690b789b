//! Training steps against diffusers + PEFT: `tests/golden`, made by `make_golden.py` there. Relative norms: prediction
//! 1e-5, each gradient 1e-4, each loss 1e-5, ten times what rounding makes of these small cases.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use loralei_adapter::{Adapter, TensorFile, TensorView, write_tensors};
use loralei_model::DeviceChoice;
use loralei_trainer::{BaseSource, Checkpointing, Compute, Dtype, Ops, StepVerification, Verified, WeightDtype};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CASES: [&str; 4] = ["sd1", "sd2", "sdxl", "sdxl-v"];

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn verify(name: &str, dtype: Dtype, checkpointing: Checkpointing, ops: Ops) -> Verified {
    verify_base(&case(name).join("base"), name, (dtype, WeightDtype::F32), checkpointing, ops)
}

/// The case `name` on another base of its size.
fn verify_base(
    base: &Path,
    name: &str,
    (dtype, weights): (Dtype, WeightDtype),
    checkpointing: Checkpointing,
    ops: Ops,
) -> Verified {
    let folder = case(name);
    let (adapter, batch) = (folder.join("adapter.safetensors"), folder.join("batch.safetensors"));
    let verification = StepVerification {
        schedule: None.into(),
        base: BaseSource::Folder(base.to_owned()),
        adapter: &adapter,
        batch: &batch,
        learning_rate: 1e-3,
        weight_decay: 1e-2,
        dtype,
        weights,
        compute: Compute::F32,
        checkpointing,
        device: DeviceChoice::Cpu,
        ops,
    };
    verification.run(|_, _| ()).unwrap()
}

fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut theirs.iter().map(|x| f64::from(*x)))
}

fn numbers(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn steps_match_diffusers_and_peft_with_and_without_recompute() {
    for name in CASES {
        let expected = TensorFile::open(&case(name).join("expected.safetensors")).unwrap();
        let adapter = Adapter::read(&case(name).join("adapter.safetensors")).unwrap();
        let ways = [Ops::Auto, Ops::Generic].map(|ops| [(Checkpointing::None, ops), (Checkpointing::Block, ops)]);
        for (checkpointing, ops) in ways.into_iter().flatten() {
            let ours = verify(name, Dtype::F32, checkpointing, ops);
            let what = format!("{name} {checkpointing:?} {ops:?}");
            let d = distance(&numbers(&ours.prediction), &expected.read_f32("pred").unwrap());
            assert!(d < 1e-5, "{what}: prediction {d}");
            assert_eq!(ours.gradients.len(), 2 * adapter.modules.len(), "{what}: every factor has a gradient");
            for (key, gradient) in &ours.gradients {
                let d = distance(&numbers(gradient), &expected.read_f32(&format!("grad.{key}")).unwrap());
                assert!(d < 1e-4, "{what}: gradient of {key} {d}");
            }
            for (key, factor) in &ours.factors {
                let d = distance(&numbers(factor), &expected.read_f32(&format!("final.{key}")).unwrap());
                assert!(d < 1e-3, "{what}: final {key} {d}");
            }
            let losses = expected.read_f32("loss").unwrap();
            assert_eq!(ours.losses.len(), losses.len());
            for (step, (ours, theirs)) in ours.losses.iter().zip(&losses).enumerate() {
                assert!((ours - theirs).abs() < 1e-5 * theirs, "{what}: loss of step {step}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn recompute_changes_only_the_order_of_additions() {
    for name in ["sd1", "sdxl", "sdxl-v"] {
        let (none, block) = (
            verify(name, Dtype::F32, Checkpointing::None, Ops::Auto),
            verify(name, Dtype::F32, Checkpointing::Block, Ops::Auto),
        );
        assert_eq!(
            numbers(&none.prediction),
            numbers(&block.prediction),
            "{name}: the forward pass is the same to the bit"
        );
        for (key, gradient) in &none.gradients {
            let d = distance(&numbers(&block.gradients[key]), &numbers(gradient));
            assert!(d < 1e-4, "{name} {key}: {d}");
        }
    }
}

#[test]
fn the_pooled_text_teaches_the_second_encoders_last_layer_and_nothing_the_firsts() {
    for name in ["sdxl", "sdxl-v"] {
        for checkpointing in [Checkpointing::None, Checkpointing::Block] {
            let ours = verify(name, Dtype::F32, checkpointing, Ops::Auto);
            let of_layer = |prefix: &str| {
                let of_layer = ours.gradients.iter().filter(|(key, _)| key.starts_with(prefix));
                of_layer.map(|(key, gradient)| (key, numbers(gradient))).collect::<Vec<_>>()
            };
            let last = of_layer("lora_te2_text_model_encoder_layers_2_");
            assert_eq!(last.len(), 2 * 6, "{name}");
            for (key, gradient) in last {
                assert!(gradient.iter().any(|x| x.abs() > 1e-7), "{name} {checkpointing:?}: {key}");
            }
            assert_eq!(of_layer("lora_te1_text_model_encoder_layers_1_").len(), 2 * 6, "{name}");
            assert!(of_layer("lora_te1_text_model_encoder_layers_2_").is_empty(), "{name}");
        }
    }
}

#[test]
fn half_precision_bases_stay_near() {
    let exact = verify("sd2", Dtype::F32, Checkpointing::None, Ops::Auto);
    for (dtype, tolerance) in [(Dtype::Bf16, 3e-2), (Dtype::F16, 5e-3)] {
        for ops in [Ops::Auto, Ops::Generic] {
            let half = verify("sd2", dtype, Checkpointing::Block, ops);
            let d = distance(&numbers(&half.prediction), &numbers(&exact.prediction));
            assert!(d < tolerance, "{dtype:?} {ops:?}: {d}");
            assert_eq!(half.gradients.len(), exact.gradients.len());
        }
    }
}

/// A copy of a base whose weights are stored as `dtype`.
fn stored_as(name: &str, dtype: loralei_adapter::Dtype) -> tempfile::TempDir {
    let (from, place) = (case(name).join("base"), tempfile::tempdir().unwrap());
    for folder in std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let to = place.path().join(folder.file_name().unwrap());
        std::fs::create_dir(&to).unwrap();
        for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let target = to.join(path.file_name().unwrap());
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                std::fs::copy(&path, target).unwrap();
                continue;
            }
            let file = TensorFile::open(&path).unwrap();
            let floats = file.names().filter(|name| file.info(name).unwrap().dtype == loralei_adapter::Dtype::F32);
            let read = |name: &str| (file.info(name).unwrap().shape.clone(), file.read_f32(name).unwrap());
            let all: BTreeMap<String, _> = floats.map(|name| (name.to_owned(), read(name))).collect();
            let view = |(shape, values)| TensorView::f32_stored_as(dtype, shape, values);
            let views = all.iter().map(|(name, (shape, values))| (name.clone(), view((shape, values))));
            write_tensors(&target, &views.collect(), &BTreeMap::new()).unwrap();
        }
    }
    place
}

#[test]
fn a_16_bit_base_kept_as_it_is_trains_as_in_f32_to_the_bit() {
    for (name, stored) in [("sd1", loralei_adapter::Dtype::F16), ("sd2", loralei_adapter::Dtype::Bf16)] {
        let base = stored_as(name, stored);
        let run = |weights| verify_base(base.path(), name, (Dtype::F32, weights), Checkpointing::None, Ops::Auto);
        let (kept, widened) = (run(WeightDtype::Auto), run(WeightDtype::F32));
        assert_eq!(kept.losses, widened.losses, "{name}");
        assert_eq!(numbers(&kept.prediction), numbers(&widened.prediction), "{name}");
        for (key, gradient) in &widened.gradients {
            assert_eq!(numbers(&kept.gradients[key]), numbers(gradient), "{name} {key}");
        }
    }
}

#[test]
fn narrowed_weights_stay_near_with_both_implementations() {
    let with =
        |weights, ops| verify_base(&case("sd1").join("base"), "sd1", (Dtype::F32, weights), Checkpointing::None, ops);
    let exact = with(WeightDtype::F32, Ops::Auto);
    for (weights, ops, tolerance) in [
        (WeightDtype::Auto, Ops::Auto, 2e-3),
        (WeightDtype::F16, Ops::Generic, 2e-3),
        (WeightDtype::Bf16, Ops::Auto, 2e-2),
        (WeightDtype::Bf16, Ops::Generic, 2e-2),
        (WeightDtype::Int8, Ops::Auto, 2e-2),
        (WeightDtype::Int8, Ops::Generic, 2e-2),
    ] {
        let narrow = with(weights, ops);
        let d = distance(&numbers(&narrow.prediction), &numbers(&exact.prediction));
        // Sums in another order alone make less than 1e-6.
        assert!(d > 1e-5 && d < tolerance, "{weights:?} {ops:?}: {d}");
        for (narrow, exact) in narrow.losses.iter().zip(&exact.losses) {
            assert!((narrow / exact - 1.0).abs() < 0.01, "{weights:?} {ops:?}: loss {narrow}, exactly {exact}");
        }
    }
}

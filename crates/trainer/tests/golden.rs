//! Training steps against diffusers + PEFT: `tests/golden`, made by `make_golden.py` there. Relative norms: prediction
//! 1e-5, each gradient 1e-4, each loss 1e-5, ten times what rounding makes of these small cases.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use loralei_adapter::{Adapter, TensorFile};
use loralei_model::DeviceChoice;
use loralei_trainer::{BaseSource, Checkpointing, Dtype, Ops, StepVerification, Verified};
use std::path::PathBuf;

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn verify(name: &str, dtype: Dtype, checkpointing: Checkpointing, ops: Ops) -> Verified {
    let folder = case(name);
    let (adapter, batch) = (folder.join("adapter.safetensors"), folder.join("batch.safetensors"));
    let verification = StepVerification {
        prediction: None,
        base: BaseSource::Folder(folder.join("base")),
        adapter: &adapter,
        batch: &batch,
        learning_rate: 1e-3,
        weight_decay: 1e-2,
        dtype,
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
    for name in ["sd1", "sd2"] {
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
    let (none, block) = (
        verify("sd1", Dtype::F32, Checkpointing::None, Ops::Auto),
        verify("sd1", Dtype::F32, Checkpointing::Block, Ops::Auto),
    );
    assert_eq!(numbers(&none.prediction), numbers(&block.prediction), "the forward pass is the same to the bit");
    for (key, gradient) in &none.gradients {
        let d = distance(&numbers(&block.gradients[key]), &numbers(gradient));
        assert!(d < 1e-5, "{key}: {d}");
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

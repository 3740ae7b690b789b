//! An adapter from what two models differ by: a known one comes back.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use candle_core::{DType, Device};
use loralei_adapter::{AdapterFile, Array, Change, Dtype, LoraModule, SaveDtype};
use loralei_model::{Base, BaseSource, ExtractionSettings, Layout, ModelError, Targets, convert, extract, merge};
use std::path::{Path, PathBuf};

const CONVOLUTION: &str = "lora_unet_down_blocks_0_resnets_0_conv1";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: &Path) -> Base {
    Base::open(BaseSource::at_path(path), None, DType::F32, &Device::Cpu).unwrap()
}

fn numbers(shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let data = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0).collect();
    Array { shape: shape.to_vec(), data }
}

fn settings() -> ExtractionSettings {
    ExtractionSettings { rank: 4, conv_rank: Some(3), unet: Targets::Full, text_encoder: Targets::Full, clamp: 1.0 }
}

/// The golden adapter and a convolution, of at most the ranks above.
fn known(name: &str) -> AdapterFile {
    let mut adapter = AdapterFile::read(&golden(name).join("adapter.safetensors")).unwrap();
    let base = open(&golden(name).join("base")).unet_weights().unwrap();
    let shape = base.info("down_blocks.0.resnets.0.conv1.weight").unwrap().shape;
    let factors =
        LoraModule { down: numbers(&[3, shape[1], 3, 3], 1), up: numbers(&[shape[0], 3, 1, 1], 2), alpha: Some(0.5) };
    adapter.changes.insert(CONVOLUTION.to_owned(), Change::Lora(factors));
    adapter
}

#[test]
fn a_known_adapter_comes_back_from_a_base_of_any_layout() {
    for name in ["sd1", "sd2"] {
        let place = tempfile::tempdir().unwrap();
        let base = open(&golden(name).join("base"));
        let known = known(name);
        let tuned = place.path().join("tuned");
        merge(&base, &[(&known, 0.8)], &tuned, None, &mut |_, _| ()).unwrap();
        let tuned_file = place.path().join("tuned.safetensors");
        convert(&open(&tuned), &tuned_file, Layout::SingleFile, None, &mut |_, _| ()).unwrap();

        for tuned in [&tuned, &tuned_file] {
            let mut last = (0, 0);
            let mut progress = |done, total| last = (done, total);
            let found = extract(&base, &open(tuned), &settings(), "found", &mut progress).unwrap();
            assert_eq!(last.0, last.1);
            assert_eq!(last.1 as usize, found.layers.len() + found.unchanged.len());
            let modules: Vec<&String> = found.adapter.modules.keys().collect();
            assert_eq!(modules, known.changes.keys().collect::<Vec<_>>());
            for layer in &found.layers {
                let expected = known.changes[&layer.module].delta(None, 0.8).unwrap();
                let ours = found.adapter.modules[&layer.module].delta();
                let rest = ours.data.iter().zip(&expected.data).map(|(a, b)| a - b).collect();
                let d = Array { shape: expected.shape.clone(), data: rest }.norm() / expected.norm();
                assert!(d < 1e-4 && layer.relative_error < 1e-4, "{name} {}: {d:e}", layer.module);
                assert!((layer.difference_norm - expected.norm()).abs() < 1e-4 * expected.norm());
                assert_eq!(found.adapter.modules[&layer.module].alpha, Some(layer.rank as f32));
            }
            assert_eq!(found.adapter.metadata["ss_network_dim"], "4");
            assert!(!found.adapter.metadata.contains_key("ss_learning_rate"));
            // The file is one that the program reads.
            let path = place.path().join("found.safetensors");
            found.adapter.write(&path, SaveDtype::F32).unwrap();
            let again = AdapterFile::read(&path).unwrap().to_adapter().unwrap();
            assert_eq!(again.modules, found.adapter.modules);
        }
    }
}

#[test]
fn the_error_falls_with_the_rank_and_no_rank_is_above_what_a_layer_has() {
    let place = tempfile::tempdir().unwrap();
    let base = open(&golden("sd1").join("base"));
    let mut full = known("sd1");
    full.changes.retain(|module, _| module == CONVOLUTION);
    let shape = full.changes[CONVOLUTION].weight_shape();
    let leaves = [("diff".to_owned(), numbers(&shape, 9))].into();
    full.changes.insert(CONVOLUTION.to_owned(), Change::from_leaves(CONVOLUTION, leaves).unwrap());
    let tuned = place.path().join("tuned");
    merge(&base, &[(&full, 1.0)], &tuned, None, &mut |_, _| ()).unwrap();
    let of_rank = |conv_rank| {
        let settings = ExtractionSettings { conv_rank: Some(conv_rank), ..settings() };
        extract(&base, &open(&tuned), &settings, "x", &mut |_, _| ()).unwrap().layers.remove(0)
    };
    let errors: Vec<f64> = [1, 2, 4].map(|rank| of_rank(rank).relative_error).to_vec();
    assert!(errors[0] > errors[1] && errors[1] > errors[2] && errors[2] > 0.1, "{errors:?}");
    let whole = of_rank(999);
    assert_eq!(whole.rank, shape[0].min(shape[1] * 9));
    assert!(whole.relative_error < 1e-5);
    let without = ExtractionSettings { conv_rank: None, ..settings() };
    let error = extract(&base, &open(&tuned), &without, "x", &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, ModelError::NoDifference { .. }), "3x3 convolutions get no factors without a rank");
}

#[test]
fn a_copy_of_other_precision_is_no_change_and_another_model_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let base = open(&golden("sd1").join("base"));
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let copy = place.path().join(format!("{dtype}.safetensors"));
        convert(&base, &copy, Layout::SingleFile, Some(dtype), &mut |_, _| ()).unwrap();
        for (base, tuned) in [(&base, &open(&copy)), (&open(&copy), &base)] {
            let error = extract(base, tuned, &settings(), "x", &mut |_, _| ()).unwrap_err();
            assert!(matches!(error, ModelError::NoDifference { .. }), "{error}");
        }
    }
    let other = open(&golden("sd2").join("base"));
    let error = extract(&base, &other, &settings(), "x", &mut |_, _| ()).unwrap_err();
    let is_refused = matches!(error, ModelError::DifferentModels { .. } | ModelError::MissingTensor { .. });
    assert!(is_refused, "{error}");
}

//! Figures of adapters against NumPy's (`tests/golden/adapters/measures.py`), and descriptions of files.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{
    Adapter, AdapterError, AdapterFile, Array, Change, DoraModule, FullModule, Inspection, LoraModule, ModuleMeasures,
    SaveDtype,
};
use serde_json::Value;

const LINEAR: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
const CONV: &str = "lora_unet_up_blocks_1_resnets_0_conv1";

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters/measures.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// As in the script.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed) % 1009) as f64 / 504.5 - 1.0) as f32).collect()
}

fn array(shape: &[usize], seed: usize) -> Array {
    Array { shape: shape.to_vec(), data: numbers(shape.iter().product(), seed) }
}

fn linear(rank: usize, alpha: f32, seed: usize) -> Change {
    let (down, up) = (array(&[rank, 30], seed), array(&[20, rank], seed + 384));
    Change::Lora(LoraModule { down, up, alpha: Some(alpha) })
}

fn conv() -> Change {
    let (down, up) = (array(&[4, 5, 3, 3], 29), array(&[10, 4, 1, 1], 29 + 384));
    Change::Lora(LoraModule { down, up, alpha: Some(6.0) })
}

fn file(changes: &[(&str, Change)]) -> AdapterFile {
    let empty = Adapter::default();
    let changes = changes.iter().map(|(name, change)| ((*name).to_owned(), change.clone())).collect();
    AdapterFile { changes, ..AdapterFile::from_adapter(empty, Path::new("made/here.safetensors")) }
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a base's answer")]
fn weights(module: &str) -> Result<Option<Array>, AdapterError> {
    Ok(match module {
        LINEAR => Some(array(&[20, 30], 5)),
        CONV => Some(array(&[10, 5, 3, 3], 6)),
        _ => None,
    })
}

fn assert_close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < 2e-6 * expected.abs().max(1e-3), "{what}: {found} for {expected}");
}

fn assert_measures(found: &ModuleMeasures, golden: &Value) {
    assert_close(found.frobenius, &golden["frobenius"], "frobenius");
    assert_close(found.spectral, &golden["spectral"], "spectral");
    assert_close(found.stable_rank, &golden["stable_rank"], "stable rank");
    assert_close(found.effective_rank, &golden["effective_rank"], "effective rank");
    assert_eq!(found.singular_values.len(), golden["singular_values"].as_array().unwrap().len());
    for (value, expected) in found.singular_values.iter().zip(golden["singular_values"].as_array().unwrap()) {
        assert_close(*value, expected, "singular value");
    }
    let base = found.base.as_ref().unwrap();
    assert_close(base.share, &golden["share"], "share");
    assert_close(base.projected, &golden["projected"], "projected");
    assert_close(base.amplification, &golden["amplification"], "amplification");
}

#[test]
fn figures_of_layers_are_those_of_numpy() {
    let file = file(&[(LINEAR, linear(3, 2.0, 17)), (CONV, conv()), ("lora_unet_conv_in", linear(1, 1.0, 3))]);
    let inspection = Inspection::of(&file, Some(&weights), None).unwrap();
    let of = |name: &str| inspection.modules.iter().find(|module| module.module == name).unwrap();
    assert_measures(of(LINEAR), &golden()["linear"]);
    assert_measures(of(CONV), &golden()["conv"]);
    assert_eq!(
        (of(CONV).weight_shape.as_slice(), of(CONV).rank, of(CONV).alpha),
        (&[10, 5, 3, 3][..], Some(4), Some(6.0))
    );
    assert!(of("lora_unet_conv_in").base.is_none(), "the base has no such layer");
}

#[test]
fn a_whole_difference_has_the_figures_of_its_numbers() {
    let Change::Lora(factors) = linear(3, 2.0, 17) else { unreachable!() };
    let whole = Change::Full(FullModule { weight: array(&[20, 30], 5), bias: None });
    let found = ModuleMeasures::of(LINEAR, &whole, Some(&factors.delta())).unwrap();
    assert_measures(&found, &golden()["whole"]);
    assert_eq!(found.rank, None);
}

#[test]
fn dora_is_measured_by_what_it_adds_and_without_a_base_by_its_direction() {
    let dora = |magnitude: f32| {
        let magnitude = Array { shape: vec![20, 1], data: (0..20).map(|i| magnitude + i as f32 / 10.0).collect() };
        Change::Dora(DoraModule { direction: Box::new(linear(3, 2.0, 17)), magnitude })
    };
    let direction = ModuleMeasures::of(LINEAR, &dora(3.0), None).unwrap();
    assert_close(direction.frobenius, &golden()["linear"]["frobenius"], "direction");
    assert!(direction.kind.contains("direction"), "{}", direction.kind);
    let weight = weights(LINEAR).unwrap().unwrap();
    let whole = ModuleMeasures::of(LINEAR, &dora(3.0), Some(&weight)).unwrap();
    let delta = dora(3.0).delta(Some(&weight), 1.0).unwrap();
    assert!((whole.frobenius - delta.norm()).abs() < 1e-9 * delta.norm());
    assert!((whole.frobenius - direction.frobenius).abs() > 1e-2 * delta.norm());
    assert!(!whole.kind.contains("direction"));
}

#[test]
fn subspaces_of_two_adapters_lie_as_numpy_says() {
    let (here, there) = (
        file(&[(LINEAR, linear(3, 2.0, 17)), (CONV, conv())]),
        file(&[(LINEAR, linear(5, 5.0, 501)), ("lora_unet_conv_in", linear(1, 1.0, 3))]),
    );
    let inspection = Inspection::of(&here, None, Some(&there)).unwrap();
    let comparison = inspection.against.unwrap();
    assert_eq!(
        (comparison.only_here, comparison.only_there),
        (vec![CONV.to_owned()], vec!["lora_unet_conv_in".to_owned()])
    );
    let [pair] = comparison.modules.as_slice() else { panic!("one layer in both") };
    let golden = &golden()["pair"];
    for (found, expected) in [(&pair.input, &golden["input"]), (&pair.output, &golden["output"])] {
        assert_eq!((found.len(), found[0].len()), (3, 5));
        for (row, expected) in found.iter().zip(expected.as_array().unwrap()) {
            for (value, expected) in row.iter().zip(expected.as_array().unwrap()) {
                assert!((value - expected.as_f64().unwrap()).abs() < 2e-6, "{value} {expected}");
            }
        }
    }
    assert_close(pair.cosine, &golden["cosine"], "cosine");
    assert_eq!((pair.random_input, pair.random_output), (5.0 / 30.0, 5.0 / 20.0));
}

#[test]
fn an_adapter_lies_on_itself_and_its_negative_opposite() {
    let mut turned = linear(3, 2.0, 17);
    let Change::Lora(factors) = &mut turned else { unreachable!() };
    factors.up.data.iter_mut().for_each(|value| *value = -*value);
    let whole = Change::Full(FullModule { weight: linear(3, 2.0, 17).delta(None, 1.0).unwrap(), bias: None });
    let here = file(&[(LINEAR, linear(3, 2.0, 17))]);
    for (there, cosine) in [(linear(3, 2.0, 17), 1.0), (turned, -1.0), (whole, 1.0)] {
        let inspection = Inspection::of(&here, None, Some(&file(&[(LINEAR, there)]))).unwrap();
        let pair = inspection.against.unwrap().modules.remove(0);
        assert!((pair.cosine - cosine).abs() < 1e-6);
        assert!(pair.input[2][2] > 0.99999 && pair.output[0][0] > 0.9999);
    }
}

#[test]
fn a_layer_that_changes_nothing_has_zeros_and_no_nan() {
    let mut zero = linear(3, 2.0, 17);
    let Change::Lora(factors) = &mut zero else { unreachable!() };
    factors.up.data.fill(0.0);
    let (here, there) = (file(&[(LINEAR, zero)]), file(&[(LINEAR, linear(2, 1.0, 9))]));
    let inspection = Inspection::of(&here, Some(&weights), Some(&there)).unwrap();
    let module = &inspection.modules[0];
    assert_eq!((module.frobenius, module.spectral, module.stable_rank, module.effective_rank), (0.0, 0.0, 0.0, 0.0));
    assert!(module.singular_values.is_empty());
    let base = module.base.as_ref().unwrap();
    assert_eq!((base.share, base.projected, base.amplification), (0.0, 0.0, 0.0));
    let pair = &inspection.against.as_ref().unwrap().modules[0];
    assert!(pair.input.is_empty() && pair.cosine == 0.0);
    assert!(!serde_json::to_string(&inspection).unwrap().contains("null,\"projected"));
}

#[test]
fn bases_and_adapters_of_another_family_are_refused() {
    let here = file(&[(LINEAR, linear(3, 2.0, 17))]);
    let wrong = |_: &str| Ok(Some(array(&[20, 31], 5)));
    assert!(matches!(Inspection::of(&here, Some(&wrong), None), Err(AdapterError::WeightShapes { .. })));
    let other = Change::Lora(LoraModule { down: array(&[2, 31], 1), up: array(&[20, 2], 2), alpha: None });
    let there = file(&[(LINEAR, other)]);
    assert!(matches!(Inspection::of(&here, None, Some(&there)), Err(AdapterError::WeightShapes { .. })));
}

#[test]
fn a_file_is_described() {
    let Change::Lora(attention) = linear(3, 2.0, 17) else { unreachable!() };
    let text = "lora_te_text_model_encoder_layers_4_self_attn_q_proj";
    let modules = [(LINEAR.to_owned(), attention.clone()), (text.to_owned(), LoraModule { alpha: None, ..attention })];
    let metadata = [("ss_v2", "False"), ("modelspec.trigger_phrase", "sks dog"), ("modelspec.title", "Dog")];
    let metadata: BTreeMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dog.safetensors");
    Adapter { modules: modules.into(), metadata }.write(&path, SaveDtype::F16).unwrap();

    let file = AdapterFile::read(&path).unwrap();
    let found = Inspection::of(&file, None, None).unwrap();
    assert_eq!((found.file.as_str(), found.format.as_str()), ("dog.safetensors", "kohya"));
    assert_eq!(found.num_bytes, std::fs::metadata(&path).unwrap().len());
    assert_eq!((found.dtypes.as_slice(), found.num_parameters), (&["F16".to_owned()][..], 2 * 150));
    assert_eq!(found.ranks, [(3, 2)].into());
    assert_eq!(found.alphas, [("2".to_owned(), 1), ("none".to_owned(), 1)].into());
    let targets = [("U-Net attn2.to_k".to_owned(), 1), ("text encoder self_attn.q_proj".to_owned(), 1)];
    assert_eq!(found.targets, targets.into());
    assert_eq!(found.trigger_words, ["sks dog"]);
    assert_eq!(found.hashes_match, Some(true));
    assert_eq!(found.hashes["autov2"], found.hashes["sha256"][..10]);
    assert_eq!(found.hashes["autov3"], found.hashes["sshs_model_hash"][..12]);
}

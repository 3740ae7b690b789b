//! Every form of a change against what PEFT and torch make of the same factors (`tests/golden/adapters/make_variants.py`).

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loralei_adapter::{AdapterError, Array, Change, HadamardModule, TensorFile};

struct Case {
    module: String,
    leaves: BTreeMap<String, Array>,
    weight: Array,
    delta: Array,
}

impl Case {
    fn change(&self) -> Change {
        Change::from_leaves(&self.module, self.leaves.clone()).unwrap()
    }
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters/variants.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let read = |name: &str| Array { shape: file.info(name).unwrap().shape.clone(), data: file.read_f32(name).unwrap() };
    let modules: BTreeSet<&str> = file.names().filter_map(|name| name.strip_prefix("delta.")).collect();
    let of_module = |module: &str| {
        let prefix = format!("{module}.");
        let leaves = file.names().filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), read(name))));
        Case {
            module: module.to_owned(),
            leaves: leaves.collect(),
            weight: read(&format!("weight.{module}")),
            delta: read(&format!("delta.{module}")),
        }
    };
    modules.into_iter().map(of_module).collect()
}

fn distance(ours: &Array, theirs: &Array) -> f64 {
    assert_eq!(ours.shape, theirs.shape);
    let difference = ours.data.iter().zip(&theirs.data).map(|(a, b)| a - b).collect();
    Array { shape: ours.shape.clone(), data: difference }.norm() / theirs.norm()
}

#[test]
fn deltas_are_those_of_peft_and_torch() {
    let mut kinds = BTreeSet::new();
    for case in cases() {
        let change = case.change();
        kinds.insert(change.kind());
        assert!(change.fits(&case.weight.shape), "{}", case.module);
        let delta = change.delta(Some(&case.weight), 1.0).unwrap();
        let d = distance(&delta, &case.delta);
        assert!(d < 1e-6, "{}: {d:e}", case.module);
    }
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}

#[test]
fn the_shape_of_the_weight_is_known_without_it() {
    for case in cases() {
        let expected = match &case.weight.shape[..] {
            // Nothing tells that a LoHa or LoKr of a linear layer is of a 1x1 convolution, and nothing needs it.
            [out, columns, 1, 1] if !case.module.contains("dora") && case.change().weight_shape().len() == 2 => {
                vec![*out, *columns]
            }
            shape => shape.to_vec(),
        };
        assert_eq!(case.change().weight_shape(), expected, "{}", case.module);
    }
}

#[test]
fn strength_is_linear_and_of_dora_the_way_from_the_base_to_the_trained_weight() {
    for case in cases() {
        let half = case.change().delta(Some(&case.weight), -0.4).unwrap();
        let data = case.delta.data.iter().map(|value| -0.4 * value).collect();
        let d = distance(&half, &Array { shape: case.delta.shape.clone(), data });
        assert!(d < 1e-6, "{}: {d:e}", case.module);
    }
}

#[test]
fn low_rank_forms_are_exact_and_never_larger_than_they_need_be() {
    for case in cases() {
        let change = case.change();
        let Some(module) = change.to_low_rank() else {
            assert!(["DoRA", "full difference"].contains(&change.kind()));
            continue;
        };
        module.check(&case.module).unwrap();
        let mut delta = module.delta();
        delta.shape.clone_from(&case.delta.shape);
        let d = distance(&delta, &case.delta);
        assert!(d < 1e-6, "{}: {d:e}", case.module);
        let shape = &case.weight.shape;
        assert!(module.rank() <= shape[0].min(shape[1..].iter().product()), "{}", case.module);
    }
    let rank = |module: &str| {
        cases().iter().find(|case| case.module == module).unwrap().change().to_low_rank().unwrap().rank()
    };
    assert_eq!(rank("lora_unet_loha_linear"), 4); // 2 * 2
    assert_eq!(rank("lora_unet_loha_high_linear"), 12); // not 5 * 5
    assert_eq!(rank("lora_unet_lokr_linear"), 3 * 2); // a whole (4, 3) and a product of rank 2
    assert_eq!(rank("lora_unet_lokr_both_linear"), 1);
    assert_eq!(rank("lora_unet_tucker_conv1"), 2);
}

#[test]
fn leaves_come_back_as_they_were() {
    for case in cases() {
        let leaves: BTreeMap<String, Array> =
            case.change().leaves().into_iter().map(|(leaf, array)| (leaf.to_owned(), array)).collect();
        assert_eq!(leaves, case.leaves, "{}", case.module);
        let numbers: usize =
            case.leaves.iter().filter(|(leaf, _)| *leaf != "alpha").map(|(_, array)| array.data.len()).sum();
        assert_eq!(case.change().num_parameters(), numbers);
    }
}

#[test]
fn a_kernel_that_no_name_tells_is_taken_from_the_weight() {
    for case in cases().into_iter().filter(|case| case.module == "lora_unet_loha_conv1") {
        let change = Change::from_leaves("lora_unet_strange", case.leaves).unwrap();
        assert_eq!(change.weight_shape(), [8, 54]);
        assert!(distance(&change.delta(Some(&case.weight), 1.0).unwrap(), &case.delta) < 1e-6);
    }
}

#[test]
fn a_broken_change_is_refused_by_name_whatever_is_wrong_with_it() {
    for case in cases() {
        let read = |leaves: BTreeMap<String, Array>| Change::from_leaves(&case.module, leaves);
        for leaf in case.leaves.keys().filter(|leaf| *leaf != "alpha") {
            let with = |array: Array| {
                let mut leaves = case.leaves.clone();
                leaves.insert(leaf.clone(), array);
                read(leaves)
            };
            let original = &case.leaves[leaf];
            let mut poisoned = original.clone();
            poisoned.data[0] = f32::NAN;
            assert!(matches!(with(poisoned), Err(AdapterError::NonFinite { .. })), "{} {leaf}", case.module);
            for shape in [vec![], vec![0], vec![7], vec![7, 11], vec![7, 0, 3, 3], vec![7, 11, 3, 3], vec![2; 5]] {
                let data = vec![1.0; shape.iter().product()];
                match with(Array { shape, data }) {
                    Err(error) => assert!(error.to_string().starts_with(&case.module), "{error}"),
                    // What stands alone may have any size.
                    Ok(_) => assert!(["lokr_w1", "lokr_w2", "diff"].contains(&leaf.as_str()), "{} {leaf}", case.module),
                }
            }
            let mut short = original.clone();
            short.data.pop();
            let refused = with(short).unwrap_err();
            let is_by_shape = matches!(refused, AdapterError::ChangeShapes { .. } | AdapterError::FactorShapes { .. });
            assert!(is_by_shape, "{refused}");
        }
        let mut more = case.leaves.clone();
        more.insert("oft_blocks".to_owned(), Array { shape: vec![1], data: vec![1.0] });
        assert!(matches!(read(more), Err(AdapterError::UnknownLeaf { .. })));
    }
}

#[test]
fn small_factors_that_name_a_huge_weight_are_refused_before_it_is_made() {
    let ones = |shape: &[usize]| Array { shape: shape.to_vec(), data: vec![1.0; shape.iter().product()] };
    let long = 1 << 16;
    let (a, b) = (ones(&[long, 1]), ones(&[1, long]));
    let change = Change::Hadamard(HadamardModule {
        w1_a: a.clone(),
        w1_b: b.clone(),
        w2_a: a.clone(),
        w2_b: b.clone(),
        cores: None,
        alpha: None,
        kernel: None,
    });
    assert!(matches!(change.check("m"), Err(AdapterError::ChangeTooLarge { .. })));
    assert!(matches!(change.delta(None, 1.0), Err(AdapterError::ChangeTooLarge { .. })));
    for leaves in [
        vec![("lora_down.weight", b.clone()), ("lora_up.weight", a.clone())],
        vec![("lokr_w1", a.clone()), ("lokr_w2", b.clone())],
    ] {
        let leaves = leaves.into_iter().map(|(leaf, array)| (leaf.to_owned(), array)).collect();
        assert!(matches!(Change::from_leaves("m", leaves), Err(AdapterError::ChangeTooLarge { .. })));
    }
}

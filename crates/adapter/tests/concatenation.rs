//! The sum of adapters changes every weight by the sum of their changes.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use loralei_adapter::{Adapter, AdapterError, Array, LoraModule, SaveDtype};

/// Values without pattern between -1 and 1.
fn array(shape: &[usize], seed: u32) -> Array {
    let value = |i: usize| ((i as u32).wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
    Array { shape: shape.to_vec(), data: (0..shape.iter().product()).map(value).collect() }
}

fn module(down: &[usize], up: &[usize], alpha: Option<f32>, seed: u32) -> LoraModule {
    LoraModule { down: array(down, seed), up: array(up, seed + 1000), alpha }
}

fn adapter(modules: &[(&str, LoraModule)]) -> Adapter {
    let modules = modules.iter().map(|(name, module)| ((*name).to_owned(), module.clone())).collect();
    Adapter { modules, metadata: [("ss_note".to_owned(), "left out".to_owned())].into() }
}

const LINEAR: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
const CONV: &str = "lora_unet_down_blocks_0_resnets_0_conv1";
const PROJ: &str = "lora_unet_mid_block_attentions_0_proj_in";

/// Ranks 2 and 3, alpha once over, once under the rank and once absent.
fn two() -> (Adapter, Adapter) {
    let first = adapter(&[
        (LINEAR, module(&[2, 5], &[7, 2], Some(3.0), 1)),
        (CONV, module(&[2, 4, 3, 3], &[6, 2, 1, 1], Some(0.5), 2)),
        (PROJ, module(&[2, 4], &[4, 2], None, 3)),
    ]);
    let second = adapter(&[
        (LINEAR, module(&[3, 5], &[7, 3], None, 4)),
        (CONV, module(&[1, 4, 3, 3], &[6, 1, 1, 1], Some(2.0), 5)),
        (PROJ, module(&[3, 4, 1, 1], &[4, 3, 1, 1], Some(1.0), 6)),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", module(&[1, 3], &[2, 1], Some(4.0), 7)),
    ]);
    (first, second)
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-5, "{what}: {found} instead of {expected}");
    }
}

#[test]
fn the_change_is_the_weighted_sum_of_the_changes() {
    let (first, second) = two();
    for (s, t) in [(1.0, 1.0), (0.7, -1.3), (0.0, 2.0)] {
        let sum = Adapter::sum(&[(&first, s), (&second, t)]).unwrap();
        assert_eq!(sum.modules.len(), 4);
        for (name, module) in &sum.modules {
            let mut expected = vec![0.0; module.delta().data.len()];
            for (adapter, scale) in [(&first, s), (&second, t)] {
                if let Some(term) = adapter.modules.get(name) {
                    expected.iter_mut().zip(term.delta().data).for_each(|(sum, value)| *sum += scale * value);
                }
            }
            assert!(expected.iter().any(|value| value.abs() > 0.1), "{name} is no test");
            assert_near(&module.delta().data, &expected, name);
            assert_eq!(module.scale(), 1.0);
        }
        assert_eq!(sum.modules[LINEAR].rank(), 5);
        assert_eq!(
            (&*sum.modules[CONV].down.shape, &*sum.modules[CONV].up.shape),
            (&[3, 4, 3, 3][..], &[6, 3, 1, 1][..])
        );
        assert!(sum.metadata.is_empty());
    }
}

#[test]
fn the_two_forms_of_a_1x1_convolution_are_brought_together() {
    let (first, second) = two();
    for pair in [[(&first, 1.0), (&second, 1.0)], [(&second, 1.0), (&first, 1.0)]] {
        let sum = Adapter::sum(&pair).unwrap();
        assert_eq!(sum.modules[PROJ].down.shape, [5, 4, 1, 1]);
        assert_eq!(sum.modules[PROJ].up.shape, [4, 5, 1, 1]);
    }
    assert_eq!(Adapter::sum(&[(&first, 1.0)]).unwrap().modules[PROJ].down.shape, [2, 4]);
}

#[test]
fn one_adapter_comes_back_with_equal_changes_and_can_be_written() {
    let (_, second) = two();
    let sum = Adapter::sum(&[(&second, 1.0)]).unwrap();
    for (name, module) in &sum.modules {
        assert_near(&module.delta().data, &second.modules[name].delta().data, name);
    }
    assert_eq!(sum.modules[LINEAR].up, second.modules[LINEAR].up); // to the bit where alpha is the rank
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sum.safetensors");
    sum.write(&path, SaveDtype::F32).unwrap();
    assert_eq!(Adapter::read(&path).unwrap().modules, sum.modules);
}

#[test]
fn an_adapter_less_itself_changes_nothing() {
    let (first, _) = two();
    for (name, module) in &Adapter::sum(&[(&first, 0.8), (&first, -0.8)]).unwrap().modules {
        assert_near(&module.delta().data, &vec![0.0; module.delta().data.len()], name);
    }
}

#[test]
fn weights_of_different_shapes_are_refused_naming_the_module() {
    let first = adapter(&[(CONV, module(&[2, 4, 3, 3], &[6, 2, 1, 1], None, 1))]);
    let wrong = [
        module(&[2, 5, 3, 3], &[6, 2, 1, 1], None, 2), // in
        module(&[2, 4, 3, 3], &[7, 2, 1, 1], None, 2), // out
        module(&[2, 4, 1, 1], &[6, 2, 1, 1], None, 2), // kernel
        module(&[2, 36], &[6, 2], None, 2),            // the same number of values
        module(&[1, 4, 1, 1], &[6, 1, 1, 1], None, 2),
    ];
    for module in wrong {
        let error = Adapter::sum(&[(&first, 1.0), (&adapter(&[(CONV, module)]), 1.0)]).unwrap_err();
        assert!(matches!(&error, AdapterError::WeightShapes { module, .. } if module == CONV), "{error}");
        assert!(error.to_string().contains("[6, 4, 3, 3]") && error.hint().is_some(), "{error}");
    }
}

#[test]
fn scales_that_are_no_numbers_or_too_large_are_refused() {
    let (first, _) = two();
    for scale in [f32::NAN, f32::INFINITY] {
        assert!(matches!(Adapter::sum(&[(&first, scale)]), Err(AdapterError::BadScale { .. })));
    }
    let mut large = first;
    large.modules.values_mut().for_each(|module| module.up.data.fill(8.0));
    assert!(matches!(Adapter::sum(&[(&large, f32::MAX)]), Err(AdapterError::NonFinite { .. })));
    assert!(Adapter::sum(&[]).unwrap().modules.is_empty());
}

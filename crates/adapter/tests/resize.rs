//! Adapters of fewer ranks, against NumPy's singular values (`tests/golden/adapters/measures.py`).
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{
    Adapter, AdapterError, AdapterFile, Array, Change, DoraModule, Format, FullModule, KeptRanks, LoraModule,
    ResizeReport, SaveDtype,
};
use serde_json::Value;

const TO_K: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
const TO_V: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v";
const CONV: &str = "lora_unet_up_blocks_1_resnets_0_conv1";
const TEXT: &str = "lora_te_text_model_encoder_layers_4_mlp_fc1";

fn golden(name: &str) -> Vec<f64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters/measures.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    all[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// As in the script.
fn array(shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let data = (0..count).map(|i| (((i * 7919 + seed) % 1009) as f64 / 504.5 - 1.0) as f32).collect();
    Array { shape: shape.to_vec(), data }
}

/// `other` of the script is rank 5, alpha 5, seed 501.
fn linear(rank: usize, alpha: f32, seed: usize) -> LoraModule {
    LoraModule { down: array(&[rank, 30], seed), up: array(&[20, rank], seed + 384), alpha: Some(alpha) }
}

fn conv(rank: usize) -> LoraModule {
    LoraModule { down: array(&[rank, 5, 3, 3], 29), up: array(&[10, rank, 1, 1], 413), alpha: Some(6.0) }
}

fn file(modules: &[(&str, LoraModule)]) -> AdapterFile {
    let modules = modules.iter().map(|(name, module)| ((*name).to_owned(), module.clone())).collect();
    let metadata = [("ss_network_dim", "5"), ("ss_network_alpha", "5.0"), ("ss_training_comment", "a dog")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    AdapterFile::from_adapter(Adapter { modules, metadata }, Path::new("made.safetensors"))
}

fn norm_of_difference(a: &Array, b: &Array) -> f64 {
    a.data.iter().zip(&b.data).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// The relative error of each module as the numbers themselves say it.
fn true_errors(before: &AdapterFile, after: &AdapterFile) -> BTreeMap<String, f64> {
    let error = |(name, change): (&String, &Change)| {
        let (old, new) = (change.delta(None, 1.0).unwrap(), after.changes[name].delta(None, 1.0).unwrap());
        assert_eq!(old.shape, new.shape);
        (name.clone(), norm_of_difference(&old, &new) / old.norm())
    };
    before.changes.iter().map(error).collect()
}

fn ranks(file: &AdapterFile) -> Vec<usize> {
    file.changes.values().map(|change| change.rank().unwrap()).collect()
}

fn resized(file: &AdapterFile, kept: KeptRanks) -> (AdapterFile, ResizeReport) {
    let (resized, report) = file.resized(kept).unwrap();
    for (name, change) in &resized.changes {
        change.check(name).unwrap();
    }
    (resized, report)
}

#[test]
fn the_full_rank_reproduces_the_product() {
    let before = file(&[(TO_K, linear(5, 3.0, 501)), (CONV, conv(4)), (TEXT, linear(25, 2.0, 7))]); // 25 > 20 rows
    let (after, report) = resized(&before, KeptRanks::Rank(100));
    assert_eq!(ranks(&after), [20, 5, 4]);
    assert!(true_errors(&before, &after).values().all(|error| *error < 1e-6));
    assert!(report.error < 1e-12);
    let (shares, _) = resized(&before, KeptRanks::Norm { share: 1.0, max_rank: None });
    assert!(true_errors(&before, &shares).values().all(|error| *error < 1e-6));
}

#[test]
fn the_error_of_a_lower_rank_is_the_tail_of_numpys_singular_values() {
    let before = file(&[(TO_K, linear(5, 5.0, 501))]);
    for (index, tail) in golden("tails").into_iter().enumerate() {
        let (after, report) = resized(&before, KeptRanks::Rank(index + 1));
        assert!((report.modules[0].error - tail).abs() < 1e-6, "{report:?} {tail}");
        assert!((true_errors(&before, &after)[TO_K] - tail).abs() < 1e-6);
        assert_eq!(report.error, report.modules[0].error);
        assert_eq!((report.num_parameters_before, report.num_parameters_after), (5 * 50, (index + 1) * 50));
    }
}

#[test]
fn a_share_keeps_the_fewest_ranks_that_reach_it() {
    let before = file(&[(TO_K, linear(5, 5.0, 501))]);
    for (name, is_norm) in [("norm_shares", true), ("value_shares", false)] {
        let sums = golden(name);
        for (index, sum) in sums.iter().enumerate() {
            let share = sum / sums[4];
            for (share, expected) in [(share - 1e-5, index + 1), ((share + 1e-5).min(1.0), (index + 2).min(5))] {
                let of = |max_rank| {
                    if is_norm { KeptRanks::Norm { share, max_rank } } else { KeptRanks::Values { share, max_rank } }
                };
                assert_eq!(ranks(&resized(&before, of(None)).0), [expected], "{name} {share}");
                assert_eq!(ranks(&resized(&before, of(Some(2))).0), [expected.min(2)], "{name} {share}");
            }
        }
    }
}

#[test]
fn the_whole_error_is_that_of_all_layers_together() {
    let before = file(&[(TO_K, linear(5, 5.0, 501)), (CONV, conv(4)), (TEXT, linear(3, 90.0, 7))]);
    let (after, report) = resized(&before, KeptRanks::Rank(2));
    let errors = true_errors(&before, &after);
    let norms: Vec<f64> = before.changes.values().map(|change| change.delta(None, 1.0).unwrap().norm()).collect();
    let lost: f64 = errors.values().zip(&norms).map(|(error, norm)| (error * norm).powi(2)).sum();
    let whole: f64 = norms.iter().map(|norm| norm * norm).sum();
    assert!((report.error - (lost / whole).sqrt()).abs() < 1e-6);
}

#[test]
fn even_ranks_have_an_alpha_and_uneven_ones_none() {
    let before = file(&[(TO_K, linear(5, 3.0, 501)), (TO_V, linear(3, 3.0, 4)), (TEXT, linear(4, 1.0, 7))]);
    let alphas = |kept| -> Vec<Option<f32>> { resized(&before, kept).0.changes.values().map(Change::alpha).collect() };
    assert_eq!(alphas(KeptRanks::Rank(2)), [Some(2.0), Some(2.0), Some(2.0)]);
    assert_eq!(alphas(KeptRanks::Rank(4)), [Some(4.0), None, None]); // the text encoder's are even
    assert_eq!(alphas(KeptRanks::Rank(1)), [None, None, None]);
}

#[test]
fn the_same_bytes_come_on_one_thread_and_on_several() {
    let before = file(&[(TO_K, linear(5, 3.0, 501)), (TO_V, linear(3, 3.0, 4)), (TEXT, linear(4, 1.0, 7))]);
    let kept = KeptRanks::Norm { share: 0.8, max_rank: None };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| before.resized(kept).unwrap())
    };
    assert_eq!(on(1), on(4));
}

#[test]
fn the_result_is_a_kohya_file_whose_metadata_says_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.safetensors");
    let before = file(&[(TO_K, linear(5, 3.0, 501)), (TO_V, linear(3, 3.0, 4))]);
    for (kept, dim) in [(KeptRanks::Rank(2), "2"), (KeptRanks::Rank(4), "Dynamic")] {
        let (after, _) = resized(&before, kept);
        after.write(&path, Format::Kohya, Some(SaveDtype::F16)).unwrap();
        let read = AdapterFile::read(&path).unwrap();
        assert_eq!((read.metadata["ss_network_dim"].as_str(), read.metadata["ss_network_alpha"].as_str()), (dim, dim));
        let comment = &read.metadata["ss_training_comment"];
        assert!(comment.starts_with("rank resized from 5 to") && comment.ends_with("; a dog"), "{comment}");
        let errors = true_errors(&after, &read);
        assert!(errors.values().all(|error| *error < 1e-3), "{errors:?}"); // f16
    }
}

#[test]
fn layers_without_a_change_stay_at_rank_one() {
    let mut zero = linear(5, 3.0, 501);
    zero.up.data.fill(0.0);
    let before = file(&[(TO_K, zero), (TO_V, linear(3, 3.0, 4))]);
    let (after, report) = resized(&before, KeptRanks::Norm { share: 0.9, max_rank: None });
    assert_eq!(ranks(&after)[0], 1);
    assert_eq!(report.modules[0].error, 0.0);
    assert!(report.error.is_finite());
}

#[test]
fn what_two_factors_cannot_give_and_sizes_that_are_none_are_refused() {
    let direction = Box::new(Change::Lora(linear(5, 3.0, 501)));
    let magnitude = Array { shape: vec![20, 1], data: vec![1.0; 20] };
    for change in [
        Change::Dora(DoraModule { direction, magnitude }),
        Change::Full(FullModule { weight: array(&[20, 30], 1), bias: None }),
    ] {
        let mut before = file(&[]);
        before.changes.insert(TO_K.to_owned(), change);
        assert!(matches!(before.resized(KeptRanks::Rank(2)), Err(AdapterError::NotLowRank { .. })));
    }
    let before = file(&[(TO_K, linear(5, 3.0, 501))]);
    let norm = |share, max_rank| KeptRanks::Norm { share, max_rank };
    let wrong = [
        KeptRanks::Rank(0),
        norm(0.0, None),
        norm(1.5, None),
        norm(f64::NAN, None),
        norm(-1.0, None),
        norm(0.5, Some(0)),
    ];
    for kept in wrong {
        assert!(matches!(before.resized(kept), Err(AdapterError::BadResize { .. })), "{kept:?}");
    }
}

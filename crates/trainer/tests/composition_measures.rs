//! What compositions do to a small base.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};
use loralei_adapter::Adapter;
use loralei_model::{Base, BaseSource, DrawingSettings, PictureSizes, SamplerKind};
use loralei_trainer::{
    BurnMeasures, CompositionCandidate, CompositionMeasures, CompositionMember, CompositionSettings, default_prompt,
    measure_composition,
};
use std::path::{Path, PathBuf};

const PROMPTS: [&str; 3] = ["a dog", "a red house", "a dog, a red house"];

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1")
}

fn adapter() -> Adapter {
    Adapter::read(&case().join("adapter.safetensors")).unwrap()
}

/// The modules of the golden adapter whose name has `part`.
fn part(part: &str) -> Adapter {
    let mut adapter = adapter();
    adapter.modules.retain(|name, _| name.contains(part));
    assert!(!adapter.modules.is_empty());
    adapter
}

fn times(adapter: &Adapter, scale: f32) -> Adapter {
    Adapter::sum(&[(adapter, scale)]).unwrap()
}

fn measure(members: [(&Adapter, f32); 2], candidates: &[(&str, &Adapter)]) -> CompositionMeasures {
    let base = Base::open(BaseSource::Folder(case().join("base")), None, DType::F32, &Device::Cpu).unwrap();
    let settings = CompositionSettings {
        together: None,
        negative: String::new(),
        drawing: DrawingSettings {
            sampler: SamplerKind::Ddim,
            steps: 4,
            guidance_scale: 3.0,
            sizes: PictureSizes::whole((64, 64)),
        },
        size_px: (64, 96),
        seeds: vec![5, 6],
        num_points: 3,
    };
    let members = members.into_iter().zip(PROMPTS).zip(["first", "second"]);
    let members: Vec<CompositionMember> = members
        .map(|(((adapter, scale), prompt), name)| CompositionMember {
            name: name.to_owned(),
            adapter,
            scale,
            prompt: prompt.to_owned(),
        })
        .collect();
    let candidates: Vec<CompositionCandidate> =
        candidates.iter().map(|(name, adapter)| CompositionCandidate { name: (*name).to_owned(), adapter }).collect();
    let mut last = (0, 0);
    let found = measure_composition(&base, &members, &candidates, &settings, &mut |done, total| {
        assert!(done > last.0 && (last.1 == 0 || total == last.1));
        last = (done, total);
    });
    let total = ((3 + candidates.len()) * 3 * (2 * 4 + 3)) as u64;
    assert_eq!(last, (total, total));
    found.unwrap()
}

fn assert_is_base(measures: &BurnMeasures) {
    let ratios = measures.colour_ratios;
    assert_eq!((measures.change, measures.additivity_error), (0.0, None));
    assert_eq!((measures.clean_std_ratio, measures.clean_extreme_ratio), (1.0, 1.0));
    let colours = [ratios.clipped, ratios.saturation, ratios.contrast, ratios.laplacian_variance];
    assert_eq!(colours, [Some(1.0); 4]);
    assert!(measures.passes);
}

#[test]
fn nothing_changes_nothing_and_every_ratio_is_one() {
    let (whole, silent) = (adapter(), times(&adapter(), 0.0));
    let found = measure([(&whole, 1.0), (&whole, 0.0)], &[("silent", &silent)]);
    assert_eq!(found.prompts, PROMPTS);
    for row in [&found.base, &found.members[1], &found.candidates[0]] {
        assert_is_base(&row.mean);
        row.per_prompt.iter().for_each(assert_is_base);
        assert_eq!(row.pictures, found.base.pictures);
    }
    assert_eq!(found.base.pictures.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    assert!(found.members[0].mean.change > 1e-3 && found.members[0].pictures != found.base.pictures);
    assert_eq!(found.base.mean.clean_std.len(), 4);
    assert!(
        (found.base.mean.guidance_spread - 1.0).abs() > 1e-4,
        "guidance spreads: {}",
        found.base.mean.guidance_spread
    );
}

#[test]
fn a_member_alone_adds_up_with_one_that_does_nothing_and_its_double_does_not() {
    let whole = adapter();
    let double = times(&whole, 2.0);
    let found = measure([(&whole, 1.0), (&whole, 0.0)], &[("alone", &whole), ("double", &double)]);
    let [alone, double] = [0, 1].map(|i| found.candidates[i].mean.clone());
    // A member's scale is moved into its factors, which rounds: measured 3e-6.
    assert!(alone.additivity_error.unwrap() < 1e-5, "{:?}", alone.additivity_error);
    assert!((alone.change / found.members[0].mean.change - 1.0).abs() < 1e-5);
    assert!(double.change > 1.5 * alone.change, "{} {}", double.change, alone.change);
    // Twice the change less once the change, over twice the change.
    assert!((double.additivity_error.unwrap() - 0.5).abs() < 0.15, "{:?}", double.additivity_error);
    // The spread of x_0 sees the change. Which way it goes is the base's matter: this one, of random weights, does not burn.
    assert!((alone.clean_std_ratio - 1.0).abs() > 1e-3 && (double.clean_std_ratio - 1.0).abs() > 1e-3);
}

#[test]
fn what_does_not_add_up_in_one_layer_falls_with_the_strength() {
    // Changes of one layer add up exactly; what comes after it is not linear, so the error is in proportion to the change.
    let last = part("up_blocks_2_attentions_1_proj_out");
    let error = |strength: f32| {
        let (first, second) = (strength, 0.5 * strength);
        let sum = Adapter::sum(&[(&last, first), (&last, second)]).unwrap();
        measure([(&last, first), (&last, second)], &[("sum", &sum)]).candidates[0].mean.additivity_error.unwrap()
    };
    let (whole, tenth) = (error(1.0), error(0.1));
    assert!(whole > 0.02 && (whole / tenth / 10.0 - 1.0).abs() < 0.3, "{whole} {tenth}");
}

#[test]
fn two_comparisons_are_the_same() {
    let (whole, some) = (adapter(), part("attn2"));
    let sum = Adapter::sum(&[(&whole, 1.0), (&some, -0.5)]).unwrap();
    let once = || measure([(&whole, 1.0), (&some, -0.5)], &[("sum", &sum)]);
    assert_eq!(once(), once());
}

#[test]
fn a_prompt_is_the_trigger_or_what_most_captions_say() {
    let with = |entries: &[(&str, &str)]| {
        let metadata = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let adapter = Adapter { metadata, ..Adapter::default() };
        default_prompt(&adapter)
    };
    let tags = ("ss_tag_frequency", r#"{"10_cat": {"sks cat": 9, "sofa": 3}, "b": {"night": 9, "": 40}}"#);
    assert_eq!(with(&[("modelspec.trigger_phrase", " sks "), tags]).as_deref(), Some("sks"));
    assert_eq!(with(&[("modelspec.trigger_phrase", ""), tags]).as_deref(), Some("night"));
    assert_eq!(with(&[("ss_tag_frequency", "not json")]), None);
    assert_eq!(with(&[]), None);
}

//! Recorded inputs of layers on a small base with an adapter in all of its layers.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device};
use loralei_adapter::compose::LayerGram;
use loralei_adapter::{Adapter, Array};
use loralei_model::{
    AdapterUse, Base, BaseSource, DrawingSettings, PictureSizes, RecordedMember, RecordingSettings, SamplerKind,
    TextSide, record_layer_inputs,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const K: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q";

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1")
}

fn base() -> Base {
    Base::open(BaseSource::Folder(case().join("base")), None, DType::F32, &Device::Cpu).unwrap()
}

fn adapter() -> Adapter {
    Adapter::read(&case().join("adapter.safetensors")).unwrap()
}

fn record(members: &[(&Adapter, f32, &[&str])]) -> BTreeMap<String, LayerGram> {
    let drawing = DrawingSettings {
        sampler: SamplerKind::Ddim,
        steps: 3,
        guidance_scale: 4.0,
        sizes: PictureSizes::whole((64, 64)),
    };
    let settings = RecordingSettings { drawing, size_px: (64, 96), seeds: vec![1, 2] };
    let prompts: Vec<Vec<String>> =
        members.iter().map(|(.., prompts)| prompts.iter().map(|prompt| (*prompt).to_owned()).collect()).collect();
    let members = members.iter().zip(&prompts);
    let members: Vec<_> =
        members.map(|((adapter, scale, _), prompts)| RecordedMember { adapter, scale: *scale, prompts }).collect();
    let mut steps = Vec::new();
    let grams = record_layer_inputs(&base(), &members, &settings, &mut |done| steps.push(done)).unwrap();
    let num_steps = 3 * 2 * prompts.iter().map(Vec::len).sum::<usize>();
    assert_eq!(steps, (1..=num_steps).collect::<Vec<_>>());
    grams
}

/// max |a - b| / max |b|
fn error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |largest, b| largest.max(b.abs()));
    a.iter().zip(b).fold(0f32, |error, (a, b)| error.max((a - b).abs())) / largest
}

/// (m, k) times (k, n).
fn product(a: &Array, b: &[f32]) -> Vec<f32> {
    let (k, n) = (a.shape[1], b.len() / a.shape[1]);
    let entry = |row: &[f32], j: usize| (0..k).map(|i| f64::from(row[i]) * f64::from(b[i * n + j])).sum::<f64>() as f32;
    a.data.chunks(k).flat_map(|row| (0..n).map(|j| entry(row, j)).collect::<Vec<_>>()).collect()
}

#[test]
fn every_layer_that_a_member_changes_is_recorded_and_projected_by_its_factor() {
    let (adapter, prompts) = (adapter(), ["a cat", "a red house"]);
    let grams = record(&[(&adapter, 0.7, &prompts)]);
    assert_eq!(grams.keys().collect::<Vec<_>>(), adapter.modules.keys().collect::<Vec<_>>());
    for (module, LayerGram { gram, projected }) in &grams {
        let down = &adapter.modules[module].down;
        let num_in = down.shape[1];
        assert_eq!((gram.len(), &projected[0].shape), (num_in * num_in, &vec![down.shape[0], num_in]), "{module}");
        assert!(error(&projected[0].data, &product(down, gram)) < 1e-4, "{module}");
        assert!((0..num_in).all(|i| gram[i * num_in + i] > 0.0), "{module}");
    }
}

#[test]
fn inputs_of_the_attention_to_the_text_are_the_encoded_prompts_of_the_member() {
    let (adapter, base) = (adapter(), base());
    let strong = Adapter::sum(&[(&adapter, 2.0)]).unwrap();
    let text = TextSide::load(&base, Some(AdapterUse { adapter: &strong, merged: false })).unwrap();
    let prompts = ["a cat", "a red house"];
    let mut expected = vec![0f32; 24 * 24];
    for prompt in prompts {
        let rows =
            text.encode(prompt, Some(""), 1).unwrap().prompt.context.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (i, j) in (0..24).flat_map(|i| (0..24).map(move |j| (i, j))) {
            expected[i * 24 + j] += rows.iter().map(|row| row[i] * row[j]).sum::<f32>() / 2.0;
        }
    }
    assert!(error(&record(&[(&adapter, 2.0, &prompts)])[K].gram, &expected) < 1e-4);
    assert!(error(&record(&[(&adapter, 1.0, &prompts)])[K].gram, &expected) > 1e-3, "strength is seen");
}

#[test]
fn grams_of_members_add_up_and_a_member_without_a_layer_is_looked_at_too() {
    let whole = adapter();
    let mut part = whole.clone();
    part.modules.retain(|module, _| module != Q);
    let both = record(&[(&whole, 1.0, &["a cat"]), (&part, 1.0, &["a red house", "night"])]);
    let first = record(&[(&whole, 1.0, &["a cat"])]);
    assert_eq!(both[Q].projected[1], Array { shape: vec![0, 24], data: Vec::new() });
    assert_eq!(both[Q].projected[0], first[Q].projected[0]);

    let mut silent = whole.clone();
    silent.modules.get_mut(Q).unwrap().up.data.fill(0.0);
    let second = record(&[(&silent, 1.0, &["a red house", "night"])]);
    for (module, found) in &both {
        let sum: Vec<f32> = first[module].gram.iter().zip(&second[module].gram).map(|(a, b)| a + b).collect();
        assert!(error(&found.gram, &sum) < 1e-5, "{module}");
    }
    assert!(error(&first[Q].gram, &second[Q].gram) > 1e-2, "members see inputs of their own");
}

#[test]
fn two_recordings_have_the_same_bits() {
    let adapter = adapter();
    let once = || record(&[(&adapter, 1.0, &["a cat"]), (&adapter, -0.5, &["a dog"])]);
    assert_eq!(once(), once());
}

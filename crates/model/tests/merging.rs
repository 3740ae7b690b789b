//! A base with adapters in its weights: against the same adapters beside the weights, in every layout, and taken out again.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{
    Adapter, AdapterFile, Array, Change, Dtype, LoraModule, TensorFile, TensorFiles, TensorView, write_tensors,
};
use loralei_model::{
    Base, BaseSource, Checkpointing, Conditioning, Injection, Layout, MergeReport, ModelError, convert, merge,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: &Path) -> Base {
    Base::open(BaseSource::at_path(path), None, DType::F32, &Device::Cpu).unwrap()
}

/// Numbers without a pattern.
fn numbers(shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let data = (0..count).map(|i| (((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0) * 0.3).collect();
    Array { shape: shape.to_vec(), data }
}

const CONVOLUTION: &str = "lora_unet_down_blocks_0_resnets_0_conv1";
const SAMPLER: &str = "lora_unet_down_blocks_0_downsamplers_0_conv";
const TIME: &str = "lora_unet_mid_block_resnets_0_time_emb_proj";
const QUERY: &str = "lora_te_text_model_encoder_layers_1_self_attn_k_proj";

/// Shape of the weight of a module of the golden base.
fn shape_of(base: &Base, module: &str) -> Vec<usize> {
    let is_text = module.starts_with("lora_te_");
    let weights = if is_text { base.text_encoder_weights(0) } else { base.unet_weights() }.unwrap();
    let prefix = if is_text { "lora_te_" } else { "lora_unet_" };
    let is_it = |name: &&str| {
        name.strip_suffix(".weight").is_some_and(|path| loralei_adapter::keys::kohya_module(prefix, path) == module)
    };
    let name = weights.names().find(is_it).unwrap_or_else(|| panic!("{module}")).to_owned();
    weights.info(&name).unwrap().shape
}

/// The golden adapter (alpha is not the rank, up is not zero) with convolutions, its numbers moved by `seed`.
fn adapter(name: &str, base: &Base, seed: usize) -> AdapterFile {
    let mut adapter = AdapterFile::read(&golden(name).join("adapter.safetensors")).unwrap();
    for change in adapter.changes.values_mut() {
        if let Change::Lora(module) = change {
            assert_ne!(module.alpha, Some(module.rank() as f32));
            let length = module.up.data.len();
            module.up.data.rotate_right(seed % length);
        }
    }
    for (i, module) in [CONVOLUTION, SAMPLER, TIME].into_iter().enumerate() {
        let shape = shape_of(base, module);
        let mut down = vec![3];
        down.extend(&shape[1..]);
        let mut up = vec![shape[0], 3];
        up.extend(vec![1; shape.len() - 2]);
        let factors =
            LoraModule { down: numbers(&down, seed + i), up: numbers(&up, seed + 7 * i + 1), alpha: Some(2.0) };
        adapter.changes.insert(module.to_owned(), Change::Lora(factors));
    }
    adapter
}

/// Text and prediction for two captions and noisy latents that are not square.
fn outputs(base: &Base, added: Option<&Adapter>) -> Vec<Vec<f32>> {
    let ids: Vec<i64> = ["photo of the sks dog", "the dog"]
        .iter()
        .flat_map(|text| base.tokenizer(0).unwrap().encode(text).unwrap().input_ids)
        .collect();
    let ids = Tensor::from_vec(ids, (2, 77), &Device::Cpu).unwrap();
    let injection = |prefix: &str| added.map(|adapter| Injection::from_adapter(prefix, adapter));
    let text_injection = injection("lora_te_");
    let text = base.load_text_encoder(0, text_injection.as_ref()).unwrap();
    let text = text.forward(&ids, 0, Checkpointing::None).unwrap().context;
    let latents = numbers(&[2, 4, 12, 8], 1).data.iter().map(|x| 5.0 * x).collect::<Vec<f32>>();
    let latents = Tensor::from_vec(latents, (2, 4, 12, 8), &Device::Cpu).unwrap();
    let unet_injection = injection("lora_unet_");
    let unet = base.load_unet(unet_injection.as_ref()).unwrap();
    let told = Conditioning::text(text.clone());
    let prediction = unet.forward(&latents, &[417.0, 30.0], &told, Checkpointing::None).unwrap();
    [text, prediction].iter().map(|xs| xs.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |xs: &mut dyn Iterator<Item = f32>| xs.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// The golden base as a folder, and as one file with its configurations beside it.
fn layouts(name: &str) -> (tempfile::TempDir, [PathBuf; 2]) {
    let place = tempfile::tempdir().unwrap();
    let folder = golden(name).join("base");
    for relative in
        ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"]
            .into_iter()
            .chain(["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"])
    {
        let target = place.path().join(relative);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(folder.join(relative), target).unwrap();
    }
    let file = place.path().join("model.safetensors");
    std::fs::copy(golden(name).join("single-file.safetensors"), &file).unwrap();
    (place, [folder, file])
}

fn merged(base: &Path, adapters: &[(&AdapterFile, f32)], output: &Path) -> MergeReport {
    merge(&open(base), adapters, output, None, &mut |_, _| ()).unwrap()
}

#[test]
fn the_merged_base_predicts_what_the_adapters_beside_the_weights_do() {
    for name in ["sd1", "sd2"] {
        let (_place, layouts) = layouts(name);
        for (i, layout) in layouts.iter().enumerate() {
            let base = open(layout);
            let (first, second) = (adapter(name, &base, 0), adapter(name, &base, 5));
            let plain = [first.to_adapter().unwrap(), second.to_adapter().unwrap()];
            let sum = Adapter::sum(&[(&plain[0], 0.7), (&plain[1], -0.3)]).unwrap();
            let expected = outputs(&base, Some(&sum));

            let results = tempfile::tempdir().unwrap(); // elsewhere: nothing lies beside it
            let output = results.path().join(["folder", "model.safetensors"][i]);
            let report = merged(layout, &[(&first, 0.7), (&second, -0.3)], &output);
            assert_eq!(report.path, output);
            assert_eq!(report.num_modules, 2 * first.changes.len());
            assert_eq!(report.notes, Vec::<String>::new());
            let found = outputs(&open(&output), None);
            let before = outputs(&base, None);
            for (part, found) in found.iter().enumerate() {
                let d = distance(found, &expected[part]);
                assert!(d < 1e-5, "{name} {}: {d:e}", layout.display());
                assert!(distance(found, &before[part]) > 0.01);
            }
        }
    }
}

#[test]
fn every_form_of_a_change_does_the_same_in_both_layouts() {
    // OpenCLIP's q, k and v are one tensor in the single file, and the VAE's and U-Net's names are others.
    let (_place, layouts) = layouts("sd2");
    let base = open(&layouts[0]);
    let mut adapter = adapter("sd2", &base, 0);
    let shape = shape_of(&base, QUERY);
    let lora = LoraModule { down: numbers(&[2, shape[1]], 3), up: numbers(&[shape[0], 2], 4), alpha: Some(3.0) };
    let mut leaves: BTreeMap<String, Array> =
        Change::Lora(lora).leaves().into_iter().map(|(leaf, array)| (leaf.to_owned(), array)).collect();
    let mut magnitude = numbers(&[shape[0], 1], 5);
    magnitude.data.iter_mut().for_each(|value| *value += 1.0);
    leaves.insert("dora_scale".to_owned(), magnitude);
    adapter.changes.insert(QUERY.to_owned(), Change::from_leaves(QUERY, leaves).unwrap());

    let convolution = shape_of(&base, CONVOLUTION);
    let flat = [2, convolution[1..].iter().product()];
    let leaves: BTreeMap<String, Array> = [
        ("hada_w1_a", numbers(&[convolution[0], 2], 1)),
        ("hada_w1_b", numbers(&flat, 2)),
        ("hada_w2_a", numbers(&[convolution[0], 2], 3)),
        ("hada_w2_b", numbers(&flat, 4)),
    ]
    .into_iter()
    .map(|(leaf, array)| (leaf.to_owned(), array))
    .collect();
    adapter.changes.insert(CONVOLUTION.to_owned(), Change::from_leaves(CONVOLUTION, leaves).unwrap());

    let first = "lora_unet_conv_in";
    let shape = shape_of(&base, first);
    let leaves: BTreeMap<String, Array> =
        [("diff".to_owned(), numbers(&shape, 1)), ("diff_b".to_owned(), numbers(&shape[..1], 2))].into();
    adapter.changes.insert(first.to_owned(), Change::from_leaves(first, leaves).unwrap());

    let results = tempfile::tempdir().unwrap();
    let outputs_of = |layout: &Path, target: &str| {
        let output = results.path().join(target);
        merged(layout, &[(&adapter, 0.6)], &output);
        outputs(&open(&output), None)
    };
    let (folder, file) = (outputs_of(&layouts[0], "folder"), outputs_of(&layouts[1], "model.safetensors"));
    let before = outputs(&base, None);
    for part in 0..folder.len() {
        assert!(distance(&folder[part], &file[part]) < 1e-6);
        assert!(distance(&folder[part], &before[part]) > 0.01);
    }

    // The third of the stacked tensor is weight + strength * (DoRA(weight) - weight), the others are as they were.
    let text = open(&layouts[0]).text_encoder_weights(0).unwrap();
    let path = |third: &str| format!("encoder.layers.1.self_attn.{third}_proj.weight");
    let weight = Array { shape: text.info(&path("k")).unwrap().shape, data: text.read_f32(&path("k")).unwrap() };
    let delta = adapter.changes[QUERY].delta(Some(&weight), 0.6).unwrap();
    let expected: Vec<f32> = weight.data.iter().zip(&delta.data).map(|(weight, delta)| weight + delta).collect();
    let found = open(&results.path().join("model.safetensors")).text_encoder_weights(0).unwrap();
    assert_eq!(found.read_f32(&path("k")).unwrap(), expected);
}

#[test]
fn a_merge_at_the_negative_scale_gives_the_base_back() {
    let (place, layouts) = layouts("sd1");
    for (dtype, limit) in [(Dtype::F32, 1e-6), (Dtype::F16, 1e-3), (Dtype::Bf16, 1e-2)] {
        let folder = place.path().join(format!("base-{dtype}"));
        convert(&open(&layouts[0]), &folder, Layout::Diffusers, Some(dtype), &mut |_, _| ()).unwrap();
        let adapter = adapter("sd1", &open(&folder), 3);
        let (there, back) = (place.path().join(format!("there-{dtype}")), place.path().join(format!("back-{dtype}")));
        merged(&folder, &[(&adapter, 0.8)], &there);
        merged(&there, &[(&adapter, -0.8)], &back);
        let (before, after) = (open(&folder).unet_weights().unwrap(), open(&back).unet_weights().unwrap());
        let mut worst = 0_f64;
        for name in before.names() {
            assert_eq!(before.info(name), after.info(name));
            let (before, after) = (before.read_f32(name).unwrap(), after.read_f32(name).unwrap());
            worst = worst.max(distance(&after, &before));
        }
        assert!(worst < limit && worst > 0.0, "{dtype}: {worst:e}");
        println!("{dtype}: {worst:e}");
    }
}

#[test]
fn nothing_but_the_changed_weights_differs_from_the_base() {
    let folder = golden("sd1").join("base");
    let mut adapter = adapter("sd1", &open(&folder), 0);
    adapter.changes.retain(|module, _| module.starts_with("lora_unet_down_blocks_0_"));
    adapter.embeddings.insert("<s1>".to_owned(), numbers(&[24], 1));
    let results = tempfile::tempdir().unwrap();
    let output = results.path().join("merged");
    let report = merged(&folder, &[(&adapter, 0.7)], &output);
    assert_eq!(report.num_tensors, adapter.changes.len());
    assert!(matches!(&report.notes[..], [note] if note.contains("<s1>")));
    assert_eq!(std::fs::read_dir(results.path()).unwrap().count(), 1); // nothing unfinished is left

    let unet = "unet/diffusion_pytorch_model.safetensors";
    let (before, after) = (files_of(&folder), files_of(&output));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (relative, content) in &before {
        assert_eq!(content == &after[relative], relative != unet, "{relative}");
    }
    let (before, after) =
        (TensorFile::open(&folder.join(unet)).unwrap(), TensorFile::open(&output.join(unet)).unwrap());
    assert!(before.names().eq(after.names()));
    let mut changed = BTreeSet::new();
    for name in before.names() {
        assert_eq!(before.info(name), after.info(name));
        if before.read_bytes(name).unwrap() != after.read_bytes(name).unwrap() {
            changed.insert(format!("lora_unet_{}", name.strip_suffix(".weight").unwrap().replace('.', "_")));
        }
    }
    assert_eq!(changed, adapter.changes.keys().cloned().collect());
    let merged: serde_json::Value = serde_json::from_str(&after.metadata()["loralei.merged"]).unwrap();
    assert_eq!((&merged[0]["adapter"], &merged[0]["scale"]), (&"adapter.safetensors".into(), &0.7.into()));
    assert_eq!(after.metadata()["format"], "pt");
}

fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(files_of(&path).into_iter().map(|(below, content)| (format!("{name}/{below}"), content)));
        } else {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
    files
}

#[test]
fn shards_stay_shards_and_copies_with_other_weights_are_left_out() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("base");
    for (relative, content) in files_of(&golden("sd1").join("base")) {
        std::fs::create_dir_all(folder.join(&relative).parent().unwrap()).unwrap();
        std::fs::write(folder.join(relative), content).unwrap();
    }
    let unet = folder.join("unet/diffusion_pytorch_model.safetensors");
    let file = TensorFile::open(&unet).unwrap();
    let mut weight_map = serde_json::Map::new();
    let values: BTreeMap<&str, Vec<f32>> = file.names().map(|name| (name, file.read_f32(name).unwrap())).collect();
    for shard in 0..2 {
        let shard_name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", shard + 1);
        let mut tensors = BTreeMap::new();
        for (i, (name, values)) in values.iter().enumerate().filter(|(i, _)| i % 2 == shard) {
            assert!(i % 2 == shard);
            let view = TensorView::f32_stored_as(Dtype::F32, &file.info(name).unwrap().shape, values);
            tensors.insert((*name).to_owned(), view);
            weight_map.insert((*name).to_owned(), shard_name.clone().into());
        }
        write_tensors(&folder.join("unet").join(shard_name), &tensors, &BTreeMap::new()).unwrap();
    }
    std::fs::remove_file(&unet).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string();
    std::fs::write(folder.join("unet/diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    for stale in ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "v1-5.ckpt"] {
        std::fs::write(folder.join(stale), "weights from before").unwrap();
    }
    std::fs::create_dir(folder.join(".git")).unwrap();

    let base = open(&golden("sd1").join("base"));
    let adapter = adapter("sd1", &base, 0);
    let (output, plain) = (place.path().join("merged"), place.path().join("plain"));
    let report = merged(&folder, &[(&adapter, 0.5)], &output);
    assert_eq!(report.notes.len(), 3, "{:?}", report.notes);
    merged(&golden("sd1").join("base"), &[(&adapter, 0.5)], &plain);
    assert_eq!(outputs(&open(&output), None), outputs(&open(&plain), None));
    let files = files_of(&output);
    assert!(files.contains_key("unet/diffusion_pytorch_model.safetensors.index.json"));
    assert!(!files.contains_key("v1-5.ckpt") && !output.join(".git").exists());
    TensorFiles::open(&output.join("unet/diffusion_pytorch_model.safetensors.index.json")).unwrap();
}

#[test]
fn what_fits_no_layer_is_an_error_that_names_it_and_nothing_is_written() {
    let base = open(&golden("sd1").join("base"));
    let original = adapter("sd1", &base, 0);
    let results = tempfile::tempdir().unwrap();
    let output = results.path().join("merged");
    let lora = |shape: &[usize]| {
        let (down, up) = (numbers(&[2, shape[1]], 1), numbers(&[shape[0], 2], 2));
        Change::Lora(LoraModule { down, up, alpha: None })
    };
    for (module, change) in [("lora_unet_strange", lora(&[4, 4])), (QUERY, lora(&[4, 5])), (TIME, lora(&[4, 4]))] {
        let mut adapter = original.clone();
        adapter.changes.insert(module.to_owned(), change);
        let error = merge(&base, &[(&adapter, 1.0)], &output, None, &mut |_, _| ()).unwrap_err();
        assert!(matches!(&error, ModelError::ForeignAdapter { key } if key == module), "{error}");
    }
    let error = merge(&base, &[(&original, f32::NAN)], &output, None, &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("scale"), "{error}");
    // Half precision ends at 65504: what does not fit is found while it is written.
    let error = merge(&base, &[(&original, 1e9)], &output, Some(Dtype::F16), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
    assert_eq!(std::fs::read_dir(results.path()).unwrap().count(), 0);
    std::fs::create_dir(&output).unwrap();
    let error = merge(&base, &[(&original, 1.0)], &output, None, &mut |_, _| ()).unwrap_err();
    assert!(matches!(error, ModelError::Exists { .. }));
}

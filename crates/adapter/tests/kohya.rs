//! Adapters survive the way to disk and back, and what other programs compute from the file is right.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use loralei_adapter::{
    Adapter, AdapterError, Array, CheckpointHashes, Dtype, LoraModule, SaveDtype, TensorFile, TensorView, write_tensors,
};

/// Multiples of 1/1024 below 0.5: exact in f16.
fn values(start: usize, shape: &[usize]) -> Array {
    let num_elements: usize = shape.iter().product();
    let data = (0..num_elements).map(|i| (((i + start) * 37 % 1001) as f32 - 500.0) / 1024.0).collect();
    Array { shape: shape.to_vec(), data }
}

fn adapter() -> Adapter {
    let linear = LoraModule { down: values(3, &[2, 5]), up: values(4, &[7, 2]), alpha: Some(1.0) };
    let conv = LoraModule { down: values(1, &[4, 3, 3, 3]), up: values(2, &[6, 4, 1, 1]), alpha: Some(3.0) };
    Adapter {
        modules: [("lora_te_text_model_b".to_owned(), linear), ("lora_unet_a_to_q".to_owned(), conv)].into(),
        metadata: [("ss_v2".to_owned(), "False".to_owned())].into(),
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("x.safetensors")
    }

    fn file_of(&self, tensors: &[(&str, TensorView)]) -> PathBuf {
        let tensors = tensors.iter().map(|(name, view)| ((*name).to_owned(), view.clone())).collect();
        write_tensors(&self.path(), &tensors, &BTreeMap::new()).unwrap();
        self.path()
    }
}

#[test]
fn an_adapter_comes_back_with_the_same_numbers_in_every_type() {
    let folder = Folder::new();
    for dtype in [SaveDtype::F16, SaveDtype::F32] {
        adapter().write(&folder.path(), dtype).unwrap();
        assert_eq!(Adapter::read(&folder.path()).unwrap().modules, adapter().modules);
    }
    adapter().write(&folder.path(), SaveDtype::Bf16).unwrap(); // 8 bits: rounded by at most 1/256
    let rounded = Adapter::read(&folder.path()).unwrap();
    let (found, expected) =
        (&rounded.modules["lora_unet_a_to_q"].up.data, &adapter().modules["lora_unet_a_to_q"].up.data);
    assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() <= expected.abs() / 256.0));
    assert_ne!(found, expected);
}

#[test]
fn every_tensor_has_the_chosen_type_and_alpha_is_a_scalar() {
    let folder = Folder::new();
    adapter().write(&folder.path(), SaveDtype::F16).unwrap();
    let file = TensorFile::open(&folder.path()).unwrap();
    let expected = [
        ("lora_te_text_model_b.alpha", &[][..]),
        ("lora_te_text_model_b.lora_down.weight", &[2, 5]),
        ("lora_te_text_model_b.lora_up.weight", &[7, 2]),
        ("lora_unet_a_to_q.alpha", &[]),
        ("lora_unet_a_to_q.lora_down.weight", &[4, 3, 3, 3]),
        ("lora_unet_a_to_q.lora_up.weight", &[6, 4, 1, 1]),
    ];
    assert_eq!(file.names().collect::<Vec<_>>(), expected.map(|(name, _)| name));
    for (name, shape) in expected {
        assert_eq!((file.info(name).unwrap().dtype, file.info(name).unwrap().shape.as_slice()), (Dtype::F16, shape));
    }
}

#[test]
fn hashes_are_those_that_sd_scripts_computes() {
    // import hashlib, numpy as np
    // from safetensors.numpy import save
    // def values(start, *shape):
    //     n = int(np.prod(shape))
    //     return (((np.arange(n) + start) * 37 % 1001 - 500) / 1024).astype(np.float16).reshape(shape)
    // tensors = {"lora_unet_a_to_q.lora_down.weight": values(1, 4, 70000), "lora_unet_a_to_q.lora_up.weight": values(2, 90000, 4),
    //     "lora_unet_a_to_q.alpha": np.array(3, np.float16), "lora_te_text_model_b.lora_down.weight": values(3, 2, 5),
    //     "lora_te_text_model_b.lora_up.weight": values(4, 7, 2), "lora_te_text_model_b.alpha": np.array(1, np.float16)}
    // b = save(tensors, {"ss_output_name": "caf\u00e9 \"x\"", "ss_v2": "False"}); n = int.from_bytes(b[:8], "little")
    // print(hashlib.sha256(b[8 + n:]).hexdigest(), hashlib.sha256(b[0x100000:0x110000]).hexdigest()[:8])
    // print(hashlib.sha256(save(tensors, {})[0x100000:0x110000]).hexdigest()[:8])
    let content = "88073dd74e436a8a495ce17d48e3ae1d8a8d33d04d983e2e2615ba250ef2c2e8";
    let mut adapter = adapter();
    let large = LoraModule { down: values(1, &[4, 70_000]), up: values(2, &[90_000, 4]), alpha: Some(3.0) };
    adapter.modules.insert("lora_unet_a_to_q".to_owned(), large);
    adapter.metadata.insert("ss_output_name".to_owned(), "caf\u{e9} \"x\"".to_owned());
    // These must change neither hash, and stale ones must go.
    adapter.metadata.insert("modelspec.title".to_owned(), "title".to_owned());
    adapter.metadata.insert("sshs_legacy_hash".to_owned(), "00000000".to_owned());
    let folder = Folder::new();
    adapter.write(&folder.path(), SaveDtype::F16).unwrap();
    let metadata = Adapter::read(&folder.path()).unwrap().metadata;
    assert_eq!(metadata["sshs_model_hash"], content);
    assert_eq!(metadata["sshs_legacy_hash"], "da376624");
    assert_eq!(metadata["modelspec.hash_sha256"], format!("0x{content}"));

    adapter.metadata.clear();
    adapter.write(&folder.path(), SaveDtype::F16).unwrap();
    let metadata = Adapter::read(&folder.path()).unwrap().metadata;
    assert_eq!(metadata.keys().collect::<Vec<_>>(), ["sshs_legacy_hash", "sshs_model_hash"]);
    assert_eq!((metadata["sshs_model_hash"].as_str(), metadata["sshs_legacy_hash"].as_str()), (content, "6eb0ba7a"));
}

#[test]
fn the_old_hash_of_a_small_adapter_is_that_of_nothing() {
    let folder = Folder::new();
    adapter().write(&folder.path(), SaveDtype::F16).unwrap();
    assert_eq!(Adapter::read(&folder.path()).unwrap().metadata["sshs_legacy_hash"], "e3b0c442");
}

#[test]
fn checkpoint_hashes_are_those_that_sd_scripts_computes() {
    // blob = bytes(i * 7 % 251 for i in range(0x100000 + 1000))
    // print(hashlib.sha256(blob).hexdigest(), hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8])
    let folder = Folder::new();
    let blob: Vec<u8> = (0..0x10_0000_u32 + 1000).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(folder.path(), blob).unwrap();
    let hashes = CheckpointHashes::of_file(&folder.path()).unwrap();
    assert_eq!(hashes.sha256, "a3e6eb82042091de8f1c06d78e2783ec9518382ae84a3d169859c01e045bf61f");
    assert_eq!(hashes.legacy, "36cb74d5");
}

#[test]
fn the_same_adapter_gives_the_same_bytes_whatever_was_there_before() {
    let folder = Folder::new();
    let mut adapter = adapter();
    adapter.metadata.extend((0..20).map(|i| (format!("ss_{i}"), i.to_string())));
    adapter.write(&folder.path(), SaveDtype::F16).unwrap();
    let first = std::fs::read(folder.path()).unwrap();
    Adapter::read(&folder.path()).unwrap().write(&folder.path(), SaveDtype::F16).unwrap();
    assert_eq!(std::fs::read(folder.path()).unwrap(), first);
}

#[test]
fn a_missing_alpha_means_the_rank_and_stays_missing() {
    let folder = Folder::new();
    let (down, up) = (values(1, &[2, 3]), values(2, &[4, 2]));
    let path = folder.file_of(&[
        ("lora_unet_a.lora_down.weight", TensorView::f32(&down.shape, &down.data)),
        ("lora_unet_a.lora_up.weight", TensorView::f32(&up.shape, &up.data)),
        ("lora_unet_b.lora_down.weight", TensorView::f32(&down.shape, &down.data)),
        ("lora_unet_b.lora_up.weight", TensorView::f32(&up.shape, &up.data)),
        ("lora_unet_b.alpha", TensorView::f32(&[1], &[0.5])), // not a scalar, as some programs write it
    ]);
    let adapter = Adapter::read(&path).unwrap();
    let (a, b) = (&adapter.modules["lora_unet_a"], &adapter.modules["lora_unet_b"]);
    assert_eq!((a.alpha, a.scale(), b.alpha, b.scale()), (None, 1.0, Some(0.5), 0.25));
    assert!((a.delta_norm() - 4.0 * b.delta_norm()).abs() < 1e-9);
    adapter.write(&path, SaveDtype::F16).unwrap();
    assert_eq!(Adapter::read(&path).unwrap().modules["lora_unet_a"].alpha, None);
}

#[test]
fn keys_of_other_formats_are_refused_with_a_hint_that_names_the_format() {
    let cases = [
        ("lora_unet_a.lora_mid.weight", "Tucker"),
        ("lora_unet_a.hada_w1_a", "LoHa"),
        ("lora_unet_a.lokr_w1", "LoKr"),
        ("lora_unet_a.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "PEFT"),
        ("unet:0:up", "cloneofsimo"),
        ("model.diffusion_model.out.2.weight", "whole model"),
        ("lora_unet_a.diff", "lora_down.weight"),
        ("bundle_emb.x", "lora_down.weight"),
    ];
    for (key, expected) in cases {
        let folder = Folder::new();
        let path = folder.file_of(&[(key, TensorView::f32(&[1], &[1.0]))]);
        let error = Adapter::read(&path).unwrap_err();
        assert!(matches!(error, AdapterError::UnknownKey { .. }) && error.to_string().contains(key), "{error}");
        assert!(error.hint().unwrap().contains(expected), "{key}: {:?}", error.hint());
    }
}

#[test]
fn modules_with_a_factor_missing_or_of_another_rank_are_refused() {
    let folder = Folder::new();
    let one = TensorView::f32(&[2, 3], &[1.0; 6]);
    let path = folder.file_of(&[("lora_unet_a.lora_down.weight", one.clone())]);
    let error = Adapter::read(&path).unwrap_err();
    assert!(error.to_string().contains("lora_unet_a.lora_up.weight is missing"), "{error}");

    let path =
        folder.file_of(&[("lora_unet_a.lora_down.weight", one.clone()), ("lora_unet_a.lora_up.weight", one.clone())]);
    let error = Adapter::read(&path).unwrap_err();
    assert!(matches!(&error, AdapterError::FactorShapes { module, .. } if module == "lora_unet_a"), "{error}");

    let up = TensorView::f32(&[3, 2], &[1.0; 6]);
    let path = folder.file_of(&[
        ("lora_unet_a.lora_down.weight", one),
        ("lora_unet_a.lora_up.weight", up),
        ("lora_unet_a.alpha", TensorView::f32(&[2], &[1.0; 2])),
    ]);
    assert!(matches!(Adapter::read(&path), Err(AdapterError::AlphaShape { .. })));

    let path = folder.file_of(&[]);
    assert!(matches!(Adapter::read(&path), Err(AdapterError::NoModules { .. })));
}

/// Writing this must fail and leave the file that was there.
fn write_refusal(change: impl FnOnce(&mut Adapter)) -> AdapterError {
    let folder = Folder::new();
    std::fs::write(folder.path(), "old").unwrap();
    let mut adapter = adapter();
    change(&mut adapter);
    let error = adapter.write(&folder.path(), SaveDtype::F16).unwrap_err();
    assert_eq!(std::fs::read(folder.path()).unwrap(), b"old");
    error
}

#[test]
fn adapters_that_would_break_something_are_not_written() {
    fn unet(adapter: &mut Adapter) -> &mut LoraModule {
        adapter.modules.get_mut("lora_unet_a_to_q").unwrap()
    }
    let error = write_refusal(|adapter| unet(adapter).down.data[5] = 70_000.0);
    assert!(matches!(&error, AdapterError::Overflow { tensor, .. } if tensor == "lora_unet_a_to_q.lora_down.weight"));
    let error = write_refusal(|adapter| unet(adapter).alpha = Some(1e6));
    assert!(matches!(&error, AdapterError::Overflow { tensor, .. } if tensor == "lora_unet_a_to_q.alpha"), "{error}");
    let error = write_refusal(|adapter| unet(adapter).up.data[0] = f32::NAN);
    assert!(matches!(&error, AdapterError::NonFinite { tensor } if tensor == "lora_unet_a_to_q.lora_up.weight"));
    let error = write_refusal(|adapter| unet(adapter).up.data.truncate(3));
    assert!(matches!(error, AdapterError::FactorShapes { .. }));
    let error = write_refusal(|adapter| drop(adapter.metadata.insert("lora_adapter_metadata".into(), "{}".into())));
    assert!(matches!(error, AdapterError::ForbiddenMetadata { .. }));
    assert!(matches!(write_refusal(|adapter| adapter.modules.clear()), AdapterError::NoModules { .. }));
    for name in ["unet.mid_block", "lora_unet_a.b"] {
        let error = write_refusal(|adapter| {
            let module = unet(adapter).clone();
            adapter.modules.insert(name.to_owned(), module);
        });
        assert!(matches!(error, AdapterError::BadModuleName { .. }), "{name}: {error}");
    }
}

#[test]
fn a_module_too_small_for_its_type_has_not_moved_once_read_back() {
    let folder = Folder::new();
    let mut adapter = adapter();
    adapter.modules.get_mut("lora_te_text_model_b").unwrap().up.data.fill(2e-8); // f16 starts at 6e-8
    assert!(adapter.modules_that_never_moved().is_empty());
    adapter.write(&folder.path(), SaveDtype::F16).unwrap();
    let read = Adapter::read(&folder.path()).unwrap();
    assert_eq!(read.modules_that_never_moved(), ["lora_te_text_model_b"]);
}

#[test]
fn a_file_of_sdxl_has_the_original_names_of_blocks_and_gives_those_of_diffusers() {
    let folder = Folder::new();
    let module = |start| LoraModule { down: values(start, &[2, 5]), up: values(start + 9, &[7, 2]), alpha: Some(3.0) };
    let names = [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1",
        "lora_unet_down_blocks_1_attentions_0_proj_in",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_up_blocks_0_attentions_2_proj_in",
    ];
    let in_file = [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_middle_block_1_proj_in",
        "lora_unet_output_blocks_2_1_proj_in",
    ];
    let written = Adapter {
        modules: names.iter().zip(0..).map(|(name, start)| ((*name).to_owned(), module(start))).collect(),
        metadata: [("ss_base_model_version".to_owned(), "sdxl_base_v1-0".to_owned())].into(),
    };
    written.write(&folder.path(), SaveDtype::F32).unwrap();
    let file = TensorFile::open(&folder.path()).unwrap();
    let modules: std::collections::BTreeSet<&str> = file.names().map(|key| key.split_once('.').unwrap().0).collect();
    assert!(modules.into_iter().eq(in_file));
    assert_eq!(Adapter::read(&folder.path()).unwrap().modules, written.modules);

    let down = values(0, &[2, 5]);
    let twice = ["lora_unet_input_blocks_4_1_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in"];
    let keys = twice.map(|name| format!("{name}.lora_down.weight"));
    let path = folder.file_of(&keys.each_ref().map(|key| (key.as_str(), TensorView::f32(&down.shape, &down.data))));
    assert!(matches!(Adapter::read(&path), Err(AdapterError::DuplicateName { .. })));
}

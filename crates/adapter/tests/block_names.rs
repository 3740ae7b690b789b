//! SDXL's kohya files name the U-Net's blocks as Stable Diffusion was first published, others as diffusers does: both are read,
//! and one becomes the other without change.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{
    Adapter, AdapterError, AdapterFile, Array, BaseFamily, BlockNames, Compatibility, Dtype, Format, LoraModule,
    SaveDtype, TensorFile, TensorView, keys, write_tensors,
};

fn array(start: usize, shape: &[usize]) -> Array {
    let count = shape.iter().product();
    let value = |i: usize| (((i * 7919 + start * 104_729) % 4001) as f32 - 2000.0) / 3000.0;
    Array { shape: shape.to_vec(), data: (0..count).map(value).collect() }
}

/// A layer's factors; alpha is not the rank.
fn linear(start: usize, (out, inputs): (usize, usize)) -> LoraModule {
    let rank = 2 + start % 3;
    LoraModule { down: array(start, &[rank, inputs]), up: array(start + 1, &[out, rank]), alpha: Some(1.5) }
}

fn convolution(start: usize, (out, inputs, kernel): (usize, usize, usize)) -> LoraModule {
    LoraModule {
        down: array(start, &[3, inputs, kernel, kernel]),
        up: array(start + 1, &[out, 3, 1, 1]),
        alpha: Some(0.75),
    }
}

/// Layers of every kind and level of SDXL, narrow but for the text.
fn sdxl() -> Adapter {
    let mut modules = BTreeMap::new();
    let transformers = [
        ("down_blocks.1.attentions.0", 2),
        ("down_blocks.1.attentions.1", 2),
        ("down_blocks.2.attentions.1", 10),
        ("mid_block.attentions.0", 10),
        ("up_blocks.0.attentions.2", 10),
        ("up_blocks.1.attentions.0", 2),
        ("up_blocks.1.attentions.2", 2),
    ];
    let mut start = 0;
    let mut add = |prefix: &str, path: &str, module: &dyn Fn(usize) -> LoraModule| {
        start += 1;
        modules.insert(keys::kohya_module(prefix, path), module(start));
    };
    for (path, depth) in transformers {
        for block in [0, depth - 1] {
            let path = format!("{path}.transformer_blocks.{block}");
            add("lora_unet_", &format!("{path}.attn1.to_out.0"), &|start| linear(start, (8, 8)));
            add("lora_unet_", &format!("{path}.attn2.to_k"), &|start| linear(start, (8, 2048)));
            add("lora_unet_", &format!("{path}.ff.net.0.proj"), &|start| linear(start, (64, 8)));
        }
        add("lora_unet_", &format!("{path}.proj_in"), &|start| linear(start, (8, 8)));
    }
    for path in [
        "conv_in",
        "down_blocks.0.resnets.1.conv1",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.2.resnets.2.conv2",
        "mid_block.resnets.1.conv1",
    ] {
        add("lora_unet_", path, &|start| convolution(start, (8, 8, 3)));
    }
    add("lora_unet_", "up_blocks.1.resnets.0.time_emb_proj", &|start| linear(start, (8, 16)));
    add("lora_unet_", "add_embedding.linear_1", &|start| linear(start, (16, 24)));
    for (prefix, layers) in [("lora_te1_", 11), ("lora_te2_", 32)] {
        for layer in [0, layers - 1] {
            for end in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1"] {
                add(prefix, &format!("text_model.encoder.layers.{layer}.{end}"), &|start| linear(start, (8, 8)));
            }
        }
    }
    let metadata = [("ss_network_dim".to_owned(), "Dynamic".to_owned())].into();
    Adapter { modules, metadata }
}

fn unet_names(path: &Path) -> Vec<String> {
    let file = TensorFile::open(path).unwrap();
    let names = file.names().filter_map(|name| name.strip_prefix("lora_unet_")).map(str::to_owned);
    names.collect()
}

fn is_original(name: &str) -> bool {
    ["input_blocks_", "middle_block_", "output_blocks_", "label_emb_"].iter().any(|start| name.starts_with(start))
}

#[test]
fn one_way_of_naming_becomes_the_other_and_back_without_a_bit_changed_and_no_file_mixes_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let adapter = sdxl();
    for dtype in [SaveDtype::F32, SaveDtype::F16] {
        AdapterFile::from_adapter(adapter.clone(), Path::new("made"))
            .write(&path("original"), Format::Kohya, Some(dtype))
            .unwrap();
        let original = unet_names(&path("original"));
        assert!(original.len() > 80 && original.iter().all(|name| is_original(name)), "{original:?}");

        let read = AdapterFile::read(&path("original")).unwrap();
        assert_eq!((read.family(), read.remarks()), (BaseFamily::Sdxl, Vec::new()));
        assert_eq!(read.changes.keys().collect::<Vec<_>>(), adapter.modules.keys().collect::<Vec<_>>());
        let turned = AdapterFile { block_names: Some(BlockNames::Diffusers), ..read };
        turned.write(&path("diffusers"), Format::Kohya, None).unwrap();
        let names = unet_names(&path("diffusers"));
        assert!(names.len() == original.len() && !names.iter().any(|name| is_original(name)), "{names:?}");

        AdapterFile::read(&path("diffusers")).unwrap().write(&path("again"), Format::Kohya, None).unwrap();
        assert_eq!(std::fs::read(path("again")).unwrap(), std::fs::read(path("original")).unwrap(), "{dtype:?}");
        // The plain reader and writer agree.
        let plain = Adapter::read(&path("diffusers")).unwrap();
        assert_eq!(plain.modules, Adapter::read(&path("original")).unwrap().modules);
        plain.write(&path("plain"), dtype).unwrap();
        assert_eq!(std::fs::read(path("plain")).unwrap(), std::fs::read(path("original")).unwrap(), "{dtype:?}");
    }
}

#[test]
fn peft_and_diffusers_files_of_sdxl_come_back_with_original_names_and_the_same_factors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let adapter = sdxl();
    let file = AdapterFile::from_adapter(adapter.clone(), Path::new("made"));
    for (name, format) in [("peft", Format::Peft), ("one", Format::Diffusers)] {
        file.write(&path(name), format, None).unwrap();
        let back = AdapterFile::read(&path(name)).unwrap();
        assert_eq!((back.format, back.family()), (format, BaseFamily::Sdxl));
        back.write(&path("kohya"), Format::Kohya, None).unwrap();
        assert!(unet_names(&path("kohya")).iter().all(|name| is_original(name)), "{name}");
        assert_eq!(Adapter::read(&path("kohya")).unwrap().modules, adapter.modules, "{name}");
    }
}

/// A file with these tensors.
fn write(path: &Path, tensors: &[(&str, &Array)]) {
    let views = tensors
        .iter()
        .map(|(name, array)| ((*name).to_owned(), TensorView::f32_stored_as(Dtype::F32, &array.shape, &array.data)));
    write_tensors(path, &views.collect(), &BTreeMap::new()).unwrap();
}

#[test]
fn a_file_that_mixes_both_is_read_said_to_and_written_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed");
    let (down, up) = (array(1, &[2, 2048]), array(2, &[8, 2]));
    write(
        &path,
        &[
            ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", &down),
            ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight", &up),
            ("lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_k.lora_down.weight", &down),
            ("lora_unet_down_blocks_1_attentions_1_transformer_blocks_0_attn2_to_k.lora_up.weight", &up),
        ],
    );
    let file = AdapterFile::read(&path).unwrap();
    assert_eq!(file.changes.len(), 2);
    let said = &Compatibility::of(&file).remarks;
    assert!(said.len() == 1 && said[0].contains("original names"), "{said:?}");
    for (names, expected) in [(None, true), (Some(BlockNames::Diffusers), false)] {
        let written = folder.path().join("one");
        AdapterFile { block_names: names, ..file.clone() }.write(&written, Format::Kohya, None).unwrap();
        assert!(unet_names(&written).iter().all(|name| is_original(name) == expected), "{names:?}");
        assert_eq!(AdapterFile::read(&written).unwrap().remarks(), Vec::<String>::new());
    }
}

#[test]
fn original_names_alone_tell_sdxl_and_a_place_that_has_none_keeps_the_whole_file_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let (down, up) = (array(1, &[2, 8]), array(2, &[8, 2]));
    let attention = "middle_block_1_transformer_blocks_0_attn1_to_q";
    write(
        &path,
        &[
            (&format!("lora_unet_{attention}.lora_down.weight"), &down),
            (&format!("lora_unet_{attention}.lora_up.weight"), &up),
        ],
    );
    let file = AdapterFile::read(&path).unwrap();
    assert_eq!(file.family(), BaseFamily::Sdxl);
    let again = folder.path().join("b");
    file.write(&again, Format::Kohya, None).unwrap();
    assert!(unet_names(&again).iter().all(|name| name.starts_with(attention)));

    let mut odd = sdxl();
    odd.modules.insert("lora_unet_down_blocks_1_resnets_0_norm1".to_owned(), linear(5, (8, 8)));
    let odd = AdapterFile::from_adapter(odd, Path::new("made"));
    odd.write(&again, Format::Kohya, None).unwrap();
    assert!(!unet_names(&again).iter().any(|name| is_original(name)));
    let asked = AdapterFile { block_names: Some(BlockNames::Original), ..odd };
    let error = asked.write(&again, Format::Kohya, None).unwrap_err();
    assert!(matches!(&error, AdapterError::CannotCarry { module, .. } if module.ends_with("norm1")), "{error}");
}

#[test]
fn factors_of_a_text_projection_are_left_out_by_name_and_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let (down, up) = (array(1, &[2, 8]), array(2, &[8, 2]));
    let layer = "text_model_encoder_layers_0_mlp_fc1";
    for (projection, layer, leaves) in [
        ("lora_te2_text_projection", format!("lora_te2_{layer}"), ["lora_down.weight", "lora_up.weight"]),
        (
            "text_encoder_2.text_projection",
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1".to_owned(),
            ["lora_A.weight", "lora_B.weight"],
        ),
    ] {
        let key = |module: &str, leaf: &str| format!("{module}.{leaf}");
        let names =
            [key(projection, leaves[0]), key(projection, leaves[1]), key(&layer, leaves[0]), key(&layer, leaves[1])];
        write(&path, &[(&names[0], &down), (&names[1], &up), (&names[2], &down), (&names[3], &up)]);
        let file = AdapterFile::read(&path).unwrap();
        assert_eq!(file.changes.keys().collect::<Vec<_>>(), ["lora_te2_text_model_encoder_layers_0_mlp_fc1"]);
        let remarks = file.remarks();
        assert!(remarks.len() == 1 && remarks[0].contains(projection), "{remarks:?}");
        let written = folder.path().join("b");
        file.write(&written, Format::Kohya, None).unwrap();
        assert!(!TensorFile::open(&written).unwrap().names().any(|name| name.contains("projection")));
    }
}

//! Every format is read as what it is, and a way through any of them and back keeps the adapter.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loralei_adapter::{
    Adapter, AdapterError, AdapterFile, Array, BaseFamily, Change, ConversionNote, Dtype, Format, KeySpelling,
    LoraModule, SaveDtype, TensorFile, TensorView, keys, write_tensors,
};

/// Numbers that f16 holds exactly.
fn values(start: usize, shape: &[usize]) -> Array {
    let data =
        (0..shape.iter().product()).map(|i: usize| (((i + start) * 37 % 1001) as f32 - 500.0) / 1024.0).collect();
    Array { shape: shape.to_vec(), data }
}

fn linear(start: usize, rank: usize, (out, inputs): (usize, usize), alpha: Option<f32>) -> LoraModule {
    LoraModule { down: values(start, &[rank, inputs]), up: values(start + 5, &[out, rank]), alpha }
}

fn convolution(
    start: usize,
    rank: usize,
    (out, inputs, kernel): (usize, usize, usize),
    alpha: Option<f32>,
) -> LoraModule {
    let (down, up) = ([rank, inputs, kernel, kernel], [out, rank, 1, 1]);
    LoraModule { down: values(start, &down), up: values(start + 5, &up), alpha }
}

/// Widths of a small network of the structure of SD 1.x; its text has 48 numbers, which is no family's.
const WIDTHS: [usize; 3] = [8, 16, 24];
const TEXT: usize = 48;

fn unet(path: &str) -> String {
    keys::kohya_module("lora_unet_", path)
}

/// All attention layers and gates, some with another rank and alpha, and two text layers.
fn attention(text_width: usize) -> BTreeMap<String, LoraModule> {
    let mut modules = BTreeMap::new();
    let mut start = 0;
    let mut blocks: Vec<(String, usize)> = Vec::new();
    for (level, c) in WIDTHS.into_iter().enumerate() {
        blocks.extend((0..2).map(|i| (format!("down_blocks.{level}.attentions.{i}"), c)));
        blocks.extend((0..3).map(|i| (format!("up_blocks.{}.attentions.{i}", 3 - level), c)));
    }
    blocks.push(("mid_block.attentions.0".to_owned(), WIDTHS[2]));
    for (block, c) in blocks {
        let block = format!("{block}.transformer_blocks.0");
        let mut add = |end: &str, shape| {
            start += 1;
            let (rank, alpha) = match start % 3 {
                0 => (2, Some(2.0)),
                1 => (4, Some(1.0)),
                _ => (4, Some(2.0)),
            };
            modules.insert(unet(&format!("{block}.{end}")), linear(start, rank, shape, alpha));
        };
        for end in ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"] {
            add(end, (c, c));
        }
        add("attn2.to_k", (c, text_width));
        add("attn2.to_v", (c, text_width));
        add("ff.net.0.proj", (8 * c, c));
    }
    for layer in 0..2 {
        for end in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            start += 1;
            let path = format!("text_model.encoder.layers.{layer}.self_attn.{end}");
            modules.insert(keys::kohya_module("lora_te_", &path), linear(start, 4, (TEXT, TEXT), Some(2.0)));
        }
    }
    modules
}

/// What all but cloneofsimo's format carry: convolutions, time embeddings, text MLP, an alpha that is missing.
fn everything() -> BTreeMap<String, LoraModule> {
    let mut modules = attention(TEXT);
    modules.insert(unet("mid_block.attentions.0.proj_in"), convolution(1, 4, (24, 24, 1), Some(3.0)));
    modules.insert(unet("down_blocks.0.resnets.1.conv1"), convolution(2, 3, (8, 8, 3), Some(0.75)));
    modules.insert(unet("down_blocks.0.downsamplers.0.conv"), convolution(3, 2, (8, 8, 3), None));
    modules.insert(unet("up_blocks.0.resnets.0.time_emb_proj"), linear(4, 1, (24, 32), None));
    modules.insert(unet("mid_block.attentions.0.transformer_blocks.0.ff.net.2"), linear(5, 8, (24, 96), Some(0.1)));
    let fc1 = keys::kohya_module("lora_te_", "text_model.encoder.layers.1.mlp.fc1");
    modules.insert(fc1, linear(6, 4, (96, TEXT), Some(2.0)));
    modules
}

fn file_of(modules: BTreeMap<String, LoraModule>) -> AdapterFile {
    let metadata = BTreeMap::from([
        ("ss_output_name".to_owned(), "octopus".to_owned()),
        ("ss_tag_frequency".to_owned(), "{\"a\": {\"octopus\": 3}}".to_owned()),
    ]);
    AdapterFile::from_adapter(Adapter { modules, metadata }, Path::new("made"))
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Written by the crate, read by the crate.
    fn through(&self, file: &AdapterFile, format: Format) -> (AdapterFile, Vec<ConversionNote>) {
        let path = self.path(&format!("{}.safetensors", format.name()));
        let notes = file.write(&path, format, None).unwrap();
        let read = AdapterFile::read(&path).unwrap();
        assert_eq!(read.format, format);
        (read, notes)
    }

    fn write(&self, name: &str, tensors: &[(&str, &Array)], metadata: &[(&str, &str)]) -> PathBuf {
        let tensors: BTreeMap<String, TensorView> = tensors
            .iter()
            .map(|(key, array)| ((*key).to_owned(), TensorView::f32(&array.shape, &array.data)))
            .collect();
        let metadata: BTreeMap<String, String> =
            metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        write_tensors(&self.path(name), &tensors, &metadata).unwrap();
        self.path(name)
    }
}

/// The same factors to the bit, and the same scales.
fn assert_same(found: &AdapterFile, expected: &BTreeMap<String, LoraModule>) {
    assert_eq!(found.changes.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in expected {
        let Change::Lora(found) = &found.changes[name] else { panic!("{name} is no LoRA") };
        assert_eq!((&found.down, &found.up), (&expected.down, &expected.up), "{name}");
        assert_eq!(found.scale().to_bits(), expected.scale().to_bits(), "{name}");
    }
}

#[test]
fn factors_and_alphas_survive_kohya_diffusers_and_peft_in_any_order() {
    let folder = Folder::new();
    let expected = everything();
    let mut file = file_of(expected.clone());
    for format in [Format::Diffusers, Format::Kohya, Format::Peft, Format::Diffusers, Format::Peft, Format::Kohya] {
        (file, _) = folder.through(&file, format);
        assert_same(&file, &expected);
        assert_eq!(file.metadata.get("ss_output_name").map(String::as_str), Some("octopus"));
    }
    let alphas: Vec<_> = file.changes.values().filter(|change| change.alpha().is_none()).collect();
    assert!(alphas.is_empty(), "PEFT has an alpha for all");
    assert!(!file.metadata.contains_key("lora_adapter_metadata"), "with kohya keys it makes diffusers refuse the file");
}

#[test]
fn a_missing_alpha_stays_missing_where_the_format_allows_it() {
    let folder = Folder::new();
    let (file, notes) = folder.through(&file_of(everything()), Format::Kohya);
    let Change::Lora(module) = &file.changes[&unet("down_blocks.0.downsamplers.0.conv")] else { panic!() };
    assert_eq!((module.alpha, notes), (None, vec![]));
}

#[test]
fn a_kohya_file_of_plain_lora_is_the_one_that_training_writes() {
    let folder = Folder::new();
    let adapter =
        Adapter { modules: everything(), metadata: BTreeMap::from([("ss_v2".to_owned(), "False".to_owned())]) };
    adapter.write(&folder.path("a"), SaveDtype::F16).unwrap();
    let file = AdapterFile::read(&folder.path("a")).unwrap();
    assert_eq!((file.save_dtype(), &file.dtypes), (SaveDtype::F16, &[Dtype::F16].into()));
    file.write(&folder.path("b"), Format::Kohya, None).unwrap();
    assert_eq!(std::fs::read(folder.path("a")).unwrap(), std::fs::read(folder.path("b")).unwrap());
}

#[test]
fn positions_carry_the_attention_with_folded_scales() {
    let folder = Folder::new();
    let expected = attention(TEXT);
    let mut source = file_of(expected.clone());
    source.embeddings.insert("<octopus>".to_owned(), values(3, &[TEXT]));
    source.dtypes = [Dtype::F16].into();
    let (file, notes) = folder.through(&source, Format::Cloneofsimo);
    let num_folded = expected.values().filter(|module| module.scale().to_bits() != 1_f32.to_bits()).count();
    assert_eq!(notes, [ConversionNote::AlphasFolded { num_modules: num_folded }]);
    assert_eq!(file.save_dtype(), SaveDtype::F16, "scales of a quarter and a half are exact");
    assert_eq!(file.embeddings["<octopus>"], values(3, &[TEXT]));
    assert_eq!(file.changes.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in &expected {
        let Change::Lora(found) = &file.changes[name] else { panic!() };
        assert_eq!((&found.up, found.alpha, found.rank()), (&expected.up, None, expected.rank()), "{name}");
        let folded: Vec<f32> = expected.down.data.iter().map(|value| value * expected.scale()).collect();
        assert_eq!(found.down.data, folded, "{name}");
    }
    let (again, notes) = folder.through(&file, Format::Kohya);
    assert!(
        matches!(&notes[..], [ConversionNote::EmbeddingsLeftOut { tokens }] if tokens == &["<octopus>"]),
        "{notes:?}"
    );
    assert_eq!(again.changes, file.changes);
    assert!(!again.metadata.contains_key("unet") && !again.metadata.contains_key("unet:0:rank"));
}

#[test]
fn a_scale_that_f16_would_round_is_stored_as_f32_by_position() {
    let folder = Folder::new();
    let mut modules = attention(TEXT);
    for module in modules.values_mut() {
        module.alpha = Some(1.1);
    }
    let mut source = file_of(modules.clone());
    source.dtypes = [Dtype::F16].into();
    let (file, notes) = folder.through(&source, Format::Cloneofsimo);
    assert!(notes.contains(&ConversionNote::StoredAsF32), "{notes:?}");
    for (name, expected) in &modules {
        let Change::Lora(found) = &file.changes[name] else { panic!() };
        let (found, expected) = (found.delta(), expected.delta());
        for (found, expected) in found.data.iter().zip(&expected.data) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1e-2), "{name}: {found} {expected}");
        }
    }
}

#[test]
fn layers_that_an_adapter_leaves_alone_are_zeros_by_position_and_others_cannot_be_carried() {
    let folder = Folder::new();
    let mut modules = attention(TEXT);
    let left_out = unet("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k");
    modules.remove(&left_out).unwrap();
    let (file, notes) = folder.through(&file_of(modules), Format::Cloneofsimo);
    assert!(notes.contains(&ConversionNote::ZeroLayersAdded { num_layers: 1 }), "{notes:?}");
    let Change::Lora(zero) = &file.changes[&left_out] else { panic!() };
    assert_eq!((zero.down.shape.as_slice(), zero.has_moved()), (&[1, TEXT][..], false));

    let path = folder.path("no");
    let mut modules = attention(TEXT);
    modules.insert(unet("conv_in"), convolution(1, 2, (8, 4, 3), None));
    let error = file_of(modules).write(&path, Format::Cloneofsimo, None).unwrap_err();
    assert!(matches!(&error, AdapterError::CannotCarry { module, .. } if module.ends_with("conv_in")), "{error}");
    let mut modules = attention(TEXT);
    modules.insert("lora_te2_text_model_encoder_layers_0_mlp_fc1".to_owned(), linear(1, 2, (8, 4), None));
    assert!(matches!(file_of(modules).write(&path, Format::Cloneofsimo, None), Err(AdapterError::CannotCarry { .. })));
    assert!(!path.exists());
}

#[test]
fn whole_attention_blocks_go_by_position_below_their_own_class() {
    let folder = Folder::new();
    let mut modules = attention(TEXT);
    let blocks: Vec<String> =
        modules.keys().filter_map(|name| Some(name.strip_suffix("_attn1_to_q")?.to_owned())).collect();
    for (i, block) in blocks.iter().enumerate() {
        let c = modules[&format!("{block}_attn1_to_q")].up.shape[0];
        let attention = block.strip_suffix("_transformer_blocks_0").unwrap();
        modules.insert(format!("{attention}_proj_in"), convolution(i, 4, (c, c, 1), None));
        modules.insert(format!("{attention}_proj_out"), convolution(i + 3, 4, (c, c, 1), None));
        modules.insert(format!("{block}_ff_net_2"), linear(i, 4, (c, 4 * c), None));
    }
    modules.values_mut().for_each(|module| module.alpha = None);
    let (file, notes) = folder.through(&file_of(modules.clone()), Format::Cloneofsimo);
    assert_eq!(notes, []);
    assert_eq!(file.metadata["unet"], "[\"Transformer2DModel\"]");
    assert_same(&file, &modules);
}

#[test]
fn positions_whose_shapes_do_not_fit_are_refused() {
    let folder = Folder::new();
    let (down, up) = (values(1, &[2, 8]), values(2, &[8, 2]));
    let pair = [("unet:0:down", &down), ("unet:0:up", &up)];
    let error = AdapterFile::read(&folder.write("a", &pair, &[("unet", "[\"CrossAttention\"]")])).unwrap_err();
    assert!(matches!(error, AdapterError::LayerOrder { .. }), "{error}");
    for (key, value) in [("unet", "[\"Unet\"]"), ("unet", "{"), ("unet:0:rank", "3"), ("unet:0:rank", "x")] {
        let error = AdapterFile::read(&folder.write("a", &pair, &[(key, value)])).unwrap_err();
        assert!(matches!(error, AdapterError::AdapterSettings { .. }), "{key} {value}: {error}");
    }
    let error = AdapterFile::read(&folder.write("a", &[("unet:1:down", &down), ("unet:1:up", &up)], &[])).unwrap_err();
    assert!(error.to_string().contains("unet:0:up is missing"), "{error}");
}

#[test]
fn every_generation_of_diffusers_is_read() {
    let folder = Folder::new();
    let block = "mid_block.attentions.0.transformer_blocks.0.attn1";
    let (down, up) = (values(1, &[2, 6]), values(2, &[6, 2]));
    let expected = |module: &str, alpha| {
        BTreeMap::from([(module.to_owned(), LoraModule { down: down.clone(), up: up.clone(), alpha })])
    };
    let module = unet(&format!("{block}.to_out.0"));
    let text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj";
    for (path, ends, module, spelling) in [
        (format!("{block}.processor.to_out_lora"), ["down", "up"], module.as_str(), KeySpelling::Processor),
        (format!("unet.{block}.processor.to_out_lora"), ["down", "up"], &module, KeySpelling::Processor),
        (format!("unet.{block}.to_out.0.lora"), ["down", "up"], &module, KeySpelling::LoraDown),
        (format!("unet.{block}.to_out.0"), ["lora_A", "lora_B"], &module, KeySpelling::Peft),
        (format!("{block}.to_out.0"), ["lora_A", "lora_B"], &module, KeySpelling::Peft),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer".to_owned(),
            ["down", "up"],
            text,
            KeySpelling::LinearLayer,
        ),
        ("text_encoder.encoder.layers.0.self_attn.q_proj".to_owned(), ["lora_A", "lora_B"], text, KeySpelling::Peft),
    ] {
        let keys = ends.map(|end| format!("{path}.{end}.weight"));
        let file = AdapterFile::read(&folder.write("a", &[(&keys[0], &down), (&keys[1], &up)], &[])).unwrap();
        assert_eq!((file.format, file.keys[0].spelling), (Format::Diffusers, spelling), "{path}");
        assert_same(&file, &expected(module, None));
    }
    let settings = "{\"unet.r\": 2, \"unet.lora_alpha\": 3, \"unet.alpha_pattern\": {\"attn1.to_out.0\": 5}}";
    let keys = ["lora_A", "lora_B"].map(|end| format!("unet.{block}.to_out.0.{end}.weight"));
    let tensors = [(keys[0].as_str(), &down), (keys[1].as_str(), &up)];
    let file = AdapterFile::read(&folder.write("a", &tensors, &[("lora_adapter_metadata", settings)])).unwrap();
    assert_same(&file, &expected(&module, Some(5.0)));
    let rank_stabilised =
        settings.replace("\"unet.alpha_pattern\"", "\"unet.use_rslora\": true, \"unet.alpha_pattern\"");
    let file = AdapterFile::read(&folder.write("a", &tensors, &[("lora_adapter_metadata", &rank_stabilised)])).unwrap();
    let Change::Lora(found) = &file.changes[&module] else { panic!() };
    assert!((found.scale() - 5.0 / 2_f32.sqrt()).abs() < 1e-6, "alpha over the root of the rank");
    for wrong in ["", "[]", "{\"unet.lora_alpha\": []}", "{\"r\": 2}", "{\"unet.peft_type\": \"IA3\"}"] {
        let error = AdapterFile::read(&folder.write("a", &tensors, &[("lora_adapter_metadata", wrong)])).unwrap_err();
        assert!(matches!(error, AdapterError::AdapterSettings { .. }), "{wrong}: {error}");
    }
}

#[test]
fn a_dora_of_peft_is_kohyas_and_back_and_cannot_go_where_there_is_none() {
    let folder = Folder::new();
    let (down, up, magnitude) = (values(1, &[2, 6]), values(2, &[4, 2]), values(3, &[4, 1]));
    let module = unet("mid_block.attentions.0.transformer_blocks.0.attn1.to_q");
    let path = folder.write(
        "a",
        &[
            (&format!("{module}.lora_down.weight"), &down),
            (&format!("{module}.lora_up.weight"), &up),
            (&format!("{module}.dora_scale"), &magnitude),
        ],
        &[],
    );
    let file = AdapterFile::read(&path).unwrap();
    assert_eq!(file.changes[&module].kind(), "DoRA");
    let (peft, _) = folder.through(&file, Format::Peft);
    let (kohya, _) = folder.through(&peft, Format::Kohya);
    let Change::Dora(found) = &kohya.changes[&module] else { panic!() };
    let Change::Dora(expected) = &file.changes[&module] else { panic!() };
    assert_eq!(found.magnitude, expected.magnitude);
    assert_eq!(found.direction.delta(None, 1.0).unwrap(), expected.direction.delta(None, 1.0).unwrap());
    let error = file.write(&folder.path("no"), Format::Cloneofsimo, None).unwrap_err();
    assert!(matches!(error, AdapterError::NotLowRank { .. }), "{error}");
    assert!(matches!(file.to_adapter(), Err(AdapterError::NotLowRank { .. })));
}

#[test]
fn kinds_of_lycoris_survive_kohya_and_become_plain_lora_elsewhere() {
    let folder = Folder::new();
    let module = unet("mid_block.attentions.0.transformer_blocks.0.attn1.to_q");
    let leaves = [("hada_w1_a", [6, 2]), ("hada_w1_b", [2, 5]), ("hada_w2_a", [6, 2]), ("hada_w2_b", [2, 5])];
    let arrays: Vec<(String, Array)> = leaves
        .iter()
        .enumerate()
        .map(|(i, (leaf, shape))| (format!("{module}.{leaf}"), values(i * 11, shape)))
        .collect();
    let alpha = Array { shape: vec![], data: vec![1.0] };
    let key = format!("{module}.alpha");
    let mut tensors: Vec<(&str, &Array)> = arrays.iter().map(|(key, array)| (key.as_str(), array)).collect();
    tensors.push((&key, &alpha));
    let file = AdapterFile::read(&folder.write("a", &tensors, &[])).unwrap();
    let (kohya, notes) = folder.through(&file, Format::Kohya);
    assert_eq!((&kohya.changes, notes), (&file.changes, vec![]));
    let (diffusers, notes) = folder.through(&file, Format::Diffusers);
    assert_eq!(notes, [ConversionNote::WrittenAsLora { kind: "LoHa", num_modules: 1 }]);
    let (expected, found) =
        (file.changes[&module].delta(None, 1.0).unwrap(), diffusers.changes[&module].delta(None, 1.0).unwrap());
    let difference: f64 = expected.data.iter().zip(&found.data).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!(difference.sqrt() < 1e-5 * expected.norm());
}

#[test]
fn sdxl_has_the_original_blocks_in_kohyas_file_and_those_of_diffusers_in_memory() {
    let folder = Folder::new();
    let modules = BTreeMap::from([
        (unet("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"), linear(1, 2, (8, 2048), Some(1.0))),
        (unet("up_blocks.0.attentions.2.proj_in"), linear(2, 2, (8, 8), Some(1.0))),
        (unet("mid_block.resnets.1.conv1"), convolution(3, 2, (8, 8, 3), Some(1.0))),
        (keys::kohya_module("lora_te1_", "encoder.layers.0.mlp.fc1"), linear(4, 2, (8, 8), Some(1.0))),
        (keys::kohya_module("lora_te2_", "encoder.layers.0.mlp.fc1"), linear(5, 2, (8, 8), Some(1.0))),
    ]);
    let (file, notes) = folder.through(&file_of(modules.clone()), Format::Kohya);
    assert!(matches!(&notes[..], [ConversionNote::MetadataAdded { .. }]), "{notes:?}");
    assert_eq!((file.family(), file.metadata["ss_base_model_version"].as_str()), (BaseFamily::Sdxl, "sdxl_base_v1-0"));
    let names: Vec<String> = TensorFile::open(&file.path).unwrap().names().map(str::to_owned).collect();
    for name in
        ["input_blocks_4_1_transformer_blocks_1_attn2_to_k", "output_blocks_2_1_proj_in", "middle_block_2_in_layers_2"]
    {
        assert!(names.contains(&format!("lora_unet_{name}.lora_up.weight")), "{names:?}");
    }
    assert_same(&file, &modules);
    for format in [Format::Diffusers, Format::Peft] {
        assert_same(&folder.through(&file, format).0, &modules);
    }
}

#[test]
fn projections_get_the_dimensions_of_their_family() {
    let folder = Folder::new();
    let path = "mid_block.attentions.0";
    let cross = unet(&format!("{path}.transformer_blocks.0.attn2.to_k"));
    let projection = unet(&format!("{path}.proj_in"));
    for (text, wrong, right) in
        [(768, linear(1, 2, (8, 8), None), vec![2, 8, 1, 1]), (1024, convolution(1, 2, (8, 8, 1), None), vec![2, 8])]
    {
        let modules =
            BTreeMap::from([(cross.clone(), linear(3, 2, (8, text), None)), (projection.clone(), wrong.clone())]);
        let (file, notes) = folder.through(&file_of(modules), Format::Kohya);
        let Change::Lora(found) = &file.changes[&projection] else { panic!() };
        assert_eq!((&found.down.shape, &found.down.data), (&right, &wrong.down.data));
        assert!(matches!(&notes[0], ConversionNote::ProjectionsReshaped { num_modules: 1, .. }), "{notes:?}");
    }
}

#[test]
fn peft_folders_are_read_whole_by_component_and_by_their_file() {
    let folder = Folder::new();
    let expected = everything();
    let path = folder.path("peft");
    let notes = file_of(expected.clone()).write(&path, Format::Peft, None).unwrap();
    let folders = ConversionNote::SeveralFolders { names: vec!["unet", "text_encoder"] };
    assert_eq!(notes, [folders, ConversionNote::TextLevel]);
    assert_same(&AdapterFile::read(&path).unwrap(), &expected);
    let text: BTreeMap<_, _> = expected.clone().into_iter().filter(|(name, _)| name.starts_with("lora_te_")).collect();
    assert_same(&AdapterFile::read(&path.join("text_encoder")).unwrap(), &text);
    assert_same(&AdapterFile::read(&path.join("text_encoder/adapter_model.safetensors")).unwrap(), &text);

    std::fs::write(path.join("unet/adapter_config.json"), "{\"peft_type\": \"LORA\", ").unwrap();
    assert!(matches!(AdapterFile::read(&path), Err(AdapterError::AdapterSettings { .. })));
    std::fs::create_dir(folder.path("empty")).unwrap();
    assert!(matches!(AdapterFile::read(&folder.path("empty")), Err(AdapterError::NoAdapter { .. })));
}

#[test]
fn keys_that_belong_to_no_adapter_are_refused_unless_asked_for() {
    let folder = Folder::new();
    let (down, up) = (values(1, &[2, 6]), values(2, &[6, 2]));
    let path = folder.write(
        "a",
        &[("lora_unet_conv_in.lora_down.weight", &down), ("lora_unet_conv_in.lora_up.weight", &up), ("vae.x", &up)],
        &[],
    );
    assert!(matches!(AdapterFile::read(&path), Err(AdapterError::UnknownKey { key, .. }) if key == "vae.x"));
    let file = AdapterFile::read_with_unknown_keys(&path).unwrap();
    assert_eq!(
        (file.changes.len(), file.keys.iter().filter(|key| key.spelling == KeySpelling::Unknown).count()),
        (1, 1)
    );
    let path = folder.write("b", &[("model.x", &up)], &[]);
    assert!(matches!(AdapterFile::read(&path), Err(AdapterError::UnknownKey { .. })));
}

#[test]
fn two_keys_for_one_tensor_are_refused() {
    let folder = Folder::new();
    let (down, up) = (values(1, &[2, 6]), values(2, &[6, 2]));
    let path = "mid_block.attentions.0.proj_in";
    let twice = [
        (format!("unet.{path}.lora_A.weight"), &down),
        (format!("unet.{path}.lora.down.weight"), &down),
        (format!("unet.{path}.lora_B.weight"), &up),
    ];
    let tensors: Vec<(&str, &Array)> = twice.iter().map(|(key, array)| (key.as_str(), *array)).collect();
    assert!(matches!(AdapterFile::read(&folder.write("a", &tensors, &[])), Err(AdapterError::DuplicateName { .. })));
    let twice = ["lora_unet_middle_block_1_proj_in", "lora_unet_mid_block_attentions_0_proj_in"]
        .map(|module| format!("{module}.lora_down.weight"));
    let tensors: Vec<(&str, &Array)> = twice.iter().map(|key| (key.as_str(), &down)).collect();
    assert!(matches!(AdapterFile::read(&folder.write("a", &tensors, &[])), Err(AdapterError::DuplicateName { .. })));
}

#[test]
fn what_diffusers_saves_changes_weights_as_diffusers_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters");
    let file = AdapterFile::read(&folder.join("diffusers_saver.safetensors")).unwrap();
    let expected = TensorFile::open(&folder.join("diffusers_saver_delta.safetensors")).unwrap();
    assert_eq!((file.format, file.changes.len(), expected.names().len()), (Format::Diffusers, 7, 7));
    for name in expected.names() {
        let (component, path) = name.split_once('.').unwrap();
        let prefix = if component == "unet" { "lora_unet_" } else { "lora_te_" };
        let change = file.changes[&keys::kohya_module(prefix, path)].delta(None, 1.0).unwrap();
        assert_eq!(change.shape, expected.info(name).unwrap().shape);
        let expected = Array { shape: change.shape.clone(), data: expected.read_f32(name).unwrap() };
        let difference =
            change.data.iter().zip(&expected.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        assert!(difference < 1e-6 * expected.norm(), "{name}: {difference:e} of {}", expected.norm());
    }
}

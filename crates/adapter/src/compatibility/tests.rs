use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::change::{Change, DoraModule};
use crate::{Array, KeySpelling, LoraModule};

/// kohya's module name, rank, alpha, inputs.
type Module<'a> = (&'a str, usize, Option<f32>, usize);

const CROSS: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
const SELF: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
const FF: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2";

fn lora(rank: usize, alpha: Option<f32>, inputs: usize) -> LoraModule {
    let filled = |shape: [usize; 2]| Array { shape: shape.to_vec(), data: vec![0.5; shape[0] * shape[1]] };
    LoraModule { down: filled([rank, inputs]), up: filled([5, rank]), alpha }
}

fn key(key: String, module: Option<&str>, spelling: KeySpelling, shape: &[usize]) -> SourceKey {
    SourceKey { key, module: module.map(str::to_owned), spelling, shape: shape.to_vec() }
}

fn kohya(modules: &[Module]) -> AdapterFile {
    let mut keys = Vec::new();
    let mut changes = BTreeMap::new();
    for (name, rank, alpha, inputs) in modules {
        let change = Change::Lora(lora(*rank, *alpha, *inputs));
        for (leaf, array) in change.leaves() {
            keys.push(key(format!("{name}.{leaf}"), Some(name), KeySpelling::Kohya, &array.shape));
        }
        changes.insert((*name).to_owned(), change);
    }
    AdapterFile {
        path: PathBuf::from("a.safetensors"),
        format: Format::Kohya,
        changes,
        embeddings: BTreeMap::new(),
        metadata: BTreeMap::new(),
        keys,
        dtypes: [crate::Dtype::F16].into(),
        block_names: None,
    }
}

fn verdicts(file: &AdapterFile) -> BTreeMap<&'static str, ProgramReport> {
    Compatibility::of(file).programs.into_iter().map(|report| (report.program, report)).collect()
}

#[test]
fn an_even_kohya_file_is_loaded_wholly_by_all() {
    let text = |end| format!("lora_te_text_model_encoder_layers_0_self_attn_{end}");
    let names = ["q_proj", "k_proj", "v_proj", "out_proj"].map(text);
    let mut modules = vec![(CROSS, 4, Some(2.0), 768), (SELF, 4, Some(2.0), 320)];
    modules.extend(names.iter().map(|name| (name.as_str(), 8, Some(8.0), 768)));
    let file = kohya(&modules);
    for report in verdicts(&file).values() {
        assert_eq!((report.verdict, report.num_keys_loaded), (Verdict::All, 18), "{report:?}");
        assert!(
            report.wrong_scales.is_empty() && report.ignored.is_empty() && report.refusals.is_empty(),
            "{report:?}"
        );
    }
}

#[test]
fn uneven_alphas_are_wrong_in_the_attention_of_diffusers_only() {
    let file = kohya(&[(CROSS, 4, Some(2.0), 768), (SELF, 4, Some(4.0), 320), (FF, 4, Some(2.0), 320)]);
    let found = verdicts(&file);
    assert_eq!(found["diffusers"].wrong_scales[0].num_modules, 1);
    assert!(found.iter().all(|(program, report)| *program == "diffusers" || report.wrong_scales.is_empty()));
    let file = kohya(&[(CROSS, 4, Some(2.0), 768), (SELF, 4, Some(2.0), 320), (FF, 4, Some(8.0), 320)]);
    assert!(verdicts(&file)["diffusers"].wrong_scales.is_empty(), "its pattern reaches the feed-forward");
}

#[test]
fn a_text_attention_without_its_output_is_dropped_by_diffusers_and_a_smaller_part_refused() {
    let text = |end| format!("lora_te_text_model_encoder_layers_0_self_attn_{end}");
    let names = ["q_proj", "k_proj", "v_proj"].map(text);
    let mut modules = vec![(CROSS, 4, None, 768)];
    modules.extend(names.iter().map(|name| (name.as_str(), 4, None, 768)));
    let found = verdicts(&kohya(&modules));
    assert_eq!((found["diffusers"].verdict, found["diffusers"].num_keys_loaded), (Verdict::Part, 2));
    assert_eq!(found["A1111"].verdict, Verdict::All, "SD 1.x has separate layers");
    modules.pop();
    assert_eq!(verdicts(&kohya(&modules))["diffusers"].verdict, Verdict::Refuses);
    for module in &mut modules {
        module.3 = 1024;
    }
    assert_eq!(verdicts(&kohya(&modules))["A1111"].verdict, Verdict::Part, "SD 2.x has them in one");
}

#[test]
fn rank_one_with_an_alpha_and_extra_tensors_and_alpha_shapes_are_found() {
    let found = verdicts(&kohya(&[(CROSS, 1, Some(1.0), 768)]));
    assert_eq!(found["stable-diffusion.cpp"].wrong_scales[0].num_modules, 1);
    let mut file = kohya(&[(CROSS, 4, Some(1.0), 768)]);
    file.keys.push(key("bundle_emb.x.string_to_param.*".to_owned(), None, KeySpelling::Embedding, &[2, 768]));
    let found = verdicts(&file);
    assert_eq!(found["diffusers"].verdict, Verdict::Refuses);
    assert_eq!(found["additional-networks"].verdict, Verdict::Refuses);
    assert_eq!(found["A1111"].verdict, Verdict::All);
    assert_eq!((found["InvokeAI"].verdict, found["InvokeAI"].ignored[0].num_keys), (Verdict::Part, 1));
    let mut file = kohya(&[(CROSS, 4, Some(1.0), 768)]);
    file.keys.iter_mut().filter(|key| facts::is_alpha(key)).for_each(|key| key.shape = vec![1]);
    let found = verdicts(&file);
    assert_eq!((found["additional-networks"].verdict, found["diffusers"].verdict), (Verdict::Refuses, Verdict::All));
    let mut file = kohya(&[(CROSS, 4, Some(1.0), 768)]);
    file.metadata.insert("lora_adapter_metadata".to_owned(), "{}".to_owned());
    assert_eq!(verdicts(&file)["diffusers"].verdict, Verdict::Refuses);
    let found = verdicts(&kohya(&[(SELF, 4, Some(1.0), 320)]));
    assert_eq!((found["InvokeAI"].verdict, found["ComfyUI, Forge"].verdict), (Verdict::Refuses, Verdict::All));
}

#[test]
fn dora_is_said_to_be_another_picture_wherever_it_is() {
    let mut file = kohya(&[(CROSS, 4, Some(1.0), 768)]);
    let direction = Box::new(Change::Lora(lora(4, Some(1.0), 768)));
    let magnitude = Array { shape: vec![5, 1], data: vec![1.0; 5] };
    file.changes.insert(CROSS.to_owned(), Change::Dora(DoraModule { direction, magnitude }));
    file.keys.push(key(format!("{CROSS}.dora_scale"), Some(CROSS), KeySpelling::Kohya, &[5, 1]));
    for (program, report) in verdicts(&file) {
        assert!(!report.wrong_scales.is_empty(), "{program}");
    }
    assert_eq!(verdicts(&file)["diffusers"].ignored[0].examples, [format!("{CROSS}.dora_scale")]);
}

#[test]
fn names_of_diffusers_are_loaded_by_few() {
    let mut file = kohya(&[(CROSS, 4, None, 768), (FF, 4, None, 320)]);
    let text = "lora_te_text_model_encoder_layers_0_mlp_fc1";
    file.changes.insert(text.to_owned(), Change::Lora(lora(4, None, 768)));
    file.format = Format::Diffusers;
    let block = "unet.mid_block.attentions.0.transformer_blocks.0";
    let names = [
        (format!("{block}.attn2.to_k"), CROSS),
        (format!("{block}.ff.net.2"), FF),
        ("text_encoder.encoder.layers.0.mlp.fc1".to_owned(), text),
    ];
    let dotted = names.iter().flat_map(|(path, module)| {
        ["lora_A", "lora_B"].map(|leaf| key(format!("{path}.{leaf}.weight"), Some(module), KeySpelling::Peft, &[4, 4]))
    });
    file.keys = dotted.collect();
    let found = verdicts(&file);
    let loaded = |program: &str| (found[program].verdict, found[program].num_keys_loaded);
    assert_eq!(loaded("diffusers"), (Verdict::All, 6));
    assert_eq!(loaded("ComfyUI, Forge"), (Verdict::Part, 2), "neither attention nor text without text_model");
    assert_eq!(loaded("stable-diffusion.cpp"), (Verdict::Part, 4));
    assert_eq!(loaded("A1111"), (Verdict::None, 0));
    assert_eq!(loaded("sd-scripts"), (Verdict::None, 0));
    assert_eq!(loaded("InvokeAI"), (Verdict::Refuses, 0));
    for key in &mut file.keys {
        key.key = key.key.replace("unet.", "base_model.model.").replace("text_encoder.", "base_model.model.");
    }
    assert_eq!(verdicts(&file)["diffusers"].verdict, Verdict::None);
}

//! What the file of a composition says about itself.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its inputs plainly")]

use std::collections::BTreeMap;

use loralei_adapter::compose::{ComposeSettings, Member, MemberOrigin, Method, compose, describe};
use loralei_adapter::{Adapter, AdapterError, Array, LoraModule};

const CROSS: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";

/// An adapter of one layer with this text width.
fn adapter(text_width: usize, rank: usize, metadata: &[(&str, &str)]) -> Adapter {
    let filled = |shape: [usize; 2]| Array { shape: shape.to_vec(), data: vec![0.5; shape[0] * shape[1]] };
    let module = LoraModule { down: filled([rank, text_width]), up: filled([5, rank]), alpha: Some(1.0) };
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Adapter { modules: [(CROSS.to_owned(), module)].into(), metadata }
}

fn origin<'a>(name: &'a str, scale: f32, adapter: &'a Adapter) -> MemberOrigin<'a> {
    MemberOrigin { name, scale, adapter }
}

fn described(members: &[MemberOrigin<'_>], settings: &ComposeSettings) -> BTreeMap<String, String> {
    let parts: Vec<Member> = members.iter().map(|m| Member { adapter: m.adapter, scale: m.scale }).collect();
    let composed = compose(&parts, settings, &BTreeMap::new()).unwrap().adapter;
    describe(members, settings, &composed, "both").unwrap()
}

#[test]
fn words_of_all_members_are_kept_and_what_they_agree_on_about_the_base() {
    let dog = adapter(
        768,
        4,
        &[
            ("modelspec.trigger_phrase", "sks dog"),
            ("modelspec.author", "Ada"),
            ("ss_sd_model_name", "base.safetensors"),
            ("ss_clip_skip", "1"),
            ("ss_learning_rate", "0.0001"),
            ("sshs_model_hash", "ab"),
            ("ss_tag_frequency", r#"{"10_dog": {"sks dog": 10, "grass": 2}}"#),
        ],
    );
    let style = adapter(
        768,
        2,
        &[
            ("modelspec.trigger_phrase", "in sticker style"),
            ("modelspec.author", "Ada"),
            ("ss_sd_model_name", "base.safetensors"),
            ("ss_clip_skip", "2"),
            ("ss_tag_frequency", r#"{"10_dog": {"grass": 3}, "1_sticker": {"sticker": 7}}"#),
        ],
    );
    let settings = ComposeSettings { density: 0.25, ..ComposeSettings::new(Method::Ties) };
    let metadata = described(&[origin("dog", 1.0, &dog), origin("style", -0.5, &style)], &settings);
    let expected = [
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.author", "Ada"),
        ("modelspec.implementation", "diffusers"),
        ("modelspec.merged_from", "dog, style"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.title", "both"),
        ("modelspec.trigger_phrase", "sks dog, in sticker style"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_network_alpha", "4"),
        ("ss_network_args", "{}"),
        ("ss_network_dim", "4"),
        ("ss_network_module", "networks.lora"),
        ("ss_output_name", "both"),
        ("ss_sd_model_name", "base.safetensors"),
        ("ss_tag_frequency", r#"{"10_dog":{"grass":5,"sks dog":10},"1_sticker":{"sticker":7}}"#),
        ("ss_training_comment", "composed by ties (density 0.25): dog at 1, style at -0.5"),
        ("ss_v2", "False"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(metadata.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn members_of_different_families_are_refused_by_name() {
    let settings = ComposeSettings::new(Method::Sum);
    let refused = |first: &Adapter, second: &Adapter| {
        let members = [origin("one", 1.0, first), origin("two", 1.0, second)];
        describe(&members, &settings, &Adapter::default(), "both").unwrap_err().to_string()
    };
    let xl = adapter(5, 4, &[("modelspec.architecture", "stable-diffusion-xl-v1-base/lora")]);
    let claims_xl = adapter(768, 4, &[("ss_base_model_version", "sdxl_base_v1-0")]);
    let expected = "one is for Stable Diffusion 1.x, two for Stable Diffusion XL";
    assert_eq!(refused(&adapter(768, 4, &[]), &adapter(2048, 4, &[])), expected);
    assert_eq!(refused(&claims_xl, &xl), expected); // layers tell more than metadata
    assert_eq!(
        refused(&adapter(1024, 4, &[]), &adapter(768, 4, &[])),
        "one is for Stable Diffusion 2.x, two for Stable Diffusion 1.x"
    );
    let unknown = adapter(5, 4, &[]);
    let members = [origin("one", 1.0, &unknown), origin("two", 1.0, &xl)];
    let metadata = describe(&members, &settings, &xl, "both").unwrap();
    assert_eq!(metadata["ss_base_model_version"], "sdxl_base_v1-0");
    let error = describe(&[origin("a", 1.0, &claims_xl), origin("b", 1.0, &xl)], &settings, &xl, "c").unwrap_err();
    assert!(matches!(error, AdapterError::BaseFamilies { .. }) && error.hint().is_some());
}

#[test]
fn text_that_is_no_tag_frequency_is_left_out() {
    let odd = adapter(768, 2, &[("ss_tag_frequency", "{\"a\": 3, \"b\": {\"tag\": -1}"), ("modelspec.tags", "")]);
    let metadata = described(&[origin("odd", 1.0, &odd)], &ComposeSettings::new(Method::Budget));
    assert!(!metadata.contains_key("ss_tag_frequency") && !metadata.contains_key("modelspec.tags"));
    assert_eq!(metadata["ss_training_comment"], "composed by budget (budget 1): odd at 1");
}

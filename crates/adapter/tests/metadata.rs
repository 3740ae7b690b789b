//! Metadata says what other programs look for, in the spelling they look for.

use loralei_adapter::{BaseVersion, DatasetFolder, TrainingFacts, session_id};
use serde_json::json;

fn facts() -> TrainingFacts {
    TrainingFacts {
        output_name: "octopus".to_owned(),
        network_dim: 8,
        network_alpha: 4.0,
        learning_rate: 1e-4,
        text_encoder_lr: vec![5e-6],
        resolution_px: (512, 768),
        cache_latents: true,
        ..TrainingFacts::default()
    }
}

#[test]
fn the_entries_that_decide_visibility_are_right_for_every_family() {
    let expected = [
        (BaseVersion::SdV1, "False", "sd_v1", "stable-diffusion-v1/lora", "diffusers"),
        (BaseVersion::SdV2, "True", "sd_v2", "stable-diffusion-v2-512/lora", "diffusers"),
        (BaseVersion::SdV2V, "True", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "diffusers"),
        (
            BaseVersion::SdxlBaseV1,
            "False",
            "sdxl_base_v1-0",
            "stable-diffusion-xl-v1-base/lora",
            "https://github.com/Stability-AI/generative-models",
        ),
    ];
    for (base, v2, version, architecture, implementation) in expected {
        let metadata = TrainingFacts { base, ..facts() }.to_metadata();
        assert_eq!(metadata["ss_v2"], v2);
        assert_eq!(metadata["ss_base_model_version"], version);
        assert_eq!(metadata["modelspec.architecture"], architecture);
        assert_eq!(metadata["modelspec.implementation"], implementation);
    }
}

#[test]
fn values_are_spelled_as_in_files_of_sd_scripts() {
    let metadata = facts().to_metadata();
    let expected = [
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "8"),
        ("ss_network_alpha", "4.0"),
        ("ss_network_args", "{}"),
        ("ss_learning_rate", "0.0001"),
        ("ss_text_encoder_lr", "5e-06"),
        ("ss_unet_lr", "None"),
        ("ss_cache_latents", "True"),
        ("ss_resolution", "(512, 768)"),
        ("ss_clip_skip", "None"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.title", "octopus"),
        ("modelspec.resolution", "512x768"),
        ("modelspec.prediction_type", "epsilon"),
    ];
    for (key, value) in expected {
        assert_eq!(metadata[key], value, "{key}");
    }
}

#[test]
fn what_a_run_adds_to_noise_and_loss_is_there_only_where_it_was_used() {
    let used = TrainingFacts {
        debiased_estimation: Some(true),
        huber_c: Some(0.1),
        huber_schedule: Some("snr".to_owned()),
        noise_offset_random_strength: Some(true),
        adaptive_noise_scale: Some(-0.01),
        multires_noise_iterations: Some(6),
        multires_noise_discount: Some(0.3),
        ..facts()
    };
    let (used, unused) = (used.to_metadata(), facts().to_metadata());
    for (key, value) in [
        ("ss_debiased_estimation", "True"),
        ("ss_huber_c", "0.1"),
        ("ss_huber_schedule", "snr"),
        ("ss_noise_offset_random_strength", "True"),
        ("ss_adaptive_noise_scale", "-0.01"),
        ("ss_multires_noise_iterations", "6"),
        ("ss_multires_noise_discount", "0.3"),
    ] {
        assert_eq!(used[key], value, "{key}");
        assert!(!unused.contains_key(key), "{key}");
    }
}

#[test]
fn structured_entries_are_json_that_the_programs_can_parse() {
    let folder = "10_\"octo\"".to_owned();
    let facts = TrainingFacts {
        dataset_dirs: [(folder.clone(), DatasetFolder { n_repeats: 10, img_count: 8 })].into(),
        tag_frequency: [(folder, [("octopus".to_owned(), 8), ("a, b".to_owned(), 2)].into())].into(),
        buckets: Some(vec![((512, 512), 5), ((448, 576), 3)]),
        network_args: [("conv_dim".to_owned(), "4".to_owned())].into(),
        ..facts()
    };
    let metadata = facts.to_metadata();
    let parse = |key: &str| serde_json::from_str::<serde_json::Value>(&metadata[key]).unwrap();
    assert_eq!(parse("ss_dataset_dirs"), json!({"10_\"octo\"": {"n_repeats": 10, "img_count": 8}}));
    assert_eq!(parse("ss_tag_frequency"), json!({"10_\"octo\"": {"octopus": 8, "a, b": 2}}));
    let buckets = json!({"0": {"resolution": [512, 512], "count": 5}, "1": {"resolution": [448, 576], "count": 3}});
    assert_eq!(parse("ss_bucket_info"), json!({ "buckets": buckets }));
    assert_eq!(parse("ss_network_args"), json!({"conv_dim": "4"}));
}

#[test]
fn times_are_written_only_if_they_are_given() {
    let without = facts().to_metadata();
    for key in ["ss_training_started_at", "ss_training_finished_at", "ss_session_id", "modelspec.date"] {
        assert!(!without.contains_key(key), "{key}");
    }
    let with = TrainingFacts {
        started_at_unix_s: Some(1_700_000_000),
        date_unix_s: Some(1_709_251_199),
        session_id: Some(session_id(b"config")),
        ..facts()
    }
    .to_metadata();
    assert_eq!(with["ss_training_started_at"], "1700000000.0");
    assert_eq!(with["modelspec.date"], "2024-02-29T23:59:59Z");
    // import hashlib; print(int(hashlib.sha256(b"config").hexdigest()[:8], 16))
    assert_eq!(with["ss_session_id"], "3080062715");
}

#[test]
fn nothing_in_the_metadata_makes_diffusers_refuse_the_file() {
    assert!(facts().to_metadata().keys().all(|key| key.starts_with("ss_") || key.starts_with("modelspec.")));
}

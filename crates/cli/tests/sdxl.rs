//! Stable Diffusion XL as a user meets it: pictures, adapters of every naming, first settings.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and writes its own inputs

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use loralei_adapter::{Adapter, AdapterFile, LoraModule, SaveDtype, TensorFile};
use loralei_picture::read_parameters;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn loralei(folder: &Path, arguments: &[&str]) -> Output {
    Command::cargo_bin("loralei")
        .unwrap()
        .env("XDG_CACHE_HOME", folder.join("caches"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What a command that succeeds prints.
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A folder with the tiny base and its adapter.
fn workplace(case: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    copy_folder(&golden(case).join("base"), &place.path().join("base"));
    fs::copy(golden(case).join("adapter.safetensors"), place.path().join("a.safetensors")).unwrap();
    place
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

const DRAW: [&str; 11] = [
    "generate",
    "--base",
    "base",
    "--prompt",
    "photo of the dog",
    "--steps",
    "3",
    "--size",
    "64x96",
    "--weights",
    "f32",
];

/// The latents that a command draws.
fn latents(place: &Path, more: &[&str]) -> Vec<f32> {
    let ends = ["--save-latents", "l.safetensors", "--output", "l.png"];
    stdout(&loralei(place, &[&DRAW[..], more, &ends].concat()));
    TensorFile::open(&place.join("l.safetensors")).unwrap().read_f32("latents").unwrap()
}

/// ||a - b|| / ||b||
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn sizes_and_crops_that_the_base_is_told_change_the_picture_and_are_in_its_parameters() {
    let place = workplace("sdxl");
    let plain = latents(place.path(), &[]);
    assert_eq!(latents(place.path(), &["--original-size", "64x96", "--crop", "0x0"]), plain, "these are the defaults");
    let told = latents(place.path(), &["--original-size", "640x480"]);
    let cropped = latents(place.path(), &["--crop", "0x32"]);
    let turned = latents(place.path(), &["--crop", "32x0"]);
    for (other, what) in [(&told, "original size"), (&cropped, "top"), (&turned, "left")] {
        assert!(distance(other, &plain) > 1e-4, "{what}");
    }
    assert!(distance(&cropped, &turned) > 1e-4, "top is not left");
    let more = ["--original-size", "640x480", "--crop", "8x16", "--output", "a.png"];
    stdout(&loralei(place.path(), &[&DRAW[..], &more].concat()));
    let text = read_parameters(&fs::read(place.path().join("a.png")).unwrap()).unwrap().unwrap();
    assert!(text.contains("Size: 64x96, Original size: 640x480, Crop: 8x16, Model: base"), "{text}");
}

#[test]
fn a_base_that_is_told_nothing_of_sizes_refuses_them() {
    let place = workplace("sd1");
    for flags in [["--original-size", "64x64"], ["--crop", "0x8"]] {
        let output =
            loralei(place.path(), &[&DRAW[..7], &["--size", "64x64"], &flags, &["--output", "a.png"]].concat());
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains(flags[0]) && text.contains("hint:") && text.contains("XL"), "{text}");
    }
}

#[test]
fn an_absent_negative_prompt_is_zeros_and_an_empty_one_is_encoded() {
    let place = workplace("sdxl");
    let (absent, empty) = (latents(place.path(), &[]), latents(place.path(), &["--negative", ""]));
    assert!(distance(&absent, &empty) > 1e-3);
    // A base that does not ask for zeros encodes the empty text in both cases.
    let index = place.path().join("base/model_index.json");
    let text = fs::read_to_string(&index).unwrap();
    let mut settings: Value = serde_json::from_str(&text).unwrap();
    settings["force_zeros_for_empty_prompt"] = Value::Bool(false);
    fs::write(&index, settings.to_string()).unwrap();
    assert_eq!(latents(place.path(), &[]), empty);
}

#[test]
fn sides_are_multiples_of_what_the_levels_divide_by_and_natively_what_the_base_saw() {
    let place = workplace("sdxl");
    let size = |more: &[&str]| {
        let output = loralei(place.path(), &[&DRAW[..7], more, &["--output", "a.png", "--json"]].concat());
        output.status.success().then(|| {
            let drawn: Value = serde_json::from_str(&stdout(&output)).unwrap();
            (drawn["pictures"][0]["width_px"].as_u64().unwrap(), drawn["pictures"][0]["height_px"].as_u64().unwrap())
        })
    };
    // Two levels below the first, and an autoencoder that halves once.
    assert_eq!(size(&[]), Some((24, 24)));
    assert_eq!(size(&["--size", "8x40"]), Some((8, 40)));
    assert_eq!(size(&["--size", "12x40"]), None);
}

#[test]
fn what_a_base_predicts_is_said_where_it_is_not_noise_or_not_what_its_files_say() {
    let place = workplace("sdxl-v");
    let said = |more: &[&str]| {
        let output = loralei(place.path(), &[&DRAW[..], more, &["--output", "a.png"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let text = said(&[]);
    assert!(text.contains("velocity (v), zero terminal SNR, by its scheduler's configuration"), "{text}");
    let text = said(&["--zero-terminal-snr", "false"]);
    assert!(text.contains("velocity (v), by its scheduler's configuration; no zero terminal SNR, as told"), "{text}");
    let text = said(&["--prediction", "epsilon", "--zero-terminal-snr", "false"]);
    assert!(text.contains("noise (epsilon), as told"), "{text}");
    let of_noise = workplace("sdxl");
    let output = loralei(of_noise.path(), &[&DRAW[..], &["--output", "a.png"]].concat());
    assert!(!stderr(&output).contains("predicts"), "{}", stderr(&output));
}

/// Every layout that the adapter can lie in.
fn namings(place: &Path) -> Vec<&'static str> {
    let ways = [
        ("original.safetensors", &["--to", "kohya", "--names", "original"][..]),
        ("diffusers-names.safetensors", &["--to", "kohya", "--names", "diffusers"]),
        ("diffusers.safetensors", &["--to", "diffusers"]),
        ("peft", &["--to", "peft"]),
    ];
    for (to, how) in ways {
        stdout(&loralei(place, &[&["adapter", "convert", "a.safetensors", to], how].concat()));
    }
    ways.map(|(to, _)| to).to_vec()
}

#[test]
fn an_adapter_draws_the_same_whatever_its_blocks_are_called() {
    let place = workplace("sdxl");
    let [given, plain] = [&["--adapter", "a.safetensors"][..], &[]].map(|more| latents(place.path(), more));
    assert!(distance(&given, &plain) > 1e-3);
    for naming in namings(place.path()) {
        assert_eq!(latents(place.path(), &["--adapter", naming]), given, "{naming}");
    }
    let keys = |file: &str| -> Vec<String> {
        TensorFile::open(&place.path().join(file)).unwrap().names().map(str::to_owned).collect()
    };
    assert_eq!(keys("original.safetensors"), keys("a.safetensors"));
    assert!(!keys("diffusers-names.safetensors").iter().any(|key| key.contains("input_blocks")));
}

#[test]
fn names_of_blocks_are_a_choice_of_kohyas_keys_and_of_sdxl() {
    let place = workplace("sd1");
    let convert = |more: &[&str]| {
        let output = loralei(place.path(), &[&["adapter", "convert", "a.safetensors", "b", "--force"], more].concat());
        (output.status.code(), stderr(&output))
    };
    let (code, text) = convert(&["--to", "peft", "--names", "original"]);
    assert!(code == Some(2) && text.contains("--names does nothing with --to peft"), "{text}");
    let adapter = Adapter::read(&place.path().join("a.safetensors")).unwrap();
    let metadata = [("ss_base_model_version".to_owned(), "sd_v1".to_owned())].into();
    Adapter { metadata, ..adapter }.write(&place.path().join("a.safetensors"), SaveDtype::F32).unwrap();
    let (code, text) = convert(&["--to", "kohya", "--names", "original"]);
    assert!(code == Some(2) && text.contains("Stable Diffusion 1.x"), "{text}");
}

/// The adapter with a module for the first text encoder's last layer, as kohya's trainer makes it.
fn with_unread_layer(place: &Path, output: &str, is_zero: bool) {
    let mut adapter = Adapter::read(&place.join("a.safetensors")).unwrap();
    let is_before = |name: &str| name.starts_with("lora_te1_text_model_encoder_layers_1_");
    let of_layer: Vec<(String, LoraModule)> =
        adapter.modules.iter().filter(|(name, _)| is_before(name)).map(|(name, m)| (name.clone(), m.clone())).collect();
    assert!(of_layer.len() >= 4);
    for (name, mut module) in of_layer {
        if is_zero {
            module.up.data.fill(0.0);
        }
        adapter.modules.insert(name.replace("layers_1_", "layers_2_"), module);
    }
    adapter.write(&place.join(output), SaveDtype::F32).unwrap();
}

#[test]
fn modules_of_a_layer_that_nothing_reads_are_left_out_silently_if_zero_and_said_otherwise() {
    let place = workplace("sdxl");
    let given = latents(place.path(), &["--adapter", "a.safetensors"]);
    let merged = latents(place.path(), &["--adapter", "a.safetensors", "--merge"]);
    for (file, is_zero) in [("zero.safetensors", true), ("moved.safetensors", false)] {
        with_unread_layer(place.path(), file, is_zero);
        assert_eq!(latents(place.path(), &["--adapter", file]), given, "{file}");
        assert_eq!(latents(place.path(), &["--adapter", file, "--merge"]), merged, "{file}");
        let output = loralei(place.path(), &[&DRAW[..], &["--adapter", file, "--output", "a.png"]].concat());
        let text = stderr(&output);
        assert_eq!(text.contains("do nothing") && text.contains("lora_te1_"), !is_zero, "{text}");
        stdout(&loralei(
            place.path(),
            &["adapter", "merge", "--base", "base", "--adapter", file, "--output", &format!("{file}-merged")],
        ));
    }
    // A layer that the base does not have is still refused.
    let mut foreign = Adapter::read(&place.path().join("a.safetensors")).unwrap();
    let (name, module) =
        foreign.modules.iter().find(|(name, _)| name.contains("te1_text_model_encoder_layers_0")).unwrap();
    let (name, module) = (name.replace("layers_0_", "layers_7_"), module.clone());
    foreign.modules.insert(name, module);
    foreign.write(&place.path().join("foreign.safetensors"), SaveDtype::F32).unwrap();
    let output =
        loralei(place.path(), &[&DRAW[..], &["--adapter", "foreign.safetensors", "--output", "a.png"]].concat());
    assert!(output.status.code() == Some(4) && stderr(&output).contains("layers_7"), "{}", stderr(&output));
}

#[test]
fn what_is_merged_into_a_base_draws_what_the_adapter_does_and_is_extracted_again_with_original_names() {
    let place = workplace("sdxl");
    let given = latents(place.path(), &["--adapter", "a.safetensors"]);
    stdout(&loralei(
        place.path(),
        &["adapter", "merge", "--base", "base", "--adapter", "a.safetensors", "--output", "merged"],
    ));
    stdout(&loralei(
        place.path(),
        &[
            &["adapter", "extract", "--base", "base", "--tuned", "merged", "--rank", "4", "--dtype", "f32"][..],
            &["--output", "again.safetensors"],
        ]
        .concat(),
    ));
    let again = latents(place.path(), &["--adapter", "again.safetensors"]);
    assert!(distance(&again, &given) < 1e-3, "{}", distance(&again, &given));
    let keys = |file: &str| -> Vec<String> {
        TensorFile::open(&place.path().join(file)).unwrap().names().map(str::to_owned).collect()
    };
    assert_eq!(keys("again.safetensors"), keys("a.safetensors"));
    fs::rename(place.path().join("base"), place.path().join("original")).unwrap();
    fs::rename(place.path().join("merged"), place.path().join("base")).unwrap();
    let merged = latents(place.path(), &[]);
    assert!(distance(&merged, &given) < 1e-3, "{}", distance(&merged, &given));
}

#[test]
fn adapters_of_sdxl_are_inspected_resized_and_composed_and_the_results_have_original_names() {
    let place = workplace("sdxl");
    let names = namings(place.path());
    let all = |file: &str| AdapterFile::read(&place.path().join(file)).unwrap();
    for naming in &names {
        let output = loralei(place.path(), &["adapter", "inspect", naming, "--base", "base", "--json"]);
        let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let modules = found["modules"].as_array().unwrap();
        assert!(modules.iter().all(|module| !module["base"].is_null()), "{naming}: a layer is not in the base");
        assert_eq!(modules.len(), all("a.safetensors").changes.len());
        assert_eq!(found["family"], "Stable Diffusion XL", "{naming}");
        stdout(&loralei(place.path(), &["adapter", "resize", naming, "small.safetensors", "--rank", "2", "--force"]));
        let written = TensorFile::open(&place.path().join("small.safetensors")).unwrap();
        assert!(!written.names().any(|key| key.contains("down_blocks")), "{naming}");
    }
    let compose = [
        "adapter",
        "compose",
        names[0],
        "diffusers-names.safetensors=-1",
        "--method",
        "sum",
        "--output",
        "sum.safetensors",
    ];
    stdout(&loralei(place.path(), &compose));
    let sum = Adapter::read(&place.path().join("sum.safetensors")).unwrap();
    assert!(sum.modules.values().all(|module| module.delta().data.iter().all(|value| value.abs() < 1e-3)));
    assert!(
        TensorFile::open(&place.path().join("sum.safetensors"))
            .unwrap()
            .names()
            .any(|key| key.contains("input_blocks"))
    );
}

#[test]
fn a_first_file_for_sdxl_has_its_preset_and_size_and_the_images_are_checked_with_both_tokenizers() {
    let place = workplace("sdxl");
    let images = place.path().join("10_sks dog");
    fs::create_dir(&images).unwrap();
    let octopus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/octopus/01-red.png");
    fs::copy(octopus, images.join("1.png")).unwrap();
    let caption = "photo of the sks dog! a dog, on the sofa";
    fs::write(images.join("1.txt"), caption).unwrap();
    stdout(&loralei(place.path(), &["init", "10_sks dog", "--base", "base", "--output", "run.toml"]));
    let text = fs::read_to_string(place.path().join("run.toml")).unwrap();
    assert!(text.contains("preset = \"subject-sdxl\"") && text.contains("size_px = 24"), "{text}");

    let check = ["dataset", "check", "10_sks dog", "--base", "base", "--size", "24", "--json"];
    let found: Value = serde_json::from_str(&stdout(&loralei(place.path(), &check))).unwrap();
    let base = loralei_model::Base::open(
        loralei_model::BaseSource::Folder(place.path().join("base")),
        None,
        candle_core::DType::F32,
        &candle_core::Device::Cpu,
    )
    .unwrap();
    let length = |i: usize| base.tokenizer(i).unwrap().measure(caption, 75).unwrap().num_tokens;
    assert_eq!(found["tokens"]["longest"].as_u64().unwrap() as usize, length(0).max(length(1)), "{found}");
}

//! `loralei train` as a user meets it: the files it leaves, the bytes it repeats, and what it says to broken input.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic
#![expect(clippy::disallowed_methods, reason = "the tests break files on purpose")]

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
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

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_tree(&entry.path(), &target) } else { drop(fs::copy(entry.path(), target)) }
    }
}

/// A folder with a tiny base and two captioned images.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    copy_tree(&repository().join("tests/golden/sd1/base"), &place.path().join("base"));
    fs::create_dir(place.path().join("images")).unwrap();
    for file in ["01-red.png", "01-red.txt", "04-green.png", "04-green.txt"] {
        fs::copy(repository().join("datasets/octopus").join(file), place.path().join("images").join(file)).unwrap();
    }
    place
}

const RUN: [&str; 17] = [
    "train",
    "--overwrite",
    "--base",
    "base",
    "--images",
    "images",
    "--output",
    "out",
    "--set",
    "data.size_px=32",
    "--set",
    "train.steps=3",
    "--set",
    "train.batch_size=2",
    "--set",
    "lora.text_encoder.targets=attention",
    "--set",
];

fn run(place: &Path, output: &str, more: &str) -> Output {
    let mut arguments: Vec<&str> = RUN.to_vec();
    arguments[7] = output;
    arguments.push(more);
    loralei(place, &arguments)
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let place = workplace();
    let adapter = |output: &str, more: &str| {
        let done = run(place.path(), output, more);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        fs::read(place.path().join(output).join(format!("{output}.safetensors"))).unwrap()
    };
    let metrics = |output: &str| {
        let lines = fs::read_to_string(place.path().join(output).join("metrics.jsonl")).unwrap();
        let losses = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].clone());
        losses.collect::<Vec<_>>()
    };
    // One name for both, since the name is part of the file.
    let first = adapter("out", "train.seed=5");
    let first_losses = metrics("out");
    fs::remove_dir_all(place.path().join("out")).unwrap();
    assert_eq!(first, adapter("out", "train.seed=5"));
    assert_eq!(first_losses, metrics("out"));
    assert_ne!(first, adapter("out", "train.seed=6"));
    assert_ne!(first_losses, metrics("out"));
}

#[test]
fn a_run_leaves_its_adapter_its_settings_and_its_curve() {
    let place = workplace();
    let done = run(place.path(), "out", "train.accumulate=2");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert_eq!(String::from_utf8(done.stdout.clone()).unwrap(), "out/out.safetensors\n");
    let out = place.path().join("out");
    assert!(fs::read_to_string(out.join("run.toml")).unwrap().contains("accumulate = 2  # --set"));
    assert_eq!(fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count(), 3);
    let names = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let expected = [
        "README.md",
        "checkpoints",
        "data.json",
        "index.html",
        "log.txt",
        "metrics.jsonl",
        "out-000002.safetensors",
        "out-000003.safetensors",
        "out-best.safetensors",
        "out.safetensors",
        "run.lock",
        "run.toml",
        "samples.jsonl",
        "status.json",
        "summary.json",
        "validation.jsonl",
    ];
    assert_eq!(names.collect::<std::collections::BTreeSet<_>>(), expected.map(str::to_owned).into());
}

#[test]
fn recompute_learns_the_same() {
    let place = workplace();
    let losses = |output: &str, more: &str| -> Vec<f64> {
        let done = run(place.path(), output, more);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        let lines = fs::read_to_string(place.path().join(output).join("metrics.jsonl")).unwrap();
        let loss = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        lines.lines().map(loss).collect()
    };
    let (none, block) = (losses("a", "train.checkpointing=none"), losses("b", "train.checkpointing=block"));
    for (a, b) in none.iter().zip(&block) {
        assert!((a - b).abs() < 1e-5 * a, "{none:?} {block:?}");
    }
}

/// One way of breaking the workplace, the setting to run it with, and what must come of it.
struct Broken {
    what: &'static str,
    harm: fn(&Path),
    set: &'static str,
    code: i32,
    says: &'static str,
}

const UNET: &str = "base/unet/diffusion_pytorch_model.safetensors";

/// Changes the bytes of the U-Net's file.
fn edit_unet(place: &Path, edit: impl Fn(&mut Vec<u8>)) {
    let path = place.join(UNET);
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

#[test]
fn broken_input_is_one_line_with_a_hint_the_right_code_and_no_file() {
    let cases = [
        Broken {
            what: "no images",
            harm: |place| {
                fs::remove_dir_all(place.join("images")).unwrap();
                fs::create_dir(place.join("images")).unwrap();
            },
            set: "train.seed=1",
            code: 3,
            says: "images",
        },
        Broken {
            what: "no image folder",
            harm: |place| fs::remove_dir_all(place.join("images")).unwrap(),
            set: "train.seed=1",
            code: 3,
            says: "images",
        },
        Broken {
            what: "an unreadable image",
            harm: |place| fs::write(place.join("images/04-green.png"), b"not a picture").unwrap(),
            set: "data.strict=true",
            code: 3,
            says: "04-green.png",
        },
        Broken {
            what: "no unet/",
            harm: |place| fs::remove_dir_all(place.join("base/unet")).unwrap(),
            set: "train.seed=1",
            code: 4,
            says: "unet/config.json",
        },
        Broken {
            what: "a truncated weight file",
            harm: |place| edit_unet(place, |bytes| bytes.truncate(bytes.len() / 2)),
            set: "train.seed=1",
            code: 4,
            says: "diffusion_pytorch_model.safetensors",
        },
        Broken {
            what: "a wrong shape",
            harm: |place| {
                let path = place.join("base/unet/config.json");
                let config = fs::read_to_string(&path).unwrap();
                let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
                config["out_channels"] = 8.into();
                fs::write(path, config.to_string()).unwrap();
            },
            set: "train.seed=1",
            code: 4,
            says: "conv_out.weight",
        },
        Broken {
            what: "a NaN in a weight",
            harm: |place| {
                edit_unet(place, |bytes| {
                    let end = bytes.len();
                    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                });
            },
            set: "train.seed=1",
            code: 5,
            says: "not finite",
        },
        Broken {
            what: "a weight beyond the type it is to be kept in",
            harm: |place| {
                edit_unet(place, |bytes| {
                    let end = bytes.len();
                    bytes[end - 4..].copy_from_slice(&1e6_f32.to_le_bytes());
                });
            },
            set: "model.weights=f16",
            code: 2,
            says: "beyond the range of f16",
        },
        Broken { what: "rank 0", harm: |_| (), set: "lora.rank=0", code: 2, says: "lora.rank" },
        Broken { what: "a size that does not fit", harm: |_| (), set: "data.size_px=36", code: 2, says: "36x36" },
        Broken {
            what: "a pattern that matches nothing",
            harm: |_| (),
            set: "lora.unet.targets=[\"*.attn3.to_q\"]",
            code: 2,
            says: "*.attn3.to_q",
        },
    ];
    for Broken { what, harm, set, code, says } in cases {
        let place = workplace();
        harm(place.path());
        let done = run(place.path(), "out", set);
        let text = stderr(&done);
        assert_eq!(done.status.code(), Some(code), "{what}: {text}");
        let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(says), "{what}: {text}");
        assert!(text.lines().last().unwrap().starts_with("hint: "), "{what}: {text}");
        assert!(!place.path().join("out").exists(), "{what}: an output folder was left");
        assert!(done.stdout.is_empty(), "{what}");
    }
}

#[test]
fn an_unreadable_image_is_left_out_and_named_and_the_run_goes_on() {
    let place = workplace();
    fs::write(place.path().join("images/04-green.png"), b"not a picture").unwrap();
    let done = run(place.path(), "out", "train.seed=1");
    let said = stderr(&done);
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(said.contains("warning: left out") && said.contains("04-green.png"), "{said}");
}

#[test]
fn missing_class_images_are_drawn_once_and_change_what_is_learned() {
    let place = workplace();
    let arguments = |output: &'static str, kind: &'static str| {
        let mut arguments: Vec<&str> = RUN.to_vec();
        arguments[7] = output;
        arguments.extend([
            kind,
            "--set",
            "data.class=thing",
            "--set",
            "prior.num_images=3",
            "--set",
            "samples.steps=2",
        ]);
        arguments.extend(["--set", "output.name=a", "--set", "prior.every_steps=1"]);
        arguments
    };
    let adapter = |output| fs::read(place.path().join(output).join("a.safetensors")).unwrap();
    let learn = |output, kind| {
        let done = loralei(place.path(), &arguments(output, kind));
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        stderr(&done)
    };
    let said = learn("with", "prior.kind=images");
    assert!(said.contains("drawing class images"), "{said}");
    let drawn = |name| fs::read(place.path().join("with/class-images").join(name)).unwrap();
    assert_eq!(fs::read_dir(place.path().join("with/class-images")).unwrap().count(), 3);
    let (first, of_run) = (drawn("0001.png"), adapter("with"));
    assert_ne!(first, drawn("0002.png"), "each has a seed of its own");
    fs::remove_file(place.path().join("with/class-images/0002.png")).unwrap();
    learn("with", "prior.kind=images");
    assert!(first == drawn("0001.png") && of_run == adapter("with"), "the missing one is drawn as it was");
    assert!(!learn("with", "prior.kind=images").contains("drawing class images"), "all are there");
    learn("without", "prior.kind=none");
    assert_ne!(of_run, adapter("without"));
}

/// Losses of the steps after the first show what was learned in it.
#[test]
fn the_prior_is_a_mean_whatever_its_images_weigh_together() {
    let place = workplace();
    copy_tree(&place.path().join("images"), &place.path().join("class"));
    let losses = |output: &str, kind: &str, class: &str| {
        let (kind, class) =
            (format!("prior.kind={kind}"), format!("data.sources=[{{images=\"class\",role=\"class\",{class}}}]"));
        let mut arguments: Vec<&str> = RUN.to_vec();
        arguments[7] = output;
        arguments.extend([&kind, "--set", &class, "--set", "prior.num_images=1", "--set", "prior.every_steps=1"]);
        arguments.extend(["--set", "lora.unet.learning_rate=0.05"]);
        let done = loralei(place.path(), &arguments);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        let lines = fs::read_to_string(place.path().join(output).join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        lines.lines().map(loss).collect::<Vec<_>>()
    };
    let ordinary = losses("a", "images", "weight=1.0");
    assert_eq!(ordinary, losses("b", "images", "weight=4.0"), "a power of two changes no bit of a mean");
    assert_ne!(ordinary, losses("c", "none", "weight=1.0"));
}

#[test]
fn the_memory_that_is_said_before_is_what_the_run_takes() {
    let place = workplace();
    // A batch so large that what backward keeps is most of it.
    for more in ["train.checkpointing=none", "train.checkpointing=block", "lora.text_encoder.targets=attention"] {
        let arguments =
            ["train", "--base", "emoji", "--images", "images", "--output", "run", "--overwrite", "--set", more];
        let settings = [
            "data.size_px=64",
            "data.repeats=16",
            "train.batch_size=32",
            "train.steps=1",
            "lora.rank=4",
            "data.prompt=x",
        ];
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let output = loralei(place.path(), &[&arguments[..], &settings].concat());
        let said = stderr(&output);
        let figure = |before: &str| {
            let rest = said.split(before).nth(1).unwrap_or_else(|| panic!("no `{before}` in {said}"));
            rest.split_whitespace().next().unwrap().parse::<f64>().unwrap()
        };
        let (expected, peak) = (figure("memory: about "), figure(", peak "));
        assert!((expected / peak - 1.0).abs() < 0.1, "{more}: expected {expected} GB, took {peak} GB");
    }
}

#[test]
fn a_device_that_is_not_there_is_one_line_with_a_hint_and_code_2() {
    let place = workplace();
    for command in ["verify ops", "bench step --latent 8", "generate --base emoji --prompt x --output x.png"] {
        let arguments: Vec<&str> = command.split(' ').chain(["--device", "cuda:77"]).collect();
        let output = loralei(place.path(), &arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        assert!(said.contains("cannot compute on `cuda:77`") && said.contains("hint:"), "{command}: {said}");
    }
}

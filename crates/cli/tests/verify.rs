//! `loralei verify leak` as a user meets it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with the tiny base's adapter.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::copy(repository().join("tests/golden/sd1/adapter.safetensors"), place.path().join("dog.safetensors")).unwrap();
    place
}

fn leak(place: &Path, arguments: &[&str]) -> Output {
    let base = repository().join("tests/golden/sd1/base");
    let mut command = Command::cargo_bin("loralei").unwrap();
    let command = command.current_dir(place).args(["verify", "leak", "--base", base.to_str().unwrap()]);
    command.args(["--trigger", "sks dog", "--points", "2", "--size", "32x48"]).args(arguments).output().unwrap()
}

fn json(place: &Path, arguments: &[&str]) -> serde_json::Value {
    let output = leak(place, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn json_tells_the_change_of_each_prompt_and_the_means() {
    let place = workplace();
    fs::write(place.path().join("prompts.txt"), "photo of the dog\n\non sand\n").unwrap();
    let told = json(place.path(), &["--adapter", "dog.safetensors", "--class", "dog", "--prompts", "prompts.txt"]);
    let prompts = told["prompts"].as_array().unwrap();
    let asked: Vec<(&str, bool)> =
        prompts.iter().map(|of| (of["prompt"].as_str().unwrap(), of["has_trigger"].as_bool().unwrap())).collect();
    let expected = [
        ("photo of the dog", false),
        ("photo of the sks dog", true),
        ("", false),
        ("sks dog", true),
        ("on sand", false),
        ("sks dog, on sand", true),
    ];
    assert_eq!(asked, expected);
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let mean = |has_trigger: bool| {
        let of = prompts.iter().filter(|of| of["has_trigger"] == has_trigger).map(|of| number(&of["change"]));
        of.sum::<f64>() / 3.0
    };
    let (without, with) = (number(&told["without_trigger"]), number(&told["with_trigger"]));
    assert!((without - mean(false)).abs() < 1e-12 && (with - mean(true)).abs() < 1e-12 && without > 1e-4, "{told}");
    assert!((number(&told["leak"]) - without / with).abs() < 1e-12);
}

#[test]
fn pictures_the_scale_and_the_seed_change_the_figures_and_the_same_again_does_not() {
    let place = workplace();
    let images = repository().join("datasets/octopus");
    let images = ["--images", images.to_str().unwrap()];
    let whole = ["--adapter", "dog.safetensors"];
    let figure = |arguments: &[&str]| json(place.path(), arguments)["without_trigger"].as_f64().unwrap();
    let first = figure(&whole);
    assert_eq!(first, figure(&whole));
    let pictures = figure(&[&whole[..], &images[..]].concat());
    assert!(pictures > 1e-4 && pictures != first);
    assert_ne!(first, figure(&[&whole[..], &["--seed", "1"]].concat()));
    let half = figure(&["--adapter", "dog.safetensors=0.02"]);
    assert!(half > 0.0 && half < 0.01 * first, "{half} {first}");
    let none = json(place.path(), &["--adapter", "dog.safetensors=0"]);
    assert!(none["leak"].is_null() && none["with_trigger"] == 0.0, "{none}");
}

#[test]
fn people_get_a_table_and_its_last_line_is_the_leak() {
    let place = workplace();
    let output = leak(place.path(), &["--adapter", "dog.safetensors", "--class", "dog"]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 10 + 1 + 1, "{text}{}", stderr(&output));
    assert!(lines[1].ends_with("dog | sks dog") && lines[10].ends_with("(empty) | sks dog"), "{text}");
    assert!(lines[12].starts_with("leak "), "{text}");
}

#[test]
fn broken_requests_are_one_line_with_a_hint() {
    let place = workplace();
    fs::write(place.path().join("empty.txt"), "\n\n").unwrap();
    fs::create_dir(place.path().join("empty")).unwrap();
    fs::copy(repository().join("tests/golden/sd2/adapter.safetensors"), place.path().join("other.safetensors"))
        .unwrap();
    for (code, says, arguments) in [
        (4, "nothing.safetensors", &["--adapter", "nothing.safetensors"][..]),
        (4, "fits no layer of this base", &["--adapter", "other.safetensors"]),
        (2, "both `sks dog`", &["--adapter", "dog.safetensors", "--class", "sks  dog"]),
        (2, "holds no caption", &["--adapter", "dog.safetensors", "--prompts", "empty.txt"]),
        (2, "no.txt", &["--adapter", "dog.safetensors", "--prompts", "no.txt"]),
        (3, "empty", &["--adapter", "dog.safetensors", "--images", "empty"]),
        (5, "is not finite", &["--adapter", "dog.safetensors=1e38"]),
    ] {
        let output = leak(place.path(), arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        let error: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(error.len() == 1 && error[0].contains(says), "{arguments:?}: {text}");
        assert!(text.contains("\nhint: ") && output.stdout.is_empty(), "{arguments:?}: {text}");
    }
    assert_eq!(leak(place.path(), &["--adapter", "dog.safetensors", "--class", " "]).status.code(), Some(2));
}

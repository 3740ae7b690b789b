//! `loralei adapter compose` as a user meets it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use loralei_adapter::{Adapter, SaveDtype};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder with the tiny base's adapter, and another of it turned over and called by other words.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let first = Adapter::read(&repository().join("tests/golden/sd1/adapter.safetensors")).unwrap();
    let mut second = first.clone();
    second.modules.values_mut().for_each(|module| module.up.data.reverse());
    for (name, adapter, trigger) in [("dog", first, "sks dog"), ("style", second, "sticker")] {
        let metadata = [("modelspec.trigger_phrase".to_owned(), trigger.to_owned())].into();
        let path = place.path().join(name).with_extension("safetensors");
        Adapter { metadata, ..adapter }.write(&path, SaveDtype::F32).unwrap();
    }
    place
}

fn compose(place: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("loralei").unwrap();
    command.current_dir(place).args(["adapter", "compose"]).args(arguments).output().unwrap()
}

fn done(place: &Path, arguments: &[&str]) -> String {
    let output = compose(place, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(place: &Path, arguments: &[&str]) -> String {
    let output = compose(place, arguments);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_file_holds_the_sum_at_the_given_scales_and_the_words_of_all() {
    let place = workplace();
    let place = place.path();
    let text = done(
        place,
        &[
            "dog.safetensors=0.5",
            "style.safetensors=-2",
            "--method",
            "concat",
            "--dtype",
            "f32",
            "--output",
            "both.safetensors",
        ],
    );
    assert!(text.starts_with("both.safetensors: "), "{text}");
    let [dog, style, both] =
        ["dog", "style", "both"].map(|name| Adapter::read(&place.join(name).with_extension("safetensors")).unwrap());
    for (name, module) in &both.modules {
        let (a, b) = (dog.modules[name].delta(), style.modules[name].delta());
        for ((found, a), b) in module.delta().data.iter().zip(a.data).zip(b.data) {
            assert!((found - (0.5 * a - 2.0 * b)).abs() < 1e-5, "{name}");
        }
    }
    assert_eq!(both.metadata["modelspec.trigger_phrase"], "sks dog, sticker");
    assert_eq!(both.metadata["modelspec.merged_from"], "dog, style");

    let again = ["dog.safetensors", "--output", "both.safetensors"];
    assert!(refused(place, &again).contains("--force"));
    done(place, &[&again[..], &["--force"]].concat());
    assert_ne!(Adapter::read(&place.join("both.safetensors")).unwrap().modules, both.modules);
}

#[test]
fn a_report_holds_all_methods_against_each_other() {
    let place = workplace();
    let both = ["dog.safetensors", "style.safetensors=1", "--report"];
    let text = done(place.path(), &both);
    for method in ["sum", "svd", "ties", "dare", "knots", "budget"] {
        assert!(text.lines().any(|line| line.starts_with(method)), "{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(text.contains("dog at 1, style at 1"), "{text}");

    let json = done(place.path(), &[&both[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let rho = |name: &str| {
        let method = json["methods"].as_array().unwrap().iter().find(|method| method["method"] == name).unwrap();
        method["rho_max"].as_f64().unwrap()
    };
    assert!(rho("budget") <= 1.0 + 1e-5 && rho("budget") <= rho("sum"));
    assert_eq!(json["pairs"][0]["members"], serde_json::json!([0, 1]));
    assert_eq!(json["settings"]["method"], "budget");
    assert!(json["output"].is_null() && json["methods"][0]["layers"][0]["rho"].is_number());
}

#[test]
fn settings_that_would_do_nothing_and_files_that_are_not_there_are_refused() {
    let place = workplace();
    let place = place.path();
    let message = refused(place, &["dog.safetensors", "--density", "0.3", "--output", "o.safetensors"]);
    assert!(message.contains("--density does nothing with --method budget"), "{message}");
    let message =
        refused(place, &["dog.safetensors", "--method", "ties", "--budget", "2", "--output", "o.safetensors"]);
    assert!(message.contains("--method budget"), "{message}");
    let message = refused(place, &["dog.safetensors", "--budget", "0", "--output", "o.safetensors"]);
    assert!(message.contains("budget must be a number above 0, not 0"), "{message}");
    assert!(refused(place, &["cat.safetensors", "--report"]).contains("cat.safetensors"));
    assert!(refused(place, &["dog.safetensors"]).contains("--output"));
    assert_eq!(fs::read_dir(place).unwrap().count(), 2);
}

//! Settings as a user meets them: shown with their origins, written for a folder, taken over from kohya's trainer.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and writes its own inputs

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn loralei(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("loralei").unwrap();
    command.env("XDG_CACHE_HOME", folder.join("caches")).current_dir(folder).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn print_config_shows_each_value_with_its_origin_and_trains_nothing() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("run.toml"), "preset = \"subject-sd15\"\n[lora]\nrank = 6\n").unwrap();
    let arguments = ["train", "run.toml", "--images", "photos", "--set", "train.steps=70", "--print-config"];
    let printed = loralei(place.path(), &arguments);
    assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
    let text = stdout(&printed);
    for line in [
        "rank = 6  # run.toml",
        "steps = 70  # --set",
        "images = \"photos\"  # --set",
        "kind = \"cosine\"  # preset subject-sd15",
        "weight_decay = 0.01  # default",
        "# alpha =   unset: the rank of each component, 6 and 6",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is written");

    // What is printed is itself a configuration, of the same values.
    fs::write(place.path().join("printed.toml"), &text).unwrap();
    let again = loralei(place.path(), &["train", "printed.toml", "--print-config", "--json"]);
    let first = loralei(place.path(), &[&arguments[..], &["--json"]].concat());
    let values = |output: &Output| -> Vec<(String, serde_json::Value)> {
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let settings = found["settings"].as_array().unwrap();
        settings.iter().map(|setting| (setting["key"].to_string(), setting["value"].clone())).collect()
    };
    assert_eq!(values(&again), values(&first));
    assert!(values(&first).contains(&("\"lora.rank\"".to_owned(), 6.into())));
}

#[test]
fn print_config_lists_what_a_run_would_refuse_and_ends_as_it_would() {
    let place = tempfile::tempdir().unwrap();
    let printed = loralei(place.path(), &["train", "--print-config", "--set", "lora.rank=0"]);
    assert_eq!(printed.status.code(), Some(2));
    assert!(stdout(&printed).contains("rank = 0  # --set"));
    let said = stderr(&printed);
    assert!(said.contains("`lora.rank`: 0 is below 1") && said.contains("`data.images`: is not set"), "{said}");
    assert_eq!(loralei(place.path(), &["train", "--json"]).status.code(), Some(2), "--json is for --print-config");
}

fn copy_pictures(from: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(repository().join("datasets").join(from)).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn init_writes_settings_that_run_for_a_subject() {
    let place = tempfile::tempdir().unwrap();
    copy_pictures("octopus", &place.path().join("octopus"));
    let written = loralei(place.path(), &["init", "octopus"]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    assert_eq!(stdout(&written), "octopus.toml\n");
    let said = stderr(&written);
    for line in ["8 images", "goal subject: a guess: all images have \"octopus\"", "trigger \"octopus\"", "500 steps"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let run = loralei(place.path(), &["train", "octopus.toml", "--set", "train.steps=2", "--set", "samples.steps=1"]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(place.path().join("runs/octopus/octopus.safetensors").is_file());
    let printed = stdout(&loralei(place.path(), &["train", "octopus.toml", "--print-config"]));
    for line in [
        "size_px = 64  # octopus.toml",
        "trigger = \"octopus\"  # octopus.toml",
        "kind = \"base\"  # preset subject-emoji",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }

    let again = loralei(place.path(), &["init", "octopus"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("`octopus.toml` is there already") && stderr(&again).contains("--force"));
    assert_eq!(loralei(place.path(), &["init", "octopus", "--force"]).status.code(), Some(0));
}

#[test]
fn init_writes_settings_that_run_for_a_style() {
    let place = tempfile::tempdir().unwrap();
    copy_pictures("sticker", &place.path().join("pictures/sticker"));
    let written = loralei(place.path(), &["init", "pictures/sticker", "--output", "first.toml"]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    let said = stderr(&written);
    assert!(said.contains("goal style: a guess: the captions have no word in common"), "{said}");
    let run = loralei(place.path(), &["train", "first.toml", "--set", "train.steps=2", "--set", "samples.steps=1"]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let text = fs::read_to_string(place.path().join("first.toml")).unwrap();
    assert!(text.contains("preset = \"style-emoji\"") && !text.contains("trigger"), "{text}");
}

#[test]
fn init_takes_trigger_and_class_from_kohyas_folder_names_and_captions_what_has_none() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("train/10_ohwx octopus");
    copy_pictures("octopus", &folder);
    let written = loralei(place.path(), &["init", "train", "--base", "owner/stable-diffusion-2-1"]);
    assert_eq!(written.status.code(), Some(0), "{}", stderr(&written));
    assert!(stderr(&written).contains("warning: the base `owner/stable-diffusion-2-1` is not looked at"));
    let text = fs::read_to_string(place.path().join("train.toml")).unwrap();
    for line in
        ["preset = \"subject-sd21\"", "size_px = 768", "trigger = \"ohwx\"", "class = \"octopus\"", "steps = 800"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }

    let bare = place.path().join("bare");
    copy_pictures("octopus", &bare);
    fs::read_dir(&bare).unwrap().map(Result::unwrap).filter(|e| e.path().extension().unwrap() == "txt").for_each(|e| {
        fs::remove_file(e.path()).unwrap();
    });
    let written = loralei(place.path(), &["init", "bare", "--class", "animal"]);
    assert!(stderr(&written).contains("8 images have no caption"), "{}", stderr(&written));
    let text = fs::read_to_string(place.path().join("bare.toml")).unwrap();
    assert!(text.contains("prompt = \"a photo of ohwx animal\""), "{text}");
    let checked = loralei(place.path(), &["dataset", "check", "bare.toml"]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
}

#[test]
fn init_refuses_a_folder_without_images_as_data() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("empty")).unwrap();
    for folder in ["empty", "missing"] {
        let refused = loralei(place.path(), &["init", folder]);
        assert_eq!(refused.status.code(), Some(3), "{}", stderr(&refused));
        assert_eq!(stderr(&refused).lines().filter(|line| line.starts_with("error:")).count(), 1);
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count(), 0);
}

#[test]
fn import_config_writes_settings_that_the_program_accepts_and_lists_the_rest() {
    let place = tempfile::tempdir().unwrap();
    let options = "pretrained_model_name_or_path = \"emoji\"\ntrain_data_dir = \"octopus\"\nresolution = 64\n\
                   learning_rate = 1e-3\nnetwork_dim = 8\nnetwork_alpha = 4\nmax_train_steps = 2\nxformers = true\n\
                   output_dir = \"out\"\noutput_name = \"one\"\n";
    fs::write(place.path().join("kohya.toml"), options).unwrap();
    copy_pictures("octopus", &place.path().join("octopus"));
    let imported = loralei(place.path(), &["import-config", "kohya.toml", "--output", "ours.toml"]);
    assert_eq!(imported.status.code(), Some(0), "{}", stderr(&imported));
    assert_eq!(stdout(&imported), "ours.toml\n");
    assert!(stderr(&imported).contains("not carried over: xformers = true: "), "{}", stderr(&imported));
    let run = loralei(place.path(), &["train", "ours.toml"]);
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    assert!(place.path().join("out/one/one.safetensors").is_file());

    let printed = loralei(place.path(), &["import-config", "kohya.toml"]);
    assert_eq!(stdout(&printed), fs::read_to_string(place.path().join("ours.toml")).unwrap());
    assert_eq!(loralei(place.path(), &["import-config", "kohya.toml", "--output", "ours.toml"]).status.code(), Some(2));
    let missing = loralei(place.path(), &["import-config", "none.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("`none.toml`") && stderr(&missing).contains("hint: "), "{}", stderr(&missing));
}

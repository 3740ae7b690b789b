//! What a run survives: being stopped, killed and resumed at any moment, a failing disk, numbers that are not finite.
//!
//! The long forms: `cargo test --release -p loralei --features hub --test survival -- --ignored`.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic
#![expect(clippy::disallowed_methods, reason = "the tests break files on purpose")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use loralei_model::{Draw, Purpose};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_tree(&entry.path(), &target) } else { drop(fs::copy(entry.path(), target)) }
    }
}

/// Everything that may go wrong with resuming at once: several micro-batches a step, an epoch that ends within a step,
/// dropouts, shuffled captions, a trained text encoder, moments that lag behind.
const CONFIG: &str = r#"
[model]
base = "base"
[data]
images = "images"
size_px = 32
flip = true
[data.captions]
shuffle = true
dropout = 0.2
[lora]
rank = 3
alpha = 2.0
dropout = 0.1
rank_dropout = 0.2
module_dropout = 0.1
[lora.text_encoder]
targets = "attention"
[optimizer]
learning_rate = 2e-3
[schedule]
kind = "cosine"
warmup_steps = 5
[train]
batch_size = 2
accumulate = 3
[prior]
kind = "base"
every_steps = 4
captions = ["a cat", "a house", ""]
"#;

/// A folder with a tiny base, five captioned images and a configuration of so many steps.
fn workplace(steps: u64, more: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    copy_tree(&repository().join("tests/golden/sd1/base"), &place.path().join("base"));
    fs::create_dir(place.path().join("images")).unwrap();
    let octopus = repository().join("datasets/octopus");
    let mut pictures: Vec<PathBuf> = fs::read_dir(octopus).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.sort();
    for (i, path) in pictures.iter().filter(|path| path.extension().is_some_and(|e| e == "png")).take(5).enumerate() {
        fs::copy(path, place.path().join(format!("images/{i}.png"))).unwrap();
        fs::write(place.path().join(format!("images/{i}.txt")), format!("an octopus, red, number {i}, big")).unwrap();
    }
    let config = CONFIG.replace("[train]\n", &format!("[train]\nsteps = {steps}\n"));
    fs::write(place.path().join("config.toml"), format!("{config}\n{more}\n")).unwrap();
    place
}

fn command(place: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("loralei"));
    command.env("XDG_CACHE_HOME", place.join("caches")).current_dir(place).args(arguments);
    command
}

fn loralei(place: &Path, arguments: &[&str]) -> Output {
    command(place, arguments).output().unwrap()
}

fn train(place: &Path, more: &[&str]) -> Output {
    loralei(place, &[&["train", "config.toml", "--output", "out"], more].concat())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ends_with(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
}

/// Steps of the snapshots, the oldest first.
fn snapshots(place: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(place.join("out/checkpoints")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".state")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// All that a finished run is held to: its adapter, its newest state, and its figures without their times.
#[derive(PartialEq, Eq)]
struct Outcome {
    adapter: Vec<u8>,
    state: Vec<u8>,
    figures: Vec<String>,
}

fn result(place: &Path) -> Outcome {
    let last = *snapshots(place).last().unwrap();
    let figures = fs::read_to_string(place.join("out/metrics.jsonl")).unwrap();
    Outcome {
        adapter: fs::read(place.join("out/out.safetensors")).unwrap(),
        state: fs::read(place.join(format!("out/checkpoints/step-{last:06}.state"))).unwrap(),
        figures: figures.lines().map(|line| line.split(",\"step_s\"").next().unwrap().to_owned()).collect(),
    }
}

fn assert_same(found: &Outcome, expected: &Outcome, what: &str) {
    assert!(found.figures == expected.figures, "{what}: {:?}\n{:?}", found.figures, expected.figures);
    assert!(found.state == expected.state, "{what}: another state");
    assert!(found.adapter == expected.adapter, "{what}: another adapter");
}

/// A run that is not interrupted.
fn straight(steps: u64, more: &str) -> Outcome {
    let place = workplace(steps, more);
    ends_with(&train(place.path(), &[]), 0);
    result(place.path())
}

#[test]
fn sixty_steps_and_three_times_twenty_are_the_same_bytes() {
    let expected = straight(60, "");
    assert_eq!(expected.figures.len(), 60);
    let place = workplace(60, "");
    ends_with(&train(place.path(), &["--until", "20"]), 0);
    assert_eq!(snapshots(place.path()).last(), Some(&20));
    assert!(place.path().join("out/out-000020.safetensors").is_file());
    assert!(!place.path().join("out/out.safetensors").exists());
    ends_with(&train(place.path(), &["--until", "40", "--resume"]), 0);
    // The settings are in the folder: the last part needs no configuration.
    ends_with(&loralei(place.path(), &["train", "--output", "out", "--resume"]), 0);
    assert_same(&result(place.path()), &expected, "20 + 20 + 20");
    // A finished run that is resumed once more stays what it is.
    ends_with(&train(place.path(), &["--resume"]), 0);
    assert_same(&result(place.path()), &expected, "resumed after its end");
}

/// Waits for a line of stderr that contains `text`.
fn wait_for(child: &mut Child, text: &str) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "ended before it said {text:?}");
    }
    lines
}

fn spawn(place: &Path, arguments: &[&str]) -> Child {
    command(place, arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Kills runs that save after every step at random moments, and resumes each, until `kills` have met their end.
fn killed(kills: u64, steps: u64) {
    const SAVES: &str = "[output]\nsave_every_steps = 1";
    let began = Instant::now();
    let expected = straight(steps, SAVES);
    let longest = began.elapsed();
    let (mut done, mut trial) = (0, 0);
    while done < kills {
        let place = workplace(steps, SAVES);
        loop {
            let arguments = ["train", "config.toml", "--output", "out", "--resume"];
            let mut child =
                command(place.path(), &arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let share = Draw::new(1, trial, 0, Purpose::Check).uniform(0.0, 1.0, 1)[0];
            trial += 1;
            std::thread::sleep(longest.mul_f32(share));
            if child.try_wait().unwrap().is_some_and(|status| status.success()) || done == kills {
                drop(child.wait());
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            done += 1;
        }
        ends_with(&train(place.path(), &["--resume"]), 0);
        assert_same(&result(place.path()), &expected, &format!("after {done} kills"));
        let files = |folder: &str| -> Vec<String> {
            let names = fs::read_dir(place.path().join(folder)).unwrap();
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let (states, in_run) = (files("out/checkpoints"), files("out"));
        let adapters: Vec<_> = in_run.iter().filter(|name| name.starts_with("out-0")).collect();
        assert_eq!((states.len(), adapters.len()), (2, 2), "{states:?} {in_run:?}");
        assert!(in_run.iter().all(|name| !name.contains(".tmp")), "{in_run:?}");
    }
}

#[test]
fn killed_at_random_moments_a_run_resumes_to_the_same_bytes() {
    killed(15, 12);
}

#[test]
#[ignore = "minutes"]
fn killed_two_hundred_times_a_run_resumes_to_the_same_bytes() {
    killed(200, 40);
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[cfg(unix)]
#[test]
fn a_signal_finishes_the_step_saves_and_ends_with_130_and_the_run_goes_on_to_the_same_bytes() {
    const STEPS: u64 = 150;
    let expected = straight(STEPS, "");
    for name in ["INT", "TERM"] {
        let place = workplace(STEPS, "");
        let mut child = spawn(place.path(), &["train", "config.toml", "--output", "out"]);
        let lines = wait_for(&mut child, "training");
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        drop(lines);
        let step = *snapshots(place.path()).last().unwrap();
        assert!(step < STEPS && place.path().join(format!("out/out-{step:06}.safetensors")).is_file());
        ends_with(&train(place.path(), &["--resume"]), 0);
        assert_same(&result(place.path()), &expected, name);
    }
}

#[cfg(unix)]
#[test]
fn a_running_run_is_asked_saves_stops_and_does_not_share_its_folder() {
    const STEPS: u64 = 100_000;
    let place = workplace(STEPS, "[output]\nsave_every_steps = 0");
    let mut child = spawn(place.path(), &["train", "config.toml", "--output", "out"]);
    let lines = wait_for(&mut child, "training");
    let second = train(place.path(), &["--resume"]);
    ends_with(&second, 2);
    assert!(stderr(&second).contains(&format!("process {}", child.id())), "{}", stderr(&second));

    assert!(snapshots(place.path()).is_empty());
    ends_with(&loralei(place.path(), &["run", "save", "out", "--wait"]), 0);
    assert_eq!(snapshots(place.path()).len(), 1);
    let status = loralei(place.path(), &["run", "status", "out", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (status["is_running"].as_bool(), status["num_steps"].as_u64(), status["pid"].as_u64()),
        (Some(true), Some(STEPS), Some(u64::from(child.id())))
    );
    ends_with(&loralei(place.path(), &["run", "stop", "out", "--wait"]), 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(lines);
    let status = loralei(place.path(), &["run", "status", "out"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("stopped after step"));
    ends_with(&loralei(place.path(), &["run", "stop", "out"]), 2);
    ends_with(&loralei(place.path(), &["run", "status", "images"]), 2);
    assert!(!place.path().join("out/stop").exists());
}

#[test]
fn a_folder_with_a_run_is_touched_only_when_asked() {
    let place = workplace(4, "");
    ends_with(&train(place.path(), &[]), 0);
    let before = result(place.path());
    let again = train(place.path(), &[]);
    ends_with(&again, 2);
    assert!(stderr(&again).contains("--resume") && stderr(&again).contains("--overwrite"), "{}", stderr(&again));
    assert_same(&result(place.path()), &before, "refused");
    ends_with(&train(place.path(), &["--overwrite"]), 0);
    assert_same(&result(place.path()), &before, "made again");
}

#[test]
fn another_rank_other_data_and_another_base_are_refused_by_name() {
    let place = workplace(6, "");
    ends_with(&train(place.path(), &["--until", "3"]), 0);
    let refused = |more: &[&str], says: &[&str]| {
        let done = train(place.path(), &[&["--resume"], more].concat());
        ends_with(&done, 2);
        says.iter().for_each(|text| assert!(stderr(&done).contains(text), "{text}: {}", stderr(&done)));
    };
    refused(&["--set", "lora.rank=5"], &["lora.rank: 3 -> 5"]);
    refused(
        &["--set", "train.batch_size=1", "--set", "train.seed=7"],
        &["train.batch_size: 2 -> 1", "train.seed: 0 -> 7"],
    );
    let state = fs::read(place.path().join("out/checkpoints/step-000003.state")).unwrap();

    fs::write(place.path().join("images/1.txt"), "something else").unwrap();
    refused(&[], &["the data: "]);
    fs::write(place.path().join("images/1.txt"), "an octopus, red, number 1, big").unwrap();
    fs::rename(place.path().join("images/4.png"), place.path().join("4.png")).unwrap();
    refused(&[], &["the data: 5 images", "-> 4 images"]);
    fs::rename(place.path().join("4.png"), place.path().join("images/4.png")).unwrap();

    let unet = place.path().join("base/unet/diffusion_pytorch_model.safetensors");
    let whole = fs::read(&unet).unwrap();
    let mut other = whole.clone();
    let first = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    other[first] ^= 1;
    fs::write(&unet, other).unwrap();
    refused(&[], &["the base: "]);
    fs::write(&unet, whole).unwrap();
    assert_eq!(state, fs::read(place.path().join("out/checkpoints/step-000003.state")).unwrap());

    // What does not change what is learned may differ, and the folder may have moved.
    fs::rename(place.path().join("images"), place.path().join("moved")).unwrap();
    let moved = ["--resume", "--images", "moved", "--set", "output.keep_snapshots=1", "--set", "samples.steps=3"];
    ends_with(&train(place.path(), &moved), 0);
    assert_eq!(snapshots(place.path()), [6]);
    // With force, all but the shapes of the factors may.
    let forced = ["--resume-anyway", "--images", "moved", "--set", "optimizer.weight_decay=0.5"];
    let done = train(place.path(), &forced);
    ends_with(&done, 0);
    assert!(stderr(&done).contains("optimizer.weight_decay: 0.01 -> 0.5"), "{}", stderr(&done));
    ends_with(&train(place.path(), &["--resume-anyway", "--images", "moved", "--set", "lora.rank=5"]), 2);
}

#[test]
fn a_number_that_is_not_finite_stops_its_step_names_the_images_and_leaves_the_snapshot() {
    let place = workplace(40, "[output]\nsave_every_steps = 1\nprecision = \"f32\"");
    ends_with(&train(place.path(), &["--until", "7"]), 0);
    // Step 7 moves the factors as far as f32 can hold, and what step 8 makes of them cannot be held.
    let far = ["--resume-anyway", "--set", "optimizer.learning_rate=1e30", "--set", "schedule.kind=constant"];
    let done = train(place.path(), &far);
    ends_with(&done, 5);
    let said = stderr(&done);
    assert!(said.contains("step 8 stopped the run") && said.contains("images/") && said.contains(".png"), "{said}");
    assert_eq!(snapshots(place.path()), [7, 8]);
    let newest = place.path().join("out/checkpoints/step-000008.state");
    let state = fs::read(&newest).unwrap();
    let report = fs::read_to_string(place.path().join("out/nan-report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["step"], 8);
    assert!(!report["images"].as_array().unwrap().is_empty());
    assert_eq!(fs::read_to_string(place.path().join("out/metrics.jsonl")).unwrap().lines().count(), 8);
    let status = loralei(place.path(), &["run", "status", "out"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("step 8 stopped the run"));
    // It fails again in the same place, and the snapshot stays what it was.
    ends_with(&train(place.path(), &far), 5);
    assert_eq!((snapshots(place.path()), fs::read(&newest).unwrap()), (vec![7, 8], state));
}

/// The library that makes calls fail, compiled; `None` where there is no C compiler or no way to load it before others.
fn shim(place: &Path) -> Option<PathBuf> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return None;
    }
    let (source, library) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/survival/fail_nth_call.c"), place.join("fail.so"));
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    compiled.is_ok_and(|status| status.success()).then_some(library)
}

/// Fails one call on the run's files after the other, every `stride`-th, until the run makes fewer; after each the run must
/// have said so, and go on to the same bytes.
fn with_a_failing_disk(how: &str, stride: usize) {
    const SAVES: &str = "[output]\nsave_every_steps = 1\nkeep_snapshots = 1";
    let tools = tempfile::tempdir().unwrap();
    let Some(library) = shim(tools.path()) else { return };
    let expected = straight(3, SAVES);
    let begun = workplace(3, SAVES);
    ends_with(&train(begun.path(), &["--until", "1"]), 0);
    let mut failed = 0;
    for n in (1..).step_by(stride) {
        let place = tempfile::tempdir().unwrap();
        copy_tree(begun.path(), place.path());
        let said = place.path().join("reached");
        let done = command(place.path(), &["train", "config.toml", "--output", "out", "--resume"])
            .env("LD_PRELOAD", &library)
            .env("LORALEI_FAIL_AT", n.to_string())
            .env("LORALEI_FAIL_HOW", how)
            .env("LORALEI_FAIL_PATH", "out/")
            .env("LORALEI_FAIL_SAID", &said)
            .output()
            .unwrap();
        if !said.exists() {
            ends_with(&done, 0);
            break;
        }
        let code = done.status.code();
        let heals = ["EINTR", "SHORT"].contains(&how);
        assert!(code == Some(0) || (code == Some(6) && !heals), "{how} {n}: {code:?} {}", stderr(&done));
        assert!(!stderr(&done).contains("panicked"), "{how} {n}: {}", stderr(&done));
        failed += usize::from(code == Some(6));
        let newest = snapshots(place.path());
        assert!(newest.last().is_some_and(|step| (1..=3).contains(step)), "{how} {n}: {newest:?}");
        ends_with(&train(place.path(), &["--resume"]), 0);
        assert_same(&result(place.path()), &expected, &format!("{how} {n}"));
    }
    assert!(failed > 0 || ["EINTR", "SHORT"].contains(&how), "no call failed");
}

#[test]
fn a_failing_disk_leaves_the_old_or_the_new_state() {
    with_a_failing_disk("ENOSPC", 11);
    with_a_failing_disk("EINTR", 29);
}

#[test]
#[ignore = "minutes"]
fn whichever_call_fails_the_old_or_the_new_state_is_there() {
    for how in ["ENOSPC", "EIO", "EINTR", "SHORT"] {
        with_a_failing_disk(how, 1);
    }
}

//! The program as a user meets it: messages, exit codes, help.

#![allow(clippy::unwrap_used)] // a test may panic

use assert_cmd::Command;

fn loralei(arguments: &[&str]) -> std::process::Output {
    let mut command = Command::cargo_bin("loralei").unwrap();
    // A directory of its own: nothing may depend on where the tests run, and nothing may be left behind.
    let folder = tempfile::tempdir().unwrap();
    command.current_dir(folder.path()).args(arguments).output().unwrap()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn an_unknown_key_names_the_nearest_valid_one_and_ends_with_2() {
    let output = loralei(&["train", "--images", "x", "--set", "train.stpes=10"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), "error: --set: unknown key `train.stpes`\nhint: did you mean `train.steps`?\n");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_unknown_key_in_a_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unknown_key.toml"), &path).unwrap();
    let output = loralei(&["train", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("run.toml, line 6: unknown key `lora.unet.rnk`"), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: did you mean `lora.unet.rank`?"));
}

#[test]
fn rank_0_is_refused_with_its_key_and_a_hint() {
    let output = loralei(&["train", "--images", "x", "--set", "lora.rank=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "error: `lora.rank`: 0 is below 1\nhint: set `lora.rank` to 1 or more; 4 to 32 is usual\n"
    );
}

#[test]
fn a_missing_configuration_is_named_with_the_reason() {
    let output = loralei(&["train", "no-such.toml"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("error: cannot read the configuration `no-such.toml`: "), "{text}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn a_value_of_the_wrong_type_names_its_key() {
    let output = loralei(&["train", "--images", "x", "--set", "train.steps=many"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("error: --set train.steps: invalid type: string"), "{}", stderr(&output));
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    assert_eq!(loralei(&["train", "--stpes", "3"]).status.code(), Some(2));
    assert_eq!(loralei(&["verify", "step", "--dtype", "f64"]).status.code(), Some(2));
}

#[test]
fn help_fits_a_screen() {
    for command in [
        &["--help"][..],
        &["train", "--help"],
        &["dataset", "check", "--help"],
        &["verify", "step", "--help"],
        &["doctor", "--help"],
    ] {
        let output = loralei(command);
        assert_eq!(output.status.code(), Some(0));
        let lines = String::from_utf8(output.stdout).unwrap().lines().count();
        assert!((4..=40).contains(&lines), "{command:?}: {lines} lines");
    }
}

#[test]
fn doctor_tells_the_machine_as_json_and_as_text() {
    let output = loralei(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["version"], env!("CARGO_PKG_VERSION"));
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(found["num_cores"], cores);
    #[cfg(target_arch = "x86_64")]
    assert_eq!(found["simd"]["avx2"], std::is_x86_feature_detected!("avx2"));
    #[cfg(target_os = "linux")]
    assert!(found["memory_bytes"].as_u64() >= found["available_memory_bytes"].as_u64());

    let text = String::from_utf8(loralei(&["doctor"]).stdout).unwrap();
    assert!(text.contains(&format!("cores      {cores}\n")), "{text}");
}

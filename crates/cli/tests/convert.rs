//! `loralei adapter convert` and `check` on a file that a user would have.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

fn loralei(arguments: &[&str], folder: &Path) -> (i32, String, String) {
    let output = Command::cargo_bin("loralei").unwrap().args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_adapter_goes_through_every_format_and_what_is_lost_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1/adapter.safetensors");
    let ways = [
        (golden.to_str().unwrap(), "a.safetensors", "diffusers"),
        ("a.safetensors", "b", "peft"),
        ("b", "c.safetensors", "kohya"),
        ("c.safetensors", "d.safetensors", "cloneofsimo"),
    ];
    for (from, to, format) in ways {
        let (code, stdout, stderr) = loralei(&["adapter", "convert", from, to, "--to", format], folder.path());
        assert_eq!((code, stdout.trim()), (0, to), "{stderr}");
        assert_eq!(stderr.contains("alphas are in the factors"), format == "cloneofsimo", "{stderr}");
    }
    let factors = |path: &Path| loralei_adapter::Adapter::read(path).unwrap().modules;
    assert_eq!(factors(&folder.path().join("c.safetensors")), factors(&golden));
    let (code, _, stderr) = loralei(&["adapter", "convert", "b", "a.safetensors", "--to", "kohya"], folder.path());
    assert!(code == 2 && stderr.contains("--force"), "{stderr}");

    let check = |file: &str| -> Value {
        let (code, stdout, stderr) = loralei(&["adapter", "check", file, "--json"], folder.path());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).unwrap()
    };
    let verdicts = |found: &Value| -> Vec<String> {
        let programs = found["programs"].as_array().unwrap();
        programs.iter().map(|program| program["verdict"].as_str().unwrap().to_owned()).collect()
    };
    // A1111, ComfyUI, diffusers, stable-diffusion.cpp, InvokeAI (which knows no base of this width), sd-scripts, additional-networks
    assert_eq!(verdicts(&check("c.safetensors")), ["all", "all", "all", "all", "refuses", "all", "all"]);
    assert_eq!(verdicts(&check("d.safetensors")), ["none", "none", "refuses", "none", "refuses", "none", "refuses"]);
    let (code, stdout, _) = loralei(&["adapter", "check", "a.safetensors"], folder.path());
    assert!(code == 0 && stdout.contains("text encoder by diffusers' names"), "{stdout}");
    let (code, _, stderr) = loralei(&["adapter", "check", "missing"], folder.path());
    assert!(code == 4 && stderr.contains("missing"), "{code} {stderr}");
}

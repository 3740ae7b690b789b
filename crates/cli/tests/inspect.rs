//! `loralei adapter inspect` and `resize` as a user meets them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use loralei_adapter::AdapterFile;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1").join(name)
}

fn adapter(arguments: &[&str]) -> Output {
    Command::cargo_bin("loralei").unwrap().arg("adapter").args(arguments).output().unwrap()
}

fn done(arguments: &[&str]) -> String {
    let output = adapter(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_table_fits_100_columns_and_has_every_figure() {
    let (file, base) = (golden("adapter.safetensors"), golden("base"));
    for more in [&[][..], &["--base", text(&base)], &["--against", text(&file)]] {
        let arguments = [&["inspect", text(&file)], more].concat();
        let shown = done(&arguments);
        let widest = shown.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 100, "{widest}:\n{shown}");
        for part in ["kohya", "by block", "by kind of layer", "strongest layers", "U-Net down 0", "autov3"] {
            assert!(shown.contains(part), "{part}:\n{shown}");
        }
        assert_eq!(shown.contains("of W"), more.contains(&"--base"));
        assert_eq!(shown.contains("phi(i, i)"), more.contains(&"--against"));
    }
}

#[test]
fn json_and_page_have_every_layer() {
    let (file, base) = (golden("adapter.safetensors"), golden("base"));
    let place = tempfile::tempdir().unwrap();
    let page = place.path().join("page.html");
    let arguments =
        ["inspect", text(&file), "--base", text(&base), "--against", text(&file), "--json", "--html", text(&page)];
    let found: Value = serde_json::from_str(&done(&arguments)).unwrap();
    let modules = AdapterFile::read(&file).unwrap().changes;
    assert_eq!(found["modules"].as_array().unwrap().len(), modules.len());
    for module in found["modules"].as_array().unwrap() {
        let change = &modules[module["module"].as_str().unwrap()];
        let norm = change.delta(None, 1.0).unwrap().norm();
        assert!((module["frobenius"].as_f64().unwrap() - norm).abs() < 1e-5 * norm);
        assert!(module["base"]["share"].as_f64().unwrap() > 0.0);
    }
    let layers = found["against"]["modules"].as_array().unwrap();
    assert!(layers.iter().all(|layer| (layer["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("</html>") && page.contains("attn2"));
}

#[test]
fn a_resized_file_has_the_error_that_was_said() {
    let file = golden("adapter.safetensors");
    let place = tempfile::tempdir().unwrap();
    let small = place.path().join("small.safetensors");
    let arguments = ["resize", text(&file), text(&small), "--rank", "1", "--dtype", "f32", "--json"];
    let said: Value = serde_json::from_str(&done(&arguments)).unwrap();
    let (before, after) = (AdapterFile::read(&file).unwrap(), AdapterFile::read(&small).unwrap());
    let (mut lost, mut whole) = (0.0, 0.0);
    for (name, change) in &before.changes {
        let (old, new) = (change.delta(None, 1.0).unwrap(), after.changes[name].delta(None, 1.0).unwrap());
        assert_eq!(after.changes[name].rank(), Some(1));
        lost += old.data.iter().zip(&new.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        whole += old.norm().powi(2);
    }
    let error = (lost / whole).sqrt();
    assert!(error > 0.01 && (said["error"].as_f64().unwrap() - error).abs() < 1e-5, "{error} {}", said["error"]);
    assert_eq!(said["num_bytes_after"].as_u64().unwrap(), std::fs::metadata(&small).unwrap().len());

    let again = adapter(&["resize", text(&file), text(&small), "--keep-norm", "0.9"]);
    assert_eq!(again.status.code(), Some(2), "it is there already");
    let shown = done(&["resize", text(&file), text(&small), "--keep-norm", "0.9", "--force"]);
    assert!(shown.lines().all(|line| line.chars().count() <= 100 || line.contains(text(&small))), "{shown}");
    let wrong = adapter(&["resize", text(&file), text(&small), "--keep-norm", "1.5", "--force"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("share 1.5"), "{wrong:?}");
}

//! The page of a run's folder, from the outside.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loralei_report::{ReportError, write_page};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn page(folder: &Path) -> String {
    fs::read_to_string(write_page(folder).unwrap()).unwrap()
}

/// The JSON that the page's script draws.
fn run_data(page: &str) -> Value {
    let json = page.split("id=\"run-data\">").nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(json).unwrap()
}

/// What is between `<name>` or `<name ...>` and `</name>`, with the opening tag's attributes.
fn elements<'a>(page: &'a str, name: &str) -> Vec<(&'a str, &'a str)> {
    let (opening, closing) = (format!("<{name}"), format!("</{name}>"));
    let inner = page.match_indices(&opening).map(|(at, _)| &page[at + opening.len()..]);
    inner
        .filter(|rest| rest.starts_with(['>', ' ']))
        .map(|rest| rest.split_once('>').unwrap())
        .map(|(attributes, rest)| (attributes, rest.split(&closing).next().unwrap()))
        .collect()
}

/// Names of all tags in their order, with the names of their attributes.
fn structure(page: &str) -> Vec<String> {
    let of_tag = |tag: &str| {
        // Values stand between double quotes and hold none.
        let outside: Vec<&str> = tag.split('"').step_by(2).collect();
        outside.concat().split('>').next().unwrap().to_owned()
    };
    page.split('<').skip(1).map(of_tag).collect()
}

fn lines(path: &Path, lines: impl IntoIterator<Item = Value>) {
    let text: Vec<String> = lines.into_iter().map(|line| line.to_string() + "\n").collect();
    fs::write(path, text.concat()).unwrap();
}

fn step(step: u64, loss: f64) -> Value {
    json!({"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 0.2, "step_s": 0.5})
}

/// A folder in which every text that a user or a stranger can choose is `text`.
fn run_with(text: &str) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let toml = json!(text).to_string();
    fs::write(
        folder.join("run.toml"),
        format!("[model]\nbase = {toml}  # {text}\n[output]\nname = {toml}  # {text}\n{text}\n"),
    )
    .unwrap();
    lines(&folder.join("metrics.jsonl"), [step(0, 0.5), step(1, 0.25)]);
    let validation = json!({"step": 0, "loss": 0.1, "bins": [{"timestep": 125, "loss": 0.1}], "best": true});
    lines(&folder.join("validation.jsonl"), [validation]);
    let sample =
        |file: &str| json!({"step": 0, "file": file, "prompt": text, "seed": 1, "width_px": 64, "height_px": 96});
    lines(&folder.join("samples.jsonl"), [sample("samples/0.png"), sample(text)]);
    let data = json!({"images": 1, "captions": 1, "tags": [{"tag": text, "count": 1}], "warnings": [text], "errors": [text],
        "buckets": [{"width": 64, "height": 96, "role": text, "count": 1}],
        "pictures": [{"path": text, "caption": text, "width": 64, "height": 96}]});
    fs::write(folder.join("data.json"), data.to_string()).unwrap();
    let status = json!({"state": text, "step": 2, "num_steps": 2, "message": text});
    fs::write(folder.join("status.json"), status.to_string()).unwrap();
    let summary =
        json!({"adapter": text, "advice": [text], "command": text, "blocks": [{"block": text, "frobenius": 1.0}]});
    fs::write(folder.join("summary.json"), summary.to_string()).unwrap();
    place
}

#[test]
fn text_is_never_markup_wherever_it_stands() {
    let plain = structure(&page(run_with("plain").path()));
    for hostile in [
        "</script><img src=x onerror=alert(1)>",
        "\"><svg onload=alert(1)>",
        "' onmouseover='alert(1)",
        "</title></style></noscript><script>alert(1)</script>",
        "<!--",
        "]]><![CDATA[",
        "javascript:alert(1)",
        "&lt;script&gt;&#60;b&#62;",
        "\u{2028}\u{202e}\u{0}<b>",
    ] {
        let page = page(run_with(hostile).path());
        let found = structure(&page);
        let at = found.iter().zip(&plain).position(|(found, plain)| found != plain);
        let difference = at.map(|at| (&found[at], &plain[at]));
        assert!(difference.is_none() && found.len() == plain.len(), "{hostile}: {difference:?}");
        let prompt = run_data(&page)["samples"]["columns"][0]["prompt"].clone();
        assert_eq!(prompt, hostile, "a prompt is drawn as it is");
    }
}

#[test]
fn nothing_runs_but_what_the_policy_names_by_its_hash() {
    let page = page(run_with("plain").path());
    let policy = page.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    let policy = policy.replace("&#39;", "'");
    assert!(policy.starts_with("default-src 'none'; img-src data: 'self' file:; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");

    let is_code = |(attributes, _): &(&str, &str)| !attributes.contains("application/json");
    let scripts: Vec<_> = elements(&page, "script").into_iter().filter(is_code).collect();
    let styles = elements(&page, "style");
    assert_eq!((scripts.len(), styles.len()), (3, 3));
    for (attributes, content) in scripts.iter().chain(&styles) {
        assert_eq!(*attributes, "", "nothing is fetched");
        let hash = STANDARD.encode(Sha256::digest(content.as_bytes()));
        assert!(policy.contains(&format!("'sha256-{hash}'")), "{}", &content[..80]);
    }
}

#[test]
fn an_address_in_the_page_is_a_file_of_the_run() {
    let place = run_with("https://example.com/x.png");
    fs::write(place.path().join("a#b?.safetensors"), "").unwrap();
    let page = page(place.path());
    let addresses: Vec<&str> = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(addresses.contains(&"./a%23b%3F.safetensors") && addresses.contains(&"./run.toml"), "{addresses:?}");
    assert!(addresses.iter().all(|address| address.starts_with("./") || address.starts_with('#')), "{addresses:?}");
    let cells = &run_data(&page)["samples"]["rows"][0]["cells"];
    assert_eq!(*cells, json!([{"file": "./samples/0.png", "thumbnail": null}]));
}

#[test]
fn a_last_line_that_is_still_being_written_changes_nothing() {
    let place = run_with("plain");
    let whole = page(place.path());
    for (name, begun) in [
        ("metrics.jsonl", "{\"step\":2,\"loss\":0.1"),
        ("metrics.jsonl", "{\"step\":2,\"loss\":0.1}"),
        ("validation.jsonl", "{\"st"),
        ("samples.jsonl", "{\"step\":0,\"file\":\"samples/1.pn"),
    ] {
        let path = place.path().join(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, [&before, begun.as_bytes()].concat()).unwrap();
        assert_eq!(page(place.path()), whole, "{name}: {begun}");
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn missing_files_make_a_smaller_page_and_damaged_ones_are_named() {
    let full = run_with("plain");
    let full_page = page(full.path());
    for section in ["curves", "samples", "result", "data", "settings"] {
        assert!(full_page.contains(&format!("<section id=\"{section}\"")), "{section}");
    }
    let empty = tempfile::tempdir().unwrap();
    let empty_page = page(empty.path());
    assert!(!empty_page.contains("<section"));

    let names =
        ["run.toml", "metrics.jsonl", "validation.jsonl", "samples.jsonl", "data.json", "status.json", "summary.json"];
    for name in names {
        let alone = tempfile::tempdir().unwrap();
        fs::copy(full.path().join(name), alone.path().join(name)).unwrap();
        let page_of_one = page(alone.path());
        assert!(page_of_one.len() > empty_page.len() && page_of_one.len() < full_page.len(), "{name}");

        fs::write(alone.path().join(name), b"{\"step\": \xff\xfe\n").unwrap();
        let damaged = page(alone.path());
        assert_eq!(
            damaged.contains(&format!("is not shown: 1 lines of {name}"))
                || damaged.contains(&format!("is not shown: {name}")),
            name != "run.toml",
            "{name}"
        );
    }
    assert!(matches!(write_page(&empty.path().join("nowhere")), Err(ReportError::NoFolder { .. })));
}

#[test]
fn a_page_comes_again_by_itself_only_while_the_run_goes_on() {
    let place = tempfile::tempdir().unwrap();
    for (state, goes_on) in
        [("preparing", true), ("training", true), ("finished", false), ("stopped", false), ("failed", false)]
    {
        fs::write(place.path().join("status.json"), json!({"state": state}).to_string()).unwrap();
        let page = page(place.path());
        assert_eq!(page.contains("http-equiv=\"refresh\""), goes_on, "{state}");
        assert_eq!(run_data(&page)["reload_s"].is_null(), !goes_on, "{state}");
    }
}

#[test]
fn steps_that_were_made_again_after_a_resume_are_drawn_once() {
    let place = tempfile::tempdir().unwrap();
    let made = [step(0, 1.0), step(1, 2.0), step(2, 3.0), step(1, 20.0), step(2, 30.0), step(3, 40.0)];
    lines(&place.path().join("metrics.jsonl"), made);
    let loss = &run_data(&page(place.path()))["loss"];
    assert_eq!(*loss, json!({"step": [0, 1, 2, 3], "mean": [1, 20, 30, 40]}));
}

#[test]
fn a_hundred_thousand_steps_stay_a_small_page_that_is_quickly_written_and_keeps_its_extremes() {
    let place = tempfile::tempdir().unwrap();
    let loss = |n: u64| if n == 61_803 { 77.5 } else { 0.05 + (n % 977) as f64 * 1.23456789e-5 };
    lines(&place.path().join("metrics.jsonl"), (0..100_000).map(|n| step(n, loss(n))));
    let write_s = (0..5).map(|_| {
        let began = Instant::now();
        write_page(place.path()).unwrap();
        began.elapsed().as_secs_f64()
    });
    // It takes 0.05 s; the rest is room for machines that do something else meanwhile.
    let write_s = write_s.fold(f64::INFINITY, f64::min);
    assert!(write_s < 0.3, "{write_s} s");

    let page = page(place.path());
    assert!(page.len() < 500_000, "{} bytes", page.len());
    let data = run_data(&page);
    let max = data["loss"]["max"].as_array().unwrap();
    assert!(max.len() <= 2000, "{}", max.len());
    assert_eq!(max.iter().filter(|value| **value == json!(77.5)).count(), 1);
    let least = data["loss"]["min"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).fold(1.0, f64::min);
    assert_eq!(least, 0.05);
}

#[test]
fn the_same_folder_gives_the_same_bytes_and_pictures_stand_in_the_page() {
    let place = run_with("plain");
    fs::create_dir(place.path().join("samples")).unwrap();
    image::RgbImage::from_fn(64, 96, |x, y| [x as u8 * 3, y as u8 * 2, 90].into())
        .save(place.path().join("samples/0.png"))
        .unwrap();
    let first = page(place.path());
    let cell = &run_data(&first)["samples"]["rows"][0]["cells"][0];
    assert!(cell["thumbnail"].as_str().unwrap().starts_with("data:image/jpeg;base64,/9j/"), "{cell}");
    assert_eq!(page(place.path()), first);
}

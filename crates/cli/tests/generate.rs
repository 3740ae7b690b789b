//! `loralei generate` and `loralei model` as a user meets them.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic
#![expect(clippy::disallowed_methods, reason = "the tests break files on purpose")]

use assert_cmd::Command;
use loralei_picture::read_parameters;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

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

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

const DRAW: [&str; 7] = ["generate", "--base", "base", "--prompt", "photo of the dog", "--steps", "3"];

/// A folder with the tiny base, its adapter, and room for pictures.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for name in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        fs::create_dir_all(place.path().join("base").join(name)).unwrap();
        for entry in fs::read_dir(golden("sd1/base").join(name)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), place.path().join("base").join(name).join(entry.file_name())).unwrap();
        }
    }
    fs::copy(golden("sd1/adapter.safetensors"), place.path().join("dog=1.safetensors")).unwrap();
    place
}

fn draw(place: &Path, more: &[&str]) -> Output {
    loralei(place, &[&DRAW[..], more].concat())
}

/// Pixels of a PNG.
fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::BufReader::new(fs::File::open(path).unwrap())).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    (info.width, info.height, data)
}

#[test]
fn a_picture_says_how_it_was_drawn_and_the_same_seed_gives_the_same_bytes() {
    let place = workplace();
    let more = ["--size", "32x48", "--seed", "5", "--negative", "sks", "--adapter", "dog=1.safetensors=-0.5"];
    let draw = |output: &str, more: &[&str]| draw(place.path(), &[more, &["--output", output]].concat());
    assert_eq!(stdout(&draw("new/a.png", &more)).trim(), "new/a.png");
    let bytes = fs::read(place.path().join("new/a.png")).unwrap();
    let (width, height, _) = pixels(&place.path().join("new/a.png"));
    assert_eq!((width, height), (32, 48));
    let text = read_parameters(&bytes).unwrap().unwrap();
    let expected = "photo of the dog <lora:dog=1:-0.5>\nNegative prompt: sks\nSteps: 3, Sampler: DDIM, CFG scale: 7.5, Seed: 5, \
                    Size: 32x48, Model: base, Version: loralei ";
    assert!(text.starts_with(expected), "{text}");
    stdout(&draw("b.png", &more));
    assert_eq!(fs::read(place.path().join("b.png")).unwrap(), bytes);
    stdout(&draw("c.png", &["--size", "32x48", "--seed", "6"]));
    assert_ne!(pixels(&place.path().join("c.png")).2, pixels(&place.path().join("b.png")).2);
}

#[test]
fn merged_adapters_draw_the_same_picture() {
    let place = workplace();
    let adapters = ["--adapter", "dog=1.safetensors=1.5", "--adapter", "dog=1.safetensors=-0.25", "--size", "32x48"];
    stdout(&draw(
        place.path(),
        &[&adapters[..], &["--weights", "f32", "--output", "beside.png", "--save-latents", "beside.safetensors"]]
            .concat(),
    ));
    stdout(&draw(
        place.path(),
        &[
            &adapters[..],
            &["--merge", "--weights", "f32", "--output", "merged.png", "--save-latents", "merged.safetensors"],
        ]
        .concat(),
    ));
    stdout(&draw(place.path(), &["--size", "32x48", "--output", "without.png"]));
    let [beside, merged, without] =
        ["beside.png", "merged.png", "without.png"].map(|name| pixels(&place.path().join(name)).2);
    let difference = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(difference(&beside, &merged) <= 1, "{}", difference(&beside, &merged));
    assert!(difference(&beside, &without) > 20, "the adapters do something");
    let latents = |name: &str| {
        let file = loralei_adapter::TensorFile::open(&place.path().join(name)).unwrap();
        assert_eq!(file.info("latents").unwrap().shape, [1, 4, 12, 8]);
        file.read_f32("latents").unwrap()
    };
    let (beside, merged) = (latents("beside.safetensors"), latents("merged.safetensors"));
    assert!(beside.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-3));
}

#[test]
fn given_noise_and_saved_latents_are_those_of_diffusers() {
    let place = workplace();
    let (input, output) = (golden("sd1/samples.safetensors"), place.path().join("final.safetensors"));
    let facts: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden("sd1/samples.json")).unwrap()).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let prompts = [text(&facts["prompts"][0]), text(&facts["prompts"][1])];
    let negative = text(&facts["negative_prompt"]);
    for sampler in ["ddim", "euler-a", "dpmpp-2m", "unipc", "euler"] {
        let drawn = loralei(
            place.path(),
            &[
                "generate",
                "--base",
                "base",
                "--prompt",
                &prompts[0],
                "--prompt",
                &prompts[1],
                "--negative",
                &negative,
                "--steps",
                "10",
                "--weights",
                "f32",
                "--guidance",
                "5",
                "--sampler",
                sampler,
                "--latents",
                input.to_str().unwrap(),
                "--save-latents",
                output.to_str().unwrap(),
                "--output",
                "x.png",
            ],
        );
        assert_eq!(stdout(&drawn).lines().collect::<Vec<_>>(), ["x-01.png", "x-02.png"]);
        let read = |path: &Path, name: &str| loralei_adapter::TensorFile::open(path).unwrap().read_f32(name).unwrap();
        let (ours, theirs) = (read(&output, "latents"), read(&input, &format!("final.{sampler}")));
        let error: f32 = ours.iter().zip(&theirs).map(|(a, b)| (a - b) * (a - b)).sum();
        let norm: f32 = theirs.iter().map(|x| x * x).sum();
        assert!((error / norm).sqrt() < 1e-4, "{sampler}: {}", (error / norm).sqrt());
    }
}

#[test]
fn a_grid_is_one_picture_and_json_tells_about_it() {
    let place = workplace();
    let more = ["--adapter", "dog=1.safetensors", "--grid", "scale=-1,0,1", "--grid", "seed=4,5", "--size", "32x32"];
    let output = draw(place.path(), &[&more[..], &["--json", "--output", "grid.png"]].concat());
    let told: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(told["pictures"][0]["path"], "grid.png");
    assert_eq!(told["picture_s"].as_array().unwrap().len(), 6);
    let (width, height, _) = pixels(&place.path().join("grid.png"));
    assert!(width > 3 * 128 && height > 2 * 128, "{width}x{height}");
}

#[test]
fn broken_requests_are_one_line_with_a_hint_and_no_file() {
    let place = workplace();
    fs::write(place.path().join("text.safetensors"), "no tensors").unwrap();
    fs::copy(golden("sd2/adapter.safetensors"), place.path().join("other.safetensors")).unwrap();
    let evil = Path::new(env!("CARGO_MANIFEST_DIR")).join("../adapter/tests/torch/malicious.ckpt");
    fs::copy(evil, place.path().join("evil.ckpt")).unwrap();
    for (code, says, arguments) in [
        (2, "multiples of 16", &["--size", "33x32"][..]),
        (2, "does not end in .png", &["--output", "x.jpg"]),
        (2, "no adapter to scale", &["--grid", "scale=1,2"]),
        (2, "clip skip 9", &["--clip-skip", "9"]),
        (4, "text.safetensors", &["--adapter", "text.safetensors"]),
        (4, "nothing.safetensors", &["--adapter", "nothing.safetensors"]),
        (4, "fits no layer of this base", &["--adapter", "other.safetensors"]),
        (4, "cannot read `./no/such`", &["--base", "./no/such"]),
        (4, "system", &["--base", "evil.ckpt"]),
        (4, "an adapter, not a base model", &["--base", "dog=1.safetensors"]),
        (2, "has no tensor `latents`", &["--latents", "dog=1.safetensors"]),
    ] {
        let given = |name: &str| arguments.contains(&name);
        let mut all = vec!["generate", "--prompt", "dog", "--steps", "2"];
        all.extend(arguments);
        for (name, value) in [("--base", "base"), ("--size", "32x32"), ("--output", "x.png")] {
            if !given(name) {
                all.extend([name, value]);
            }
        }
        let output = loralei(place.path(), &all);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        let error: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(error.len() == 1 && error[0].contains(says), "{arguments:?}: {text}");
        assert!(text.contains("\nhint: "), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        assert!(!place.path().join("x.png").exists() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn model_info_says_what_a_base_is() {
    let place = workplace();
    let output = loralei(place.path(), &["model", "info", "base", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&told["prediction"], &told["size_multiple_px"]), (&"epsilon".into(), &16.into()));
    assert_eq!(told["parts"][0]["dtypes"], serde_json::json!(["F32"]));
    let sd2 = golden("sd2/base");
    let text = stdout(&loralei(place.path(), &["model", "info", sd2.to_str().unwrap()]));
    assert!(text.contains("velocity (v), zero terminal SNR, by its scheduler's configuration"), "{text}");
}

#[test]
fn model_info_names_both_text_encoders_and_warns_of_a_wrong_scale() {
    let place = tempfile::tempdir().unwrap();
    let base = golden("sdxl-v/base");
    stdout(&loralei(place.path(), &["model", "convert", base.to_str().unwrap(), "base", "--layout", "diffusers"]));
    let vae = place.path().join("base/vae/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&vae).unwrap()).unwrap();
    (config["scaling_factor"], config["force_upcast"]) = (0.18215.into(), serde_json::Value::Null);
    fs::write(&vae, config.to_string()).unwrap();
    let told = stdout(&loralei(place.path(), &["model", "info", "base", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["family"], &told["latent_scale"]), (&"Stable Diffusion XL".into(), &0.13025.into()));
    assert_eq!((&told["prediction"], &told["prediction_origin"]), (&"v".into(), &"scheduler-config".into()));
    assert_eq!((&told["text_width"], &told["pooled_width"]), (&28.into(), &14.into()));
    assert_eq!(
        (&told["parts"][1]["name"], &told["parts"][2]["name"]),
        (&"text encoder 1".into(), &"text encoder 2".into())
    );
    let bytes = |place: &str, setting: &str| told["training"][place][setting].as_u64().unwrap();
    assert!(bytes("bytes", "bf16 with int8") < bytes("bytes", "bf16"));
    assert!(bytes("card_bytes", "f32") > bytes("bytes", "f32")); // there weights are f32 too
    assert!(told["warnings"][0].as_str().unwrap().contains("0.18215"), "{told}");
    let text = stderr(&loralei(place.path(), &["model", "info", "base"]));
    assert!(text.contains("warning") && text.contains("0.18215"), "{text}");
}

#[test]
fn a_converted_base_draws_the_same_bytes() {
    let place = workplace();
    stdout(&loralei(place.path(), &["model", "convert", "base", "one.safetensors", "--layout", "single-file"]));
    stdout(&loralei(place.path(), &["model", "convert", "one.safetensors", "again", "--layout", "diffusers"]));
    let mut pictures = Vec::new();
    for base in ["base", "one.safetensors", "again"] {
        let output = ["--base", base, "--prompt", "dog", "--steps", "2", "--size", "32x32", "--output", "x.png"];
        stdout(&loralei(place.path(), &[&["generate"][..], &output].concat()));
        pictures.push(pixels(&place.path().join("x.png")));
    }
    assert!(pictures[0] == pictures[1] && pictures[1] == pictures[2]);
    let again = loralei(place.path(), &["model", "convert", "base", "again", "--layout", "diffusers"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("`again` is already there"));
}

/// A hub of one repository: the tiny base.
#[cfg(feature = "hub")]
mod hub {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    const FILES: [&str; 10] = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn answer(mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let request = lines.next().unwrap().unwrap();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let body = if path.starts_with("/api/models/some/one/revision/") {
            let siblings: Vec<_> = FILES.iter().map(|name| serde_json::json!({"rfilename": name})).collect();
            serde_json::json!({"id": "some/one", "sha": COMMIT, "siblings": siblings}).to_string().into_bytes()
        } else {
            let name = path.strip_prefix(&format!("/some/one/resolve/{COMMIT}/")).unwrap();
            fs::read(golden("sd1/base").join(name)).unwrap()
        };
        let etag: String = path.chars().filter(char::is_ascii_alphanumeric).collect();
        let (length, head) = (body.len(), "HTTP/1.1 200 OK\r\nConnection: close");
        write!(stream, "{head}\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        stream.write_all(&body).unwrap();
    }

    #[test]
    fn a_base_comes_from_the_hub_once_and_from_the_cache_after_that() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap())));
        let place = tempfile::tempdir().unwrap();
        let info = |endpoint: &str, offline: &str| {
            let mut command = Command::cargo_bin("loralei").unwrap();
            command.current_dir(place.path()).args(["model", "info", "some/one"]).env("HF_ENDPOINT", endpoint);
            command.env("HF_HOME", place.path().join("cache")).env("HF_HUB_OFFLINE", offline).env_remove("HF_TOKEN");
            stdout(&command.output().unwrap())
        };
        let fetched = info(&endpoint, "0");
        assert!(fetched.contains("predicts       noise (epsilon)"), "{fetched}");
        assert_eq!(info("http://127.0.0.1:9", "1"), fetched);
    }
}

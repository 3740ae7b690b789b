//! `loralei dataset check` as a user and other programs meet it: JSON, exit codes, the screen, the contact sheet.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and its files need no atomic write

use assert_cmd::Command;
use loralei_data::{GrayImage, RgbImage};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

const GOLDEN_BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd1/base");

fn check(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("loralei").unwrap();
    command.current_dir(folder).args(["dataset", "check"]).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", stdout(output), stderr(output)))
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A picture of waves that differ with `seed`, so that no two of them look the same.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let (across, down) = (f64::from(seed % 5 + 1), f64::from(seed / 5 + 1));
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let wave = ((x * across + y * down) * 6.0).sin() + (x * down * 4.0).cos();
        [(wave * 60.0 + 128.0) as u8, (wave * 50.0 + 120.0) as u8, (x * 200.0) as u8].into()
    })
}

/// `images/` with four pictures: `a` with a mask, `b` the same file, `d` with a caption of 80 tokens; `c` is broken.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("images");
    fs::create_dir(&images).unwrap();
    picture(288, 128, 0).save(images.join("a.png")).unwrap();
    GrayImage::from_fn(288, 128, |x, _| [if x < 144 { 0 } else { 255 }].into())
        .save(images.join("a-masklabel.png"))
        .unwrap();
    fs::copy(images.join("a.png"), images.join("b.png")).unwrap();
    fs::write(images.join("c.png"), "no picture").unwrap();
    picture(64, 64, 7).save(images.join("d.png")).unwrap();
    for (name, text) in [("a", "a dog, grass"), ("b", "a dog, sea"), ("c", "a dog"), ("d", &"cat ".repeat(80))] {
        fs::write(images.join(format!("{name}.txt")), text).unwrap();
    }
    fs::write(images.join("notes.doc"), "x").unwrap();
    place
}

#[test]
fn json_has_what_other_programs_rely_on() {
    let place = workplace();
    let output = check(place.path(), &["images", "--size", "128", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let found = json(&output);
    assert_eq!((&found["images"], &found["captions"]), (&3.into(), &3.into()), "{found}");
    let unreadable = found["unreadable"].as_array().unwrap();
    assert_eq!(unreadable.len(), 1);
    assert_eq!(unreadable[0]["path"], "images/c.png");
    assert!(unreadable[0]["reason"].as_str().unwrap().contains("not JPEG, PNG"), "{found}");
    let duplicates = found["duplicates"].as_array().unwrap();
    assert_eq!(duplicates.len(), 1, "{found}");
    assert_eq!(duplicates[0]["same"], "content");
    assert_eq!(strings(&duplicates[0]["paths"]), ["images/a.png", "images/b.png"]);

    // At size 128 in multiples of 64, the nearest shape to 288 x 128 is 192 x 64.
    let buckets = found["buckets"].as_array().unwrap();
    let of_bucket = |bucket: &Value| ["width", "height", "count"].map(|key| bucket[key].as_u64().unwrap());
    assert_eq!(buckets.iter().map(of_bucket).collect::<Vec<_>>(), [[128, 128, 1], [192, 64, 2]], "{found}");
    let cropped: Vec<f64> = buckets.iter().map(|bucket| bucket["cropped_share"].as_f64().unwrap()).collect();
    // 288 x 128 is scaled to 192 x 85, of which 64 rows are kept.
    assert!(cropped[0] == 0.0 && (cropped[1] - 21.0 / 85.0).abs() < 1e-9, "{cropped:?}");
    assert!(found["errors"].as_array().unwrap().is_empty());

    let warnings = strings(&found["warnings"]).join("\n");
    for said in ["unreadable", "75 tokens", "same image", "more than 20 %", "enlarged", "are few", "no mask"] {
        assert!(warnings.contains(said), "no `{said}` in {warnings}");
    }
    assert_eq!(found["captions_too_long"][0]["path"], "images/d.png");
    assert_eq!(found["captions_too_long"][0]["tokens"], 80);
    assert_eq!(found["captions_too_long"][0]["cut"].as_str().unwrap().split_whitespace().count(), 5);
    assert_eq!(found["tags"][0]["tag"], "a dog");
    assert_eq!(found["tags"][0]["count"], 2);
    assert_eq!(found["masks"]["files"], 1);
    assert_eq!(found["masks"]["learned_share"], 0.5);
    assert_eq!(found["skipped"][0]["path"], "images/notes.doc");
    // 1000 steps of one picture, three pictures an epoch.
    assert_eq!(found["steps_per_epoch"], 3.0);
    assert!((found["epochs"].as_f64().unwrap() - 1000.0 / 3.0).abs() < 1e-9);
    // A mean and a deviation of 4 channels each, and one mask, which makes two of the same content; three captions.
    let latents = (8 + 1) * 24 * 8 + 8 * 24 * 8 + 8 * 16 * 16;
    assert_eq!(found["cache_bytes"], (latents + 3 * 77 * 768) * 4);
    assert_eq!(found["pictures"].as_array().unwrap().len(), 3);
    assert_eq!(found["pictures"][1]["caption"], "a dog, sea");
}

#[test]
fn what_would_stop_a_run_ends_with_3_and_wrong_settings_with_2() {
    let place = workplace();
    let here = place.path();
    fs::create_dir(here.join("empty")).unwrap();
    fs::create_dir(here.join("broken")).unwrap();
    fs::write(here.join("broken/a.png"), "no picture").unwrap();
    fs::write(here.join("broken/a.txt"), "a dog").unwrap();
    fs::create_dir(here.join("untold")).unwrap();
    picture(64, 64, 1).save(here.join("untold/a.png")).unwrap();
    fs::write(here.join("run.toml"), "[data]\nimages = \"images\"\nsize_px = 64\nstrict = true\n").unwrap();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["empty"], 3, "no images in empty"),
        (&["nowhere"], 3, "no such folder: nowhere"),
        (&["broken"], 3, "no images in broken"),
        (&["untold", "--size", "64"], 3, "no caption for untold/a.png"),
        (&["run.toml"], 3, "unreadable image images/c.png"),
        (&["nowhere.toml"], 2, "cannot read the configuration"),
        (&["images", "--size", "0"], 2, "`data.size_px`"),
        (&["images", "--set", "data.bucket=1"], 2, "unknown key"),
        (&["images", "--base", GOLDEN_BASE, "--size", "36"], 3, "36x36"),
    ];
    for (arguments, code, says) in cases {
        for more in [&[][..], &["--json"]] {
            let output = check(here, &[arguments, more].concat());
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
            assert!(said.contains("error: ") && said.contains(says), "{arguments:?}: {said}");
            assert!(code == 3 || said.contains("hint: "), "{arguments:?}: {said}");
            if code == 3 && !more.is_empty() {
                assert!(strings(&json(&output)["errors"]).iter().any(|error| error.contains(says)), "{arguments:?}");
            }
        }
    }
    // Pictures without a caption are looked at all the same.
    let untold = json(&check(here, &["untold", "--size", "64", "--json"]));
    assert_eq!((&untold["images"], &untold["captions"]), (&1.into(), &0.into()));
    assert_eq!(strings(&untold["captions_missing"]), ["untold/a.png"]);
    assert_eq!(untold["buckets"][0]["count"], 1);
    assert_eq!(check(here, &["untold", "--set", "data.prompt=a dog"]).status.code(), Some(0));
}

#[test]
fn a_missing_caption_does_not_take_the_name_of_another_folder() {
    let place = tempfile::tempdir().unwrap();
    for folder in ["3_sks dog", "other"] {
        fs::create_dir_all(place.path().join("images").join(folder)).unwrap();
    }
    picture(64, 64, 1).save(place.path().join("images/3_sks dog/a.png")).unwrap();
    picture(64, 64, 2).save(place.path().join("images/other/b.png")).unwrap();
    let found = json(&check(place.path(), &["images", "--size", "64", "--json"]));
    assert_eq!(found["pictures"][0]["caption"], "sks dog", "{found}");
    assert_eq!(found["pictures"][1]["caption"], Value::Null);
    assert_eq!(found["caption_origins"]["folder_names"], 1);
    assert_eq!(found["showings_per_epoch"], 4);
}

#[test]
fn the_base_says_which_sizes_and_how_much_memory() {
    let place = workplace();
    fs::write(place.path().join("run.toml"), "[data]\nimages = \"images\"\nsize_px = 128\n[train]\nbatch_size = 2\n")
        .unwrap();
    let without = json(&check(place.path(), &["run.toml", "--json"]));
    assert_eq!((&without["size_multiple_px"], &without["base"]), (&64.into(), &Value::Null));
    assert_eq!(without["memory_bytes"], Value::Null);
    let with = json(&check(place.path(), &["run.toml", "--json", "--base", GOLDEN_BASE]));
    let multiple = with["size_multiple_px"].as_u64().unwrap();
    assert!(multiple < 64, "{with}");
    assert!(with["memory_bytes"].as_u64().unwrap() > 50_000_000);
    for bucket in with["buckets"].as_array().unwrap() {
        for side in ["width", "height"] {
            assert_eq!(bucket[side].as_u64().unwrap() % multiple, 0, "{bucket}");
        }
    }
    // Two pictures of a batch of two, and one of another size.
    assert_eq!(with["steps_per_epoch"], 2.0, "{}", with["buckets"]);
    let gone = json(&check(place.path(), &["run.toml", "--json", "--base", "./gone"]));
    assert!(strings(&gone["warnings"])[0].contains("`./gone` is not looked at"), "{gone}");
    assert_eq!(json(&check(place.path(), &["images", "--size", "96", "--json"]))["size_multiple_px"], 32);
}

#[test]
fn settings_that_do_not_fit_the_images_are_warned_of() {
    let place = tempfile::tempdir().unwrap();
    for (folder, count) in [("images", 5), ("class", 2)] {
        fs::create_dir(place.path().join(folder)).unwrap();
        for seed in 0..count {
            let image = place.path().join(folder).join(format!("{seed}.png"));
            picture(64, 64, seed + 10 * u32::from(folder == "class")).save(&image).unwrap();
            fs::write(image.with_extension("txt"), format!("a photo of a {folder} thing")).unwrap();
        }
    }
    let config = "[data]\nimages = \"images\"\nsize_px = 64\ntrigger = \"sks\"\n[data.captions]\ndropout = 1.0\n\
                  [[data.sources]]\nimages = \"class\"\nrole = \"class\"\ncaptions = { dropout = 0.0 }\n[train]\nsteps = 2\n";
    fs::write(place.path().join("run.toml"), config).unwrap();
    let found = json(&check(place.path(), &["run.toml", "--json"]));
    let warnings = strings(&found["warnings"]).join("\n");
    for said in
        ["the trigger \"sks\" is in no caption", "all 5 captions are the same", "`prior.kind`", "40 % of an epoch"]
    {
        assert!(warnings.contains(said), "no `{said}` in {warnings}");
    }
    assert_eq!((&found["images"], &found["class_images"]), (&7.into(), &2.into()));
    let with_prior =
        check(place.path(), &["run.toml", "--json", "--set", "prior.kind=images", "--set", "data.class=dog"]);
    assert!(!strings(&json(&with_prior)["warnings"]).join("\n").contains("`prior.kind`"));
    let prompt_for_all = check(
        place.path(),
        &["images", "--size", "64", "--json", "--set", "data.captions.from=file-name", "--set", "data.prompt=a dog"],
    );
    let warnings = json(&prompt_for_all);
    assert!(!strings(&warnings["warnings"]).join("\n").contains("are the same"), "a prompt is meant: {warnings}");
}

#[test]
fn twenty_photographs_fit_a_screen_whatever_is_wrong_with_them() {
    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("images");
    fs::create_dir(&images).unwrap();
    for seed in 0..20 {
        let image = images.join(format!("{seed:02}.png"));
        match seed {
            0..7 => fs::write(&image, "broken").unwrap(),
            7..10 => picture(64 + 40 * seed, 300 - 10 * seed, 3).save(&image).unwrap(),
            _ => picture(64 + 40 * seed, 600 - 20 * seed, seed).save(&image).unwrap(),
        }
        if seed != 19 {
            let words: Vec<String> = (0..seed * 6).map(|word| format!("word {word}")).collect();
            fs::write(image.with_extension("txt"), format!("\u{1b}[2Ja dog, {}", words.join(", "))).unwrap();
        }
        fs::write(images.join(format!("{seed}.xyz")), "?").unwrap();
    }
    let output = check(place.path(), &["images"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    let num_lines = text.lines().count();
    assert!((20..=40).contains(&num_lines), "{num_lines} lines: {text}");
    assert!(!text.contains('\u{1b}'), "no colours and no escapes: {text}");
    for said in [
        "images      13 in images\n",
        "captions    12 in files, 1 missing; ",
        "missing     19.png\n",
        "tokens, cut: \"",
        "tags        12 \"",
        "buckets        width  height  images  showings  cropped",
        "duplicates  ",
        "unreadable  unreadable image images/00.png: its content is not JPEG",
        "left aside  0.xyz: ",
        "and 16 more (--json lists all)",
        "steps       1000 are ",
        "encoded     ",
        "memory      ",
        "warning: ",
        "error: no caption for images/19.png",
    ] {
        assert!(text.contains(said), "no `{said}` in {text}");
    }
    assert!(stderr(&output).contains("error: these data would stop a run: no caption for images/19.png"));
    let clean = check(place.path(), &["images", "--size", "64", "--set", "data.prompt=a dog"]);
    assert_eq!(clean.status.code(), Some(0), "{}", stderr(&clean));
}

#[test]
fn the_sheet_shows_the_crop_the_tint_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let images = place.path().join("images");
    fs::create_dir(&images).unwrap();
    // Of 96 x 64, a square keeps the columns from 16 to 80: red below 32, green below 64, blue. The mask leaves from 48 on.
    let colour = |x: u32| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][(x / 32) as usize];
    RgbImage::from_fn(96, 64, |x, _| colour(x).into()).save(images.join("a.png")).unwrap();
    GrayImage::from_fn(96, 64, |x, _| [if x < 48 { 0 } else { 255 }].into())
        .save(images.join("a-masklabel.png"))
        .unwrap();
    fs::write(images.join("a.txt"), "stripes").unwrap();
    let arguments = ["images", "--size", "64", "--sheet", "sheet.png", "--set", "data.buckets=false"];
    let sheet = |more: &[&str]| {
        let output = check(place.path(), &[&arguments[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stderr(&output).contains("saved `sheet.png`"), "{}", stderr(&output));
        loralei_data::decode(&place.path().join("sheet.png")).unwrap()
    };
    // The first cell is 512 pixels wide, below the margin and the title; so each pixel is 8 wide.
    let at = |sheet: &RgbImage, x: u32| sheet.get_pixel(16 + x * 8 + 3, 44 + 32 * 8).0;
    let drawn = sheet(&[]);
    assert_eq!([0, 15].map(|x| at(&drawn, x)), [[255, 0, 153]; 2], "red, left out");
    assert_eq!([16, 31].map(|x| at(&drawn, x)), [[153, 102, 153]; 2], "green, left out");
    assert_eq!([32, 47].map(|x| at(&drawn, x)), [[0, 255, 0]; 2]);
    assert_eq!([48, 63].map(|x| at(&drawn, x)), [[0, 0, 255]; 2]);
    let ink = |rows: std::ops::Range<u32>| {
        rows.flat_map(|y| (0..300).map(move |x| (x, y))).filter(|&(x, y)| drawn.get_pixel(x, y).0[0] < 100).count()
    };
    assert!(
        ink(16..36) > 50 && ink(560..580) > 20 && ink(580..600) > 20 && ink(600..620) > 20,
        "title and three lines"
    );
    let half = sheet(&["--set", "data.outside_mask_weight=0.5"]);
    assert_eq!((at(&half, 0), at(&half, 40)), ([255, 0, 77], [0, 255, 0]), "half of the tint");
}

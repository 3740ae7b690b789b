//! A run's folder as a run would leave it, without a run: to look at the page, and to check it in a browser.
//!
//! `cargo run --release -p loralei-report --example synthetic_run -- FOLDER [STATE] [NUM_STEPS] [DATA.json]`
//!
//! From the top of the repository: pictures are made of those in `datasets/`. STATE is `training` (the default: the run is at
//! two thirds) or `finished`. `DATA.json` is what `loralei dataset check --json` prints.

use std::error::Error;
use std::f64::consts::TAU;
use std::fs;
use std::path::Path;
use std::time::Instant;

use image::{ImageFormat, RgbImage, imageops};
use loralei_adapter::atomic_write_bytes;
use loralei_report::{CardSample, EventWriter, ModelCard, write_page};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Prompt, and the picture that the base draws and the one that the adapter shall draw.
const PROMPTS: [(&str, &str, &str); 4] = [
    ("a octopus on green", "datasets/sticker/07-mushroom.png", "datasets/octopus/04-green.png"),
    (
        "a octopus on purple, seen from above, soft light, a long prompt that goes on and on as the prompts of people do",
        "datasets/sticker/09-penguin.png",
        "datasets/octopus/06-purple.png",
    ),
    ("a sailboat on blue", "datasets/sticker/06-sailboat.png", "datasets/sticker/06-sailboat.png"),
    (
        "a octopus </script><img src=x onerror=alert(1)>",
        "datasets/sticker/08-crown.png",
        "datasets/octopus/02-orange.png",
    ),
];
const SIDE_PX: u32 = 256;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(arguments.first().ok_or("name a folder")?);
    let state = arguments.get(1).map_or("training", String::as_str);
    let num_steps: u64 = arguments.get(2).map_or(Ok(600), |text| text.parse())?;
    let made = if state == "finished" { num_steps } else { num_steps * 2 / 3 };
    fs::create_dir_all(folder.join("samples"))?;
    if let Some(data) = arguments.get(3) {
        atomic_write_bytes(&folder.join("data.json"), &fs::read(data)?)?;
    }
    atomic_write_bytes(&folder.join("run.toml"), RUN_TOML.replace("NUM_STEPS", &num_steps.to_string()).as_bytes())?;
    write_lines(&folder.join("metrics.jsonl"), (0..made).map(|step| metrics(step, num_steps)))?;
    let measured = (0..=made).step_by((num_steps as usize / 30).max(1));
    write_lines(&folder.join("validation.jsonl"), measured.map(|step| validation(step, num_steps)))?;
    let drawn: Vec<u64> = (0..=5).map(|n| n * num_steps / 5).filter(|step| *step <= made).collect();
    let mut lines = Vec::new();
    for step in drawn {
        for (number, (prompt, before, after)) in PROMPTS.iter().enumerate() {
            let file = format!("samples/{step:06}-{}.png", number + 1);
            picture(&folder.join(&file), before, after, step as f64 / num_steps as f64)?;
            lines.push(json!({"step": step, "file": file, "prompt": prompt, "seed": 3 + number, "width_px": SIDE_PX, "height_px": SIDE_PX}));
        }
    }
    write_lines(&folder.join("samples.jsonl"), lines.into_iter())?;
    let step_s = 0.62;
    let status = json!({"state": state, "step": made, "num_steps": num_steps, "loss": 0.041, "smoothed_loss": 0.0525,
        "step_s": step_s, "eta_s": (num_steps - made) as f64 * step_s, "elapsed_s": made as f64 * step_s,
        "resident_bytes": 412_000_000_u64, "pid": 1, "host": "here"});
    atomic_write_bytes(&folder.join("status.json"), status.to_string().as_bytes())?;
    if state == "finished" {
        finish(folder, num_steps)?;
    }
    events(folder, made)?;

    let began = Instant::now();
    let page = write_page(folder)?;
    let first_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    write_page(folder)?;
    let again_s = began.elapsed().as_secs_f64();
    let num_bytes = fs::metadata(&page)?.len();
    atomic_write_bytes(
        &folder.join("page.json"),
        json!({"page_bytes": num_bytes, "first_s": first_s, "again_s": again_s}).to_string().as_bytes(),
    )?;
    Ok(())
}

/// A number in [0, 1) that looks like chance and is none.
fn hash(number: u64) -> f64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

fn learned(step: u64, num_steps: u64) -> f64 {
    1.0 - (-4.0 * step as f64 / num_steps as f64).exp()
}

fn metrics(step: u64, num_steps: u64) -> Value {
    let chance = (-(1.0 - hash(step)).ln()).powf(0.9);
    let loss = (0.03 + 0.07 * (1.0 - learned(step, num_steps))) * (0.35 + 0.75 * chance);
    let warmup = (step as f64 / (0.04 * num_steps as f64)).min(1.0);
    let learning_rate = 2.5e-3 * warmup * (0.5 + 0.5 * (0.5 * TAU * step as f64 / num_steps as f64).cos());
    json!({"step": step, "loss": loss, "learning_rate": learning_rate, "grad_norm": 0.02 + 0.09 * hash(step * 7 + 3) * chance,
        "step_s": 0.6 + 0.04 * hash(step * 3)})
}

fn validation(step: u64, num_steps: u64) -> Value {
    let progress = step as f64 / num_steps as f64;
    let overfit = 0.03 * (progress - 0.55).max(0.0);
    let loss = |timestep: u64| {
        let size = 0.16 / (1.0 + timestep as f64 / 150.0) + 0.012;
        size * (1.0 - 0.45 * learned(step, num_steps)) + overfit + 0.0012 * hash(step * 31 + timestep)
    };
    let bins: Vec<Value> = [125, 375, 625, 875].iter().map(|t| json!({"timestep": t, "loss": loss(*t)})).collect();
    let mean = [125, 375, 625, 875].iter().map(|t| loss(*t)).sum::<f64>() / 4.0;
    json!({"step": step, "loss": mean, "bins": bins, "train_loss": mean - 0.006 * progress - overfit, "best": progress < 0.56,
        "leak": {"with_trigger": 0.42 * learned(step, num_steps), "without_trigger": 0.035 * learned(step, num_steps)}})
}

/// From what the base draws to what it shall draw, with some noise in between.
fn picture(path: &Path, before: &str, after: &str, progress: f64) -> Result<()> {
    let open = |path: &str| -> Result<RgbImage> {
        let picture = loralei_data::decode(Path::new(path))?;
        Ok(imageops::resize(&picture, SIDE_PX, SIDE_PX, imageops::FilterType::CatmullRom))
    };
    let (before, after) = (open(before)?, open(after)?);
    let share = (1.5 * progress).min(1.0);
    let noise = 50.0 * share * (1.0 - share);
    let blended = RgbImage::from_fn(SIDE_PX, SIDE_PX, |x, y| {
        let (a, b) = (before.get_pixel(x, y).0, after.get_pixel(x, y).0);
        let chance = noise * (hash(u64::from(x / 4) + 1000 * u64::from(y / 4)) - 0.5);
        let blend = |i: usize| (f64::from(a[i]) * (1.0 - share) + f64::from(b[i]) * share + chance).clamp(0.0, 255.0);
        [blend(0) as u8, blend(1) as u8, blend(2) as u8].into()
    });
    atomic_write_bytes(path, &png(&blended)?)?;
    Ok(())
}

fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn write_lines(path: &Path, lines: impl Iterator<Item = Value>) -> Result<()> {
    let text: Vec<String> = lines.map(|line| line.to_string() + "\n").collect();
    Ok(atomic_write_bytes(path, text.concat().as_bytes())?)
}

fn finish(folder: &Path, num_steps: u64) -> Result<()> {
    let names =
        ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"];
    let norms = [0.61, 0.94, 1.37, 0.52, 1.88, 1.42, 0.83];
    let blocks: Vec<Value> = names
        .iter()
        .zip(norms)
        .map(|(block, norm)| json!({"block": block, "frobenius": norm, "num_modules": 16}))
        .collect();
    let summary = json!({"adapter": "octopus.safetensors", "num_bytes": 3_212_345, "num_parameters": 1_605_632, "num_modules": 112, "rank": 8,
        "loss_first": 0.1021, "loss_last": 0.0384, "best_step": num_steps * 11 / 20, "blocks": blocks,
        "advice": ["validation was best at step 330: octopus-best.safetensors is that one", "without the trigger little changes: the prior does its work"],
        "command": "loralei generate --base emoji --adapter runs/octopus/octopus.safetensors --prompt 'a octopus on green' --size 64x64 --output out.png"});
    atomic_write_bytes(&folder.join("summary.json"), summary.to_string().as_bytes())?;
    let card = ModelCard {
        family_tag: "stable-diffusion",
        pipeline: "StableDiffusionPipeline",
        name: "octopus".to_owned(),
        adapter_file: "octopus.safetensors".to_owned(),
        base: "stable-diffusion-v1-5/stable-diffusion-v1-5".to_owned(),
        license: Some("creativeml-openrail-m".to_owned()),
        trigger: Some("octopus: \"sks\" # ü".to_owned()),
        num_images: Some(8),
        num_steps,
        batch_size: Some(4),
        rank: Some(8),
        resolution_px: Some((64, 64)),
        loss: Some(0.0384),
        validation: Some((0.0412, num_steps * 11 / 20)),
        leak: Some((0.41, 0.034)),
        samples: (1..=4)
            .map(|n| CardSample {
                prompt: PROMPTS[n - 1].0.to_owned(),
                file: format!("samples/{num_steps:06}-{n}.png"),
            })
            .collect(),
        ..ModelCard::default()
    };
    Ok(atomic_write_bytes(&folder.join("README.md"), card.to_markdown().as_bytes())?)
}

/// Two starts: the second goes on at half of the way, so it takes back what the first said from there on.
fn events(folder: &Path, made: u64) -> Result<()> {
    let place = folder.join("tensorboard");
    let few: Vec<u64> = (0..made.min(8)).collect();
    let picture = loralei_data::decode(Path::new("datasets/octopus/04-green.png"))?;
    let png = png(&picture)?;
    for (first_step, value) in [(0, 1.0), (few.len() as u64 / 2, 2.0)] {
        let mut writer = EventWriter::create(&place, first_step)?;
        for step in few.iter().filter(|step| **step >= first_step) {
            writer.scalar("loss/train", *step, value + *step as f64 / 8.0)?;
        }
        writer.image("samples/1", first_step, &png, picture.width(), picture.height())?;
        writer.flush()?;
    }
    Ok(())
}

const RUN_TOML: &str = r#"[model]
base = "emoji"  # configs/quickstart.toml
weights = "auto"
compute = "f32"
device = "cpu"
ops = "auto"
tf32 = false

[data]
images = "datasets/octopus"  # configs/quickstart.toml
size_px = 64  # configs/quickstart.toml
buckets = true
no_upscale = false
trigger = "octopus"  # configs/quickstart.toml
alpha = "white"
outside_mask_weight = 0.0
flip = false
sources = []
strict = false
max_tokens = 75
cache = "auto"

[data.captions]
from = "beside"
line = "first"
dropout = 0.0
shuffle = false
keep_tokens = 0
separator = ","
tag_dropout = 0.0

[lora]
rank = 8  # configs/quickstart.toml

[lora.unet]
targets = "full"  # configs/quickstart.toml

[lora.text_encoder]
targets = "attention"  # configs/quickstart.toml

[optimizer]
learning_rate = 0.0025  # --set
weight_decay = 0.01
beta1 = 0.9
beta2 = 0.999
eps = 0.00000001
max_grad_norm = 1.0

[schedule]
kind = "cosine"  # configs/quickstart.toml
warmup_steps = 24  # configs/quickstart.toml
final_ratio = 0.0

[train]
steps = NUM_STEPS  # configs/quickstart.toml
batch_size = 4  # configs/quickstart.toml
accumulate = 1
seed = 9  # configs/quickstart.toml
checkpointing = "none"

[samples]
prompts = ["a octopus on green", "a octopus </script><img src=x onerror=alert(1)>"]  # configs/quickstart.toml
negative = ""
seed = 3  # configs/quickstart.toml
steps = 25
guidance_scale = 4.0  # configs/quickstart.toml

[output]
folder = "runs/octopus"  # --set
precision = "f16"
"#;

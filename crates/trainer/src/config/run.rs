//! `[samples]`, `[validation]`, `[output]`: what a run shows and leaves.

use std::path::PathBuf;

use loralei_model::SamplerKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Dtype;

/// `[samples]`: pictures of the same prompts and seeds as the run goes on: before the first step, at intervals, and after
/// the last; first and last side by side in `before-after.png`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// What to draw, as `loralei generate --prompt` takes it: some prompts with the trigger, and some without that must
    /// stay as they were. A prompt may end in kohya's flags: `--n` negative prompt, `--w` and `--h` size, `--d` seed, `--l`
    /// guidance scale, `--s` steps, `--ss` sampler. None: no pictures.
    pub prompts: Vec<String>,
    /// File of more prompts, one a line, `#` before comments; read again each time, so that it can be changed while the run
    /// goes on.
    pub prompts_file: Option<PathBuf>,
    /// Steps between pictures in `samples/`. 0: only before and after.
    pub every_steps: u64,
    /// What no picture is to show.
    pub negative: String,
    /// Seed of the first picture; each next one has the next number.
    pub seed: u64,
    /// Steps of the sampler.
    pub steps: usize,
    /// How strictly a picture follows its prompt; 1 or less: as the base would draw without guidance.
    pub guidance_scale: f64,
    /// `ddim`, `euler-a`, `dpmpp-2m`, `unipc` or `euler`.
    pub sampler: SamplerName,
}

/// `[output]`: the files of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// Folder of the run, made if missing. Unset: `runs/` and the name of the images' folder.
    pub folder: Option<PathBuf>,
    /// Name of the adapter file, without `.safetensors`. Unset: the name of the folder, with `_` for what other programs do
    /// not find in a picture's parameters (they take `A-Z a-z 0-9 _ . -`).
    pub name: Option<String>,
    /// Number type of the adapter file: `f16`, `bf16` or `f32`.
    pub precision: Dtype,
    /// Steps between snapshots, from which `--resume` goes on, each with an adapter that can be used beside it. Unset: a tenth
    /// of the run. 0: only at the end and when the run is stopped.
    pub save_every_steps: Option<u64>,
    /// Snapshots that are kept, at least 1: the newest.
    pub keep_snapshots: usize,
    /// Whether figures and pictures are written for TensorBoard too, in `tensorboard/`.
    pub tensorboard: bool,
    /// Who made it, for the adapter's metadata.
    pub author: Option<String>,
    /// What it is, for the adapter's metadata and its card: one or two sentences.
    pub description: Option<String>,
    /// Licence of the adapter, for its metadata and its card, as the hub names them: `creativeml-openrail-m`.
    pub license: Option<String>,
}

/// `[validation]`: how well the noise of fixed images is predicted, at fixed timesteps and with fixed noise, so that one value
/// can be compared with the next, as the training loss cannot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Steps between measurements, besides those before the first step and after the last. 0: never. Unset: a fifth of the run,
    /// at least 100.
    pub every_steps: Option<u64>,
    /// Part of the subject's images that is kept from training to be measured on, 0 to below 1. Only so the curve tells when
    /// the run begins to learn its images by heart. 0: it is measured on images that are trained on.
    pub hold_out: f64,
    /// Folder of other images of the subject to measure on instead, with captions as in `data.images`.
    pub images: Option<PathBuf>,
    /// Images that are measured on at most.
    pub max_images: usize,
    /// Timesteps at which each image is measured, spread evenly: as many bins has the curve.
    pub num_timesteps: usize,
    /// Measurements without a better one after which the run ends early. 0: never.
    pub patience: u64,
    /// Whether to measure as well how far predictions change for captions with the trigger and without it: the second shall
    /// stay small. Needs `data.trigger`.
    pub leak: bool,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            prompts_file: None,
            every_steps: 0,
            negative: String::new(),
            seed: 0,
            steps: 25,
            guidance_scale: 7.5,
            sampler: SamplerName(SamplerKind::Ddim),
        }
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            folder: None,
            name: None,
            precision: Dtype::F16,
            save_every_steps: None,
            keep_snapshots: 2,
            tensorboard: false,
            author: None,
            description: None,
            license: None,
        }
    }
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self {
            every_steps: None,
            hold_out: 0.0,
            images: None,
            max_images: 4,
            num_timesteps: 4,
            patience: 0,
            leak: true,
        }
    }
}

/// A sampler by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerName(pub SamplerKind);

impl Serialize for SamplerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for SamplerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unknown =
            || de::Error::invalid_value(de::Unexpected::Str(&name), &"ddim, euler-a, dpmpp-2m, unipc or euler");
        SamplerKind::from_name(&name).map(Self).ok_or_else(unknown)
    }
}

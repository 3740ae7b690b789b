//! How a picture was drawn, in the text that AUTOMATIC1111's web interface writes and that its "PNG info", other tools
//! and picture sites read: the prompt, a line with the negative prompt, and one last line of `Name: value` pairs.

use std::fmt::{Display, Formatter, Result};

/// How a picture was drawn. [`Display`] writes the text; what is `None` or empty is left out.
///
/// ```
/// let parameters = loralei_picture::GenerationParameters {
///     prompt: "a boat".to_owned(),
///     negative_prompt: "blurry".to_owned(),
///     steps: Some(30),
///     guidance: Some(7.5),
///     size_px: Some((512, 384)),
///     model: Some("boats: v2".to_owned()),
///     ..Default::default()
/// };
/// let version = env!("CARGO_PKG_VERSION");
/// assert_eq!(
///     parameters.to_string(),
///     format!(
///         "a boat\nNegative prompt: blurry\n\
///          Steps: 30, CFG scale: 7.5, Size: 512x384, Model: \"boats: v2\", Version: loralei {version}"
///     )
/// );
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationParameters {
    /// The prompt, without mention of the adapters: they are appended to it.
    pub prompt: String,
    /// What the picture was to keep away from; may be empty.
    pub negative_prompt: String,
    /// Adapters that were on, in their order.
    pub adapters: Vec<AdapterUse>,
    /// Sampling steps.
    pub steps: Option<u32>,
    /// Sampler, by the name people know: `DDIM`, `Euler`, `Euler a`, `DPM++ 2M`, `UniPC`.
    pub sampler: Option<String>,
    /// Classifier-free guidance scale.
    pub guidance: Option<f64>,
    /// Seed of the initial noise.
    pub seed: Option<u64>,
    /// (width, height).
    pub size_px: Option<(u32, u32)>,
    /// (width, height) before scaling, as the base was told, where that is another.
    pub original_size_px: Option<(u32, u32)>,
    /// (left, top) of what was cut off, as the base was told, where that is something.
    pub crop_px: Option<(u32, u32)>,
    /// First 10 hex digits of the SHA-256 of the checkpoint's file.
    pub model_hash: Option<String>,
    /// Name of the base.
    pub model: Option<String>,
    /// Layers of the text encoder counted from its end: 1 is the last.
    pub clip_skip: Option<u32>,
}

/// One adapter that a picture was drawn with.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterUse {
    /// The file's name without its extension. Characters that would end the mention early are written as `_`.
    pub name: String,
    /// Its scale; negative ones push away.
    pub scale: f64,
    /// `sshs_model_hash` of the file, at least the first 12 hex digits, which are written.
    pub hash: Option<String>,
}

impl Display for GenerationParameters {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.prompt)?;
        for (adapter, index) in self.adapters.iter().zip(0..) {
            let space = if index == 0 && self.prompt.is_empty() { "" } else { " " };
            write!(f, "{space}<lora:{}:{}>", mention(&adapter.name), adapter.scale)?;
        }
        f.write_str("\n")?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "Negative prompt: {}", self.negative_prompt)?;
        }
        let pairs = self.pairs().into_iter().filter_map(|(name, value)| Some((name, value?)));
        for (name, value) in pairs {
            write!(f, "{name}: {}, ", quoted(&value))?;
        }
        write!(f, "Version: loralei {}", env!("CARGO_PKG_VERSION"))
    }
}

impl GenerationParameters {
    /// The last line, in the order in which the web interface writes it.
    fn pairs(&self) -> [(&'static str, Option<String>); 11] {
        [
            ("Steps", self.steps.map(|steps| steps.to_string())),
            ("Sampler", self.sampler.clone()),
            ("CFG scale", self.guidance.map(|scale| scale.to_string())),
            ("Seed", self.seed.map(|seed| seed.to_string())),
            ("Size", self.size_px.map(pair)),
            ("Original size", self.original_size_px.map(pair)),
            ("Crop", self.crop_px.map(pair)),
            ("Model hash", self.model_hash.clone()),
            ("Model", self.model.clone()),
            ("Clip skip", self.clip_skip.map(|layers| layers.to_string())),
            ("Lora hashes", self.lora_hashes()),
        ]
    }

    /// `name: hash, name: hash` of the adapters whose hash is known, by which sites find them.
    fn lora_hashes(&self) -> Option<String> {
        let hashes = self.adapters.iter().filter_map(|adapter| {
            let hash = adapter.hash.as_ref()?;
            let short: String = hash.chars().take(12).collect();
            Some(format!("{}: {short}", mention(&adapter.name)))
        });
        let hashes: Vec<String> = hashes.collect();
        (!hashes.is_empty()).then(|| hashes.join(", "))
    }
}

fn pair((first, second): (u32, u32)) -> String {
    format!("{first}x{second}")
}

/// An adapter's name as it can stand between `<lora:` and `:`, and in a list of hashes.
fn mention(name: &str) -> String {
    name.replace(|char: char| matches!(char, ':' | '<' | '>' | ',' | '"') || char.is_control(), "_")
}

/// A value as it can stand in a list with commas: where it would be misread, as a JSON string.
fn quoted(value: &str) -> String {
    let is_misread = value.contains([',', ':', '\n', '\r']) || value.starts_with('"');
    if is_misread { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}

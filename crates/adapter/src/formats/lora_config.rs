//! PEFT's settings of an adapter: in the folder's `adapter_config.json`, and for each component in the header of diffusers'
//! files.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The settings that decide about the scale, as PEFT's `LoraConfig` has them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LoraConfig {
    peft_type: Option<String>,
    lora_alpha: f64,
    alpha_pattern: Option<BTreeMap<String, f64>>,
    use_rslora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    init_lora_weights: Option<Value>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let lora_alpha = 8.0; // PEFT's own default
        Self {
            peft_type: None,
            lora_alpha,
            alpha_pattern: None,
            use_rslora: None,
            fan_in_fan_out: None,
            init_lora_weights: None,
        }
    }
}

/// Ways to start that change the base, too: without its changed weights the factors mean nothing.
const STARTS_THAT_CHANGE_THE_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl LoraConfig {
    /// # Errors
    /// What is wrong with it, in a few words.
    pub(crate) fn from_json(value: Value) -> Result<Self, String> {
        if !value.is_object() {
            return Err("they are no JSON object".to_owned());
        }
        let config: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        if let Some(kind) = config.peft_type.as_deref().filter(|kind| *kind != "LORA") {
            return Err(format!("peft_type is {kind:.40}, not LORA"));
        }
        if config.fan_in_fan_out == Some(true) {
            return Err("fan_in_fan_out is set: its factors are transposed".to_owned());
        }
        let start = config.init_lora_weights.as_ref().and_then(Value::as_str).unwrap_or_default();
        if STARTS_THAT_CHANGE_THE_BASE.iter().any(|known| start.starts_with(known)) {
            return Err(format!("init_lora_weights is {start:.40}: its base has other weights than the published one"));
        }
        if let Some(pattern) = config.alpha_pattern.iter().flat_map(BTreeMap::keys).find(|key| !is_plain(key)) {
            return Err(format!("alpha_pattern {pattern:.80?} is more than the end of a path"));
        }
        Ok(config)
    }

    /// The settings of each component (`unet`, `text_encoder`, ...) in the JSON text of a diffusers header, where every
    /// name begins with the component and a dot.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub(crate) fn by_component(text: &str) -> Result<BTreeMap<String, Self>, String> {
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut components: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for (name, value) in all {
            let (component, name) = name.split_once('.').ok_or_else(|| format!("{name:.80?} names no component"))?;
            components.entry(component.to_owned()).or_default().insert(name.to_owned(), value);
        }
        components.into_iter().map(|(name, config)| Ok((name, Self::from_json(Value::Object(config))?))).collect()
    }

    /// The alpha of a module whose scale is alpha / rank.
    pub(crate) fn alpha(&self, path: &str, rank: usize) -> f32 {
        let patterns = self.alpha_pattern.iter().flatten();
        let found = patterns.filter(|(end, _)| is_end_of(path, end)).max_by_key(|(end, _)| end.len());
        let alpha = found.map_or(self.lora_alpha, |(_, alpha)| *alpha);
        // alpha / sqrt(rank) (rank-stabilised LoRA) as alpha' / rank.
        let factor = if self.use_rslora == Some(true) { (rank as f64).sqrt() } else { 1.0 };
        (alpha * factor) as f32
    }
}

/// PEFT takes patterns as regular expressions that must match the end of a path.
fn is_plain(pattern: &str) -> bool {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    pattern.chars().all(|character| character.is_ascii_alphanumeric() || matches!(character, '.' | '_'))
}

fn is_end_of(path: &str, end: &str) -> bool {
    if let Some(whole) = end.strip_prefix('^') {
        return path == whole;
    }
    path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The settings to be written for one component: rank and alpha of each dotted path.
///
/// The rank and alpha that most modules have are the rule, the others are exceptions. Target modules are the last words of
/// the paths: whole paths of the text encoder differ between versions of transformers.
pub(crate) fn config_of(modules: &[(String, usize, f32)], use_dora: bool) -> Map<String, Value> {
    let rank = most_frequent(modules.iter().map(|(_, rank, _)| *rank)).unwrap_or(1);
    let alpha = f32::from_bits(most_frequent(modules.iter().map(|(_, _, alpha)| alpha.to_bits())).unwrap_or(0));
    let ends: std::collections::BTreeSet<&str> = modules.iter().map(|(path, ..)| last_words(path)).collect();
    let name = |path: &str| path.strip_prefix("text_model.").unwrap_or(path).to_owned();
    let ranks: Map<String, Value> =
        modules.iter().filter(|module| module.1 != rank).map(|(path, rank, _)| (name(path), json!(rank))).collect();
    let alphas: Map<String, Value> = modules
        .iter()
        .filter(|module| module.2.to_bits() != alpha.to_bits())
        .map(|(path, _, alpha)| (name(path), number(*alpha)))
        .collect();
    let mut config = Map::new();
    let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
    put("alpha_pattern", Value::Object(alphas));
    put("base_model_name_or_path", Value::Null);
    put("bias", json!("none"));
    put("fan_in_fan_out", json!(false));
    put("inference_mode", json!(true));
    put("init_lora_weights", json!(true));
    put("lora_alpha", number(alpha));
    put("lora_dropout", json!(0.0));
    put("peft_type", json!("LORA"));
    put("r", json!(rank));
    put("rank_pattern", Value::Object(ranks));
    put("target_modules", json!(ends));
    put("use_dora", json!(use_dora));
    put("use_rslora", json!(false));
    config
}

/// A whole number without a point, as trainers write it.
fn number(value: f32) -> Value {
    let whole = value as i64;
    if (whole as f32).to_bits() == value.to_bits() { json!(whole) } else { json!(f64::from(value)) }
}

/// `to_out.0` of `...attn1.to_out.0`, `net.0.proj` of a feed-forward's first half: enough to mean no other kind of layer.
fn last_words(path: &str) -> &str {
    let mut start = path.len();
    for word in path.rsplit('.') {
        start -= word.len();
        let is_telling = !word.bytes().all(|byte| byte.is_ascii_digit()) && !matches!(word, "proj" | "conv");
        if is_telling {
            break;
        }
        start = start.saturating_sub(1);
    }
    &path[start..]
}

fn most_frequent<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(value, count)| (*count, std::cmp::Reverse(*value))).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_are_those_of_peft() {
        // from peft import LoraConfig: scaling = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
        let config = json!({"peft_type": "LORA", "r": 16, "lora_alpha": 4, "use_rslora": true,
            "alpha_pattern": {"attn1.to_q": 2.0, "to_q": 3}, "rank_pattern": {}});
        let config = LoraConfig::from_json(config).unwrap();
        assert!((config.alpha("mid_block.attn2.to_k", 16) / 16.0 - 4.0 / 16_f32.sqrt()).abs() < 1e-6);
        assert!((config.alpha("mid_block.attn2.to_q", 9) - 9.0).abs() < 1e-6);
        assert!((config.alpha("mid_block.attn1.to_q", 4) - 4.0).abs() < 1e-6, "the longest pattern");
        assert!((config.alpha("mid_block.xattn1.to_q", 1) - 3.0).abs() < 1e-6, "whole words only");
    }

    #[test]
    fn configurations_that_mean_another_adapter_are_refused() {
        for config in [
            json!({"peft_type": "LOHA"}),
            json!({"fan_in_fan_out": true}),
            json!({"init_lora_weights": "pissa_niter_4"}),
            json!({"alpha_pattern": {".*to_q": 2}}),
            json!({"lora_alpha": "4"}),
            json!([]),
        ] {
            assert!(LoraConfig::from_json(config.clone()).is_err(), "{config}");
        }
        assert!(LoraConfig::by_component("{\"r\": 4}").is_err());
        assert!(LoraConfig::by_component("[").is_err());
    }

    #[test]
    fn what_is_written_gives_every_alpha_back() {
        let modules = [
            ("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0".to_owned(), 4, 2.0),
            ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q".to_owned(), 4, 2.0),
            ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q".to_owned(), 8, 0.3),
            ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj".to_owned(), 4, 2.0),
        ];
        let written = Value::Object(config_of(&modules, false));
        assert_eq!(written["target_modules"], json!(["net.0.proj", "to_out.0", "to_q"]));
        assert_eq!((&written["r"], &written["lora_alpha"]), (&json!(4), &json!(2)));
        assert_eq!(written["rank_pattern"].as_object().unwrap().len(), 1);
        let config = LoraConfig::from_json(written).unwrap();
        for (path, rank, alpha) in modules {
            assert_eq!(config.alpha(&path, rank).to_bits(), alpha.to_bits());
        }
    }
}

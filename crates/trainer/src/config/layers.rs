//! Settings in layers: built-in default < preset < file < `--set`. The result remembers where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Table, Value};

use crate::config::TrainConfig;
use crate::config::keys::{KEYS, is_config_key, is_section, nearest_config_key};
use crate::config::presets::{PRESETS, PresetNames};
use crate::error::TrainError;

/// Where a value came from, weakest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// The preset of this name.
    Preset(String),
    /// A configuration file.
    File(PathBuf),
    /// A single setting: `--set`, or a flag that stands for one.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Preset(name) => write!(f, "preset {name}"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Set => f.write_str("--set"),
        }
    }
}

/// Settings of a run, and for each key that was given where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedConfig {
    /// All settings.
    pub config: TrainConfig,
    /// The origin of each key that is not at its default, by dotted key.
    pub origins: BTreeMap<String, Origin>,
}

/// Collects the layers of a configuration. Each is checked as it comes, so that an error names its file and line.
#[derive(Debug, Clone, Default)]
pub struct ConfigLayers {
    file: Option<(PathBuf, Table)>,
    sets: Vec<(String, Value)>,
}

impl ConfigLayers {
    /// No layer but the built-in defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the configuration file at `path`. Relative paths inside it are relative to the current directory, not to
    /// the file, as they are on the command line.
    ///
    /// # Errors
    /// [`TrainError::ConfigRead`], [`TrainError::ConfigValue`], [`TrainError::UnknownKey`], the latter two with the line.
    pub fn file(&mut self, path: &Path) -> Result<(), TrainError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrainError::ConfigRead { path: path.to_path_buf(), source })?;
        self.file = Some((path.to_path_buf(), checked_table(&path.display().to_string(), &text)?));
        Ok(())
    }

    /// Adds one setting `key=value`. The value is read as TOML where it is TOML of the right type (`500`, `true`,
    /// `["a", "b"]`), else as the text that it is; text may be quoted or not. Later settings win.
    ///
    /// # Errors
    /// [`TrainError::SetForm`], [`TrainError::UnknownKey`], [`TrainError::ConfigValue`].
    pub fn set(&mut self, argument: &str) -> Result<(), TrainError> {
        let Some((key, text)) = argument.split_once('=') else {
            return Err(TrainError::SetForm { argument: argument.to_string() });
        };
        let (key, text) = (key.trim(), text.trim());
        let as_toml = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut t| t.remove("value"));
        let as_text = Value::String(text.to_string());
        // A text such as 1234 is TOML too, but of the wrong type for a prompt: then the text is meant.
        let Some(as_toml) = as_toml else { return self.set_value(key, as_text) };
        self.set_value(key, as_toml).or_else(|error| self.set_value(key, as_text).map_err(|_| error))
    }

    /// Adds one setting whose value is known to be text: what flags such as `--images` stand for.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn set_text(&mut self, key: &str, text: &str) -> Result<(), TrainError> {
        self.set_value(key, Value::String(text.to_string()))
    }

    fn set_value(&mut self, key: &str, value: Value) -> Result<(), TrainError> {
        if !is_config_key(key) {
            let nearest = nearest_config_key(key).to_string();
            return Err(TrainError::UnknownKey { place: "--set".to_string(), key: key.to_string(), nearest });
        }
        let mut table = Table::new();
        insert(&mut table, key, value.clone());
        table.try_into::<TrainConfig>().map_err(|error| TrainError::ConfigValue {
            place: format!("--set {key}"),
            message: one_line(error.message()),
        })?;
        self.sets.push((key.to_string(), value));
        Ok(())
    }

    /// The settings of all layers.
    ///
    /// # Errors
    /// [`TrainError::UnknownPreset`]; others only if a built-in preset is wrong.
    pub fn resolve(&self) -> Result<ResolvedConfig, TrainError> {
        let mut merged = Table::new();
        let mut origins = BTreeMap::new();
        let mut apply = |key: &str, value: Value, origin: Origin| {
            insert(&mut merged, key, value);
            origins.insert(key.to_string(), origin);
        };
        let (names, place) = self.presets();
        for name in names {
            let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
                let known = PRESETS.iter().map(|(name, _)| (*name).to_string()).collect();
                return Err(TrainError::UnknownPreset { place, name, known });
            };
            for (key, value) in leaves(&checked_table(&format!("preset {name}"), text)?) {
                apply(&key, value, Origin::Preset(name.clone()));
            }
        }
        if let Some((path, table)) = &self.file {
            for (key, value) in leaves(table) {
                apply(&key, value, Origin::File(path.clone()));
            }
        }
        for (key, value) in &self.sets {
            apply(key, value.clone(), Origin::Set);
        }
        // Each layer was checked alone, and a value is replaced whole, so together they are right as well.
        let config = merged.try_into::<TrainConfig>().map_err(|error| TrainError::ConfigValue {
            place: "configuration".to_string(),
            message: one_line(error.message()),
        })?;
        Ok(ResolvedConfig { config, origins })
    }

    /// The presets named by the strongest layer that names any, the weakest first, and the place that does.
    fn presets(&self) -> (Vec<String>, String) {
        let set =
            self.sets.iter().rev().find(|(key, _)| key == "preset").map(|(_, value)| (value, "--set".to_string()));
        let file = || self.file.as_ref().and_then(|(path, t)| Some((t.get("preset")?, path.display().to_string())));
        let named = set.or_else(file);
        let names = named.as_ref().and_then(|(value, _)| (*value).clone().try_into::<PresetNames>().ok());
        (
            names.map_or_else(Vec::new, |names| names.names().to_vec()),
            named.map_or_else(String::new, |(_, place)| place),
        )
    }
}

impl TrainConfig {
    /// The settings as TOML: every key that has a value, in the order of the reference. The same settings give the same
    /// bytes, and reading them gives the same settings.
    pub fn to_toml(&self) -> String {
        written(self, &BTreeMap::new())
    }
}

impl TrainConfig {
    /// Every setting that has a value: dotted key and value, as text.
    pub(crate) fn values(&self) -> Vec<(String, String)> {
        let table = Table::try_from(self).unwrap_or_default();
        leaves(&table).into_iter().map(|(key, value)| (key, value.to_string())).collect()
    }
}

impl ResolvedConfig {
    /// As [`TrainConfig::to_toml`], with the origin of each value that is not a default in a comment behind it.
    pub fn to_toml(&self) -> String {
        written(&self.config, &self.origins)
    }
}

fn written(config: &TrainConfig, origins: &BTreeMap<String, Origin>) -> String {
    let table = Table::try_from(config).unwrap_or_default();
    let values: BTreeMap<String, Value> = leaves(&table).into_iter().collect();
    let (mut text, mut section) = (String::new(), "");
    for key in KEYS {
        let Some(value) = values.get(key) else { continue };
        let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
        if parent != section {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}[{parent}]");
            section = parent;
        }
        let comment = origins.get(key).map(|origin| format!("  # {origin}")).unwrap_or_default();
        let _ = writeln!(text, "{name} = {}{}", value_text(value), one_line(&comment));
    }
    text
}

/// Parses `text` and checks keys and types; `place` names it in errors.
fn checked_table(place: &str, text: &str) -> Result<Table, TrainError> {
    let at_line = |offset: usize| {
        format!("{place}, line {}", 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count())
    };
    let value_error = |error: &toml::de::Error| TrainError::ConfigValue {
        place: error.span().map_or_else(|| place.to_string(), |span| at_line(span.start)),
        message: one_line(error.message()),
    };
    let spanned = DeTable::parse(text).map_err(|error| value_error(&error))?;
    if let Some((key, offset)) = first_unknown_key("", spanned.get_ref()) {
        let nearest = nearest_config_key(&key).to_string();
        return Err(TrainError::UnknownKey { place: at_line(offset), key, nearest });
    }
    toml::from_str::<TrainConfig>(text).map_err(|error| value_error(&error))?;
    toml::from_str::<Table>(text).map_err(|error| value_error(&error))
}

/// The unknown key that comes first in the text, with its byte offset. A section where a value belongs, or the other
/// way round, is left to the check of types.
fn first_unknown_key(section: &str, table: &DeTable<'_>) -> Option<(String, usize)> {
    let unknown = table.iter().filter_map(|(name, value)| {
        let name_text = name.get_ref();
        let key = if section.is_empty() { name_text.to_string() } else { format!("{section}.{name_text}") };
        if is_config_key(&key) {
            return None;
        }
        if !is_section(&key) {
            return Some((key, name.span().start));
        }
        first_unknown_key(&key, value.get_ref().as_table()?)
    });
    unknown.min_by_key(|(_, offset)| *offset)
}

/// All values of a table by dotted key.
pub(super) fn leaves(table: &Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(leaves(inner).into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            _ => found.push((name.clone(), value.clone())),
        }
    }
    found
}

/// Puts `value` at the dotted `key`, making the sections on the way.
fn insert(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_string(), value)),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// A value as TOML, small numbers as `1e-8`.
pub(crate) fn value_text(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-3 => format!("{number:e}"),
        _ => value.to_string(),
    }
}

pub(crate) fn one_line(message: &str) -> String {
    message.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::{ScheduleKind, Targets, WeightDtype};
    use crate::plan::Plan;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn file_error(text: &str) -> (String, Option<String>) {
        let file = file(text);
        let error = ConfigLayers::new().file(file.path()).unwrap_err();
        let message = error.to_string();
        assert!(!message.contains('\n'), "{message}");
        assert_eq!(error.exit_code(), 2);
        let place = file.path().display().to_string();
        (message.strip_prefix(&place).unwrap_or(&message).to_string(), error.hint())
    }

    #[test]
    fn each_layer_is_stronger_than_the_one_before() {
        let run = file("preset = \"subject-sd15\"\n[lora]\nrank = 6\n[train]\nsteps = 300\nseed = 5\n");
        let mut layers = ConfigLayers::new();
        layers.file(run.path()).unwrap();
        layers.set("train.steps=7").unwrap();
        layers.set("train.steps=70").unwrap();
        let ResolvedConfig { config, origins } = layers.resolve().unwrap();
        assert_eq!((config.train.batch_size, origins.get("train.batch_size")), (1, None), "default");
        let preset = Origin::Preset("subject-sd15".to_string());
        assert_eq!((config.schedule.kind, &origins["schedule.kind"]), (ScheduleKind::Cosine, &preset));
        let from_file = Origin::File(run.path().to_path_buf());
        assert_eq!((config.lora.rank, &origins["lora.rank"]), (6, &from_file), "the preset has 8");
        assert_eq!((config.train.seed, &origins["train.seed"]), (5, &from_file));
        assert_eq!((config.train.steps, &origins["train.steps"]), (70, &Origin::Set), "the last of several");
    }

    #[test]
    fn a_preset_given_with_set_replaces_the_one_of_the_file() {
        let run = file("preset = \"subject-sd15\"\n");
        let mut layers = ConfigLayers::new();
        layers.file(run.path()).unwrap();
        layers.set("preset=style-sd15").unwrap();
        let config = layers.resolve().unwrap().config;
        assert_eq!((config.lora.rank, config.train.steps), (16, 3000));
        assert_eq!(config.lora.text_encoder.learning_rate, None, "nothing of the other preset is left");
    }

    #[test]
    fn of_several_presets_the_later_ones_are_stronger_and_each_value_names_its_own() {
        let run = file("preset = [\"subject-sdxl\", \"sdxl-8gb\"]\n[train]\nsteps = 300\n");
        let mut layers = ConfigLayers::new();
        layers.file(run.path()).unwrap();
        let ResolvedConfig { config, origins } = layers.resolve().unwrap();
        let origin = |key: &str| origins[key].to_string();
        assert_eq!((config.data.size_px, origin("data.size_px").as_str()), (1024, "preset subject-sdxl"));
        assert_eq!((config.model.weights, origin("model.weights").as_str()), (WeightDtype::Int8, "preset sdxl-8gb"));
        assert_eq!(config.train.steps, 300);
        let text = TrainConfig { preset: config.preset.clone(), ..TrainConfig::default() }.to_toml();
        assert!(text.starts_with("preset = [\"subject-sdxl\", \"sdxl-8gb\"]\n"), "{text}");

        let mut turned = ConfigLayers::new();
        turned.set("preset=[\"sdxl-24gb\", \"sdxl-8gb\"]").unwrap();
        assert_eq!(turned.resolve().unwrap().config.model.weights, WeightDtype::Int8);
        turned.set("preset=[\"sdxl-8gb\", \"sdxl-24gb\"]").unwrap();
        assert_eq!(turned.resolve().unwrap().config.model.weights, WeightDtype::Auto);
    }

    #[test]
    fn an_unknown_preset_is_refused_with_those_that_exist() {
        let mut layers = ConfigLayers::new();
        layers.set("preset=subject").unwrap();
        let error = layers.resolve().unwrap_err();
        assert_eq!(error.to_string(), "--set: unknown preset `subject`");
        let hint = error.hint().unwrap();
        assert!(
            hint.starts_with("presets: concept-sd15, ") && hint.ends_with(", subject-sd21, subject-sdxl"),
            "{hint}"
        );
    }

    #[test]
    fn errors_of_a_file_name_the_line() {
        let (message, hint) = file_error("[train]\nsteps = 3\n\nstpes = 4\n");
        assert_eq!(message, ", line 4: unknown key `train.stpes`");
        assert_eq!(hint.unwrap(), "did you mean `train.steps`?");
        let (message, _) = file_error("# a comment\n[lorra]\nrank = 4\n");
        assert_eq!(message, ", line 2: unknown key `lorra`");
        let (message, _) = file_error("[lora.unet]\nlearning_rates.low = 1\ntargets = \"all\"\n");
        assert_eq!(message, ", line 2: unknown key `lora.unet.learning_rates`");
        let (message, _) = file_error("[lora.unet]\nrank = 4\ntargets = \"all\"\n");
        assert!(
            message.starts_with(", line 3: invalid value: string \"all\", expected \"none\", \"attention\""),
            "{message}"
        );
        let (message, _) = file_error("[train]\nsteps = -1\n");
        assert!(message.starts_with(", line 2: invalid value: integer `-1`"), "{message}");
        let (message, _) = file_error("lora = 3\n");
        assert!(message.starts_with(", line 1: invalid type: integer `3`"), "{message}");
        let (message, _) = file_error("[train]\nsteps = \n");
        assert!(message.starts_with(", line 2: "), "{message}");
    }

    #[test]
    fn a_single_setting_is_toml_where_the_type_is_right_and_text_otherwise() {
        let mut layers = ConfigLayers::new();
        for set in [
            "data.prompt=a photo of a = b",
            "data.trigger=1234",
            "model.base=\"quoted\"",
            "lora.unet.targets=[\"*.attn2.to_k\", \"*.attn2.to_v\"]",
            "lora.text_encoder.targets=full",
            "optimizer.learning_rate = 2e-3",
            "lora.alpha=3",
        ] {
            layers.set(set).unwrap();
        }
        let config = layers.resolve().unwrap().config;
        assert_eq!(config.data.prompt.as_deref(), Some("a photo of a = b"));
        assert_eq!(config.data.trigger.as_deref(), Some("1234"));
        assert_eq!(config.model.base, "quoted");
        let patterns = ["*.attn2.to_k", "*.attn2.to_v"].map(str::to_string).to_vec();
        assert_eq!(config.lora.unet.targets, Targets::Patterns(patterns));
        assert_eq!(config.lora.text_encoder.targets, Targets::Full);
        assert_eq!(config.optimizer.learning_rate, Some(2e-3));
        assert_eq!(config.lora.alpha.map(f64::to_bits), Some(3.0f64.to_bits()), "an integer where a number belongs");
    }

    #[test]
    fn a_single_setting_that_cannot_be_is_refused() {
        let error = |set: &str| ConfigLayers::new().set(set).unwrap_err().to_string();
        assert_eq!(error("train.steps"), "`--set train.steps` is not of the form key=value");
        assert_eq!(error("train=5"), "--set: unknown key `train`");
        assert!(error("train.steps=2.5").starts_with("--set train.steps: invalid type: floating point `2.5`"));
        assert!(error("model.dtype=f64").starts_with("--set model.dtype: unknown variant `f64`"));
    }

    #[test]
    fn written_settings_read_back_as_the_same_and_write_the_same_bytes() {
        let mut layers = ConfigLayers::new();
        for set in [
            "preset=subject-sd21",
            "data.images=C:\\photos\\\"my\" cat",
            "data.prompt=line one\nline two # not a comment",
            "lora.unet.targets=[\"a.*\", \"b\"]",
            "lora.alpha=0.1",
            "lora.text_encoder.learning_rate=3.3333333333333335e-5",
            "optimizer.eps=1e-30",
            "train.seed=9223372036854775807",
        ] {
            layers.set(set).unwrap();
        }
        let resolved = layers.resolve().unwrap();
        for text in [resolved.to_toml(), resolved.config.to_toml()] {
            let read: TrainConfig = toml::from_str(&text).unwrap();
            assert_eq!(read, resolved.config, "{text}");
        }
        assert_eq!(resolved.to_toml(), layers.resolve().unwrap().to_toml());
        let text = resolved.to_toml();
        assert!(text.contains("\n[lora.unet]\n"), "{text}");
        assert!(text.contains("rank = 8  # preset subject-sd21\n"), "{text}");
        assert!(text.contains("seed = 9223372036854775807  # --set\n"), "{text}");
        assert!(text.contains("weight_decay = 0.01\n"), "a default has no comment: {text}");
    }

    #[test]
    fn every_preset_is_a_right_plan_and_names_no_preset_and_no_path() {
        for (name, text) in PRESETS {
            let keys: Vec<String> =
                leaves(&checked_table(name, text).unwrap()).into_iter().map(|(key, _)| key).collect();
            for key in ["preset", "data.images", "model.base", "output.folder"] {
                assert!(!keys.iter().any(|k| k == key), "{name} sets {key}");
            }
            let mut layers = ConfigLayers::new();
            layers.set(&format!("preset={name}")).unwrap();
            layers.set("data.images=photos").unwrap();
            // Whether this machine has the card that a preset is for is another question.
            layers.set("model.device=cpu").unwrap();
            let plan = Plan::new(&layers.resolve().unwrap().config).unwrap();
            assert!(plan.warnings.is_empty(), "{name}: {:?}", plan.warnings);
        }
    }

    #[test]
    fn a_preset_has_the_size_of_its_base_and_what_its_goal_needs() {
        for (name, text) in PRESETS.into_iter().filter(|(name, _)| !name.ends_with("gb")) {
            let config: TrainConfig = toml::from_str(text).unwrap();
            let (goal, base) = name.split_once('-').unwrap();
            let size_px =
                [("emoji", 64), ("sd15", 512), ("sd21", 768), ("sdxl", 1024)].into_iter().find(|(of, _)| *of == base);
            assert_eq!(config.data.size_px, size_px.unwrap().1, "{name}");
            assert_eq!(config.prior.kind == crate::PriorKind::Base, goal == "subject", "{name}");
            let is_frozen = config.lora.text_encoder.targets == Targets::None;
            assert_eq!(is_frozen, goal == "style" || base == "sdxl", "{name}");
            let num_keys = leaves(&toml::from_str(text).unwrap()).len();
            assert!((9..=16).contains(&num_keys), "{name}: {num_keys} settings");
        }
    }

    #[test]
    fn a_preset_for_a_memory_changes_nothing_of_what_is_learned_but_the_batch() {
        const MAY_SET: [&str; 6] = [
            "model.device",
            "model.dtype",
            "model.weights",
            "train.checkpointing",
            "train.batch_size",
            "train.accumulate",
        ];
        let for_memory: Vec<_> = PRESETS.into_iter().filter(|(name, _)| name.ends_with("gb")).collect();
        assert_eq!(for_memory.len(), 4);
        for (name, text) in for_memory {
            for (key, _) in leaves(&toml::from_str(text).unwrap()) {
                assert!(MAY_SET.contains(&key.as_str()), "{name} sets {key}");
            }
            assert!(text.contains(" GB"), "{name} says what it takes");
        }
    }

    #[test]
    fn the_quickstart_is_a_right_plan() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/quickstart.toml");
        let mut layers = ConfigLayers::new();
        layers.file(&path).unwrap();
        let plan = Plan::new(&layers.resolve().unwrap().config).unwrap();
        assert_eq!((plan.data.largest_px().0, plan.batch_size, plan.steps), (64, 4, 500));
        assert!(plan.unet.is_some() && plan.learns_text() && plan.warnings.is_empty());
        let last = plan.schedule.ratio(499);
        assert!(last > 0.05 && last < 0.053, "{last}");
    }
}

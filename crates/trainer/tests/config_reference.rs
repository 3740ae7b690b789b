//! `docs/reference/config.md` is made from the types: the sections and keys of `src/config/` with their comments, and the
//! defaults. `LORALEI_WRITE_REFERENCE=1 cargo test -p loralei-trainer --test config_reference` writes it anew.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use loralei_trainer::TrainConfig;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// A struct of the settings: its comment, and its fields as (name, type, comment).
#[derive(Default)]
struct Section {
    comment: String,
    fields: Vec<(String, String, String)>,
}

/// The structs of the file that derive `Deserialize`, by name.
fn sections(source: &str) -> BTreeMap<String, Section> {
    let (mut all, mut current): (BTreeMap<String, Section>, Option<String>) = (BTreeMap::new(), None);
    let mut comment = String::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            let gap = if comment.is_empty() { "" } else { " " };
            write!(comment, "{gap}{}", text.trim()).unwrap();
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            all.insert(name.to_owned(), Section { comment: std::mem::take(&mut comment), fields: Vec::new() });
            current = Some(name.to_owned());
        } else if line == "}" {
            current = None;
        } else if let (Some(name), Some(field)) = (&current, line.strip_prefix("pub ")) {
            let (field, kind) = field.trim_end_matches(',').split_once(": ").expect("a field and its type");
            let section = all.get_mut(name).expect("the struct was just met");
            section.fields.push((field.to_owned(), kind.to_owned(), std::mem::take(&mut comment)));
        } else if !line.starts_with("#[") {
            comment.clear();
        }
    }
    all
}

/// The names that the enums of the file have in TOML, by enum.
fn choices(source: &str) -> BTreeMap<String, Vec<String>> {
    let (mut all, mut current, mut case): (BTreeMap<String, Vec<String>>, Option<String>, String) = Default::default();
    for line in source.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[serde(rename_all = \"") {
            rest.split('"').next().unwrap().clone_into(&mut case);
        } else if let Some(name) = line.strip_prefix("pub enum ").and_then(|rest| rest.strip_suffix(" {")) {
            current = (!case.is_empty()).then(|| name.to_owned());
        } else if line == "}" {
            (current, case) = (None, String::new());
        } else if let (Some(name), Some(variant)) = (&current, line.strip_suffix(',')) {
            let hyphen = |i: usize, c: char| case == "kebab-case" && i > 0 && c.is_uppercase();
            let spelled = variant.char_indices().map(|(i, c)| {
                let c = c.to_ascii_lowercase();
                if hyphen(i, variant.as_bytes()[i] as char) { format!("-{c}") } else { c.to_string() }
            });
            all.entry(name.clone()).or_default().push(spelled.collect::<Vec<_>>().concat());
        }
    }
    all
}

/// What a value may be, as TOML has it.
fn type_text(kind: &str, choices: &BTreeMap<String, Vec<String>>) -> String {
    let kind = kind.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')).unwrap_or(kind);
    match kind {
        "bool" => "`true`, `false`".to_owned(),
        "usize" | "u64" | "u32" => "whole number".to_owned(),
        "f64" => "number".to_owned(),
        "PathBuf" | "CacheChoice" => "path".to_owned(),
        "Targets" | "PriorCaptions" | "PresetNames" => "text or list".to_owned(),
        "Vec<String>" => "list of texts".to_owned(),
        _ if kind.starts_with("Vec<") => "list of tables".to_owned(),
        _ => choices.get(kind).map_or("text".to_owned(), |names| format!("`{}`", names.join("`, `"))),
    }
}

/// The settings' sources, read.
struct Sources {
    sections: BTreeMap<String, Section>,
    choices: BTreeMap<String, Vec<String>>,
}

fn write_section(text: &mut String, sources: &Sources, name: &str, path: &str, defaults: &toml::Table) {
    let all = &sources.sections;
    let section = &all[name];
    if !path.is_empty() {
        let comment = section.comment.split_once(": ").map_or(section.comment.as_str(), |(_, rest)| rest);
        writeln!(text, "\n## `[{path}]`\n\n{}{}\n", comment[..1].to_uppercase(), &comment[1..]).unwrap();
    }
    let (tables, values): (Vec<_>, Vec<_>) = section.fields.iter().partition(|(_, kind, _)| all.contains_key(kind));
    if !values.is_empty() {
        text.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    }
    for (field, kind, comment) in values {
        let default = defaults.get(field).map_or("unset".to_owned(), |value| format!("`{value}`"));
        let kind = type_text(kind, &sources.choices);
        writeln!(text, "| `{field}` | {kind} | {default} | {comment} |").unwrap();
    }
    for (field, kind, _) in tables {
        let below = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        let empty = toml::Table::new();
        let defaults = defaults.get(field).and_then(toml::Value::as_table).unwrap_or(&empty);
        write_section(text, sources, kind, &below, defaults);
    }
}

#[test]
fn the_reference_of_the_settings_is_current() {
    let sources = [
        include_str!("../src/config/mod.rs"),
        include_str!("../src/config/data.rs"),
        include_str!("../src/config/lora.rs"),
        include_str!("../src/config/objective.rs"),
        include_str!("../src/config/optimizer.rs"),
        include_str!("../src/config/run.rs"),
    ];
    let choices: BTreeMap<String, Vec<String>> = sources.into_iter().flat_map(choices).collect();
    assert_eq!(choices["LossKind"], ["l2", "l1", "huber", "smooth-l1"], "as serde spells them");
    let sources = Sources { sections: sources.into_iter().flat_map(sections).collect(), choices };
    let defaults = toml::Table::try_from(TrainConfig::default()).unwrap();
    let mut text = String::from(
        "# Settings\n\nEvery key of a configuration file, and of `--set`: `--set lora.rank=8` is `rank = 8` under `[lora]`. \
         Made from the types by the test `config_reference`.\n\n",
    );
    write_section(&mut text, &sources, "TrainConfig", "", &defaults);
    for key in ["`rank`", "`final_ratio`", "`[lora.text_encoder]`", "`0.01`"] {
        assert!(text.contains(key), "{key} is missing:\n{text}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/config.md");
    if std::env::var_os("LORALEI_WRITE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        loralei_adapter::atomic_write_bytes(&path, text.as_bytes()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/reference/config.md is not current; see the head of this test");
}

//! `docs/reference/config.md` is made from the types: the sections and keys of `src/config.rs` and `src/data_config.rs` with their comments, and
//! the defaults. `LORALEI_WRITE_REFERENCE=1 cargo test -p loralei-trainer --test config_reference` writes it anew.
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

fn write_section(text: &mut String, all: &BTreeMap<String, Section>, name: &str, path: &str, defaults: &toml::Table) {
    let section = &all[name];
    if !path.is_empty() {
        let comment = section.comment.split_once(": ").map_or(section.comment.as_str(), |(_, rest)| rest);
        writeln!(text, "\n## `[{path}]`\n\n{}{}\n", comment[..1].to_uppercase(), &comment[1..]).unwrap();
    }
    let (tables, values): (Vec<_>, Vec<_>) = section.fields.iter().partition(|(_, kind, _)| all.contains_key(kind));
    if !values.is_empty() {
        text.push_str("| key | default | meaning |\n|---|---|---|\n");
    }
    for (field, _, comment) in values {
        let default = defaults.get(field).map_or("unset".to_owned(), |value| format!("`{value}`"));
        writeln!(text, "| `{field}` | {default} | {comment} |").unwrap();
    }
    for (field, kind, _) in tables {
        let below = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        let empty = toml::Table::new();
        let defaults = defaults.get(field).and_then(toml::Value::as_table).unwrap_or(&empty);
        write_section(text, all, kind, &below, defaults);
    }
}

#[test]
fn the_reference_of_the_settings_is_current() {
    let mut all = sections(include_str!("../src/config.rs"));
    all.extend(sections(include_str!("../src/data_config.rs")));
    let defaults = toml::Table::try_from(TrainConfig::default()).unwrap();
    let mut text = String::from(
        "# Settings\n\nEvery key of a configuration file, and of `--set`: `--set lora.rank=8` is `rank = 8` under `[lora]`. \
         Made from the types by the test `config_reference`.\n\n",
    );
    write_section(&mut text, &all, "TrainConfig", "", &defaults);
    for key in ["`rank`", "`final_ratio`", "`[lora.text_encoder]`", "`0.0001`"] {
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

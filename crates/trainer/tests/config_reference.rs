//! `docs/reference/config.md` is made from the comments and the defaults of the settings' types.
//!
//! `LORALEI_WRITE_REFERENCE=1 cargo test -p loralei-trainer --test config_reference` writes it again.

use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;

use loralei_trainer::TrainConfig;

const SOURCE: &str = include_str!("../src/config.rs");

const HEAD: &str = "# Settings\n
Made from the types in `crates/trainer/src/config.rs`; the test `config_reference` writes it.\n
A run's settings are the built-in defaults below, a preset, a TOML file and `--set key=value`, each stronger than the one
before. Relative paths, those inside a file too, are relative to the current directory. The settings that a run used are
written beside its result.\n";

struct Field {
    name: String,
    kind: String,
    text: String,
}

/// The comments and fields of the struct `name`.
fn fields(name: &str) -> Vec<Field> {
    let (_, body) = SOURCE.split_once(&format!("pub struct {name} {{\n")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let (mut found, mut text) = (Vec::new(), String::new());
    for line in body.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            text.push_str(comment);
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|field| field.split_once(": ")) {
            let text = std::mem::take(&mut text).trim().to_string();
            found.push(Field { name: name.to_string(), kind: kind.trim_end_matches(',').to_string(), text });
        }
    }
    assert!(!found.is_empty(), "{name}");
    found
}

/// A Rust type in the words of TOML.
fn toml_type(kind: &str) -> &'static str {
    match kind.trim_start_matches("Option<").trim_end_matches('>') {
        "String" => "text",
        "PathBuf" => "path",
        "usize" | "u64" => "whole number",
        "f64" => "number",
        "Targets" => "name or list",
        "Dtype" | "DeviceKind" | "ScheduleKind" | "Checkpointing" => "name",
        other => panic!("{other} has no words yet"),
    }
}

fn write_section(section: &str, struct_name: &str, default: &toml::Table, page: &mut String) {
    let (inner, values): (Vec<_>, Vec<_>) = fields(struct_name).into_iter().partition(|f| f.kind.ends_with("Config"));
    if !section.is_empty() {
        write!(page, "\n## `[{section}]`\n").unwrap();
    }
    page.push_str("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for Field { name, kind, text } in values {
        let value = default.get(&name).map_or("unset".to_string(), |value| format!("`{value}`"));
        writeln!(page, "| `{name}` | {} | {value} | {text} |", toml_type(&kind)).unwrap();
    }
    for Field { name, kind, .. } in inner {
        let key = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        write_section(&key, &kind, default[&name].as_table().unwrap(), page);
    }
}

#[test]
fn the_reference_is_made_from_the_types() {
    let default = toml::Table::try_from(TrainConfig::default()).unwrap();
    let mut page = HEAD.to_string();
    write_section("", "TrainConfig", &default, &mut page);

    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/config.md");
    if std::env::var_os("LORALEI_WRITE_REFERENCE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path).unwrap();
        file.write_all(page.as_bytes()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(
        found == page,
        "docs/reference/config.md is out of date: set LORALEI_WRITE_REFERENCE=1 and run this test again"
    );
}

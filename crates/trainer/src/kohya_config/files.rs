//! The two kinds of files: a table of data sets, and options in any section.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::KohyaConfigError;
use crate::config::one_line;

/// What the files hold.
#[derive(Default)]
pub(super) struct Files {
    /// The options of a `config_file`, without its sections, if there is one.
    pub(super) arguments: Option<Table>,
    /// A `dataset_config`.
    pub(super) datasets: Option<Table>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Files, KohyaConfigError> {
    let mut arguments: Option<(&PathBuf, Table)> = None;
    let mut datasets: Option<(&PathBuf, Table)> = None;
    for path in paths {
        let table = table(path)?;
        let is_datasets = table.contains_key("datasets");
        let (kept, kind) =
            if is_datasets { (&mut datasets, "a --dataset_config") } else { (&mut arguments, "a --config_file") };
        if let Some((first, _)) = kept {
            return Err(KohyaConfigError::Twice { first: first.clone(), second: path.clone(), kind });
        }
        *kept = Some((path, table));
    }
    let mut flat = Table::new();
    let options_file = arguments.as_ref().map(|(path, _)| (*path).clone());
    for (key, value) in arguments.into_iter().flat_map(|(_, table)| table) {
        match value {
            // kohya leaves the names of sections aside.
            Value::Table(section) => flat.extend(section),
            _ => drop(flat.insert(key, value)),
        }
    }
    let datasets = match datasets {
        Some((path, table)) => Some(with_lists(path, table)?),
        None => match (flat.get("dataset_config").and_then(Value::as_str), &options_file) {
            (Some(named), Some(options_file)) if !named.trim().is_empty() => {
                let path = found(named, options_file);
                Some(with_lists(&path, table(&path)?)?)
            }
            _ => None,
        },
    };
    if datasets.is_some() {
        flat.remove("dataset_config");
    }
    Ok(Files { arguments: options_file.map(|_| flat), datasets })
}

/// Where a file named in another is: from here, as kohya takes it, or beside that one.
fn found(named: &str, beside: &Path) -> PathBuf {
    let path = PathBuf::from(named);
    let sibling = beside.with_file_name(path.file_name().unwrap_or_default());
    if !path.exists() && sibling.is_file() { sibling } else { path }
}

fn table(path: &Path) -> Result<Table, KohyaConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| KohyaConfigError::Read { path: path.to_owned(), source })?;
    let syntax = |message: &str| KohyaConfigError::Syntax { path: path.to_owned(), message: one_line(message) };
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
        return toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
            syntax(&format!("line {line}: {}", error.message()))
        });
    }
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| syntax(&error.to_string()))?;
    match Value::try_from(without_nulls(json)) {
        Ok(Value::Table(table)) => Ok(table),
        Ok(_) => Err(syntax("is not an object")),
        Err(error) => Err(syntax(&error.to_string())),
    }
}

/// TOML has no null: what is null is not set.
fn without_nulls(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value::{Array, Object};
    match json {
        Object(fields) => Object(
            fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(key, value)| (key, without_nulls(value))).collect(),
        ),
        Array(list) => Array(list.into_iter().filter(|v| !v.is_null()).map(without_nulls).collect()),
        other => other,
    }
}

/// Checks that `datasets` and their `subsets` are lists of tables.
fn with_lists(path: &Path, table: Table) -> Result<Table, KohyaConfigError> {
    let wrong = |key| KohyaConfigError::NoTables { path: path.to_owned(), key };
    let is_list = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_table));
    let datasets = table.get("datasets").filter(|value| is_list(value)).ok_or_else(|| wrong("datasets"))?;
    for dataset in datasets.as_array().into_iter().flatten() {
        if !dataset.get("subsets").is_none_or(is_list) {
            return Err(wrong("subsets"));
        }
    }
    if !table.get("general").is_none_or(Value::is_table) {
        return Err(wrong("general"));
    }
    Ok(table)
}

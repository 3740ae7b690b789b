//! kohya's options by name, each asked for once. Its GUI writes numbers as text, and every option with its off value.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Options that nothing has asked for yet.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    values: BTreeMap<String, Value>,
    wrong: Vec<(String, Value, String)>,
}

impl Arguments {
    pub(super) fn new(table: Table) -> Self {
        Self { values: table.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A value that is not off.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).filter(|value| !is_off(value))
    }

    /// A value as it is.
    pub(super) fn raw(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key)
    }

    /// A number that others may still ask for.
    pub(super) fn peek_number(&self, key: &str) -> Option<f64> {
        self.values.get(key).and_then(number)
    }

    /// Whether an option is there and true, which others may still ask.
    pub(super) fn peek_flag(&self, key: &str) -> bool {
        self.values.get(key).and_then(flag) == Some(true)
    }

    /// A number, 0 too.
    pub(super) fn number(&mut self, key: &str) -> Option<f64> {
        self.checked(key, "is not a number", number)
    }

    /// A number from 0 without a fraction.
    pub(super) fn count(&mut self, key: &str) -> Option<i64> {
        let whole = |value: &Value| number(value).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as i64);
        self.checked(key, "is not a whole number", whole)
    }

    /// Text that is not empty.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.values.get(key).filter(|value| !is_off(value) || value.is_str())?;
        self.checked(key, "is not text", |value| value.as_str().map(str::to_owned))
    }

    /// Whether an option is there and true.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.checked(key, "is neither true nor false", flag).unwrap_or(false)
    }

    /// `key=value` texts, as `optimizer_args` and `network_args` hold them: in a list, or one text with spaces between.
    pub(super) fn pairs(&mut self, key: &str) -> Vec<(String, String)> {
        let texts: Vec<String> = match self.take(key) {
            Some(Value::Array(list)) => list.iter().map(text_of).collect(),
            Some(value) => text_of(&value).split_whitespace().map(str::to_owned).collect(),
            None => Vec::new(),
        };
        let pair = |text: &String| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.trim().to_owned(), value.trim().trim_matches(['"', '\'']).to_owned())
        };
        texts.iter().map(pair).collect()
    }

    fn checked<T>(&mut self, key: &str, problem: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.values.remove(key)?;
        if matches!(&value, Value::String(text) if text.trim().is_empty()) {
            return None;
        }
        let found = read(&value);
        if found.is_none() {
            self.wrong.push((key.to_owned(), value, problem.to_owned()));
        }
        found
    }

    /// Options of a wrong type.
    pub(super) fn wrong(&mut self) -> Vec<(String, Value, String)> {
        std::mem::take(&mut self.wrong)
    }

    /// Everything else, but what is off.
    pub(super) fn rest(&mut self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.values).into_iter().filter(|(_, value)| !is_off(value)).collect()
    }
}

/// Whether a value says nothing: `false`, 0, or nothing.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Boolean(flag) => !flag,
        Value::Integer(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => ["", "0", "false", "no", "none"].contains(&text.trim().to_lowercase().as_str()),
        Value::Array(list) => list.is_empty(),
        Value::Table(table) => table.is_empty(),
        Value::Datetime(_) => false,
    }
}

/// A number, or text that is one.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number| number.is_finite())
}

/// `true` or `false`, as TOML has them, as text or as 1 and 0.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Boolean(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::Integer(1) => Some(true),
        _ => is_off(value).then_some(false),
    }
}

/// Numbers of a Python literal: `0.9,0.99`, `(0.9, 0.99)`, `[1, 2]`.
pub(super) fn numbers(text: &str) -> Option<Vec<f64>> {
    let inner = text.trim().trim_matches(['(', ')', '[', ']']);
    inner.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

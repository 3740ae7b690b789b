//! The file that is made of the settings, each with a comment.

use std::fmt::Write as _;

use super::{Carried, LeftOut};
use crate::config::{config_keys, one_line, value_text};

/// The settings in the order of the reference, then the sources.
pub(super) fn body(names: &str, settings: &[Carried], sources: &[Vec<Carried>]) -> String {
    let mut text = format!(
        "# From {} of kohya's trainer. `loralei train THIS --print-config` shows every setting.\n",
        one_line(names)
    );
    let mut section = "";
    for key in config_keys() {
        let Some(carried) = settings.iter().find(|carried| carried.key == *key) else { continue };
        let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
        if parent != section {
            let _ = writeln!(text, "\n[{parent}]");
            section = parent;
        }
        line(&mut text, name, carried);
    }
    for source in sources {
        text.push_str("\n[[data.sources]]\n");
        source.iter().for_each(|carried| line(&mut text, carried.key, carried));
    }
    text
}

fn line(text: &mut String, name: &str, carried: &Carried) {
    let _ = writeln!(text, "{name} = {}  # {}", value_text(&carried.value), one_line(&carried.from));
}

/// What the file does not say, as comments at its end.
pub(super) fn lists(left_out: &[LeftOut], warnings: &[String]) -> String {
    let mut text = String::new();
    if !warnings.is_empty() {
        text.push_str("\n# What differs from kohya's trainer:\n");
    }
    for warning in warnings {
        let _ = writeln!(text, "# - {}", one_line(warning));
    }
    if !left_out.is_empty() {
        text.push_str("\n# Not carried over, besides what is off:\n");
    }
    for LeftOut { key, value, reason } in left_out {
        let _ = writeln!(text, "# - {}", one_line(&format!("{key} = {value}: {reason}")));
    }
    text
}

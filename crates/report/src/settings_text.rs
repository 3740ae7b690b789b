//! `run.toml` as the page shows it: sections, keys, values, and where a value came from if it is not the default.

/// The settings of a run in the order of their file.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings(pub Vec<Section>);

/// A table of the file; the first may have no name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Section {
    pub name: String,
    pub entries: Vec<Entry>,
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub key: String,
    /// As it stands in the file.
    pub value: String,
    /// The comment behind the value: the trainer writes one behind every value that is not at its default.
    pub origin: Option<String>,
}

impl Settings {
    /// Reads the lines of a `run.toml`. Nothing is lost: what is no key and no section continues the value before it.
    pub(crate) fn of(text: &str) -> Self {
        let mut sections = vec![Section::default()];
        for line in text.lines() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (code, comment) = split_comment(line);
            if code.starts_with('[') && code.ends_with(']') && !code.contains('=') {
                let name = code.trim_matches(['[', ']']).to_owned();
                sections.push(Section { name, entries: Vec::new() });
                continue;
            }
            let Some(section) = sections.last_mut() else { continue };
            let is_key = |key: &str| key.chars().all(|char| char.is_ascii_alphanumeric() || "-_.\"".contains(char));
            match (code.split_once(" = "), section.entries.last_mut()) {
                (Some((key, value)), _) if is_key(key) => {
                    let (key, value) = (key.to_owned(), value.to_owned());
                    section.entries.push(Entry { key, value, origin: comment.map(str::to_owned) });
                }
                (_, Some(entry)) => {
                    entry.value.push('\n');
                    entry.value.push_str(code);
                    entry.origin = entry.origin.take().or(comment.map(str::to_owned));
                }
                (_, None) => {
                    section.entries.push(Entry { key: String::new(), value: code.to_owned(), origin: None });
                }
            }
        }
        sections.retain(|section| !section.name.is_empty() || !section.entries.is_empty());
        Self(sections)
    }

    /// The value of a key, without the quotes of a plain string.
    pub(crate) fn value(&self, section: &str, key: &str) -> Option<&str> {
        let section = self.0.iter().find(|candidate| candidate.name == section)?;
        let value = section.entries.iter().find(|entry| entry.key == key)?.value.as_str();
        Some(value.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(value))
    }
}

/// A line's code and its comment: a `#` within quotes begins none.
fn split_comment(line: &str) -> (&str, Option<&str>) {
    let mut quote = None;
    let mut is_escaped = false;
    for (index, char) in line.char_indices() {
        match (quote, char) {
            _ if is_escaped => is_escaped = false,
            (Some('"'), '\\') => is_escaped = true,
            (Some(open), char) if char == open => quote = None,
            (None, '"' | '\'') => quote = Some(char),
            (None, '#') => return (line[..index].trim_end(), Some(line[index + 1..].trim())),
            _ => {}
        }
    }
    (line, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_quotes_and_hashes_and_tell_their_origin() {
        let text = "[model]\nbase = \"sd # 1.5 \\\" #\"  # --set\ntf32 = false\n\n[lora.unet]\nblocks = [\n  \"a\", # first\n]\n";
        let Settings(sections) = Settings::of(text);
        assert_eq!(sections.len(), 2);
        let entry = |key: &str, value: &str, origin: Option<&str>| Entry {
            key: key.to_owned(),
            value: value.to_owned(),
            origin: origin.map(str::to_owned),
        };
        assert_eq!(
            sections[0].entries,
            [entry("base", "\"sd # 1.5 \\\" #\"", Some("--set")), entry("tf32", "false", None)]
        );
        assert_eq!(sections[1].name, "lora.unet");
        assert_eq!(sections[1].entries, [entry("blocks", "[\n  \"a\",\n]", Some("first"))]);
        assert_eq!(Settings(sections).value("model", "tf32"), Some("false"));
    }
}

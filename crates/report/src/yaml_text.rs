//! Text as a YAML scalar (YAML 1.2, chapter 7).

/// `text` in double quotes, with everything escaped that YAML could take for something else. JSON's strings are YAML's, but
/// for DEL, C1 controls and the line ends that Unicode knows beside line feed: those are escaped too.
pub(crate) fn quoted(text: &str) -> String {
    use std::fmt::Write as _;

    let mut yaml = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => yaml.push_str("\\\""),
            '\\' => yaml.push_str("\\\\"),
            '\n' => yaml.push_str("\\n"),
            '\r' => yaml.push_str("\\r"),
            '\t' => yaml.push_str("\\t"),
            // Not printable by production [1], or a line break to old readers. Writing to a String cannot fail.
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                let _ = write!(yaml, "\\u{:04x}", u32::from(char));
            }
            char => yaml.push(char),
        }
    }
    yaml.push('"');
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_colons_newlines_and_unicode_are_escaped_or_kept() {
        assert_eq!(quoted("photo of \"sks\": a dog # 1"), r#""photo of \"sks\": a dog # 1""#);
        assert_eq!(quoted("a\\b\nc\td\r"), r#""a\\b\nc\td\r""#);
        assert_eq!(quoted("übergroß 🐙 \u{85}\u{2028}\u{0}"), "\"übergroß 🐙 \\u0085\\u2028\\u0000\"");
        assert_eq!(quoted(""), "\"\"");
    }
}

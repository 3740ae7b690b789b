//! Wildcards: `a {red|green|} ball` is one of three captions, drawn anew each time.
//!
//! As in kohya, `{one}` is `one`, `{}` stays, and doubled braces `{{text}}` are braces to be kept. Beyond kohya, choices
//! may be nested, and a brace without a partner is text. A doubled pair is one whose inner pair fills the outer one: as
//! a choice it would make no sense.

use crate::Stream;

/// `text` with each choice made.
pub fn expand(text: &str, draw: &mut Stream) -> String {
    expand_by(text, |options| draw.below(options.ends.len() as u64) as usize)
}

/// Whether `text` holds a choice between different things.
pub fn has_choice(text: &str) -> bool {
    let mut found = false;
    expand_by(text, |options| {
        // Inner choices were taken at their first option; if they matter, they were found when they were closed.
        found |= (1..options.ends.len()).any(|index| options.get(index) != options.get(0));
        0
    });
    found
}

/// The options of one choice, inner choices made.
struct Options<'a> {
    text: &'a str,
    start: usize,
    ends: &'a [usize],
}

impl Options<'_> {
    fn get(&self, index: usize) -> &str {
        let start = if index == 0 { self.start } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }
}

/// An open brace: where its text starts in the result, and where its options end.
enum Group {
    Choice { start: usize, bars: Vec<usize> },
    Kept,
}

fn expand_by(text: &str, mut choose: impl FnMut(Options<'_>) -> usize) -> String {
    let partners = partners(text);
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut open: Vec<Group> = Vec::new();
    let mut rest = text.char_indices();
    while let Some((at, c)) = rest.next() {
        match (c, partners[at]) {
            ('{', Some(end)) if end == at + 1 => {
                out.push_str("{}");
                rest.next();
            }
            ('{', Some(end)) if bytes[at + 1] == b'{' && partners[at + 1] == Some(end - 1) => {
                open.push(Group::Kept);
                out.push('{');
                rest.next();
            }
            ('{', Some(_)) => open.push(Group::Choice { start: out.len(), bars: Vec::new() }),
            ('}', Some(_)) => {
                if let Some(Group::Choice { start, mut bars }) = open.pop() {
                    bars.push(out.len());
                    let chosen = choose(Options { text: &out, start, ends: &bars });
                    let from = if chosen == 0 { start } else { bars[chosen - 1] };
                    out.truncate(bars[chosen]);
                    out.replace_range(start..from, "");
                } else {
                    out.push('}');
                    rest.next(); // the second of the pair
                }
            }
            ('|', _) => match open.last_mut() {
                Some(Group::Choice { bars, .. }) => bars.push(out.len()),
                _ => out.push('|'),
            },
            _ => out.push(c),
        }
    }
    out
}

/// For each byte, where the brace that it is paired with is.
fn partners(text: &str) -> Vec<Option<usize>> {
    let mut partners = vec![None; text.len()];
    let mut open = Vec::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open.push(at),
            b'}' => {
                if let Some(start) = open.pop() {
                    (partners[start], partners[at]) = (Some(at), Some(start));
                }
            }
            _ => {}
        }
    }
    partners
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Purpose, Showing};

    /// All that can come of `text`.
    fn all(text: &str) -> BTreeSet<String> {
        let mut draw = Stream::new(1, 0, Showing::default(), Purpose::Caption);
        (0..500).map(|_| expand(text, &mut draw)).collect()
    }

    #[track_caller]
    fn assert_all<const N: usize>(text: &str, expected: [&str; N]) {
        assert_eq!(all(text), expected.map(str::to_owned).into(), "{text}");
        assert_eq!(has_choice(text), N > 1, "{text}");
    }

    #[test]
    fn each_choice_is_made_for_itself() {
        assert_all("a {red|green} ball", ["a red ball", "a green ball"]);
        assert_all("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]);
        assert_all("a {big |}ball", ["a big ball", "a ball"]);
        assert_all("{\u{e9}t\u{e9}|\u{1f419}}", ["\u{e9}t\u{e9}", "\u{1f419}"]);
        assert_all("{a|b|a}", ["a", "b"]);
        assert_all("{a|{b|a}}", ["a", "b"]);
    }

    #[test]
    fn choices_may_be_nested() {
        assert_all("{a|{b|c} d}", ["a", "b d", "c d"]);
        assert_all("{{a|b}|c}", ["a", "b", "c"]);
        assert_all("x{ {a|b}}", ["x a", "x b"]);
    }

    #[test]
    fn what_is_no_choice_is_kept_as_kohya_keeps_it() {
        assert_all("{one}", ["one"]);
        assert_all("{}", ["{}"]);
        assert_all("{{a|b}}", ["{a|b}"]);
        assert_all("{{{a|b}}}", ["{a}", "{b}"]);
        assert_all("{{x {a|b}}}", ["{x a}", "{x b}"]);
        assert_all("a|b", ["a|b"]);
        assert_all("{a|a}", ["a"]);
    }

    #[test]
    fn braces_without_a_partner_are_text() {
        assert_all("{a|b", ["{a|b"]);
        assert_all("a|b}", ["a|b}"]);
        assert_all("}{", ["}{"]);
        assert_all("{x {a|b}", ["{x a", "{x b"]);
        assert_all("{a|b}}", ["a}", "b}"]);
    }

    #[test]
    fn options_are_drawn_equally_often() {
        let mut draw = Stream::new(2, 0, Showing::default(), Purpose::Caption);
        let num = (0..3_000).filter(|_| expand("{a|b|c}", &mut draw) == "b").count();
        assert!((900..=1_100).contains(&num), "{num}"); // 1000 expected, standard deviation 26
    }

    #[test]
    fn a_caption_of_nothing_but_braces_needs_neither_stack_nor_patience() {
        let deep = format!("{}{}", "{|".repeat(16_000), "}".repeat(16_000));
        assert_eq!(expand(&deep, &mut Stream::new(1, 0, Showing::default(), Purpose::Caption)), "");
        assert!(!has_choice(&deep));
        assert_eq!(expand_by(&"{".repeat(64_000), |_| 0).len(), 64_000);
    }
}

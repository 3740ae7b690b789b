//! A prompt with weights, as A1111's users write it: `(word)` is 1.1 times as strong, `[word]` 1/1.1 times, `(word:1.3)`
//! 1.3 times; brackets nest; `\(` is a bracket of the text; `BREAK` begins a new chunk of 75 tokens.

/// A stretch of a prompt with one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedText {
    /// Text without the brackets.
    pub text: String,
    /// 1 is as strong as plain text.
    pub weight: f64,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum PromptPart {
    /// Text.
    Text(WeightedText),
    /// The chunk ends here.
    Break,
}

const STRONGER: f64 = 1.1;

/// Takes a prompt apart. Every text has a reading: a bracket that is never closed weighs to the end, one that was never
/// opened is text.
pub fn parse_prompt(prompt: &str) -> Vec<PromptPart> {
    let mut parser = Parser { pieces: Vec::new(), open: Vec::new() };
    parser.read(prompt);
    while let Some((_, start)) = parser.open.last().copied() {
        let weight = parser.default_weight();
        parser.close(start, weight);
    }
    merged(parser.pieces)
}

struct Parser {
    pieces: Vec<WeightedText>,
    /// Brackets that are open: which, and the number of pieces before it.
    open: Vec<(char, usize)>,
}

impl Parser {
    fn read(&mut self, prompt: &str) {
        let mut rest = prompt;
        while let Some(first) = rest.chars().next() {
            let mut taken = first.len_utf8();
            match first {
                '\\' => {
                    let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                    self.text(&escaped.unwrap_or('\\').to_string());
                    taken = 1 + escaped.map_or(0, char::len_utf8);
                }
                '(' | '[' => self.open.push((first, self.pieces.len())),
                ')' if self.is_open('(') => self.close_last(),
                ']' if self.is_open('[') => self.close_last(),
                ':' if self.is_open('(') && explicit_weight(rest).is_some() => {
                    if let (Some((weight, length)), Some((_, start))) =
                        (explicit_weight(rest), self.open.last().copied())
                    {
                        self.close(start, weight);
                        taken = length;
                    }
                }
                _ => self.text(&rest[..taken]),
            }
            rest = &rest[taken..];
        }
    }

    /// Adds to the piece at the end, unless a bracket was opened since.
    fn text(&mut self, text: &str) {
        let starts_here = self.open.last().is_some_and(|(_, start)| *start == self.pieces.len());
        match self.pieces.last_mut().filter(|piece| !starts_here && piece.weight == 1.0) {
            Some(piece) => piece.text.push_str(text),
            None => self.pieces.push(WeightedText { text: text.to_owned(), weight: 1.0 }),
        }
    }

    fn is_open(&self, bracket: char) -> bool {
        self.open.last().is_some_and(|(open, _)| *open == bracket)
    }

    fn default_weight(&self) -> f64 {
        if self.is_open('(') { STRONGER } else { 1.0 / STRONGER }
    }

    fn close_last(&mut self) {
        if let Some((_, start)) = self.open.last().copied() {
            self.close(start, self.default_weight());
        }
    }

    fn close(&mut self, start: usize, weight: f64) {
        self.open.pop();
        self.pieces[start..].iter_mut().for_each(|piece| piece.weight *= weight);
        // What follows must not be added to a weighted piece, even if weights happen to multiply to 1.
        self.pieces.push(WeightedText { text: String::new(), weight: 1.0 });
    }
}

/// `:1.3)` at the start of `text`: the weight, and how many bytes that is.
fn explicit_weight(text: &str) -> Option<(f64, usize)> {
    let end = text.find(')')?;
    let weight: f64 = text[1..end].trim().parse().ok()?;
    weight.is_finite().then_some((weight, end + 1))
}

/// Breaks taken out, neighbours of one weight joined, empty pieces dropped.
fn merged(pieces: Vec<WeightedText>) -> Vec<PromptPart> {
    let mut parts: Vec<PromptPart> = Vec::new();
    for piece in pieces {
        for (i, text) in split_at_breaks(&piece.text).into_iter().enumerate() {
            if i > 0 {
                parts.push(PromptPart::Break);
            }
            match parts.last_mut() {
                _ if text.is_empty() => {}
                Some(PromptPart::Text(last)) if last.weight == piece.weight => last.text.push_str(text),
                _ => parts.push(PromptPart::Text(WeightedText { text: text.to_owned(), weight: piece.weight })),
            }
        }
    }
    parts
}

/// At the word BREAK in capitals, with the white space around it.
fn split_at_breaks(text: &str) -> Vec<&str> {
    let is_word = |start: usize, end: usize| {
        let outside = |c: Option<char>| c.is_none_or(char::is_whitespace);
        outside(text[..start].chars().next_back()) && outside(text[end..].chars().next())
    };
    let mut parts = Vec::new();
    let mut begin = 0;
    for (start, word) in text.match_indices("BREAK") {
        if is_word(start, start + word.len()) {
            parts.push(text[begin..start].trim_end());
            begin = start + word.len();
        }
    }
    parts.push(if begin > 0 { text[begin..].trim_start() } else { text });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(prompt: &str) -> Vec<(String, f64)> {
        parse_prompt(prompt)
            .into_iter()
            .map(|part| match part {
                PromptPart::Text(piece) => (piece.text, (piece.weight * 1000.0).round() / 1000.0),
                PromptPart::Break => ("BREAK".to_owned(), -1.0),
            })
            .collect()
    }

    fn expect(prompt: &str, expected: &[(&str, f64)]) {
        let expected: Vec<_> = expected.iter().map(|(text, weight)| ((*text).to_owned(), *weight)).collect();
        assert_eq!(texts(prompt), expected, "{prompt}");
    }

    #[test]
    fn brackets_weigh_what_is_in_them() {
        expect("a red fox", &[("a red fox", 1.0)]);
        expect("a (red) fox", &[("a ", 1.0), ("red", 1.1), (" fox", 1.0)]);
        expect("a [red] fox", &[("a ", 1.0), ("red", 0.909), (" fox", 1.0)]);
        expect("a (red:1.3) fox", &[("a ", 1.0), ("red", 1.3), (" fox", 1.0)]);
        expect("(red:-0.5)(blue: 2 )", &[("red", -0.5), ("blue", 2.0)]);
    }

    #[test]
    fn nested_brackets_multiply() {
        expect("((a) b [c])", &[("a", 1.21), (" b ", 1.1), ("c", 1.0)]);
        expect("(a (b:1.5) c:2)", &[("a ", 2.0), ("b", 3.0), (" c", 2.0)]);
    }

    #[test]
    fn every_text_has_a_reading() {
        expect(r"a \(b\) \[c\] \\d", &[(r"a (b) [c] \d", 1.0)]);
        expect("a) b] c", &[("a) b] c", 1.0)]);
        expect("a (b", &[("a ", 1.0), ("b", 1.1)]);
        expect("a: b (c: d)", &[("a: b ", 1.0), ("c: d", 1.1)]);
        expect("(a:b:1.2)", &[("a:b", 1.2)]);
        expect("()(:1.2)", &[]);
        expect("(\u{e9}t\u{e9}:1.2)", &[("\u{e9}t\u{e9}", 1.2)]);
        expect("", &[]);
    }

    #[test]
    fn break_in_capitals_ends_a_chunk() {
        expect("a fox BREAK in snow", &[("a fox", 1.0), ("BREAK", -1.0), ("in snow", 1.0)]);
        expect("BREAKFAST, break", &[("BREAKFAST, break", 1.0)]);
    }
}

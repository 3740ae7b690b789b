//! Words on a picture: a bitmap font of one width (Noto Sans Mono, basic Latin and Latin-1), lines cut to a width.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width};

use crate::Picture;

/// What a line that was cut ends in.
const ELLIPSIS: &str = "...";

/// Height of the letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LetterSize {
    /// Lines of 20 px, 9 px a character: labels.
    Small,
    /// Lines of 32 px, 14 px a character: titles, and labels of large pictures.
    Large,
}

impl LetterSize {
    fn raster(self) -> RasterHeight {
        match self {
            Self::Small => RasterHeight::Size20,
            Self::Large => RasterHeight::Size32,
        }
    }

    /// Height of a line.
    pub(crate) fn line_px(self) -> u32 {
        self.raster().val() as u32
    }

    /// Width of every character.
    pub(crate) fn char_px(self) -> u32 {
        get_raster_width(FontWeight::Regular, self.raster()) as u32
    }
}

/// `text` in at most `max_lines` lines of at most `width_chars` characters, broken between words where that is
/// possible; what does not fit is left out, and the last line says so with dots. White space, line breaks too, counts
/// as one space. An empty text has no lines.
pub(crate) fn wrap(text: &str, width_chars: usize, max_lines: usize) -> Vec<String> {
    let width_chars = width_chars.max(ELLIPSIS.len() + 1);
    let mut lines: Vec<Vec<char>> = Vec::new();
    for word in text.split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width_chars => {
                line.push(' ');
                line.extend(word);
            }
            // A word longer than a line is broken anywhere.
            _ => lines.extend(word.chunks(width_chars).map(<[char]>::to_vec)),
        }
        if lines.len() > max_lines {
            break;
        }
    }
    let is_cut = lines.len() > max_lines;
    lines.truncate(max_lines);
    if let Some(last) = lines.last_mut().filter(|_| is_cut) {
        last.truncate(width_chars - ELLIPSIS.len());
        while last.last().is_some_and(|char| char.is_whitespace() || matches!(char, ',' | '.' | ':' | ';')) {
            last.pop();
        }
        last.extend(ELLIPSIS.chars());
    }
    lines.into_iter().map(String::from_iter).collect()
}

impl Picture {
    /// Draws one line with its top left corner at (`x_px`, `y_px`), blended into what is there. A character that the
    /// font lacks becomes `?`; what would lie outside the picture is not drawn.
    pub(crate) fn letter(&mut self, text: &str, x_px: u32, y_px: u32, size: LetterSize, colour: [u8; 3]) {
        let mut left_px = x_px;
        for char in text.chars() {
            let glyph = get_raster(char, FontWeight::Regular, size.raster())
                .or_else(|| get_raster('?', FontWeight::Regular, size.raster()));
            for (row, y) in glyph.iter().flat_map(RasterizedChar::rows).zip(y_px..) {
                for (&ink, x) in row.iter().zip(left_px..) {
                    self.blend(x, y, colour, ink);
                }
            }
            left_px = left_px.saturating_add(size.char_px());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_words_longer_than_a_line_anywhere() {
        assert_eq!(wrap("a red  octopus\non a beach", 9, 9), ["a red", "octopus", "on a", "beach"]);
        assert_eq!(wrap("an octopodidae", 6, 9), ["an", "octopo", "didae"]);
        assert_eq!(wrap(" \n", 6, 9), Vec::<String>::new());
    }

    #[test]
    fn what_does_not_fit_ends_in_dots_within_the_width() {
        assert_eq!(wrap("one two three four", 8, 2), ["one two", "three..."]);
        assert_eq!(wrap("one two, three four", 9, 1), ["one tw..."]);
        assert_eq!(wrap("ab cd", 5, 1), ["ab cd"]);
        for width in 4..20 {
            let lines = wrap("Lorem ipsum dolor sit amet consectetur adipiscing", width, 2);
            assert!(lines.len() <= 2 && lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
        }
    }
}

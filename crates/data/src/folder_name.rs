//! kohya's folder names: `10_sks dog` is 10 repeats of pictures of "sks dog".

use std::path::Path;

/// More repeats than this are not believed: `2024_holiday` is a year.
pub const MAX_REPEATS: u32 = 1_000;

/// What a folder's name says about its pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderName<'a> {
    /// Nothing.
    Plain,
    /// `N_name`.
    Repeats {
        /// N, 0 to [`MAX_REPEATS`]. With 0, kohya leaves the folder aside.
        repeats: u32,
        /// What stands after the first `_`, trimmed: the caption of pictures without one.
        words: &'a str,
    },
    /// A number before the first `_` that is too large for repeats.
    TooMany {
        /// The number as written.
        number: &'a str,
    },
}

impl<'a> FolderName<'a> {
    /// Reads the last part of a path. A number alone (`512`) says nothing: it is more often a size.
    pub fn of(folder: &'a Path) -> Self {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((number, words)) = name.split_once('_') else { return Self::Plain };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::Plain;
        }
        match number.parse() {
            Ok(repeats) if repeats <= MAX_REPEATS => Self::Repeats { repeats, words: words.trim() },
            _ => Self::TooMany { number },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_the_number_before_the_first_underscore() {
        for (name, repeats, words) in [
            ("10_sks dog", 10, "sks dog"),
            ("a/3_a_b", 3, "a_b"),
            ("0_off", 0, "off"),
            ("007_ ", 7, ""),
            ("1000_x", 1_000, "x"),
        ] {
            assert_eq!(FolderName::of(Path::new(name)), FolderName::Repeats { repeats, words }, "{name}");
        }
    }

    #[test]
    fn other_names_say_nothing() {
        for name in ["dog", "512", "_dog", "a_10", "-3_dog", "+3_dog", "1.5_dog", "3 _dog", "\u{663}_dog", "", "/"] {
            assert_eq!(FolderName::of(Path::new(name)), FolderName::Plain, "{name}");
        }
    }

    #[test]
    fn a_year_and_a_number_that_fits_nowhere_are_no_repeats() {
        for (name, number) in
            [("2024_holiday", "2024"), ("1001_x", "1001"), ("99999999999999999999_x", "99999999999999999999")]
        {
            assert_eq!(FolderName::of(Path::new(name)), FolderName::TooMany { number });
        }
    }
}

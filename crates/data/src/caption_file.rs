//! The text beside a picture: a `.txt` or `.caption` file, as lines.
//!
//! What it means is for the caption rules; here is only what a file may hold, and where it goes wrong.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::DataError;
use crate::trigger::one_line;

/// Largest caption file that is read, in bytes.
pub const MAX_CAPTION_BYTES: u64 = 64 * 1024;

/// What a caption file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptionFile {
    /// Its lines that are not empty, white space narrowed to one space.
    pub lines: Vec<String>,
    /// How many control characters were stripped.
    pub num_stripped: usize,
}

impl CaptionFile {
    /// Reads a caption file; an empty one gives no lines.
    ///
    /// # Errors
    /// The file is unreadable, larger than [`MAX_CAPTION_BYTES`] or not UTF-8.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let fail = |cause| DataError::CaptionRead { path: path.to_owned(), cause };
        let mut bytes = Vec::new();
        File::open(path).map_err(fail)?.take(MAX_CAPTION_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        if bytes.len() as u64 > MAX_CAPTION_BYTES {
            return Err(DataError::CaptionTooLong { path: path.to_owned() });
        }
        let text = utf8(&bytes).map_err(|(offset_bytes, found)| DataError::CaptionEncoding {
            path: path.to_owned(),
            offset_bytes,
            found,
        })?;
        Ok(Self::of_text(text))
    }

    /// The lines of a text that is known to be UTF-8. Lines end as in any system: LF, CR LF or CR.
    pub(crate) fn of_text(text: &str) -> Self {
        let is_stripped = |c: char| c.is_control() && !c.is_whitespace();
        let num_stripped = text.chars().filter(|&c| is_stripped(c)).count();
        let kept: Cow<'_, str> = if num_stripped == 0 { text.into() } else { text.replace(is_stripped, "").into() };
        let lines = kept.split(['\n', '\r']).map(one_line).filter(|line| !line.is_empty()).collect();
        Self { lines, num_stripped }
    }
}

/// The text of a file without its byte order mark, or where (from its start) and why it is not UTF-8.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, (usize, &'static str)> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err((0, "starts a UTF-16 text"));
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mark_bytes = bytes.len() - body.len();
    // UTF-16 without a mark: of Latin letters every other byte is a zero, of Cyrillic a four. UTF-8 would accept both.
    let is_control = |byte: &u8| matches!(byte, 0x00..=0x08 | 0x0e..=0x1f);
    if let Some(first) = body.iter().position(is_control)
        && body.iter().filter(|byte| is_control(byte)).count() * 4 > body.len()
    {
        return Err((mark_bytes + first, "is one of many control characters, as in UTF-16"));
    }
    std::str::from_utf8(body).map_err(|error| (mark_bytes + error.valid_up_to(), "is no UTF-8 character"))
}

//! What a picture's text is: the `.txt` beside it, else the run's prompt, with the trigger word in front.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::trigger::one_line;
pub use crate::trigger::with_trigger;

/// Largest caption file that is read, in bytes.
pub const MAX_CAPTION_BYTES: u64 = 64 * 1024;

/// How captions are made for a whole folder.
#[derive(Debug, Clone, Copy, Default)]
pub struct CaptionRules<'a> {
    /// Caption of every picture that has no caption file of its own, or an empty one.
    pub prompt: Option<&'a str>,
    /// Word (or words) put in front of every caption that does not contain it already.
    pub trigger: Option<&'a str>,
}

impl CaptionRules<'_> {
    /// The final caption of `image`, whose caption file is `caption_file` if it has one.
    ///
    /// # Errors
    /// The caption file is unreadable, too long or not UTF-8, or there is neither a caption nor a prompt.
    pub fn caption(&self, image: &Path, caption_file: Option<&Path>) -> Result<String, DataError> {
        let own = match caption_file {
            Some(path) => read(path)?,
            None => String::new(),
        };
        let text = if own.is_empty() {
            if let Some(path) = caption_file {
                tracing::warn!(caption = %path.display(), "empty caption file: the prompt is used instead");
            }
            one_line(self.prompt.unwrap_or_default())
        } else {
            own
        };
        if text.is_empty() {
            return Err(DataError::CaptionMissing { image: image.to_owned() });
        }
        Ok(match self.trigger {
            Some(trigger) => with_trigger(&text, trigger),
            None => text,
        })
    }
}

/// Reads a caption file as one line of text; an empty file gives an empty text.
///
/// # Errors
/// The file is unreadable, larger than [`MAX_CAPTION_BYTES`] or not UTF-8.
pub fn read(path: &Path) -> Result<String, DataError> {
    let fail = |cause| DataError::CaptionRead { path: path.to_owned(), cause };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_CAPTION_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_CAPTION_BYTES {
        return Err(DataError::CaptionTooLong { path: path.to_owned() });
    }
    let (text, num_stripped) = parse(&bytes).map_err(|(offset_bytes, found)| DataError::CaptionEncoding {
        path: PathBuf::from(path),
        offset_bytes,
        found,
    })?;
    if num_stripped > 0 {
        tracing::warn!(caption = %path.display(), num_stripped, "control characters stripped from a caption");
    }
    Ok(text)
}

/// One line of text and the number of control characters stripped from it, or where and why it is not UTF-8.
fn parse(bytes: &[u8]) -> Result<(String, usize), (usize, &'static str)> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err((0, "starts a UTF-16 text"));
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    // UTF-16 without a mark: Latin letters have a zero for every other byte, which UTF-8 would accept.
    if let Some(first) = body.iter().position(|&byte| byte == 0)
        && body.split(|&byte| byte == 0).count() * 4 > body.len()
    {
        return Err((bytes.len() - body.len() + first, "is one of many zeros, as in UTF-16"));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| (bytes.len() - body.len() + error.valid_up_to(), "is no UTF-8 character"))?;
    let is_stripped = |c: char| c.is_control() && !c.is_whitespace();
    let num_stripped = text.chars().filter(|&c| is_stripped(c)).count();
    let kept: Cow<'_, str> = if num_stripped == 0 { text.into() } else { text.replace(is_stripped, "").into() };
    Ok((one_line(&kept), num_stripped))
}

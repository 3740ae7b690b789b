//! What a picture's text is in an epoch, in the order of kohya's `process_caption` (sd-scripts), which presets assume.
//!
//! 1. A line, and the trigger in front if it lacks it.
//! 2. Prefix and suffix, with a space between.
//! 3. Dropout to the empty caption, after which nothing follows.
//! 4. Wildcards.
//! 5. Tags: some keep their place, the others are shuffled, then dropped. Only here is the text cut and joined.
//!
//! Unlike kohya, a random line is drawn before the prefix is put on (there, only the first line gets it), whether
//! wildcards are on or not; and empty tags, as a comma at the end makes them, are never tags.

use std::path::{Path, PathBuf};

use crate::trigger::{contains_word, one_line, with_trigger};
use crate::wildcard;
use crate::{Purpose, Showing, Stream};

/// Where captions are looked for first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CaptionSource {
    /// In `metadata.jsonl` and beside the picture.
    #[default]
    Beside,
    /// In the picture's own name, see [`file_name_caption`].
    FileName,
}

/// Which line of a caption of several lines is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CaptionLine {
    /// The first that is not empty, as kohya does. The others are not used.
    #[default]
    First,
    /// Any that is not empty, drawn anew each time.
    Random,
}

/// How the captions of a source are made.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionRules {
    /// Where they are looked for first.
    pub from: CaptionSource,
    /// Which line of several.
    pub line: CaptionLine,
    /// Caption of every picture that has no text of its own, or an empty one. It wins over the folder's name.
    pub prompt: Option<String>,
    /// Word (or words) put in front of every caption that does not contain it already.
    pub trigger: Option<String>,
    /// Put in front of everything, with a space between.
    pub prefix: Option<String>,
    /// Put behind everything, with a space between.
    pub suffix: Option<String>,
    /// Probability, 0 to 1, that a showing has the empty caption: no prefix and no trigger either.
    pub dropout: f64,
    /// Whether `{a|b}` is a choice, see [`wildcard`].
    pub wildcards: bool,
    /// Whether tags are put in random order.
    pub shuffle: bool,
    /// How many tags, from the first, keep their place and are never dropped. Those of the prefix count; a trigger
    /// that was put in front does not. Tags that hold the trigger keep their place wherever they stand.
    pub keep_tokens: usize,
    /// What separates tags. When tags are shuffled or dropped they are joined with `, ` whatever it is, as in kohya.
    pub separator: String,
    /// Text, such as `|||`, that separates tags that keep their place from those that follow, and, if there a second
    /// time, from those at the end that keep it too. Where a caption holds it, `keep_tokens` does not count.
    pub keep_tokens_separator: Option<String>,
    /// Probability, 0 to 1, that a tag is left out, for each tag that does not keep its place.
    pub tag_dropout: f64,
}

impl Default for CaptionRules {
    fn default() -> Self {
        Self {
            from: CaptionSource::Beside,
            line: CaptionLine::First,
            prompt: None,
            trigger: None,
            prefix: None,
            suffix: None,
            dropout: 0.0,
            wildcards: false,
            shuffle: false,
            keep_tokens: 0,
            separator: ",".to_owned(),
            keep_tokens_separator: None,
            tag_dropout: 0.0,
        }
    }
}

/// Where the text of a picture was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptionOrigin {
    /// A file beside the picture.
    File(PathBuf),
    /// `metadata.jsonl`.
    Metadata,
    /// The picture's own name.
    FileName,
    /// The name of a `N_name` folder.
    FolderName,
    /// The source's prompt.
    Prompt,
    /// Nowhere: the picture is a problem ([`DataError::CaptionMissing`](crate::DataError::CaptionMissing)).
    Nowhere,
}

/// What is written about a picture, before the rules are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionText {
    /// At least one line, none empty; none at all if there is no text.
    pub lines: Vec<String>,
    /// Where they were found.
    pub origin: CaptionOrigin,
}

struct Tag<'a> {
    text: &'a str,
    keeps_place: bool,
}

impl CaptionRules {
    /// The caption of `showing` in `epoch` (from 0) of a run of this seed.
    pub fn of_showing(&self, text: &CaptionText, seed: u64, epoch: u64, showing: Showing) -> String {
        self.caption(text, &mut Stream::new(seed, epoch, showing, Purpose::Caption))
    }

    /// The same for one stream of random numbers: the same `draw`, the same caption.
    pub fn caption(&self, text: &CaptionText, draw: &mut Stream) -> String {
        let line = match self.line {
            CaptionLine::First => text.lines.first(),
            CaptionLine::Random => text.lines.get(draw.below(text.lines.len() as u64) as usize),
        };
        let (whole, num_added) = self.whole(line.map_or("", String::as_str));
        if self.dropout > 0.0 && draw.chance(self.dropout) {
            return String::new();
        }
        let whole = if self.wildcards { wildcard::expand(&whole, draw) } else { whole };
        if self.cuts_tags() { self.redrawn(&whole, num_added, draw) } else { whole }
    }

    /// Whether two showings of this picture can have different captions.
    pub fn varies(&self, text: &CaptionText) -> bool {
        if self.dropout >= 1.0 {
            return false;
        }
        let lines = match self.line {
            CaptionLine::First => &text.lines[..text.lines.len().min(1)],
            CaptionLine::Random => &text.lines[..],
        };
        if self.dropout > 0.0 || lines.iter().any(|line| line != &lines[0]) {
            return true;
        }
        let (whole, num_added) = self.whole(lines.first().map_or("", String::as_str));
        if self.wildcards && wildcard::has_choice(&whole) {
            return true;
        }
        if !self.cuts_tags() || self.tag_dropout >= 1.0 {
            return false;
        }
        let tags = self.tags(&whole, num_added);
        let mut free = tags.iter().filter(|tag| !tag.keeps_place);
        let Some(first) = free.next() else { return false };
        self.tag_dropout > 0.0 || free.any(|tag| tag.text != first.text)
    }

    /// The line with trigger, prefix and suffix, and how many tags were put in front with the trigger.
    fn whole(&self, line: &str) -> (String, usize) {
        let trigger = self.trigger.as_deref().unwrap_or_default();
        let mut whole = with_trigger(line, trigger);
        let num_added = if whole == line { 0 } else { self.split(trigger).count() };
        if let Some(prefix) = self.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            whole = format!("{prefix} {whole}");
        }
        if let Some(suffix) = self.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
            whole = format!("{whole} {suffix}");
        }
        (whole, num_added)
    }

    fn cuts_tags(&self) -> bool {
        self.shuffle || self.tag_dropout > 0.0
    }

    /// The tags in a new order and some left out, around those that keep their place.
    fn redrawn(&self, whole: &str, num_added: usize, draw: &mut Stream) -> String {
        let tags = self.tags(whole, num_added);
        let mut free: Vec<&str> = tags.iter().filter(|tag| !tag.keeps_place).map(|tag| tag.text).collect();
        if self.shuffle {
            draw.shuffle(&mut free);
        }
        let mut free = free.into_iter();
        let mut kept = Vec::with_capacity(tags.len());
        for tag in &tags {
            if tag.keeps_place {
                kept.push(tag.text);
            } else if let Some(text) = free.next()
                && !(self.tag_dropout > 0.0 && draw.chance(self.tag_dropout))
            {
                kept.push(text);
            }
        }
        kept.join(", ")
    }

    fn tags<'a>(&self, whole: &'a str, num_added: usize) -> Vec<Tag<'a>> {
        let separator = self.keep_tokens_separator.as_deref().filter(|text| !text.is_empty());
        let mut tags = if let Some((head, rest)) = separator.and_then(|separator| whole.split_once(separator)) {
            let (free, tail) = separator.and_then(|separator| rest.split_once(separator)).unwrap_or((rest, ""));
            let part = |text, keeps_place| self.split(text).map(move |text| Tag { text, keeps_place });
            part(head, true).chain(part(free, false)).chain(part(tail, true)).collect()
        } else {
            let num_kept = if self.keep_tokens == 0 { 0 } else { self.keep_tokens.saturating_add(num_added) };
            let tag = |(index, text)| Tag { text, keeps_place: index < num_kept };
            self.split(whole).enumerate().map(tag).collect::<Vec<_>>()
        };
        self.keep_trigger(&mut tags);
        tags
    }

    /// The tags of a text, empty ones left out.
    fn split<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let separator = if self.separator.is_empty() { "," } else { &self.separator };
        text.split(separator).map(str::trim).filter(|tag| !tag.is_empty()).collect::<Vec<_>>().into_iter()
    }

    /// Keeps the place of tags that hold the trigger, or, if it is itself of several tags, that are one of them.
    fn keep_trigger(&self, tags: &mut [Tag<'_>]) {
        let trigger = one_line(self.trigger.as_deref().unwrap_or_default());
        let words: Vec<&str> = self.split(&trigger).collect();
        for tag in tags {
            tag.keeps_place |= match words[..] {
                [] => false,
                [word] => contains_word(tag.text, word),
                _ => words.contains(&tag.text),
            };
        }
    }
}

/// The caption that a file's name makes: `a_red-ball (2).png` is `a red ball`.
///
/// `_` and `-` stand for spaces, since names are written without; numbers at the end, also in brackets, only tell
/// copies and frames apart. Numbers elsewhere, and those glued to a word (`mp3`), may mean something and stay. Empty if
/// nothing is left (`0001.png`), or the name is not Unicode.
pub fn file_name_caption(image: &Path) -> String {
    let stem = image.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mut text = one_line(&stem.replace(['_', '-'], " "));
    loop {
        let bracketed = text.strip_suffix(')').and_then(|rest| rest.rsplit_once('('));
        let last = text.rsplit_once(' ').map_or(("", text.as_str()), |(rest, last)| (rest, last));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let rest = match (bracketed, last) {
            (Some((rest, number)), _) | (None, (rest, number)) if is_number(number) => rest.trim_end(),
            _ => return text,
        };
        text.truncate(rest.len());
    }
}

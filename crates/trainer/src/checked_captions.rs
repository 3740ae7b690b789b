//! The captions of a run as the text encoder gets them: how long they are, and what of them is cut.

use std::collections::BTreeMap;

use loralei_data::{CaptionRules, CaptionText, Showing};
use loralei_model::{Base, TextLength, Tokenizer};

use crate::error::TrainError;

/// A caption that varies is looked at as it is in so many epochs, from the first.
pub(crate) const EPOCHS_CHECKED: u64 = 8;

/// The caption of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedCaption {
    /// As it is in the first epoch.
    pub text: String,
    /// Its length.
    pub length: TextLength,
    /// The longest of those that were looked at, if it has more tokens than `text`.
    pub longest: Option<(String, TextLength)>,
    /// Whether it differs from showing to showing.
    pub varies: bool,
}

/// What measures captions.
pub(crate) struct CaptionChecker {
    tokenizers: Vec<Tokenizer>,
    max_tokens: usize,
    measured: BTreeMap<String, TextLength>,
}

impl CaptionChecker {
    /// By the tokenizers of `base`, or else CLIP's, for captions of `num_chunks` chunks.
    ///
    /// # Errors
    /// Tokenizers that cannot be read.
    pub(crate) fn new(base: Option<&Base>, num_chunks: usize) -> Result<Self, TrainError> {
        let tokenizers = match base {
            Some(base) => (0..base.num_text_encoders()).map(|i| base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?,
            None => vec![Tokenizer::of_clip()?],
        };
        let room = tokenizers.iter().map(Tokenizer::room).min().unwrap_or_default();
        Ok(Self { tokenizers, max_tokens: room * num_chunks, measured: BTreeMap::new() })
    }

    /// The most tokens that a caption may have without being cut.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The caption of a picture that is sample `sample` of those of its role, in a run of this seed.
    ///
    /// # Errors
    /// A text that a tokenizer cannot encode.
    pub(crate) fn check(
        &mut self,
        rules: &CaptionRules,
        caption: &CaptionText,
        seed: u64,
        sample: usize,
    ) -> Result<CheckedCaption, TrainError> {
        let in_epoch = |epoch| rules.of_showing(caption, seed, epoch, Showing { sample, repeat: 0 });
        let text = in_epoch(0);
        let length = self.measure(&text)?;
        let varies = rules.varies(caption);
        let mut longest: Option<(String, TextLength)> = None;
        for epoch in 1..if varies { EPOCHS_CHECKED } else { 1 } {
            let other = in_epoch(epoch);
            let other_length = self.measure(&other)?;
            let most = longest.as_ref().map_or(length.num_tokens, |(_, length)| length.num_tokens);
            if other_length.num_tokens > most {
                longest = Some((other, other_length));
            }
        }
        Ok(CheckedCaption { text, length, longest, varies })
    }

    /// By the tokenizer that makes most of it.
    fn measure(&mut self, text: &str) -> Result<TextLength, TrainError> {
        if let Some(length) = self.measured.get(text) {
            return Ok(*length);
        }
        let mut most = TextLength { num_tokens: 0, kept_bytes: text.len() };
        for tokenizer in &self.tokenizers {
            let length = tokenizer.measure(text, self.max_tokens)?;
            if length.num_tokens > most.num_tokens {
                most = length;
            }
        }
        self.measured.insert(text.to_owned(), most);
        Ok(most)
    }
}

impl CheckedCaption {
    /// The longest text that was looked at, with its length.
    pub fn longest(&self) -> (&str, TextLength) {
        self.longest.as_ref().map_or((self.text.as_str(), self.length), |(text, length)| (text, *length))
    }

    /// The part of the longest text that is cut; `None` if nothing is.
    pub fn cut(&self) -> Option<&str> {
        let (text, length) = self.longest();
        text.get(length.kept_bytes..).filter(|cut| !cut.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_data::CaptionOrigin;

    fn text(lines: &[&str]) -> CaptionText {
        CaptionText { lines: lines.iter().map(|&line| line.to_owned()).collect(), origin: CaptionOrigin::Prompt }
    }

    #[test]
    fn what_is_cut_begins_with_the_first_token_that_does_not_fit() {
        let mut checker = CaptionChecker::new(None, 1).unwrap();
        assert_eq!(checker.max_tokens(), 75);
        // One token for each word, and `\u{e9}` takes two bytes.
        let words: Vec<String> = (0..80).map(|i| if i % 2 == 0 { "Caf\u{e9}".into() } else { "dog".into() }).collect();
        let rules = CaptionRules::default();
        let mut check =
            |num_words: usize| checker.check(&rules, &text(&[&words[..num_words].join("  ")]), 0, 0).unwrap();
        let (fits, long) = (check(75), check(78));
        assert_eq!((fits.length.num_tokens, fits.cut()), (75, None));
        assert_eq!((long.length.num_tokens, long.cut()), (78, Some("dog  Caf\u{e9}  dog")));
        let mut of_two = CaptionChecker::new(None, 2).unwrap();
        assert_eq!(of_two.check(&rules, &text(&[&words.join(" ")]), 0, 0).unwrap().cut(), None);
    }

    #[test]
    fn of_a_caption_that_varies_the_longest_of_some_epochs_counts() {
        let mut checker = CaptionChecker::new(None, 1).unwrap();
        let rules = CaptionRules { wildcards: true, ..CaptionRules::default() };
        let long = "dog ".repeat(80);
        let found = checker.check(&rules, &text(&[&format!("{{a|{long}}}")]), 3, 0).unwrap();
        assert!(found.varies);
        assert_eq!(found.longest().1.num_tokens, 80);
        assert!(found.cut().is_some());
        let fixed = checker.check(&CaptionRules::default(), &text(&["a dog"]), 3, 0).unwrap();
        assert_eq!((fixed.varies, fixed.longest, fixed.text.as_str()), (false, None, "a dog"));
    }
}

//! Prompts without the trigger, and the same with it.
//!
//! One rule both ways: the trigger stands where the class word stands. "a photo of a dog" with the class word "dog" and the trigger
//! "sks dog" becomes "a photo of a sks dog". Where a prompt has no class word, the trigger goes in front with a comma, as the
//! training puts it in front of captions. A prompt that has the trigger already is the second of its pair: the first has the
//! class word in its place, or nothing.

use std::path::Path;

use crate::error::TrainError;
use crate::prior::{UNRELATED, read_lines};

/// A prompt in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptPair {
    /// Without the trigger; may be empty.
    pub without: String,
    /// With it.
    pub with: String,
}

impl PromptPair {
    /// The pair that `prompt` belongs to. Words are whole words, and case counts.
    pub fn new(prompt: &str, trigger: &str, class: Option<&str>) -> Self {
        let prompt = one_line(prompt);
        if let Some(without) = replaced(&prompt, trigger, class.unwrap_or_default()) {
            return Self { without, with: prompt };
        }
        let with = class.and_then(|class| replaced(&prompt, class, trigger));
        let in_front = || if prompt.is_empty() { trigger.to_owned() } else { format!("{trigger}, {prompt}") };
        let with = with.unwrap_or_else(in_front);
        Self { without: prompt, with }
    }

    /// The pairs of all `prompts`, each once, in their order.
    pub fn of_all(prompts: &[String], trigger: &str, class: Option<&str>) -> Vec<Self> {
        let mut pairs: Vec<Self> = Vec::with_capacity(prompts.len());
        for pair in prompts.iter().map(|prompt| Self::new(prompt, trigger, class)) {
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
        pairs
    }
}

/// What an adapter must not change, where the user names nothing: the class word, things that have nothing to do with most
/// subjects, and the empty prompt.
pub fn default_prompts(class: Option<&str>) -> Vec<String> {
    class.into_iter().chain(UNRELATED).chain([""]).map(str::to_owned).collect()
}

/// The prompts of a file, one a line; an empty line is the empty prompt.
///
/// # Errors
/// A file that cannot be read or holds no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<String>, TrainError> {
    read_lines(path)
}

/// `text` with every `word` replaced, and without the comma that a word taken out leaves; `None` if it has none.
fn replaced(text: &str, word: &str, by: &str) -> Option<String> {
    let is_inside_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let is_whole = |start: usize| {
        let (before, after) = (&text[..start], &text[start + word.len()..]);
        !is_inside_word(before.chars().next_back()) && !is_inside_word(after.chars().next())
    };
    let (mut changed, mut end) = (String::new(), 0);
    for (start, _) in text.match_indices(word).filter(|(start, _)| !word.is_empty() && is_whole(*start)) {
        changed = changed + &text[end..start] + by;
        end = start + word.len();
    }
    if end == 0 {
        return None;
    }
    let changed = one_line(&(changed + &text[end..]));
    Some(if by.is_empty() { changed.trim_matches([',', ' ']).to_owned() } else { changed })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(prompt: &str, trigger: &str, class: Option<&str>) -> [String; 2] {
        let PromptPair { without, with } = PromptPair::new(prompt, trigger, class);
        [without, with]
    }

    #[test]
    fn the_trigger_stands_where_the_class_word_stands() {
        let dog = Some("dog");
        assert_eq!(pair("a photo of a dog", "sks dog", dog), ["a photo of a dog", "a photo of a sks dog"]);
        assert_eq!(pair("dog", "octopus", dog), ["dog", "octopus"]);
        assert_eq!(pair("dog, other dog", "sks", dog), ["dog, other dog", "sks, other sks"]);
        // Part of a word is not the word.
        assert_eq!(pair("a hotdog", "sks", dog), ["a hotdog", "sks, a hotdog"]);
    }

    #[test]
    fn without_a_class_word_the_trigger_goes_in_front_as_in_captions() {
        assert_eq!(pair("a  car", "sks", Some("dog")), ["a car", "sks, a car"]);
        assert_eq!(pair("a car", "sks", None), ["a car", "sks, a car"]);
        assert_eq!(pair("", "sks", None), ["", "sks"]);
    }

    #[test]
    fn a_prompt_that_has_the_trigger_gets_its_counterpart_without_it() {
        assert_eq!(pair("sks dog on sand", "sks dog", Some("dog")), ["dog on sand", "sks dog on sand"]);
        assert_eq!(pair("sks, on a sofa", "sks", None), ["on a sofa", "sks, on a sofa"]);
        let prompts = ["a dog", "a sks dog", ""].map(str::to_owned);
        let pairs = PromptPair::of_all(&prompts, "sks dog", Some("dog"));
        assert_eq!(pairs.len(), 2, "both of a pair are one: {pairs:?}");
    }

    #[test]
    fn the_default_prompts_have_the_class_word_and_the_empty_one() {
        let prompts = default_prompts(Some("dog"));
        assert_eq!((prompts[0].as_str(), prompts.last().unwrap().as_str(), prompts.len()), ("dog", "", 10));
        assert_eq!(default_prompts(None).len(), 9);
    }
}

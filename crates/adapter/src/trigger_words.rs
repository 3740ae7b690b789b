//! The words that call an adapter, as far as its metadata says.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most frequent tags that are shown.
const MAX_TAGS: usize = 5;

/// `modelspec.trigger_phrase` (split at commas). Without one the most frequent tags of `ss_tag_frequency`: those of at least
/// half of the frequency of the most frequent.
pub(crate) fn trigger_words(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let phrase = metadata.get("modelspec.trigger_phrase").map(String::as_str).unwrap_or_default();
    let words: Vec<String> =
        phrase.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    if !words.is_empty() {
        return words;
    }
    let frequency: Value =
        metadata.get("ss_tag_frequency").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for tags in frequency.as_object().into_iter().flat_map(|folders| folders.values()) {
        for (tag, count) in tags.as_object().into_iter().flatten() {
            *counts.entry(tag.trim()).or_default() += count.as_f64().unwrap_or(0.0).max(0.0);
        }
    }
    let mut tags: Vec<(&str, f64)> = counts.into_iter().filter(|(tag, _)| !tag.is_empty()).collect();
    tags.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = tags.first().map_or(0.0, |tag| tag.1);
    tags.iter().take_while(|tag| tag.1 * 2.0 >= most).take(MAX_TAGS).map(|tag| tag.0.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(entries: &[(&str, &str)]) -> Vec<String> {
        trigger_words(&entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_trigger_phrase_goes_before_tags() {
        let tags = ("ss_tag_frequency", r#"{"a": {"dog": 3}}"#);
        assert_eq!(words(&[tags, ("modelspec.trigger_phrase", " sks dog , in ink")]), ["sks dog", "in ink"]);
        assert_eq!(words(&[tags, ("modelspec.trigger_phrase", "")]), ["dog"]);
    }

    #[test]
    fn frequent_tags_are_summed_over_folders_and_rare_ones_left_out() {
        let tags = r#"{"10_a": {"sks": 20, "grass": 9, " dog": 12}, "1_b": {"dog": 5, "sky": 16}}"#;
        assert_eq!(words(&[("ss_tag_frequency", tags)]), ["sks", "dog", "sky"]);
    }

    #[test]
    fn metadata_that_is_no_json_or_of_another_shape_gives_no_words() {
        for text in ["{", "None", "[1]", r#"{"a": 3}"#, r#"{"a": {"": 3}}"#, "{}"] {
            assert!(words(&[("ss_tag_frequency", text)]).is_empty(), "{text}");
        }
    }
}

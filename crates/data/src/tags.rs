//! The tags of captions, counted for reports.

use std::collections::BTreeMap;

/// How many captions hold each tag (what stands between commas, trimmed; case counts), the most common first and equal
/// ones by name. A tag that stands twice in one caption counts once.
pub fn tag_counts<'a>(captions: impl IntoIterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (number, caption) in captions.into_iter().enumerate() {
        for tag in caption.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let (count, last) = counts.entry(tag).or_insert((0, usize::MAX));
            *count += usize::from(*last != number);
            *last = number;
        }
    }
    let mut sorted: Vec<(String, usize)> =
        counts.into_iter().map(|(tag, (count, _))| (tag.to_owned(), count)).collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: equal counts stay in the order of names
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_counted_by_caption_the_most_common_first_then_by_name() {
        let counts = tag_counts(["sks, a dog,grass", "sks ,grass, grass, ", "Grass, sks, a  dog", ""]);
        let expected = [("sks", 3), ("grass", 2), ("Grass", 1), ("a  dog", 1), ("a dog", 1)];
        assert_eq!(counts, expected.map(|(tag, count)| (tag.to_owned(), count)));
    }
}

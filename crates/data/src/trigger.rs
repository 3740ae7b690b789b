//! The word (or words) that shall call the subject, in captions: put in, taken out, replaced by the class word.
//!
//! It counts as there only as a whole word, and case counts: `sks` is not in `masks` and not in `SKS`.

/// `caption` with `trigger, ` in front, unless it holds the trigger already.
pub fn with_trigger(caption: &str, trigger: &str) -> String {
    let trigger = one_line(trigger);
    if trigger.is_empty() || contains_word(caption, &trigger) {
        caption.to_owned()
    } else if caption.is_empty() {
        trigger
    } else {
        format!("{trigger}, {caption}")
    }
}

/// `caption` without the trigger, and without a comma that was there for it alone; `None` if the caption lacks it.
pub fn without_trigger(caption: &str, trigger: &str) -> Option<String> {
    with_class_word(caption, trigger, "")
}

/// `caption` with the trigger replaced by the class word: `a sks in the grass` becomes `a dog in the grass`. Where the
/// class word follows already (`a sks dog`), the trigger only goes. `None` if the caption lacks the trigger.
///
/// Tags come out with `, ` between, empty ones left out.
pub fn with_class_word(caption: &str, trigger: &str, class: &str) -> Option<String> {
    let (trigger, class) = (one_line(trigger), one_line(class));
    let caption = one_line(caption);
    if trigger.is_empty() || !contains_word(&caption, &trigger) {
        return None;
    }
    let mut replaced = String::with_capacity(caption.len());
    let mut end = 0;
    for (start, word) in words(&caption, &trigger) {
        replaced.push_str(&caption[end..start]);
        end = start + word.len();
        let follows = caption[end..].trim_start();
        let is_said_next = !class.is_empty() && words(follows, &class).next().is_some_and(|(at, _)| at == 0);
        if !is_said_next {
            replaced.push_str(&class);
        }
    }
    replaced.push_str(&caption[end..]);
    let tags = replaced.split(',').map(one_line).filter(|tag| !tag.is_empty());
    Some(tags.collect::<Vec<_>>().join(", "))
}

/// Whether `text` holds `word` as a whole word.
pub(crate) fn contains_word(text: &str, word: &str) -> bool {
    words(text, word).next().is_some()
}

/// The words of `text` with one space between: text encoders make no difference between kinds of white space.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    let is_inside_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).filter(move |(start, _)| {
        let (before, after) = (&text[..*start], &text[start + word.len()..]);
        !is_inside_word(before.chars().next_back()) && !is_inside_word(after.chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_goes_in_front_where_it_is_not_a_whole_word() {
        for (caption, expected) in [
            ("a dog", "sks, a dog"),
            ("a sks dog", "a sks dog"),
            ("sks", "sks"),
            ("a dog (sks)", "a dog (sks)"),
            ("a masks dog", "sks, a masks dog"),
            ("sks2 dog, sks_b", "sks, sks2 dog, sks_b"),
            ("masks of sks", "masks of sks"),
            ("a SKS dog", "sks, a SKS dog"),
            ("\u{e9}sks dog", "sks, \u{e9}sks dog"),
            ("", "sks"),
        ] {
            assert_eq!(with_trigger(caption, "sks"), expected);
        }
        assert_eq!(with_trigger("the sks dog runs", " sks  dog "), "the sks dog runs");
        assert_eq!(with_trigger("a dog", "  "), "a dog");
    }

    #[test]
    fn the_trigger_is_taken_out_with_its_comma_and_as_a_whole_word_only() {
        for (caption, trigger, expected) in [
            ("sks dog, on a sofa", "sks dog", Some("on a sofa")),
            ("photo of the sks dog", "sks", Some("photo of the dog")),
            ("a, sks, b", "sks", Some("a, b")),
            ("a, b, sks", "sks", Some("a, b")),
            ("photo of sks, grass", "sks", Some("photo of, grass")),
            ("sks, red hat, grass", "sks, red hat", Some("grass")),
            ("masks of sks and sks_b", "sks", Some("masks of and sks_b")),
            ("sks and sks", "sks", Some("and")),
            ("sks", "sks", Some("")),
            ("a dog", "sks", None),
            ("a masks dog", "sks", None),
            ("a dog", " ", None),
        ] {
            assert_eq!(without_trigger(caption, trigger).as_deref(), expected, "{caption}");
        }
    }

    #[test]
    fn the_class_word_takes_the_place_of_the_trigger_unless_it_stands_there() {
        for (caption, trigger, class, expected) in [
            ("sks dog, on a sofa", "sks dog", "dog", Some("dog, on a sofa")),
            ("a photo of a sks dog", "sks", "dog", Some("a photo of a dog")),
            ("a photo of a sks doghouse", "sks", "dog", Some("a photo of a dog doghouse")),
            ("sks, grass", "sks", "dog", Some("dog, grass")),
            ("sks and sks dog", "sks", "dog", Some("dog and dog")),
            ("a cat", "sks", "dog", None),
        ] {
            assert_eq!(with_class_word(caption, trigger, class).as_deref(), expected, "{caption}");
        }
    }
}

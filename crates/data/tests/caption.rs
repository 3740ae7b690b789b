//! The caption of a showing: kohya's order of steps, shares over many epochs, and golden values.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loralei_data::caption::file_name_caption;
use loralei_data::{CaptionLine, CaptionOrigin, CaptionRules, CaptionText, Purpose, Showing, Stream};

fn text(lines: &[&str]) -> CaptionText {
    CaptionText { lines: lines.iter().map(|line| (*line).to_owned()).collect(), origin: CaptionOrigin::Prompt }
}

fn draw(epoch: u64) -> Stream {
    Stream::new(5, epoch, Showing { sample: 9, repeat: 0 }, Purpose::Caption)
}

/// The captions of many epochs with how often each came; held against what `varies` says.
#[track_caller]
fn over_epochs(rules: &CaptionRules, lines: &[&str], num_epochs: u64) -> BTreeMap<String, u64> {
    let text = text(lines);
    let mut counts = BTreeMap::new();
    for epoch in 0..num_epochs {
        *counts.entry(rules.caption(&text, &mut draw(epoch))).or_default() += 1;
    }
    assert_eq!(rules.varies(&text), counts.len() > 1, "{rules:?} {counts:?}");
    counts
}

#[track_caller]
fn assert_always(rules: &CaptionRules, lines: &[&str], expected: &str) {
    let captions: Vec<String> = over_epochs(rules, lines, 60).into_keys().collect();
    assert_eq!(captions, [expected]);
}

#[track_caller]
fn assert_share(counts: &BTreeMap<String, u64>, caption: &str, expected: f64) {
    let num: u64 = counts.values().sum();
    let found = counts.get(caption).copied().unwrap_or(0) as f64;
    let deviation = (num as f64 * expected * (1.0 - expected)).sqrt();
    assert!(
        (found - num as f64 * expected).abs() < 4.0 * deviation,
        "{caption}: {found} of {num}, {expected} expected"
    );
}

#[test]
fn without_rules_the_first_line_is_left_untouched() {
    let line = "a,b ,,  {c|d}; e ||| f, ";
    assert_always(&CaptionRules::default(), &[line, "second"], line);
    assert_always(
        &CaptionRules { keep_tokens: 2, keep_tokens_separator: Some("|||".to_owned()), ..CaptionRules::default() },
        &[line],
        line,
    );
}

#[test]
fn the_trigger_comes_before_the_prefix_and_the_suffix_last() {
    let rules = CaptionRules {
        trigger: Some("sks".to_owned()),
        prefix: Some("a photo,".to_owned()),
        suffix: Some("at night".to_owned()),
        ..CaptionRules::default()
    };
    assert_always(&rules, &["a dog"], "a photo, sks, a dog at night");
    assert_always(&rules, &["a sks dog"], "a photo, a sks dog at night");
    // The trigger is looked for in the picture's own text: a prefix that happens to hold it changes nothing.
    let rules = CaptionRules {
        trigger: Some("sks".to_owned()),
        prefix: Some("sks".to_owned()),
        suffix: Some(String::new()),
        ..CaptionRules::default()
    };
    assert_always(&rules, &["a dog"], "sks sks, a dog");
}

#[test]
fn a_dropped_caption_is_empty_prefix_and_trigger_included() {
    let rules = CaptionRules {
        dropout: 0.2,
        trigger: Some("sks".to_owned()),
        prefix: Some("x,".to_owned()),
        ..CaptionRules::default()
    };
    let counts = over_epochs(&rules, &["a dog"], 4_000);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["", "x, sks, a dog"]);
    assert_share(&counts, "", 0.2);
    assert_always(&CaptionRules { dropout: 1.0, shuffle: true, ..rules }, &["a, b"], "");
}

#[test]
fn any_line_is_drawn_equally_often() {
    let rules = CaptionRules { line: CaptionLine::Random, trigger: Some("sks".to_owned()), ..CaptionRules::default() };
    let counts = over_epochs(&rules, &["one", "two sks", "three"], 3_000);
    assert_eq!(counts.len(), 3);
    for caption in ["sks, one", "two sks", "sks, three"] {
        assert_share(&counts, caption, 1.0 / 3.0);
    }
    assert_always(&rules, &["one", "one"], "sks, one");
}

#[test]
fn wildcards_are_drawn_before_tags_are_cut() {
    let rules = CaptionRules { wildcards: true, shuffle: true, keep_tokens: 1, ..CaptionRules::default() };
    let counts = over_epochs(&rules, &["{a, b|c}, d"], 2_000);
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a, b, d", "a, d, b", "c, d"]);
    assert_share(&counts, "c, d", 0.5);
    assert_share(&counts, "a, b, d", 0.25);
    assert_always(
        &CaptionRules { wildcards: true, ..CaptionRules::default() },
        &["a {one} {{two|x}} {"],
        "a one {two|x} {",
    );
}

#[test]
fn a_shuffle_gives_every_order_of_the_free_tags_equally_often() {
    let rules = CaptionRules { shuffle: true, keep_tokens: 1, ..CaptionRules::default() };
    let counts = over_epochs(&rules, &["x,a , b,c,"], 6_000);
    assert_eq!(counts.len(), 6);
    for order in ["a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"] {
        assert_share(&counts, &format!("x, {order}"), 1.0 / 6.0);
    }
    assert_always(&CaptionRules { keep_tokens: 3, ..rules.clone() }, &["x, a, b, c"], "x, a, b, c");
    assert_always(&CaptionRules { keep_tokens: 30, ..rules.clone() }, &["x, a,b"], "x, a, b");
    assert_always(&rules, &["x, a, a"], "x, a, a");
}

#[test]
fn free_tags_are_dropped_each_for_itself_and_kept_ones_never() {
    let rules = CaptionRules { tag_dropout: 0.3, keep_tokens: 1, ..CaptionRules::default() };
    let counts = over_epochs(&rules, &["x, a, b"], 4_000);
    for (caption, share) in [("x, a, b", 0.49), ("x, a", 0.21), ("x, b", 0.21), ("x", 0.09)] {
        assert_share(&counts, caption, share);
    }
    assert_eq!(counts.len(), 4);
    assert_always(&CaptionRules { tag_dropout: 1.0, ..rules.clone() }, &["x, a, b"], "x");
    assert_always(&CaptionRules { tag_dropout: 1.0, keep_tokens: 0, ..rules }, &["a, b"], "");
}

#[test]
fn the_trigger_keeps_its_place_in_addition_to_the_kept_tags() {
    let rules =
        CaptionRules { shuffle: true, keep_tokens: 1, trigger: Some("sks".to_owned()), ..CaptionRules::default() };
    // Put in front by the run: it does not take the place of the one tag to be kept.
    let counts = over_epochs(&rules, &["x, a, b"], 200);
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["sks, x, a, b", "sks, x, b, a"]);
    // Written by the user in front: it is the one tag to be kept, as in kohya.
    assert_eq!(over_epochs(&rules, &["sks, a, b"], 200).into_keys().collect::<Vec<_>>(), ["sks, a, b", "sks, b, a"]);
    // Written elsewhere: it stays there.
    let counts = over_epochs(&rules, &["x, a, photo of sks, b"], 200);
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["x, a, photo of sks, b", "x, b, photo of sks, a"]);
    // Of several tags.
    let rules = CaptionRules { keep_tokens: 0, trigger: Some("sks, red hat".to_owned()), ..rules };
    let counts = over_epochs(&rules, &["a, b"], 200);
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["sks, red hat, a, b", "sks, red hat, b, a"]);
}

#[test]
fn tags_are_cut_at_the_separator_and_joined_with_commas() {
    let rules = CaptionRules { shuffle: true, keep_tokens: 1, separator: ";".to_owned(), ..CaptionRules::default() };
    let counts = over_epochs(&rules, &["x, y; a; b"], 100);
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["x, y, a, b", "x, y, b, a"]);
}

#[test]
fn a_separator_of_kept_tags_fixes_head_and_tail() {
    let separator = Some("|||".to_owned());
    let rules =
        CaptionRules { shuffle: true, keep_tokens: 2, keep_tokens_separator: separator, ..CaptionRules::default() };
    let orders = |line| over_epochs(&rules, &[line], 100).into_keys().collect::<Vec<_>>();
    assert_eq!(orders("x ||| a, b"), ["x, a, b", "x, b, a"]);
    assert_eq!(orders("x, y ||| a, b ||| z"), ["x, y, a, b, z", "x, y, b, a, z"]);
    assert_eq!(orders("||| a, b |||"), ["a, b", "b, a"]);
    assert_eq!(orders("x, y, a, b"), ["x, y, a, b", "x, y, b, a"]); // without it, keep_tokens counts
}

/// Computed with the pipeline and ChaCha8 written in Python from their descriptions: (seed 5, epochs 0 to 2, sample 9).
#[test]
fn the_captions_of_a_seed_never_change() {
    let lines = ["1girl, red hat, smiling, on grass, {day|night|{dawn|dusk}}", "a second line"];
    let wild = "{day|night|{dawn|dusk}}";
    let check = |rules: CaptionRules, lines: &[&str], expected: [&str; 3]| {
        let found: Vec<String> = (0..3).map(|epoch| rules.caption(&text(lines), &mut draw(epoch))).collect();
        assert_eq!(found, expected.map(|caption| caption.replace("WILD", wild)), "{rules:?}");
    };
    let plain = CaptionRules::default;
    check(
        CaptionRules { shuffle: true, ..plain() },
        &lines,
        [
            "1girl, on grass, red hat, WILD, smiling",
            "1girl, smiling, on grass, WILD, red hat",
            "smiling, red hat, 1girl, WILD, on grass",
        ],
    );
    let with_all = CaptionRules {
        shuffle: true,
        keep_tokens: 1,
        trigger: Some("sks".to_owned()),
        prefix: Some("best,".to_owned()),
        suffix: Some(", film".to_owned()),
        ..plain()
    };
    check(
        with_all,
        &lines,
        [
            "best, sks, WILD, 1girl, film, red hat, on grass, smiling",
            "best, sks, on grass, 1girl, WILD, smiling, film, red hat",
            "best, sks, on grass, 1girl, smiling, red hat, film, WILD",
        ],
    );
    check(
        CaptionRules { shuffle: true, keep_tokens: 1, tag_dropout: 0.3, wildcards: true, ..plain() },
        &lines,
        ["1girl, dawn, red hat, smiling", "1girl, day, red hat, smiling, on grass", "1girl, dusk, red hat, smiling"],
    );
    check(
        CaptionRules { dropout: 0.5, line: CaptionLine::Random, trigger: Some("sks".to_owned()), ..plain() },
        &lines,
        ["sks, 1girl, red hat, smiling, on grass, WILD", "", "sks, a second line"],
    );
    let bars = CaptionRules { shuffle: true, keep_tokens: 1, keep_tokens_separator: Some("|||".to_owned()), ..plain() };
    let expected = ["a, b, f, c, e, d, z", "a, b, e, f, c, d, z", "a, b, d, c, f, e, z"];
    check(bars, &["a, b ||| c, d, e, f ||| z"], expected);
    let semicolons =
        CaptionRules { shuffle: true, separator: ";".to_owned(), trigger: Some("sks".to_owned()), ..plain() };
    let expected = ["e, a, c, d, sks cat, b", "c, d, e, a, sks cat, b", "b, a, e, sks cat, c, d"];
    check(semicolons, &["a; b; c, d; sks cat; e"], expected);
}

#[test]
fn a_showing_has_the_same_caption_each_time_and_each_showing_its_own() {
    let rules = CaptionRules { shuffle: true, ..CaptionRules::default() };
    let text = text(&["a, b, c, d, e, f, g, h, i, j"]);
    let mut captions = BTreeSet::new();
    for (seed, epoch, sample, repeat) in [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)] {
        let caption =
            || rules.caption(&text, &mut Stream::new(seed, epoch, Showing { sample, repeat }, Purpose::Caption));
        assert_eq!(caption(), caption());
        captions.insert(caption());
    }
    assert_eq!(captions.len(), 5);
}

#[test]
fn strange_rules_and_texts_do_no_harm() {
    let everything = CaptionRules {
        line: CaptionLine::Random,
        trigger: Some(",".to_owned()),
        prefix: Some("{".to_owned()),
        suffix: Some("}|".to_owned()),
        dropout: f64::NAN,
        wildcards: true,
        shuffle: true,
        keep_tokens: usize::MAX,
        separator: String::new(),
        keep_tokens_separator: Some(String::new()),
        tag_dropout: -1.0,
        ..CaptionRules::default()
    };
    let many = "a,".repeat(20_000);
    for lines in [&[][..], &[""], &[",,,"], &["{{{|,}"], &["\u{1f419}{\u{e9}|"], &[&many]] {
        let text = text(lines);
        everything.caption(&text, &mut draw(0));
        everything.varies(&text);
    }
}

#[test]
fn the_name_of_a_file_is_a_caption_without_the_numbers_at_its_end() {
    for (name, expected) in [
        ("a_red-ball.png", "a red ball"),
        ("a_red-ball (2).png", "a red ball"),
        ("a red ball(12) (3).jpg", "a red ball"),
        ("dog_03.png", "dog"),
        ("dog-2024-01-31_0007.png", "dog"),
        ("01-red.png", "01 red"),
        ("mp3 player.png", "mp3 player"),
        ("my mp3.png", "my mp3"),
        ("dog (big).png", "dog (big)"),
        ("a.b.png", "a.b"),
        ("0001.png", ""),
        ("(1).png", ""),
        ("__--.png", ""),
        ("ch\u{e2}teau_2.webp", "ch\u{e2}teau"),
    ] {
        assert_eq!(file_name_caption(&Path::new("some/folder").join(name)), expected, "{name}");
    }
}

//! Captions in `metadata.jsonl`: what is taken, what wins, and each wrong line by its number.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

mod tree;

use loralei_data::{CaptionCounts, CaptionOrigin, DataError, Dataset, SkipReason};
use tree::{Tree, owned, reasons, with_prompt};

#[test]
fn metadata_gives_the_captions_of_its_folder_and_those_within() {
    let lines = "\u{feff}{\"file_name\": \"a.png\", \"text\": \"text  a\", \"caption\": \"not this\", \"score\": 1.5}\r\n\n\
        {\"file_name\": \"./sub/b.png\", \"prompt\": \"text b\"}\n\
        {\"file_name\": \"c.png\", \"text\": null, \"caption\": \"ch\\u00e2teau\\nsecond\"}";
    let tree = Tree::of([
        ("a.png", ""),
        ("sub/b.png", ""),
        ("c.png", ""),
        ("d.png", ""),
        ("d.txt", "text d"),
        ("metadata.jsonl", lines),
    ]);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let expected = owned([
        ("a.png", "text a", 1),
        ("c.png", "ch\u{e2}teau", 1),
        ("d.png", "text d", 1),
        ("sub/b.png", "text b", 1),
    ]);
    assert_eq!(tree.texts(&dataset), expected);
    assert_eq!(dataset.samples[0].caption.origin, CaptionOrigin::Metadata);
    assert!(dataset.problems.is_empty() && dataset.skipped.is_empty());
    assert_eq!(
        tree.warnings(&dataset),
        [".: 1 captions have more than one line; only the first is used, 1 lines are not"]
    );
    let place = &dataset.places[0];
    assert_eq!(place.captions, CaptionCounts { metadata: 2, files: 1, ..CaptionCounts::default() });
    assert!(place.has_metadata && !dataset.places[1].has_metadata);
}

#[test]
fn metadata_wins_over_files_beside_and_that_is_said_once() {
    let lines: String = ["a", "b", "c"]
        .map(|stem| format!("{{\"file_name\": \"{stem}.png\", \"text\": \"from metadata\"}}\n"))
        .concat();
    let tree = Tree::of([
        ("a.png", ""),
        ("a.txt", "from file"),
        ("b.png", ""),
        ("b.caption", "from file"),
        ("c.png", ""),
        ("c.jpg", ""),
        ("c.txt", "of both"),
        ("metadata.jsonl", &lines),
    ]);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let expected = owned([
        ("a.png", "from metadata", 1),
        ("b.png", "from metadata", 1),
        ("c.jpg", "of both", 1),
        ("c.png", "from metadata", 1),
    ]);
    assert_eq!(tree.texts(&dataset), expected);
    assert_eq!(tree.warnings(&dataset), [".: metadata.jsonl is used, 2 caption files are not"]);
    let loses = SkipReason::CaptionInMetadata;
    assert_eq!(tree.skipped(&dataset), reasons([("a.txt", loses), ("b.caption", loses)]));
}

#[test]
fn an_empty_text_is_an_empty_caption() {
    let line = "{\"file_name\": \"a.png\", \"text\": \" \"}";
    let tree = Tree::of([("a.png", ""), ("metadata.jsonl", line)]);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["no caption for a.png"]);
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "prompt")]).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("a.png", "prompt", 1)]));
    assert_eq!(tree.warnings(&dataset), [".: 1 captions are empty and were replaced, such as that of a.png"]);
}

#[test]
fn every_wrong_line_is_a_problem_with_its_number() {
    let long = format!("{{\"file_name\": \"a.png\", \"text\": \"{}\"}}", "a".repeat(70_000));
    let lines = [
        "{\"file_name\": \"a.png\", \"text\": \"a\"}",
        "not json",
        "",
        "[\"a.png\", \"a\"]",
        "{\"text\": \"a\"}",
        "{\"file_name\": 3, \"text\": \"a\"}",
        "{\"file_name\": \"a.png\"}",
        "{\"file_name\": \"a.png\", \"text\": 3, \"prompt\": [\"x\"]}",
        "{\"file_name\": \"a.png\", \"text\": \"again\"}",
        "{\"file_name\": \"../other/a.png\", \"text\": \"a\"}",
        "{\"file_name\": \"/etc/passwd\", \"text\": \"a\"}",
        "{\"file_name\": \"nowhere.png\", \"text\": \"a\"}",
        "{\"file_name\": \"a.txt\", \"text\": \"a\"}",
        "{\"file_name\": \"\", \"text\": \"a\"}",
        "{\"file_name\": \"a.png\", \"text\": \"cut",
        &long,
    ]
    .join("\n");
    let tree = Tree::of([("data/a.png", ""), ("other/a.png", ""), ("data/metadata.jsonl", &lines)]);
    let dataset = Dataset::read(&[tree.source("data")]).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("data/a.png", "a", 1)]));
    let expected = [
        (2, "expected ident at column 2"),
        (4, "not a JSON object"),
        (5, "`file_name` is missing"),
        (6, "`file_name` is missing"),
        (7, "none of `text`, `prompt`, `caption` holds a text"),
        (8, "none of `text`, `prompt`, `caption` holds a text"),
        (9, "`a.png` has a line already"),
        (10, "`../other/a.png` is outside the folder"),
        (11, "`/etc/passwd` is outside the folder"),
        (15, "EOF while parsing a string at column 35"),
        (16, "the text is larger than 65536 bytes"),
        (12, "`nowhere.png` is none of the images found in the folder"),
        (13, "`a.txt` is none of the images found in the folder"),
        (14, "`` is none of the images found in the folder"),
    ];
    let expected: Vec<String> =
        expected.iter().map(|(line, fault)| format!("data/metadata.jsonl, line {line}: {fault}")).collect();
    assert_eq!(tree.problems(&dataset), expected);
    assert!(dataset.problems.iter().all(|problem| problem.hint().is_some()));
}

#[test]
fn metadata_in_another_encoding_is_refused_with_the_place() {
    let tree = Tree::of([("a.png", ""), ("a.txt", "a")]);
    let line = "{\"file_name\": \"a.png\", \"text\": \"ch\u{e2}teau\"}";
    let latin1: Vec<u8> = line.chars().map(|c| c as u8).collect();
    tree.write("metadata.jsonl", latin1);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["caption metadata.jsonl is not UTF-8: byte 34 is no UTF-8 character"]);
}

#[test]
fn tables_of_other_kinds_are_refused_by_name_with_what_to_do() {
    for name in ["metadata.csv", "metadata.parquet"] {
        let tree = Tree::of([("a.png", ""), ("a.txt", "a"), (name, "file_name,text\na.png,a")]);
        let dataset = Dataset::read(&[tree.source("")]).unwrap();
        assert_eq!(tree.problems(&dataset), [format!("captions in {name} are not read")]);
        assert!(matches!(dataset.problems[0], DataError::MetadataFormat { .. }));
        assert!(dataset.problems[0].hint().unwrap().contains("metadata.jsonl"));

        tree.write("metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"b\"}");
        let dataset = Dataset::read(&[tree.source("")]).unwrap();
        assert!(dataset.problems.is_empty());
        assert_eq!(tree.texts(&dataset), owned([("a.png", "b", 1)]));
        assert!(tree.skipped(&dataset).contains(&(name.to_owned(), SkipReason::UnknownKind)));
    }
}

#[test]
fn a_file_within_may_not_speak_of_a_picture_again() {
    let tree = Tree::of([
        ("sub/a.png", ""),
        ("metadata.jsonl", "{\"file_name\": \"sub/a.png\", \"text\": \"outer\"}"),
        ("sub/metadata.jsonl", "{\"file_name\": \"a.png\", \"text\": \"inner\"}"),
    ]);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("sub/a.png", "outer", 1)]));
    assert_eq!(tree.problems(&dataset), ["sub/metadata.jsonl, line 1: `a.png` has a line already"]);
}

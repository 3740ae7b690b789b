//! Bad captions of every kind: all of them in one report, each refused where it goes wrong, none a panic.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

mod tree;

use std::fs;

use loralei_data::caption_file::CaptionFile;
use loralei_data::{CaptionLine, CaptionOrigin, DataError, Dataset, SkipReason};
use tree::{Tree, owned, reasons};

fn utf16_le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn utf16_be(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

#[derive(Debug)]
enum Expected {
    Text(&'static str),
    /// Not UTF-8, from this byte on.
    Encoding(usize),
    TooLong,
    /// Nothing is left: the picture has no caption.
    Missing,
}
use Expected::{Encoding, Missing, Text, TooLong};

fn cases() -> Vec<(&'static str, Vec<u8>, Expected)> {
    vec![
        ("01-utf16-le-mark", utf16_le("\u{feff}a dog"), Encoding(0)),
        ("02-utf16-be-mark", utf16_be("\u{feff}a dog"), Encoding(0)),
        ("03-utf16-le", utf16_le("a dog"), Encoding(1)),
        ("04-utf16-be", utf16_be("a dog"), Encoding(0)),
        ("05-utf16-cyrillic", utf16_le("\u{441}\u{43e}\u{431}\u{430}\u{43a}\u{430}"), Encoding(1)),
        ("06-utf32", "a dog".chars().flat_map(|c| (c as u32).to_le_bytes()).collect(), Encoding(1)),
        ("07-latin1", b"a ch\xe2teau".to_vec(), Encoding(4)),
        ("08-cut-emoji", b"cut \xf0\x9f\x90".to_vec(), Encoding(4)),
        ("09-mark-then-wrong", b"\xef\xbb\xbfab\xff".to_vec(), Encoding(5)), // counted from the start of the file
        ("10-surrogate", b"a \xed\xa0\x80".to_vec(), Encoding(2)),
        ("11-overlong", b"a \xc0\xaf".to_vec(), Encoding(2)),
        ("12-image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec(), Encoding(0)),
        ("13-largest", vec![b'a'; 64 * 1024 + 1], TooLong),
        ("14-huge", vec![b' '; 5_000_000], TooLong),
        ("15-empty", Vec::new(), Missing),
        ("16-white-space", b" \t\r\n\x0b\x0c \xe3\x80\x80\n".to_vec(), Missing),
        ("17-mark-only", b"\xef\xbb\xbf".to_vec(), Missing),
        ("18-nul", b"a\x00 big dog on the long grass".to_vec(), Text("a big dog on the long grass")),
        ("19-control", b"a big\x07 dog\x7f on the \x1b[1mlong grass".to_vec(), Text("a big dog on the [1mlong grass")),
        ("20-crlf", b"\r\n  a dog,\ton  grass\r\nsecond\r\n".to_vec(), Text("a dog, on grass")),
        ("21-cr", b"a dog\rsecond".to_vec(), Text("a dog")),
        ("22-mark", b"\xef\xbb\xbfa dog".to_vec(), Text("a dog")),
        (
            "23-right-to-left",
            "\u{200f}\u{5db}\u{5dc}\u{5d1}\u{200e} dog".into(),
            Text("\u{200f}\u{5db}\u{5dc}\u{5d1}\u{200e} dog"),
        ),
        ("24-joined-emoji", "\u{1f468}\u{200d}\u{1f469}".into(), Text("\u{1f468}\u{200d}\u{1f469}")),
        ("25-next-line", "a\u{85}dog".into(), Text("a dog")),
        ("26-long-enough", [vec![b'\n'; 64 * 1024 - 1], vec![b'a']].concat(), Text("a")),
    ]
}

#[test]
fn all_bad_captions_are_in_one_report() {
    let tree = Tree::of([]);
    for (name, bytes, _) in cases() {
        tree.write(&format!("{name}.png"), "");
        tree.write(&format!("{name}.txt"), bytes);
    }
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let mut problems = dataset.problems.iter();
    let mut samples = dataset.samples.iter();
    for (name, _, expected) in cases() {
        match expected {
            Text(text) => {
                let sample = samples.next().unwrap();
                assert_eq!(
                    (tree.name_of(&sample.path), &sample.caption.lines[..]),
                    (format!("{name}.png"), &[text.to_owned()][..])
                );
            }
            Encoding(expected) => {
                let problem = problems.next().unwrap();
                let DataError::CaptionEncoding { offset_bytes, .. } = problem else { panic!("{name}: {problem}") };
                assert_eq!(*offset_bytes, expected, "{name}");
                assert!(
                    problem.to_string().contains(&format!("{name}.txt is not UTF-8: byte {expected} ")),
                    "{problem}"
                );
                assert!(problem.hint().is_some());
            }
            TooLong => {
                let problem = problems.next().unwrap();
                assert!(
                    matches!(problem, DataError::CaptionTooLong { path } if path == &tree.path(&format!("{name}.txt")))
                );
            }
            Missing => {
                let problem = problems.next().unwrap();
                let sample = samples.next().unwrap();
                assert_eq!((&sample.caption.lines[..], &sample.caption.origin), (&[][..], &CaptionOrigin::Nowhere));
                assert!(
                    matches!(problem, DataError::CaptionMissing { image } if image == &tree.path(&format!("{name}.png")))
                );
            }
        }
    }
    assert!(problems.next().is_none() && samples.next().is_none());
    assert!(dataset.skipped.is_empty());
    assert_eq!(
        tree.warnings(&dataset),
        [
            ".: 2 captions have more than one line; only the first is used, 2 lines are not",
            ".: control characters stripped from 2 captions, such as that of 18-nul.png",
        ]
    );
}

#[test]
fn where_a_prompt_is_given_an_empty_caption_is_replaced_and_a_broken_one_is_not() {
    let tree = Tree::of([]);
    for (name, bytes, _) in cases() {
        tree.write(&format!("{name}.png"), "");
        tree.write(&format!("{name}.txt"), bytes);
    }
    let dataset = Dataset::read(&[tree::with_prompt(tree.source(""), "a dog")]).unwrap();
    assert_eq!(dataset.problems.len(), 14);
    assert!(!dataset.problems.iter().any(|problem| matches!(problem, DataError::CaptionMissing { .. })));
    let expected = ".: 3 captions are empty and were replaced, such as that of 15-empty.png";
    assert!(tree.warnings(&dataset).iter().any(|warning| warning == expected));
}

#[test]
fn a_folder_named_like_a_caption_is_no_caption() {
    let tree = Tree::of([("a.png", ""), ("a.txt/b.png", ""), ("a.txt/b.txt", "b")]);
    fs::create_dir(tree.path("a.caption")).unwrap();
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("a.png", "", 1), ("a.txt/b.png", "b", 1)]));
    assert_eq!(tree.problems(&dataset), ["no caption for a.png"]);
    assert_eq!(tree.skipped(&dataset), reasons([("a.caption", SkipReason::EmptyFolder)]));
}

#[test]
fn a_caption_of_two_pictures_is_one_problem() {
    let tree = Tree::of([("a.png", ""), ("a.jpg", "")]);
    tree.write("a.txt", b"\xff");
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["caption a.txt is not UTF-8: byte 0 is no UTF-8 character"]);
}

#[test]
fn a_missing_caption_says_which_file_to_write() {
    let tree = Tree::of([("a.b.png", "")]);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert!(dataset.problems[0].hint().unwrap().contains("a.b.txt"));
}

#[cfg(unix)]
#[test]
fn a_caption_that_may_not_be_read_is_a_problem() {
    use std::os::unix::fs::PermissionsExt;
    let tree = Tree::of([("a.png", ""), ("a.txt", "a dog")]);
    fs::set_permissions(tree.path("a.txt"), fs::Permissions::from_mode(0o000)).unwrap();
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    if fs::read(tree.path("a.txt")).is_ok() {
        assert!(dataset.problems.is_empty()); // root reads everything
    } else {
        assert!(matches!(dataset.problems[..], [DataError::CaptionRead { .. }]));
    }
}

#[test]
fn a_missing_file_is_an_error_with_its_path() {
    let error = CaptionFile::read("no/such/caption.txt".as_ref()).unwrap_err();
    assert!(matches!(error, DataError::CaptionRead { .. }) && error.to_string().contains("no/such/caption.txt"));
}

#[test]
fn all_lines_are_kept_where_one_is_drawn() {
    let tree = Tree::of([("a.png", ""), ("a.txt", "first\n\n  \n second  line \r\nthird")]);
    let mut source = tree.source("");
    let first = Dataset::read(std::slice::from_ref(&source)).unwrap();
    assert_eq!(tree.texts(&first), owned([("a.png", "first", 1)]));
    assert_eq!(
        tree.warnings(&first),
        [".: 1 captions have more than one line; only the first is used, 2 lines are not"]
    );
    source.captions.line = CaptionLine::Random;
    let all = Dataset::read(&[source]).unwrap();
    assert_eq!(tree.texts(&all), owned([("a.png", "first / second line / third", 1)]));
    assert!(all.warnings.is_empty());
}

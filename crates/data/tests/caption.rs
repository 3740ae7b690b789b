//! Captions: what is read from a file, what is refused and where, and the trigger word.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::path::Path;

use loralei_data::{CaptionRules, DataError, caption};

fn read(bytes: &[u8]) -> Result<String, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(&path, bytes).unwrap();
    caption::read(&path)
}

#[track_caller]
fn assert_refused_at(bytes: &[u8], expected_offset: usize) {
    match read(bytes) {
        Err(error @ DataError::CaptionEncoding { offset_bytes, .. }) => {
            assert_eq!(offset_bytes, expected_offset);
            assert!(error.to_string().contains(&format!("byte {expected_offset}")), "{error}");
            assert!(error.to_string().contains("a.txt") && error.hint().is_some());
        }
        other => panic!("expected an encoding error, got {other:?}"),
    }
}

#[test]
fn white_space_is_trimmed_and_lines_are_joined() {
    assert_eq!(read(b"  a dog,\r\n on   grass\t\n").unwrap(), "a dog, on grass");
}

#[test]
fn the_byte_order_mark_is_no_part_of_the_caption() {
    assert_eq!(read(b"\xef\xbb\xbfa dog").unwrap(), "a dog");
}

#[test]
fn text_beyond_ascii_is_kept() {
    assert_eq!(read("un ch\u{e2}teau \u{1f419}".as_bytes()).unwrap(), "un ch\u{e2}teau \u{1f419}");
}

#[test]
fn control_characters_are_stripped() {
    assert_eq!(read(b"a\x00 big\x07 dog\x7f on the long grass").unwrap(), "a big dog on the long grass");
}

#[test]
fn invalid_utf8_is_refused_at_its_first_wrong_byte() {
    assert_refused_at(b"a ch\xe2teau", 4); // Latin-1
    assert_refused_at(b"\xef\xbb\xbfab\xff", 5); // the offset is in the file, the mark included
    assert_refused_at(b"cut \xf0\x9f\x90", 4); // half an emoji
}

#[test]
fn utf16_is_refused_with_and_without_its_mark() {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    assert_refused_at(&utf16("\u{feff}a dog"), 0);
    assert_refused_at(&utf16("a dog"), 1);
    let big_endian = "a dog".encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
    assert_refused_at(&big_endian, 0);
}

#[test]
fn captions_of_64_kib_are_read_and_longer_ones_refused() {
    assert_eq!(read(&vec![b'a'; 64 * 1024]).unwrap().len(), 64 * 1024);
    assert!(matches!(read(&vec![b'a'; 64 * 1024 + 1]), Err(DataError::CaptionTooLong { .. })));
}

#[test]
fn a_missing_file_is_an_error_with_its_path() {
    let error = caption::read(Path::new("no/such/caption.txt")).unwrap_err();
    assert!(matches!(error, DataError::CaptionRead { .. }) && error.to_string().contains("no/such/caption.txt"));
}

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
        assert_eq!(caption::with_trigger(caption, "sks"), expected);
    }
    assert_eq!(caption::with_trigger("the sks dog runs", " sks  dog "), "the sks dog runs");
    assert_eq!(caption::with_trigger("a dog", "  "), "a dog");
}

#[test]
fn a_caption_file_wins_over_the_prompt_and_an_empty_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (full, empty) = (dir.path().join("full.txt"), dir.path().join("empty.txt"));
    std::fs::write(&full, "a cat").unwrap();
    std::fs::write(&empty, "\n \n").unwrap();
    let rules = CaptionRules { prompt: Some(" a dog "), trigger: Some("sks") };
    let image = Path::new("a.png");
    assert_eq!(rules.caption(image, Some(&full)).unwrap(), "sks, a cat");
    assert_eq!(rules.caption(image, Some(&empty)).unwrap(), "sks, a dog");
    assert_eq!(rules.caption(image, None).unwrap(), "sks, a dog");
}

#[test]
fn neither_caption_nor_prompt_is_an_error_that_names_the_image() {
    let error = CaptionRules { prompt: Some("  "), trigger: Some("sks") }.caption(Path::new("x/dog.png"), None);
    let error = error.unwrap_err();
    assert!(matches!(&error, DataError::CaptionMissing { image } if image == Path::new("x/dog.png")));
    assert!(error.hint().unwrap().contains("dog.txt"));
}

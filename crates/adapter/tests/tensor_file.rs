//! The reader takes what the format allows and refuses everything else, each rule by name.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use loralei_adapter::{AdapterError, Dtype, ForeignFormat, TensorFile};
use proptest::prelude::*;

/// A file of this header (padded with spaces to 8 bytes) and this many data bytes 0, 1, 2, ...
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let padded_bytes = header.len().next_multiple_of(8);
    let mut bytes = (padded_bytes as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(8 + padded_bytes, b' ');
    bytes.extend((0..data_bytes).map(|i| i as u8));
    bytes
}

fn open(bytes: Vec<u8>) -> Result<TensorFile, AdapterError> {
    TensorFile::from_bytes("x.safetensors", bytes)
}

/// Opened from memory and from disk, both must fail in the same way.
fn refusal(bytes: Vec<u8>) -> AdapterError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let from_disk = TensorFile::open(&path).unwrap_err();
    let from_memory = open(bytes).unwrap_err();
    assert_eq!(std::mem::discriminant(&from_disk), std::mem::discriminant(&from_memory));
    assert!(from_disk.to_string().contains("x.safetensors"), "no path: {from_disk}");
    assert!(!from_disk.to_string().contains('\n') && from_disk.hint().is_some(), "{from_disk}");
    assert!(!from_disk.is_disk());
    from_disk
}

const GOOD: &str =
    r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[2,6]}}"#;

#[test]
fn a_good_file_is_read() {
    let file = open(file(GOOD, 6)).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(file.info("b").unwrap().dtype, Dtype::F16);
    assert_eq!(file.info("b").unwrap().shape, [1, 2]);
    assert_eq!(file.read_bytes("b").unwrap(), [2, 3, 4, 5]);
    assert_eq!(file.read_i64("a").unwrap(), [0, 1]);
    assert!(file.metadata().is_empty());
}

#[test]
fn every_cut_of_a_good_file_is_called_truncated() {
    let good = file(GOOD, 6);
    for length in 0..good.len() {
        let error = refusal(good[..length].to_vec());
        let AdapterError::Truncated { expected_bytes, found_bytes, .. } = error else { panic!("{length}: {error}") };
        assert_eq!(found_bytes, length as u64);
        assert!(expected_bytes > found_bytes);
    }
}

#[test]
fn bytes_behind_the_last_tensor_are_refused() {
    assert!(matches!(refusal(file(GOOD, 7)), AdapterError::TrailingBytes { extra_bytes: 1, .. }));
}

#[test]
fn a_name_given_twice_is_refused() {
    let twice =
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    assert!(matches!(refusal(file(twice, 2)), AdapterError::DuplicateName { name, .. } if name == "a"));
    let metadata = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
    assert!(matches!(refusal(file(metadata, 0)), AdapterError::DuplicateName { name, .. } if name == "k"));
    let sections = r#"{"__metadata__":{"k":"1"},"__metadata__":{"l":"2"}}"#;
    assert!(matches!(refusal(file(sections, 0)), AdapterError::DuplicateName { name, .. } if name == "__metadata__"));
}

#[test]
fn names_that_are_empty_too_long_or_unprintable_are_refused() {
    let long = "n".repeat(513);
    for name in ["", long.as_str(), r"a\u0000", r"a\u001b[2J", r"a\n"] {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        let error = refusal(file(&header, 1));
        assert!(matches!(error, AdapterError::BadTensorName { .. }), "{error}");
        assert!(error.to_string().chars().all(|c| !c.is_control()));
    }
    let longest = format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "n".repeat(512));
    open(file(&longest, 1)).unwrap();
}

#[test]
fn holes_overlaps_and_a_late_start_are_refused() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":{first}}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    for (first, second) in [("[0,2]", "[3,5]"), ("[0,2]", "[1,3]"), ("[0,2]", "[0,2]"), ("[1,3]", "[3,5]")] {
        let error = refusal(file(&two(first, second), 5));
        assert!(matches!(error, AdapterError::NotContiguous { .. }), "{first} {second}: {error}");
    }
    let swapped = open(file(&two("[2,4]", "[0,2]"), 4)).unwrap(); // the order of the header does not matter
    assert_eq!(swapped.read_bytes("a").unwrap(), [2, 3]);
}

#[test]
fn shapes_that_do_not_fill_their_bytes_are_refused_without_overflow() {
    let cases = [
        (r#""U8","shape":[3]"#, "[0,2]"),
        (r#""F32","shape":[1]"#, "[0,2]"),
        (r#""F32","shape":[]"#, "[0,2]"),
        (r#""U8","shape":[2]"#, "[2,0]"),
        (r#""U8","shape":[4294967296,4294967296]"#, "[0,0]"), // product is 2^64
        (r#""F64","shape":[2305843009213693952]"#, "[0,0]"),  // times 8 bytes is 2^64
        (r#""U8","shape":[18446744073709551615]"#, "[1,0]"),  // the range would wrap around to this
    ];
    for (entry, offsets) in cases {
        let header = format!(r#"{{"a":{{"dtype":{entry},"data_offsets":{offsets}}}}}"#);
        let error = refusal(file(&header, 2));
        assert!(matches!(error, AdapterError::ByteRange { .. }), "{entry}: {error}");
    }
}

#[test]
fn more_than_eight_dimensions_are_refused() {
    let header = |rank: usize| {
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}}"#, vec!["1"; rank].join(","))
    };
    open(file(&header(8), 1)).unwrap();
    assert!(matches!(refusal(file(&header(100_000), 1)), AdapterError::RankTooHigh { rank: 100_000, .. }));
}

#[test]
fn unknown_element_types_are_named() {
    let error = refusal(file(r#"{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}"#, 2));
    assert!(
        matches!(&error, AdapterError::UnsupportedDtype { tensor, dtype, .. } if tensor == "w" && dtype == "F8_E4M3")
    );
    assert!(error.hint().unwrap().contains("F16"));
}

#[test]
fn headers_that_are_not_the_format_s_json_are_refused() {
    let deep = format!(r#"{{"a":{}}}"#, "[".repeat(100_000));
    let cases = [
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"extra":1}}"#,
        r#"{"a":{"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2,3]}}"#,
        r#"{"__metadata__":{"k":1}}"#,
        r#"{"__metadata__":["k"]}"#,
        r#"{"a":7}"#,
        "{",
        "{}{}",
        &deep,
    ];
    for header in cases {
        let error = refusal(file(header, 2));
        assert!(matches!(error, AdapterError::HeaderJson { .. }), "{header:.60}: {error}");
    }
    for header in ["[]", " {}", "", "null"] {
        assert!(matches!(refusal(file(header, 0)), AdapterError::HeaderNotObject { .. }), "{header}");
    }
    let mut not_utf8 = file(GOOD, 6);
    not_utf8[10] = 0xFF;
    assert!(matches!(refusal(not_utf8), AdapterError::HeaderJson { .. }));
}

#[test]
fn headers_larger_than_any_model_needs_are_refused_before_they_are_read() {
    for length in [u64::MAX, (16 << 20) + 1] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.resize(100, b' ');
        assert!(matches!(refusal(bytes), AdapterError::HeaderTooLarge { .. }));
    }
    // 2 MB of header for no data at all
    let spaces = format!("{{}}{}", " ".repeat(2 << 20));
    assert!(matches!(refusal(file(&spaces, 0)), AdapterError::HeaderTooLarge { .. }));
}

#[test]
fn more_than_a_hundred_thousand_tensors_are_refused() {
    let entries = |count: usize| -> String {
        let names = (0..count).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#));
        // a large tensor keeps the header under a quarter of the file
        let large = r#""z":{"dtype":"U8","shape":[24000000],"data_offsets":[0,24000000]}"#.to_owned();
        format!("{{{}}}", names.chain([large]).collect::<Vec<_>>().join(","))
    };
    assert_eq!(open(file(&entries(99_999), 24_000_000)).unwrap().names().len(), 100_000);
    assert!(matches!(open(file(&entries(100_000), 24_000_000)), Err(AdapterError::TooManyTensors { .. })));
}

#[test]
fn what_people_take_for_safetensors_is_recognised() {
    let cases: [(&[u8], ForeignFormat); 6] = [
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", ForeignFormat::Zip),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", ForeignFormat::Pickle),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c", ForeignFormat::Pickle),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", ForeignFormat::GitLfsPointer),
        (b"\n <!DOCTYPE HTML><title>Sign in</title>", ForeignFormat::Html),
        (b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00", ForeignFormat::Gguf),
    ];
    for (start, expected) in cases {
        assert!(matches!(refusal(start.to_vec()), AdapterError::Foreign { kind, .. } if kind == expected));
    }
    // A header of 0x0280 = 640 bytes starts with the two bytes of a pickle.
    let header = format!("{:<640}", "{}");
    assert_eq!(open(file(&header, 0)).unwrap().names().len(), 0);
}

#[test]
fn folders_and_absent_files_are_no_disk_trouble() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(TensorFile::open(folder.path()), Err(AdapterError::NotAFile { .. })));
    let error = TensorFile::open(&folder.path().join("absent.safetensors")).unwrap_err();
    assert!(matches!(error, AdapterError::Read { .. }) && !error.is_disk() && error.hint().is_some());
}

#[test]
fn wrong_requests_name_the_tensor() {
    let file = open(file(GOOD, 6)).unwrap();
    assert_eq!(file.read_f32("c").unwrap_err().to_string(), "x.safetensors: tensor c is missing");
    let error = file.read_f32("a").unwrap_err();
    assert_eq!(error.to_string(), "x.safetensors: tensor a holds U8, but a floating type is needed");
    assert!(matches!(file.read_i64("b"), Err(AdapterError::WrongDtype { .. })));
}

#[test]
fn every_floating_type_becomes_the_same_f32() {
    // Longer than one chunk (2^19 bytes) of the smallest type, and not a multiple of it.
    let values: Vec<f32> = (0..300_001).map(|i| (i % 509) as f32 / 4.0 - 60.0).collect(); // exact in f16 up to 128 by 1/8
    let exact: Vec<f32> = values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect(); // 8 bits: exact in all four
    let encode: [(&str, usize, Vec<u8>); 4] = [
        ("F32", 4, exact.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ("F64", 8, exact.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        ("F16", 2, exact.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()),
        ("BF16", 2, exact.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (dtype, size, data) in encode {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[300001],"data_offsets":[0,{}]}}}}"#, size * 300_001);
        let mut bytes = file(&header, 0);
        bytes.extend(&data);
        let path = folder.path().join(dtype);
        std::fs::write(&path, bytes).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.read_f32("w").unwrap(), exact, "{dtype}");
        assert_eq!(file.read_bytes("w").unwrap(), data, "{dtype}");
    }
}

#[test]
fn every_integer_type_keeps_its_sign() {
    let cases: [(&str, usize, Vec<u8>, [i64; 2]); 8] = [
        ("I64", 8, [-5_i64, i64::MAX].iter().flat_map(|v| v.to_le_bytes()).collect(), [-5, i64::MAX]),
        ("I32", 4, [-5_i32, i32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect(), [-5, i64::from(i32::MAX)]),
        ("U32", 4, [5_u32, u32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect(), [5, i64::from(u32::MAX)]),
        ("I16", 2, [-5_i16, 77].iter().flat_map(|v| v.to_le_bytes()).collect(), [-5, 77]),
        ("U16", 2, [5_u16, u16::MAX].iter().flat_map(|v| v.to_le_bytes()).collect(), [5, 65535]),
        ("I8", 1, vec![0xFB, 7], [-5, 7]),
        ("U8", 1, vec![0xFB, 7], [251, 7]),
        ("BOOL", 1, vec![0, 1], [0, 1]),
    ];
    for (dtype, size, data, expected) in cases {
        let header = format!(r#"{{"n":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{}]}}}}"#, 2 * size);
        let mut bytes = file(&header, 0);
        bytes.extend(data);
        assert_eq!(open(bytes).unwrap().read_i64("n").unwrap(), expected, "{dtype}");
    }
}

proptest! {
    #[test]
    fn a_file_with_any_byte_changed_is_read_or_refused_but_never_a_panic(position in 0_usize..200, byte: u8) {
        let mut bytes = file(GOOD, 6);
        let position = position % bytes.len();
        bytes[position] = byte;
        if let Ok(file) = open(bytes) {
            for name in file.names() {
                let _ = (file.read_f32(name), file.read_i64(name), file.read_bytes(name).unwrap());
            }
        }
    }
}

//! Written files are those of the reference library, the same every time, and complete or absent.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{AdapterError, Dtype, TensorFile, TensorView, write_tensors};
use proptest::prelude::*;
use safetensors::tensor::{Dtype as TheirDtype, TensorView as TheirView};

fn metadata(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn map<'a>(tensors: &[(&str, TensorView<'a>)]) -> BTreeMap<String, TensorView<'a>> {
    tensors.iter().map(|(name, view)| ((*name).to_owned(), view.clone())).collect()
}

fn written(tensors: &BTreeMap<String, TensorView>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_tensors(&path, tensors, metadata).unwrap();
    std::fs::read(path).unwrap()
}

const VALUES: [f32; 6] = [0.0, -1.5, 3.25, 1e-3, 65504.0, -0.1];

#[test]
fn bytes_are_those_of_the_reference_library() {
    let ids = [3_i64, -7];
    let as_bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let f16: Vec<u8> = VALUES.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bf16: Vec<u8> = VALUES.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let id_bytes: Vec<u8> = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
    let f32_bytes = as_bytes(&VALUES);
    let theirs = [
        ("z.f32", TheirDtype::F32, vec![2, 3], f32_bytes.as_slice()),
        ("a.f16 \"caf\u{e9}\"", TheirDtype::F16, vec![6], &f16),
        ("m.bf16", TheirDtype::BF16, vec![3, 2, 1], &bf16),
        ("ids", TheirDtype::I64, vec![2], &id_bytes),
        ("scalar", TheirDtype::F16, vec![], &f16[2..4]),
        ("raw", TheirDtype::U8, vec![2, 0], &[]),
        ("b.f32", TheirDtype::F32, vec![1], &f32_bytes[4..8]),
    ];
    let theirs = theirs.map(|(name, dtype, shape, data)| (name, TheirView::new(dtype, shape, data).unwrap()));
    let ours = map(&[
        ("z.f32", TensorView::f32(&[2, 3], &VALUES)),
        ("a.f16 \"caf\u{e9}\"", TensorView::f32_stored_as(Dtype::F16, &[6], &VALUES)),
        ("m.bf16", TensorView::f32_stored_as(Dtype::Bf16, &[3, 2, 1], &VALUES)),
        ("ids", TensorView::i64(&[2], &ids)),
        ("scalar", TensorView::f32_stored_as(Dtype::F16, &[], &VALUES[1..2])),
        ("raw", TensorView::raw(Dtype::U8, &[2, 0], &[])),
        ("b.f32", TensorView::f32(&[1], &VALUES[1..2])),
    ]);
    // With two entries the reference library would choose their order at random.
    let one = metadata(&[("note", "line\nbreak, \"quote\", \\, tab\t, caf\u{e9}, \u{1}")]);
    let expected = safetensors::serialize(theirs.clone(), Some(one.clone().into_iter().collect())).unwrap();
    assert_eq!(written(&ours, &one), expected);
    assert_eq!(written(&ours, &BTreeMap::new()), safetensors::serialize(theirs, None).unwrap());
}

#[test]
fn metadata_is_sorted_and_the_bytes_are_the_same_every_time() {
    let tensors = map(&[("w", TensorView::f32(&[6], &VALUES))]);
    let entries = metadata(&[("b", "2"), ("c", "3"), ("a", "1"), ("e", "5"), ("d", "4")]);
    let bytes = written(&tensors, &entries);
    let header = r#"{"__metadata__":{"a":"1","b":"2","c":"3","d":"4","e":"5"},"w":"#;
    assert_eq!(&bytes[8..8 + header.len()], header.as_bytes());
    for _ in 0..5 {
        assert_eq!(written(&tensors, &entries), bytes);
    }
}

/// Writing these must fail and leave the file that was there.
fn refusal(tensors: &[(&str, TensorView)]) -> AdapterError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, "old").unwrap();
    let error = write_tensors(&path, &map(tensors), &BTreeMap::new()).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    error
}

#[test]
fn finite_values_that_would_become_infinite_are_an_error_naming_the_tensor() {
    for (dtype, value) in [(Dtype::F16, 65520.0), (Dtype::F16, -1e5), (Dtype::Bf16, f32::MAX)] {
        let values = [1.0, value];
        let error = refusal(&[
            ("ok", TensorView::f32(&[2], &values)),
            ("w.up", TensorView::f32_stored_as(dtype, &[2], &values)),
        ]);
        assert!(matches!(&error, AdapterError::Overflow { tensor, .. } if tensor == "w.up"), "{error}");
    }
    // The largest values that still round down.
    for (dtype, value, stored) in [(Dtype::F16, 65519.99, 65504.0), (Dtype::Bf16, 3.389e38, half::bf16::MAX.to_f32())] {
        let bytes = written(&map(&[("w", TensorView::f32_stored_as(dtype, &[1], &[value]))]), &BTreeMap::new());
        assert_eq!(TensorFile::from_bytes("x", bytes).unwrap().read_f32("w").unwrap(), [stored]);
    }
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    assert!(matches!(refusal(&[("w", TensorView::f32(&[2, 2], &VALUES))]), AdapterError::DataLength { .. }));
    assert!(matches!(refusal(&[("w", TensorView::f32(&[usize::MAX, 2], &VALUES))]), AdapterError::DataLength { .. }));
    assert!(matches!(
        refusal(&[("w", TensorView::raw(Dtype::F32, &[1], &[0; 5]))]),
        AdapterError::CannotStoreAs { .. }
    ));
    let as_integer = TensorView::f32_stored_as(Dtype::I64, &[6], &VALUES);
    assert!(matches!(refusal(&[("w", as_integer)]), AdapterError::CannotStoreAs { .. }));
    for name in ["", "__metadata__", "line\nbreak"] {
        assert!(matches!(refusal(&[(name, TensorView::f32(&[6], &VALUES))]), AdapterError::BadTensorName { .. }));
    }
}

#[test]
fn what_the_reader_would_refuse_is_not_put_in_place() {
    let nine = [1_usize; 9];
    let error = refusal(&[("w", TensorView::f32(&nine, &[1.0]))]);
    let AdapterError::ReadBack { source, path } = &error else { panic!("{error}") };
    assert!(matches!(**source, AdapterError::RankTooHigh { .. }));
    assert_eq!(path.file_name().unwrap(), "x.safetensors");
}

#[test]
fn a_missing_folder_is_disk_trouble() {
    let tensors = map(&[("w", TensorView::f32(&[6], &VALUES))]);
    let error = write_tensors(Path::new("absent/folder/x.safetensors"), &tensors, &BTreeMap::new()).unwrap_err();
    assert!(error.is_disk() && error.to_string().contains("absent"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_values_come_back_to_the_bit_and_the_reference_library_reads_them(
        bits in prop::collection::vec(any::<u32>(), 0..200), name in "[a-z.\\\\\"\u{e9}]{1,20}", note in any::<String>(),
    ) {
        let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
        let tensors = map(&[(name.as_str(), TensorView::f32(&[values.len()], &values))]);
        let bytes = written(&tensors, &metadata(&[("note", &note)]));

        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let raw: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        prop_assert_eq!(theirs.tensor(&name).unwrap().data(), raw.as_slice());

        let ours = TensorFile::from_bytes("x", bytes).unwrap();
        let read: Vec<u32> = ours.read_f32(&name).unwrap().iter().map(|v| v.to_bits()).collect();
        prop_assert_eq!(read, bits);
        prop_assert_eq!(&ours.metadata()["note"], &note);
    }
}

//! Several files are read as one set of tensors.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loralei_adapter::{AdapterError, TensorFile, TensorFiles, TensorView, write_tensors};

fn write(path: &Path, name: &str, values: &[f32]) {
    let tensors = [(name.to_owned(), TensorView::f32(&[values.len()], values))].into();
    write_tensors(path, &tensors, &BTreeMap::new()).unwrap();
}

/// Shard 1 holds `b`, shard 2 holds `a`; the index is what the test says.
fn model(weight_map: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("m-00001-of-00002.safetensors"), "b", &[1.0, 2.0]);
    write(&folder.path().join("m-00002-of-00002.safetensors"), "a", &[3.0, 4.0, 5.0]);
    let index = folder.path().join("m.safetensors.index.json");
    std::fs::write(&index, format!(r#"{{"metadata":{{"total_size":20}},"weight_map":{weight_map}}}"#)).unwrap();
    (folder, index)
}

#[test]
fn tensors_of_all_shards_are_one_sorted_set() {
    let (_folder, index) = model(r#"{"b":"m-00001-of-00002.safetensors","a":"m-00002-of-00002.safetensors"}"#);
    let files = TensorFiles::open(&index).unwrap();
    assert_eq!(files.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(files.read_f32("a").unwrap(), [3.0, 4.0, 5.0]);
    assert_eq!(files.read_f32("b").unwrap(), [1.0, 2.0]);
    assert_eq!(files.info("a").unwrap().shape, [3]);
    assert_eq!(files.file_paths().count(), 2);
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    files.bytes("a").unwrap().read_f32(1, 2, &mut bytes, &mut values).unwrap();
    assert_eq!((values.as_slice(), bytes.len()), ([4.0, 5.0].as_slice(), 8));
    files.bytes("a").unwrap().part(2, 3).read_f32(0, 1, &mut bytes, &mut values).unwrap();
    assert_eq!(values, [5.0]);
    let error = files.read_f32("c").unwrap_err();
    assert!(error.to_string().contains("index.json") && error.to_string().contains('c'), "{error}");
}

#[test]
fn a_tensor_that_its_shard_lacks_is_an_error_naming_both() {
    let (_folder, index) = model(r#"{"a":"m-00001-of-00002.safetensors"}"#);
    let error = TensorFiles::open(&index).unwrap_err();
    assert!(matches!(&error, AdapterError::ShardLacksTensor { tensor, shard, .. }
        if tensor == "a" && shard.ends_with("m-00001-of-00002.safetensors")));
    assert!(error.hint().is_some());
}

#[test]
fn a_missing_shard_is_named() {
    let (folder, index) = model(r#"{"a":"m-00002-of-00002.safetensors"}"#);
    std::fs::remove_file(folder.path().join("m-00002-of-00002.safetensors")).unwrap();
    let error = TensorFiles::open(&index).unwrap_err();
    assert!(error.to_string().contains("m-00002-of-00002") && !error.is_disk(), "{error}");
}

#[test]
fn shards_outside_the_folder_and_broken_indexes_are_refused() {
    for shard in ["../x.safetensors", "/x.safetensors", r"..\\x.safetensors", "c:x.safetensors", "x.bin", ""] {
        let (_folder, index) = model(&format!(r#"{{"a":"{shard}"}}"#));
        assert!(matches!(TensorFiles::open(&index), Err(AdapterError::BadShardName { .. })), "{shard}");
    }
    let twice = r#"{"a":"m-00001-of-00002.safetensors","a":"m-00002-of-00002.safetensors"}"#;
    let (_folder, index) = model(twice);
    assert!(matches!(TensorFiles::open(&index), Err(AdapterError::DuplicateName { .. })));
    let (_folder, index) = model(r#"{"a":7}"#);
    assert!(matches!(TensorFiles::open(&index), Err(AdapterError::IndexJson { .. })));
}

#[test]
fn a_single_file_and_bytes_in_memory_are_sets_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    write(&path, "w", &[1.5, -2.0]);
    let from_path = TensorFiles::open(&path).unwrap();
    let from_bytes = TensorFiles::from(TensorFile::from_bytes("built-in", std::fs::read(&path).unwrap()).unwrap());
    for files in [from_path, from_bytes] {
        assert_eq!(files.names().collect::<Vec<_>>(), ["w"]);
        assert_eq!(files.read_f32("w").unwrap(), [1.5, -2.0]);
        assert!(matches!(files.read_i64("w"), Err(AdapterError::WrongDtype { .. })));
    }
}

//! A file written tensor by tensor is the file that is written from memory.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{
    AdapterError, Dtype, TensorFile, TensorInfo, TensorValues, TensorView, write_tensors, write_tensors_streamed,
};

fn info(dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { dtype, shape: shape.to_vec() }
}

/// 70,000 values: longer than one chunk of the writer.
fn values(seed: usize) -> Vec<f32> {
    (0..70_000).map(|i| ((i * 37 + seed) % 1013) as f32 / 8.0 - 50.0).collect()
}

fn plan() -> BTreeMap<String, TensorInfo> {
    [
        ("a.half".to_owned(), info(Dtype::F16, &[70, 1000])),
        ("b.single".to_owned(), info(Dtype::F32, &[70_000])),
        ("c.brain".to_owned(), info(Dtype::Bf16, &[7, 100, 100, 1])),
        ("d.ids".to_owned(), info(Dtype::I64, &[1, 3])),
        ("e.double".to_owned(), info(Dtype::F64, &[1])),
        ("f.half".to_owned(), info(Dtype::F16, &[])),
    ]
    .into()
}

fn produce(name: &str) -> TensorValues {
    match name {
        "a.half" => values(1).into(),
        "b.single" => values(2).into(),
        "c.brain" => values(3).into(),
        "d.ids" => TensorValues::I64(vec![5, -6, 7]),
        "e.double" => TensorValues::Raw(0.1_f64.to_le_bytes().to_vec()),
        _ => vec![-0.5].into(),
    }
}

#[test]
fn the_bytes_are_those_of_the_file_written_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (streamed, whole) = (folder.path().join("streamed"), folder.path().join("whole"));
    let (a, b, c, double) = (values(1), values(2), values(3), 0.1_f64.to_le_bytes());
    let tensors: BTreeMap<String, TensorView> = [
        ("a.half".to_owned(), TensorView::f32_stored_as(Dtype::F16, &[70, 1000], &a)),
        ("b.single".to_owned(), TensorView::f32(&[70_000], &b)),
        ("c.brain".to_owned(), TensorView::f32_stored_as(Dtype::Bf16, &[7, 100, 100, 1], &c)),
        ("d.ids".to_owned(), TensorView::i64(&[1, 3], &[5, -6, 7])),
        ("e.double".to_owned(), TensorView::raw(Dtype::F64, &[1], &double)),
        ("f.half".to_owned(), TensorView::f32_stored_as(Dtype::F16, &[], &[-0.5])),
    ]
    .into();
    let some = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into();
    for metadata in [some, BTreeMap::new()] {
        let mut asked = Vec::new();
        write_tensors_streamed(&streamed, &plan(), &metadata, |name| {
            asked.push(name.to_owned());
            Ok(produce(name))
        })
        .unwrap();
        write_tensors(&whole, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&streamed).unwrap(), std::fs::read(&whole).unwrap());
        assert_eq!(asked, ["d.ids", "e.double", "b.single", "c.brain", "a.half", "f.half"]); // each once, in file order
    }
    assert_eq!(TensorFile::open(&streamed).unwrap().read_f32("c.brain").unwrap().len(), 70_000);
}

/// Writing must fail and leave the file that was there.
fn refusal(
    plan: &BTreeMap<String, TensorInfo>,
    produce: impl FnMut(&str) -> Result<TensorValues, AdapterError>,
) -> AdapterError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, "old").unwrap();
    let error = write_tensors_streamed(&path, plan, &BTreeMap::new(), produce).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    error
}

#[test]
fn an_error_of_the_producer_comes_back_as_it_is() {
    let missing = |name: &str| AdapterError::MissingTensor { path: "source.ckpt".into(), tensor: name.to_owned() };
    let error = refusal(&plan(), |name| if name == "c.brain" { Err(missing(name)) } else { Ok(produce(name)) });
    assert_eq!(error.to_string(), "source.ckpt: tensor c.brain is missing");
}

#[test]
fn values_that_do_not_go_with_the_plan_are_refused() {
    let one = |info| [("w".to_owned(), info)].into();
    let half = one(info(Dtype::F16, &[2]));
    let error = refusal(&half, |_| Ok(vec![1.0].into()));
    assert!(matches!(error, AdapterError::DataLength { num_values: 1, .. }), "{error}");
    let error = refusal(&half, |_| Ok(vec![1.0, 65520.0].into()));
    assert!(matches!(error, AdapterError::Overflow { dtype: Dtype::F16, .. }), "{error}");
    let error = refusal(&half, |_| Ok(TensorValues::I64(vec![1, 2])));
    assert!(matches!(error, AdapterError::CannotStoreAs { dtype: Dtype::F16, .. }), "{error}");
    let error = refusal(&one(info(Dtype::I64, &[1])), |_| Ok(vec![1.0].into()));
    assert!(matches!(error, AdapterError::CannotStoreAs { dtype: Dtype::I64, .. }), "{error}");
    let error = refusal(&half, |_| Ok(TensorValues::Raw(vec![0; 5])));
    assert!(matches!(error, AdapterError::CannotStoreAs { .. }), "{error}");
    let error = refusal(&one(info(Dtype::F32, &[usize::MAX, 2])), |_| unreachable!("nothing can be this large"));
    assert!(matches!(error, AdapterError::CannotStoreAs { .. }), "{error}");
}

#[test]
fn what_the_reader_would_refuse_is_not_put_in_place() {
    let error = refusal(&[("w".to_owned(), info(Dtype::F32, &[1; 9]))].into(), |_| Ok(vec![1.0].into()));
    assert!(matches!(error, AdapterError::ReadBack { .. }), "{error}");
}

#[test]
fn a_missing_folder_is_disk_trouble() {
    let path = Path::new("absent/folder/x.safetensors");
    let error = write_tensors_streamed(path, &plan(), &BTreeMap::new(), |name| Ok(produce(name))).unwrap_err();
    assert!(matches!(error, AdapterError::Write { .. }) && error.is_disk(), "{error}");
}

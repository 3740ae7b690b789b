//! PyTorch files are read as PyTorch reads them, and nothing in them is ever executed.
//!
//! The files in `torch/` were written by PyTorch (`make_fixtures.py`); the others are put together here, byte by byte.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::path::{Path, PathBuf};

use loralei_adapter::{AdapterError, Dtype, TensorFile, TensorFiles, TorchFile};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torch").join(name)
}

/// A zip archive of stored entries. With `is_wide` all sizes and positions stand in the fields of the 64-bit form.
fn zip(entries: &[(&str, &[u8])], is_wide: bool) -> Vec<u8> {
    zip_with_gap(entries, is_wide, 0)
}

/// The same for the part of a file behind `gap` bytes of nothing.
fn zip_with_gap(entries: &[(&str, &[u8])], is_wide: bool, gap: u64) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (start, size) = (gap + bytes.len() as u64, data.len() as u64);
        let narrow = |number: u64| if is_wide { u32::MAX } else { number as u32 };
        let sizes = [narrow(size).to_le_bytes(), narrow(size).to_le_bytes()].concat();
        let extra = [&[1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &start.to_le_bytes()].concat();
        let extra = if is_wide { &extra[..] } else { &[] };
        let padding = [b'F', b'B', 5, 0, 0, 0, 0, 0, 0]; // PyTorch aligns data so, in the local header only
        bytes.extend([b"PK\x03\x04".as_slice(), &[0; 14], &sizes].concat());
        bytes.extend([(name.len() as u16).to_le_bytes(), (padding.len() as u16).to_le_bytes()].concat());
        bytes.extend([name.as_bytes(), &padding, data].concat());
        directory.extend([b"PK\x01\x02".as_slice(), &[0; 16], &sizes].concat());
        directory.extend([(name.len() as u16).to_le_bytes(), (extra.len() as u16).to_le_bytes()].concat());
        directory.extend([&[0; 10][..], &narrow(start).to_le_bytes(), name.as_bytes(), extra].concat());
    }
    let (begin, size, count) = (gap + bytes.len() as u64, directory.len() as u64, entries.len() as u64);
    bytes.extend(&directory);
    if is_wide {
        let end = gap + bytes.len() as u64;
        bytes.extend([b"PK\x06\x06".as_slice(), &44_u64.to_le_bytes(), &[0; 12]].concat());
        bytes.extend([count, count, size, begin].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend([b"PK\x06\x07".as_slice(), &[0; 4], &end.to_le_bytes(), &[1, 0, 0, 0]].concat());
    }
    let counts = [count as u16, count as u16].map(|count| if is_wide { u16::MAX } else { count });
    let places = [size as u32, begin as u32].map(|place| if is_wide { u32::MAX } else { place });
    bytes.extend([b"PK\x05\x06".as_slice(), &[0; 4]].concat());
    bytes.extend(counts.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend(places.iter().flat_map(|number| number.to_le_bytes()));
    bytes.extend([0, 0]);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(number: i32) -> Vec<u8> {
    [b"J".as_slice(), &number.to_le_bytes()].concat()
}

fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &parts.concat(), b"t"].concat()
}

fn dims(dims: &[i32]) -> Vec<u8> {
    tuple(&dims.iter().map(|dim| int(*dim)).collect::<Vec<_>>())
}

/// What PyTorch writes for a tensor in a storage "0".
fn tensor(storage: &str, num_elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let kind = format!("ctorch\n{storage}\n").into_bytes();
    let id = tuple(&[text("storage"), kind, text("0"), text("cpu"), int(num_elements)]);
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let arguments =
        tuple(&[[id, b"Q".to_vec()].concat(), int(offset), dims(shape), dims(strides), b"\x89".to_vec(), hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"R".to_vec()].concat()
}

fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(".as_slice(), &items, b"u"].concat()
}

fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// A file of this pickle with one storage of the bytes 0, 1, 2, ... 23.
fn file(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..24).collect();
    zip(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &storage), ("m/version", b"3\n")], false)
}

fn open(bytes: Vec<u8>) -> Result<TorchFile, AdapterError> {
    TorchFile::from_bytes("evil.ckpt", bytes)
}

fn refusal(pickle: &[u8]) -> AdapterError {
    let error = open(file(pickle)).unwrap_err();
    let (message, hint) = (error.to_string(), error.hint().unwrap());
    assert!(message.contains("evil.ckpt") && !message.contains(char::is_control), "{message}");
    assert!(!hint.is_empty() && !error.is_disk());
    error
}

#[test]
fn every_kind_of_tensor_that_pytorch_wrote_has_pytorch_s_values() {
    let file = TorchFile::open(&fixture("stable_diffusion.ckpt")).unwrap();
    // The numbers are what torch.load(...)["state_dict"][name].flatten().tolist() prints.
    let expected: [(&str, Dtype, &[usize], &[f32]); 11] = [
        ("weight", Dtype::F32, &[3, 4], &[-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),
        (
            "weight_transposed",
            Dtype::F32,
            &[4, 3],
            &[-1.0, 0.0, 1.0, -0.75, 0.25, 1.25, -0.5, 0.5, 1.5, -0.25, 0.75, 1.75],
        ),
        ("half", Dtype::F16, &[2, 3], &[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),
        ("bfloat", Dtype::Bf16, &[3], &[1.0, -2.5, 3.00405527047391e38]),
        ("double", Dtype::F64, &[1, 2], &[0.5, -1e10]),
        ("tail", Dtype::F32, &[4], &[6.0, 7.0, 8.0, 9.0]),
        ("every_third", Dtype::F32, &[3], &[1.0, 4.0, 7.0]),
        ("scalar", Dtype::F32, &[], &[0.75]),
        ("empty", Dtype::F32, &[0, 3], &[]),
        ("parameter", Dtype::F32, &[2], &[2.0, -3.0]),
        ("conv_channels_last", Dtype::F32, &[1, 4, 2, 3], &std::array::from_fn::<f32, 24, _>(|i| i as f32)),
    ];
    for (name, dtype, shape, values) in expected {
        let info = file.info(name).unwrap();
        assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape), "{name}");
        assert_eq!(file.read_f32(name).unwrap(), values, "{name}");
        assert_eq!(file.read_bytes(name).unwrap().len(), values.len() * dtype.size_bytes(), "{name}");
    }
    assert_eq!(file.read_i64("position_ids").unwrap(), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(file.info("position_ids").unwrap().shape, [1, 7]);
    assert_eq!(file.read_i64("mask").unwrap(), [1, 0, 1]);
    assert_eq!(file.names().len(), 13); // not num_batches, a number, and not the optimizer's tensors
    let column: Vec<u8> = [-1.0_f32, 0.0, 1.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(file.read_bytes("weight_transposed").unwrap()[..12], column);
    let (mut bytes, all) = (Vec::new(), file.read_bytes("weight_transposed").unwrap());
    file.bytes("weight_transposed").unwrap().read(1, 2, &mut bytes).unwrap();
    assert_eq!(bytes, all[all.len() / file.info("weight_transposed").unwrap().num_elements()..][..bytes.len()]);
}

#[test]
fn settings_beside_the_tensors_are_metadata() {
    let file = TorchFile::open(&fixture("stable_diffusion.ckpt")).unwrap();
    let expected =
        [("epoch", "8"), ("global_step", "470000"), ("learning_rate", "0.5"), ("pytorch-lightning_version", "1.4.2")];
    assert_eq!(file.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect::<Vec<_>>(), expected);
}

#[test]
fn a_list_of_tensors_in_protocol_4_is_named_by_position() {
    let file = TorchFile::open(&fixture("list_protocol_4.pt")).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(file.read_f32("0").unwrap(), [1.0, 2.0]);
    assert_eq!(file.read_i64("1").unwrap(), [3, 4]);
    assert!(matches!(file.read_f32("1"), Err(AdapterError::WrongDtype { .. })));
    assert!(matches!(file.read_f32("2"), Err(AdapterError::MissingTensor { .. })));
}

#[test]
fn a_malicious_reduce_is_refused_naming_the_call() {
    let path = fixture("malicious.ckpt");
    let error = TensorFiles::open(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} calls `posix.system`, which no checkpoint needs: refused", path.display())
    );
    assert!(error.hint().unwrap().contains("safetensors"));
}

#[test]
fn every_way_to_name_a_function_is_refused_by_name() {
    let ways: [(&[u8], &str); 6] = [
        (b"cos\nsystem\n(Vls\ntR.", "os.system"), // protocol 0
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"(Vls\nios\nsystem\n.", "UNICODE"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"\x80\x02csubprocess\nPopen\n)\x81.", "subprocess.Popen"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
    ];
    for (pickle, name) in ways {
        let error = refusal(pickle);
        assert!(error.to_string().contains(name), "{error}");
    }
    let sneaky = format!("c{}\u{1b}[2J\nsystem\n.", "long".repeat(1000));
    assert!(matches!(refusal(sneaky.as_bytes()), AdapterError::UnsafePickle { call, .. } if call.len() == 100));
}

#[test]
fn operations_that_pytorch_does_not_write_are_refused_by_name() {
    let operations: [(&[u8], &str); 9] = [
        (b"(ccollections\nOrderedDict\no.", "OBJ"),
        (b"(icollections\nOrderedDict\n.", "INST"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
        (b"P1\n.", "PERSID"),
        (b"ccollections\nOrderedDict\n}b.", "BUILD"), // would set attributes of the class itself
        (b"\xff.", "unknown"),
    ];
    for (pickle, name) in operations {
        let error = refusal(pickle);
        assert!(
            matches!(error, AdapterError::PickleOperation { operation, .. } if operation.contains(name)),
            "{error}"
        );
    }
    // Functions of the list can be mentioned, but what they are given must be what PyTorch gives them.
    for call in ["ctorch._utils\n_rebuild_tensor_v2\n)R.", "ctorch\nFloatStorage\n)R.", "K\x01)R.", "ctorch\nSize\n]R."]
    {
        assert!(matches!(refusal(call.as_bytes()), AdapterError::BadPickle { .. }), "{call}");
    }
}

#[test]
fn pickles_that_are_no_programs_are_refused() {
    let broken: [&[u8]; 13] = [
        b"",
        b".",
        b"\x80",
        b"X\xff\xff\xff\xffabc.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"X\x01\x00\x00\x00\xff.",
        b"h\x07.",
        b"t.",
        b"K\x01(0.",     // pops through the mark
        b"K\x01K\x02a.", // appends to a number
        b"}(K\x01u.",    // a key without a value
        b"K\x01Q.",
        b"(K\x01K\x02K\x03K\x04K\x05tQ.",
    ];
    for pickle in broken {
        assert!(matches!(refusal(pickle), AdapterError::BadPickle { .. }), "{pickle:?}");
    }
    assert!(matches!(refusal(b"K\x01."), AdapterError::NoTensors { .. }));
    let deep = [vec![b']'; 500_000], vec![b'a'; 499_999], b".".to_vec()].concat();
    assert!(matches!(refusal(&deep), AdapterError::NoTensors { .. })); // neither slow nor a full stack
    let cyclic = b"]q\x00h\x00a.";
    assert!(matches!(refusal(cyclic), AdapterError::NoTensors { .. }));
}

#[test]
fn more_values_than_any_checkpoint_has_are_refused() {
    let storage = vec![0; 30 << 20]; // keeps the pickle under a quarter of the file
    let pickle = [vec![b'N'; 5_000_000], b".".to_vec()].concat();
    let error = open(zip(&[("m/data.pkl", &pickle), ("m/data/0", &storage)], false)).unwrap_err();
    assert!(matches!(error, AdapterError::BadPickle { position: 4_000_001, .. }), "{error}");
    let error = open(zip(&[("m/data.pkl", &pickle)], false)).unwrap_err();
    assert!(matches!(error, AdapterError::HeaderTooLarge { header_bytes: 5_000_001, .. }), "{error}");
}

#[test]
fn a_tensor_that_reaches_out_of_its_storage_is_named() {
    let one = |tensor| open(file(&pickle(&dict(&[("w", tensor)]))));
    let good = one(tensor("ByteStorage", 24, 3, &[2, 3], &[10, 2])).unwrap();
    assert_eq!(good.read_bytes("w").unwrap(), [3, 5, 7, 13, 15, 17]);
    let wrong = [
        tensor("ByteStorage", 24, 0, &[25], &[1]),
        tensor("ByteStorage", 24, 20, &[5], &[1]),
        tensor("ByteStorage", 24, 0, &[3, 3], &[12, 1]),
        tensor("ByteStorage", 25, 0, &[1], &[1]), // the storage is larger than its entry
        tensor("FloatStorage", 7, 0, &[1], &[1]),
        tensor("ByteStorage", 24, 0, &[i32::MAX, i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0, 0]),
        tensor("ByteStorage", 24, 0, &[i32::MAX, i32::MAX], &[i32::MAX, i32::MAX]),
    ];
    for tensor in wrong {
        assert!(matches!(one(tensor), Err(AdapterError::OutsideStorage { tensor, .. }) if tensor == "w"));
    }
    let negative = [tensor("ByteStorage", 24, -1, &[1], &[1]), tensor("ByteStorage", -1, 0, &[1], &[1])];
    let ranks = [tensor("ByteStorage", 24, 0, &[1; 9], &[1; 9]), tensor("ByteStorage", 24, 0, &[2, 3], &[1])];
    for tensor in negative.into_iter().chain(ranks) {
        assert!(matches!(one(tensor), Err(AdapterError::BadPickle { .. })));
    }
    let absent = zip(&[("m/data.pkl", &pickle(&dict(&[("w", tensor("ByteStorage", 1, 0, &[1], &[1]))])))], false);
    assert!(matches!(open(absent), Err(AdapterError::OutsideStorage { .. })));
}

#[test]
fn names_given_twice_or_unprintable_are_refused() {
    let w = || tensor("ByteStorage", 24, 0, &[1], &[1]);
    assert!(matches!(refusal(&pickle(&dict(&[("w", w()), ("w", w())]))), AdapterError::DuplicateName { .. }));
    for name in ["", "a\u{1b}[2J", &"n".repeat(513)] {
        assert!(matches!(refusal(&pickle(&dict(&[(name, w())]))), AdapterError::BadTensorName { .. }));
    }
}

#[test]
fn archives_that_pytorch_does_not_write_are_refused() {
    let good = pickle(&dict(&[("w", tensor("ByteStorage", 24, 0, &[1], &[1]))]));
    let storage: &[u8] = &[7; 24];
    let pictures = zip(&[("a.png", b"x")], false);
    assert!(matches!(open(pictures), Err(AdapterError::NotTorch { .. })));
    let two = zip(&[("a/data.pkl", &good), ("b/data.pkl", &good)], false);
    assert!(matches!(open(two), Err(AdapterError::BadZip { .. })));
    let twice = zip(&[("a/data.pkl", &good), ("a/data.pkl", &good)], false);
    assert!(matches!(open(twice), Err(AdapterError::BadZip { .. })));
    let big = zip(&[("a/data.pkl", &good), ("a/byteorder", b"big"), ("a/data/0", storage)], false);
    assert!(matches!(open(big), Err(AdapterError::BigEndian { .. })));
    let mut compressed = zip(&[("a/data.pkl", &good), ("a/data/0", storage)], false);
    let directory = compressed.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    compressed[directory + 10] = 8; // deflate
    assert!(matches!(open(compressed), Err(AdapterError::BadZip { problem, .. }) if problem.contains("compressed")));
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = std::fs::read(fixture("stable_diffusion.ckpt")).unwrap();
    for length in 0..whole.len() {
        let error = open(whole[..length].to_vec()).unwrap_err();
        assert!(matches!(error, AdapterError::BadZip { .. }), "{length}: {error}");
        assert!(error.hint().unwrap().contains("cut short"));
    }
}

#[test]
fn the_64_bit_form_of_the_archive_is_read() {
    let storage: Vec<u8> = (0..24).collect();
    let pickle = pickle(&dict(&[("w", tensor("ShortStorage", 12, 2, &[2], &[1]))]));
    let bytes = zip(&[("m/data.pkl", &pickle), ("m/data/0", &storage)], true);
    assert_eq!(open(bytes).unwrap().read_i64("w").unwrap(), [0x0504, 0x0706]);
}

/// Five gigabytes of nothing cost no disk where files may have holes.
#[cfg(target_os = "linux")]
#[test]
fn tensors_behind_four_gigabytes_are_read() {
    use std::io::{Seek, SeekFrom, Write};

    const GAP: u64 = 5 << 30;
    let pickle = pickle(&dict(&[("w", tensor("ByteStorage", 3, 0, &[3], &[1]))]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.ckpt");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"PK\x03\x04").unwrap();
    file.seek(SeekFrom::Start(GAP)).unwrap();
    file.write_all(&zip_with_gap(&[("m/data.pkl", &pickle), ("m/data/0", &[9, 8, 7])], true, GAP)).unwrap();
    assert_eq!(TensorFiles::open(&path).unwrap().read_bytes("w").unwrap(), [9, 8, 7]);
}

#[test]
fn the_content_and_not_the_name_says_which_format_a_file_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("renamed.safetensors");
    std::fs::copy(fixture("stable_diffusion.ckpt"), &path).unwrap();
    let files = TensorFiles::open(&path).unwrap();
    assert_eq!(files.read_f32("tail").unwrap(), [6.0, 7.0, 8.0, 9.0]);
    assert_eq!(files.metadata()["global_step"], "470000");
    assert_eq!(files.file_paths().collect::<Vec<_>>(), [path.as_path()]);
    // As an adapter such a file stays refused.
    assert!(matches!(TensorFile::open(&path), Err(AdapterError::Foreign { .. })));
}

#[test]
fn an_index_of_bin_shards_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor_name: &str, element: i32| {
        let pickle = pickle(&dict(&[(tensor_name, tensor("ByteStorage", 24, element, &[2], &[1]))]));
        std::fs::write(folder.path().join(name), file(&pickle)).unwrap();
    };
    shard("m-1.bin", "a", 5);
    shard("m-2.bin", "b", 11);
    let index = folder.path().join("pytorch_model.bin.index.json");
    std::fs::write(&index, r#"{"weight_map":{"a":"m-1.bin","b":"m-2.bin"}}"#).unwrap();
    let files = TensorFiles::open(&index).unwrap();
    assert_eq!(files.read_i64("a").unwrap(), [5, 6]);
    assert_eq!(files.read_bytes("b").unwrap(), [11, 12]);
    std::fs::write(&index, r#"{"weight_map":{"a":"../m-1.bin"}}"#).unwrap();
    assert!(matches!(TensorFiles::open(&index), Err(AdapterError::BadShardName { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_file_with_bytes_changed_is_read_or_refused_but_never_a_panic(
        changes in prop::collection::vec((0_usize..5345, any::<u8>()), 1..4),
        length in prop::option::weighted(0.1, 0_usize..5345),
    ) {
        let mut bytes = std::fs::read(fixture("stable_diffusion.ckpt")).unwrap();
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        bytes.truncate(length.unwrap_or(usize::MAX));
        if let Ok(file) = open(bytes) {
            for name in file.names() {
                let info = file.info(name).unwrap();
                let num_bytes = file.read_bytes(name).unwrap().len();
                prop_assert_eq!(num_bytes, info.num_elements() * info.dtype.size_bytes());
                let _ = (file.read_f32(name), file.read_i64(name));
            }
        }
    }

    #[test]
    fn any_bytes_as_pickle_are_read_or_refused_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(file(&bytes));
    }
}

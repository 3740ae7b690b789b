//! Files that were made to mislead: an error, no panic, and little memory and time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use loralei_adapter::{AdapterFile, Compatibility, Format, TensorView, write_tensors};
use proptest::prelude::*;

fn place(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

/// Bytes of a file: header and that many zeros.
fn raw(header: &str, num_data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; num_data_bytes]);
    bytes
}

#[test]
fn damaged_files_are_errors() {
    let module = "lora_unet_mid_block_attentions_0_proj_in";
    let tensor = |leaf: &str, shape: &str, begin: usize, end: usize| {
        format!("\"{module}.{leaf}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
    };
    let down = tensor("lora_down.weight", "[1,2]", 0, 8);
    let up = tensor("lora_up.weight", "[2,1]", 8, 16);
    let whole = raw(&format!("{{{down},{up}}}"), 16);
    let (_folder, path) = place("a.safetensors");
    std::fs::write(&path, &whole).unwrap();
    AdapterFile::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(AdapterFile::read(&path).is_err(), "{length} bytes");
    }
    let wrong = [
        format!("{{{down},{down},{up}}}"),
        format!("{{{down},{}}}", tensor("lora_up.weight", "[4]", 8, 16)),
        format!("{{{down},{}}}", tensor("lora_up.weight", "[1,2]", 8, 16)),
        format!("{{{down},{}}}", tensor("lora_up.weight", "[4611686018427387904,8]", 8, 16)),
        format!("{{{down},{}}}", tensor("lora_up.weight", "[1,1,1,1,1,1,1,2]", 8, 16)),
        format!("{{{down},{}}}", tensor("hada_w1_a", "[2,1]", 8, 16)),
        format!("{{{down},{}}}", tensor("alpha", "[2]", 8, 16)),
        format!("{{{down},{}}}", tensor("", "[2,1]", 8, 16)),
    ];
    for header in wrong {
        std::fs::write(&path, raw(&header, 16)).unwrap();
        assert!(AdapterFile::read(&path).is_err(), "{header}");
        assert!(Compatibility::read(&path).is_err(), "{header}");
    }
}

#[test]
fn thousands_of_keys_in_a_megabyte_take_milliseconds() {
    let (_folder, path) = place("a.safetensors");
    let one = [0.5_f32];
    // A LoRA of rank 1 with one number a side: as many modules as a header of under 1 MB has room for.
    let keys =
        (0..3000).flat_map(|i| ["down", "up"].map(|end| format!("lora_unet_down_blocks_{i}_conv.lora_{end}.weight")));
    let tensors: BTreeMap<String, TensorView> = keys.map(|key| (key, TensorView::f32(&[1, 1], &one))).collect();
    write_tensors(&path, &tensors, &BTreeMap::new()).unwrap();
    let fastest = (0..5).map(|_| {
        let begin = Instant::now();
        let file = AdapterFile::read(&path).unwrap();
        assert_eq!(file.changes.len(), 3000);
        begin.elapsed()
    });
    let fastest = fastest.min().unwrap();
    // 50 ms on a quiet machine; tests share theirs.
    assert!(fastest < Duration::from_millis(500), "{fastest:?}");
}

/// Texts that look like keys.
fn key() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "unet.",
        "text_encoder.",
        "text_encoder_2.",
        "base_model.model.",
        "lora_unet_",
        "lora_te_",
        "lora_te1_",
        "unet:",
        "text_encoder:",
        "down_blocks",
        "mid_block",
        "input_blocks_",
        "output_blocks_",
        "middle_block_",
        "attentions",
        "attn1",
        "to_q",
        "to_out",
        "proj_in",
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_down.weight",
        ".lora_up.weight",
        "_lora.down.weight",
        "_lora.up.weight",
        ".alpha",
        ".hada_w1_a",
        ".lokr_w1",
        ".dora_scale",
        ".diff",
        ":up",
        ":down",
        "0",
        "1",
        "99999999999",
        ".",
        "_",
        ":",
        "bundle_emb.",
        "\u{e9}",
        "x",
    ]);
    prop::collection::vec(word, 1..7).prop_map(|words| words.concat())
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..5, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_keys_and_shapes_are_read_or_refused(
        tensors in prop::collection::btree_map(key(), shape(), 1..8),
        settings in "[\\[\\]{}\":,a-z0-9._]{0,60}",
        classes in "[\\[\\]{}\":,a-zA-Z0-9]{0,40}",
    ) {
        let (folder, path) = place("a.safetensors");
        let values = vec![0.25_f32; 1024];
        let views: BTreeMap<String, TensorView> = tensors
            .iter()
            .map(|(name, shape)| (name.clone(), TensorView::f32(shape, &values[..shape.iter().product()])))
            .collect();
        let metadata = BTreeMap::from([("lora_adapter_metadata".to_owned(), settings), ("unet".to_owned(), classes)]);
        write_tensors(&path, &views, &metadata).unwrap();
        if let Ok(file) = AdapterFile::read_with_unknown_keys(&path) {
            let found = Compatibility::of(&file);
            prop_assert!(found.programs.iter().all(|program| program.num_keys_loaded <= found.num_keys));
            for format in [Format::Kohya, Format::Diffusers, Format::Peft, Format::Cloneofsimo] {
                let out = folder.path().join(format.name());
                if file.write(&out, format, None).is_ok() {
                    let again = AdapterFile::read(&out).unwrap();
                    let is_kept = file.changes.keys().all(|module| again.changes.contains_key(module));
                    prop_assert!(is_kept, "{:?} {:?}", file.changes.keys(), again.changes.keys());
                }
            }
        }
    }

    #[test]
    fn any_settings_of_peft_are_read_or_refused(config in "[\\[\\]{}\":,a-z_0-9.-]{0,80}", alpha in any::<f64>()) {
        let (folder, _) = place("a");
        let ones = [1.0_f32; 4];
        let tensors = BTreeMap::from(["lora_A", "lora_B"].map(|end| {
            (format!("base_model.model.mid_block.attentions.0.proj_in.{end}.weight"), TensorView::f32(&[2, 2], &ones))
        }));
        write_tensors(&folder.path().join("adapter_model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        for text in [config, format!("{{\"lora_alpha\": {alpha:e}}}")] {
            std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
            let _ = AdapterFile::read(folder.path());
        }
    }
}

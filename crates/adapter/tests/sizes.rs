//! How long an adapter of the size of Stable Diffusion 1.5 takes. On a quiet machine:
//! `cargo test --release -p loralei-adapter --test sizes -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use loralei_adapter::{Adapter, AdapterFile, Array, Format, Inspection, KeptRanks, LoraModule, SaveDtype};

/// Blocks with attention, and their widths.
const BLOCKS: [(&str, usize, usize); 7] = [
    ("down_blocks_0", 2, 320),
    ("down_blocks_1", 2, 640),
    ("down_blocks_2", 2, 1280),
    ("mid_block", 1, 1280),
    ("up_blocks_1", 3, 1280),
    ("up_blocks_2", 3, 640),
    ("up_blocks_3", 3, 320),
];
const TEXT_WIDTH: usize = 768;

/// Names and weights' shapes of the 264 layers that sd-scripts trains.
fn layers() -> Vec<(String, Vec<usize>)> {
    let mut layers = Vec::new();
    for (block, count, width) in BLOCKS {
        for index in 0..count {
            let start = format!("lora_unet_{block}_attentions_{index}");
            let inner = format!("{start}_transformer_blocks_0");
            for end in ["proj_in", "proj_out"] {
                layers.push((format!("{start}_{end}"), vec![width, width, 1, 1]));
            }
            for end in ["attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out_0", "attn2_to_q", "attn2_to_out_0"] {
                layers.push((format!("{inner}_{end}"), vec![width, width]));
            }
            for end in ["attn2_to_k", "attn2_to_v"] {
                layers.push((format!("{inner}_{end}"), vec![width, TEXT_WIDTH]));
            }
            layers.push((format!("{inner}_ff_net_0_proj"), vec![8 * width, width]));
            layers.push((format!("{inner}_ff_net_2"), vec![width, 4 * width]));
        }
    }
    for index in 0..12 {
        let start = format!("lora_te_text_model_encoder_layers_{index}");
        for end in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            layers.push((format!("{start}_self_attn_{end}"), vec![TEXT_WIDTH, TEXT_WIDTH]));
        }
        layers.push((format!("{start}_mlp_fc1"), vec![4 * TEXT_WIDTH, TEXT_WIDTH]));
        layers.push((format!("{start}_mlp_fc2"), vec![TEXT_WIDTH, 4 * TEXT_WIDTH]));
    }
    layers
}

/// Numbers without a pattern (xorshift), as small as trained factors.
fn numbers(count: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        ((*state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 0.04
    };
    (0..count).map(|_| next()).collect()
}

fn adapter(rank: usize, seed: u64) -> Adapter {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut modules = BTreeMap::new();
    for (name, shape) in layers() {
        let mut down_shape = shape.clone();
        down_shape[0] = rank;
        let up_shape = if shape.len() == 4 { vec![shape[0], rank, 1, 1] } else { vec![shape[0], rank] };
        let down = numbers(down_shape.iter().product(), &mut state);
        let up = numbers(up_shape.iter().product(), &mut state);
        let (down, up) = (Array { shape: down_shape, data: down }, Array { shape: up_shape, data: up });
        modules.insert(name, LoraModule { down, up, alpha: Some(rank as f32 / 2.0) });
    }
    Adapter { modules, metadata: BTreeMap::new() }
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    result
}

#[test]
#[ignore = "takes its time, and only says something on a quiet machine"]
fn an_adapter_of_stable_diffusion_1_5_is_inspected_and_resized_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    adapter(32, 1).write(&path, SaveDtype::F16).unwrap();
    assert_eq!(layers().len(), 264);

    let file = timed("read", || AdapterFile::read(&path).unwrap());
    let inspection = timed("inspect", || Inspection::of(&file, None, None).unwrap());
    assert_eq!(inspection.modules.len(), 264);
    let other = AdapterFile::from_adapter(adapter(32, 2), Path::new("other"));
    timed("inspect against another", || Inspection::of(&file, None, Some(&other)).unwrap());
    let (resized, report) = timed("resize 32 to 8", || file.resized(KeptRanks::Rank(8)).unwrap());
    println!("error {:.3}", report.error);
    timed("write", || resized.write(&folder.path().join("b.safetensors"), Format::Kohya, None).unwrap());

    let five: Vec<Adapter> = (1..=5).map(|seed| adapter(32, seed)).collect();
    let sum = Adapter::sum(&five.iter().map(|adapter| (adapter, 0.8)).collect::<Vec<_>>()).unwrap();
    let sum = AdapterFile::from_adapter(sum, Path::new("sum"));
    timed("five adapters to rank 32", || sum.resized(KeptRanks::Rank(32)).unwrap());
}

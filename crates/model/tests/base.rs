//! Bases in every form they come in, factors on every kind of layer, and files that do not fit.
#![allow(clippy::unwrap_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Dtype, TensorFile, TensorView, atomic_write_bytes, write_tensors};
use loralei_model::{
    AdapterSet, Base, BaseSource, Checkpointing, Conditioning, FactorValues, Injection, LayerShape, ModelError, Targets,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name).join("base")
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Shape and numbers of each tensor of a file.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A copy of a golden base whose U-Net file is gone, and the tensors of that file.
fn without_unet(name: &str) -> (tempfile::TempDir, Tensors) {
    let place = tempfile::tempdir().unwrap();
    copy_tree(&golden(name), place.path());
    let file = TensorFile::open(&place.path().join(UNET)).unwrap();
    let read = |name: &str| (file.info(name).unwrap().shape.clone(), file.read_f32(name).unwrap());
    let tensors = file.names().map(|name| (name.to_owned(), read(name))).collect();
    std::fs::remove_file(place.path().join(UNET)).unwrap();
    (place, tensors)
}

fn write<'a>(path: &Path, tensors: impl Iterator<Item = (&'a String, &'a (Vec<usize>, Vec<f32>))>, dtype: Dtype) {
    let view = |(name, (shape, values)): (&String, &'a (Vec<usize>, Vec<f32>))| {
        (name.clone(), TensorView::f32_stored_as(dtype, shape, values))
    };
    write_tensors(path, &tensors.map(view).collect(), &BTreeMap::new()).unwrap();
}

fn open(folder: &Path, dtype: DType) -> Base {
    Base::open(BaseSource::at_path(folder), None, dtype, &Device::Cpu).unwrap()
}

/// Numbers without a pattern, the same in every run.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * 1.7).collect()
}

fn inputs(base: &Base) -> (Tensor, Conditioning) {
    let latents = Tensor::from_vec(numbers(2 * 4 * 12 * 8, 1), (2, 4, 12, 8), &Device::Cpu).unwrap();
    let width = base.text_widths()[0];
    let text = Tensor::from_vec(numbers(2 * 77 * width, 2), (2, 77, width), &Device::Cpu).unwrap();
    (latents, Conditioning::text(text))
}

fn predict(base: &Base) -> Tensor {
    let (latents, text) = inputs(base);
    base.load_unet(None).unwrap().forward(&latents, &[17.0, 801.0], &text, Checkpointing::None).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b)
}

#[test]
fn shards_give_what_the_whole_file_gives() {
    let (place, tensors) = without_unet("sd2");
    let folder = place.path().join("unet");
    let shards =
        ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"];
    let shard_of: BTreeMap<&String, usize> = tensors.keys().enumerate().map(|(i, name)| (name, i % 2)).collect();
    for (i, shard) in shards.iter().enumerate() {
        write(&folder.join(shard), tensors.iter().filter(|(name, _)| shard_of[name] == i), Dtype::F32);
    }
    let map: BTreeMap<_, _> = shard_of.iter().map(|(name, i)| (name, shards[*i])).collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    atomic_write_bytes(&folder.join("diffusion_pytorch_model.safetensors.index.json"), index.as_bytes()).unwrap();
    let (sharded, whole) = (predict(&open(place.path(), DType::F32)), predict(&open(&golden("sd2"), DType::F32)));
    assert_eq!(distance(&sharded, &whole), 0.0);
}

#[test]
fn half_precision_files_load_under_their_own_name() {
    let (place, tensors) = without_unet("sd1");
    let whole = predict(&open(&golden("sd1"), DType::F32));
    for (dtype, tolerance) in [(Dtype::F16, 3e-3), (Dtype::Bf16, 3e-2)] {
        let path = place.path().join("unet/diffusion_pytorch_model.fp16.safetensors");
        write(&path, tensors.iter(), dtype);
        let d = distance(&predict(&open(place.path(), DType::F32)), &whole);
        assert!(d > 0.0 && d < tolerance, "{dtype:?}: {d}");
    }
}

#[test]
fn a_file_that_does_not_fit_is_an_error_that_names_the_tensor() {
    let (place, tensors) = without_unet("sd1");
    let path = place.path().join(UNET);
    let base = open(place.path(), DType::F32);
    let refused = |tensors: &Tensors| {
        write(&path, tensors.iter(), Dtype::F32);
        base.load_unet(None).err().unwrap()
    };
    let name = "mid_block.attentions.0.proj_in.weight";

    let mut missing = tensors.clone();
    missing.remove(name).unwrap();
    assert!(matches!(refused(&missing), ModelError::MissingTensor { key, .. } if key == name));

    let mut strange = tensors.clone();
    strange.insert("conv_in.scale".into(), (vec![1], vec![1.0]));
    assert!(matches!(refused(&strange), ModelError::UnexpectedTensors { count: 1, key, .. } if key == "conv_in.scale"));

    let mut flat = tensors.clone();
    let (shape, values) = flat.get_mut(name).unwrap();
    *shape = vec![values.len(), 1, 1, 1];
    assert!(matches!(refused(&flat), ModelError::WrongShape { key, .. } if key == name));

    let mut poisoned = tensors.clone();
    poisoned.get_mut(name).unwrap().1[5] = f32::INFINITY;
    assert!(matches!(refused(&poisoned), ModelError::NonFiniteWeight { key, .. } if key == name));
}

/// The gradients of a projection of the prediction, with factors on the layers that `pattern` matches.
fn gradients(pattern: &str, checkpointing: Checkpointing) -> BTreeMap<String, Tensor> {
    let base = open(&golden("sd1"), DType::F32);
    let values = |module: &str, shape: LayerShape| {
        let (down, up) = shape.factor_shapes(3);
        let seed = module.bytes().map(usize::from).sum();
        let part = |shape: Vec<usize>, seed, scale: f32| {
            numbers(shape.iter().product(), seed).into_iter().map(|x| x * scale).collect()
        };
        FactorValues { down: part(down, seed, 0.3), up: part(up, seed + 1, 0.05), alpha: 2.0, rank: 3 }
    };
    let targets = Targets::Patterns(vec![pattern.to_owned()]);
    let injection = Injection::new(base.unet_prefix(), targets, Box::new(values));
    let unet = base.load_unet(Some(&injection)).unwrap();
    let factors = AdapterSet::new(injection.finish("U-Net").unwrap());
    let (latents, text) = inputs(&base);
    let prediction = unet.forward(&latents, &[17.0, 801.0], &text, checkpointing).unwrap();
    let projection = Tensor::from_vec(numbers(prediction.elem_count(), 9), prediction.dims(), &Device::Cpu).unwrap();
    let scalar = (prediction * projection).unwrap().sum_all().unwrap();
    let gradients = factors.take_gradients(&scalar.backward().unwrap()).unwrap();
    assert_eq!(gradients.len(), 2 * factors.len(), "{pattern}: every factor has a gradient");
    gradients
}

#[test]
fn every_kind_of_layer_can_learn_and_recompute_finds_the_same_gradients() {
    // Convolutions of both sizes and strides, projections of the time embedding, and everything at once, where the time
    // embedding itself carries a gradient through recomputed blocks.
    for pattern in ["*.conv?", "*.conv_shortcut", "*samplers.0.conv", "*.time_emb_proj", "time_embedding.*", "*"] {
        let (none, block) = (gradients(pattern, Checkpointing::None), gradients(pattern, Checkpointing::Block));
        for (key, gradient) in &none {
            assert!(distance(&block[key], gradient) < 1e-4, "{pattern}: {key}");
        }
    }
}

#[test]
fn the_first_block_that_matches_a_layer_counts_and_one_without_layers_is_an_error() {
    let base = open(&golden("sd1"), DType::F32);
    // Block 0 has rank 2, block 1 none, other layers rank 1.
    let load = |blocks: [&str; 2]| {
        let by_block = |_: &str, shape: LayerShape, block: Option<usize>| {
            let rank = match block {
                Some(0) => 2,
                Some(_) => return None,
                None => 1,
            };
            let (down, up) = shape.factor_shapes(rank);
            let len = |shape: Vec<usize>| shape.iter().product();
            Some(FactorValues { down: vec![0.5; len(down)], up: vec![0.0; len(up)], alpha: 1.0, rank })
        };
        let blocks = blocks.map(str::to_owned).to_vec();
        let injection = Injection::by_block(base.unet_prefix(), Targets::Attention, blocks, Box::new(by_block));
        base.load_unet(Some(&injection)).unwrap();
        injection.finish("U-Net").map(AdapterSet::new)
    };
    let set = load(["*.attn2.to_k", "down_blocks.*"]).unwrap();
    let mut seen = [0; 3];
    for factors in set.modules() {
        let (path, rank) = (factors.path(), factors.rank());
        assert_eq!(rank, if path.ends_with(".attn2.to_k") { 2 } else { 1 }, "{path}");
        assert!(rank == 2 || !path.starts_with("down_blocks."), "{path}");
        seen[rank] += 1;
        assert_eq!(set.path_of(&format!("{}.lora_up.weight", factors.module())), Some(path));
    }
    assert!(seen[1] > 0 && seen[2] > 0, "{seen:?}");
    for (blocks, idle) in [(["*.attn2.to_k", "*.down.*"], "*.down.*"), (["*", "mid_block.*"], "mid_block.*")] {
        let error = load(blocks).err().unwrap();
        assert!(matches!(error, ModelError::NothingMatched { pattern, .. } if pattern == idle), "{idle}");
    }
}

#[test]
fn a_target_that_matches_nothing_is_an_error() {
    let base = open(&golden("sd1"), DType::F32);
    let no_values = |_: &str, shape: LayerShape| {
        let (down, up) = shape.factor_shapes(1);
        FactorValues { down: vec![0.0; down.iter().product()], up: vec![0.0; up.iter().product()], alpha: 1.0, rank: 1 }
    };
    let patterns = ["*.attn1.to_q", "*.attn3.to_q"].map(str::to_owned).to_vec();
    let injection = Injection::new(base.unet_prefix(), Targets::Patterns(patterns), Box::new(no_values));
    base.load_unet(Some(&injection)).unwrap();
    let error = injection.finish("U-Net").err().unwrap();
    assert!(matches!(error, ModelError::NothingMatched { pattern, .. } if pattern == "*.attn3.to_q"));
}

#[test]
fn sizes_that_the_networks_cannot_halve_are_refused_with_the_nearest_that_fits() {
    let base = open(&golden("sd1"), DType::F32); // 4 times by the autoencoder, 4 times by the U-Net
    assert!(base.check_size(32, 48).is_ok());
    let error = base.check_size(40, 32).unwrap_err();
    assert_eq!(error.hint().unwrap(), "the nearest size that fits is 48x32");
    assert!(base.check_size(0, 32).is_err());
}

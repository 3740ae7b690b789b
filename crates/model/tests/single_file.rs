//! Checkpoints of one file: read from an independent conversion (`tests/golden/make_single_file.py`), written and read
//! back, told from other models.

#![allow(clippy::unwrap_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Dtype, TensorFile, TensorView, write_tensors};
use loralei_model::{
    Base, BaseLayers, BaseSource, Checkpointing, Conditioning, ForeignModel, Layout, ModelError, Prediction, convert,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: &Path) -> Result<Base, ModelError> {
    Base::open(BaseSource::at_path(path), None, DType::F32, &Device::Cpu)
}

/// The golden single file beside the configurations that tensors cannot tell.
fn single_file_with_configurations(name: &str) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let configurations =
        ["unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"];
    let tokenizer = ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"];
    for relative in configurations.into_iter().chain(tokenizer) {
        let target = place.path().join(relative);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(golden(name).join("base").join(relative), target).unwrap();
    }
    let path = place.path().join("model.safetensors");
    std::fs::copy(golden(name).join("single-file.safetensors"), &path).unwrap();
    (place, path)
}

/// Numbers without a pattern.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * 1.7).collect()
}

/// What each network makes of the same numbers: text, prediction, latents of a picture, decoded picture.
fn outputs(base: &Base) -> Vec<Vec<f32>> {
    let ids: Vec<i64> = base.tokenizer(0).unwrap().encode("photo of the sks dog").unwrap().input_ids;
    let ids = Tensor::from_vec(ids, (1, 77), &Device::Cpu).unwrap();
    let text = base.load_text_encoder(0, None).unwrap().forward(&ids, 0, Checkpointing::None).unwrap().context;
    let latents = Tensor::from_vec(numbers(4 * 12 * 8, 1), (1, 4, 12, 8), &Device::Cpu).unwrap();
    let unet = base.load_unet(None).unwrap();
    let told = Conditioning::text(text.clone());
    let prediction = unet.forward(&latents, &[417.0], &told, Checkpointing::None).unwrap();
    let vae = base.load_vae().unwrap();
    let side = 4 * base.vae_config().downsampling();
    let picture = Tensor::from_vec(numbers(side * side * 6, 2), (1, side, 2 * side, 3), &Device::Cpu).unwrap();
    let encoded = vae.encode(&picture).unwrap().mean;
    let all = [text, prediction, encoded, vae.decode(&latents).unwrap()];
    all.iter().map(|xs| xs.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn the_original_layout_gives_what_the_folder_gives_to_the_bit() {
    for name in ["sd1", "sd2"] {
        let (_place, path) = single_file_with_configurations(name);
        let (single, folder) = (open(&path).unwrap(), open(&golden(name).join("base")).unwrap());
        assert_eq!(outputs(&single), outputs(&folder), "{name}");
    }
}

#[test]
fn layers_by_module_name_are_the_same_in_both_layouts() {
    for name in ["sd1", "sd2"] {
        let (_place, path) = single_file_with_configurations(name);
        let layers = |path: &Path| BaseLayers::of(&open(path).unwrap()).unwrap();
        let (single, folder) = (layers(&path), layers(&golden(name).join("base")));
        let modules: Vec<&str> = folder.modules().filter(|module| !module.ends_with("position_ids")).collect();
        assert!(modules.iter().any(|module| module.ends_with("self_attn_v_proj"))); // a third of a stacked tensor of SD2
        for module in modules {
            let weight = single.weight(module).unwrap().unwrap_or_else(|| panic!("{name}: {module} is missing"));
            assert_eq!(weight.data, folder.weight(module).unwrap().unwrap().data, "{name}: {module}");
        }
    }
}

#[test]
fn a_folder_written_as_one_file_and_back_gives_the_same_to_the_bit() {
    for name in ["sd1", "sd2"] {
        let place = tempfile::tempdir().unwrap();
        let folder = open(&golden(name).join("base")).unwrap();
        let expected = outputs(&folder);
        let (file, again) = (place.path().join("one.safetensors"), place.path().join("again"));
        let mut last = (0, 0);
        convert(&folder, &file, Layout::SingleFile, None, &mut |done, total| last = (done, total)).unwrap();
        assert!(last.0 == last.1 && last.0 > 100, "{last:?}");
        // Nothing but the file is needed: configurations and tokenizer travel in it.
        let single = open(&file).unwrap();
        assert_eq!(outputs(&single), expected, "{name} as a file");
        assert_eq!(single.noise_schedule().prediction(), folder.noise_schedule().prediction());
        convert(&single, &again, Layout::Diffusers, None, &mut |_, _| {}).unwrap();
        assert_eq!(outputs(&open(&again).unwrap()), expected, "{name} as a folder");
        assert!(matches!(
            convert(&single, &again, Layout::Diffusers, None, &mut |_, _| {}),
            Err(ModelError::Exists { .. })
        ));
    }
}

#[test]
fn a_written_file_has_the_tensors_of_the_independent_conversion() {
    for name in ["sd1", "sd2"] {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("one.safetensors");
        convert(&open(&golden(name).join("base")).unwrap(), &file, Layout::SingleFile, None, &mut |_, _| {}).unwrap();
        let (ours, theirs) = (
            TensorFile::open(&file).unwrap(),
            TensorFile::open(&golden(name).join("single-file.safetensors")).unwrap(),
        );
        for key in ours.names() {
            assert_eq!(ours.info(key), theirs.info(key), "{name} {key}");
            assert_eq!(ours.read_f32(key).unwrap(), theirs.read_f32(key).unwrap(), "{name} {key}");
        }
        // What theirs has besides is what no network reads.
        let passenger = |key: &str| {
            let leftovers = ["betas", "alphas", "posterior", "log_", "sqrt_", "lvlb", "logit_scale", "text_projection"];
            leftovers.iter().any(|part| key.contains(part))
                || key.starts_with("model_ema.")
                || key.contains(".loss.")
                || key.ends_with("position_ids")
                || key.contains("resblocks.2.") // the layer more that sd2's file has
        };
        let missing: Vec<&str> = theirs.names().filter(|key| ours.info(key).is_none() && !passenger(key)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

#[test]
fn a_file_can_be_written_in_half_precision() {
    let place = tempfile::tempdir().unwrap();
    let (base, file) = (open(&golden("sd1").join("base")).unwrap(), place.path().join("half.safetensors"));
    convert(&base, &file, Layout::SingleFile, Some(Dtype::F16), &mut |_, _| {}).unwrap();
    let written = TensorFile::open(&file).unwrap();
    assert!(written.names().all(|name| written.info(name).unwrap().dtype == Dtype::F16));
    let (half, full) = (outputs(&open(&file).unwrap()), outputs(&base));
    for (half, full) in half.iter().zip(&full) {
        let error: f32 = half.iter().zip(full).map(|(a, b)| (a - b) * (a - b)).sum();
        let norm: f32 = full.iter().map(|x| x * x).sum();
        assert!(error > 0.0 && (error / norm).sqrt() < 1e-2, "{}", (error / norm).sqrt());
    }
}

fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let zeros = vec![0f32; 100_000];
    let views = tensors
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), TensorView::f32(shape, &zeros[..shape.iter().product::<usize>()])));
    write_tensors(path, &views.collect(), &BTreeMap::new()).unwrap();
}

#[test]
fn other_models_are_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    for (tensors, expected) in [
        (&[("conditioner.embedders.0.model.ln_final.weight", &[1][..])][..], ForeignModel::SdxlRefiner),
        (&[("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", &[1])], ForeignModel::Sd3),
        (&[("double_blocks.0.img_attn.qkv.weight", &[1])], ForeignModel::Flux),
        (&[(first, &[320, 9, 3, 3])], ForeignModel::Inpainting),
        (&[(first, &[320, 8, 3, 3])], ForeignModel::OtherInputs(8)),
        (&[("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", &[2, 3])], ForeignModel::Adapter),
    ] {
        let path = place.path().join("model.safetensors");
        write(&path, tensors);
        match open(&path) {
            Err(ModelError::Foreign { found, .. }) => assert_eq!(found, expected),
            other => panic!("{expected:?}: {:?}", other.err()),
        }
    }
    let folder = place.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for (class, expected) in [
        ("StableDiffusion3Pipeline", ForeignModel::Sd3),
        ("FluxPipeline", ForeignModel::Flux),
        ("StableDiffusionInpaintPipeline", ForeignModel::Inpainting),
        ("PixArtAlphaPipeline", ForeignModel::OtherPipeline),
    ] {
        let index = format!("{{\"_class_name\": \"{class}\"}}");
        loralei_adapter::atomic_write_bytes(&folder.join("model_index.json"), index.as_bytes()).unwrap();
        match open(&folder) {
            Err(ModelError::Foreign { found, .. }) => assert_eq!(found, expected),
            other => panic!("{class}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_part_of_a_model_says_what_it_lacks() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("model.safetensors");
    write(&path, &[("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3])]);
    assert!(matches!(open(&path), Err(ModelError::MissingPart { part: "text encoder", .. })));
}

/// A tiny SD 2.x: what decides is that its text encoder is OpenCLIP's.
#[test]
fn an_sd2_file_that_does_not_say_what_it_predicts_asks_for_it() {
    let (place, path) = single_file_with_configurations("sd2");
    std::fs::remove_dir_all(place.path().join("scheduler")).unwrap();
    let error = open(&path).err().unwrap();
    assert!(matches!(error, ModelError::UnknownPrediction { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--prediction v"));
    for prediction in [Prediction::Epsilon, Prediction::VPrediction] {
        let base = Base::open(BaseSource::at_path(&path), Some(prediction), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(base.noise_schedule().prediction(), prediction);
    }
    let (place, path) = single_file_with_configurations("sd1");
    std::fs::remove_dir_all(place.path().join("scheduler")).unwrap();
    assert_eq!(open(&path).unwrap().noise_schedule().prediction(), Prediction::Epsilon, "SD 1.x predicts noise");
}

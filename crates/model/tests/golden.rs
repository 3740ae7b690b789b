//! Text encoder, autoencoder and tokenizer against what transformers and diffusers make of the same weights
//! (`tests/golden`, made by `make_golden.py` there).
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{TensorFile, TensorView, write_tensors};
use loralei_model::{Base, BaseSource, Checkpointing, Conditioning, EncodedText, Tokenizer, TokenizerFiles, ops};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CASES: [&str; 4] = ["sd1", "sd2", "sdxl", "sdxl-v"];
/// Those with two text encoders, of which the second pools.
const WITH_TWO_ENCODERS: [&str; 2] = ["sdxl", "sdxl-v"];

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(name: &str) -> (Base, TensorFile) {
    let base = Base::open(BaseSource::Folder(case(name).join("base")), None, DType::F32, &Device::Cpu).unwrap();
    (base, TensorFile::open(&case(name).join("parts.safetensors")).unwrap())
}

fn tensor(file: &TensorFile, name: &str) -> Tensor {
    Tensor::from_vec(file.read_f32(name).unwrap(), file.info(name).unwrap().shape.clone(), &Device::Cpu).unwrap()
}

fn distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.dims(), theirs.dims());
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    norm(&(ours - theirs).unwrap()) / norm(theirs)
}

/// Our kernels, and candle's tensor operations.
fn on_both_paths(test: impl Fn()) {
    test();
    ops::without_kernels(test);
}

#[test]
fn text_encoders_give_what_transformers_gives() {
    for name in CASES {
        on_both_paths(|| text_encoder_of(name));
    }
}

fn text_encoder_of(name: &str) {
    let (base, parts) = open(name);
    for (i, suffix) in ["", "_2"].into_iter().enumerate().take(base.num_text_encoders()) {
        let text = encoded(&base, &parts, i, suffix);
        let d = distance(&text.context, &tensor(&parts, &format!("text{suffix}")));
        assert!(d < 1e-5, "{name} {i}: {d}");
        assert_eq!(text.pooled.is_some(), i == 1, "{name} {i}");
        if let Some(pooled) = text.pooled {
            let d = distance(&pooled, &tensor(&parts, "pooled"));
            assert!(d < 1e-5, "{name} pooled: {d}");
        }
    }
}

fn encoded(base: &Base, parts: &TensorFile, i: usize, suffix: &str) -> EncodedText {
    let name = format!("input_ids{suffix}");
    let shape = parts.info(&name).unwrap().shape.clone();
    let ids = Tensor::from_vec(parts.read_i64(&name).unwrap(), shape, &Device::Cpu).unwrap();
    base.load_text_encoder(i, None).unwrap().forward(&ids, 0, Checkpointing::None).unwrap()
}

#[test]
fn the_last_layer_of_an_encoder_that_is_read_before_it_need_not_be_there() {
    for name in WITH_TWO_ENCODERS {
        let place = tempfile::tempdir().unwrap();
        let copy = |from: &Path, to: &Path| {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        };
        for folder in std::fs::read_dir(case(name).join("base")).unwrap().map(|entry| entry.unwrap().path()) {
            let files = if folder.is_dir() { folder.as_path() } else { continue };
            for file in std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().path()) {
                copy(&file, &place.path().join(folder.file_name().unwrap()).join(file.file_name().unwrap()));
            }
        }
        let weights = place.path().join("text_encoder/model.safetensors");
        let file = TensorFile::open(&weights).unwrap();
        let read: Vec<&str> = file
            .names()
            .filter(|name| !["layers.2.", "final_layer_norm", "position_ids"].iter().any(|part| name.contains(part)))
            .collect();
        assert_eq!(read.len(), 2 + 2 * 16, "{name}: two embeddings, two layers");
        let values = |name: &&str| (file.info(name).unwrap().shape.clone(), file.read_f32(name).unwrap());
        let all: BTreeMap<String, _> = read.iter().map(|name| ((*name).to_owned(), values(name))).collect();
        let views = all.iter().map(|(name, (shape, values))| (name.clone(), TensorView::f32(shape, values)));
        write_tensors(&weights, &views.collect(), &BTreeMap::new()).unwrap();

        let parts = TensorFile::open(&case(name).join("parts.safetensors")).unwrap();
        let source = BaseSource::Folder(place.path().to_owned());
        let without = Base::open(source, None, DType::F32, &Device::Cpu).unwrap();
        let d = distance(&encoded(&without, &parts, 0, "").context, &tensor(&parts, "text"));
        assert!(d < 1e-5, "{name}: {d}");
        assert_eq!(without.load_text_encoder(0, None).unwrap().num_layers(), 2);
    }
}

#[test]
fn predictions_with_pooled_text_and_sizes_are_those_of_diffusers() {
    for name in WITH_TWO_ENCODERS {
        on_both_paths(|| {
            let (base, parts) = open(name);
            let text =
                EncodedText { context: tensor(&parts, "unet_context"), pooled: Some(tensor(&parts, "unet_pooled")) };
            let times: Vec<f64> = parts.read_i64("unet_timesteps").unwrap().into_iter().map(|t| t as f64).collect();
            let time_ids = tensor(&parts, "unet_time_ids");
            let unet = base.load_unet(None).unwrap();
            let predict = |time_ids: &Tensor| {
                let told = Conditioning::new(text.clone(), Some(time_ids.clone()));
                unet.forward(&tensor(&parts, "unet_latents"), &times, &told, Checkpointing::None).unwrap()
            };
            let expected = tensor(&parts, "unet_prediction");
            let d = distance(&predict(&time_ids), &expected);
            assert!(d < 1e-5, "{name}: {d}");
            // As bf16 would round them: an odd size that another takes the place of shows.
            let rounded = time_ids.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            assert!(distance(&predict(&rounded), &expected) > 1e-3, "{name}: sizes are told to the pixel");
            let told = Conditioning::text(text.context.clone());
            let latents = tensor(&parts, "unet_latents");
            assert!(unet.forward(&latents, &times, &told, Checkpointing::None).is_err(), "{name}: told too little");
        });
    }
}

#[test]
fn autoencoders_give_what_diffusers_gives() {
    for name in CASES {
        on_both_paths(|| autoencoder_of(name));
    }
}

fn autoencoder_of(name: &str) {
    let (base, parts) = open(name);
    let vae = base.load_vae().unwrap();
    let pixels = tensor(&parts, "image").permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
    let posterior = vae.encode(&pixels).unwrap();
    let mean = distance(&posterior.mean, &tensor(&parts, "vae_mean"));
    let std = distance(&posterior.std, &tensor(&parts, "vae_std"));
    // The reference decodes latents as the decoder takes them, before the scaling that `decode` undoes.
    let scaled = (tensor(&parts, "latents_in") * vae.scaling_factor()).unwrap();
    let decoded = vae.decode(&scaled).unwrap().permute((0, 3, 1, 2)).unwrap();
    let decoded = distance(&decoded, &tensor(&parts, "decoded"));
    assert!(mean < 1e-5 && std < 1e-5 && decoded < 1e-5, "{name}: {mean} {std} {decoded}");
}

#[test]
fn tokenizers_give_what_transformers_gives() {
    for name in CASES {
        let (base, parts) = open(name);
        let captions = std::fs::read_to_string(case(name).join("captions.json")).unwrap();
        let captions: Vec<String> = serde_json::from_str(&captions).unwrap();
        for (i, suffix) in ["", "_2"].into_iter().enumerate().take(base.num_text_encoders()) {
            let expected = parts.read_i64(&format!("caption_ids{suffix}")).unwrap();
            let tokenizer = base.tokenizer(i).unwrap();
            assert_eq!(expected.len(), 77 * captions.len());
            for (caption, ids) in captions.iter().zip(expected.chunks(77)) {
                assert_eq!(tokenizer.encode(caption).unwrap().input_ids, ids, "{name} {i}: {caption:?}");
            }
        }
    }
}

#[test]
fn both_forms_of_a_tokenizer_agree() {
    let files = |path: &str| {
        let file = loralei_emoji_file(path);
        Some(String::from_utf8(file).unwrap())
    };
    let json = TokenizerFiles { tokenizer_json: files("tokenizer.json"), ..TokenizerFiles::default() };
    let pair = TokenizerFiles { vocab: files("vocab.json"), merges: files("merges.txt"), ..TokenizerFiles::default() };
    let (json, pair) = (Tokenizer::new(&json, 77).unwrap(), Tokenizer::new(&pair, 77).unwrap());
    for caption in ["a octopus on teal", "A  Fox face, DON'T!", "\u{7ae0}\u{9b5a} 8 arms <|endoftext|> x", ""] {
        assert_eq!(json.encode(caption).unwrap(), pair.encode(caption).unwrap(), "{caption:?}");
    }
}

fn loralei_emoji_file(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../emoji/base/tokenizer").join(name)).unwrap()
}

#[test]
fn what_does_not_fit_is_counted() {
    let (base, _) = open("sd1");
    let tokenizer = base.tokenizer(0).unwrap();
    let tokens = tokenizer.encode(&"dog ".repeat(80)).unwrap();
    assert_eq!((tokens.input_ids.len(), tokens.num_cut), (77, 5));
    assert_eq!(tokenizer.encode("the dog").unwrap().num_cut, 0);
}

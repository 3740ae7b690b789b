//! Text encoder, autoencoder and tokenizer against what transformers and diffusers make of the same weights
//! (`tests/golden`, made by `make_golden.py` there).
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::TensorFile;
use loralei_model::{Base, BaseSource, Checkpointing, Tokenizer, TokenizerFiles, ops};
use std::path::PathBuf;

const CASES: [&str; 2] = ["sd1", "sd2"];

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
    let shape = parts.info("input_ids").unwrap().shape.clone();
    let ids = Tensor::from_vec(parts.read_i64("input_ids").unwrap(), shape, &Device::Cpu).unwrap();
    let text = base.load_text_encoder(0, None).unwrap().forward(&ids, Checkpointing::None).unwrap();
    let d = distance(&text, &tensor(&parts, "text"));
    assert!(d < 1e-5, "{name}: {d}");
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
        let expected = parts.read_i64("caption_ids").unwrap();
        let tokenizer = base.tokenizer(0).unwrap();
        assert_eq!(expected.len(), 77 * captions.len());
        for (caption, ids) in captions.iter().zip(expected.chunks(77)) {
            assert_eq!(tokenizer.encode(caption).unwrap().input_ids, ids, "{name}: {caption:?}");
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

//! The bundled base model: a working latent-diffusion model of 20 MB that draws 133 named emoji on 12 named
//! backgrounds, as the files of a diffusers folder in the program's own bytes.
//!
//! It exists so that everything can be tried and tested without a download. What it is, how it was made and how good it
//! is stands in `crates/emoji/README.md`; its recipe in `tools/emoji/`.
//!
//! ```
//! let names: Vec<_> = loralei_emoji::FILES.iter().map(|(path, _)| *path).collect();
//! assert!(names.contains(&"unet/config.json"));
//! ```

/// The file's path relative to the base's folder, and its bytes.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../base/", $path)))),*]
    };
}

/// What users call it: `--base emoji`.
pub const NAME: &str = "emoji";

/// Every file of the base: path relative to its folder, and content.
pub const FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

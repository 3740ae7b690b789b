//! Which files of a repository make a base: those of a diffusers pipeline of Stable Diffusion, or one checkpoint.
//!
//! Repositories hold the same weights many times over (half precision, before averaging, pickled, for other programs).
//! One set of weights per network is chosen, by the names that diffusers and transformers write.

use crate::{HubError, HubId};

/// File that marks a pipeline.
const MODEL_INDEX: &str = "model_index.json";
/// The precision's mark in file names.
const HALF: &str = "fp16";

/// Which files are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseOptions {
    /// Half-precision weights (half the download) rather than single, where both are there.
    pub prefer_half: bool,
    /// Pipelines with more text encoders are refused before anything is downloaded: 1 for Stable Diffusion 1.x and 2.x,
    /// 2 for SDXL.
    pub max_text_encoders: usize,
}

impl Default for BaseOptions {
    fn default() -> Self {
        Self { prefer_half: false, max_text_encoders: 2 }
    }
}

/// The files of a base, as paths in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseFiles {
    /// A diffusers folder.
    Pipeline {
        /// The small files: `model_index.json`, configurations, tokenizers.
        configs: Vec<String>,
        /// Weights, with the index of those in shards.
        weights: Vec<String>,
    },
    /// One checkpoint.
    SingleFile(String),
}

impl BaseFiles {
    /// Chooses from all files of a repository.
    ///
    /// # Errors
    /// [`HubError::NoSuchFile`] if `id` names one that is not there; [`HubError::MissingPart`] and
    /// [`HubError::TooManyTextEncoders`] for a pipeline of another family (or, in a cache, an incomplete one);
    /// [`HubError::NoModel`] and [`HubError::SeveralModels`] where there is no pipeline and not one checkpoint.
    pub fn choose(id: &HubId, files: &[String], options: &BaseOptions) -> Result<Self, HubError> {
        let repo = id.repo();
        if let Some(wanted) = id.file() {
            if files.iter().any(|file| file == wanted) {
                return Ok(Self::SingleFile(wanted.to_owned()));
            }
            let others = files.iter().filter(|file| is_checkpoint(file) && !file.contains('/')).cloned().collect();
            return Err(HubError::NoSuchFile { repo, file: wanted.to_owned(), others });
        }
        if files.iter().any(|file| file == MODEL_INDEX) {
            return pipeline(&repo, files, options);
        }
        let mut checkpoints = top_checkpoints(files);
        match checkpoints.len() {
            0 => Err(HubError::NoModel { repo }),
            1 => Ok(Self::SingleFile(checkpoints.remove(0))),
            _ => Err(HubError::SeveralModels { repo, files: checkpoints }),
        }
    }

    /// All of them, small files first.
    pub fn all(&self) -> Vec<String> {
        match self {
            Self::Pipeline { configs, weights } => configs.iter().chain(weights).cloned().collect(),
            Self::SingleFile(file) => vec![file.clone()],
        }
    }
}

fn pipeline(repo: &str, files: &[String], options: &BaseOptions) -> Result<BaseFiles, HubError> {
    let has = |path: &str| files.iter().any(|file| file == path);
    let encoders: Vec<&str> = ["text_encoder", "text_encoder_2", "text_encoder_3"]
        .into_iter()
        .filter(|folder| has_folder(files, folder))
        .collect();
    let networks: Vec<&str> =
        ["unet", "vae"].into_iter().chain(encoders.iter().copied().take(options.max_text_encoders)).collect();
    let missing = |part: &str| HubError::MissingPart { repo: repo.to_owned(), part: part.to_owned() };
    if !has_folder(files, "unet") {
        return Err(missing("a U-Net"));
    }
    if encoders.len() > options.max_text_encoders {
        let (found, limit) = (encoders.len(), options.max_text_encoders);
        return Err(HubError::TooManyTextEncoders { repo: repo.to_owned(), found, limit });
    }
    let needed = ["scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"];
    if let Some(path) = needed.into_iter().find(|path| !has(path)) {
        return Err(missing(path));
    }
    for encoder in &encoders {
        let (config, tokenizer) = (format!("{encoder}/config.json"), encoder.replace("text_encoder", "tokenizer"));
        let has_file = |name: &str| has(&format!("{tokenizer}/{name}"));
        if !has(&config) {
            return Err(missing(&config));
        }
        let has_tokenizer = has_file("tokenizer.json") || (has_file("vocab.json") && has_file("merges.txt"));
        if !has_tokenizer {
            return Err(missing(&format!("{tokenizer}/vocab.json and {tokenizer}/merges.txt")));
        }
    }

    let is_config = |file: &str| match file.split_once('/') {
        None => file == MODEL_INDEX,
        Some((_, name)) if name.contains('/') => false,
        Some(("scheduler" | "tokenizer" | "tokenizer_2" | "tokenizer_3", _)) => true,
        Some((folder, name)) => name == "config.json" && networks.contains(&folder),
    };
    let configs = files.iter().filter(|file| is_config(file)).cloned().collect();
    let mut weights = Vec::new();
    for folder in networks {
        let found = network_weights(files, folder, options.prefer_half);
        weights.extend(found.ok_or_else(|| missing(&format!("weights in {folder}/")))?);
    }
    Ok(BaseFiles::Pipeline { configs, weights })
}

fn has_folder(files: &[String], folder: &str) -> bool {
    files.iter().any(|file| file.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
}

/// One complete set of weights of the network in `folder`: safetensors before pickles, then the wanted precision.
fn network_weights(files: &[String], folder: &str, prefer_half: bool) -> Option<Vec<String>> {
    let is_text = folder.starts_with("text_encoder");
    let stems = if is_text { ["model", "pytorch_model"] } else { ["diffusion_pytorch_model"; 2] };
    let halves = [prefer_half, !prefer_half];
    [(stems[0], "safetensors"), (stems[1], "bin")]
        .into_iter()
        .flat_map(|kind| halves.map(|half| (kind, half)))
        .find_map(|((stem, ending), half)| weights_named(files, &format!("{folder}/{stem}"), ending, half))
}

/// The file `STEM[.fp16].ENDING`, or its index and all of its shards.
fn weights_named(files: &[String], stem: &str, ending: &str, half: bool) -> Option<Vec<String>> {
    let (name, index) = if half {
        (format!("{stem}.{HALF}.{ending}"), format!("{stem}.{ending}.index.{HALF}.json"))
    } else {
        (format!("{stem}.{ending}"), format!("{stem}.{ending}.index.json"))
    };
    if files.contains(&name) {
        return Some(vec![name]);
    }
    if !files.contains(&index) {
        return None;
    }
    let shards: Vec<(usize, usize, &String)> = files
        .iter()
        .filter_map(|file| shard_number(file, stem, ending, half).map(|(number, total)| (number, total, file)))
        .collect();
    let total = shards.first()?.1;
    let shard = |wanted| shards.iter().find(|(number, of, _)| (*number, *of) == (wanted, total)).map(|shard| shard.2);
    let mut found: Vec<String> = (1..=total).map_while(shard).cloned().collect();
    if found.len() != total {
        return None;
    }
    found.insert(0, index);
    Some(found)
}

/// Number and total of a shard `STEM-00001-of-00002.ENDING`, with the mark of half precision before or after these.
fn shard_number(file: &str, stem: &str, ending: &str, half: bool) -> Option<(usize, usize)> {
    let middle = file.strip_prefix(stem)?.strip_suffix(ending)?.strip_suffix('.')?;
    let numbers = match (half, middle.split_once('.')) {
        (false, None) => middle,
        (true, Some(("", rest))) => rest.strip_prefix(HALF)?,
        (true, Some((numbers, HALF))) => numbers,
        _ => return None,
    };
    let (number, total) = numbers.strip_prefix('-')?.split_once("-of-")?;
    Some((number.parse().ok()?, total.parse().ok()?))
}

fn is_checkpoint(file: &str) -> bool {
    matches!(file.rsplit_once('.'), Some((_, "safetensors" | "ckpt")))
}

/// Checkpoints at the top; of two that differ in the ending only, the one that is no pickle.
fn top_checkpoints(files: &[String]) -> Vec<String> {
    let has_safe_twin = |file: &str| {
        file.strip_suffix(".ckpt").is_some_and(|stem| files.iter().any(|other| *other == format!("{stem}.safetensors")))
    };
    let is_wanted = |file: &&String| !file.contains('/') && is_checkpoint(file) && !has_safe_twin(file);
    files.iter().filter(is_wanted).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: [&str; 9] = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
    ];
    /// What repositories hold besides.
    const OTHER: [&str; 11] = [
        ".gitattributes",
        "README.md",
        "v1-5-pruned.ckpt",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_flax_model.msgpack",
        "vae_decoder/model.onnx",
        "unet/openvino_model.bin",
        "vae/diffusion_pytorch_model.fp16.bin",
    ];

    fn files(parts: &[&[&str]]) -> Vec<String> {
        let mut files: Vec<String> = parts.iter().flat_map(|part| part.iter().map(|file| (*file).to_owned())).collect();
        files.sort();
        files
    }

    fn weights(parts: &[&[&str]], prefer_half: bool) -> Result<Vec<String>, HubError> {
        let options = BaseOptions { prefer_half, ..BaseOptions::default() };
        match BaseFiles::choose(&"a/b".parse().unwrap(), &files(parts), &options)? {
            BaseFiles::Pipeline { configs, weights } => {
                assert_eq!(configs, SMALL);
                Ok(weights)
            }
            BaseFiles::SingleFile(file) => panic!("{file} is no pipeline"),
        }
    }

    #[test]
    fn one_set_of_weights_is_chosen_and_the_wanted_precision_where_it_is_there() {
        let both = [
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/pytorch_model.bin",
        ];
        let full = [both[0], both[3], both[4]];
        assert_eq!(weights(&[&SMALL, &OTHER, &both], false).unwrap(), full);
        assert_eq!(weights(&[&SMALL, &OTHER, &both], true).unwrap(), [both[1], both[3], both[5]]);
    }

    #[test]
    fn half_safetensors_come_before_pickles_and_pickles_before_nothing() {
        let some = [
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.bin",
            "text_encoder/pytorch_model.fp16.bin",
        ];
        let got = weights(&[&SMALL, &OTHER, &some], false).unwrap();
        // OTHER has the half-precision pickle of the autoencoder, which is not preferred.
        assert_eq!(got, [some[0], some[2], some[3]]);
        assert_eq!(weights(&[&SMALL, &OTHER, &some], true).unwrap()[1], "vae/diffusion_pytorch_model.fp16.bin");
    }

    #[test]
    fn shards_come_with_their_index_and_only_all_together() {
        let rest = ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"];
        let full = [
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        ];
        for (first, second) in
            [(".fp16-00001-of-00002", ".fp16-00002-of-00002"), ("-00001-of-00002.fp16", "-00002-of-00002.fp16")]
        {
            let names = [first, second].map(|part| format!("unet/diffusion_pytorch_model{part}.safetensors"));
            let half = ["unet/diffusion_pytorch_model.safetensors.index.fp16.json", &names[0], &names[1]];
            assert_eq!(weights(&[&SMALL, &rest, &full, &half], true).unwrap()[..3], half);
            assert_eq!(weights(&[&SMALL, &rest, &full, &half], false).unwrap()[..3], full);
        }
        let error = weights(&[&SMALL, &rest, &full[..2]], false).unwrap_err();
        assert!(matches!(error, HubError::MissingPart { part, .. } if part == "weights in unet/"));
    }

    #[test]
    fn other_families_are_refused_before_anything_is_downloaded() {
        let choose =
            |parts: &[&[&str]]| BaseFiles::choose(&"a/b".parse().unwrap(), &files(parts), &BaseOptions::default());
        let sd3 = ["unet/config.json", "text_encoder_2/config.json", "text_encoder_3/config.json"];
        assert!(matches!(choose(&[&SMALL, &sd3]), Err(HubError::TooManyTextEncoders { found: 3, limit: 2, .. })));
        let flux = ["model_index.json", "transformer/config.json", "flux1-dev.safetensors"];
        assert!(matches!(choose(&[&flux]), Err(HubError::MissingPart { .. })));
        assert!(matches!(choose(&[&["README.md", "unet/x.safetensors"]]), Err(HubError::NoModel { .. })));
    }

    #[test]
    fn a_second_text_encoder_comes_with_its_configuration_and_its_tokenizer() {
        let sdxl = [
            "text_encoder/model.safetensors",
            "text_encoder_2/config.json",
            "text_encoder_2/model.safetensors",
            "tokenizer_2/merges.txt",
            "tokenizer_2/tokenizer_config.json",
            "tokenizer_2/vocab.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "sd_xl_base_1.0.safetensors",
        ];
        let choose = |some: &[&str]| {
            let files = files(&[&SMALL, &OTHER, some]);
            BaseFiles::choose(&"a/b".parse().unwrap(), &files, &BaseOptions::default())
        };
        let chosen = choose(&sdxl).unwrap().all();
        let wanted = SMALL.iter().chain(&sdxl[..8]);
        assert!(wanted.clone().all(|file| chosen.iter().any(|found| found == file)), "{chosen:?}");
        assert_eq!(chosen.len(), wanted.count());
        for (left_out, part) in [
            (1, "text_encoder_2/config.json"),
            (2, "weights in text_encoder_2/"),
            (5, "tokenizer_2/vocab.json and tokenizer_2/merges.txt"),
        ] {
            let some: Vec<&str> =
                sdxl.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, file)| *file).collect();
            let error = choose(&some).unwrap_err();
            assert!(matches!(&error, HubError::MissingPart { part: found, .. } if found == part), "{error}");
        }
    }

    #[test]
    fn a_single_checkpoint_is_found_or_has_to_be_named() {
        let choose =
            |id: &str, list: &[&str]| BaseFiles::choose(&id.parse().unwrap(), &files(&[list]), &BaseOptions::default());
        let single = |file: &str| BaseFiles::SingleFile(file.to_owned());
        assert_eq!(choose("a/b", &["README.md", "x.ckpt"]).unwrap(), single("x.ckpt"));
        assert_eq!(choose("a/b", &["x.ckpt", "x.safetensors", "vae/y.safetensors"]).unwrap(), single("x.safetensors"));
        let two = ["x.safetensors", "y.ckpt"];
        let error = choose("a/b", &two).unwrap_err();
        assert!(matches!(&error, HubError::SeveralModels { files, .. } if *files == two));
        assert_eq!(error.hint().unwrap(), "name one, as in a/b/x.safetensors");
        assert_eq!(choose("a/b/y.ckpt", &two).unwrap(), single("y.ckpt"));
        let error = choose("a/b/z.ckpt", &two).unwrap_err();
        assert_eq!(error.hint().unwrap(), "it has x.safetensors, y.ckpt");
    }
}

//! What can go wrong with a base model, in the words of its user.

use loralei_adapter::AdapterError;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file that every base has is not there.
    #[error("`{path}` has no `{missing}`")]
    MissingFile {
        /// The base.
        path: String,
        /// The file or folder looked for, relative to it.
        missing: String,
    },
    /// A file could not be read.
    #[error("cannot read `{path}`")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A `config.json` that is not what it should be.
    #[error("`{path}` is not a valid configuration: {reason}")]
    BadConfig {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A base that is not on this machine.
    #[error("there is no file or folder `{name}`")]
    NoSuchBase {
        /// What the user called it.
        name: String,
    },
    /// A file or folder of another model.
    #[error("`{path}` is {found}")]
    Foreign {
        /// The file or folder.
        path: String,
        /// What it is.
        found: ForeignModel,
    },
    /// A checkpoint that lacks a network.
    #[error("`{path}` has no {part}: it is only a part of a model")]
    MissingPart {
        /// The file.
        path: String,
        /// "U-Net", "text encoder" or "autoencoder (VAE)".
        part: &'static str,
    },
    /// A checkpoint of SD 2.x that does not tell what it predicts.
    #[error("`{path}` is an SD 2.x checkpoint that does not say whether it predicts noise or velocity")]
    UnknownPrediction {
        /// The file.
        path: String,
    },
    /// A setting of the base that this program does not know how to honour.
    #[error("`{path}` has `{key}` = {value}, which is not supported")]
    Unsupported {
        /// The file.
        path: String,
        /// The key in it.
        key: String,
        /// Its value.
        value: String,
    },
    /// A tensor that the configuration asks for is not in the file.
    #[error("`{file}` has no tensor `{key}`")]
    MissingTensor {
        /// The weight file.
        file: String,
        /// The tensor's name.
        key: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("`{file}`: tensor `{key}` has shape {found:?}, the configuration says {expected:?}")]
    WrongShape {
        /// The weight file.
        file: String,
        /// The tensor's name.
        key: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by `config.json`.
        expected: Vec<usize>,
    },
    /// Tensors that no layer asked for.
    #[error("`{file}` has {count} tensors that the configuration does not explain, first `{key}`")]
    UnexpectedTensors {
        /// The weight file.
        file: String,
        /// How many.
        count: usize,
        /// The first by name.
        key: String,
    },
    /// A weight with NaN or infinity in it.
    #[error("`{file}`: tensor `{key}` holds a number that is not finite")]
    NonFiniteWeight {
        /// The weight file.
        file: String,
        /// The tensor's name.
        key: String,
    },
    /// A weight that is too large for the number type it is to be kept in.
    #[error("`{file}`: tensor `{key}` holds a number beyond the range of {dtype}")]
    WeightBeyondRange {
        /// The weight file.
        file: String,
        /// The tensor's name.
        key: String,
        /// The type.
        dtype: &'static str,
    },
    /// A target pattern that no layer answers to.
    #[error("target `{pattern}` matches no layer of the {component}")]
    NothingMatched {
        /// The pattern or set.
        pattern: String,
        /// "U-Net" or "text encoder".
        component: String,
    },
    /// An adapter for another network.
    #[error("the adapter's module `{key}` fits no layer of this base")]
    ForeignAdapter {
        /// The module in the file.
        key: String,
    },
    /// A picture size that the network cannot halve often enough.
    #[error("size {width_px}x{height_px} does not fit this base: both sides must be multiples of {multiple_px}")]
    SizeDoesNotFit {
        /// Asked width.
        width_px: usize,
        /// Asked height.
        height_px: usize,
        /// 8 times the total downsampling of the U-Net.
        multiple_px: usize,
    },
    /// More layers to leave out than the text encoder has.
    #[error("clip skip {clip_skip} is not between 1 and {num_layers}, the layers of the text encoder")]
    ClipSkip {
        /// As asked for.
        clip_skip: usize,
        /// Layers of the text encoder.
        num_layers: usize,
    },
    /// The tokenizer's files make no tokenizer.
    #[error("`{path}` is not a usable tokenizer: {reason}")]
    BadTokenizer {
        /// The file or folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A device that this program or this machine does not have.
    #[error("cannot compute on `{device}`: {reason}")]
    NoDevice {
        /// As the user named it.
        device: String,
        /// Why not.
        reason: String,
        /// What the user can do.
        hint: &'static str,
    },
    /// A picture that came out as no numbers.
    #[error("the picture with seed {seed} is not a number")]
    NonFinitePicture {
        /// Its seed.
        seed: u64,
    },
    /// A file or folder that is already there.
    #[error("`{path}` is already there")]
    Exists {
        /// The file or folder.
        path: PathBuf,
    },
    /// Layers of two models that are not of one kind.
    #[error("`{key}` has shape {base:?} in the base and {tuned:?} in the tuned model")]
    DifferentModels {
        /// The tensor.
        key: String,
        /// Its shape in the one.
        base: Vec<usize>,
        /// And in the other.
        tuned: Vec<usize>,
    },
    /// Two models with the same numbers.
    #[error("`{tuned}` does not differ from `{base}` in any of these layers")]
    NoDifference {
        /// The one.
        base: String,
        /// The other.
        tuned: String,
    },
    /// A tensor file that could not be read.
    #[error(transparent)]
    File(#[from] AdapterError),
    /// An operation on tensors failed: shapes that do not fit, or no memory.
    #[error("a tensor operation failed: {}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

/// Models that people take for a base of Stable Diffusion 1.x, 2.x or XL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum ForeignModel {
    SdxlRefiner,
    /// Taught EDM's noise levels (Karras et al. 2022, arXiv 2206.00364).
    Edm,
    Sd3,
    Flux,
    Inpainting,
    /// A U-Net that takes that many channels.
    OtherInputs(usize),
    Adapter,
    OtherPipeline,
}

impl ForeignModel {
    /// What a U-Net with that many input channels is, if not one that takes latents alone.
    pub(crate) fn of_channels(channels: usize) -> Option<Self> {
        match channels {
            4 => None,
            9 => Some(Self::Inpainting),
            other => Some(Self::OtherInputs(other)),
        }
    }

    /// What a pipeline class of diffusers is, if not Stable Diffusion 1.x, 2.x or XL.
    pub(crate) fn of_pipeline(class: &str) -> Option<Self> {
        let is = |part: &str| class.contains(part);
        match class {
            _ if is("StableDiffusion3") => Some(Self::Sd3),
            _ if is("Flux") => Some(Self::Flux),
            _ if is("Inpaint") => Some(Self::Inpainting),
            _ if is("StableDiffusion") => None,
            _ => Some(Self::OtherPipeline),
        }
    }
}

impl std::fmt::Display for ForeignModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SdxlRefiner => f.write_str("SDXL's refiner, which only finishes what the base has begun"),
            Self::Edm => {
                f.write_str("a model with EDM's noise levels, as Playground 2.5 and CosXL, which are not supported")
            }
            Self::Sd3 => f.write_str("a Stable Diffusion 3 model, which is not supported"),
            Self::Flux => f.write_str("a Flux model, which is not supported"),
            Self::Inpainting => f.write_str("an inpainting model, whose U-Net takes a mask besides the latents"),
            Self::OtherInputs(channels) => {
                write!(f, "a model whose U-Net takes {channels} channels, not the 4 of latents alone")
            }
            Self::Adapter => f.write_str("an adapter, not a base model"),
            Self::OtherPipeline => f.write_str("a pipeline of another kind than Stable Diffusion"),
        }
    }
}

/// candle appends a backtrace when one is asked for; users read one line.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl ModelError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::MissingFile { .. } => {
                "a base is a diffusers folder with unet/, vae/, text_encoder/, tokenizer/ and scheduler/, a checkpoint \
                 file, or `emoji`"
                    .into()
            }
            Self::NoSuchBase { .. } => {
                "check the path; an id of the Hugging Face hub needs a program built with `--features hub`".into()
            }
            Self::Foreign { found: ForeignModel::Adapter, .. } => {
                "give the base with --base, and the adapter with --adapter".into()
            }
            Self::Foreign { found: ForeignModel::Inpainting | ForeignModel::OtherInputs(_), .. } => {
                "use the ordinary model that it was made from".into()
            }
            Self::Foreign { found: ForeignModel::SdxlRefiner, .. } => "use SDXL's base model".into(),
            Self::Foreign { .. } => "only Stable Diffusion 1.x, 2.x and XL bases can be used".into(),
            Self::MissingPart { .. } => "get the whole checkpoint, or a diffusers folder".into(),
            Self::UnknownPrediction { .. } => {
                "say `--prediction v` for models of 768 px (their names often end in -v), `--prediction epsilon` for \
                 those of 512 px"
                    .into()
            }
            Self::Unreadable { .. } => "check that the file exists and may be read".into(),
            Self::BadConfig { .. } => "download the base again, or compare the file with the publisher's".into(),
            Self::Unsupported { .. } => "only Stable Diffusion 1.x, 2.x and XL bases can be trained".into(),
            Self::MissingTensor { .. } | Self::WrongShape { .. } | Self::UnexpectedTensors { .. } => {
                "config.json and the weight file must come from the same base".into()
            }
            Self::NonFiniteWeight { .. } => {
                "the file is damaged or was saved from a failed run: download it again".into()
            }
            Self::WeightBeyondRange { .. } => {
                "keep weights as \"bf16\" or \"f32\" (`model.weights`, `--weights`), and compute in one of these too \
                 (`model.dtype`, `--dtype`)"
                    .into()
            }
            Self::NothingMatched { .. } => {
                "use attention, cross-attention or full, or patterns over module paths such as `up_blocks.*.attn2.to_k`"
                    .into()
            }
            Self::ForeignAdapter { .. } => "train and use an adapter with bases of one family".into(),
            Self::SizeDoesNotFit { width_px, height_px, multiple_px } => {
                let near = |size: &usize| ((size + multiple_px / 2) / multiple_px).max(1) * multiple_px;
                format!("the nearest size that fits is {}x{}", near(width_px), near(height_px))
            }
            Self::NoDevice { hint, .. } => (*hint).to_owned(),
            Self::NonFinitePicture { .. } => "compute in f32, and try without adapters or with smaller scales".into(),
            Self::DifferentModels { .. } => "a model can only be held against the one that it was tuned from".into(),
            Self::NoDifference { .. } => "check which files these are, and take more layers".into(),
            Self::Exists { .. } => "remove it, or write elsewhere".into(),
            Self::ClipSkip { .. } => "1 takes the last layer, 2 the one before".into(),
            Self::BadTokenizer { .. } => "a base needs tokenizer/tokenizer.json, or vocab.json and merges.txt".into(),
            Self::File(error) => return error.hint(),
            Self::Tensor(_) => return None,
        })
    }
}

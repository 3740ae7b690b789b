//! The settings of a run as one TOML tree. The comment of each field is its reference documentation, from which
//! `docs/reference/config.md` is generated.

mod data;
mod keys;
mod layers;
mod listing;
mod lora;
mod objective;
mod optimizer;
mod presets;
mod run;

use candle_core::DType;
use loralei_model::{Base, DeviceChoice, NumberTypes, Prediction, WeightType, ops};
use serde::{Deserialize, Serialize};

use crate::error::Violation;

pub use data::{
    AlphaChoice, CacheChoice, CaptionConfig, CaptionFrom, DataConfig, LineChoice, PriorCaptions, PriorConfig, PriorKind,
};
pub(crate) use data::{RoleName, SourceConfig};
pub(crate) use keys::{config_keys, full_key};
pub use keys::{is_config_key, nearest_config_key};
pub use layers::{ConfigLayers, Origin, ResolvedConfig};
pub(crate) use layers::{one_line, value_text};
pub use listing::ListedSetting;
pub use lora::{BlockConfig, LoraConfig, Targets, TextEncoderConfig, UnetConfig};
pub use objective::{HuberSchedule, LossConfig, LossKind, NoiseConfig, Weighting};
pub use optimizer::{
    Checkpointing, OptimizerConfig, OptimizerKind, ProdigyConfig, ScheduleConfig, ScheduleKind, StepsConfig,
};
pub use presets::{PRESETS, PresetNames};
pub use run::{OutputConfig, SamplerName, SamplesConfig, ValidationConfig};

/// All settings of a training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Built-in settings to start from: `subject-`, `style-` or `concept-` with `sd15`, `sd21` or `sdxl` behind it, such as
    /// `subject-sd15`; `subject-emoji`, `style-emoji`; for the memory of a card `sdxl-6gb`, `sdxl-8gb`, `sdxl-12gb`,
    /// `sdxl-24gb`. Of a list, such as `["subject-sdxl", "sdxl-8gb"]`, later ones override earlier ones. The rest of the file
    /// overrides all of them. Unset: the defaults below.
    pub preset: Option<PresetNames>,
    /// The base model.
    pub model: ModelConfig,
    /// The images and what they show.
    pub data: DataConfig,
    /// The adapter: which layers of the base get factors, and how large.
    pub lora: LoraConfig,
    /// How a gradient moves the factors.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// The length of the run and the size of a step.
    pub train: StepsConfig,
    /// The noise that is added, and when.
    pub noise: NoiseConfig,
    /// How the error of a prediction is counted.
    pub loss: LossConfig,
    /// What must stay as it was.
    pub prior: PriorConfig,
    /// The curve that tells when to stop.
    pub validation: ValidationConfig,
    /// Pictures as the run goes on.
    pub samples: SamplesConfig,
    /// The files of the run.
    pub output: OutputConfig,
}

/// `[model]`: the base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// `emoji`, the small model inside the program; a folder in the diffusers layout (with `unet/`, `vae/`,
    /// `text_encoder/`, `tokenizer/`, `scheduler/`); a checkpoint file (`.safetensors` or `.ckpt`); or the id of a model
    /// on the Hugging Face hub, such as `owner/name`.
    pub base: String,
    /// What the base predicts, `epsilon` (noise) or `v` (velocity), where the base does not say it, or says it wrongly.
    pub prediction: Option<PredictionKind>,
    /// Whether the last timestep is pure noise (zero terminal SNR, arXiv 2305.08891), where the base does not say it, or says it
    /// wrongly. Only a base that predicts velocity can be so.
    pub zero_terminal_snr: Option<bool>,
    /// What the network is told for a caption without text, dropped ones too: `encoded`, what the text encoders make of it;
    /// `zeros`, zeros in place of that; `auto`, zeros where the base asks for them.
    pub empty_captions: EmptyCaptions,
    /// Number type in which the base computes: `f32`, `bf16` or `f16`. The factors are always trained in f32.
    /// Left out, it is that of the device: `f32` on the processor, `bf16` on a card, `f16` on cards without bf16.
    pub dtype: Option<Dtype>,
    /// Number type in which the frozen matrices and kernels are kept on the processor: `f32`, `bf16` or `f16`; they are
    /// multiplied in that of `dtype`. `auto` keeps 16-bit numbers of the file as they are and narrows wider ones to
    /// `f16`, or to `bf16` in a tensor with a number beyond the range of `f16`: half the memory of `f32`. On a card, and
    /// with `ops = "generic"`, `auto` is `dtype`. `int8`, also for cards, keeps each row of a linear layer's matrix in 8
    /// bits with a scale, which is off by 0.8 %, and kernels of convolutions in 16 bits.
    pub weights: WeightDtype,
    /// What the factors of products are rounded to on the processor: `f32`, nothing; or `bf16`, which processors with
    /// AVX-512 BF16 multiply twice as fast; `weights = "auto"` is then `bf16`. Sums, norms and the LoRA factors stay
    /// `f32`.
    pub compute: Compute,
    /// Where the run computes: `cpu`, `cuda`, `cuda:N` for the card of that number, or `metal`.
    pub device: DeviceChoice,
    /// Which implementation of the operations computes: `auto`, our kernels where the device has some, or `generic`, the
    /// tensor library's operations everywhere.
    pub ops: Ops,
    /// On NVIDIA cards: whether products of `f32` may round their factors to 10 bits of mantissa (TF32), which is faster.
    pub tf32: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            base: "emoji".to_string(),
            prediction: None,
            zero_terminal_snr: None,
            empty_captions: EmptyCaptions::Auto,
            dtype: None,
            weights: WeightDtype::Auto,
            compute: Compute::F32,
            device: DeviceChoice::Cpu,
            ops: Ops::Auto,
            tf32: false,
        }
    }
}

/// A number type of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE.
    F32,
    /// 16 bits with the exponent of f32.
    Bf16,
    /// 16-bit IEEE.
    F16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::Bf16 => DType::BF16,
            Dtype::F16 => DType::F16,
        }
    }
}

/// How frozen matrices and kernels are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// In 16 bits where our kernels compute, otherwise in the type in which the base computes.
    #[default]
    Auto,
    /// 32-bit IEEE.
    F32,
    /// 16 bits with the exponent of f32.
    Bf16,
    /// 16-bit IEEE.
    F16,
    /// Matrices of linear layers in 8 bits with a scale for each row; kernels of convolutions in 16 bits.
    Int8,
}

impl WeightDtype {
    /// The number types of a base that computes in `dtype`, on the processor or on a card.
    ///
    /// # Errors
    /// On a card, another float type than `dtype`.
    pub fn number_types(self, dtype: Dtype, ops: Ops, is_cpu: bool) -> Result<NumberTypes, Violation> {
        let weights = match self {
            Self::Auto if is_cpu && ops == Ops::Auto => WeightType::Half,
            Self::Auto => WeightType::Exactly(dtype.into()),
            Self::F32 => WeightType::Exactly(DType::F32),
            Self::Bf16 => WeightType::Exactly(DType::BF16),
            Self::F16 => WeightType::Exactly(DType::F16),
            Self::Int8 => WeightType::Int8,
        };
        let types = NumberTypes { activations: dtype.into(), weights };
        match weights {
            WeightType::Exactly(kept) if !is_cpu && kept != types.activations => Err(Violation {
                key: "model.weights".to_string(),
                problem: format!("{} on a card that computes in {}", kept.as_str(), types.activations.as_str()),
                hint: format!(
                    "leave it at \"auto\", or compute in {} too: weights on a card have the type in which the base computes, or are \"int8\"",
                    kept.as_str()
                ),
            }),
            _ => Ok(types),
        }
    }
}

/// What the factors of products are rounded to on the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Nothing.
    #[default]
    F32,
    /// bf16, with sums in f32.
    Bf16,
}

impl Compute {
    /// Runs `f` with operations that compute so.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            Self::F32 => f(),
            Self::Bf16 => ops::with_bf16_products(f),
        }
    }

    /// How `weights` are kept where products round so: what is rounded anyway is kept so.
    #[must_use]
    pub fn weights(self, weights: WeightDtype) -> WeightDtype {
        if self == Self::Bf16 && weights == WeightDtype::Auto { WeightDtype::Bf16 } else { weights }
    }

    /// Whether a run with `ops`, on the processor or on a card, can.
    ///
    /// # Errors
    /// bf16 where nothing of ours would multiply it.
    pub fn check(self, ops: Ops, is_cpu: bool) -> Result<(), Violation> {
        let (problem, hint) = match self {
            Self::Bf16 if !is_cpu => ("bf16 is for the processor", "on a card, set `model.dtype` to \"bf16\""),
            Self::Bf16 if ops == Ops::Generic => {
                ("bf16 is for our kernels", "leave `model.ops` at \"auto\", or `model.compute` at \"f32\"")
            }
            Self::Bf16 if !ops::multiplies_bf16() => (
                "this processor does not multiply bf16",
                "leave it at \"f32\"; `loralei doctor` lists avx512_bf16 where it does",
            ),
            _ => return Ok(()),
        };
        Err(Violation { key: "model.compute".to_string(), problem: problem.to_string(), hint: hint.to_string() })
    }
}

/// What a base predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PredictionKind {
    /// The noise.
    Epsilon,
    /// The velocity.
    V,
}

impl From<PredictionKind> for Prediction {
    fn from(kind: PredictionKind) -> Self {
        match kind {
            PredictionKind::Epsilon => Prediction::Epsilon,
            PredictionKind::V => Prediction::VPrediction,
        }
    }
}

/// What stands for a caption without text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmptyCaptions {
    /// What the base asks for.
    #[default]
    Auto,
    /// Zeros.
    Zeros,
    /// What the text encoders make of it.
    Encoded,
}

impl EmptyCaptions {
    /// Whether zeros stand for it with `base`.
    pub fn are_zeros(self, base: &Base) -> bool {
        match self {
            Self::Auto => base.zeros_for_empty_prompt(),
            Self::Zeros => true,
            Self::Encoded => false,
        }
    }
}

impl Dtype {
    /// The one that suits a device.
    pub fn usual(device: DeviceChoice) -> Self {
        match device.usual_dtype() {
            DType::BF16 => Self::Bf16,
            DType::F16 => Self::F16,
            _ => Self::F32,
        }
    }
}

/// Which implementation of the operations computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ops {
    /// Our kernels where the device has some.
    #[default]
    Auto,
    /// The tensor library's operations everywhere.
    Generic,
}

impl Ops {
    /// Runs `f` with the operations of this choice.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            Self::Auto => f(),
            Self::Generic => ops::without_kernels(f),
        }
    }
}

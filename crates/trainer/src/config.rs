//! The settings of a run as one TOML tree. The comment of each field is its reference documentation, from which
//! `docs/reference/config.md` is generated.

use std::fmt;
use std::path::PathBuf;

use candle_core::DType;
use loralei_model::{DeviceChoice, NumberTypes, Prediction, SamplerKind, WeightType, ops};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::data_config::{DataConfig, PriorConfig};
use crate::error::Violation;

/// All settings of a training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Built-in settings to start from: `subject-sd15`, `subject-sd21` or `style-sd15`. The rest of the file overrides
    /// them. Unset: the defaults below.
    pub preset: Option<String>,
    /// The base model.
    pub model: ModelConfig,
    /// The images and what they show.
    pub data: DataConfig,
    /// The adapter: which layers of the base get factors, and how large.
    pub lora: LoraConfig,
    /// AdamW.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// The length of the run and the size of a step.
    pub train: StepsConfig,
    /// What must stay as it was.
    pub prior: PriorConfig,
    /// Pictures before and after.
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
    /// Number type in which the base computes: `f32`, `bf16` or `f16`. The factors are always trained in f32.
    /// Left out, it is that of the device: `f32` on the processor, `bf16` on a card, `f16` on cards without bf16.
    pub dtype: Option<Dtype>,
    /// Number type in which the frozen matrices and kernels are kept on the processor: `f32`, `bf16` or `f16`; they are
    /// multiplied in that of `dtype`. `auto` keeps 16-bit numbers of the file as they are and narrows wider ones to
    /// `f16`, or to `bf16` in a tensor with a number beyond the range of `f16`: half the memory of `f32`. On a card, and
    /// with `ops = "generic"`, `auto` is `dtype`.
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

/// `[lora]`: the adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the factors: how much the adapter can hold. The file grows in proportion.
    pub rank: usize,
    /// Strength: the update is scaled by alpha / rank. Unset: the rank of each component, so that learning rates keep
    /// their meaning when the rank changes.
    pub alpha: Option<f64>,
    /// The U-Net, which draws.
    pub unet: UnetConfig,
    /// The text encoder, which reads the caption.
    pub text_encoder: TextEncoderConfig,
}

/// `[lora.unet]`: factors in the U-Net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetConfig {
    /// Which layers get factors: `attention` (query, key, value and output of every attention), `cross-attention` (of
    /// those only the ones that look at the text), `full` (attention, feed-forward and the projections around them),
    /// `none`, or a list of patterns over module paths with `*` for any text: `["down_blocks.*.attn2.to_k"]`.
    pub targets: Targets,
    /// Rank in the U-Net. Unset: `lora.rank`.
    pub rank: Option<usize>,
    /// Alpha in the U-Net. Unset: `lora.alpha`.
    pub alpha: Option<f64>,
    /// Learning rate in the U-Net. Unset: `optimizer.learning_rate`.
    pub learning_rate: Option<f64>,
}

/// `[lora.text_encoder]`: factors in the text encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextEncoderConfig {
    /// Which layers get factors: `none`, `attention` (query, key, value and output of every layer), `full` (attention
    /// and feed-forward), or a list of patterns over module paths as for the U-Net.
    pub targets: Targets,
    /// Rank in the text encoder. Unset: `lora.rank`.
    pub rank: Option<usize>,
    /// Alpha in the text encoder. Unset: `lora.alpha`.
    pub alpha: Option<f64>,
    /// Learning rate in the text encoder; half the U-Net's or less is usual. Unset: `optimizer.learning_rate`.
    pub learning_rate: Option<f64>,
}

/// `[optimizer]`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Full learning rate, before the schedule.
    pub learning_rate: f64,
    /// Decoupled weight decay: factors shrink by learning rate * weight decay each step.
    pub weight_decay: f64,
    /// Decay of the running mean of the gradient.
    pub beta1: f64,
    /// Decay of the running mean of the squared gradient.
    pub beta2: f64,
    /// Added to the denominator of the update.
    pub eps: f64,
    /// Largest norm of all gradients together; longer ones are scaled down to it. 0 turns this off.
    pub max_grad_norm: f64,
}

/// `[schedule]`: the learning rate over the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// How the learning rate falls after the warm-up: `constant`, `cosine` or `linear`.
    pub kind: ScheduleKind,
    /// Steps over which the learning rate rises from 0 at the start.
    pub warmup_steps: u64,
    /// Part of the full learning rate that is left at the end of `cosine` and `linear`, 0 to 1.
    pub final_ratio: f64,
}

/// `[train]`: the length of the run and the size of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepsConfig {
    /// Optimizer steps of the run. About 100 for each image is a start for a subject.
    pub steps: u64,
    /// Images that go through the model together.
    pub batch_size: usize,
    /// Batches whose gradients are summed to one step: a step sees `batch_size` * `accumulate` images and needs no more
    /// memory than one batch.
    pub accumulate: usize,
    /// All randomness of the run comes from it: the same seed gives the same bytes.
    pub seed: u64,
    /// What is kept for the backward pass: `none` keeps every activation, `block` only the inputs of blocks and, on the
    /// processor, what takes long inside of them, and computes the rest again (less memory, more time, the same result up
    /// to rounding).
    pub checkpointing: Checkpointing,
}

/// `[samples]`: pictures of the same prompts and seeds, drawn by the base before the training and with the adapter after
/// it, side by side in `before-after.png`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// What to draw, as `loralei generate --prompt` takes it: some prompts with the trigger, and some without that must
    /// stay as they were. None: no pictures.
    pub prompts: Vec<String>,
    /// What no picture is to show.
    pub negative: String,
    /// Seed of the first picture; each next one has the next number.
    pub seed: u64,
    /// Steps of the sampler.
    pub steps: usize,
    /// How strictly a picture follows its prompt; 1 or less: as the base would draw without guidance.
    pub guidance_scale: f64,
    /// `ddim`, `euler-a`, `dpmpp-2m` or `unipc`.
    pub sampler: SamplerName,
}

/// `[output]`: the files of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// Folder of the run, made if missing. Unset: `runs/` and the name of the images' folder.
    pub folder: Option<PathBuf>,
    /// Name of the adapter file, without `.safetensors`. Unset: the name of the folder.
    pub name: Option<String>,
    /// Number type of the adapter file: `f16`, `bf16` or `f32`.
    pub precision: Dtype,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            base: "emoji".to_string(),
            prediction: None,
            dtype: None,
            weights: WeightDtype::Auto,
            compute: Compute::F32,
            device: DeviceChoice::Cpu,
            ops: Ops::Auto,
            tf32: false,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 4, alpha: None, unet: UnetConfig::default(), text_encoder: TextEncoderConfig::default() }
    }
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self { targets: Targets::Attention, rank: None, alpha: None, learning_rate: None }
    }
}

impl Default for TextEncoderConfig {
    fn default() -> Self {
        Self { targets: Targets::None, rank: None, alpha: None, learning_rate: None }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { learning_rate: 1e-4, weight_decay: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, max_grad_norm: 1.0 }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Constant, warmup_steps: 0, final_ratio: 0.0 }
    }
}

impl Default for StepsConfig {
    fn default() -> Self {
        Self { steps: 1000, batch_size: 1, accumulate: 1, seed: 0, checkpointing: Checkpointing::None }
    }
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative: String::new(),
            seed: 0,
            steps: 25,
            guidance_scale: 7.5,
            sampler: SamplerName(SamplerKind::Ddim),
        }
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { folder: None, name: None, precision: Dtype::F16 }
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
}

impl WeightDtype {
    /// The number types of a base that computes in `dtype`, on the processor or on a card.
    ///
    /// # Errors
    /// On a card, another type than `dtype`.
    pub fn number_types(self, dtype: Dtype, ops: Ops, is_cpu: bool) -> Result<NumberTypes, Violation> {
        let weights = match self {
            Self::Auto if is_cpu && ops == Ops::Auto => WeightType::Half,
            Self::Auto => WeightType::Exactly(dtype.into()),
            Self::F32 => WeightType::Exactly(DType::F32),
            Self::Bf16 => WeightType::Exactly(DType::BF16),
            Self::F16 => WeightType::Exactly(DType::F16),
        };
        let types = NumberTypes { activations: dtype.into(), weights };
        match weights {
            WeightType::Exactly(kept) if !is_cpu && kept != types.activations => Err(Violation {
                key: "model.weights".to_string(),
                problem: format!("{} on a card that computes in {}", kept.as_str(), types.activations.as_str()),
                hint: format!(
                    "leave it at \"auto\", or compute in {} too: weights on a card have the type in which the base computes",
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

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Not at all.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// In equal parts.
    Linear,
}

/// What is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Every activation that backward needs.
    None,
    /// The inputs of blocks and what takes long inside; the rest is computed again.
    Block,
}

/// A sampler by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerName(pub SamplerKind);

impl Serialize for SamplerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name())
    }
}

impl<'de> Deserialize<'de> for SamplerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unknown = || de::Error::invalid_value(de::Unexpected::Str(&name), &"ddim, euler-a, dpmpp-2m or unipc");
        SamplerKind::from_name(&name).map(Self).ok_or_else(unknown)
    }
}

/// Which layers of a component get factors. In TOML the name of a set or a list of patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// No layer: the component stays frozen.
    None,
    /// The attention projections.
    Attention,
    /// The projections of those attentions that look at the text.
    CrossAttention,
    /// Attention, feed-forward and, in the U-Net, the projections around them.
    Full,
    /// Layers whose module path matches one of these patterns.
    Patterns(Vec<String>),
}

impl Targets {
    const SETS: [(&'static str, Targets); 4] = [
        ("none", Targets::None),
        ("attention", Targets::Attention),
        ("cross-attention", Targets::CrossAttention),
        ("full", Targets::Full),
    ];
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Targets::Patterns(patterns) = self {
            return patterns.serialize(serializer);
        }
        let name = Self::SETS.iter().find(|(_, set)| set == self).map_or("none", |(name, _)| name);
        serializer.serialize_str(name)
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetsVisitor)
    }
}

struct TargetsVisitor;

impl<'de> de::Visitor<'de> for TargetsVisitor {
    type Value = Targets;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("\"none\", \"attention\", \"cross-attention\", \"full\" or a list of patterns")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Targets, E> {
        let set = Targets::SETS.into_iter().find(|(name, _)| *name == value);
        set.map(|(_, set)| set).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Targets, A::Error> {
        let mut patterns = Vec::new();
        while let Some(pattern) = sequence.next_element()? {
            patterns.push(pattern);
        }
        Ok(Targets::Patterns(patterns))
    }
}

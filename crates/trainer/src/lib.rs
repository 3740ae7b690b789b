//! The training run of a LoRA adapter for Stable Diffusion.
//!
//! # Overview
//! - [`ConfigLayers`] collects a preset, a TOML file and single settings into one [`TrainConfig`], and remembers which of
//!   them each value came from.
//! - [`Plan`] is the checked and resolved form of it: flat values, in range. Only a plan reaches the run.
//! - [`Draw`] gives the random numbers of a place in the run, [`LearningRateSchedule`] its learning rate: both are pure
//!   functions of the step, so that the state of a run is its factors, the moments of [`AdamW`] and a step count.
//! - [`GradientTree`] sums the gradients of a step's micro-batches in a fixed order, [`clip_global_norm`] limits them.
//! - [`train`] is the run: a plan in, an adapter's file out. [`StepVerification`] is a few steps of it on given numbers.
//! - A run reports what happens as [`Event`]s; nothing here prints.
//!
//! # Example
//! ```
//! use loralei_trainer::{ConfigLayers, Plan};
//!
//! let mut layers = ConfigLayers::new();
//! layers.set("data.images=cat-photos")?;
//! layers.set("lora.rank=8")?;
//! let plan = Plan::new(&layers.resolve()?.config)?;
//! assert_eq!(plan.unet.as_ref().map(|unet| unet.rank), Some(8));
//! assert_eq!(plan.steps, 1000);
//!
//! // A key that does not exist names the one that was meant.
//! let error = ConfigLayers::new().set("train.step=10").unwrap_err();
//! assert_eq!(error.hint().as_deref(), Some("did you mean `train.steps`?"));
//! # Ok::<(), loralei_trainer::TrainError>(())
//! ```

mod adamw;
mod before_after;
mod captions;
mod checked_captions;
mod class_images;
mod clip;
mod config;
mod config_keys;
mod config_layers;
mod data_check;
mod data_config;
mod data_plan;
mod data_report;
mod data_warnings;
mod drawer;
mod encoded;
mod encoded_store;
mod error;
mod event;
mod gradient_tree;
mod leak_prompts;
mod leak_score;
mod leak_verification;
mod learning_rate;
mod loss_scale;
mod memory;
mod memory_switch;
mod metrics;
mod network;
mod objective;
mod plan;
mod prior;
mod result;
mod run;
mod smoothed_loss;
mod step_bench;
mod training_data;
mod training_images;
mod training_step;
mod update;
mod verify;

pub use adamw::{AdamW, AdamWSettings, Moments};
pub use before_after::BeforeAfter;
pub use captions::Captions;
pub use checked_captions::CheckedCaption;
pub use clip::{clip_global_norm, clip_on_device, global_norm};
pub use config::{
    Checkpointing, Compute, Dtype, LoraConfig, ModelConfig, Ops, OptimizerConfig, OutputConfig, PredictionKind,
    SamplerName, SamplesConfig, ScheduleConfig, ScheduleKind, StepsConfig, Targets, TextEncoderConfig, TrainConfig,
    UnetConfig, WeightDtype,
};
pub use config_keys::{is_config_key, nearest_config_key};
pub use config_layers::{ConfigLayers, Origin, PRESETS, ResolvedConfig};
pub use data_check::{CheckPhase, CheckedData, CheckedPicture, DataCheck};
pub use data_config::{
    AlphaChoice, CacheChoice, CaptionConfig, CaptionFrom, DataConfig, LineChoice, PriorCaptions, PriorConfig, PriorKind,
};
pub use data_plan::{DataPlan, PriorPlan, PriorTerm, SourcePlan};
pub use data_report::{
    BucketReport, CaptionOrigins, DataReport, DuplicateGroup, LongCaption, MaskReport, NamedSize, PictureReport,
    PlaceReport, SkippedFile, TagCount, TokenRange, UnreadableFile,
};
pub use encoded::{EncodedData, EncodedImages, Encoding, Latents, Shown};
pub use error::{TrainError, Violation};
pub use event::{Event, StepReport};
pub use gradient_tree::{GradientTree, Gradients, PairwiseSum, StepGradient};
pub use leak_prompts::{PromptPair, default_prompts, read_prompts};
pub use leak_score::{LeakProbes, LeakPrompt, LeakScore, PromptChange};
pub use leak_verification::LeakVerification;
pub use learning_rate::LearningRateSchedule;
pub use loralei_model::{BaseSource, Draw, Purpose};
pub use memory::{peak_resident_bytes, resident_bytes};
pub use memory_switch::MemorySwitch;
pub use metrics::MetricsWriter;
pub use network::{Network, Text};
pub use objective::{MicroBatch, Outcome};
pub use plan::{BaseChoice, ComponentPlan, Plan};
pub use result::WrittenAdapter;
pub use run::{Finished, train};
pub use smoothed_loss::SmoothedLoss;
pub use step_bench::{StepBench, StepTimes, matmul_flops_per_s};
pub use training_data::TrainingData;
pub use training_images::TrainingImages;
pub use verify::{StepVerification, Verified};

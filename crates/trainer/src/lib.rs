//! The training run of a LoRA adapter for Stable Diffusion.
//!
//! # Overview
//! - [`ConfigLayers`] collects a preset, a TOML file and single settings into one [`TrainConfig`], and remembers which of
//!   them each value came from.
//! - [`Plan`] is the checked and resolved form of it: flat values, in range. Only a plan reaches the run.
//! - [`Draw`] gives the random numbers of a place in the run, [`LearningRateSchedule`] its learning rate: both are pure
//!   functions of the step, so that the state of a run is its factors, the state of its [`Optimizer`] and a step count.
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

mod advice;
mod before_after;
mod bench_kind;
mod captions;
mod checked_captions;
mod class_images;
mod clip;
mod composition_measures;
mod composition_subject;
mod config;
mod data_check;
mod data_report;
mod data_warnings;
mod drawer;
mod encoded;
mod encoded_store;
mod error;
mod event;
mod first_config;
mod gradient_tree;
mod hold_out;
mod kohya_config;
mod leak_prompts;
mod leak_score;
mod leak_verification;
mod learning_rate;
mod loss;
mod loss_scale;
mod memory;
mod memory_switch;
mod model_card;
mod network;
mod noise;
mod objective;
mod objective_facts;
mod optimizer;
mod orthogonal_rows;
mod plan;
mod prior;
mod result;
mod run;
mod run_summary;
mod sample_prompt;
mod samples;
mod smoothed_loss;
mod start_from;
mod step_bench;
mod training_data;
mod training_images;
mod training_step;
mod update;
mod validation;
mod validation_history;
mod verify;

pub use before_after::BeforeAfter;
pub use captions::Captions;
pub use checked_captions::CheckedCaption;
pub use clip::{clip_global_norm, clip_on_device, global_norm};
pub use composition_measures::{
    BurnMeasures, ColourRatios, CompositionCandidate, CompositionMeasures, CompositionMember, CompositionSettings,
    SubjectMeasures, default_prompt, measure_composition,
};
pub use config::{
    AlphaChoice, BlockConfig, CacheChoice, CaptionConfig, CaptionFrom, Checkpointing, Compute, ConfigLayers,
    DataConfig, Dtype, EmptyCaptions, HuberSchedule, LineChoice, ListedSetting, LoraConfig, LossConfig, LossKind,
    ModelConfig, NoiseConfig, Ops, OptimizerConfig, OptimizerKind, Origin, OutputConfig, PRESETS, PredictionKind,
    PresetNames, PriorCaptions, PriorConfig, PriorKind, ProdigyConfig, ResolvedConfig, SamplerName, SamplesConfig,
    ScheduleConfig, ScheduleKind, StepsConfig, Targets, TextEncoderConfig, TrainConfig, UnetConfig, ValidationConfig,
    WeightDtype, Weighting, is_config_key, nearest_config_key,
};
pub use data_check::{CheckPhase, CheckedData, CheckedPicture, DataCheck};

pub use bench_kind::BenchKind;
pub use data_report::{
    BucketReport, CaptionOrigins, DataReport, DuplicateGroup, LongCaption, MaskReport, NamedSize, PictureReport,
    PlaceReport, SkippedFile, TagCount, TokenRange, UnreadableFile,
};
pub use encoded::{EncodedData, EncodedImages, Encoding, Latents, Shown};
pub use error::{TrainError, Violation};
pub use event::{Event, StepReport};
pub use first_config::{FirstConfig, FirstConfigRequest, Goal};
pub use gradient_tree::{GradientTree, Gradients, PairwiseSum, StepGradient};
pub use kohya_config::{KohyaConfigError, KohyaImport, LeftOut};
pub use leak_prompts::{PromptPair, default_prompts, read_prompts};
pub use leak_score::{LeakProbes, LeakPrompt, LeakScore, PromptChange};
pub use leak_verification::LeakVerification;
pub use learning_rate::LearningRateSchedule;
pub use loralei_model::{BaseSource, Draw, Purpose};
pub use memory::{peak_resident_bytes, resident_bytes};
pub use memory_switch::MemorySwitch;
pub use network::{Network, Text};
pub use objective::{MicroBatch, Outcome};
pub use optimizer::{
    AdafactorSettings, AdamWSettings, FactorTensors, LionSettings, Optimizer, OptimizerSettings, OptimizerState,
    ProdigySettings,
};
pub use plan::{
    BaseChoice, BlockPlan, CardPlan, ComponentPlan, DataPlan, MeasuredOn, OptimizerPlan, Plan, PriorPlan, PriorTerm,
    SourcePlan, ValidationPlan,
};
pub use result::WrittenAdapter;
pub use run::{
    Control, Ended, Finished, Interruption, MetricsLine, MetricsWriter, Request, RunHandle, RunOptions, RunState,
    RunStatus, Start, Stopped, read_metrics, train,
};
pub use run_summary::{BlockNorm, RunRecord, RunSummary, generate_command, quoted};
pub use sample_prompt::SamplePrompt;
pub use samples::{SampleLine, Samples};
pub use smoothed_loss::SmoothedLoss;
pub use step_bench::{StepBench, StepTimes, matmul_flops_per_s};
pub use training_data::TrainingData;
pub use training_images::TrainingImages;
pub use validation::Validation;
pub use validation_history::{BestTracker, BinLoss, LeakChange, ValidationPoint};
pub use verify::{StepVerification, Verified};

//! Stable Diffusion's networks with LoRA injected, on differentiable operations of their own.
//!
//! The types that matter:
//! - [`Base`]: an opened checkpoint, from which [`Unet`], [`TextEncoder`], [`Vae`] and [`Tokenizer`] are loaded one by
//!   one, and the [`NoiseSchedule`] they were trained with.
//! - [`Injection`]: which layers of a network get [`LoraFactors`] while it is loaded; an [`AdapterSet`] is all of them.
//! - [`ops`]: the operations with a backward that never forms a gradient of a frozen weight.
//!
//! A training step, in short:
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use loralei_model::{AdapterSet, Base, BaseSource, Checkpointing, Conditioning, FactorValues, Injection, Targets};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let base = Base::open(BaseSource::Folder("models/sd15".into()), None, DType::F32, &Device::Cpu)?;
//! let injection = Injection::new(base.unet_prefix(), Targets::Attention, Box::new(|_, shape| {
//!     let (down, up) = shape.factor_shapes(4);
//!     let len = |shape: Vec<usize>| shape.iter().product();
//!     FactorValues { down: vec![0.01; len(down)], up: vec![0.0; len(up)], alpha: 4.0, rank: 4 }
//! }));
//! let unet = base.load_unet(Some(&injection))?;
//! let factors = AdapterSet::new(injection.finish("U-Net")?);
//!
//! let (latents, noise) = (Tensor::ones((1, 4, 64, 64), DType::F32, &Device::Cpu)?, latents_like()?);
//! # fn latents_like() -> candle_core::Result<Tensor> { Tensor::ones((1, 4, 64, 64), DType::F32, &Device::Cpu) }
//! let text = Conditioning::text(Tensor::zeros((1, 77, 768), DType::F32, &Device::Cpu)?);
//! let noisy = base.noise_schedule().add_noise(&latents, &noise, &[500])?;
//! let prediction = unet.forward(&noisy, &[500.0], &text, Checkpointing::Block)?;
//! let loss = (prediction - noise)?.sqr()?.mean_all()?;
//! let gradients = factors.take_gradients(&loss.backward()?)?;
//! assert_eq!(gradients.len(), 2 * factors.len());
//! # Ok(())
//! # }
//! ```

mod base;
mod base_description;
mod base_files;
mod base_layers;
mod clip_vocabulary;
mod conditioner;
mod conditioning;
mod config;
mod conversion;
#[cfg(feature = "cuda")]
pub mod cuda_runtime;
mod device;
mod drawing;
mod dropout;
mod error;
mod extraction;
mod generator;
mod layer_inputs;
mod layers;
mod lora;
mod merging;
mod new_folder;
mod noise_schedule;
mod number_types;
mod op_check;
pub mod ops;
mod original_layout;
mod prediction_origin;
mod prompt;
mod random;
mod random_weights;
mod recorded_inputs;
mod resnet;
mod sampler;
mod single_file;
mod single_file_config;
mod stored_weight;
mod text_encoder;
mod text_projection;
mod time_embedding;
mod tokenizer;
mod transformer;
mod unet;
mod unet_cost;
mod unread_modules;
mod vae;
mod weight_files;
mod weights;

pub use base::Base;
pub use base_description::{BaseDescription, PartDescription, TrainingSize};
pub use base_files::BaseSource;
pub use base_layers::BaseLayers;
pub use conditioner::{Conditioner, EncodedPrompts, TextStage};
pub use conditioning::{Conditioning, EncodedText, PictureSizes};
pub use config::{
    AddedConditioning, PerLevel, Prediction, ScheduleOverride, SchedulerConfig, TextEncoderConfig, TextOutput,
    TimestepSpacing, UnetConfig, VaeConfig,
};
pub use conversion::{Layout, convert};
pub use device::{DeviceChoice, DeviceSession, peak_device_bytes};
pub use drawing::{DrawingSettings, DrawingStop, NoiseSource, draw_latents, draw_latents_observed};
pub use dropout::{Dropout, DropoutRates, with_dropout};
pub use error::{ForeignModel, ModelError};
pub use extraction::{ExtractedLayer, Extraction, ExtractionSettings, extract};
pub use generator::{AdapterUse, ImageSide, TextSide};
pub use layer_inputs::{RecordedMember, RecordingSettings, record_layer_inputs};
pub use lora::{
    AdapterSet, FactorValues, Initialize, InitializeByBlock, Injection, LayerShape, LoraFactors, Targets, matches_path,
    without_factors,
};
pub use merging::{MergeReport, merge};
pub use noise_schedule::NoiseSchedule;
pub use number_types::{NumberTypes, WeightBytes, WeightType};
pub use op_check::{OpCheck, check_ops, op_tolerance};
pub use prediction_origin::PredictionOrigin;
pub use prompt::{PromptPart, WeightedText, parse_prompt};
pub use random::{Draw, LossTerm, Purpose};
pub use sampler::{Sampler, SamplerKind};
pub use text_encoder::TextEncoder;
pub use tokenizer::{TextLength, Tokenizer, TokenizerFiles, Tokens};
pub use unet::{Checkpointing, Unet};
pub use unet_cost::UnetCost;
pub use vae::{Posterior, Vae};
pub use weight_files::WeightFiles;
pub use weights::{Result, Source, Weights};

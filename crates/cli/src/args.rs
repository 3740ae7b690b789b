//! The command line. Few flags: every setting of a run can be given with `--set`.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use loralei_trainer::{Checkpointing, DeviceKind, Dtype};

/// Trains a LoRA adapter for Stable Diffusion from a folder of images
#[derive(Debug, Parser)]
#[command(name = "loralei", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(TrainArguments),
    /// Run a part of the training on given numbers, for comparing with another program
    #[command(subcommand)]
    Verify(VerifyCommand),
    Doctor(DoctorArguments),
}

/// Train an adapter
#[derive(Debug, Args)]
#[command(
    after_help = "Settings come from the built-in defaults, a preset, the file CONFIG and --set, each stronger than \
the one before. Paths, those inside CONFIG too, are relative to the current directory."
)]
pub(crate) struct TrainArguments {
    /// Settings of the run; every key: docs/reference/config.md
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Base model: `emoji` or a folder in the diffusers layout [model.base]
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    /// Folder of images and captions [data.images]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: Option<String>,
    /// Folder for the results [output.folder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<String>,
    /// Any setting, such as train.steps=500; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    Step(VerifyStepArguments),
}

/// Training steps on given latents, noise, timesteps and token ids, without clipping
#[derive(Debug, Args)]
#[command(
    after_help = "Writes the prediction and the gradients of the first step, the loss of each, and the factors after \
the last."
)]
pub(crate) struct VerifyStepArguments {
    /// Base model: `emoji` or a folder in the diffusers layout
    #[arg(long, value_name = "BASE")]
    pub(crate) base: String,
    /// Factors to start from, kohya keys
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: PathBuf,
    /// Inputs: latents and noise (steps,b,4,h,w), timesteps (steps,b), input_ids (steps,b,77)
    #[arg(long, value_name = "FILE")]
    pub(crate) batch: PathBuf,
    /// Where the results go
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Learning rate of all factors
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    pub(crate) learning_rate: f64,
    /// Decoupled weight decay
    #[arg(long, value_name = "DECAY", default_value_t = 1e-2)]
    pub(crate) weight_decay: f64,
    /// Number type in which the base computes
    #[arg(long, default_value = "f32", value_parser = dtypes())]
    pub(crate) dtype: Dtype,
    /// Where to compute
    #[arg(long, default_value = "cpu", value_parser = devices())]
    pub(crate) device: DeviceKind,
    /// What is kept for the backward pass
    #[arg(long, default_value = "none", value_parser = checkpointing())]
    pub(crate) checkpointing: Checkpointing,
}

/// Show what this program and this machine can do
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "bf16", "f16"]).map(|name| match name.as_str() {
        "bf16" => Dtype::Bf16,
        "f16" => Dtype::F16,
        _ => Dtype::F32,
    })
}

fn devices() -> impl TypedValueParser<Value = DeviceKind> {
    PossibleValuesParser::new(["cpu"]).map(|_| DeviceKind::Cpu)
}

fn checkpointing() -> impl TypedValueParser<Value = Checkpointing> {
    PossibleValuesParser::new(["none", "block"]).map(|name| match name.as_str() {
        "block" => Checkpointing::Block,
        _ => Checkpointing::None,
    })
}

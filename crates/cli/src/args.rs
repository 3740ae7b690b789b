//! The command line. Few flags: every setting of a run can be given with `--set`.

pub(crate) mod adapter;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use loralei_model::{DeviceChoice, Layout, Prediction, SamplerKind, ScheduleOverride};
use loralei_trainer::{BenchKind, Checkpointing, Compute, Dtype, Goal, Ops, Targets, WeightDtype};

/// Trains a LoRA adapter for Stable Diffusion from a folder of images
#[derive(Debug, Parser)]
#[command(name = "loralei", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArguments),
    ImportConfig(ImportConfigArguments),
    Train(TrainArguments),
    /// Look at a run, or ask something of it while it works
    #[command(subcommand)]
    Run(RunCommand),
    Generate(GenerateArguments),
    /// Look at the images and captions of a run
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Look at a base model, or write it in another layout
    #[command(subcommand)]
    Model(ModelCommand),
    /// Look at adapters, or make one of others
    #[command(subcommand)]
    Adapter(adapter::AdapterCommand),
    /// Hold a part of the training against another program or another device
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Measure how fast this machine trains
    #[command(subcommand)]
    Bench(BenchCommand),
    Doctor(DoctorArguments),
}

/// Write the settings of a first run for a folder of images
#[derive(Debug, Args)]
#[command(
    after_help = "Looks at the images, their captions and the names of their folders, and says what it chose and why. A \
folder `10_ohwx dog` has the trigger `ohwx` and the class `dog`. A base that is not on the disk is only written down."
)]
pub(crate) struct InitArguments {
    /// Folder of images and captions
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// What is to be learned [default: guessed from the captions]
    #[arg(long, value_parser = goals())]
    pub(crate) goal: Option<Goal>,
    /// Base model: `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE", default_value = "emoji")]
    pub(crate) base: String,
    /// What shall call it [default: guessed from the folder's name or the captions]
    #[arg(long, value_name = "WORDS", value_parser = words)]
    pub(crate) trigger: Option<String>,
    /// What it is called otherwise, such as dog [default: the last word of the folder's name]
    #[arg(long, value_name = "WORD", value_parser = words)]
    pub(crate) class: Option<String>,
    /// The file [default: the folder's name and .toml]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Take over settings of kohya's trainer (sd-scripts)
#[derive(Debug, Args)]
#[command(
    after_help = "Takes its --config_file, its --dataset_config, or both. A comment says what each key was called there; what \
has no place here is listed with the reason, at the end of the file and on stderr."
)]
pub(crate) struct ImportConfigArguments {
    /// TOML or JSON
    #[arg(value_name = "FILE", required = true, num_args = 1..=2)]
    pub(crate) files: Vec<PathBuf>,
    /// Where the settings go [default: stdout]
    #[arg(long, value_name = "OUT.toml")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
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
    /// Base model: `emoji`, a diffusers folder, a checkpoint file or a hub id [model.base]
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    /// What the base predicts, where it does not say, or says it wrongly [model.prediction]
    #[arg(long, value_parser = ["epsilon", "v"])]
    pub(crate) prediction: Option<String>,
    /// Folder of images and captions [data.images]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: Option<String>,
    /// Folder for the results [output.folder]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<String>,
    /// Where to compute: cpu, cuda, cuda:N, metal [model.device]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Operations: `auto`, our kernels where the device has some, or `generic` [model.ops]
    #[arg(long, value_parser = ["auto", "generic"])]
    pub(crate) ops: Option<String>,
    /// Any setting, such as train.steps=500; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Go on with the run in the output folder; without CONFIG, with its own settings
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Go on even where settings, images or base differ
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume_anyway: bool,
    /// Begin anew where the output folder holds a run
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// End after so many steps, to be resumed
    #[arg(long, value_name = "STEP")]
    pub(crate) until: Option<u64>,
    /// Print all settings and where each came from, and train nothing
    #[arg(long)]
    pub(crate) print_config: bool,
    /// With --print-config: one JSON object
    #[arg(long, requires = "print_config")]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// How far it is
    Status(RunStatusArguments),
    /// Draw its samples after the present step
    Sample(RunRequestArguments),
    /// Write a snapshot after the present step, with an adapter that can be used
    Save(RunRequestArguments),
    /// End it after the present step; `loralei train --resume` goes on
    Stop(RunRequestArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RunStatusArguments {
    /// Folder of the run
    pub(crate) run: PathBuf,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunRequestArguments {
    /// Folder of the run
    pub(crate) run: PathBuf,
    /// Wait until it is done
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetCommand {
    Check(DatasetCheckArguments),
}

/// Say everything about the images and captions of a run before it begins
#[derive(Debug, Args)]
#[command(
    after_help = "Decodes every image and loads no network. A folder is checked as a run would use it: with prompts, sizes \
and all else from --set. Ends with exit code 3 if anything would stop the run."
)]
pub(crate) struct DatasetCheckArguments {
    /// Folder of images and captions, or the settings of a run (CONFIG.toml)
    #[arg(value_name = "DIR|CONFIG")]
    pub(crate) data: PathBuf,
    /// Width and height of the training images in pixels [data.size_px]
    #[arg(long, value_name = "PX")]
    pub(crate) size: Option<usize>,
    /// Base model, for its sizes and its tokenizer; a hub id only if it is downloaded already [model.base]
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    /// Any setting, such as data.prompt="photo of a sks dog"; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// One JSON object on stdout, with every list in full
    #[arg(long)]
    pub(crate) json: bool,
    /// Picture of all images as the network sees them: cropped, masks tinted, each with its caption
    #[arg(long, value_name = "OUT.png")]
    pub(crate) sheet: Option<PathBuf>,
}

/// Which base.
#[derive(Debug, Args)]
pub(crate) struct BaseArguments {
    /// Base model: `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE")]
    pub(crate) base: String,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArguments,
}

/// What a base does not say of its noising process, or says wrongly.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ScheduleArguments {
    /// What the base predicts, where it does not say, or says it wrongly
    #[arg(long, value_parser = predictions())]
    pub(crate) prediction: Option<Prediction>,
    /// Whether the last timestep of the base is pure noise, where it does not say, or says it wrongly
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    pub(crate) zero_terminal_snr: Option<bool>,
}

impl From<ScheduleArguments> for ScheduleOverride {
    fn from(arguments: ScheduleArguments) -> Self {
        let ScheduleArguments { prediction, zero_terminal_snr } = arguments;
        Self { prediction, zero_terminal_snr }
    }
}

/// How a base computes.
#[derive(Debug, Args)]
pub(crate) struct ComputationArguments {
    /// Number type in which the base computes [default: what suits the device]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// Number type in which frozen weights are kept; auto: 16 bits on the processor
    #[arg(long, default_value = "auto", value_parser = weights())]
    pub(crate) weights: WeightDtype,
    /// What the factors of products are rounded to; bf16 where the processor multiplies it
    #[arg(long, default_value = "f32", value_parser = compute())]
    pub(crate) compute: Compute,
    /// Where to compute: cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceChoice,
    /// Operations: our kernels where the device has some, or the tensor library's everywhere
    #[arg(long, default_value = "auto", value_parser = implementations())]
    pub(crate) ops: Ops,
}

impl ComputationArguments {
    /// The number type in which the base computes.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or_else(|| Dtype::usual(self.device))
    }
}

/// Draw pictures from text, with or without adapters
#[derive(Debug, Args)]
#[command(
    after_help = "A prompt may hold weights: (word:1.3) is stronger, (word) 1.1 times, [word] weaker, \\( is a bracket. \
More than 75 tokens go in several chunks; BREAK begins a new one. Several pictures are written as OUT-01.png, OUT-02.png \
and so on; a grid is one picture. --grid scale=-1,0,0.5,1 makes a column for each value, a second --grid a row for each; \
axes: scale (multiplies all adapters), seed, steps, guidance, sampler. Several prompts are rows."
)]
pub(crate) struct GenerateArguments {
    #[command(flatten)]
    pub(crate) base: BaseArguments,
    /// What to draw; may be repeated
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// What the pictures are not to show; left out, it is the empty text, or zeros for a base that was trained so
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative: Option<String>,
    /// Adapter, with a scale if not 1; a negative one pushes away; may be repeated
    #[arg(long, value_name = "FILE[=SCALE]")]
    pub(crate) adapter: Vec<String>,
    /// Add the adapters to the weights once instead of computing them beside these
    #[arg(long)]
    pub(crate) merge: bool,
    /// Seed of the first picture; each next one has the next number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Pictures of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=9999))]
    pub(crate) count: u16,
    /// Pictures that are drawn together, which takes more memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) batch: u16,
    /// Steps of the sampler
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) steps: u16,
    /// How strictly a picture follows its prompt; at 1 or less there is no guidance and no negative prompt
    #[arg(long, value_name = "SCALE", default_value_t = 7.5, allow_negative_numbers = true)]
    pub(crate) guidance: f64,
    /// Width and height in pixels [default: what the base was trained on]
    #[arg(long, value_name = "WxH", value_parser = size_px)]
    pub(crate) size: Option<(usize, usize)>,
    /// What a base that listens to sizes is told of the picture's before it was scaled [default: --size]
    #[arg(long, value_name = "WxH", value_parser = size_px)]
    pub(crate) original_size: Option<(usize, usize)>,
    /// What such a base is told was cut off on the left and at the top, in pixels [default: 0x0]
    #[arg(long, value_name = "LEFTxTOP", value_parser = crop_px)]
    pub(crate) crop: Option<(usize, usize)>,
    /// How to get from noise to the picture
    #[arg(long, default_value = "ddim", value_parser = samplers())]
    pub(crate) sampler: SamplerKind,
    /// Layer of the text encoder, counted from its end: 1 is the one that the base usually takes, 2 the one before
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) clip_skip: usize,
    /// One labelled picture over the values of an axis, such as scale=-1,0,0.5,1; twice for columns and rows
    #[arg(long, value_name = "AXIS=VALUES")]
    pub(crate) grid: Vec<String>,
    /// Initial noise instead of a seed: `latents` (n,4,h,w) of variance 1; `noise` (steps,n,4,h,w) for euler-a
    #[arg(long, value_name = "FILE")]
    pub(crate) latents: Option<PathBuf>,
    /// Where the final latents go: `latents` (n,4,h,w), scaled
    #[arg(long, value_name = "FILE")]
    pub(crate) save_latents: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) computation: ComputationArguments,
    /// One JSON object on stdout instead of the paths
    #[arg(long)]
    pub(crate) json: bool,
    /// The picture, or what its number is added to
    #[arg(long, value_name = "OUT.png")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    Info(ModelInfoArguments),
    Convert(ModelConvertArguments),
}

/// Say what a base is: family, prediction, sizes, number types, parameters, memory for training
#[derive(Debug, Args)]
pub(crate) struct ModelInfoArguments {
    /// `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(value_name = "BASE")]
    pub(crate) base: String,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArguments,
    /// Side in pixels of the pictures to train on [default: what the base was trained on]
    #[arg(long, value_name = "PX")]
    pub(crate) size_px: Option<usize>,
    /// Pictures that go through the network together
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch_size: usize,
    /// Rank of the factors
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) rank: usize,
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a base as a diffusers folder or as one file in the original layout
#[derive(Debug, Args)]
pub(crate) struct ModelConvertArguments {
    /// `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(value_name = "BASE")]
    pub(crate) base: String,
    /// Folder or file that must not exist yet
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Layout of the result
    #[arg(long, value_parser = layouts())]
    pub(crate) layout: Layout,
    /// Number type of the result [default: that of each tensor]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    Step(VerifyStepArguments),
    Ops(VerifyOpsArguments),
    Leak(VerifyLeakArguments),
}

/// Training steps on given latents, noise, timesteps and token ids, without clipping
#[derive(Debug, Args)]
#[command(
    after_help = "Writes the prediction and the gradients of the first step, the loss of each, and the factors after \
the last."
)]
pub(crate) struct VerifyStepArguments {
    #[command(flatten)]
    pub(crate) base: BaseArguments,
    /// Factors to start from, kohya keys
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: PathBuf,
    /// Inputs: latents and noise (steps,b,4,h,w), timesteps (steps,b), input_ids (steps,b,77); SDXL: input_ids_2, time_ids (steps,b,6)
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
    /// Number type in which frozen weights are kept [default: f32 on the processor, --dtype on a card]
    #[arg(long, value_parser = weights())]
    pub(crate) weights: Option<WeightDtype>,
    /// What the factors of products are rounded to; bf16 where the processor multiplies it
    #[arg(long, default_value = "f32", value_parser = compute())]
    pub(crate) compute: Compute,
    /// Where to compute: cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceChoice,
    /// Operations: our kernels where the device has some, or the tensor library's everywhere
    #[arg(long, default_value = "auto", value_parser = implementations())]
    pub(crate) ops: Ops,
    /// What is kept for the backward pass
    #[arg(long, default_value = "none", value_parser = checkpointing())]
    pub(crate) checkpointing: Checkpointing,
}

/// Every operation on a device against the same on the processor: values and gradients on random inputs
#[derive(Debug, Args)]
#[command(
    after_help = "On the processor itself, the tensor library's operations are held against our kernels. Ends with exit \
code 5 if an operation is off by more than the tolerance."
)]
pub(crate) struct VerifyOpsArguments {
    /// Where to compute: cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceChoice,
    /// Number type of the activations and frozen weights
    #[arg(long, default_value = "f32", value_parser = dtypes())]
    pub(crate) dtype: Dtype,
    /// What inputs and shapes are drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Largest relative error [default: 1e-5 in f32 on the processor, 1e-4 on a card; 2e-2 in bf16, 5e-3 in f16]
    #[arg(long, value_name = "ERROR")]
    pub(crate) tolerance: Option<f64>,
}

/// How much an adapter changes what the base predicts, with its trigger and without
#[derive(Debug, Args)]
#[command(
    after_help = "Change: squared distance of the predictions with and without the adapter over the square of the base's, \
mean over the same noisy latents. Each prompt is asked with and without the trigger: it stands in the place of the class word, or \
else in front. Leak: the change without it over that with it."
)]
pub(crate) struct VerifyLeakArguments {
    #[command(flatten)]
    pub(crate) base: BaseArguments,
    /// Adapter, with a scale if not 1; several are measured together
    #[arg(long, value_name = "FILE[=SCALE]", required = true)]
    pub(crate) adapter: Vec<String>,
    /// What the adapter is called by, as its captions have it
    #[arg(long, value_name = "WORDS", value_parser = words)]
    pub(crate) trigger: String,
    /// What its subject is called otherwise, such as dog
    #[arg(long, value_name = "WORD", value_parser = words)]
    pub(crate) class: Option<String>,
    /// Prompts, one a line [default: the class word, eight unrelated ones and the empty one]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Pictures whose latents are made noisy [default: standard normal latents]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: Option<PathBuf>,
    /// Noisy latents, each at a timestep of its own, at which each prompt is asked
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) points: u16,
    /// What noise and timesteps are drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Width and height in pixels [default: what the base was trained on]
    #[arg(long, value_name = "WxH", value_parser = size_px)]
    pub(crate) size: Option<(usize, usize)>,
    #[command(flatten)]
    pub(crate) computation: ComputationArguments,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Step(BenchStepArguments),
}

/// Time training steps on a U-Net of the size of SD 1.5 or SDXL with random weights
#[derive(Debug, Args)]
#[command(
    after_help = "Latents and text are given. Prints one JSON object: seconds per step, images per second, memory, and \
the arithmetic of a step beside what a large product of matrices reaches here."
)]
pub(crate) struct BenchStepArguments {
    /// Family whose U-Net is measured
    #[arg(long, default_value = "sd15", value_parser = bench_kinds())]
    pub(crate) kind: BenchKind,
    /// Height and width of the latents, an eighth of the picture's: a multiple of 8, or of 4 for sdxl
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=1024))]
    pub(crate) latent: u16,
    /// Pictures that go through the network together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) batch: u16,
    /// Rank of the factors
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) rank: u16,
    /// Layers that get factors
    #[arg(long, default_value = "attention", value_parser = target_sets())]
    pub(crate) targets: Targets,
    /// Number type in which the base computes
    #[arg(long, default_value = "f32", value_parser = dtypes())]
    pub(crate) dtype: Dtype,
    /// Number type in which frozen weights are kept; auto: f16 on the processor
    #[arg(long, default_value = "auto", value_parser = weights())]
    pub(crate) weights: WeightDtype,
    /// What the factors of products are rounded to; bf16 where the processor multiplies it
    #[arg(long, default_value = "f32", value_parser = compute())]
    pub(crate) compute: Compute,
    /// What is kept for the backward pass
    #[arg(long, default_value = "none", value_parser = checkpointing())]
    pub(crate) checkpointing: Checkpointing,
    /// Where to compute: cpu, cuda, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceChoice,
    /// Operations: our kernels where the device has some, or the tensor library's everywhere
    #[arg(long, default_value = "auto", value_parser = implementations())]
    pub(crate) ops: Ops,
    /// Let an NVIDIA card round the factors of f32 products
    #[arg(long)]
    pub(crate) tf32: bool,
    /// Also measure what each kind of operation takes
    #[arg(long)]
    pub(crate) profile: bool,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) steps: u16,
    /// Steps before these
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warmup: u16,
}

/// Show what this program and this machine can do
#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

fn goals() -> impl TypedValueParser<Value = Goal> {
    PossibleValuesParser::new(["subject", "style", "concept"]).map(|name| match name.as_str() {
        "style" => Goal::Style,
        "concept" => Goal::Concept,
        _ => Goal::Subject,
    })
}

fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "bf16", "f16"]).map(|name| match name.as_str() {
        "bf16" => Dtype::Bf16,
        "f16" => Dtype::F16,
        _ => Dtype::F32,
    })
}

fn compute() -> impl TypedValueParser<Value = Compute> {
    PossibleValuesParser::new(["f32", "bf16"]).map(|name| if name == "bf16" { Compute::Bf16 } else { Compute::F32 })
}

fn weights() -> impl TypedValueParser<Value = WeightDtype> {
    PossibleValuesParser::new(["auto", "f32", "bf16", "f16", "int8"]).map(|name| match name.as_str() {
        "f32" => WeightDtype::F32,
        "bf16" => WeightDtype::Bf16,
        "f16" => WeightDtype::F16,
        "int8" => WeightDtype::Int8,
        _ => WeightDtype::Auto,
    })
}

fn predictions() -> impl TypedValueParser<Value = Prediction> {
    PossibleValuesParser::new(["epsilon", "v"]).map(|name| match name.as_str() {
        "v" => Prediction::VPrediction,
        _ => Prediction::Epsilon,
    })
}

fn layouts() -> impl TypedValueParser<Value = Layout> {
    PossibleValuesParser::new(["diffusers", "single-file"]).map(|name| match name.as_str() {
        "single-file" => Layout::SingleFile,
        _ => Layout::Diffusers,
    })
}

fn samplers() -> impl TypedValueParser<Value = SamplerKind> {
    PossibleValuesParser::new(SamplerKind::ALL.map(|(_, name, _)| name))
        .map(|name| SamplerKind::from_name(&name).unwrap_or_default())
}

/// `512x384`: width, then height.
fn size_px(text: &str) -> Result<(usize, usize), String> {
    let sides = pair(text).filter(|(width, height)| *width > 0 && *height > 0);
    sides.ok_or_else(|| "write WIDTHxHEIGHT in pixels, such as 512x384".to_owned())
}

/// `0x16`: left, then top.
fn crop_px(text: &str) -> Result<(usize, usize), String> {
    pair(text).ok_or_else(|| "write LEFTxTOP in pixels, such as 0x16".to_owned())
}

fn pair(text: &str) -> Option<(usize, usize)> {
    let (first, second) = text.split_once(['x', 'X'])?;
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|number| *number <= 16384);
    Some((number(first)?, number(second)?))
}

/// Words with one space between, at least one.
fn words(text: &str) -> Result<String, String> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() { Err("there is no word in it".to_owned()) } else { Ok(words) }
}

fn target_sets() -> impl TypedValueParser<Value = Targets> {
    PossibleValuesParser::new(["attention", "full"]).map(|name| match name.as_str() {
        "full" => Targets::Full,
        _ => Targets::Attention,
    })
}

fn bench_kinds() -> impl TypedValueParser<Value = BenchKind> {
    PossibleValuesParser::new(["sd15", "sdxl"]).map(|name| match name.as_str() {
        "sdxl" => BenchKind::Sdxl,
        _ => BenchKind::Sd15,
    })
}

fn implementations() -> impl TypedValueParser<Value = Ops> {
    PossibleValuesParser::new(["auto", "generic"]).map(|name| match name.as_str() {
        "generic" => Ops::Generic,
        _ => Ops::Auto,
    })
}

fn checkpointing() -> impl TypedValueParser<Value = Checkpointing> {
    PossibleValuesParser::new(["none", "block"]).map(|name| match name.as_str() {
        "block" => Checkpointing::Block,
        _ => Checkpointing::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound_and_a_bench_has_the_peers_defaults() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["loralei", "bench", "step", "--targets", "full"]).unwrap();
        let Command::Bench(BenchCommand::Step(step)) = parsed.command else { panic!("{parsed:?}") };
        assert_eq!((step.latent, step.batch, step.rank, step.steps, step.warmup), (64, 1, 4, 5, 2));
        assert_eq!((step.targets, step.dtype, step.device), (Targets::Full, Dtype::F32, DeviceChoice::Cpu));
        assert_eq!((step.weights, step.kind), (WeightDtype::Auto, BenchKind::Sd15));
        for wrong in [["--steps", "0"], ["--targets", "none"], ["--dtype", "f64"], ["--batch", "0"]] {
            assert!(Arguments::try_parse_from(["loralei", "bench", "step"].iter().chain(&wrong)).is_err(), "{wrong:?}");
        }
    }
}

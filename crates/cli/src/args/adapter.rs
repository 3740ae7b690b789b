//! `loralei adapter`: arguments of the commands that read and write adapters.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use loralei_adapter::compose::Method;
use loralei_adapter::{BlockNames, Format};
use loralei_model::Targets;
use loralei_trainer::Dtype;

use super::{ScheduleArguments, dtypes};

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    Inspect(InspectArguments),
    Check(CheckArguments),
    Convert(ConvertArguments),
    Resize(ResizeArguments),
    Extract(ExtractArguments),
    Merge(MergeArguments),
    Compose(Box<ComposeArguments>),
}

/// Show what is in an adapter: format, ranks, layers, words, hashes, and the figures of each layer
#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Adapter of any format, or PEFT's folder
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Base to hold its layers against: `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    /// Another adapter, to show how much of their subspaces they share
    #[arg(long, value_name = "FILE")]
    pub(crate) against: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// A page with tables and heat maps that any browser opens
    #[arg(long, value_name = "OUT.html")]
    pub(crate) html: Option<PathBuf>,
}

/// Tell which programs would load every key of an adapter, and what each would ignore
#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Adapter of any format, or PEFT's folder
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write an adapter in another format
#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// Adapter of any format, or PEFT's folder
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// A file; a folder for PEFT
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Format of the result
    #[arg(long, value_parser = formats())]
    pub(crate) to: Format,
    /// Names of the U-Net's blocks in kohya's keys [default: original for SDXL, diffusers for all others, as programs look for]
    #[arg(long, value_parser = block_names())]
    pub(crate) names: Option<BlockNames>,
    /// Number type of the result [default: that of the adapter]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// Replace the result if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Write an adapter with fewer ranks, by exact SVD of each layer's change
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("size").required(true).args(["rank", "keep_norm", "keep_values"]))]
pub(crate) struct ResizeArguments {
    /// Adapter of any format
    #[arg(value_name = "IN")]
    pub(crate) input: PathBuf,
    /// The result, with kohya's keys
    #[arg(value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Rank of every layer
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<usize>,
    /// As few ranks for each layer as keep this share of its Frobenius norm, as 0.95
    #[arg(long, value_name = "SHARE")]
    pub(crate) keep_norm: Option<f64>,
    /// As few ranks for each layer as keep this share of the sum of its singular values
    #[arg(long, value_name = "SHARE")]
    pub(crate) keep_values: Option<f64>,
    /// Highest rank of a layer
    #[arg(long, value_name = "N", conflicts_with = "rank")]
    pub(crate) max_rank: Option<usize>,
    /// Number type of the result [default: that of the adapter]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// One JSON object on stdout, with the error of each layer
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace the result if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Make an adapter of what a tuned model has learned
#[derive(Debug, Args)]
pub(crate) struct ExtractArguments {
    /// The model that was tuned: `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE")]
    pub(crate) base: String,
    /// The model that came of it
    #[arg(long, value_name = "TUNED")]
    pub(crate) tuned: String,
    /// Rank of the factors of linear layers
    #[arg(long, value_name = "N")]
    pub(crate) rank: usize,
    /// Rank of the factors of 3x3 convolutions [default: they get none]
    #[arg(long, value_name = "N")]
    pub(crate) conv_rank: Option<usize>,
    /// Layers of the U-Net: attention, cross-attention, full, none
    #[arg(long, value_parser = targets(), default_value = "full")]
    pub(crate) unet: Targets,
    /// Layers of the text encoder: attention, full, none [default: full if it differs]
    #[arg(long, value_parser = targets())]
    pub(crate) text_encoder: Option<Targets>,
    /// Numbers of the factors above this quantile of their sizes are cut off, as kohya does at 0.99; 1 cuts nothing
    #[arg(long, value_name = "QUANTILE", default_value_t = 1.0)]
    pub(crate) clamp: f64,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArguments,
    /// The result, with kohya's keys
    #[arg(long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Number type of the result [default: f16]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// One JSON object on stdout, with the error of each layer
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace the result if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// Write a base with adapters in its weights
#[derive(Debug, Args)]
#[command(after_help = "A negative scale takes out again what was merged before.")]
pub(crate) struct MergeArguments {
    /// `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE")]
    pub(crate) base: String,
    /// Adapter of any format, and its strength; may be repeated
    #[arg(long = "adapter", value_name = "FILE[=SCALE]", required = true)]
    pub(crate) adapters: Vec<String>,
    /// The result, in the layout of the base; must not exist yet
    #[arg(long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// Number type of the result [default: that of each tensor]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make one adapter of several
#[derive(Debug, Args)]
#[command(
    after_help = "sum and concat are the exact sum. svd is its best approximation at a rank. ties averages large numbers that \
agree in sign, dare drops numbers at random, knots is ties in directions that the adapters share. budget is the sum, weaker \
in layers where adapters add up, so that pictures do not burn. fusion does on each prompt what its adapter did."
)]
pub(crate) struct ComposeArguments {
    /// Adapters of any format, each with its strength
    #[arg(value_name = "FILE[=SCALE]", required = true)]
    pub(crate) adapters: Vec<String>,
    /// How
    #[arg(long, value_parser = methods(), default_value = "budget")]
    pub(crate) method: Method,
    /// Rank of the result [default: sum of the ranks for sum, concat, budget and fusion; the largest rank otherwise]
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<usize>,
    /// Largest the sum's spectral norm may be in a layer, as a multiple of the strongest member's [default: 1]
    #[arg(long, value_name = "RATIO")]
    pub(crate) budget: Option<f64>,
    /// Share of the numbers that ties, dare and knots keep [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    pub(crate) density: Option<f64>,
    /// Chance of ties and dare, which draw [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Damping of fusion, as a share of the mean square of a layer's inputs: more is weaker and surer [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    pub(crate) ridge: Option<f64>,
    /// The result, with kohya's keys
    #[arg(long, value_name = "OUT", required_unless_present = "report")]
    pub(crate) output: Option<PathBuf>,
    /// Hold all methods against each other
    #[arg(long)]
    pub(crate) report: bool,
    /// Base for the measures of the report and for fusion: `emoji`, a diffusers folder, a checkpoint file or a hub id
    #[arg(long, value_name = "BASE")]
    pub(crate) base: Option<String>,
    #[command(flatten)]
    pub(crate) schedule: ScheduleArguments,
    /// A prompt for each adapter, in their order, with its trigger [default: the trigger words of the metadata]
    #[arg(long = "prompt", value_name = "TEXT", requires = "base")]
    pub(crate) prompts: Vec<String>,
    /// A prompt that calls all of them [default: their prompts, with commas between]
    #[arg(long, value_name = "TEXT", requires = "base")]
    pub(crate) together: Option<String>,
    /// Guidance scale of the pictures
    #[arg(long, value_name = "SCALE", default_value_t = 7.5, requires = "base")]
    pub(crate) guidance: f64,
    /// Pictures of each prompt
    #[arg(long, value_name = "N", default_value_t = 4, requires = "base", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) pictures: u16,
    /// With --report: a page with tables, heat maps and pictures
    #[arg(long, value_name = "OUT.html", requires = "report")]
    pub(crate) html: Option<PathBuf>,
    /// With --report and --base: the pictures as one PNG
    #[arg(long, value_name = "OUT.png", requires_all = ["report", "base"])]
    pub(crate) grid: Option<PathBuf>,
    /// Number type of the result [default: f16]
    #[arg(long, value_parser = dtypes())]
    pub(crate) dtype: Option<Dtype>,
    /// One JSON object on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Replace the result if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

const FORMATS: [(&str, Format); 4] = [
    ("kohya", Format::Kohya),
    ("diffusers", Format::Diffusers),
    ("peft", Format::Peft),
    ("cloneofsimo", Format::Cloneofsimo),
];

fn formats() -> impl TypedValueParser<Value = Format> {
    one_of(&FORMATS)
}

const BLOCK_NAMES: [(&str, BlockNames); 2] = [("original", BlockNames::Original), ("diffusers", BlockNames::Diffusers)];

fn block_names() -> impl TypedValueParser<Value = BlockNames> {
    one_of(&BLOCK_NAMES)
}

fn methods() -> impl TypedValueParser<Value = Method> {
    one_of(&Method::NAMES)
}

/// The value of one of these names.
fn one_of<T: Copy + Send + Sync + 'static>(all: &'static [(&'static str, T)]) -> impl TypedValueParser<Value = T> {
    let value = |name: String| all.iter().find_map(|(known, value)| (*known == name).then_some(*value));
    PossibleValuesParser::new(all.iter().map(|(name, _)| *name)).try_map(move |name| value(name).ok_or("unknown"))
}

fn targets() -> impl TypedValueParser<Value = Targets> {
    PossibleValuesParser::new(["none", "attention", "cross-attention", "full"]).map(|name| match name.as_str() {
        "none" => Targets::None,
        "attention" => Targets::Attention,
        "cross-attention" => Targets::CrossAttention,
        _ => Targets::Full,
    })
}

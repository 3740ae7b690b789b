//! `loralei model`: what a base is, and a base in another layout.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use candle_core::{DType, Device};
use loralei_model::{Base, BaseDescription, Prediction, TrainingSize, WeightBytes, convert as convert_base};
use loralei_trainer::{Dtype, Event, MemorySwitch};
use serde::Serialize;

use crate::args::{ModelConvertArguments, ModelInfoArguments};
use crate::commands::base::{self, model};
use crate::report::Reporter;

/// What `--json` prints.
#[derive(Serialize)]
struct Info {
    base: String,
    family: &'static str,
    prediction: &'static str,
    prediction_origin: &'static str,
    zero_terminal_snr: bool,
    native_size_px: usize,
    size_multiple_px: usize,
    latent_scale: f64,
    text_width: usize,
    /// `null` where the U-Net is not told the text as a whole.
    pooled_width: Option<usize>,
    text_positions: usize,
    parts: Vec<Part>,
    num_parameters: u64,
    training: Training,
    warnings: Vec<String>,
    #[serde(skip)]
    predicts: String,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    num_parameters: u64,
    dtypes: Vec<String>,
}

/// Memory for training, estimated.
#[derive(Serialize)]
struct Training {
    size_px: usize,
    batch_size: usize,
    rank: usize,
    /// On the processor, by number type, weights and checkpointing. Weights have 16 bits unless they are int8.
    bytes: BTreeMap<String, u64>,
    /// The same on a card, where weights have the number type unless they are int8.
    card_bytes: BTreeMap<String, u64>,
    /// What would take less than the default, f32 without checkpointing.
    less: Vec<MemorySwitch>,
}

pub(crate) fn info(arguments: &ModelInfoArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let base = base::open(&arguments.base, arguments.schedule, DType::F32, &Device::Cpu, reporter)?;
    let info = Info::new(&base, arguments)?;
    let text = if arguments.json { serde_json::to_string(&info)? + "\n" } else { info.to_text() };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

impl Info {
    fn new(base: &Base, arguments: &ModelInfoArguments) -> anyhow::Result<Self> {
        let found = BaseDescription::of(base).map_err(model)?;
        let size_px = arguments.size_px.unwrap_or(found.native_size_px);
        base.check_size(size_px, size_px).map_err(model)?;
        let (batch_size, rank) = (arguments.batch_size.max(1), arguments.rank.max(1));
        let size = TrainingSize {
            width_px: size_px,
            height_px: size_px,
            text_encoders: [false; 2],
            batch_size,
            rank,
            recompute: false,
            is_cpu: true,
            bytes_per_weight: WeightBytes::alike(2),
            bytes_per_number: 4,
        };
        let less = MemorySwitch::of(&found, size);
        let bytes = estimates(&found, size);
        let card_bytes = estimates(&found, TrainingSize { is_cpu: false, ..size });
        let parts = found.parts.into_iter().map(|part| Part {
            name: part.name,
            num_parameters: part.num_parameters,
            dtypes: part.dtypes.into_iter().collect(),
        });
        let parts: Vec<Part> = parts.collect();
        Ok(Self {
            base: base.name(),
            family: found.family,
            prediction: match found.prediction {
                Prediction::Epsilon => "epsilon",
                Prediction::VPrediction => "v",
            },
            prediction_origin: found.prediction_origin.name(),
            zero_terminal_snr: found.zero_terminal_snr,
            native_size_px: found.native_size_px,
            size_multiple_px: found.size_multiple_px,
            latent_scale: found.latent_scale,
            text_width: found.text_width,
            pooled_width: found.pooled_width,
            text_positions: found.text_positions,
            num_parameters: parts.iter().map(|part| part.num_parameters).sum(),
            parts,
            training: Training { size_px, batch_size, rank, bytes, card_bytes, less },
            warnings: base.warnings().to_vec(),
            predicts: base.predicts(),
        })
    }

    fn to_text(&self) -> String {
        let pooled = self.pooled_width.map_or_else(String::new, |width| format!(", {width} for all of it"));
        let mut lines = vec![
            ("base".to_owned(), self.base.clone()),
            ("family".to_owned(), self.family.to_owned()),
            ("predicts".to_owned(), self.predicts.clone()),
            (
                "pictures".to_owned(),
                format!("{0} x {0} px; sides are multiples of {1}", self.native_size_px, self.size_multiple_px),
            ),
            ("latents".to_owned(), format!("scaled by {}", self.latent_scale)),
            (
                "text".to_owned(),
                format!("{} numbers for each of {} tokens{pooled}", self.text_width, self.text_positions),
            ),
        ];
        for part in &self.parts {
            let millions = part.num_parameters as f64 / 1e6;
            lines.push((part.name.to_owned(), format!("{millions:.2} M parameters, {}", part.dtypes.join(" and "))));
        }
        let Training { size_px, batch_size, rank, bytes, card_bytes, less } = &self.training;
        let gigabytes = |bytes: &u64| *bytes as f64 / 1e9;
        let settings = format!("{size_px} px, batch {batch_size}, rank {rank}");
        lines.push(("training".to_owned(), format!("{settings:<28}  processor       card")));
        for ((name, bytes), of_card) in bytes.iter().zip(card_bytes.values()) {
            let columns = format!("{name:<28} {:>7.2} GB {:>7.2} GB", gigabytes(bytes), gigabytes(of_card));
            lines.push((String::new(), columns));
        }
        if !less.is_empty() {
            lines.push(("less".to_owned(), format!("with {}", MemorySwitch::list(less))));
        }
        let lines: Vec<String> = lines.into_iter().map(|(name, text)| format!("{name:<14} {text}\n")).collect();
        lines.concat()
    }
}

/// Bytes for training with either number type, weights in 16 bits (on a card, in the number type) or int8, with and without
/// recompute.
fn estimates(base: &BaseDescription, size: TrainingSize) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    for (dtype, bytes_per_number) in [("f32", 4), ("bf16", 2)] {
        let wide = WeightBytes::alike(if size.is_cpu { 2 } else { bytes_per_number });
        let int8 = WeightBytes { matrices: 1, kernels: 2 };
        for (name, bytes_per_weight, recompute) in [
            ("", wide, false),
            (" with recompute", wide, true),
            (" with int8", int8, false),
            (" with int8 and recompute", int8, true),
        ] {
            let size = TrainingSize { recompute, bytes_per_weight, bytes_per_number, ..size };
            bytes.insert(format!("{dtype}{name}"), base.training_bytes(size));
        }
    }
    bytes
}

pub(crate) fn convert(arguments: &ModelConvertArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let base = base::open(&arguments.base, arguments.schedule, DType::F32, &Device::Cpu, reporter)?;
    let dtype = arguments.dtype.map(file_dtype);
    let mut is_started = false;
    convert_base(&base, &arguments.output, arguments.layout, dtype, &mut |done, total| {
        if !is_started {
            reporter.show(&Event::PhaseStarted { name: "writing".into(), total: Some(total) });
            is_started = true;
        }
        reporter.show(&Event::PhaseProgress { done });
    })
    .map_err(model)?;
    reporter.finish();
    writeln!(stdout(), "{}", arguments.output.display())?;
    Ok(())
}

pub(crate) fn file_dtype(dtype: Dtype) -> loralei_adapter::Dtype {
    match dtype {
        Dtype::F32 => loralei_adapter::Dtype::F32,
        Dtype::Bf16 => loralei_adapter::Dtype::Bf16,
        Dtype::F16 => loralei_adapter::Dtype::F16,
    }
}

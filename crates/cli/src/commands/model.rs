//! `loralei model`: what a base is, and a base in another layout.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use candle_core::{DType, Device};
use loralei_model::{Base, BaseDescription, Prediction, TrainingSize, convert as convert_base};
use loralei_trainer::{BaseChoice, Dtype, Event, MemorySwitch};
use serde::Serialize;

use crate::args::{ModelConvertArguments, ModelInfoArguments};
use crate::commands::base::{self, model};
use crate::report::Reporter;

fn open(name: &str, prediction: Option<Prediction>, reporter: &mut Reporter) -> anyhow::Result<Base> {
    let source = base::source(&BaseChoice::from(name), reporter)?;
    Base::open(source, prediction, DType::F32, &Device::Cpu).map_err(model)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Info {
    base: String,
    family: &'static str,
    prediction: &'static str,
    zero_terminal_snr: bool,
    native_size_px: usize,
    size_multiple_px: usize,
    text_width: usize,
    text_positions: usize,
    parts: Vec<Part>,
    num_parameters: u64,
    training: Training,
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
    /// By number type and checkpointing, with weights of 16 bits as `model.weights = "auto"` has them.
    bytes: BTreeMap<String, u64>,
    /// What would take less than the default, f32 without checkpointing.
    less: Vec<MemorySwitch>,
}

pub(crate) fn info(arguments: &ModelInfoArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let base = open(&arguments.base, arguments.prediction, reporter)?;
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
            text_encoder: false,
            batch_size,
            rank,
            recompute: false,
            bytes_per_weight: 2,
            bytes_per_number: 4,
        };
        let less = MemorySwitch::of(&found, size, true);
        let mut bytes = BTreeMap::new();
        for (dtype, bytes_per_number) in [("f32", 4), ("bf16", 2)] {
            for (name, recompute) in [("", false), (" with recompute", true)] {
                let size = TrainingSize { recompute, bytes_per_number, ..size };
                bytes.insert(format!("{dtype}{name}"), found.training_bytes(size));
            }
        }
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
            zero_terminal_snr: found.zero_terminal_snr,
            native_size_px: found.native_size_px,
            size_multiple_px: found.size_multiple_px,
            text_width: found.text_width,
            text_positions: found.text_positions,
            num_parameters: parts.iter().map(|part| part.num_parameters).sum(),
            parts,
            training: Training { size_px, batch_size, rank, bytes, less },
        })
    }

    fn to_text(&self) -> String {
        let snr = if self.zero_terminal_snr { ", zero terminal SNR" } else { "" };
        let prediction = match self.prediction {
            "v" => "velocity (v)",
            _ => "noise (epsilon)",
        };
        let mut lines = vec![
            ("base".to_owned(), self.base.clone()),
            ("family".to_owned(), self.family.to_owned()),
            ("predicts".to_owned(), format!("{prediction}{snr}")),
            (
                "pictures".to_owned(),
                format!("{0} x {0} px; sides are multiples of {1}", self.native_size_px, self.size_multiple_px),
            ),
            ("text".to_owned(), format!("{} numbers for each of {} tokens", self.text_width, self.text_positions)),
        ];
        for part in &self.parts {
            let millions = part.num_parameters as f64 / 1e6;
            lines.push((part.name.to_owned(), format!("{millions:.2} M parameters, {}", part.dtypes.join(" and "))));
        }
        let Training { size_px, batch_size, rank, bytes, less } = &self.training;
        let gigabytes = |bytes: &u64| *bytes as f64 / 1e9;
        let estimates: Vec<String> = bytes.iter().map(|(name, b)| format!("{:.2} GB {name}", gigabytes(b))).collect();
        let settings = format!("{size_px} px, batch {batch_size}, rank {rank}");
        lines.push(("training".to_owned(), format!("about {} ({settings})", estimates.join(", "))));
        if !less.is_empty() {
            lines.push(("less".to_owned(), format!("with {}", MemorySwitch::list(less))));
        }
        let lines: Vec<String> = lines.into_iter().map(|(name, text)| format!("{name:<14} {text}\n")).collect();
        lines.concat()
    }
}

pub(crate) fn convert(arguments: &ModelConvertArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let base = open(&arguments.base, arguments.prediction, reporter)?;
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

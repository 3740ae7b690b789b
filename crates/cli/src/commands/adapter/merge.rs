//! `loralei adapter merge`.

use std::io::{Write, stdout};

use candle_core::{DType, Device};
use loralei_adapter::AdapterFile;
use loralei_model::{Base, MergeReport, Prediction};
use loralei_trainer::{BaseChoice, Event, TrainError};
use serde::Serialize;

use crate::args::adapter::MergeArguments;
use crate::commands::adapters::split;
use crate::commands::base::{self, model};
use crate::commands::model::file_dtype;
use crate::report::Reporter;

/// What `--json` prints.
#[derive(Serialize)]
struct Merged {
    output: String,
    num_modules: usize,
    num_tensors: usize,
    notes: Vec<String>,
}

pub(crate) fn run(arguments: &MergeArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let mut adapters = Vec::with_capacity(arguments.adapters.len());
    for (path, scale) in arguments.adapters.iter().map(|argument| split(argument)) {
        adapters.push((AdapterFile::read(&path).map_err(TrainError::from)?, scale));
    }
    let adapters: Vec<(&AdapterFile, f32)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    let source = base::source(&BaseChoice::from(arguments.base.as_str()), reporter)?;
    // What the base predicts does not matter here; this spares the question where it does not say.
    let base = Base::open(source, Some(Prediction::Epsilon), DType::F32, &Device::Cpu).map_err(model)?;

    let mut is_started = false;
    let dtype = arguments.dtype.map(file_dtype);
    let report = loralei_model::merge(&base, &adapters, &arguments.output, dtype, &mut |done, total| {
        if !is_started {
            reporter.show(&Event::PhaseStarted { name: "merging".into(), total: Some(total) });
            is_started = true;
        }
        reporter.show(&Event::PhaseProgress { done });
    });
    reporter.finish();
    let MergeReport { path, num_modules, num_tensors, notes } = report.map_err(model)?;
    let output = path.display().to_string();
    if arguments.json {
        let merged = Merged { output, num_modules, num_tensors, notes };
        writeln!(stdout(), "{}", serde_json::to_string(&merged)?)?;
        return Ok(());
    }
    for message in notes {
        reporter.show(&Event::Warning { message });
    }
    let message = format!("{num_modules} modules merged into {num_tensors} tensors");
    reporter.show(&Event::Note { message });
    writeln!(stdout(), "{output}")?;
    Ok(())
}

//! `loralei adapter merge`.

use std::io::{Write, stdout};

use loralei_adapter::AdapterFile;
use loralei_model::MergeReport;
use loralei_trainer::Event;
use serde::Serialize;

use crate::args::adapter::MergeArguments;
use crate::commands::adapters::{read, split};
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
        adapters.push((read(&path, reporter)?, scale));
    }
    let adapters: Vec<(&AdapterFile, f32)> = adapters.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    let base = base::open_for_weights(&arguments.base, reporter)?;

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

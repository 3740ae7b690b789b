//! `loralei adapter inspect`.

mod text;

use std::io::{Write, stdout};

use loralei_adapter::Inspection;
use loralei_model::BaseLayers;
use loralei_report::{ReportError, write_inspection_page};
use loralei_trainer::{Event, TrainError};

use crate::args::adapter::InspectArguments;
use crate::commands::adapters::read;
use crate::commands::base::{self, model};
use crate::report::Reporter;

pub(crate) fn run(arguments: &InspectArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let file = read(&arguments.file, reporter)?;
    let against = arguments.against.as_deref().map(|path| read(path, reporter)).transpose()?;
    let layers = arguments.base.as_deref().map(|name| layers(name, reporter)).transpose()?;

    reporter.show(&Event::PhaseStarted { name: "measuring".into(), total: None });
    let weight = |module: &str| layers.as_ref().map_or(Ok(None), |layers| layers.weight(module));
    let base: Option<&loralei_adapter::BaseWeights<'_>> = if layers.is_some() { Some(&weight) } else { None };
    let inspection = Inspection::of(&file, base, against.as_ref()).map_err(TrainError::from)?;
    reporter.finish();
    let num_foreign = inspection.modules.iter().filter(|module| layers.is_some() && module.base.is_none()).count();
    if num_foreign > 0 {
        let message = format!("{num_foreign} of {} layers are not in the base", inspection.modules.len());
        reporter.show(&Event::Warning { message });
    }
    if let Some(path) = &arguments.html {
        write_inspection_page(&inspection, path).map_err(|error| match error {
            ReportError::Write(error) => TrainError::from(error).into(), // with its hint and exit code
            other => anyhow::Error::from(other),
        })?;
        reporter.show(&Event::Note { message: format!("page: {}", path.display()) });
    }
    let text = if arguments.json { serde_json::to_string(&inspection)? + "\n" } else { text::inspection(&inspection) };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn layers(name: &str, reporter: &mut Reporter) -> anyhow::Result<BaseLayers> {
    let base = base::open_for_weights(name, reporter)?;
    BaseLayers::of(&base).map_err(model)
}

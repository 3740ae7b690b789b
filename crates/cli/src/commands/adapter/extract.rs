//! `loralei adapter extract`.

use std::io::{Write, stdout};

use candle_core::{DType, Device};
use loralei_adapter::SaveDtype;
use loralei_model::{ExtractedLayer, Extraction, ExtractionSettings, Targets};
use loralei_trainer::{Event, TrainError};
use serde::Serialize;

use crate::args::adapter::ExtractArguments;
use crate::commands::adapter::save_dtype;
use crate::commands::adapters::stem;
use crate::commands::base::{self, model};
use crate::commands::new_file::refuse_existing;
use crate::report::Reporter;
use crate::usage::UsageError;

/// What `--json` prints.
#[derive(Serialize)]
struct Extracted<'a> {
    output: String,
    layers: &'a [ExtractedLayer],
    unchanged: &'a [String],
    /// Over all layers together: ||rest|| / ||difference||.
    relative_error: f64,
}

pub(crate) fn run(arguments: &ExtractArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    check(arguments)?;
    refuse_existing(&arguments.output, arguments.force)?;
    let mut open = |name: &str| base::open(name, arguments.schedule, DType::F32, &Device::Cpu, reporter);
    let (base, tuned) = (open(&arguments.base)?, open(&arguments.tuned)?);
    let settings = ExtractionSettings {
        rank: arguments.rank,
        conv_rank: arguments.conv_rank,
        unet: arguments.unet.clone(),
        // Layers that do not differ are left out in any case.
        text_encoder: arguments.text_encoder.clone().unwrap_or(Targets::Full),
        clamp: arguments.clamp,
    };
    let name = stem(&arguments.output);
    let mut is_started = false;
    let extraction = loralei_model::extract(&base, &tuned, &settings, &name, &mut |done, total| {
        if !is_started {
            reporter.show(&Event::PhaseStarted { name: "extracting layers".into(), total: Some(total) });
            is_started = true;
        }
        reporter.show(&Event::PhaseProgress { done });
    });
    reporter.finish();
    let Extraction { adapter, layers, unchanged } = extraction.map_err(model)?;
    let dtype = arguments.dtype.map_or(SaveDtype::F16, save_dtype);
    adapter.write(&arguments.output, dtype).map_err(TrainError::from)?;

    let extracted = Extracted {
        output: arguments.output.display().to_string(),
        layers: &layers,
        unchanged: &unchanged,
        relative_error: whole_error(&layers),
    };
    if arguments.json {
        writeln!(stdout(), "{}", serde_json::to_string(&extracted)?)?;
        return Ok(());
    }
    reporter.show(&Event::Note { message: extracted.to_text() });
    writeln!(stdout(), "{}", extracted.output)?;
    Ok(())
}

fn check(arguments: &ExtractArguments) -> Result<(), UsageError> {
    if arguments.rank == 0 || arguments.conv_rank == Some(0) {
        return Err(UsageError::new(
            "a rank of 0 holds nothing",
            "give --rank 1 or more; without --conv-rank, 3x3 convolutions get no factors",
        ));
    }
    if !(arguments.clamp > 0.0 && arguments.clamp <= 1.0) {
        let message = format!("--clamp {} is not above 0 and at most 1", arguments.clamp);
        return Err(UsageError::new(message, "kohya's value is 0.99; 1 cuts nothing"));
    }
    Ok(())
}

fn whole_error(layers: &[ExtractedLayer]) -> f64 {
    let squares = |of: &dyn Fn(&ExtractedLayer) -> f64| layers.iter().map(|layer| of(layer).powi(2)).sum::<f64>();
    let rest = squares(&|layer| layer.difference_norm * layer.relative_error);
    (rest / squares(&|layer| layer.difference_norm)).sqrt()
}

impl Extracted<'_> {
    fn to_text(&self) -> String {
        let worst = self.layers.iter().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
        let worst = worst.map_or_else(String::new, |layer| {
            format!("; the worst is {} with {:.1} %", layer.module, 100.0 * layer.relative_error)
        });
        let unchanged = match self.unchanged.len() {
            0 => String::new(),
            count => format!("; {count} layers do not differ and are left out"),
        };
        let (count, percent) = (self.layers.len(), 100.0 * self.relative_error);
        format!("{count} layers; {percent:.1} % of the difference is lost{worst}{unchanged}")
    }
}

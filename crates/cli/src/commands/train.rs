//! `loralei train`: settles the settings, runs the training, shows its events.

use std::io::{Write, stdout};

use loralei_trainer::{BaseChoice, ConfigLayers, Event, Plan, ResolvedConfig};

use crate::args::TrainArguments;
use crate::commands::base;
use crate::commands::summary::Summary;
use crate::report::Reporter;

pub(crate) fn run(arguments: &TrainArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let (resolved, plan) = settle(arguments)?;
    for message in &plan.warnings {
        reporter.show(&Event::Warning { message: message.clone() });
    }
    let base = base::source(&plan.base, reporter)?;
    let finished = loralei_trainer::train(&plan, &resolved.to_toml(), base, &mut |event| reporter.show(&event))?;
    writeln!(stdout(), "{}", finished.adapter.path.display())?;
    let summary = Summary { plan: &plan, finished: &finished, base: &base_name(&plan) };
    for line in summary.lines() {
        reporter.show(&Event::Note { message: line });
    }
    Ok(())
}

fn base_name(plan: &Plan) -> String {
    match &plan.base {
        BaseChoice::Emoji => "emoji".to_owned(),
        BaseChoice::Named(name) => name.clone(),
    }
}

/// The settings of all layers, as written down beside the result, and the checked plan made of them.
fn settle(arguments: &TrainArguments) -> anyhow::Result<(ResolvedConfig, Plan)> {
    let mut layers = ConfigLayers::new();
    if let Some(path) = &arguments.config {
        layers.file(path)?;
    }
    let flags = [
        ("model.base", &arguments.base),
        ("model.prediction", &arguments.prediction),
        ("model.device", &arguments.device),
        ("model.ops", &arguments.ops),
        ("data.images", &arguments.images),
        ("output.folder", &arguments.output),
    ];
    for (key, value) in flags {
        if let Some(text) = value {
            layers.set_text(key, text)?;
        }
    }
    for argument in &arguments.set {
        layers.set(argument)?;
    }
    let resolved = layers.resolve()?;
    let plan = Plan::new(&resolved.config)?;
    Ok((resolved, plan))
}

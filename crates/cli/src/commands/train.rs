//! `loralei train`: settles the settings, runs the training, shows its events.

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use loralei_trainer::{
    ConfigLayers, Control, Ended, Event, Interruption, Plan, ResolvedConfig, RunOptions, Start, Stopped, quoted,
};

use crate::args::TrainArguments;
use crate::commands::summary::Summary;
use crate::commands::{base, print_config};
use crate::report::Reporter;
use crate::usage::UsageError;

/// After a signal: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

pub(crate) fn run(arguments: &TrainArguments, reporter: &mut Reporter) -> anyhow::Result<ExitCode> {
    let resolved = settle(arguments)?;
    if arguments.print_config {
        return print_config::run(&resolved, arguments.json, reporter).map(|()| ExitCode::SUCCESS);
    }
    let plan = Plan::new(&resolved.config)?;
    for message in &plan.warnings {
        reporter.show(&Event::Warning { message: message.clone() });
    }
    let base = base::source(&plan.base, reporter)?;
    let start = match arguments {
        TrainArguments { resume: false, resume_anyway: false, overwrite, .. } if *overwrite => Start::Overwrite,
        TrainArguments { resume: false, resume_anyway: false, .. } => Start::New,
        TrainArguments { resume_anyway, .. } => Start::Resume { anyway: *resume_anyway },
    };
    let options = RunOptions { resolved: &resolved, start, until: arguments.until, control: heeding_signals()? };
    match loralei_trainer::train(&plan, base, &options, &mut |event| reporter.show(&event))? {
        Ended::Finished(finished) => {
            writeln!(stdout(), "{}", finished.adapter.path.display())?;
            let summary = Summary { plan: &plan, finished: &finished };
            for line in summary.lines() {
                reporter.show(&Event::Note { message: line });
            }
            Ok(ExitCode::SUCCESS)
        }
        Ended::Stopped(stopped) => {
            writeln!(stdout(), "{}", stopped.adapter.path.display())?;
            let Stopped { step, num_steps, by_signal, .. } = stopped;
            let folder = quoted(&plan.output_folder.display().to_string());
            let message = format!(
                "stopped after {step} of {num_steps} steps; to go on: loralei train --output {folder} --resume"
            );
            reporter.show(&Event::Note { message });
            Ok(if by_signal { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
        }
    }
}

/// From here on, Ctrl-C and SIGTERM let a run finish its step and save; a second one ends the process at once, and so does
/// the first while there is nothing to save.
fn heeding_signals() -> anyhow::Result<Control> {
    let control = Control::new();
    let heeding = control.clone();
    ctrlc::set_handler(move || match heeding.interrupt() {
        Interruption::Waits => eprint_line("the step is finished and saved first; once more ends at once"),
        Interruption::Now => end_now(),
    })?;
    Ok(control)
}

fn eprint_line(text: &str) {
    // Nowhere left to report that stderr is gone.
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

#[expect(clippy::exit, reason = "the user does not want to wait, and everything on the disk is whole at any moment")]
fn end_now() -> ! {
    std::process::exit(i32::from(INTERRUPTED))
}

/// The settings of all layers, as written down beside the result.
fn settle(arguments: &TrainArguments) -> anyhow::Result<ResolvedConfig> {
    let mut layers = ConfigLayers::new();
    let resumes = arguments.resume || arguments.resume_anyway;
    match (&arguments.config, &arguments.output) {
        (Some(path), _) => layers.file(path)?,
        (None, Some(output)) if resumes => layers.file(&Path::new(output).join("run.toml"))?,
        (None, None) if resumes => {
            let hint = "give the folder of the run with --output, or the CONFIG.toml that it began with";
            return Err(UsageError::new("--resume does not know which run", hint).into());
        }
        _ => {}
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
    Ok(layers.resolve()?)
}

//! `loralei run`: looks at a run from outside, and asks things of it while it works.

use std::io::{Write, stdout};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use loralei_trainer::{Event, Request, RunHandle, RunState, RunStatus};

use crate::args::{RunCommand, RunRequestArguments, RunStatusArguments};
use crate::report::{Reporter, duration, gigabytes};

/// Time between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn run(command: &RunCommand, reporter: &mut Reporter) -> anyhow::Result<()> {
    match command {
        RunCommand::Status(arguments) => status(arguments),
        RunCommand::Sample(arguments) => ask(Request::Sample, arguments, reporter),
        RunCommand::Save(arguments) => ask(Request::Save, arguments, reporter),
        RunCommand::Stop(arguments) => ask(Request::Stop, arguments, reporter),
    }
}

fn status(arguments: &RunStatusArguments) -> anyhow::Result<()> {
    let handle = RunHandle::new(&arguments.run)?;
    let (status, is_running) = (handle.status()?, handle.is_running()?);
    if arguments.json {
        let mut json = serde_json::to_value(&status)?;
        json["is_running"] = is_running.into();
        writeln!(stdout(), "{json}")?;
    } else {
        for line in lines(&arguments.run, &status, is_running) {
            writeln!(stdout(), "{line}")?;
        }
    }
    Ok(())
}

fn lines(folder: &Path, status: &RunStatus, is_running: bool) -> Vec<String> {
    let RunStatus { state, step, num_steps, smoothed_loss, step_s, eta_s, resident_bytes, pid, host, .. } = status;
    let state = match (state, is_running) {
        // A process that was killed could not say so.
        (RunState::Preparing | RunState::Training, false) => "was killed; `loralei train --resume` goes on".to_owned(),
        _ => status.message.clone(),
    };
    let mut lines = vec![format!("{}: {state}", folder.display())];
    if *num_steps > 0 {
        let mut parts = vec![format!("step {step}/{num_steps}")];
        parts.extend(step_s.map(|step_s| format!("{step_s:.2} s/step")));
        parts.extend(smoothed_loss.map(|loss| format!("loss {loss:.4}")));
        if is_running {
            parts.extend(eta_s.map(|eta_s| format!("left {}", duration(eta_s))));
            parts.extend(resident_bytes.map(gigabytes));
            parts.push(format!("process {pid} on {host}"));
        }
        lines.push(parts.join("  "));
    }
    lines
}

fn ask(request: Request, arguments: &RunRequestArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let handle = RunHandle::new(&arguments.run)?;
    handle.ask(request)?;
    if arguments.wait {
        while handle.is_running()? && (handle.is_waiting(request) || request == Request::Stop) {
            sleep(LOOK_EVERY);
        }
    } else {
        let message = "asked; it is done after the present step".to_owned();
        reporter.show(&Event::Note { message });
    }
    Ok(())
}

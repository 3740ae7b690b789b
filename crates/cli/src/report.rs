//! What the user sees on stderr: progress and errors. On a terminal a bar, elsewhere one plain line at intervals.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use loralei_trainer::{Event, StepReport, TrainError};

use crate::usage::{DataWouldStop, UsageError};

/// Time between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the events of a run.
pub(crate) struct Reporter {
    bars: MultiProgress,
    is_terminal: bool,
    phase: Option<Phase>,
}

struct Phase {
    name: String,
    total: Option<u64>,
    bar: Option<ProgressBar>,
    /// Units that were done when the first of this phase was: a run that goes on does not begin at 0.
    done_before: Option<u64>,
    started: Instant,
    last_line: Instant,
}

impl Reporter {
    pub(crate) fn new(bars: MultiProgress) -> Self {
        Self { bars, is_terminal: io::stderr().is_terminal(), phase: None }
    }

    pub(crate) fn show(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { name, total } => self.start_phase(name, *total),
            Event::PhaseProgress { done } => self.progress(*done, String::new),
            Event::Step(step) => self.progress(step.step + 1, || figures(step)),
            Event::Note { message } => self.line(message),
            Event::Warning { message } => self.line(&format!("{} {message}", painted("warning:", YELLOW))),
            Event::Saved { path, num_bytes } => {
                self.line(&format!("saved `{}` ({:.2} MB)", path.display(), *num_bytes as f64 / 1e6));
            }
            Event::Done { num_steps, elapsed_s, peak_resident_bytes, peak_device_bytes } => {
                self.end_phase();
                let memory =
                    peak_resident_bytes.map(|bytes| format!(", peak {}", gigabytes(bytes))).unwrap_or_default();
                let on_card = peak_device_bytes.map(|bytes| format!(", on the card {}", gigabytes(bytes)));
                let memory = memory + &on_card.unwrap_or_default();
                self.line(&format!("{num_steps} steps in {}{memory}", duration(*elapsed_s)));
            }
            _ => {}
        }
    }

    fn start_phase(&mut self, name: &str, total: Option<u64>) {
        self.end_phase();
        let bar = self.is_terminal.then(|| self.bars.add(bar(name, total)));
        if bar.is_none() {
            self.line(name);
        }
        let now = Instant::now();
        self.phase =
            Some(Phase { name: name.to_string(), total, bar, done_before: None, started: now, last_line: now });
    }

    /// Ends whatever is shown.
    pub(crate) fn finish(&mut self) {
        self.end_phase();
    }

    fn end_phase(&mut self) {
        if let Some(bar) = self.phase.take().and_then(|phase| phase.bar) {
            bar.finish();
        }
    }

    /// `done` units of the phase are complete; `figures` are asked for only if they will be shown.
    fn progress(&mut self, done: u64, figures: impl FnOnce() -> String) {
        let Some(phase) = &mut self.phase else { return };
        let is_first = phase.done_before.is_none();
        let done_before = *phase.done_before.get_or_insert(done.saturating_sub(1));
        if let Some(bar) = &phase.bar {
            bar.set_message(figures());
            bar.set_position(done);
            if is_first && done_before > 0 {
                bar.reset_eta();
            }
        } else if phase.last_line.elapsed() >= LINE_INTERVAL || (phase.total == Some(done) && done > 0) {
            phase.last_line = Instant::now();
            let line = plain_line(&phase.name, (done_before, done), phase.total, phase.started.elapsed(), &figures());
            self.line(&line);
        }
    }

    fn line(&self, text: &str) {
        self.bars.suspend(|| to_stderr(text));
    }
}

fn bar(name: &str, total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = match total {
        Some(_) => "{prefix} [{bar:24}] {pos}/{len}  {elapsed} left {eta}  {wide_msg}",
        None => "{prefix} {spinner} {pos}  {elapsed}  {wide_msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_prefix(name.to_string())
}

/// `done_before` of the units were done when the time began.
fn plain_line(
    name: &str,
    (done_before, done): (u64, u64),
    total: Option<u64>,
    elapsed: Duration,
    figures: &str,
) -> String {
    let of_total = total.map(|total| format!("/{total}")).unwrap_or_default();
    let left = total.filter(|total| done > done_before && *total > done).map(|total| {
        let left_s = elapsed.as_secs_f64() / (done - done_before) as f64 * (total - done) as f64;
        format!("  left {}", duration(left_s))
    });
    let figures = if figures.is_empty() { String::new() } else { format!("  {figures}") };
    format!("{name} {done}{of_total}  {}{}{figures}", duration(elapsed.as_secs_f64()), left.unwrap_or_default())
}

fn figures(step: &StepReport) -> String {
    let memory = step.resident_bytes.map(|bytes| format!("  {}", gigabytes(bytes))).unwrap_or_default();
    let StepReport { smoothed_loss, loss, learning_rate, step_s, images_per_s, .. } = step;
    format!(
        "{step_s:.2} s/step  {images_per_s:.1} images/s  loss {smoothed_loss:.4} ({loss:.4})  lr {learning_rate:.2e}{memory}"
    )
}

pub(crate) fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 60.0 => format!("{seconds:.1} s"),
        ..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Prints an error with its causes on one line, and the hint on the next.
pub(crate) fn print_error(error: &anyhow::Error) {
    to_stderr(&format!("{} {}", painted("error:", RED), chain(error)));
    if let Some(hint) = hint(error) {
        to_stderr(&format!("{} {hint}", painted("hint:", CYAN)));
    }
}

/// What the user can do.
fn hint(error: &anyhow::Error) -> Option<String> {
    #[cfg(feature = "hub")]
    if let Some(error) = error.downcast_ref::<loralei_hub::HubError>() {
        return error.hint();
    }
    if let Some(stop) = error.downcast_ref::<DataWouldStop>() {
        return stop.hint();
    }
    let usage = error.downcast_ref::<UsageError>().map(|usage| usage.hint().to_owned());
    usage.or_else(|| train_error(error).and_then(TrainError::hint))
}

/// 1 internal, 2 usage or configuration, 3 data, 4 model file, 5 non-finite numbers, 6 disk.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    #[cfg(feature = "hub")]
    if let Some(error) = error.downcast_ref::<loralei_hub::HubError>() {
        return if error.is_disk() { 6 } else { 4 };
    }
    if error.downcast_ref::<UsageError>().is_some() {
        return 2;
    }
    if error.downcast_ref::<DataWouldStop>().is_some() {
        return 3;
    }
    train_error(error).map_or(1, TrainError::exit_code)
}

fn train_error(error: &anyhow::Error) -> Option<&TrainError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

/// The first line of each cause, joined: candle puts a backtrace behind its own. A cause that the text before it
/// already quotes is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.lines().next().unwrap_or_default().trim();
        if !cause.is_empty() && !text.contains(cause) {
            text = if text.is_empty() { cause.to_string() } else { format!("{text}: {cause}") };
        }
    }
    text
}

pub(crate) const RED: u8 = 31;
pub(crate) const YELLOW: u8 = 33;
const CYAN: u8 = 36;

fn painted(text: &str, color: u8) -> String {
    painted_if(has_colors(), text, color)
}

pub(crate) fn painted_if(has_colors: bool, text: &str, color: u8) -> String {
    if has_colors { format!("\x1b[1;{color}m{text}\x1b[0m") } else { text.to_string() }
}

/// Whether messages are coloured.
pub(crate) fn has_colors() -> bool {
    is_coloured(&io::stderr())
}

/// A terminal, and no `NO_COLOR` (no-color.org: any value that is not empty).
pub(crate) fn is_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn to_stderr(line: &str) {
    // Nowhere left to report that stderr is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_joined_in_one_line_without_backtrace_or_repetition() {
        let io = io::Error::other("disk full\n   0: frame\n   1: frame");
        let error = Err::<(), _>(io).context("cannot write `a`").context("saving: cannot write `a`").unwrap_err();
        assert_eq!(chain(&error), "saving: cannot write `a`: disk full");
    }

    #[test]
    fn a_trainer_error_keeps_its_exit_code_under_context() {
        let error = anyhow::Error::from(TrainError::NonFiniteLoss { step: 3, loss: f64::NAN }).context("training");
        assert_eq!(exit_code(&error), 5);
        assert_eq!(exit_code(&anyhow::anyhow!("other")), 1);
    }

    #[test]
    fn durations_keep_the_two_units_that_matter() {
        let said = [9.04, 59.94, 133.4, 3599.4, 3661.0].map(duration);
        assert_eq!(said, ["9.0 s", "59.9 s", "2 min 13 s", "59 min 59 s", "1 h 01 min"]);
    }

    #[test]
    fn a_plain_line_estimates_what_is_left_from_what_is_done() {
        let line = plain_line("training", (0, 30), Some(120), Duration::from_secs(9), "loss 0.1");
        assert_eq!(line, "training 30/120  9.0 s  left 27.0 s  loss 0.1");
        let line = plain_line("training", (20, 30), Some(120), Duration::from_secs(3), "");
        assert_eq!(line, "training 30/120  3.0 s  left 27.0 s", "of the ten of this phase");
        assert_eq!(plain_line("reading", (0, 7), None, Duration::from_secs(1), ""), "reading 7  1.0 s");
    }
}

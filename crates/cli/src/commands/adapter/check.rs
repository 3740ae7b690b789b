//! `loralei adapter check`.

use std::fmt::Write as _;
use std::io::{Write, stdout};

use loralei_adapter::{Compatibility, ProgramReport, Verdict};
use loralei_trainer::TrainError;

use crate::args::adapter::CheckArguments;
use crate::report::Reporter;

pub(crate) fn run(arguments: &CheckArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let found = Compatibility::read(&arguments.file).map_err(TrainError::from)?;
    reporter.finish();
    let text = if arguments.json { serde_json::to_string(&found)? + "\n" } else { to_text(&found) };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn to_text(found: &Compatibility) -> String {
    let Compatibility { file, format, family, num_keys, remarks, programs } = found;
    let mut text = format!("{file}: {}, base {}, {num_keys} keys\n", format.name(), family.name());
    for remark in remarks {
        let _ = writeln!(text, "note: {remark}");
    }
    text += "\n";
    for report in programs {
        let keys = format!("{} of {num_keys}", report.num_keys_loaded);
        let _ = writeln!(text, "{:<21} {:<8} {keys:>14}  {}", report.program, verdict(report.verdict), scale(report));
        for reason in &report.refusals {
            let _ = writeln!(text, "    refuses: {reason}");
        }
        for group in &report.ignored {
            let _ = writeln!(
                text,
                "    {} keys left out: {} ({}, ..)",
                group.num_keys,
                group.reason,
                group.examples.join(", ")
            );
        }
        for wrong in &report.wrong_scales {
            let _ = writeln!(text, "    {} modules wrong: {}", wrong.num_modules, wrong.reason);
        }
        for note in &report.notes {
            let _ = writeln!(text, "    note: {note}");
        }
    }
    text
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::All => "all",
        Verdict::Part => "part",
        Verdict::None => "none",
        Verdict::Refuses => "refuses",
    }
}

fn scale(report: &ProgramReport) -> &'static str {
    match (report.num_keys_loaded, report.wrong_scales.is_empty()) {
        (0, _) => "",
        (_, true) => "as trained",
        (_, false) => "wrong in part",
    }
}

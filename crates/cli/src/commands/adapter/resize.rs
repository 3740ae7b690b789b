//! `loralei adapter resize`.

use std::fmt::Write as _;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use loralei_adapter::{Compatibility, Format, KeptRanks, ResizeReport, ResizedModule};
use loralei_trainer::{Event, TrainError};
use serde::Serialize;

use crate::args::adapter::ResizeArguments;
use crate::commands::adapter::{save_dtype, told};
use crate::commands::adapters::read;
use crate::commands::new_file::refuse_existing;
use crate::report::Reporter;
use crate::usage::UsageError;

const NUM_WORST: usize = 10;

/// What `--json` prints.
#[derive(Serialize)]
struct Resized<'a> {
    output: PathBuf,
    num_bytes_before: u64,
    num_bytes_after: u64,
    #[serde(flatten)]
    report: &'a ResizeReport,
}

pub(crate) fn run(arguments: &ResizeArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let ResizeArguments { input, output, dtype, json, force, .. } = arguments;
    refuse_existing(output, *force)?;
    let file = read(input, reporter)?;
    let num_bytes_before = size_of_file(input);
    let (resized, report) = file.resized(kept(arguments)?).map_err(TrainError::from)?;
    let notes = resized.write(output, Format::Kohya, dtype.map(save_dtype)).map_err(TrainError::from)?;
    for note in notes {
        reporter.show(&told(&note));
    }
    for program in Compatibility::read(output).map_err(TrainError::from)?.programs {
        for wrong in program.wrong_scales {
            let message = format!("{}: {} modules wrong: {}", program.program, wrong.num_modules, wrong.reason);
            reporter.show(&Event::Warning { message });
        }
    }
    reporter.finish();
    let resized =
        Resized { output: output.clone(), num_bytes_before, num_bytes_after: size_of_file(output), report: &report };
    let text = if *json { serde_json::to_string(&resized)? + "\n" } else { resized.text() };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn kept(arguments: &ResizeArguments) -> anyhow::Result<KeptRanks> {
    let ResizeArguments { rank, keep_norm, keep_values, max_rank, .. } = arguments;
    match (*rank, *keep_norm, *keep_values) {
        (Some(rank), None, None) => Ok(KeptRanks::Rank(rank)),
        (None, Some(share), None) => Ok(KeptRanks::Norm { share, max_rank: *max_rank }),
        (None, None, Some(share)) => Ok(KeptRanks::Values { share, max_rank: *max_rank }),
        _ => Err(UsageError::new("the size is not clear", "give one of --rank, --keep-norm and --keep-values").into()),
    }
}

impl Resized<'_> {
    fn text(&self) -> String {
        let ResizeReport { modules, error, num_parameters_before, num_parameters_after } = self.report;
        let mut worst: Vec<&ResizedModule> = modules.iter().collect();
        worst.sort_by(|a, b| b.error.total_cmp(&a.error));
        let title = "layers with the largest error";
        let mut text = format!("{title:<66} {:>8} {:>5} {:>8}\n", "rank was", "is", "error");
        for module in worst.into_iter().take(NUM_WORST) {
            let name = module.module.strip_prefix("lora_").unwrap_or(&module.module);
            let ResizedModule { rank_before, rank_after, error, .. } = module;
            let _ = writeln!(text, "{name:<66} {rank_before:>8} {rank_after:>5} {:>6.1} %", error * 100.0);
        }
        let ranks = |of: fn(&ResizedModule) -> usize| {
            let ranks: Vec<usize> = modules.iter().map(of).collect();
            let sum: usize = ranks.iter().sum();
            let range = (ranks.iter().min().copied().unwrap_or(0), ranks.iter().max().copied().unwrap_or(0));
            match range {
                (least, most) if least == most => format!("{most}"),
                (least, most) => format!("{least} to {most}, {:.1} on average", sum as f64 / ranks.len().max(1) as f64),
            }
        };
        let rows = [
            ("error", format!("{:.2} % of the whole change (Frobenius norm)", error * 100.0)),
            ("rank", format!("{} (was {})", ranks(|module| module.rank_after), ranks(|module| module.rank_before))),
            ("numbers", format!("{num_parameters_after} (were {num_parameters_before})")),
            ("bytes", format!("{} (were {})", self.num_bytes_after, self.num_bytes_before)),
        ];
        text += "\n";
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<12} {value}");
        }
        let _ = writeln!(text, "{}", self.output.display());
        text
    }
}

/// 0 for a folder of PEFT.
fn size_of_file(path: &Path) -> u64 {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map_or(0, |found| found.len())
}

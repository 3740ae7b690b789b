//! `loralei dataset check`: everything about the images and captions of a run before it begins.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device};
use loralei_data::Depth;
use loralei_model::Base;
use loralei_trainer::{CheckPhase, CheckedData, ConfigLayers, DataCheck, Event, Plan, ResolvedConfig};

use crate::args::DatasetCheckArguments;
use crate::commands::dataset_sheet::write_sheet;
use crate::commands::dataset_text::DatasetText;
use crate::commands::{base, dataset_text};
use crate::report::{Reporter, is_coloured};
use crate::usage::DataWouldStop;

/// What Stable Diffusion 1 and 2 divide by.
const USUAL_MULTIPLE_PX: usize = 64;

pub(crate) fn check(arguments: &DatasetCheckArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let resolved = settle(arguments)?;
    let plan = Plan::new(&resolved.config)?;
    let (base, mut warnings) = open_base(&resolved, &plan, reporter);
    let size_multiple_px = match &base {
        Some(base) => base.size_multiple_px(),
        None => largest_step(resolved.config.data.size_px),
    };
    let check = DataCheck { plan: &plan, base: base.as_ref(), size_multiple_px, depth: Depth::Pixels };
    let CheckedData { mut report, pictures } = run(&check, reporter)?;
    warnings.append(&mut report.warnings);
    report.warnings = warnings;

    let text = if arguments.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        let root = plan.data.first_folder();
        DatasetText { report: &report, root, has_colors: is_coloured(&stdout()) }.to_text()
    };
    stdout().write_all(text.as_bytes())?;
    if let Some(path) = &arguments.sheet {
        write_sheet(path, &check, &pictures, reporter)?;
    }
    would_stop(&report.errors, report.hints.first())
}

/// The settings: a folder stands for `data.images`.
fn settle(arguments: &DatasetCheckArguments) -> anyhow::Result<ResolvedConfig> {
    let mut layers = ConfigLayers::new();
    if is_config(&arguments.data) {
        layers.file(&arguments.data)?;
    } else {
        layers.set_text("data.images", &arguments.data.to_string_lossy())?;
    }
    if let Some(base) = &arguments.base {
        layers.set_text("model.base", base)?;
    }
    if let Some(size_px) = arguments.size {
        layers.set(&format!("data.size_px={size_px}"))?;
    }
    for argument in &arguments.set {
        layers.set(argument)?;
    }
    Ok(layers.resolve()?)
}

/// A file, or what is not there and is called like one.
fn is_config(path: &Path) -> bool {
    path.is_file() || (!path.exists() && path.extension().is_some_and(|extension| extension == "toml"))
}

/// The base that the settings name, if it is on the disk; otherwise a warning says why it is not looked at.
fn open_base(resolved: &ResolvedConfig, plan: &Plan, reporter: &mut Reporter) -> (Option<Base>, Vec<String>) {
    if !resolved.origins.contains_key("model.base") {
        return (None, Vec::new());
    }
    let opened = base::source_on_disk(&plan.base, reporter)
        .and_then(|source| Base::open(source, plan.noising, DType::F32, &Device::Cpu).map_err(base::model));
    match opened {
        Ok(base) => {
            let warnings = base.warnings().to_vec();
            (Some(base), warnings)
        }
        Err(error) => {
            let name = &resolved.config.model.base;
            (None, vec![format!("the base `{name}` is not looked at: {}", dataset_text::one_line(&error.to_string()))])
        }
    }
}

/// What sides are taken to be multiples of without a base: the largest power of two that divides the size.
fn largest_step(size_px: usize) -> usize {
    (1 << size_px.trailing_zeros().min(31)).min(USUAL_MULTIPLE_PX)
}

fn run(check: &DataCheck<'_>, reporter: &mut Reporter) -> anyhow::Result<CheckedData> {
    let shown = Mutex::new((reporter, None, 0));
    let checked = check.run(|phase, seen, all| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        let (reporter, current, most) = &mut *shown;
        if *current != Some(phase) {
            let name = match phase {
                CheckPhase::Images => "reading images",
                CheckPhase::Masks => "reading masks",
            };
            reporter.show(&Event::PhaseStarted { name: name.into(), total: Some(all as u64) });
            (*current, *most) = (Some(phase), 0);
        }
        // Threads may come in another order than they counted.
        *most = seen.max(*most);
        reporter.show(&Event::PhaseProgress { done: *most as u64 });
    })?;
    shown.into_inner().unwrap_or_else(PoisonError::into_inner).0.finish();
    Ok(checked)
}

fn would_stop(errors: &[String], hint: Option<&String>) -> anyhow::Result<()> {
    let Some(first) = errors.first() else { return Ok(()) };
    let more = if errors.len() > 1 { format!(" (and {} more)", errors.len() - 1) } else { String::new() };
    Err(DataWouldStop::new(format!("these data would stop a run: {first}{more}"), hint.cloned()).into())
}

#[cfg(test)]
mod tests {
    use super::largest_step;

    #[test]
    fn without_a_base_sides_are_multiples_of_64_or_of_what_divides_the_size() {
        assert_eq!([512, 768, 64, 32, 600, 100, 75, 0].map(largest_step), [64, 64, 64, 32, 8, 4, 1, 64]);
    }
}

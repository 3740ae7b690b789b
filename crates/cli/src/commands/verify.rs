//! `loralei verify`: the training step on given numbers, every operation of a device against the processor's, and what an
//! adapter changes without its trigger.

mod leak;

use std::io::{Write, stdout};

use loralei_model::{DeviceChoice, OpCheck, check_ops, op_tolerance};
use loralei_trainer::{BaseChoice, Event, StepVerification, TrainError, WeightDtype};

use crate::args::{VerifyOpsArguments, VerifyStepArguments};
use crate::commands::base;
use crate::report::Reporter;
pub(crate) use leak::leak;

pub(crate) fn step(arguments: &VerifyStepArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    // What is held against another program has the numbers of the file.
    let on_cpu = arguments.device == DeviceChoice::Cpu;
    let usual = if on_cpu { WeightDtype::F32 } else { WeightDtype::Auto };
    let verification = StepVerification {
        base: base::source(&BaseChoice::from(arguments.base.base.as_str()), reporter)?,
        schedule: arguments.base.schedule.into(),
        adapter: &arguments.adapter,
        batch: &arguments.batch,
        learning_rate: arguments.learning_rate,
        weight_decay: arguments.weight_decay,
        dtype: arguments.dtype,
        weights: arguments.weights.unwrap_or(usual),
        compute: arguments.compute,
        device: arguments.device,
        ops: arguments.ops,
        checkpointing: arguments.checkpointing,
    };
    let mut is_started = false;
    let verified = verification.run(|done, total| {
        if !is_started {
            reporter.show(&Event::PhaseStarted { name: "verifying".into(), total: Some(total) });
            is_started = true;
        }
        reporter.show(&Event::PhaseProgress { done });
    })?;
    verified.write(&arguments.output)?;
    reporter.finish();
    Ok(())
}

/// Prints a table; an operation beyond the tolerance is an error.
pub(crate) fn ops(arguments: &VerifyOpsArguments) -> anyhow::Result<()> {
    let (device, dtype) = (arguments.device.open().map_err(base::model)?, arguments.dtype.into());
    let tolerance = arguments.tolerance.unwrap_or_else(|| op_tolerance(&device, dtype));
    let checks = check_ops(&device, dtype, arguments.seed).map_err(TrainError::from)?;
    stdout().write_all(table(&checks, dtype.as_str(), tolerance).as_bytes())?;
    let beyond: Vec<_> = checks.iter().filter(|check| check.error > tolerance).collect();
    match beyond.iter().max_by(|a, b| a.error.total_cmp(&b.error)) {
        None => Ok(()),
        Some(worst) => {
            let (operation, error) = (worst.name.clone(), worst.error);
            Err(TrainError::OperationsDiffer { count: beyond.len(), operation, error, tolerance }.into())
        }
    }
}

fn table(checks: &[OpCheck], dtype: &str, tolerance: f64) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let head = format!("{:<width$}  dtype  worst relative error  tolerance  ok\n", "operation");
    let lines = checks.iter().map(|OpCheck { name, error, .. }| {
        let ok = if *error <= tolerance { "yes" } else { "NO" };
        format!("{name:<width$}  {dtype:<5}  {error:>20.1e}  {tolerance:>9.0e}  {ok}\n")
    });
    head + &lines.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_which_operation_is_beyond_the_tolerance() {
        let checks = [("good", 1e-6), ("broken norm", f64::INFINITY)];
        let checks = checks.map(|(name, error)| OpCheck { name: name.into(), error });
        let table = table(&checks, "f32", 1e-5);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].starts_with("good ") && lines[1].ends_with("1.0e-6       1e-5  yes"), "{table}");
        assert!(lines[2].starts_with("broken norm") && lines[2].ends_with("NO"), "{table}");
    }
}

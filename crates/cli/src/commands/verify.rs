//! `loralei verify step`: the training step on given numbers.

use loralei_trainer::{BaseChoice, Event, StepVerification};

use crate::args::VerifyStepArguments;
use crate::commands::base;
use crate::report::Reporter;

pub(crate) fn run(arguments: &VerifyStepArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let verification = StepVerification {
        base: base::source(&BaseChoice::from(arguments.base.base.as_str()), reporter)?,
        prediction: arguments.base.prediction,
        adapter: &arguments.adapter,
        batch: &arguments.batch,
        learning_rate: arguments.learning_rate,
        weight_decay: arguments.weight_decay,
        dtype: arguments.dtype,
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

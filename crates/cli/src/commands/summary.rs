//! What a run leaves behind, on one screen: what was learned, where it is, what to do with it.

use loralei_trainer::{BeforeAfter, Finished, LeakChange, Plan, RunSummary, WrittenAdapter, generate_command};

/// A finished run.
pub(crate) struct Summary<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) finished: &'a Finished,
}

impl Summary<'_> {
    /// One line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Finished { adapter: WrittenAdapter { path, num_bytes, num_modules, num_parameters }, samples, summary } =
            self.finished;
        let mut lines = vec![
            String::new(),
            line("adapter", &format!("{} ({:.2} MB)", path.display(), *num_bytes as f64 / 1e6)),
            line(
                "",
                &format!(
                    "{num_parameters} numbers in {num_modules} modules; any program that reads kohya's keys loads it"
                ),
            ),
            line(
                "loss",
                &format!(
                    "{:.4} in the first tenth of the steps, {:.4} in the last",
                    summary.loss_first, summary.loss_last
                ),
            ),
        ];
        lines.extend(figures(summary));
        if let Some(samples) = samples {
            lines.push(line("pictures", &samples.path.display().to_string()));
            lines.extend(self.changes(samples).into_iter().map(|text| line("", &text)));
        }
        lines.extend(summary.advice.iter().map(|advice| line("advice", advice)));
        lines.push(line("next", &generate_command(self.plan, "")));
        lines.push(line("", &generate_command(self.plan, " --grid scale=-1,0,0.5,1")));
        lines
    }

    /// How far the pictures moved, which is what was asked for in some and not in the others.
    fn changes(&self, samples: &BeforeAfter) -> Vec<String> {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let trigger = self.plan.data.trigger.as_deref();
        let asked = samples.changed_with_trigger.map(|share| match trigger {
            Some(trigger) => format!("those that say `{trigger}` changed by {}", percent(share)),
            None => format!("they changed by {}", percent(share)),
        });
        let others = samples.changed_without_trigger.map(|share| format!("the others changed by {}", percent(share)));
        asked.into_iter().chain(others).collect()
    }
}

/// How well it went and what moved.
fn figures(run: &RunSummary) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(step) = run.best_step {
        lines.push(line("best", &format!("after {step} steps, by validation")));
    }
    if let Some(LeakChange { with_trigger, without_trigger }) = run.leak {
        let text =
            format!("predictions changed by {with_trigger:.3} with the trigger, by {without_trigger:.3} without");
        lines.push(line("leak", &text));
    }
    let moved: Vec<String> = run.blocks.iter().map(|block| format!("{} {:.2}", block.block, block.frobenius)).collect();
    lines.push(line("moved", &moved.join(", ")));
    if run.num_unmoved > 0 {
        lines.push(line("", &format!("{} of {} modules did not move", run.num_unmoved, run.num_modules)));
    }
    lines
}

fn line(name: &str, text: &str) -> String {
    format!("{name:<9} {text}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_trainer::BlockNorm;

    #[test]
    fn what_moved_and_what_did_not_is_said_with_its_figures() {
        let block =
            |block: &str, frobenius| BlockNorm { block: block.to_owned(), frobenius, num_modules: 4, num_unmoved: 1 };
        let run = RunSummary {
            adapter: "a.safetensors".to_owned(),
            num_bytes: 1,
            num_parameters: 2,
            num_modules: 8,
            num_unmoved: 2,
            rank: 4,
            loss_first: 0.2,
            loss_last: 0.1,
            best_step: Some(400),
            leak: Some(LeakChange { with_trigger: 0.31, without_trigger: 0.02 }),
            blocks: vec![block("mid_block", 1.25), block("up_blocks.1", 0.5)],
            advice: Vec::new(),
            command: String::new(),
        };
        let expected = [
            "best      after 400 steps, by validation",
            "leak      predictions changed by 0.310 with the trigger, by 0.020 without",
            "moved     mid_block 1.25, up_blocks.1 0.50",
            "          2 of 8 modules did not move",
        ];
        assert_eq!(figures(&run), expected);
    }
}

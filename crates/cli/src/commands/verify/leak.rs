//! `loralei verify leak`: what an adapter changes with its trigger and without.

use std::io::{Write, stdout};

use loralei_trainer::{BaseChoice, LeakScore, LeakVerification, PromptPair, default_prompts, read_prompts};
use serde::Serialize;

use crate::args::VerifyLeakArguments;
use crate::commands::adapters::Adapters;
use crate::commands::base;
use crate::report::Reporter;
use crate::usage::UsageError;

/// Prints the changes, their means and the leak.
pub(crate) fn leak(arguments: &VerifyLeakArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let (trigger, class) = (arguments.trigger.as_str(), arguments.class.as_deref());
    if class == Some(trigger) {
        let message = format!("--class and --trigger are both `{trigger}`");
        return Err(UsageError::new(message, "the class word is what the subject is called without the adapter").into());
    }
    let prompts = arguments.prompts.as_deref().map_or_else(|| Ok(default_prompts(class)), read_prompts)?;
    let pairs = PromptPair::of_all(&prompts, trigger, class);
    let adapters = Adapters::read(&arguments.adapter, reporter)?;
    let Some(adapter) = &adapters.sum else {
        return Err(UsageError::new("there is no adapter to measure", "name one with --adapter FILE").into());
    };
    let verification = LeakVerification {
        base: base::source(&BaseChoice::from(arguments.base.base.as_str()), reporter)?,
        schedule: arguments.base.schedule.into(),
        adapter,
        pairs: &pairs,
        images: arguments.images.as_deref(),
        size_px: arguments.size,
        num_points: arguments.points.into(),
        seed: arguments.seed,
        dtype: arguments.computation.dtype(),
        weights: arguments.computation.weights,
        compute: arguments.computation.compute,
        device: arguments.computation.device,
        ops: arguments.computation.ops,
    };
    let score = verification.run(&mut |event| reporter.show(&event))?;
    reporter.finish();
    let text = if arguments.json { json(&score, arguments)? } else { table(&score) };
    stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    with_trigger: f64,
    without_trigger: f64,
    /// Null if the adapter changes nothing with its trigger.
    leak: Option<f64>,
    prompts: Vec<PromptFigures<'a>>,
    points: u16,
    seed: u64,
}

#[derive(Serialize)]
struct PromptFigures<'a> {
    prompt: &'a str,
    has_trigger: bool,
    change: f64,
}

fn json(score: &LeakScore, arguments: &VerifyLeakArguments) -> anyhow::Result<String> {
    let figures = score.per_prompt.iter().map(|of| PromptFigures {
        prompt: &of.prompt,
        has_trigger: of.has_trigger,
        change: of.change,
    });
    let report = Report {
        with_trigger: score.with_trigger,
        without_trigger: score.without_trigger,
        leak: score.leak(),
        prompts: figures.collect(),
        points: arguments.points,
        seed: arguments.seed,
    };
    Ok(serde_json::to_string(&report)? + "\n")
}

/// A line for each pair, one for the means, one for the leak.
fn table(score: &LeakScore) -> String {
    let said = |prompt: &str| if prompt.is_empty() { "(empty)".to_owned() } else { prompt.to_owned() };
    let line = |without: f64, with: f64, text: &str| format!("{without:>15.5}  {with:>12.5}  {text}\n");
    let pairs = score.per_prompt.chunks_exact(2).map(|pair| {
        let text = format!("{} | {}", said(&pair[0].prompt), said(&pair[1].prompt));
        line(pair[0].change, pair[1].change, &text)
    });
    let lines: String = pairs.collect();
    let leak = match score.leak() {
        Some(leak) => format!("leak {leak:.3}: the change without the trigger over that with it\n"),
        None => "leak: none, the adapter changes nothing with its trigger\n".to_owned(),
    };
    let head = "change: without  with trigger  prompts\n".to_owned();
    head + &lines + &line(score.without_trigger, score.with_trigger, "mean") + &leak
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_trainer::PromptChange;

    #[test]
    fn the_table_has_a_line_for_each_pair_and_one_for_the_means() {
        let change = |prompt: &str, has_trigger, change| PromptChange { prompt: prompt.into(), has_trigger, change };
        let per_prompt = vec![change("", false, 0.01), change("sks dog", true, 0.2)];
        let score = LeakScore { with_trigger: 0.2, without_trigger: 0.01, per_prompt };
        let table = table(&score);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "        0.01000       0.20000  (empty) | sks dog", "{table}");
        assert!(lines[0].starts_with("change: without  with trigger  prompts"), "{table}");
        assert!(lines[2].ends_with("0.20000  mean") && lines[3].starts_with("leak 0.050:"), "{table}");
    }
}

//! The adapter's card: what a hub and its readers are told about a run.

use std::path::Path;

use loralei_report::{CardSample, ModelCard};

use crate::error::TrainError;
use crate::run_summary::{RunRecord, RunSummary};
use crate::samples::SampleLine;

/// While a card says so, it is written anew by each run.
const MARK: &str = "<!-- written by loralei: take this line away to keep what you change -->";

/// What is known of a run that ended after `step` steps.
pub(crate) fn model_card(run: &RunRecord, summary: &RunSummary, step: u64, pictures: &[SampleLine]) -> ModelCard {
    let plan = run.plan;
    let (width_px, height_px) = plan.data.largest_px();
    let of_file = |key: &str| run.adapter.metadata.get(key).cloned();
    let best = run.validation.iter().rev().find(|point| point.best);
    ModelCard {
        name: plan.output_name.clone(),
        adapter_file: summary.adapter.clone(),
        description: plan.card.description.clone(),
        base: plan.base.name().to_owned(),
        base_family: of_file("ss_base_model_version").map(|version| family(&version).to_owned()),
        license: plan.card.license.clone(),
        trigger: plan.data.trigger.clone(),
        num_images: Some(run.num_images as u64),
        num_steps: step,
        batch_size: Some(plan.samples_per_step() as u64),
        rank: Some(summary.rank as u64),
        resolution_px: Some((width_px as u32, height_px as u32)),
        loss: Some(summary.loss_last),
        validation: best.map(|point| (point.loss, point.step)),
        leak: summary.leak.map(|leak| (leak.with_trigger, leak.without_trigger)),
        samples: pictures
            .iter()
            .map(|line| CardSample { prompt: line.prompt.clone(), file: line.file.clone() })
            .collect(),
        predicts_v: of_file("modelspec.prediction_type").is_some_and(|kind| kind == "v"),
    }
}

/// The families of sd-scripts' metadata in words.
fn family(version: &str) -> &'static str {
    match version {
        "sd_v2" => "Stable Diffusion 2",
        "sd_v2_v" => "Stable Diffusion 2, v-prediction",
        _ => "Stable Diffusion 1",
    }
}

/// Writes the card, unless its user has taken it over.
///
/// # Errors
/// A disk that cannot be written.
pub(crate) fn write_card(path: &Path, card: &ModelCard) -> Result<(), TrainError> {
    let is_theirs = std::fs::read_to_string(path).is_ok_and(|text| !text.contains(MARK));
    if is_theirs {
        return Ok(());
    }
    let text = format!("{}\n{MARK}\n", card.to_markdown());
    Ok(loralei_adapter::atomic_write_bytes(path, text.as_bytes())?)
}

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
    let family = of_file("ss_base_model_version").map(|version| Family::of(&version));
    let best = run.validation.iter().rev().find(|point| point.best);
    ModelCard {
        name: plan.output_name.clone(),
        adapter_file: summary.adapter.clone(),
        description: plan.card.description.clone(),
        base: plan.base.name().to_owned(),
        base_family: family.as_ref().map(|family| family.name.to_owned()),
        family_tag: family.as_ref().map_or("stable-diffusion", |family| family.tag),
        pipeline: family.as_ref().map_or("DiffusionPipeline", |family| family.pipeline),
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

/// A family of sd-scripts' metadata: in words, on hubs, in diffusers.
struct Family {
    name: &'static str,
    tag: &'static str,
    pipeline: &'static str,
}

impl Family {
    fn of(version: &str) -> Self {
        let (tag, pipeline) = ("stable-diffusion", "StableDiffusionPipeline");
        match version {
            "sd_v2" => Self { name: "Stable Diffusion 2", tag, pipeline },
            "sd_v2_v" => Self { name: "Stable Diffusion 2, v-prediction", tag, pipeline },
            "sdxl_base_v1-0" => Self {
                name: "Stable Diffusion XL 1.0",
                tag: "stable-diffusion-xl",
                pipeline: "StableDiffusionXLPipeline",
            },
            _ => Self { name: "Stable Diffusion 1", tag, pipeline },
        }
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

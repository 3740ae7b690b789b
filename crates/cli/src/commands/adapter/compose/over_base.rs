//! A composition on a base: the inputs of its layers for fusion, and what it draws.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device};
use loralei_adapter::Adapter;
use loralei_adapter::compose::{BaseFigures, LayerGram};
use loralei_model::{
    Base, DrawingSettings, PictureSizes, RecordedMember, RecordingSettings, SamplerKind, record_layer_inputs,
};
use loralei_picture::Grid;
use loralei_trainer::{
    BurnMeasures, CompositionCandidate, CompositionMeasures, CompositionMember, CompositionSettings, Event,
    SubjectMeasures, TrainError, default_prompt, measure_composition,
};

use super::MemberFile;
use crate::args::adapter::ComposeArguments;
use crate::commands::adapters::note_unread;
use crate::commands::base::{self, model};
use crate::report::Reporter;
use crate::usage::UsageError;

/// Steps of a picture.
const STEPS: usize = 20;
/// Noisy latents at which predictions are compared, for each prompt.
const POINTS: usize = 8;

/// A base, and what its members are asked for.
pub(super) struct OverBase<'a> {
    base: Base,
    files: &'a [MemberFile],
    /// One for each member.
    prompts: Vec<String>,
    settings: CompositionSettings,
}

impl<'a> OverBase<'a> {
    /// `None` without a base.
    pub(super) fn open(
        arguments: &ComposeArguments,
        files: &'a [MemberFile],
        reporter: &mut Reporter,
    ) -> anyhow::Result<Option<Self>> {
        let Some(name) = &arguments.base else { return Ok(None) };
        let prompts = prompts(&arguments.prompts, files)?;
        let base = base::open(name, arguments.schedule, DType::F32, &Device::Cpu, reporter)?;
        for file in files {
            note_unread(&base, &file.adapter, reporter);
        }
        let native_px = base.native_size_px();
        let size_px = (native_px, native_px);
        let settings = CompositionSettings {
            together: arguments.together.clone(),
            negative: String::new(),
            drawing: DrawingSettings {
                sampler: SamplerKind::Ddim,
                steps: STEPS,
                guidance_scale: arguments.guidance,
                sizes: PictureSizes::whole(size_px),
            },
            size_px,
            seeds: (0..u64::from(arguments.pictures)).collect(),
            num_points: POINTS,
        };
        Ok(Some(Self { base, files, prompts, settings }))
    }

    /// What fusion needs.
    pub(super) fn record(&self, reporter: &mut Reporter) -> anyhow::Result<BTreeMap<String, LayerGram>> {
        let CompositionSettings { drawing, size_px, seeds, .. } = &self.settings;
        let settings = RecordingSettings { drawing: *drawing, size_px: *size_px, seeds: seeds.clone() };
        let members = self.files.iter().zip(&self.prompts).map(|(file, prompt)| RecordedMember {
            adapter: &file.adapter,
            scale: file.scale,
            prompts: std::slice::from_ref(prompt),
        });
        let members: Vec<RecordedMember> = members.collect();
        let total = (STEPS * seeds.len() * members.len()) as u64;
        reporter.show(&Event::PhaseStarted { name: "recording inputs".into(), total: Some(total) });
        let mut progress = |done: usize| reporter.show(&Event::PhaseProgress { done: done as u64 });
        let recorded = record_layer_inputs(&self.base, &members, &settings, &mut progress).map_err(model)?;
        reporter.finish();
        Ok(recorded)
    }

    /// Base, members and everything that was composed of them, by method.
    pub(super) fn measure(
        &self,
        composed: &[(&'static str, Adapter)],
        reporter: &mut Reporter,
    ) -> anyhow::Result<CompositionMeasures> {
        let members = self.files.iter().zip(&self.prompts).map(|(file, prompt)| CompositionMember {
            name: file.name.clone(),
            adapter: &file.adapter,
            scale: file.scale,
            prompt: prompt.clone(),
        });
        let candidates =
            composed.iter().map(|(name, adapter)| CompositionCandidate { name: (*name).to_owned(), adapter });
        let (members, candidates): (Vec<_>, Vec<_>) = (members.collect(), candidates.collect());
        let mut is_started = false;
        let measured = measure_composition(&self.base, &members, &candidates, &self.settings, &mut |done, total| {
            if !is_started {
                reporter.show(&Event::PhaseStarted { name: "drawing".into(), total: Some(total) });
                is_started = true;
            }
            reporter.show(&Event::PhaseProgress { done });
        })?;
        reporter.finish();
        Ok(measured)
    }
}

/// Those of the command line, or of the adapters' metadata.
fn prompts(given: &[String], files: &[MemberFile]) -> anyhow::Result<Vec<String>> {
    if given.is_empty() {
        let of_file = |file: &MemberFile| {
            default_prompt(&file.adapter).ok_or_else(|| {
                let message = format!("{}: its metadata has no trigger words", file.path.display());
                UsageError::new(message, "give a prompt for each adapter, in their order, with --prompt").into()
            })
        };
        return files.iter().map(of_file).collect();
    }
    if given.len() != files.len() {
        let message = format!("{} prompts for {} adapters", given.len(), files.len());
        return Err(UsageError::new(message, "repeat --prompt for each adapter, in their order").into());
    }
    Ok(given.to_vec())
}

/// The columns of the report's table.
pub(super) fn figures(measures: &BurnMeasures) -> BaseFigures {
    BaseFigures {
        additivity_error: measures.additivity_error,
        clean_std_ratio: measures.clean_std_ratio,
        clipped_ratio: measures.colour_ratios.clipped,
        passes: measures.passes,
    }
}

/// Base, members, candidates.
pub(super) fn subjects(measures: &CompositionMeasures) -> impl Iterator<Item = &SubjectMeasures> {
    [&measures.base].into_iter().chain(&measures.members).chain(&measures.candidates)
}

/// A row for each subject, a column for each picture.
pub(super) fn write_grid(measures: &CompositionMeasures, num_pictures: usize, path: &Path) -> anyhow::Result<()> {
    let groups = measures.prompts.iter().map(|prompt| (prompt.as_str(), num_pictures));
    let columns = measures.prompts.iter().flat_map(|_| (0..num_pictures).map(|seed| format!("seed {seed}")));
    let grid = Grid::new().groups(groups).columns(columns);
    let grid = subjects(measures).fold(grid, |grid, subject| {
        grid.row(subject.name.clone(), subject.pictures.iter().flatten().cloned().collect())
    });
    let png = grid.render()?.to_png(None)?;
    loralei_adapter::atomic_write_bytes(path, &png).map_err(TrainError::from)?;
    Ok(())
}

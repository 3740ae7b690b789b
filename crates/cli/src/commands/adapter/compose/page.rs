//! The report of a composition as a page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loralei_adapter::Adapter;
use loralei_adapter::compose::MethodMeasures;
use loralei_report::{
    ComposedMember, ComposedMethod, CompositionPage, PairOverlap, PictureGrid, PictureRow, ReportError,
    write_composition_page,
};
use loralei_trainer::{CompositionMeasures, SubjectMeasures, TrainError};

use super::{MemberFile, Report, over_base};
use crate::args::adapter::ComposeArguments;

const RULE: &str =
    "clipped colour values at most twice the base's (0.1 % are free), spread of x0 within 10 % of the base's.";

pub(super) fn write(
    report: &Report,
    files: &[MemberFile],
    arguments: &ComposeArguments,
    path: &Path,
) -> anyhow::Result<()> {
    let layers: BTreeSet<&str> =
        report.methods.iter().flat_map(|method| &method.layers).map(|layer| layer.module.as_str()).collect();
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let pair = |pair: &loralei_adapter::compose::PairOverlap| {
        let [first, second] = pair.members.map(|member| names.get(member).copied().unwrap_or_default().to_owned());
        Some(PairOverlap {
            first,
            second,
            input: pair.input?,
            output: pair.output?,
            random_input: pair.random_input,
            random_output: pair.random_output,
            cosine: pair.cosine?,
            num_layers: pair.layers.len(),
        })
    };
    let drawn = report.over_base.as_ref();
    let members = files.iter().enumerate().map(|(i, file)| member(file, drawn, i));
    let methods = report.methods.iter().enumerate().map(|(i, method)| ComposedMethod {
        layer_rho: layer_rho(method, &layers),
        ..of_method(method, drawn.map(|d| &d.candidates[i]))
    });
    let page = CompositionPage {
        title: names.join(" + "),
        base: arguments.base.clone(),
        members: members.collect(),
        methods: methods.collect(),
        pairs: report.pairs.iter().filter_map(pair).collect(),
        rule: drawn.map(|_| RULE.to_owned()),
        base_clipped_share: drawn.map(|drawn| drawn.base.mean.colours.clipped),
        notes: Vec::new(),
        pictures: drawn.map(pictures).transpose()?,
        layers: layers.into_iter().map(str::to_owned).collect(),
    };
    write_composition_page(&page, path).map_err(|error| match error {
        ReportError::Write(error) => TrainError::from(error).into(), // with its hint and exit code
        other => anyhow::Error::from(other),
    })
}

fn member(file: &MemberFile, drawn: Option<&CompositionMeasures>, index: usize) -> ComposedMember {
    let measured = drawn.and_then(|drawn| drawn.members.get(index));
    ComposedMember {
        name: file.name.clone(),
        scale: f64::from(file.scale),
        rank: Some(ranks(&file.adapter)),
        prompt: drawn.and_then(|drawn| drawn.prompts.get(index)).cloned(),
        x0_std_ratio: measured.map(|measured| measured.mean.clean_std_ratio),
        clipped_share: measured.map(|measured| measured.mean.colours.clipped),
    }
}

fn ranks(adapter: &Adapter) -> String {
    let ranks: BTreeSet<usize> = adapter.modules.values().map(loralei_adapter::LoraModule::rank).collect();
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn of_method(method: &MethodMeasures, drawn: Option<&SubjectMeasures>) -> ComposedMethod {
    ComposedMethod {
        name: method.method.clone(),
        rho_max: Some(method.rho_max),
        rho_mean: Some(method.rho_mean),
        worst_layer: Some(method.worst_module.clone()),
        norm_ratio: Some(method.norm_ratio),
        difference_from_sum: method.difference,
        rank: Some(method.rank),
        num_bytes: Some(method.num_bytes),
        additivity_error: method.base.and_then(|base| base.additivity_error),
        x0_std_ratio: method.base.map(|base| base.clean_std_ratio),
        clipped_share: drawn.map(|drawn| drawn.mean.colours.clipped),
        clipped_ratio: method.base.and_then(|base| base.clipped_ratio),
        is_within_rule: method.base.map(|base| base.passes),
        layer_rho: Vec::new(),
    }
}

/// rho of each of `layers`; `None` where no member has moved.
fn layer_rho(method: &MethodMeasures, layers: &BTreeSet<&str>) -> Vec<Option<f64>> {
    let rho: BTreeMap<&str, f64> = method.layers.iter().map(|layer| (layer.module.as_str(), layer.rho)).collect();
    layers.iter().map(|layer| rho.get(layer).copied()).collect()
}

fn pictures(drawn: &CompositionMeasures) -> anyhow::Result<PictureGrid> {
    let num_pictures = drawn.base.pictures.first().map_or(0, Vec::len);
    let columns =
        drawn.prompts.iter().flat_map(|prompt| (0..num_pictures).map(move |seed| format!("{prompt}, {seed}")));
    let mut rows = Vec::new();
    for subject in over_base::subjects(drawn) {
        let pngs = subject.pictures.iter().flatten().map(|picture| picture.to_png(None).map(Some));
        rows.push(PictureRow { name: subject.name.clone(), pictures: pngs.collect::<Result<_, _>>()? });
    }
    Ok(PictureGrid { prompts: columns.collect(), rows })
}

//! The head of a page: which run this is and how far it is.

use crate::html::Html;
use crate::number_text::{bytes, count, duration, significant};
use crate::run_folder::{RunRecord, Status};

/// What the run is called: its adapter's name, else its folder's.
pub(super) fn name(record: &RunRecord) -> String {
    let of_adapter = record.summary.as_ref().and_then(|summary| summary.adapter.as_deref());
    let of_adapter = of_adapter.map(|file| file.trim_end_matches(".safetensors"));
    of_adapter.or_else(|| record.settings.value("output", "name")).unwrap_or(&record.folder_name).to_owned()
}

pub(super) fn write(html: &mut Html, record: &RunRecord) {
    html.raw("<header>\n<div class=\"bar\"><h1>");
    html.text(name(record)).raw("</h1>");
    let status = record.status.clone().unwrap_or_default();
    if !status.state.is_empty() {
        html.raw("<p class=\"state\" data-state=\"").text(&status.state).raw("\">").text(&status.state).raw("</p>");
    }
    html.raw("<div class=\"controls\" id=\"page-controls\"></div></div>\n");

    let last_step = record.metrics.last().map(|line| line.step() + 1);
    let step = status.step.or(last_step);
    let num_steps = status.num_steps.or_else(|| record.settings.value("train", "steps")?.parse().ok());
    progress(html, step, num_steps);
    facts(html, record, &status, step, num_steps);
    if let Some(message) = status.message.as_deref().filter(|message| !message.is_empty()) {
        html.raw("<p class=\"message\">").text(message).raw("</p>\n");
    }
    html.raw("</header>\n<main id=\"content\">\n");
}

fn progress(html: &mut Html, step: Option<u64>, num_steps: Option<u64>) {
    let (Some(step), Some(num_steps)) = (step, num_steps.filter(|num_steps| *num_steps > 0)) else { return };
    html.raw("<progress aria-label=\"Steps made\" value=\"").text(step.min(num_steps).to_string());
    html.raw("\" max=\"").text(num_steps.to_string()).raw("\"></progress>\n");
}

fn facts(html: &mut Html, record: &RunRecord, status: &Status, step: Option<u64>, num_steps: Option<u64>) {
    let steps = match (step, num_steps) {
        (Some(step), Some(num_steps)) => Some(format!("{} of {}", count(step), count(num_steps))),
        (Some(step), None) => Some(count(step)),
        _ => None,
    };
    let loss = status.smoothed_loss.or(status.loss).or_else(|| record.metrics.last()?.loss());
    let goes_on = status.state == "training";
    let facts = [
        ("Base", record.settings.value("model", "base").map(str::to_owned)),
        ("Steps", steps),
        ("Loss", loss.map(significant)),
        ("Left", status.eta_s.filter(|_| goes_on).map(duration)),
        ("Elapsed", status.elapsed_s.map(duration)),
        ("Pace", status.step_s.map(|seconds| format!("{} s a step", significant(seconds)))),
        ("Memory", status.resident_bytes.map(bytes)),
    ];
    html.raw("<dl class=\"facts\">");
    for (term, value) in facts {
        let Some(value) = value else { continue };
        html.raw("<div><dt>").text(term).raw("</dt><dd>").text(value).raw("</dd></div>");
    }
    html.raw("</dl>\n");
}

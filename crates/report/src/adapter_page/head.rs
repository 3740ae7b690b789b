//! What an adapter is, in words: the head of its page, the comparison with another one, and its metadata.

use std::collections::BTreeMap;

use loralei_adapter::{Comparison, Inspection, SubspaceSimilarity};

use crate::facts::facts;
use crate::html::Html;
use crate::number_text::{bytes, count, significant};

/// Most learned tokens that are listed, and layers that only one adapter has.
const MAX_LISTED: usize = 40;

pub(super) fn write(html: &mut Html, inspection: &Inspection) {
    html.raw("<header>\n<div class=\"bar\"><h1>").text(&inspection.file).raw("</h1>");
    html.raw("<div class=\"controls\" id=\"page-controls\"></div></div>\n");
    let ranks = counted(inspection.ranks.iter().map(|(rank, num)| (rank.to_string(), *num)));
    let alphas = counted(inspection.alphas.iter().map(|(alpha, num)| (alpha.clone(), *num)));
    let kinds = counted(inspection.kinds.iter().map(|(kind, num)| (kind.clone(), *num)));
    let embeddings = inspection.embeddings.iter().take(MAX_LISTED).map(|(token, shape)| {
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        format!("{token} ({shape})")
    });
    facts(
        html,
        [
            ("Format", Some(inspection.format.clone())),
            ("For", Some(inspection.family.clone())),
            ("Trigger words", Some(inspection.trigger_words.join(", "))),
            ("Rank", Some(ranks)),
            ("Alpha", Some(alphas)),
            ("Kinds", Some(kinds)),
            ("Layers", Some(count(inspection.modules.len() as u64))),
            ("Numbers", Some(count(inspection.num_parameters))),
            ("Type", Some(inspection.dtypes.join(", "))),
            ("Size", Some(bytes(inspection.num_bytes))),
            ("Learned tokens", Some(embeddings.collect::<Vec<_>>().join(", "))),
        ],
    );
    html.raw("</header>\n<main id=\"content\">\n");
}

/// `8`, or `8 (264 layers), 4 (22)` where there are several: the most frequent first.
fn counted(values: impl Iterator<Item = (String, usize)>) -> String {
    let mut values: Vec<(String, usize)> = values.collect();
    values.sort_by_key(|(_, num_modules)| std::cmp::Reverse(*num_modules));
    match values.as_slice() {
        [] => String::new(),
        [(only, _)] => only.clone(),
        [(first, num_modules), rest @ ..] => {
            let rest = rest.iter().map(|(value, num_modules)| format!(", {value} ({})", count(*num_modules as u64)));
            format!("{first} ({} layers){}", count(*num_modules as u64), rest.collect::<Vec<_>>().concat())
        }
    }
}

/// The two adapters in figures, before the pictures.
pub(super) fn comparison(html: &mut Html, comparison: &Comparison) {
    let mean = |value: &dyn Fn(&SubspaceSimilarity) -> Option<f64>| {
        let values: Vec<f64> = comparison.modules.iter().filter_map(value).filter(|value| value.is_finite()).collect();
        (!values.is_empty()).then(|| significant(values.iter().sum::<f64>() / values.len() as f64))
    };
    let first = |phi: &[Vec<f64>]| phi.first().and_then(|row| row.first()).copied();
    let full = |phi: &[Vec<f64>]| phi.last().and_then(|row| row.last()).copied();
    facts(
        html,
        [
            ("Layers of both", Some(count(comparison.modules.len() as u64))),
            ("Cosine of the changes", mean(&|phi| Some(phi.cosine))),
            ("φ(1, 1), input side", mean(&|phi| first(&phi.input))),
            ("φ(1, 1), output side", mean(&|phi| first(&phi.output))),
            ("φ of the whole, input side", mean(&|phi| full(&phi.input))),
            ("of random ones", mean(&|phi| Some(phi.random_input))),
            ("φ of the whole, output side", mean(&|phi| full(&phi.output))),
            ("of random ones", mean(&|phi| Some(phi.random_output))),
        ],
    );
    html.raw(
        "<p class=\"note\">φ(i, j) = ‖Uᵢᵀ Vⱼ‖² / min(i, j) over the first i directions of this adapter and the first ",
    );
    html.raw("j of the other (Hu et al. 2021, section 7.2): 1 is the same subspace, 0 an orthogonal one. ");
    html.raw("Figures above are means over the layers.</p>\n");
    for (names, of) in [(&comparison.only_here, "this one"), (&comparison.only_there, "the other one")] {
        if names.is_empty() {
            continue;
        }
        html.raw("<details><summary>").text(format!("{} layers of {of} alone", count(names.len() as u64)));
        html.raw("</summary><p class=\"note\">").text(names[..names.len().min(MAX_LISTED)].join(", "));
        html.raw(if names.len() > MAX_LISTED { ", ...</p></details>\n" } else { "</p></details>\n" });
    }
}

/// Kinds of layers, hashes and the text of the file.
pub(super) fn metadata(html: &mut Html, inspection: &Inspection) {
    html.raw("<section id=\"file\" aria-labelledby=\"file-title\">\n<h2 id=\"file-title\">File</h2>\n");
    if !inspection.targets.is_empty() {
        html.raw("<h3>What it changes</h3>\n<ul class=\"tags\">");
        for (target, num_modules) in &inspection.targets {
            html.raw("<li>").text(target).raw(" <span>").text(count(*num_modules as u64)).raw("</span></li>");
        }
        html.raw("</ul>\n");
    }
    if !inspection.hashes.is_empty() {
        table(html, "Hashes", &inspection.hashes);
        match inspection.hashes_match {
            Some(true) => html.raw("<p class=\"note\">The metadata names the same hashes.</p>\n"),
            Some(false) => html.raw(
                "<ul class=\"warning\"><li>The metadata names other hashes: the content was changed after they were written.</li></ul>\n",
            ),
            None => html,
        };
    }
    if !inspection.metadata.is_empty() {
        let num_fields = inspection.metadata.len();
        html.raw("<details id=\"metadata\"><summary>Metadata, ")
            .text(count(num_fields as u64))
            .raw(" fields</summary>\n");
        table(html, "Metadata", &inspection.metadata);
        html.raw("</details>\n");
    }
    html.raw("</section>\n");
}

fn table(html: &mut Html, caption: &'static str, fields: &BTreeMap<String, String>) {
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"").raw(caption);
    html.raw("\"><table class=\"fields\"><caption>")
        .raw(caption)
        .raw("</caption><thead class=\"unseen\"><tr><th scope=\"col\">");
    html.raw("Name</th><th scope=\"col\">Value</th></tr></thead><tbody>");
    for (name, value) in fields {
        html.raw("<tr><th scope=\"row\">").text(name).raw("</th><td>").text(value).raw("</td></tr>");
    }
    html.raw("</tbody></table></div>\n");
}

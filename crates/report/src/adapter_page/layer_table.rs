//! The figures of every layer as a table; the page's script sorts it.

use std::collections::BTreeMap;

use loralei_adapter::{Inspection, SubspaceSimilarity};

use super::page_data::measures;
use crate::html::Html;
use crate::number_text::significant;

/// Names of the measures in the data and on the page.
const COLUMNS: [(&str, &str); 9] = [
    ("spectral", "Spectral norm"),
    ("frobenius", "Frobenius norm"),
    ("stable_rank", "Stable rank"),
    ("effective_rank", "Effective rank"),
    ("share", "Share of W"),
    ("amplification", "Amplification"),
    ("cosine", "Cosine"),
    ("phi_input", "φ input"),
    ("phi_output", "φ output"),
];

pub(super) fn write(html: &mut Html, inspection: &Inspection) {
    if inspection.modules.is_empty() {
        return;
    }
    let against: BTreeMap<&str, &SubspaceSimilarity> = inspection
        .against
        .iter()
        .flat_map(|comparison| &comparison.modules)
        .map(|phi| (phi.module.as_str(), phi))
        .collect();
    let rows: Vec<BTreeMap<&str, f64>> = inspection
        .modules
        .iter()
        .map(|module| measures(module, against.get(module.module.as_str()).copied()).into_iter().collect())
        .collect();
    let columns: Vec<_> = COLUMNS.iter().filter(|(key, _)| rows.iter().any(|row| row.contains_key(key))).collect();

    html.raw(
        "<section id=\"table\" aria-labelledby=\"table-title\">\n<h2 id=\"table-title\">Figures of each layer</h2>\n",
    );
    html.raw("<div class=\"scroll layers\" tabindex=\"0\" role=\"region\" aria-label=\"Table of the layers\">");
    html.raw("<table id=\"layer-table\"><thead><tr><th scope=\"col\" data-key=\"module\">Layer</th>");
    html.raw("<th scope=\"col\" data-key=\"kind\">Kind</th><th scope=\"col\" class=\"number\">Weight</th>");
    html.raw("<th scope=\"col\" class=\"number\" data-key=\"rank\">Rank</th>");
    html.raw("<th scope=\"col\" class=\"number\" data-key=\"alpha\">Alpha</th>");
    for (key, title) in &columns {
        html.raw("<th scope=\"col\" class=\"number\" data-key=\"").text(key).raw("\">").text(title).raw("</th>");
    }
    html.raw("</tr></thead><tbody>\n");
    for (module, measures) in inspection.modules.iter().zip(&rows) {
        let shape = module.weight_shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
        html.raw("<tr><th scope=\"row\">").text(&module.module).raw("</th><td>").text(&module.kind);
        let rank = module.rank.map(|rank| rank.to_string());
        let alpha = module.alpha.map(|alpha| alpha.to_string());
        for value in [Some(shape), rank, alpha] {
            html.raw("</td><td class=\"number\">").text(value.unwrap_or_default());
        }
        for (key, _) in &columns {
            let value = measures.get(key).filter(|value| value.is_finite());
            html.raw("</td><td class=\"number\">")
                .text(value.map_or_else(|| "–".to_owned(), |value| significant(*value)));
        }
        html.raw("</td></tr>\n");
    }
    html.raw("</tbody></table></div>\n");
    notes(html, inspection);
    html.raw("</section>\n");
}

fn notes(html: &mut Html, inspection: &Inspection) {
    html.raw("<p class=\"note\">Of the change ΔW at strength 1. Stable rank: ‖ΔW‖² / σ₁². ");
    html.raw("Effective rank: exp of the entropy of the singular values' shares. ");
    if inspection.modules.iter().any(|module| module.base.is_some()) {
        html.raw("Share: ‖ΔW‖ / ‖W‖. Amplification: ‖ΔW‖ / ‖UᵀWVᵀ‖, how much more the change has in its own directions than the base's ");
        html.raw("weight has there (Hu et al. 2021, section 7.3). ");
    }
    if inspection.against.is_some() {
        html.raw("Cosine: of the two adapters' changes. φ: of the two whole subspaces. ");
    }
    html.raw("</p>\n");
}

//! Methods and pairs of members in figures.

use super::composition::{ComposedMethod, CompositionPage};
use crate::html::Html;
use crate::number_text::{bytes, count, significant};

/// A column of the table of methods.
struct Column {
    title: &'static str,
    text: fn(&ComposedMethod) -> Option<String>,
}

const COLUMNS: [Column; 10] = [
    Column { title: "ρ largest", text: |method| method.rho_max.map(significant) },
    Column { title: "ρ mean", text: |method| method.rho_mean.map(significant) },
    Column { title: "Norm", text: |method| method.norm_ratio.map(significant) },
    Column { title: "From the sum", text: |method| method.difference_from_sum.map(significant) },
    Column { title: "Additivity error", text: |method| method.additivity_error.map(significant) },
    Column { title: "x₀ spread", text: |method| method.x0_std_ratio.map(significant) },
    Column { title: "Clipped", text: |method| method.clipped_share.map(|share| percent(Some(share))) },
    Column {
        title: "of the base's",
        text: |method| method.clipped_ratio.map(|ratio| format!("{} ×", significant(ratio))),
    },
    Column { title: "Rank", text: |method| method.rank.map(|rank| rank.to_string()) },
    Column { title: "Size", text: |method| method.num_bytes.map(bytes) },
];

pub(super) fn methods(html: &mut Html, composition: &CompositionPage) {
    let methods = &composition.methods;
    if methods.is_empty() {
        return;
    }
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|column| methods.iter().any(|method| (column.text)(method).is_some())).collect();
    let is_judged = methods.iter().any(|method| method.is_within_rule.is_some());
    html.raw("<section id=\"methods\" aria-labelledby=\"methods-title\">\n<h2 id=\"methods-title\">Methods</h2>\n");
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table of the methods\"><table class=\"methods\"><thead><tr>");
    html.raw("<th scope=\"col\">Method</th>").raw(if is_judged { "<th scope=\"col\">Rule</th>" } else { "" });
    for column in &columns {
        html.raw("<th scope=\"col\" class=\"number\">").text(column.title).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for method in methods {
        html.raw("<tr><th scope=\"row\">").text(&method.name);
        if let Some(worst) = &method.worst_layer {
            html.raw("<span class=\"note\">ρ is largest in ").text(worst).raw("</span>");
        }
        html.raw("</th>");
        if is_judged {
            html.raw(match method.is_within_rule {
                Some(true) => "<td><span class=\"verdict within\">✓ kept</span></td>",
                Some(false) => "<td><span class=\"verdict beyond\">✗ broken</span></td>",
                None => "<td>–</td>",
            });
        }
        for column in &columns {
            html.raw("<td class=\"number\">")
                .text((column.text)(method).unwrap_or_else(|| "–".to_owned()))
                .raw("</td>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>\n<p class=\"note\">");
    if let Some(rule) = composition.rule.as_ref().filter(|_| is_judged) {
        html.raw("Rule: ").text(rule).raw(" ");
    }
    html.raw("Norm: ‖result‖ over the root of the sum of the members' squares, 1 where they are orthogonal. ");
    html.raw("From the sum: ‖result − sum‖ / ‖sum‖. ");
    if methods.iter().any(|method| method.additivity_error.is_some()) {
        html.raw("Additivity error: how far the change of the prediction is from the sum of the members' own changes, in parts of it. ");
    }
    if methods.iter().any(|method| method.x0_std_ratio.is_some()) {
        html.raw("x₀ spread: standard deviation of the predicted picture over the base's. Clipped: pixels that are 0 or 255. ");
    }
    html.raw("</p>\n</section>\n");
}

pub(super) fn pairs(html: &mut Html, composition: &CompositionPage) {
    if composition.pairs.is_empty() {
        return;
    }
    html.raw(
        "<section id=\"pairs\" aria-labelledby=\"pairs-title\">\n<h2 id=\"pairs-title\">Overlap of the members</h2>\n",
    );
    html.raw(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Table of the pairs\"><table><thead><tr>",
    );
    html.raw("<th scope=\"col\">Adapter</th><th scope=\"col\">and</th>");
    for title in ["Cosine", "φ input", "of random ones", "φ output", "of random ones", "Layers of both"] {
        html.raw("<th scope=\"col\" class=\"number\">").text(title).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for pair in &composition.pairs {
        html.raw("<tr><th scope=\"row\">").text(&pair.first).raw("</th><td>").text(&pair.second).raw("</td>");
        let values = [Some(pair.cosine), Some(pair.input), pair.random_input, Some(pair.output), pair.random_output];
        for value in values {
            html.raw("<td class=\"number\">").text(figure(value)).raw("</td>");
        }
        html.raw("<td class=\"number\">").text(count(pair.num_layers as u64)).raw("</td></tr>");
    }
    html.raw("</tbody></table></div>\n<p class=\"note\">Means over the layers of both. φ: how much of the two subspaces is common, ");
    html.raw("1 all, 0 nothing. Cosine: 1 where one change is a multiple of the other.</p>\n</section>\n");
}

/// A number, or a dash where there is none.
pub(super) fn figure(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map_or_else(|| "–".to_owned(), significant)
}

/// A share as `1.2 %`.
pub(super) fn percent(share: Option<f64>) -> String {
    let share = share.filter(|share| share.is_finite());
    share.map_or_else(|| "–".to_owned(), |share| format!("{} %", significant(100.0 * share)))
}

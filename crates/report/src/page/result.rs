//! What came out of a run: the file, how to use it, what to try next, which blocks moved.

use crate::html::Html;
use crate::number_text::{bytes, count, significant};
use crate::run_folder::{RunRecord, Summary};

pub(super) fn write(html: &mut Html, record: &RunRecord) {
    let Some(summary) = &record.summary else { return };
    html.raw("<section id=\"result\" aria-labelledby=\"result-title\">\n<h2 id=\"result-title\">Result</h2>\n");
    html.raw("<div class=\"columns\">\n<div>\n");
    facts(html, summary);
    if let Some(command) = &summary.command {
        html.raw(
            "<h3>Use it</h3>\n<div class=\"command\"><pre tabindex=\"0\" aria-label=\"Command\"><code id=\"command\">",
        );
        html.text(command).raw("</code></pre></div>\n");
    }
    if !summary.advice.is_empty() {
        html.raw("<h3>Next</h3>\n<ul class=\"advice\">");
        for advice in &summary.advice {
            html.raw("<li>").text(advice).raw("</li>");
        }
        html.raw("</ul>\n");
    }
    html.raw("</div>\n");
    blocks(html, summary);
    html.raw("</div>\n</section>\n");
}

fn facts(html: &mut Html, summary: &Summary) {
    let loss = match (summary.loss_first, summary.loss_last) {
        (Some(first), Some(last)) => Some(format!("{} to {}", significant(first), significant(last))),
        _ => None,
    };
    let facts = [
        ("File", summary.adapter.clone()),
        ("Size", summary.num_bytes.map(bytes)),
        ("Rank", summary.rank.map(count)),
        ("Modules", summary.num_modules.map(count)),
        ("Parameters", summary.num_parameters.map(count)),
        ("Loss", loss),
        ("Best step", summary.best_step.map(count)),
    ];
    html.raw("<dl class=\"facts\">");
    for (term, value) in facts {
        let Some(value) = value else { continue };
        html.raw("<div><dt>").text(term).raw("</dt><dd>").text(value).raw("</dd></div>");
    }
    html.raw("</dl>\n");
}

/// The Frobenius norm of each block's change as a bar; the longest bar is the block that moved most.
fn blocks(html: &mut Html, summary: &Summary) {
    let norms = || summary.blocks.iter().filter_map(|block| block.frobenius.filter(|norm| norm.is_finite()));
    let Some(largest) = norms().reduce(f64::max).filter(|largest| *largest > 0.0) else { return };
    html.raw("<div>\n<table class=\"blocks\"><caption>How far each block moved</caption>");
    html.raw("<thead><tr><th scope=\"col\">Block</th><th scope=\"col\"><span class=\"unseen\">Bar</span></th>");
    html.raw("<th scope=\"col\" class=\"number\">Norm</th><th scope=\"col\" class=\"number\">Modules</th></tr></thead><tbody>");
    for block in &summary.blocks {
        let norm = block.frobenius.filter(|norm| norm.is_finite());
        html.raw("<tr><th scope=\"row\">").text(&block.block).raw("</th><td class=\"bar-cell\">");
        html.raw(
            "<svg width=\"100%\" height=\"8\" aria-hidden=\"true\" focusable=\"false\"><rect height=\"8\" width=\"",
        );
        html.text(format!("{:.1}%", 100.0 * norm.unwrap_or(0.0) / largest)).raw("\"/></svg></td><td class=\"number\">");
        html.text(norm.map_or_else(|| "not finite".to_owned(), significant)).raw("</td><td class=\"number\">");
        html.text(count(block.num_modules)).raw("</td></tr>");
    }
    html.raw("</tbody></table>\n</div>\n");
}

//! The data report on a page: counts, sizes, captions, and what is wrong with them.

use crate::data_report::DataReport;
use crate::html::Html;
use crate::number_text::count;
use crate::run_folder::RunRecord;

/// Most images that are listed, and tags.
const MAX_IMAGES: usize = 500;
const MAX_TAGS: usize = 30;

pub(super) fn write(html: &mut Html, record: &RunRecord) {
    let Some(data) = &record.data else { return };
    html.raw("<section id=\"data\" aria-labelledby=\"data-title\">\n<h2 id=\"data-title\">Data</h2>\n");
    facts(html, data);
    for (class, lines) in [("problem", &data.errors), ("warning", &data.warnings)] {
        if lines.is_empty() {
            continue;
        }
        html.raw("<ul class=\"").text(class).raw("\">");
        for line in lines {
            html.raw("<li>").text(line).raw("</li>");
        }
        html.raw("</ul>\n");
    }
    html.raw("<div class=\"columns\">\n");
    buckets(html, data);
    tags(html, data);
    html.raw("</div>\n");
    images(html, data);
    html.raw("</section>\n");
}

fn facts(html: &mut Html, data: &DataReport) {
    let some = |number: usize| Some(number).filter(|number| *number > 0).map(|number| count(number as u64));
    let sizes = match (&data.smallest, &data.largest) {
        (Some(a), Some(b)) if (a.width, a.height) == (b.width, b.height) => {
            Some(format!("{} × {} px", a.width, a.height))
        }
        (Some(a), Some(b)) => Some(format!("{} × {} to {} × {} px", a.width, a.height, b.width, b.height)),
        _ => None,
    };
    let tokens = data.tokens.as_ref().and_then(|tokens| match (tokens.shortest?, tokens.longest?, tokens.max) {
        (shortest, longest, Some(max)) => Some(format!("{shortest} to {longest} of {max}")),
        (shortest, longest, None) => Some(format!("{shortest} to {longest}")),
    });
    let facts = [
        ("Images", Some(count(data.images))),
        ("Class images", some(data.class_images as usize)),
        ("Captions", Some(count(data.captions))),
        ("Without caption", some(data.captions_missing.len())),
        ("Captions too long", some(data.captions_too_long.len())),
        ("Tokens", tokens),
        ("Sizes", sizes),
        ("Masks", some((data.masks.files + data.masks.transparent) as usize)),
        ("Duplicates", some(data.duplicates.len())),
        ("Unreadable", some(data.unreadable.len())),
        ("Steps an epoch", data.steps_per_epoch.map(|steps| format!("{steps:.1}"))),
        ("Epochs", data.epochs.map(|epochs| format!("{epochs:.1}"))),
    ];
    html.raw("<dl class=\"facts\">");
    for (term, value) in facts {
        let Some(value) = value else { continue };
        html.raw("<div><dt>").text(term).raw("</dt><dd>").text(value).raw("</dd></div>");
    }
    html.raw("</dl>\n");
}

fn buckets(html: &mut Html, data: &DataReport) {
    if data.buckets.is_empty() {
        return;
    }
    html.raw("<div><table><caption>Sizes of training</caption><thead><tr><th scope=\"col\">Size, px</th>");
    html.raw("<th scope=\"col\">Role</th><th scope=\"col\" class=\"number\">Images</th>");
    html.raw("<th scope=\"col\" class=\"number\">Cut off</th></tr></thead><tbody>");
    for bucket in &data.buckets {
        html.raw("<tr><th scope=\"row\">").text(format!("{} × {}", bucket.width, bucket.height)).raw("</th><td>");
        html.text(&bucket.role).raw("</td><td class=\"number\">").text(count(bucket.count));
        html.raw("</td><td class=\"number\">").text(format!("{:.0} %", 100.0 * bucket.cropped_share)).raw("</td></tr>");
    }
    html.raw("</tbody></table></div>\n");
}

fn tags(html: &mut Html, data: &DataReport) {
    if data.tags.is_empty() {
        return;
    }
    html.raw("<div><h3>Tags</h3><ul class=\"tags\">");
    for tag in data.tags.iter().take(MAX_TAGS) {
        html.raw("<li>").text(&tag.tag).raw(" <span>").text(count(tag.count)).raw("</span></li>");
    }
    html.raw("</ul>");
    if data.tags.len() > MAX_TAGS {
        html.raw("<p>and ").text(count((data.tags.len() - MAX_TAGS) as u64)).raw(" more</p>");
    }
    html.raw("</div>\n");
}

fn images(html: &mut Html, data: &DataReport) {
    if data.pictures.is_empty() {
        return;
    }
    html.raw("<details><summary>Images and captions</summary>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" ");
    html.raw("aria-label=\"Images and captions\"><table><thead><tr><th scope=\"col\">Image</th>");
    html.raw("<th scope=\"col\">Caption</th><th scope=\"col\" class=\"number\">Tokens</th>");
    html.raw("<th scope=\"col\" class=\"number\">Size, px</th><th scope=\"col\" class=\"number\">Trained at</th>");
    html.raw("<th scope=\"col\" class=\"number\">Repeats</th></tr></thead><tbody>");
    for picture in data.pictures.iter().take(MAX_IMAGES) {
        html.raw("<tr><th scope=\"row\">").text(&picture.path).raw("</th><td>");
        html.text(picture.caption.as_deref().unwrap_or("")).raw("</td><td class=\"number\">");
        html.text(picture.tokens.map(count).unwrap_or_default()).raw("</td><td class=\"number\">");
        html.text(format!("{} × {}", picture.width, picture.height)).raw("</td><td class=\"number\">");
        html.text(format!("{} × {}", picture.bucket_width, picture.bucket_height)).raw("</td><td class=\"number\">");
        html.text(count(picture.repeats)).raw("</td></tr>");
    }
    html.raw("</tbody></table></div>\n");
    if data.pictures.len() > MAX_IMAGES {
        html.raw("<p>").text(count((data.pictures.len() - MAX_IMAGES) as u64)).raw(" more are in data.json</p>");
    }
    html.raw("</details>\n");
}

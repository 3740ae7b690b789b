//! The settings of a run on its page. Those that are not at their default stand out and say where they come from.

use crate::html::Html;
use crate::settings_text::{Entry, Settings};

pub(super) fn write(html: &mut Html, settings: &Settings) {
    let Settings(sections) = settings;
    if sections.is_empty() {
        return;
    }
    let num_given = sections.iter().flat_map(|section| &section.entries).filter(|entry| entry.origin.is_some()).count();
    html.raw("<section id=\"settings\" aria-labelledby=\"settings-title\">\n");
    html.raw("<div class=\"bar\"><h2 id=\"settings-title\">Settings</h2><p class=\"note\">");
    html.text(num_given.to_string()).raw(" are not at their default; <a href=\"./run.toml\">run.toml</a> has all");
    html.raw("</p></div>\n<div class=\"settings\">\n");
    for section in sections {
        html.raw("<div class=\"section\">");
        if !section.name.is_empty() {
            html.raw("<h3>").text(&section.name).raw("</h3>");
        }
        html.raw("<dl>");
        section.entries.iter().for_each(|entry| setting(html, entry));
        html.raw("</dl></div>\n");
    }
    html.raw("</div>\n</section>\n");
}

fn setting(html: &mut Html, entry: &Entry) {
    html.raw(if entry.origin.is_some() { "<div class=\"given\"><dt>" } else { "<div><dt>" });
    html.text(&entry.key).raw("</dt><dd>").text(&entry.value);
    if let Some(origin) = &entry.origin {
        html.raw(" <span class=\"origin\">").text(origin).raw("</span>");
    }
    html.raw("</dd></div>");
}

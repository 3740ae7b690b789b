//! Terms and their values, side by side at the head of a page or a section.

use crate::html::Html;

/// A list of facts; those without a value are left out.
pub(crate) fn facts<'a>(html: &mut Html, facts: impl IntoIterator<Item = (&'a str, Option<String>)>) {
    html.raw("<dl class=\"facts\">");
    for (term, value) in facts {
        let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
        html.raw("<div><dt>").text(term).raw("</dt><dd>").text(value).raw("</dd></div>");
    }
    html.raw("</dl>\n");
}

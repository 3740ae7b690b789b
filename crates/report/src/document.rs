//! What every page begins and ends with: one file that needs no server and asks nothing of the network.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::html::Html;

const PAGE_CSS: &str = include_str!("../assets/page.css");
const PAGE_JS: &str = include_str!("../assets/page.js");

/// The styles and scripts of one kind of page, in their order. Those that all pages share come before them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Document {
    pub styles: &'static [&'static str],
    pub scripts: &'static [&'static str],
}

impl Document {
    /// Everything before the content. Scripts and styles are named by their hashes: nothing else is ever run, whatever
    /// text got into the page. `meta` is more for the head.
    pub(crate) fn begin(self, html: &mut Html, title: &str, meta: &'static str) {
        let styles = || [PAGE_CSS].into_iter().chain(self.styles.iter().copied());
        let scripts = || [PAGE_JS].into_iter().chain(self.scripts.iter().copied());
        html.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        html.raw(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: 'self' file:; ",
        );
        html.raw("script-src");
        scripts().for_each(|script| _ = html.raw(" ").text(hash_source(script)));
        html.raw("; style-src");
        styles().for_each(|style| _ = html.raw(" ").text(hash_source(style)));
        html.raw("; base-uri 'none'; form-action 'none'\">\n");
        html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        html.raw(
            "<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n",
        );
        html.raw(meta).raw("<title>").text(title).raw(" · loralei</title>\n");
        styles().for_each(|style| _ = html.raw("<style>").raw(style).raw("</style>\n"));
        scripts().for_each(|script| _ = html.raw("<script>").raw(script).raw("</script>\n"));
        html.raw("</head>\n<body>\n");
        html.raw("<a class=\"skip\" href=\"#content\">Skip to the content</a>\n");
    }
}

/// The data that the page's script draws, and the end.
pub(crate) fn end(
    html: &mut Html,
    data_id: &'static str,
    data: &impl serde::Serialize,
) -> Result<(), serde_json::Error> {
    html.raw("<script type=\"application/json\" id=\"").raw(data_id).raw("\">").json(data)?;
    html.raw("</script>\n</body>\n</html>\n");
    Ok(())
}

/// A source of a content security policy: `'sha256-...'`.
fn hash_source(content: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content.as_bytes())))
}

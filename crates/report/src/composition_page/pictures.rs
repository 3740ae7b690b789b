//! The grid of pictures: a row a model, a column a prompt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::composition::PictureGrid;
use crate::html::Html;

/// Pictures of fewer pixels a side are enlarged without blur.
const SMALL_PX: u32 = 128;

pub(super) fn write(html: &mut Html, grid: &PictureGrid) {
    html.raw("<section id=\"pictures\" aria-labelledby=\"pictures-title\">\n<h2 id=\"pictures-title\">Pictures</h2>\n");
    html.raw("<p class=\"note\">Every column is drawn from the same noise.</p>\n");
    html.raw("<div class=\"pictures\" tabindex=\"0\" role=\"region\" aria-label=\"Table of pictures\"><table><thead><tr><td></td>");
    for prompt in &grid.prompts {
        html.raw("<th scope=\"col\">").text(prompt).raw("</th>");
    }
    html.raw("</tr></thead><tbody>\n");
    for row in &grid.rows {
        html.raw("<tr><th scope=\"row\">").text(&row.name).raw("</th>");
        for (column, prompt) in grid.prompts.iter().enumerate() {
            match row.pictures.get(column).and_then(Option::as_ref) {
                Some(png) => picture(html, png, &format!("{}: {prompt}", row.name)),
                None => _ = html.raw("<td class=\"absent\">–</td>"),
            }
        }
        html.raw("</tr>\n");
    }
    html.raw("</tbody></table></div>\n</section>\n");
}

fn picture(html: &mut Html, png: &[u8], alt: &str) {
    let size_px = size_px(png);
    html.raw("<td><img alt=\"").text(alt).raw("\"");
    if size_px.is_some_and(|(width, height)| width.max(height) < SMALL_PX) {
        html.raw(" class=\"small\"");
    }
    if let Some((width, height)) = size_px {
        html.raw(" width=\"").text(width.to_string()).raw("\" height=\"").text(height.to_string()).raw("\"");
    }
    html.raw(" src=\"data:image/png;base64,").text(STANDARD.encode(png)).raw("\"></td>");
}

/// Width and height of a PNG: the first fields of its first chunk.
fn size_px(png: &[u8]) -> Option<(u32, u32)> {
    let field = |at: usize| Some(u32::from_be_bytes(png.get(at..at + 4)?.try_into().ok()?));
    png.starts_with(b"\x89PNG\r\n\x1a\n").then_some((field(16)?, field(20)?))
}

//! The page of ways to make one adapter of several: figures, heat map, overlap and pictures.

mod composition;
mod pictures;
mod rho_map;
mod tables;

use std::path::Path;

use loralei_adapter::replace_bytes;

use crate::ReportError;
use crate::document::{self, Document};
use crate::facts::facts;
use crate::html::Html;
use crate::number_text::{count, significant};
use rho_map::RhoMap;

pub use composition::{ComposedMember, ComposedMethod, CompositionPage, PairOverlap, PictureGrid, PictureRow};

const ADAPTERS_CSS: &str = include_str!("../../assets/adapters.css");
const FIGURES_JS: &str = include_str!("../../assets/figures.js");
const COMPOSITION_JS: &str = include_str!("../../assets/composition.js");
const DOCUMENT: Document = Document { styles: &[ADAPTERS_CSS], scripts: &[FIGURES_JS, COMPOSITION_JS] };

/// Writes a composition as one HTML file, with its pictures in it.
///
/// The same data give the same bytes; names and prompts are text on the page, whatever they are.
///
/// # Errors
/// [`ReportError::Write`]; what was at `path` before is then still there.
pub fn write_composition_page(composition: &CompositionPage, path: &Path) -> Result<(), ReportError> {
    Ok(replace_bytes(path, &page(composition)?)?)
}

fn page(composition: &CompositionPage) -> Result<Vec<u8>, serde_json::Error> {
    let rho = RhoMap::of(composition);
    let mut html = Html::default();
    DOCUMENT.begin(&mut html, &composition.title, "");
    head(&mut html, composition);
    tables::methods(&mut html, composition);
    if rho.is_some() {
        html.raw(RHO);
    }
    if let Some(grid) = &composition.pictures {
        pictures::write(&mut html, grid);
    }
    tables::pairs(&mut html, composition);
    html.raw("</main>\n<footer>\n<p>loralei ").text(env!("CARGO_PKG_VERSION")).raw("</p>\n</footer>\n");
    document::end(&mut html, "composition-data", &rho)?;
    Ok(html.into_bytes())
}

const RHO: &str = r#"<section id="rho" aria-labelledby="rho-title">
<h2 id="rho-title">ρ of each layer</h2>
<p class="note">ρ = σ₁ of the result over the largest σ₁ of a member. At 1 a layer changes as strongly as the strongest member alone; pictures burn where it is well above.</p>
<div id="rho-map"></div>
<noscript><p>The map is drawn by a script.</p></noscript>
</section>
"#;

fn head(html: &mut Html, composition: &CompositionPage) {
    html.raw("<header>\n<div class=\"bar\"><h1>").text(&composition.title).raw("</h1>");
    html.raw("<div class=\"controls\" id=\"page-controls\"></div></div>\n");
    facts(
        html,
        [
            ("Base", composition.base.clone()),
            ("Members", Some(count(composition.members.len() as u64))),
            ("Layers", Some(count(composition.layers.len() as u64)).filter(|_| !composition.layers.is_empty())),
            ("Clipped pixels of the base", composition.base_clipped_share.map(|share| tables::percent(Some(share)))),
        ],
    );
    html.raw("</header>\n<main id=\"content\">\n");
    if !composition.members.is_empty() {
        html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Members\"><table><caption>Members</caption><thead><tr>");
        html.raw(
            "<th scope=\"col\">Adapter</th><th scope=\"col\" class=\"number\">Strength</th><th scope=\"col\">Rank</th>",
        );
        html.raw("<th scope=\"col\" class=\"number\">x₀ spread</th><th scope=\"col\" class=\"number\">Clipped</th>");
        html.raw("<th scope=\"col\">Prompt</th></tr></thead><tbody>");
        for member in &composition.members {
            html.raw("<tr><th scope=\"row\">").text(&member.name).raw("</th><td class=\"number\">");
            html.text(significant(member.scale)).raw("</td><td>").text(member.rank.as_deref().unwrap_or(""));
            html.raw("</td><td class=\"number\">").text(tables::figure(member.x0_std_ratio));
            html.raw("</td><td class=\"number\">").text(tables::percent(member.clipped_share));
            html.raw("</td><td>").text(member.prompt.as_deref().unwrap_or("")).raw("</td></tr>");
        }
        html.raw("</tbody></table></div>\n");
    }
    if !composition.notes.is_empty() {
        html.raw("<ul class=\"warning\">");
        for note in &composition.notes {
            html.raw("<li>").text(note).raw("</li>");
        }
        html.raw("</ul>\n");
    }
}

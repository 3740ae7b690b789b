//! The page of an adapter: what it is, its layers as a map and as a table, and how it lies to another one.

mod head;
mod layer_map;
mod layer_place;
mod layer_table;
mod page_data;
mod subspace_data;

use std::path::Path;

use loralei_adapter::{Inspection, replace_bytes};

use crate::ReportError;
use crate::document::{self, Document};
use crate::html::Html;
use page_data::PageData;

pub(crate) use layer_place::LayerPlace;

const ADAPTERS_CSS: &str = include_str!("../../assets/adapters.css");
const FIGURES_JS: &str = include_str!("../../assets/figures.js");
const ADAPTER_JS: &str = include_str!("../../assets/adapter.js");
const DOCUMENT: Document = Document { styles: &[ADAPTERS_CSS], scripts: &[FIGURES_JS, ADAPTER_JS] };

/// Writes what is in an adapter as one HTML file: facts, a map and a table of the layers, singular values, the metadata,
/// and, where it was held against another adapter, heat maps of the subspaces' similarity (LoRA paper, section 7.2).
///
/// The same inspection gives the same bytes. What stands in the file's metadata is text on the page, whatever it is.
///
/// # Errors
/// [`ReportError::Write`]; what was at `path` before is then still there.
pub fn write_inspection_page(inspection: &Inspection, path: &Path) -> Result<(), ReportError> {
    Ok(replace_bytes(path, &page(inspection)?)?)
}

fn page(inspection: &Inspection) -> Result<Vec<u8>, serde_json::Error> {
    let data = PageData::of(inspection);
    let mut html = Html::default();
    DOCUMENT.begin(&mut html, &inspection.file, "");
    head::write(&mut html, inspection);
    if !inspection.modules.is_empty() {
        html.raw(LAYERS);
    }
    if let Some(comparison) = inspection.against.as_ref() {
        html.raw("<section id=\"subspaces\" aria-labelledby=\"subspaces-title\">\n<div class=\"bar\">");
        html.raw("<h2 id=\"subspaces-title\">Subspaces against ").text(&comparison.file);
        html.raw("</h2><div class=\"controls\" id=\"subspace-controls\"></div></div>\n");
        head::comparison(&mut html, comparison);
        html.raw("<div id=\"subspace-maps\"></div>\n</section>\n");
    }
    layer_table::write(&mut html, inspection);
    head::metadata(&mut html, inspection);
    html.raw("</main>\n<footer>\n<p>loralei ").text(env!("CARGO_PKG_VERSION")).raw("</p>\n</footer>\n");
    document::end(&mut html, "adapter-data", &data)?;
    Ok(html.into_bytes())
}

const LAYERS: &str = r#"<section id="layers" aria-labelledby="layers-title">
<div class="bar"><h2 id="layers-title">Layers</h2><div class="controls" id="map-controls"></div></div>
<div id="maps"></div>
<div id="layer"></div>
<noscript><p>The map is drawn by a script; its numbers are in the table.</p></noscript>
</section>
"#;

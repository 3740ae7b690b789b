//! `index.html` of a run's folder: one file that needs no server and asks nothing of the network.

mod data;
mod head;
mod result;
mod run_data;
mod settings;

use std::path::{Path, PathBuf};

use loralei_adapter::replace_bytes;

use crate::ReportError;
use crate::document::{self, Document};
use crate::html::{Html, relative_address};
use crate::run_folder::RunRecord;
use crate::sample_table::SampleTable;
use crate::thumbnail::Thumbnails;
use run_data::RunData;

const UPLOT_JS: &str = include_str!("../../assets/uplot/uplot.iife.min.js");
const UPLOT_CSS: &str = include_str!("../../assets/uplot/uplot.min.css");
const RUN_JS: &str = include_str!("../../assets/run.js");
const RUN_CSS: &str = include_str!("../../assets/run.css");
const DOCUMENT: Document = Document { styles: &[UPLOT_CSS, RUN_CSS], scripts: &[UPLOT_JS, RUN_JS] };
/// With scripts the page reloads itself, but not under the reader's hands.
const REFRESH: &str = "<noscript><meta http-equiv=\"refresh\" content=\"30\"></noscript>\n";

/// Writes `index.html` into a run's folder and returns its path.
///
/// The page is made of what the folder holds: `run.toml`, `status.json`, `metrics.jsonl`, `validation.jsonl`,
/// `samples.jsonl`, `data.json`, `summary.json`. Any may be missing, and a last line that is still being written is left
/// out. Curves are reduced to 2000 points that keep every extreme; pictures stand in the page as JPEG of at most 256 px,
/// which are kept in `.thumbnails/`. The same folder gives the same page.
///
/// # Errors
/// [`ReportError::NoFolder`]; [`ReportError::Read`] for a file that is there and cannot be read; [`ReportError::Write`], the
/// page of before is then still there.
pub fn write_page(run_folder: &Path) -> Result<PathBuf, ReportError> {
    let record = RunRecord::read(run_folder)?;
    let mut thumbnails = Thumbnails::of(run_folder);
    let samples = SampleTable::of(&record.samples, &mut thumbnails);
    let path = run_folder.join("index.html");
    replace_bytes(&path, &page(&record, samples)?)?;
    thumbnails.remove_unused();
    Ok(path)
}

fn page(record: &RunRecord, samples: SampleTable) -> Result<Vec<u8>, serde_json::Error> {
    let has_samples = !samples.rows.is_empty();
    let data = RunData::of(record, samples);
    let has_curves = data.has_curves();

    let mut html = Html::default();
    DOCUMENT.begin(&mut html, &head::name(record), if data.reload_s.is_some() { REFRESH } else { "" });
    head::write(&mut html, record);
    result::write(&mut html, record);
    if has_curves {
        html.raw(CURVES);
    }
    if has_samples {
        html.raw(SAMPLES);
    }
    data::write(&mut html, record);
    settings::write(&mut html, &record.settings);
    files(&mut html, record);
    document::end(&mut html, "run-data", &data)?;
    Ok(html.into_bytes())
}

const CURVES: &str = r#"<section id="curves" aria-labelledby="curves-title">
<div class="bar"><h2 id="curves-title">Curves</h2><div class="controls" id="curve-controls"></div></div>
<div id="charts"></div>
<noscript><p>The curves are drawn by a script; their numbers are in <a href="./metrics.jsonl">metrics.jsonl</a>.</p></noscript>
</section>
"#;

const SAMPLES: &str = r#"<section id="samples" aria-labelledby="samples-title">
<div class="bar"><h2 id="samples-title">Samples</h2><div class="controls" id="sample-controls"></div></div>
<div id="sample-table"></div>
<noscript><p>The table is made by a script; the pictures are in <a href="./samples">samples</a>.</p></noscript>
</section>
"#;

fn files(html: &mut Html, record: &RunRecord) {
    html.raw("</main>\n<footer>\n");
    if !record.files.is_empty() {
        html.raw("<ul class=\"files\" aria-label=\"Files of the run\">");
        for name in &record.files {
            let Some(address) = relative_address(name) else { continue };
            html.raw("<li><a href=\"").text(address).raw("\">").text(name).raw("</a></li>");
        }
        html.raw("</ul>\n");
    }
    if !record.unreadable.is_empty() {
        html.raw("<p>Could not be understood, so it is not shown: ").text(record.unreadable.join(", ")).raw("</p>\n");
    }
    html.raw("<p>loralei ").text(env!("CARGO_PKG_VERSION")).raw("</p>\n</footer>\n");
}

//! What is said to people: a run's page, its TensorBoard event file, its model card; the pages of adapters.
//!
//! # Brief overview
//!
//! - [`write_page`] makes `index.html` out of the files in a run's folder: curves, pictures by step, settings, data. The
//!   page needs no server and asks nothing of the network; it may be rewritten as often as one likes while the run goes on.
//! - [`EventWriter`] appends scalars and pictures to a file that TensorBoard reads.
//! - [`ModelCard`] is the `README.md` beside an adapter, with the fields that the hub looks for.
//! - [`write_inspection_page`] is the page of one adapter or of two against each other, [`write_composition_page`] that of the
//!   ways to make one of several.
//!
//! The crate knows no model and no trainer: the run's folder is all that it sees.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let run_folder = folder.path();
//! std::fs::OpenOptions::new().create(true).append(true).open(run_folder.join("metrics.jsonl"))?; // the run has begun
//! let page = loralei_report::write_page(run_folder)?;
//! assert_eq!(page, run_folder.join("index.html"));
//! # Ok(())
//! # }
//! ```

mod adapter_page;
mod composition_page;
mod curve;
mod data_report;
mod document;
mod error;
mod event_file;
mod event_message;
mod facts;
mod html;
mod json_lines;
mod model_card;
mod number_text;
mod page;
mod run_folder;
mod sample_table;
mod settings_text;
mod thumbnail;
mod yaml_text;

pub use adapter_page::write_inspection_page;
pub use composition_page::{
    ComposedMember, ComposedMethod, CompositionPage, PairOverlap, PictureGrid, PictureRow, write_composition_page,
};
pub use error::ReportError;
pub use event_file::EventWriter;
pub use model_card::{CardSample, ModelCard};
pub use page::write_page;

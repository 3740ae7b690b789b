//! What a training run says to people: its page, its TensorBoard event file, its model card.
//!
//! # Brief overview
//!
//! - [`write_page`] makes `index.html` out of the files in a run's folder: curves, pictures by step, settings, data. The
//!   page needs no server and asks nothing of the network; it may be rewritten as often as one likes while the run goes on.
//! - [`EventWriter`] appends scalars and pictures to a file that TensorBoard reads.
//! - [`ModelCard`] is the `README.md` beside an adapter, with the fields that the hub looks for.
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

mod curve;
mod data_report;
mod error;
mod event_file;
mod event_message;
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

pub use error::ReportError;
pub use event_file::EventWriter;
pub use model_card::{CardSample, ModelCard};
pub use page::write_page;

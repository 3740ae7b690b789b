//! Pictures out: what a diffusion model drew, as PNG files that say how they were drawn, and as labelled grids.
//!
//! # Brief overview
//!
//! - [`Picture`] is RGB pixels, made from the model's values in [-1, 1] as diffusers makes them.
//! - [`GenerationParameters`] is how it was drawn, in the text that AUTOMATIC1111's web interface writes into its
//!   files; [`Picture::to_png`] puts it there and [`read_parameters`] reads it from any PNG.
//! - [`Grid`] lays pictures out in rows and columns with labels: prompts by scales, or before | after. [`ContactSheet`] is
//!   for many pictures with lines below each.
//!
//! The reading order is the data flow: [`picture`], [`parameters`], [`mod@file`], [`grid`], [`layout`],
//! [`contact_sheet`]. The crate knows no model, no tensors and no disk: bytes go out, and the caller writes them. Same input, same bytes.
//!
//! # Example
//!
//! ```
//! use loralei_picture::{AdapterUse, GenerationParameters, Grid, Picture, read_parameters};
//! # fn main() -> Result<(), loralei_picture::PictureError> {
//! let red = Picture::from_unit(&[1.0, -1.0, -1.0].repeat(64 * 64), (64, 64))?;
//! let blue = Picture::from_unit(&[-1.0, -1.0, 1.0].repeat(64 * 64), (64, 64))?;
//!
//! let parameters = GenerationParameters {
//!     prompt: "a red octopus".to_owned(),
//!     adapters: vec![AdapterUse { name: "octopus".to_owned(), scale: 0.8, hash: None }],
//!     steps: Some(30),
//!     sampler: Some("DDIM".to_owned()),
//!     seed: Some(1),
//!     ..Default::default()
//! };
//! let png = red.to_png(Some(&parameters.to_string()))?;
//! let text = read_parameters(&png)?.unwrap_or_default();
//! assert!(text.starts_with("a red octopus <lora:octopus:0.8>\nSteps: 30, Sampler: DDIM, Seed: 1, Version: loralei "));
//!
//! let grid = Grid::new()
//!     .title("An octopus, learned")
//!     .columns(["before", "after"])
//!     .row("a red octopus", vec![blue, red.clone()])
//!     .render()?;
//! assert_eq!(grid.pixel(grid.width_px() - 17, grid.height_px() - 17), Some([255, 0, 0]));
//! # Ok(())
//! # }
//! ```

mod canvas;
pub mod colour_measures;
pub mod contact_sheet;
mod error;
pub mod file;
pub mod grid;
pub mod layout;
mod lettering;
pub mod parameters;
pub mod picture;

pub use colour_measures::ColourMeasures;
pub use contact_sheet::{ContactSheet, SheetText};
pub use error::PictureError;
pub use file::read_parameters;
pub use grid::Grid;
pub use layout::{Layout, Rect, TextBlock};
pub use parameters::{AdapterUse, GenerationParameters};
pub use picture::Picture;

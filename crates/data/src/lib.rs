//! A folder of images and captions, as what a diffusion trainer eats: pixels, captions and an order.
//!
//! # Brief overview
//!
//! - [`Folder`] is what was found: a sorted list of [`Sample`]s (picture, caption, weight) and of everything skipped.
//! - [`Pixels`] is one picture as the network sees it: upright, over white, scaled to cover and cropped to the run's
//!   size, (h, w, 3) in [-1, 1]. [`Crop`] says which part of the original that is.
//! - [`BucketRules`] say which sizes a run uses and which one a picture goes to; [`Mask`] is where its loss counts.
//! - [`survey()`] looks at every picture before the run, [`find_duplicates`] at what is there twice.
//! - [`batch_at`] gives the pictures of any batch of a run, as a pure function of the seed and the batch's index.
//!
//! The reading order is the data flow: [`folder`], [`caption`], [`sample`], [`order`]; and for pictures [`mod@decode`],
//! [`mod@survey`], [`bucket`], [`mod@fit`], [`mask`], [`look`], [`duplicates`].
//! The crate knows no model: which sizes a network accepts is the caller's business.
//!
//! # Example
//!
//! ```
//! use loralei_data::{CaptionRules, Folder, RgbImage, batch_at};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! for (name, grey) in [("a.png", 10), ("b.png", 120), ("c.png", 250)] {
//!     RgbImage::from_pixel(90, 60, [grey, grey, grey].into()).save(dir.join(name))?;
//! }
//!
//! let rules = CaptionRules { prompt: Some("a photo of a dog"), trigger: Some("sks") };
//! let folder = Folder::read(dir, rules)?;
//! assert_eq!(folder.samples[0].caption, "sks, a photo of a dog");
//!
//! let batch = batch_at(7, folder.samples.len(), 2, 0);
//! for &index in &batch {
//!     let (pixels, crop) = folder.samples[index].pixels(64, 64)?;
//!     assert_eq!(pixels.data.len(), 64 * 64 * 3);
//!     assert_eq!((crop.resized_width_px, crop.left_px), (96, 16));
//! }
//! # Ok(())
//! # }
//! ```

mod area;
pub mod bucket;
mod budget;
pub mod caption;
mod caught;
mod container;
pub mod decode;
pub mod duplicates;
mod error;
pub mod fit;
pub mod folder;
pub mod look;
pub mod mask;
pub mod order;
mod rgb;
pub mod sample;
pub mod survey;
mod upright;

pub use bucket::{Assigned, BucketRules, Size};
pub use caption::CaptionRules;
pub use decode::{Alpha, Decoded, Header, Note, decode, decode_with, probe};
pub use duplicates::{Duplicates, find_duplicates};
pub use error::DataError;
pub use fit::{Crop, Pixels, fit, fit_crop};
pub use folder::{Folder, SkipReason, Skipped};
pub use image::{GrayImage, RgbImage};
pub use look::Look;
pub use mask::{Mask, read_mask};
pub use order::batch_at;
pub use sample::Sample;
pub use survey::{ContentHash, Depth, Surveyed, survey};

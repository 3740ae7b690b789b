//! Folders of images and captions, as what a diffusion trainer eats: pixels, captions and an order.
//!
//! # Brief overview
//!
//! - A [`Source`] is a folder with its rules. [`Dataset`] is what was found in all of them: a sorted list of [`Sample`]s
//!   (picture, text, mask, repeats), everything that was skipped, and all problems at once.
//! - [`Inspection`] opens every picture before a run: what can be read, at which size it is trained ([`BucketRules`]);
//!   [`find_duplicates`] says what is there twice.
//! - [`CaptionRules`] make the caption of a showing, [`Pixels`] is its picture as the network sees it: upright, over
//!   white, scaled to cover and cropped, (h, w, 3) in [-1, 1]. [`Crop`] says which part of the original that is, [`Mask`]
//!   where its loss counts.
//! - [`Order`] gives the showings of any batch of a run, as a pure function of the seed and the batch's index.
//!
//! The reading order is the data flow: [`source`], [`dataset`], [`findings`], [`caption`], [`sample`], [`order`]; and for
//! pictures [`mod@decode`], [`mod@survey`], [`bucket`], [`inspection`], [`mod@fit`], [`mask`], [`look`], [`duplicates`].
//! The crate knows no model: which sizes a network accepts is the caller's business.
//!
//! # Example
//!
//! ```
//! use loralei_data::{Alpha, BucketRules, CaptionRules, Dataset, Order, Purpose, RgbImage, Role, Source, Stream};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! for (name, grey) in [("a.png", 10), ("b.png", 120), ("c.png", 250)] {
//!     RgbImage::from_pixel(90, 60, [grey, grey, grey].into()).save(dir.join(name))?;
//! }
//!
//! let (prompt, trigger) = (Some("a photo of a dog".to_owned()), Some("sks".to_owned()));
//! let source = Source {
//!     path: dir.to_owned(),
//!     role: Role::Subject,
//!     repeats: Some(2),
//!     captions: CaptionRules { prompt, trigger, ..CaptionRules::default() },
//! #   buckets: BucketRules { width_px: 64, height_px: 64, enabled: false, min_px: 64, max_px: 64, step_px: 64, no_upscale: false },
//! #   alpha: Alpha::Over([255; 3]),
//!     // and so on
//! #   flip: false,
//! #   weight: 1.0,
//! };
//! let sources = [source];
//! let dataset = Dataset::read(&sources)?;
//! assert!(dataset.problems.is_empty());
//!
//! let order = Order::new(7, 4, dataset.samples.iter().map(|sample| ("one bucket", sample.repeats)));
//! let batch = order.batch(0);
//! for &showing in &batch.showings {
//!     let sample = &dataset.samples[showing.sample];
//!     let mut draw = Stream::new(7, batch.epoch, showing, Purpose::Caption);
//!     assert_eq!(sources[sample.source].captions.caption(&sample.caption, &mut draw), "sks, a photo of a dog");
//!     let (pixels, crop) = sample.pixels(64, 64)?;
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
pub mod caption_file;
mod caught;
mod container;
pub mod dataset;
pub mod decode;
pub mod duplicates;
mod error;
pub mod findings;
pub mod fit;
mod folder;
pub mod folder_name;
pub mod inspection;
pub mod look;
pub mod mask;
mod mask_files;
pub mod mask_survey;
pub mod metadata;
pub mod order;
pub mod random;
mod rgb;
pub mod sample;
pub mod source;
mod source_reader;
pub mod survey;
pub mod tags;
pub mod trigger;
mod upright;
pub mod wildcard;

pub use bucket::{Assigned, BucketRules, Size};
pub use caption::{CaptionLine, CaptionOrigin, CaptionRules, CaptionSource, CaptionText};
pub use dataset::Dataset;
pub use decode::{Alpha, Decoded, Header, Note, decode, decode_with, probe};
pub use duplicates::{Duplicates, find_duplicates};
pub use error::DataError;
pub use findings::{CaptionCounts, Layout, Place, SkipReason, Skipped, Warning};
pub use fit::{Crop, Pixels, fit, fit_crop};
pub use image::{GrayImage, RgbImage};
pub use inspection::{Fitted, Inspection, Picture, Unreadable};
pub use look::Look;
pub use mask::{Mask, read_mask};
pub use mask_survey::survey_masks;
pub use metadata::LineFault;
pub use order::{Batch, Order, Showing};
pub use random::{Purpose, Stream, flipped};
pub use sample::Sample;
pub use source::{Role, Source};
pub use survey::{ContentHash, Depth, Surveyed, survey};
pub use tags::tag_counts;
pub use trigger::{with_class_word, with_trigger, without_trigger};

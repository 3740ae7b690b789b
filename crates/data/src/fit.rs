//! A picture at the run's size: scaled until it covers it, the surplus cropped from both ends alike.

use std::error::Error;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::DataError;
use crate::decode::{MAX_PIXELS, MAX_SIDE_PX};

/// A picture as the network sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// (height_px, width_px, 3) red, green, blue in [-1, 1]: -1 is 0 and 1 is 255 of the 8-bit value.
    pub data: Vec<f32>,
}

/// Which part of the original a picture of the run shows. SDXL is told these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Width of the upright original, in pixels.
    pub original_width_px: u32,
    /// Height of the upright original, in pixels.
    pub original_height_px: u32,
    /// Width after scaling, before cropping; never less than the run's.
    pub resized_width_px: u32,
    /// Height after scaling, before cropping; never less than the run's.
    pub resized_height_px: u32,
    /// Columns of the scaled picture cropped away on the left.
    pub left_px: u32,
    /// Rows of the scaled picture cropped away at the top.
    pub top_px: u32,
}

impl Crop {
    /// The crop that fits an original of `original` = (width, height) pixels to `target` = (width, height) pixels.
    ///
    /// One side is scaled to the target exactly; the other is rounded to nearest, which cannot fall below the target.
    /// An odd surplus leaves its extra pixel on the right or at the bottom. All sides must be at least 1.
    pub fn cover(original: (u32, u32), target: (u32, u32)) -> Self {
        let [(width, height), (target_width, target_height)] =
            [original, target].map(|(width, height)| (u64::from(width.max(1)), u64::from(height.max(1))));
        let is_wider = width * target_height >= height * target_width;
        let (resized_width, resized_height) = if is_wider {
            (divide_to_nearest(width * target_height, height), target_height)
        } else {
            (target_width, divide_to_nearest(height * target_width, width))
        };
        // Only sides near u32::MAX, far beyond what is decoded, could leave the range.
        let [resized_width_px, resized_height_px] =
            [resized_width, resized_height].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
        Self {
            original_width_px: original.0,
            original_height_px: original.1,
            resized_width_px,
            resized_height_px,
            left_px: resized_width_px.saturating_sub(target.0) / 2,
            top_px: resized_height_px.saturating_sub(target.1) / 2,
        }
    }
}

/// Scales `image` to cover `width_px` x `height_px` (Lanczos3, anti-aliased) and crops it to that from the centre.
///
/// Scaling and cropping are one pass, so only the part that is kept is ever computed: an extremely long picture costs
/// no more memory than any other.
///
/// # Errors
/// The image has no pixels, or the size is 0 or beyond the limits of [`decode`](mod@crate::decode).
pub fn fit(image: &RgbImage, width_px: u32, height_px: u32) -> Result<(Pixels, Crop), DataError> {
    let (image_width_px, image_height_px) = image.dimensions();
    let is_sensible = image_width_px.min(image_height_px).min(width_px).min(height_px) > 0
        && width_px.max(height_px) <= MAX_SIDE_PX
        && u64::from(width_px) * u64::from(height_px) <= MAX_PIXELS;
    if !is_sensible {
        return Err(DataError::FitSize { image_width_px, image_height_px, width_px, height_px });
    }
    let crop = Crop::cover((image_width_px, image_height_px), (width_px, height_px));
    let bytes = resample(image, &crop, width_px, height_px).map_err(|cause| DataError::Resize { cause })?;
    let data = bytes.iter().map(|&value| f32::from(value) / 127.5 - 1.0).collect();
    Ok((Pixels { width_px, height_px, data }, crop))
}

/// The cropped part of the scaled picture, (height_px, width_px, 3).
///
/// In 8 bits: the resizer's fixed-point arithmetic gives the same bytes on every processor.
fn resample(
    image: &RgbImage,
    crop: &Crop,
    width_px: u32,
    height_px: u32,
) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let (source_width, source_height) = image.dimensions();
    let source = TypedImageRef::<U8x3>::from_buffer(source_width, source_height, image.as_raw())?;
    let mut target = TypedImage::<U8x3>::new(width_px, height_px);
    // The kept part in the original's coordinates. The filter still looks past its edges, as if all had been scaled.
    let [left, width] =
        [crop.left_px, width_px].map(|x| f64::from(x) * f64::from(source_width) / f64::from(crop.resized_width_px));
    let [top, height] =
        [crop.top_px, height_px].map(|y| f64::from(y) * f64::from(source_height) / f64::from(crop.resized_height_px));
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(left, top, width, height);
    // Typed: the untyped call compiles every kind of pixel, which takes minutes and gigabytes.
    Resizer::new().resize_typed(&source, &mut target, &options)?;
    Ok(target.pixels().iter().flat_map(|pixel| pixel.0).collect())
}

fn divide_to_nearest(numerator: u64, denominator: u64) -> u64 {
    (numerator + denominator / 2) / denominator
}

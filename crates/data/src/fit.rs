//! A picture at the run's size: scaled until it covers it, the surplus cropped from both ends alike.

use std::error::Error;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::DataError;
use crate::bucket::{self, Assigned, Size};
use crate::decode::{MAX_PIXELS, MAX_SIDE_PX};
use crate::upright::mirror;

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
    /// An odd surplus leaves its extra pixel on the right or at the bottom. Sides of 0 count as 1.
    pub fn cover(original: (u32, u32), target: (u32, u32)) -> Self {
        let [original, target] = [original, target].map(|(width_px, height_px)| Size::new(width_px, height_px));
        Self::centred(original, &Assigned { bucket: target, resized: bucket::cover(original, target) })
    }

    /// The crop of an original that is scaled and cut as its bucket says, from the centre.
    pub fn centred(original: Size, assigned: &Assigned) -> Self {
        let Assigned { bucket, resized } = *assigned;
        Self {
            original_width_px: original.width_px,
            original_height_px: original.height_px,
            resized_width_px: resized.width_px,
            resized_height_px: resized.height_px,
            left_px: resized.width_px.saturating_sub(bucket.width_px) / 2,
            top_px: resized.height_px.saturating_sub(bucket.height_px) / 2,
        }
    }

    /// The crop of the mirrored picture that shows the mirror image of what this one shows, `width_px` wide: what was
    /// cropped away on the right is now on the left.
    #[must_use]
    pub fn mirrored(self, width_px: u32) -> Self {
        let left_px = self.resized_width_px.saturating_sub(width_px).saturating_sub(self.left_px);
        Self { left_px, ..self }
    }

    /// The part that a picture of `size` shows, in pixels of an original of `original` (which may be a mask of another
    /// size than the picture): left, top, width, height.
    pub(crate) fn part_of(&self, original: Size, size: Size) -> [f64; 4] {
        let along = |offset: u32, side: u32, original: u32, resized: u32| {
            let scaled = |length: u32| f64::from(length) * f64::from(original) / f64::from(resized.max(1));
            let (start, mut length) = (scaled(offset), scaled(side));
            // Where nothing is cropped away at the end, rounding must not reach beyond it: the resizer would refuse.
            while start + length > f64::from(original) && offset.saturating_add(side) <= resized {
                length = length.next_down();
            }
            (start, length)
        };
        let (left, width) = along(self.left_px, size.width_px, original.width_px, self.resized_width_px);
        let (top, height) = along(self.top_px, size.height_px, original.height_px, self.resized_height_px);
        [left, top, width, height]
    }
}

impl Pixels {
    /// The picture mirrored: left becomes right.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        mirror(self.data.as_chunks_mut::<3>().0, self.width_px as usize);
        self
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
    let crop = Crop::cover(image.dimensions(), (width_px, height_px));
    Ok((fit_crop(image, &crop, Size::new(width_px, height_px))?, crop))
}

/// The part of `image` that `crop` says, as a picture of `size`, scaled as [`fit`](fit()) does.
///
/// # Errors
/// The image has no pixels or is not the crop's original, the size is 0 or beyond the limits of
/// [`decode`](mod@crate::decode), or the crop with that size reaches out of the scaled image.
pub fn fit_crop(image: &RgbImage, crop: &Crop, size: Size) -> Result<Pixels, DataError> {
    let (image_width_px, image_height_px) = image.dimensions();
    let Size { width_px, height_px } = size;
    let is_inside = |offset: u32, side: u32, resized: u32| offset.checked_add(side).is_some_and(|end| end <= resized);
    let is_sensible = image_width_px.min(image_height_px).min(width_px).min(height_px) > 0
        && (crop.original_width_px, crop.original_height_px) == image.dimensions()
        && width_px.max(height_px) <= MAX_SIDE_PX
        && size.area() <= MAX_PIXELS
        && is_inside(crop.left_px, width_px, crop.resized_width_px)
        && is_inside(crop.top_px, height_px, crop.resized_height_px);
    if !is_sensible {
        return Err(DataError::FitSize { image_width_px, image_height_px, width_px, height_px });
    }
    let bytes = resample(image, crop, size).map_err(|cause| DataError::Resize { cause })?;
    let data = bytes.iter().map(|&value| f32::from(value) / 127.5 - 1.0).collect();
    Ok(Pixels { width_px, height_px, data })
}

/// The cropped part of the scaled picture, (height_px, width_px, 3).
///
/// In 8 bits: the resizer's fixed-point arithmetic gives the same bytes on every processor.
fn resample(image: &RgbImage, crop: &Crop, size: Size) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let (source_width, source_height) = image.dimensions();
    let source = TypedImageRef::<U8x3>::from_buffer(source_width, source_height, image.as_raw())?;
    let mut target = TypedImage::<U8x3>::new(size.width_px, size.height_px);
    // The kept part in the original's coordinates. The filter still looks past its edges, as if all had been scaled.
    let [left, top, width, height] = crop.part_of(Size::new(source_width, source_height), size);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(left, top, width, height);
    // Typed: the untyped call compiles every kind of pixel, which takes minutes and gigabytes.
    Resizer::new().resize_typed(&source, &mut target, &options)?;
    Ok(target.pixels().iter().flat_map(|pixel| pixel.0).collect())
}

//! Where the loss counts: a grey picture through the same crop as its picture, at the size of the latents.
//!
//! White is learnt, black is not. As kohya does, masks are averaged by area to the latents' size. How the loss is
//! normalised is the trainer's business.

use std::path::Path;

use image::GrayImage;

use crate::area::area_average;
use crate::bucket::Size;
use crate::decode::{Alpha, decode_with};
use crate::upright::mirror;
use crate::{Crop, DataError};

/// How far the aspect ratio of a mask may be from its picture's: a mask made for a scaled copy has rounded sides.
pub const MAX_RATIO_ERROR: f64 = 0.01;

/// The share of each latent pixel that is learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Width of the latents.
    pub width: u32,
    /// Height of the latents.
    pub height: u32,
    /// (height, width) in [0, 1]: 1 is learnt in full.
    pub data: Vec<f32>,
}

/// Reads a mask from a file: its red channel, as kohya does, so that white, red and grey masks all work.
/// Where the file is transparent, it is black.
///
/// # Errors
/// As [`decode`](crate::decode()).
pub fn read_mask(path: &Path) -> Result<GrayImage, DataError> {
    let rgb = decode_with(path, Alpha::Over([0; 3]))?.rgb;
    Ok(GrayImage::from_fn(rgb.width(), rgb.height(), |x, y| [rgb.get_pixel(x, y).0[0]].into()))
}

impl Mask {
    /// The mask of a picture that is cropped to `size` by `crop`, for latents `downsampling` times smaller (8 for
    /// Stable Diffusion; pixels beyond the last whole latent pixel do not count).
    ///
    /// `grey` may be of another size than the picture if the aspect ratio fits within [`MAX_RATIO_ERROR`].
    /// `path` is what errors name: the mask's file, or the picture whose alpha it is.
    ///
    /// # Errors
    /// The aspect ratio does not fit, or no pixel of the cropped part is learnt at all.
    pub fn new(grey: &GrayImage, crop: &Crop, size: Size, downsampling: u32, path: &Path) -> Result<Self, DataError> {
        let mask = Size::new(grey.width(), grey.height());
        let picture = Size::new(crop.original_width_px, crop.original_height_px);
        // Not a number (a side of 0) fits nothing.
        let fits = (mask.log_ratio() - picture.log_ratio()).abs() <= MAX_RATIO_ERROR.ln_1p();
        if !fits {
            return Err(DataError::MaskSize { path: path.to_owned(), mask, picture });
        }
        let downsampling = downsampling.max(1);
        let (width, height) = (size.width_px / downsampling, size.height_px / downsampling);
        let whole = Size::new(width * downsampling, height * downsampling);
        let row = |y: usize| grey.as_raw()[y * mask.width_px as usize..][..mask.width_px as usize].iter().copied();
        let averages = area_average(
            |y| row(y).map(f32::from).collect(),
            (mask.width_px as usize, mask.height_px as usize),
            crop.part_of(mask, whole),
            (width as usize, height as usize),
        );
        if averages.iter().all(|&average| average <= 0.0) {
            return Err(DataError::MaskEmpty { path: path.to_owned() });
        }
        let data = averages.into_iter().map(|average| (average / 255.0).clamp(0.0, 1.0)).collect();
        Ok(Self { width, height, data })
    }

    /// The weights in the loss, (height, width): `outside_weight` where the mask is black, 1 where it is white, and
    /// in between where it is grey.
    pub fn weights(&self, outside_weight: f32) -> Vec<f32> {
        self.data.iter().map(|&share| outside_weight + (1.0 - outside_weight) * share).collect()
    }

    /// The mask of the mirrored picture.
    #[must_use]
    pub fn mirrored(mut self) -> Self {
        mirror(&mut self.data, self.width as usize);
        self
    }
}

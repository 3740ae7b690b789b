//! A picture: 8-bit RGB pixels, row-major, with at least one pixel.
//!
//! The rounding was checked against diffusers 0.42 `VaeImageProcessor` (`denormalize`, `numpy_to_pil`).

use crate::PictureError;

/// Most pixels a picture may have: 268 million, 0.8 GB.
pub const MAX_PIXELS: u64 = 1 << 28;

/// RGB pixels, 8 bits a channel, three bytes a pixel, rows from the top; never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width_px: u32,
    height_px: u32,
    rgb: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width_px, self.height_px) // not a million bytes
    }
}

impl Picture {
    /// A picture of `rgb`, (height, width, 3) row-major bytes.
    ///
    /// # Errors
    /// If a side is 0, if there are more than [`MAX_PIXELS`], or if `rgb` has another length than the size needs.
    pub fn from_rgb(width_px: u32, height_px: u32, rgb: Vec<u8>) -> Result<Self, PictureError> {
        let expected = num_values(width_px.into(), height_px.into())?;
        if rgb.len() != expected {
            return Err(PictureError::ValueCount { width_px, height_px, expected, found: rgb.len() });
        }
        Ok(Self { width_px, height_px, rgb })
    }

    /// The picture that a model's `data`, (h, w, 3) row-major in [-1, 1], stand for; `size_px` is (width,
    /// height).
    ///
    /// As diffusers does it: x / 2 + 0.5, cut to [0, 1], times 255, rounded (halves to the even neighbour).
    ///
    /// # Errors
    /// As [`Picture::from_rgb`]; and if a value is not a number, which has no colour.
    pub fn from_unit(data: &[f32], size_px: (u32, u32)) -> Result<Self, PictureError> {
        let (width_px, height_px) = size_px;
        if let Some(at) = data.iter().position(|value| value.is_nan()) {
            let row_values = (width_px as usize * 3).max(1);
            return Err(PictureError::NotANumber { x: at % row_values / 3, y: at / row_values });
        }
        let byte = |&value: &f32| ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        Self::from_rgb(width_px, height_px, data.iter().map(byte).collect())
    }

    /// A picture of one colour.
    ///
    /// # Errors
    /// If a side is 0 or there are more than [`MAX_PIXELS`].
    pub fn of_colour(width_px: u32, height_px: u32, colour: [u8; 3]) -> Result<Self, PictureError> {
        let num_pixels = num_values(width_px.into(), height_px.into())? / 3;
        Ok(Self { width_px, height_px, rgb: colour.repeat(num_pixels) })
    }

    /// Width, at least 1.
    pub fn width_px(&self) -> u32 {
        self.width_px
    }

    /// Height, at least 1.
    pub fn height_px(&self) -> u32 {
        self.height_px
    }

    /// All bytes, (height, width, 3) row-major.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// All bytes, for changing them in place; their number stays.
    pub(crate) fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }

    /// The colour at column `x` and row `y`, both from 0 at the top left, or `None` outside.
    pub fn pixel(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width_px || y >= self.height_px {
            return None;
        }
        let at = (y as usize * self.width_px as usize + x as usize) * 3;
        self.rgb.get(at..at + 3)?.try_into().ok()
    }

    /// Mean absolute difference over all values, 0 (equal) to 1 (black against white).
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn mean_abs_difference(&self, other: &Self) -> Result<f64, PictureError> {
        let (left_px, right_px) = ((self.width_px, self.height_px), (other.width_px, other.height_px));
        if left_px != right_px {
            return Err(PictureError::SizesDiffer { left_px, right_px });
        }
        let sum: u64 = self.rgb.iter().zip(&other.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        Ok(sum as f64 / (self.rgb.len() as f64 * 255.0))
    }

    /// Every pixel as a square of `factor` x `factor`: larger, and as sharp as before.
    ///
    /// # Errors
    /// If `factor` is 0 or the result has more than [`MAX_PIXELS`].
    pub fn enlarged(&self, factor: u32) -> Result<Self, PictureError> {
        let (width_px, height_px) =
            (u64::from(self.width_px) * u64::from(factor), u64::from(self.height_px) * u64::from(factor));
        let mut rgb = Vec::with_capacity(num_values(width_px, height_px)?);
        for row in self.rgb.chunks_exact(self.width_px as usize * 3) {
            let start = rgb.len();
            for pixel in row.chunks_exact(3) {
                (0..factor).for_each(|_| rgb.extend_from_slice(pixel));
            }
            let end = rgb.len();
            (1..factor).for_each(|_| rgb.extend_from_within(start..end));
        }
        Self::from_rgb(width_px as u32, height_px as u32, rgb) // both fit: the product is at most MAX_PIXELS
    }
}

/// Bytes of a picture of that size, after checking it.
fn num_values(width_px: u64, height_px: u64) -> Result<usize, PictureError> {
    match width_px.checked_mul(height_px) {
        Some(0) => Err(PictureError::NoPixels { width_px, height_px }),
        Some(num_pixels) if num_pixels <= MAX_PIXELS => Ok(num_pixels as usize * 3),
        _ => Err(PictureError::TooLarge { width_px, height_px }),
    }
}

//! The one door through which pictures come in: limits first, then upright RGB, whatever the file holds.
//!
//! Limits after `image`'s own notes: its decoders allocate what a header asks for and may panic on malicious input.
//! So the header is judged before any pixel is read, and a panic becomes an error.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, RgbaImage};

use crate::DataError;
use crate::truncation::is_truncated;

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Largest width and height, in pixels.
pub const MAX_SIDE_PX: u32 = 16_384;
/// Largest number of pixels of one picture.
pub const MAX_PIXELS: u64 = 64_000_000;
/// Most memory that the decoded pixels of one picture may take, in bytes.
pub const MAX_ALLOC_BYTES: u64 = 256 * 1024 * 1024;

/// What transparency means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpha {
    /// Pixels are laid over this colour (RGB).
    Over([u8; 3]),
    /// It is the mask; pixels are laid over white.
    Mask,
}

/// Whether the file's name ends in jpg, jpeg, png or webp, in any case.
pub fn has_image_extension(path: &Path) -> bool {
    path.extension()
        .is_some_and(|found| ["jpg", "jpeg", "png", "webp"].iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// Reads a picture as 8-bit RGB: turned upright by its EXIF orientation, transparency over white, 16-bit, grey and
/// palette widened or narrowed. The content decides the format: a PNG that is named `.jpg` is read as PNG.
///
/// # Errors
/// The file cannot be read, has another extension or content, is larger than the limits of this module (which are
/// judged by the header, before pixels are read), is cut off, or its decoder fails.
pub fn decode(path: &Path) -> Result<RgbImage, DataError> {
    if !has_image_extension(path) {
        return Err(DataError::ImageExtension { path: path.to_owned() });
    }
    let bytes = read(path)?;
    let Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)) = image::guess_format(&bytes) else {
        return Err(DataError::ImageContent { path: path.to_owned() });
    };
    if is_truncated(&bytes, format) {
        return Err(DataError::ImageTruncated { path: path.to_owned() });
    }
    catch_unwind(AssertUnwindSafe(|| decode_upright(path, &bytes, format)))
        .unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panic").to_owned();
            Err(DataError::ImagePanic { path: path.to_owned(), message })
        })
        .map(over_white)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let fail = |cause| DataError::ImageRead { path: path.to_owned(), cause };
    // Before opening: opening a pipe would wait for ever.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(DataError::ImageNotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(fail)?;
    let file_bytes = file.metadata().map_err(fail)?.len();
    if file_bytes > MAX_FILE_BYTES {
        return Err(DataError::ImageFileSize { path: path.to_owned(), file_bytes });
    }
    let mut bytes = Vec::with_capacity(file_bytes as usize);
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn decode_upright(path: &Path, bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, DataError> {
    let fail = |cause| DataError::ImageDecode { path: path.to_owned(), cause };
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_ALLOC_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fail)?; // reads the header only

    let (width_px, height_px) = decoder.dimensions();
    if width_px.max(height_px) > MAX_SIDE_PX || u64::from(width_px) * u64::from(height_px) > MAX_PIXELS {
        return Err(DataError::ImageDimensions { path: path.to_owned(), width_px, height_px });
    }
    let needed_bytes = decoder.total_bytes();
    if needed_bytes > MAX_ALLOC_BYTES {
        return Err(DataError::ImageMemory { path: path.to_owned(), needed_bytes });
    }
    let orientation = decoder.orientation().map_err(fail)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba: RgbaImage = image.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, alpha] = rgba.get_pixel(x, y).0;
        Rgb([r, g, b].map(|value| blend_over_white(value, alpha)))
    })
}

/// `value * alpha + 255 * (1 - alpha)` with alpha as a share of 255, rounded to nearest.
fn blend_over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

//! The one door through which pictures come in: limits first, then upright RGB, whatever the file holds.
//!
//! Limits after `image`'s own notes: its decoders allocate what a header asks for and may panic on malicious input.
//! So the header is judged before any pixel is read, and a panic becomes an error.

use std::fmt;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{ColorType, ExtendedColorType, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::DataError;
use crate::bucket::Size;
use crate::caught::caught;
use crate::container::Container;
use crate::rgb::{Rgb8, to_rgb8};
use crate::upright::{LARGE_BYTES, turn};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Largest width and height, in pixels.
pub const MAX_SIDE_PX: u32 = 16_384;
/// Largest number of pixels of one picture.
pub const MAX_PIXELS: u64 = 64_000_000;
/// Most memory that decoding one picture may take beside its file, in bytes: the pixels and what the decoder works
/// with. Progressive JPEG and WebP need several times their pixels.
pub const MAX_ALLOC_BYTES: u64 = 256 * 1024 * 1024;
/// Most pixels that the passes of a progressive JPEG may visit in all. Ten passes are usual; a small file may ask for
/// thousands, which would take hours.
pub const MAX_PASS_PIXELS: u64 = 20 * MAX_PIXELS;

/// Most memory for what stands before the pixels of a PNG (a compressed colour profile), in bytes.
const MAX_METADATA_BYTES: u64 = 32 * 1024 * 1024;
const EXTENSIONS: [&str; 8] = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];
const FORMATS: [ImageFormat; 6] =
    [ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Tiff, ImageFormat::WebP];

/// Whether the file's name ends in bmp, gif, jpg, jpeg, png, tif, tiff or webp, in any case.
pub fn has_image_extension(path: &Path) -> bool {
    path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found.eq_ignore_ascii_case(known)))
}

/// What becomes of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpha {
    /// The picture is laid over this colour (red, green, blue).
    Over([u8; 3]),
    /// The picture is laid over white, and its alpha is kept to be the mask of the loss.
    Mask,
}

impl Default for Alpha {
    fn default() -> Self {
        Self::Over([255; 3])
    }
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The upright picture.
    pub rgb: RgbImage,
    /// Its alpha, 255 opaque, if [`Alpha::Mask`] was asked for and some pixel is not opaque.
    pub alpha: Option<GrayImage>,
    /// What was done to it beyond reading.
    pub notes: Vec<Note>,
}

/// Something that was done to a picture and that its owner may not expect. Its `Display` says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Note {
    /// Only the first frame of an animation is used.
    FirstFrame,
    /// Inks (CMYK) became red, green and blue, without a colour profile.
    InksConverted,
    /// More than 8 bits a channel became 8.
    Narrowed,
    /// Transparent pixels were laid over a colour.
    Flattened,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstFrame => "an animation: only its first frame is used",
            Self::InksConverted => "CMYK: converted to RGB without a colour profile",
            Self::Narrowed => "more than 8 bits a channel: narrowed to 8",
            Self::Flattened => "transparent: laid over a colour",
        })
    }
}

/// What a picture's header tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Size of the upright picture.
    pub size: Size,
    /// Whether the file can hold transparent pixels. Whether it does, only decoding tells.
    pub has_alpha: bool,
    /// Whether further frames follow the first.
    pub is_animated: bool,
    /// Memory that decoding takes beside the file, in bytes; an upper bound, at most [`MAX_ALLOC_BYTES`].
    pub needed_bytes: u64,
    /// What decoding will do to it, as far as the header tells.
    pub notes: Vec<Note>,
}

/// Reads a picture as 8-bit RGB: turned upright by its EXIF orientation, transparency over white, 16-bit, grey, palette
/// and CMYK converted, of an animation the first frame. The content decides the format: a PNG that is named `.jpg` is
/// read as PNG.
///
/// # Errors
/// The file cannot be read, has another extension or content, is larger than the limits of this module (which are
/// judged by the header, before pixels are read), is cut off, or its decoder fails.
pub fn decode(path: &Path) -> Result<RgbImage, DataError> {
    Ok(decode_with(path, Alpha::default())?.rgb)
}

/// [`decode`](decode()) with a choice of what becomes of transparency, and with notes on what was done.
///
/// # Errors
/// As [`decode`](decode()).
pub fn decode_with(path: &Path, alpha: Alpha) -> Result<Decoded, DataError> {
    Opened::new(path, read(path)?)?.decode(alpha)
}

/// Reads and judges a picture's header, without decoding pixels.
///
/// # Errors
/// As [`decode`](decode()), as far as the header and the end of the file tell.
pub fn probe(path: &Path) -> Result<Header, DataError> {
    Ok(Opened::new(path, read(path)?)?.header)
}

/// The bytes of a picture's file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let fail = |cause| DataError::ImageRead { path: path.to_owned(), cause };
    let file_bytes = size_on_disk(path)?;
    let mut bytes = Vec::with_capacity(file_bytes as usize);
    File::open(path).map_err(fail)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// The size of a picture's file in bytes, if it may be read at all.
pub(crate) fn size_on_disk(path: &Path) -> Result<u64, DataError> {
    if !has_image_extension(path) {
        return Err(DataError::ImageExtension { path: path.to_owned() });
    }
    let metadata = fs::metadata(path).map_err(|cause| DataError::ImageRead { path: path.to_owned(), cause })?;
    // Before opening: opening a pipe would wait for ever.
    if !metadata.is_file() {
        return Err(DataError::ImageNotAFile { path: path.to_owned() });
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(DataError::ImageFileSize { path: path.to_owned(), file_bytes: metadata.len() });
    }
    Ok(metadata.len())
}

/// A picture whose header was read and judged, and whose pixels were not read yet.
pub(crate) struct Opened {
    path: PathBuf,
    decoder: Box<dyn ImageDecoder>,
    orientation: Orientation,
    pub(crate) header: Header,
}

impl Opened {
    /// Judges the header of a file's content.
    pub(crate) fn new(path: &Path, bytes: Vec<u8>) -> Result<Self, DataError> {
        let Some(format) = image::guess_format(&bytes).ok().filter(|format| FORMATS.contains(format)) else {
            return Err(DataError::ImageContent { path: path.to_owned() });
        };
        caught(|| Self::judge(path, bytes, format))
            .unwrap_or_else(|message| Err(DataError::ImagePanic { path: path.to_owned(), message }))
    }

    fn judge(path: &Path, bytes: Vec<u8>, format: ImageFormat) -> Result<Self, DataError> {
        let fail = |cause| DataError::ImageDecode { path: path.to_owned(), cause };
        let (container, file_bytes) = (Container::read(&bytes, format), bytes.len() as u64);
        if !container.is_whole {
            return Err(DataError::ImageTruncated { path: path.to_owned() });
        }
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_METADATA_BYTES);
        // The bytes move in: a JPEG's decoder makes its own copy, after which there must not be two.
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits.clone());
        let mut decoder: Box<dyn ImageDecoder> = Box::new(reader.into_decoder().map_err(fail)?); // the header only

        let (width_px, height_px) = decoder.dimensions();
        let pixels = u64::from(width_px) * u64::from(height_px);
        if width_px.max(height_px) > MAX_SIDE_PX || pixels > MAX_PIXELS {
            return Err(DataError::ImageDimensions { path: path.to_owned(), width_px, height_px });
        }
        if file_bytes < container.least_bytes {
            return Err(DataError::ImageTruncated { path: path.to_owned() });
        }
        if container.num_passes.saturating_mul(pixels) > MAX_PASS_PIXELS {
            return Err(DataError::ImagePasses { path: path.to_owned(), num_passes: container.num_passes });
        }
        let color = decoder.color_type();
        let is_cmyk = container.is_cmyk
            || matches!(decoder.original_color_type(), ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16);
        let needed_bytes = needed_bytes(&*decoder, &container, format, pixels);
        if needed_bytes > MAX_ALLOC_BYTES {
            return Err(DataError::ImageMemory { path: path.to_owned(), needed_bytes });
        }
        limits.max_alloc = Some(needed_bytes - decoder.total_bytes());
        decoder.set_limits(limits).map_err(fail)?;
        let orientation = decoder.orientation().map_err(fail)?;

        let is_turned = orientation.to_exif() >= 5;
        let size = if is_turned { Size::new(height_px, width_px) } else { Size::new(width_px, height_px) };
        let notes = [
            (container.is_animated, Note::FirstFrame),
            (is_cmyk, Note::InksConverted),
            (color.bytes_per_pixel() > color.channel_count(), Note::Narrowed),
        ];
        let header = Header {
            size,
            has_alpha: color.has_alpha() && container.may_be_transparent,
            is_animated: container.is_animated,
            needed_bytes,
            notes: notes.into_iter().filter(|(is_so, _)| *is_so).map(|(_, note)| note).collect(),
        };
        Ok(Self { path: path.to_owned(), decoder, orientation, header })
    }

    /// Reads the pixels.
    pub(crate) fn decode(self, alpha: Alpha) -> Result<Decoded, DataError> {
        let path = self.path.clone();
        let needed_bytes = self.header.size.area() * 5;
        if alpha == Alpha::Mask && self.header.has_alpha && needed_bytes > MAX_ALLOC_BYTES {
            return Err(DataError::ImageMemory { path, needed_bytes });
        }
        caught(|| self.decode_upright(alpha)).unwrap_or_else(|message| Err(DataError::ImagePanic { path, message }))
    }

    fn decode_upright(self, alpha: Alpha) -> Result<Decoded, DataError> {
        let Self { path, decoder, orientation, header } = self;
        let (width, height) = decoder.dimensions();
        let color: ColorType = decoder.color_type();
        let mut samples = vec![0; decoder.total_bytes() as usize];
        decoder.read_image_boxed(&mut samples).map_err(|cause| DataError::ImageDecode { path: path.clone(), cause })?;

        let unknown = || DataError::ImageContent { path: path.clone() };
        let Rgb8 { mut rgb, alpha: kept, is_transparent } = to_rgb8(samples, color, alpha).ok_or_else(unknown)?;
        let (from_width, from_height) = (width as usize, height as usize);
        turn(rgb.as_chunks_mut::<3>().0, from_width, from_height, orientation);
        let Size { width_px, height_px } = header.size;
        let rgb = RgbImage::from_raw(width_px, height_px, rgb).ok_or_else(unknown)?;
        let kept = kept.and_then(|mut alpha| {
            turn(&mut alpha, from_width, from_height, orientation);
            GrayImage::from_raw(width_px, height_px, alpha)
        });
        let mut notes = header.notes;
        if is_transparent && alpha != Alpha::Mask {
            notes.push(Note::Flattened);
        }
        Ok(Decoded { rgb, alpha: kept, notes })
    }
}

/// Memory that decoding takes beside the file, in bytes: the most that is alive at once, from above.
fn needed_bytes(decoder: &dyn ImageDecoder, container: &Container, format: ImageFormat, pixels: u64) -> u64 {
    let total_bytes = decoder.total_bytes();
    let working_bytes = match format {
        // the frame, which may have another size than the screen it stands on
        ImageFormat::Gif => total_bytes,
        // its own copy of the pixels, with a fourth ink perhaps, and a strip that may be all of them
        ImageFormat::Tiff => total_bytes.saturating_mul(8) / 3 + 1024 * 1024,
        _ => container.working_bytes(pixels),
    };
    let widened = match decoder.color_type().channel_count() {
        1 => pixels * 4,
        2 => pixels * 6,
        _ => 0,
    };
    let turned = pixels * 3 + (pixels * 3).min(LARGE_BYTES as u64) + pixels / 8;
    total_bytes.saturating_add(working_bytes).max(widened).max(turned)
}

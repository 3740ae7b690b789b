//! Whether a picture's file ends before the picture does.
//!
//! The JPEG decoder fills what is missing with grey and reports success, which would be trained on in silence. PNG is
//! left to its decoder, which does report it.

use image::ImageFormat;

pub(crate) fn is_truncated(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Jpeg => !jpeg_has_end(bytes),
        ImageFormat::WebP => !riff_is_whole(bytes),
        _ => false,
    }
}

/// Walks the markers of ITU-T T.81 annex B up to "end of image". A search for the marker's bytes alone would find the
/// one of a thumbnail inside a metadata segment.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut rest = bytes.get(2..).unwrap_or_default(); // after "start of image"
    while let Some((&[first, second], _)) = rest.split_first_chunk::<2>() {
        match (first, second) {
            (0xff, END_OF_IMAGE) => return true,
            // Fill byte, escaped 0xff of the coded data, or a marker without a segment (restart, temporary, start).
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => rest = &rest[2..],
            (0xff, 0xff) => rest = &rest[1..],
            (0xff, _) => {
                let Some(&[high, low]) = rest[2..].first_chunk::<2>() else { return false };
                let length = usize::from(u16::from_be_bytes([high, low])); // counts itself, not the marker
                rest = rest.get(2 + length..).unwrap_or_default();
            }
            _ => rest = &rest[1..], // coded data
        }
    }
    false
}

/// The size in a RIFF header counts what follows its own field, at byte 8.
fn riff_is_whole(bytes: &[u8]) -> bool {
    let Some(&size) = bytes.get(4..8).and_then(|field| field.first_chunk::<4>()) else { return false };
    bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes(size))
}

//! What the structure of a picture's file tells without decoding it: whether it is whole, whether it moves, and what
//! its decoder will need beside the pixels.
//!
//! Checked against ITU-T T.81 annex B (JPEG), the WebP container specification, GIF89a and the PNG specification.

use image::ImageFormat;

/// What was found by walking the file's segments, chunks or blocks. Nothing is allocated by it, whatever they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Container {
    /// Whether the file ends where its picture does, as far as the structure tells. JPEG's decoder fills what is
    /// missing with grey and reports success, which would be trained on in silence.
    pub(crate) is_whole: bool,
    /// Whether there are further pictures in time after the first.
    pub(crate) is_animated: bool,
    /// Whether pixels may be transparent, where the decoder does not tell by itself (GIF).
    pub(crate) may_be_transparent: bool,
    /// Whether a JPEG's four components are inks.
    pub(crate) is_cmyk: bool,
    /// Passes over the picture that decoding takes. A small file may ask for very many.
    pub(crate) num_passes: u64,
    /// What the file has at least if all of its picture is there: each block of a JPEG takes a bit. Less is a huge size
    /// written into a small file.
    pub(crate) least_bytes: u64,
    /// Coefficients that a JPEG's decoder keeps until its last pass, in bytes.
    coefficient_bytes: u64,
    /// What a WebP holds: the largest picture inside, in pixels, and half-bytes a pixel to decode it.
    webp: (u64, u64),
}

impl Container {
    pub(crate) fn read(bytes: &[u8], format: ImageFormat) -> Self {
        let plain = Self {
            is_whole: true,
            is_animated: false,
            may_be_transparent: true,
            is_cmyk: false,
            num_passes: 1,
            least_bytes: 0,
            coefficient_bytes: 0,
            webp: (0, 0),
        };
        match format {
            ImageFormat::Jpeg => jpeg(bytes, plain),
            ImageFormat::WebP => webp(bytes, plain),
            ImageFormat::Gif => gif(bytes, plain),
            ImageFormat::Png => Self { is_animated: png_is_animated(bytes), ..plain },
            _ => plain,
        }
    }

    /// Memory that a JPEG's or WebP's decoder needs beside the pixels it returns, in bytes. `pixels` is the picture's
    /// size as its decoder says. A WebP's decoder believes the header of a picture inside before it compares.
    pub(crate) fn working_bytes(&self, pixels: u64) -> u64 {
        let (inner_pixels, half_bytes_per_pixel) = self.webp;
        let webp_bytes = pixels.max(inner_pixels).saturating_mul(half_bytes_per_pixel) / 2;
        webp_bytes + self.coefficient_bytes
    }
}

/// Walks the markers up to "end of image". A search for the marker's bytes alone would find the one of a thumbnail
/// inside a metadata segment.
fn jpeg(bytes: &[u8], plain: Container) -> Container {
    let mut found = Container { is_whole: false, may_be_transparent: false, num_passes: 0, ..plain };
    let mut frame = JpegFrame::default();
    let mut rest = bytes.get(2..).unwrap_or_default(); // after "start of image"
    while let Some((&[first, second], _)) = rest.split_first_chunk::<2>() {
        match (first, second) {
            (0xff, 0xd9) => {
                found.is_whole = true;
                break;
            }
            // Fill byte, escaped 0xff of the coded data, or a marker without a segment (restart, temporary, start).
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => rest = &rest[2..],
            (0xff, 0xff) => rest = &rest[1..],
            (0xff, marker) => {
                let Some(&[high, low]) = rest[2..].first_chunk::<2>() else { break };
                let length = usize::from(u16::from_be_bytes([high, low])); // counts itself, not the marker
                let segment = rest.get(4..2 + length.max(2)).unwrap_or_default();
                match marker {
                    // start of frame: all but "Huffman table", "extension" and "arithmetic table"
                    0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => frame = JpegFrame::read(marker, segment),
                    0xda => {
                        found.num_passes += 1;
                        let num_in_scan = segment.first().copied().unwrap_or(0);
                        frame.has_partial_scans |= num_in_scan != frame.num_components;
                    }
                    _ => {}
                }
                rest = rest.get(2 + length..).unwrap_or_default();
            }
            // Coded data, up to what may be a marker.
            _ => rest = rest.iter().position(|&byte| byte == 0xff).map_or(&[], |at| &rest[at..]),
        }
    }
    found.least_bytes = frame.num_blocks() / 8;
    found.is_cmyk = frame.num_components == 4;
    found.coefficient_bytes = frame.coefficient_bytes();
    found
}

/// The start of a JPEG's frame, T.81 section B.2.2.
#[derive(Default)]
struct JpegFrame {
    is_progressive: bool,
    /// Whether some scan holds fewer than all components, so that no row is finished before the last scan.
    has_partial_scans: bool,
    width_px: u64,
    height_px: u64,
    num_components: u8,
    /// Blocks of a component in one unit of the scan, summed over the components.
    num_unit_blocks: u64,
    unit_columns: u64,
    unit_rows: u64,
}

impl JpegFrame {
    fn read(marker: u8, segment: &[u8]) -> Self {
        let Some((&[_, h1, h0, w1, w0, num_components], components)) = segment.split_first_chunk::<6>() else {
            return Self::default();
        };
        let samplings =
            components.chunks_exact(3).map(|component| (u64::from(component[1] >> 4), u64::from(component[1] & 15)));
        Self {
            is_progressive: marker == 0xc2,
            has_partial_scans: false,
            width_px: u64::from(u16::from_be_bytes([w1, w0])),
            height_px: u64::from(u16::from_be_bytes([h1, h0])),
            num_components,
            num_unit_blocks: samplings.clone().map(|(columns, rows)| columns * rows).sum(),
            unit_columns: samplings.clone().map(|(columns, _)| columns).max().unwrap_or(1).max(1),
            unit_rows: samplings.map(|(_, rows)| rows).max().unwrap_or(1).max(1),
        }
    }

    /// Two bytes for each coefficient of the whole picture where it takes several scans, else next to nothing.
    fn coefficient_bytes(&self) -> u64 {
        if !self.is_progressive && !self.has_partial_scans {
            return 0;
        }
        self.num_blocks() * 64 * 2
    }

    /// Blocks of 8 x 8 samples in all components.
    fn num_blocks(&self) -> u64 {
        let units = self.width_px.div_ceil(8 * self.unit_columns) * self.height_px.div_ceil(8 * self.unit_rows);
        units * self.num_unit_blocks
    }
}

/// Walks the RIFF chunks. The memory is that of the `image-webp` decoder: the planes of a lossy picture take 3
/// half-bytes a pixel, its alpha 10, a lossless picture 8, and the canvas and frame of an animation 16 more.
fn webp(bytes: &[u8], plain: Container) -> Container {
    let riff_bytes = bytes.get(4..8).and_then(|field| field.first_chunk()).map_or(u64::MAX, |&f| u64::from(le32(f)));
    let mut found = Container { is_whole: bytes.len() as u64 >= riff_bytes.saturating_add(8), ..plain };
    let (mut inner_pixels, mut planes, mut alpha, mut lossless) = (0, 0, 0, 0);
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((&[id0, id1, id2, id3, size @ ..], body)) = rest.split_first_chunk::<8>() {
        let size = le32(size) as usize;
        let at = |offset: usize| body.get(offset).copied().map_or(0, u64::from);
        let mut skipped = size.saturating_add(size % 2);
        match &[id0, id1, id2, id3] {
            b"ANMF" => {
                found.is_animated = true;
                skipped = 16; // its own fields; then come the chunks of the frame
            }
            b"VP8X" => found.is_animated |= at(0) & 2 != 0,
            b"ALPH" => alpha = 10,
            b"VP8 " => {
                planes = 3;
                let side = |offset| (at(offset) | at(offset + 1) << 8) & 0x3fff;
                inner_pixels = inner_pixels.max(side(6) * side(8));
            }
            b"VP8L" => {
                lossless = 8;
                let sides = at(1) | at(2) << 8 | at(3) << 16 | at(4) << 24;
                inner_pixels = inner_pixels.max(((sides & 0x3fff) + 1) * ((sides >> 14 & 0x3fff) + 1));
            }
            _ => {}
        }
        rest = body.get(skipped..).unwrap_or_default();
    }
    let animation = if found.is_animated { 16 } else { 0 };
    found.webp = (inner_pixels, planes + alpha + lossless + animation);
    found
}

fn le32(field: [u8; 4]) -> u32 {
    u32::from_le_bytes(field)
}

/// Walks the blocks up to the second picture or the trailer.
fn gif(bytes: &[u8], plain: Container) -> Container {
    const COLOUR_TABLE: u8 = 0x80;
    let table_bytes = |flags: u8| if flags & COLOUR_TABLE == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut found = Container { may_be_transparent: false, ..plain };
    let mut rest = bytes.get(13..).unwrap_or_default();
    rest = rest.get(table_bytes(bytes.get(10).copied().unwrap_or(0))..).unwrap_or_default();
    let mut num_pictures = 0;
    while let Some((&kind, body)) = rest.split_first() {
        match kind {
            0x21 => {
                // a graphic control before the first picture says whether that has a transparent colour
                let is_control = body.first() == Some(&0xf9);
                found.may_be_transparent |= is_control && num_pictures == 0 && body.get(2).is_some_and(|f| f & 1 != 0);
                rest = after_gif_blocks(body.get(1..).unwrap_or_default());
            }
            0x2c => {
                num_pictures += 1;
                if num_pictures == 2 {
                    found.is_animated = true;
                    break;
                }
                let table_bytes = table_bytes(body.get(8).copied().unwrap_or(0));
                rest = after_gif_blocks(body.get(10 + table_bytes..).unwrap_or_default()); // 9 fields, 1 code size
            }
            _ => break,
        }
    }
    found
}

/// What follows a chain of sub-blocks, each its length and that many bytes, up to the empty one.
fn after_gif_blocks(mut rest: &[u8]) -> &[u8] {
    while let Some((&length, body)) = rest.split_first() {
        rest = body.get(usize::from(length)..).unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    rest
}

/// Whether there is an animation control chunk, which stands before the pixels.
fn png_is_animated(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((&head, body)) = rest.split_first_chunk::<8>() {
        let [l0, l1, l2, l3, id @ ..] = head;
        match &id {
            b"acTL" => return true,
            b"IDAT" => return false,
            _ => {}
        }
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        rest = body.get(length.saturating_add(4)..).unwrap_or_default(); // 4: its checksum
    }
    false
}

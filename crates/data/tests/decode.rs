//! The door for pictures: what it makes of every kind of file, and what it refuses, how fast and in which words.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::time::Instant;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, GrayImage, ImageBuffer, ImageFormat, LumaA, Rgb, Rgba, RgbaImage};
use loralei_data::{DataError, RgbImage, decode};

/// A folder for one test's files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn decode(&self, name: &str, bytes: &[u8]) -> Result<RgbImage, DataError> {
        decode(&self.put(name, bytes))
    }
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// PNG bytes by the encoder below `image`, for what `image` does not write.
fn png(width: u32, height: u32, set_up: impl FnOnce(&mut png::Encoder<'_, &mut Vec<u8>>), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    set_up(&mut encoder);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
    writer.finish().unwrap();
    bytes
}

/// A header that promises `width` x `height` pixels, and no pixels.
fn png_promise(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 0, 0, 0, 0]).unwrap();
    bytes
}

/// Noise-like content that no format compresses to nothing.
fn busy(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        [x * x * 7 + y * 3, x * y * 5 + y * y, x * 13 + y * x * 11].map(|v| v as u8).into()
    })
}

const RED: [u8; 3] = [200, 30, 30];
const GREEN: [u8; 3] = [30, 180, 40];
const BLUE: [u8; 3] = [30, 40, 190];
const WHITE: [u8; 3] = [240, 240, 240];

/// Red, green / blue, white in blocks of 24 x 16 pixels: no symmetry, and not square.
fn quadrants() -> RgbImage {
    RgbImage::from_fn(48, 32, |x, y| {
        Rgb(match (x < 24, y < 16) {
            (true, true) => RED,
            (false, true) => GREEN,
            (true, false) => BLUE,
            (false, false) => WHITE,
        })
    })
}

#[track_caller]
fn assert_quadrants(image: &RgbImage, expected: [[u8; 3]; 4], what: &str) {
    let (w, h) = image.dimensions();
    let centres = [(w / 4, h / 4), (3 * w / 4, h / 4), (w / 4, 3 * h / 4), (3 * w / 4, 3 * h / 4)];
    for ((x, y), expected) in centres.into_iter().zip(expected) {
        let found = image.get_pixel(x, y).0;
        let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(worst <= 6, "{what}: {found:?} at ({x}, {y}), expected {expected:?}");
    }
}

/// A TIFF block with one entry: tag 0x0112 (orientation), type 3 (short), count 1.
fn exif_block(orientation: u8, is_big_endian: bool) -> Vec<u8> {
    if is_big_endian {
        [b"MM\0\x2a\0\0\0\x08\0\x01".as_slice(), &[1, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0], &[0; 4]].concat()
    } else {
        [b"II\x2a\0\x08\0\0\0\x01\0".as_slice(), &[0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0], &[0; 4]].concat()
    }
}

/// `jpeg` with an APP1 segment right after its first marker.
fn with_app1(jpeg: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, payload, &jpeg[2..]].concat()
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(image).unwrap();
    bytes
}

/// EXIF 2.3, tag 0x0112: which side of the scene row 0 and column 0 of the file are.
/// The file holds red, green / blue, white; what follows is the upright picture.
const UPRIGHT: [(u8, bool, [[u8; 3]; 4]); 8] = [
    (1, false, [RED, GREEN, BLUE, WHITE]), // row 0 top, column 0 left
    (2, false, [GREEN, RED, WHITE, BLUE]), // top, right
    (3, false, [WHITE, BLUE, GREEN, RED]), // bottom, right
    (4, false, [BLUE, WHITE, RED, GREEN]), // bottom, left
    (5, true, [RED, BLUE, GREEN, WHITE]),  // left, top
    (6, true, [BLUE, RED, WHITE, GREEN]),  // right, top
    (7, true, [WHITE, GREEN, BLUE, RED]),  // right, bottom
    (8, true, [GREEN, WHITE, RED, BLUE]),  // left, bottom
];

#[test]
fn all_eight_exif_orientations_of_a_jpeg_are_turned_upright() {
    let files = Files::new();
    let plain = jpeg(&quadrants());
    for (orientation, is_turned, expected) in UPRIGHT {
        for is_big_endian in [false, true] {
            let payload = [b"Exif\0\0".as_slice(), &exif_block(orientation, is_big_endian)].concat();
            let image = files.decode("a.jpg", &with_app1(&plain, &payload)).unwrap();
            assert_eq!(image.dimensions(), if is_turned { (32, 48) } else { (48, 32) });
            assert_quadrants(&image, expected, &format!("orientation {orientation}, big endian {is_big_endian}"));
        }
    }
}

#[test]
fn exif_in_a_png_turns_it_too() {
    let mut bytes = Vec::new();
    let mut info = png::Info::with_size(48, 32);
    info.color_type = png::ColorType::Rgb;
    info.bit_depth = png::BitDepth::Eight;
    info.exif_metadata = Some(exif_block(6, true).into());
    let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
    writer.write_image_data(quadrants().as_raw()).unwrap();
    writer.finish().unwrap();
    let image = Files::new().decode("a.png", &bytes).unwrap();
    assert_quadrants(&image, UPRIGHT[5].2, "PNG, orientation 6");
}

#[test]
fn orientations_that_do_not_exist_change_nothing() {
    let files = Files::new();
    for orientation in [0, 9, 255] {
        let payload = [b"Exif\0\0".as_slice(), &exif_block(orientation, false)].concat();
        let image = files.decode("a.jpg", &with_app1(&jpeg(&quadrants()), &payload)).unwrap();
        assert_quadrants(&image, UPRIGHT[0].2, "no orientation");
    }
}

#[test]
fn lossless_formats_keep_every_pixel_whatever_their_name() {
    let files = Files::new();
    let image = busy(37, 23);
    for (name, format) in [
        ("a.png", ImageFormat::Png),
        ("a.WebP", ImageFormat::WebP),
        ("png_named.jpg", ImageFormat::Png),
        ("webp_named.PNG", ImageFormat::WebP),
    ] {
        assert_eq!(files.decode(name, &encoded(image.clone(), format)).unwrap(), image, "{name}");
    }
}

#[test]
fn transparency_lies_over_white() {
    let rgba = RgbaImage::from_fn(4, 2, |x, y| {
        Rgba([200, 100, (x * 20) as u8, [0, 51, 204, 255][x as usize] - y as u8 * (x == 3) as u8 * 255])
    });
    let files = Files::new();
    for (name, format) in [("a.png", ImageFormat::Png), ("a.webp", ImageFormat::WebP)] {
        let image = files.decode(name, &encoded(rgba.clone(), format)).unwrap();
        // 255 + (value - 255) * alpha, alpha 0, 0.2, 0.8, 1
        let row: Vec<[u8; 3]> = (0..4).map(|x| image.get_pixel(x, 0).0).collect();
        assert_eq!(row, [[255, 255, 255], [244, 224, 208], [211, 131, 83], [200, 100, 60]], "{name}");
        assert_eq!(image.get_pixel(3, 1).0, [255, 255, 255], "{name}");
    }
    let grey = ImageBuffer::from_fn(2, 1, |x, _| LumaA([100_u8, if x == 0 { 51 } else { 255 }]));
    let image = files.decode("grey.png", &encoded(grey, ImageFormat::Png)).unwrap();
    assert_eq!(image.as_raw(), &[224, 224, 224, 100, 100, 100]);
}

#[test]
fn sixteen_bits_grey_and_palettes_become_eight_bit_rgb() {
    let files = Files::new();
    let grey8 = GrayImage::from_fn(3, 1, |x, _| [x as u8 * 100 + 7].into());
    assert_eq!(
        files.decode("a.png", &encoded(grey8, ImageFormat::Png)).unwrap().as_raw(),
        &[7, 7, 7, 107, 107, 107, 207, 207, 207]
    );

    // v * 257 is the 16-bit value of v
    let grey16 = ImageBuffer::from_fn(3, 1, |x, _| image::Luma([[0_u16, 77 * 257, 65_535][x as usize]]));
    assert_eq!(
        files.decode("b.png", &encoded(grey16, ImageFormat::Png)).unwrap().as_raw(),
        &[0, 0, 0, 77, 77, 77, 255, 255, 255]
    );

    let rgb16 = ImageBuffer::from_fn(2, 1, |x, _| Rgb([200_u16 * 257, x as u16 * 90 * 257, 65_535]));
    assert_eq!(
        files.decode("c.png", &encoded(rgb16, ImageFormat::Png)).unwrap().as_raw(),
        &[200, 0, 255, 200, 90, 255]
    );

    let palette = |encoder: &mut png::Encoder<'_, &mut Vec<u8>>| {
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Two);
        encoder.set_palette(vec![10, 20, 30, 250, 0, 0, 0, 0, 250]);
        encoder.set_trns(vec![255, 255, 51]);
    };
    let image = files.decode("d.png", &png(3, 1, palette, &[0b00_01_10_00])).unwrap();
    assert_eq!(image.as_raw(), &[10, 20, 30, 250, 0, 0, 204, 204, 254]);

    let bits = |encoder: &mut png::Encoder<'_, &mut Vec<u8>>| {
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
    };
    let image = files.decode("e.png", &png(4, 1, bits, &[0b1001_0000])).unwrap();
    assert_eq!(image.as_raw(), &[255, 255, 255, 0, 0, 0, 0, 0, 0, 255, 255, 255]);
}

#[test]
fn cut_off_files_are_refused_wherever_they_are_cut() {
    let files = Files::new();
    let image = busy(61, 47);
    for (name, whole) in [
        ("a.jpg", jpeg(&image)),
        ("a.png", encoded(image.clone(), ImageFormat::Png)),
        ("a.webp", encoded(image.clone(), ImageFormat::WebP)),
    ] {
        assert_eq!(files.decode(name, &whole).unwrap().dimensions(), (61, 47));
        let is_png = name == "a.png";
        for part in 1..32 {
            // The last 12 bytes of a PNG are its end mark: nothing is missing without it.
            let length = (whole.len() - if is_png { 12 } else { 0 }) * part / 32;
            let error = files.decode(name, &whole[..length]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn the_end_mark_of_a_thumbnail_does_not_make_a_cut_off_jpeg_whole() {
    let files = Files::new();
    let thumbnail = jpeg(&quadrants());
    let whole = with_app1(&jpeg(&busy(61, 47)), &[b"Exif\0\0".as_slice(), &exif_block(1, false), &thumbnail].concat());
    assert!(files.decode("a.jpg", &whole).is_ok());
    let error = files.decode("a.jpg", &whole[..whole.len() - 700]).unwrap_err();
    assert!(matches!(error, DataError::ImageTruncated { .. }), "{error:?}");
    // What follows the end (other pictures of a multi-picture file, padding) does no harm.
    assert!(files.decode("a.jpg", &[whole.as_slice(), &[0; 100]].concat()).is_ok());
}

#[test]
fn what_is_no_picture_is_refused_by_content_and_by_name() {
    let files = Files::new();
    for bytes in [b"just text, named like a picture".as_slice(), b"", b"P6 1 1 255 \x01\x02\x03", b"\xff\xd8", b"qoif"]
    {
        let error = files.decode("a.jpg", bytes).unwrap_err();
        assert!(matches!(error, DataError::ImageContent { .. }), "{error:?}");
        assert!(error.to_string().contains("a.jpg") && error.hint().is_some());
    }
    let png = encoded(quadrants(), ImageFormat::Png);
    for name in ["a.heic", "a", "png", "a.png.txt"] {
        assert!(matches!(files.decode(name, &png), Err(DataError::ImageExtension { .. })), "{name}");
    }
    assert!(matches!(decode(&files.0.path().join("none.png")), Err(DataError::ImageRead { .. })));
    let folder = files.0.path().join("folder.png");
    fs::create_dir(&folder).unwrap();
    assert!(matches!(decode(&folder), Err(DataError::ImageNotAFile { .. })));
}

#[test]
fn bombs_are_refused_by_their_header() {
    use png::{BitDepth, ColorType};
    let files = Files::new();
    for (width, height) in [(50_000, 50_000), (16_385, 1), (1, 2_000_000_000), (8_001, 8_000)] {
        let path = files.put("bomb.png", &png_promise(width, height, ColorType::Grayscale, BitDepth::Eight));
        let started = Instant::now();
        let error = decode(&path).unwrap_err();
        let elapsed_ms = started.elapsed().as_millis();
        assert!(matches!(error, DataError::ImageDimensions { .. }), "{width} x {height}: {error:?}");
        assert!(error.to_string().contains(&format!("{width} x {height}")), "{error}");
        assert!(elapsed_ms < 50, "{width} x {height} took {elapsed_ms} ms");
    }
    // Few enough pixels, but 8 bytes each.
    let error = files.decode("deep.png", &png_promise(8_000, 8_000, ColorType::Rgba, BitDepth::Sixteen)).unwrap_err();
    assert!(matches!(error, DataError::ImageMemory { needed_bytes: 512_000_000, .. }), "{error:?}");

    // The size of a JPEG stands in its frame header, behind marker 0xc0.
    let mut jpeg = jpeg(&quadrants());
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let error = files.decode("bomb.jpg", &jpeg).unwrap_err();
    assert!(matches!(error, DataError::ImageDimensions { width_px: 65_535, height_px: 65_535, .. }), "{error:?}");
}

#[test]
fn files_over_64_mib_are_not_read() {
    let files = Files::new();
    let path = files.put("a.png", &encoded(quadrants(), ImageFormat::Png));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 * 1024 * 1024 + 1).unwrap();
    assert!(matches!(decode(&path), Err(DataError::ImageFileSize { file_bytes: 67_108_865, .. })));
}

#[test]
fn flipped_bits_give_a_picture_or_an_error_never_a_panic() {
    let files = Files::new();
    let image = busy(40, 30);
    for (name, whole) in [
        ("a.jpg", jpeg(&image)),
        ("a.png", encoded(image.clone(), ImageFormat::Png)),
        ("a.webp", encoded(image.clone(), ImageFormat::WebP)),
    ] {
        for at in (0..whole.len()).step_by(whole.len() / 97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            if let Err(error) = files.decode(name, &bytes) {
                assert!(error.to_string().contains(name) && !error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

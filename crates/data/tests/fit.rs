//! Scaling and cropping: the geometry, and that the pixels are where the geometry says.

use loralei_data::{Crop, DataError, RgbImage, Size, fit, fit_crop};
use proptest::prelude::*;

/// Back to 8 bits.
fn bytes(data: &[f32]) -> Vec<u8> {
    data.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect()
}

/// A picture without any symmetry, sharp edges included.
fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| [x * 37 + y * 11, x * 5 + y * 29, x * x + 3 * y].map(|v| v as u8).into())
}

#[test]
fn an_image_of_the_right_size_keeps_its_pixels_exactly() {
    let image = pattern(24, 16);
    let (pixels, crop) = fit(&image, 24, 16).unwrap();
    let expected: Vec<f32> = image.as_raw().iter().map(|&value| f32::from(value) / 127.5 - 1.0).collect();
    assert_eq!(pixels.data, expected);
    assert_eq!((pixels.width_px, pixels.height_px, crop.left_px, crop.top_px), (24, 16, 0, 0));
}

#[test]
fn values_span_minus_one_to_one() {
    let image = RgbImage::from_fn(2, 1, |x, _| if x == 0 { [0, 255, 51].into() } else { [204, 0, 255].into() });
    let (pixels, _) = fit(&image, 2, 1).unwrap();
    for (found, expected) in pixels.data.iter().zip([-1.0, 1.0, -0.6, 0.6, -1.0, 1.0]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn cropping_alone_keeps_pixels_exactly_from_the_centre() {
    let image = pattern(31, 16);
    let (pixels, crop) = fit(&image, 16, 16).unwrap();
    assert_eq!((crop.resized_width_px, crop.resized_height_px, crop.left_px, crop.top_px), (31, 16, 7, 0));
    let expected = image::imageops::crop_imm(&image, 7, 0, 16, 16).to_image().into_raw();
    assert_eq!(bytes(&pixels.data), expected);

    let (pixels, crop) = fit(&image, 31, 9).unwrap();
    assert_eq!((crop.left_px, crop.top_px), (0, 3));
    assert_eq!(bytes(&pixels.data), image::imageops::crop_imm(&image, 0, 3, 31, 9).to_image().into_raw());
}

/// Pillow 13. Two calls, because Pillow scales rows before columns and we columns before rows; in between values beyond
/// 8 bits are cut off, so that at sharp edges the two orders differ by a few steps (and neither is the exact value).
///
/// ```python
/// y, x = np.mgrid[:h, :w]
/// image = Image.fromarray(np.stack([(x*37+y*11)%256, (x*5+y*29)%256, (x*x+3*y)%256], -1).astype(np.uint8))
/// image = image.resize((w, rh), Image.LANCZOS).resize((rw, rh), Image.LANCZOS)
/// np.asarray(image.crop((left, top, left + W, top + H))).reshape(-1)
/// ```
#[test]
fn pixels_equal_pillows_lanczos_followed_by_a_crop() {
    for (expected_crop, (target_width, target_height), expected) in [
        (crop((23, 17), (11, 8), (2, 0)), (6, 8), PILLOW_SMALLER),
        (crop((7, 10), (12, 17), (0, 4)), (12, 9), PILLOW_LARGER),
    ] {
        let (width, height) = (expected_crop.original_width_px, expected_crop.original_height_px);
        let (pixels, crop) = fit(&pattern(width, height), target_width, target_height).unwrap();
        assert_eq!(crop, expected_crop);
        let found = bytes(&pixels.data);
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(worst <= 1, "{width} x {height}: {worst} steps of 255 apart");
    }
}

fn crop(original: (u32, u32), resized: (u32, u32), offset: (u32, u32)) -> Crop {
    Crop {
        original_width_px: original.0,
        original_height_px: original.1,
        resized_width_px: resized.0,
        resized_height_px: resized.1,
        left_px: offset.0,
        top_px: offset.1,
    }
}

#[test]
fn fine_detail_is_averaged_not_aliased() {
    let stripes = RgbImage::from_fn(256, 192, |x, _| if x % 2 == 0 { [0; 3].into() } else { [255; 3].into() });
    let (pixels, _) = fit(&stripes, 32, 24).unwrap();
    assert!(pixels.data.iter().all(|value| value.abs() < 0.05), "a grey of 127 or 128 was expected everywhere");
}

#[test]
fn extremely_long_images_fit_without_a_huge_intermediate() {
    let line = RgbImage::from_fn(16_384, 1, |x, _| if x < 8_192 { [10; 3].into() } else { [240; 3].into() });
    let (pixels, crop) = fit(&line, 512, 512).unwrap(); // whole, it would have 4.3 billion pixels
    assert_eq!((crop.resized_width_px, crop.left_px), (16_384 * 512, (16_384 * 512 - 512) / 2));
    let row = bytes(&pixels.data[..512 * 3]);
    assert!(row[0] < 60 && row[511 * 3] > 190, "the middle of the line, dark left and light right");
}

#[test]
fn sizes_that_make_no_sense_are_errors() {
    for (image, width, height) in
        [((0, 0), 8, 8), ((5, 4), 0, 8), ((5, 4), 8, 0), ((5, 4), 8, 16_385), ((5, 4), 9_000, 9_000)]
    {
        let error = fit(&RgbImage::new(image.0, image.1), width, height).unwrap_err();
        assert!(matches!(error, DataError::FitSize { .. }), "{error:?}");
    }
}

#[test]
fn a_crop_of_another_picture_or_beyond_the_scaled_one_is_an_error() {
    let image = pattern(30, 20);
    let crop = Crop::cover((30, 20), (10, 10));
    for (crop, size) in [
        (Crop::cover((31, 20), (10, 10)), Size::new(10, 10)),
        (crop, Size::new(16, 10)),
        (Crop { left_px: u32::MAX, ..crop }, Size::new(10, 10)),
    ] {
        assert!(matches!(fit_crop(&image, &crop, size), Err(DataError::FitSize { .. })), "{crop:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    /// Scaling is in floating point: the end of the part must not be rounded to beyond the end of the picture.
    #[test]
    fn every_picture_fits_every_size_mirrored_or_not(
        w in 1_u32..1_500, h in 1_u32..60, tw in 1_u32..900, th in 1_u32..60, is_turned: bool,
    ) {
        let (w, h, tw, th) = if is_turned { (h, w, th, tw) } else { (w, h, tw, th) };
        let image = RgbImage::from_pixel(w, h, [9, 90, 200].into());
        let crop = Crop::cover((w, h), (tw, th));
        for crop in [crop, crop.mirrored(tw)] {
            let found = fit_crop(&image, &crop, Size::new(tw, th));
            prop_assert!(found.as_ref().is_ok_and(|pixels| bytes(&pixels.data[..3]) == [9, 90, 200]), "{:?}", found.err());
        }
    }
}

proptest! {
    #[test]
    fn the_scaled_image_covers_the_target_tightly_and_the_crop_is_centred(
        w in 1_u32..=16_384, h in 1_u32..=16_384, tw in 1_u32..=2_048, th in 1_u32..=2_048,
    ) {
        let crop = Crop::cover((w, h), (tw, th));
        prop_assert_eq!((crop.original_width_px, crop.original_height_px), (w, h));
        let (rw, rh) = (crop.resized_width_px, crop.resized_height_px);
        prop_assert!(rw >= tw && rh >= th, "covers");
        prop_assert!(rw == tw || rh == th, "tightly");
        // One scale for both sides: rw / w == rh / h, up to rounding the side that is not exact.
        let scale = (f64::from(tw) / f64::from(w)).max(f64::from(th) / f64::from(h));
        prop_assert!((f64::from(rw) - f64::from(w) * scale).abs() <= 0.5 + 1e-6);
        prop_assert!((f64::from(rh) - f64::from(h) * scale).abs() <= 0.5 + 1e-6);
        let (right, bottom) = (rw - tw - crop.left_px, rh - th - crop.top_px);
        prop_assert!(right - crop.left_px <= 1 && bottom - crop.top_px <= 1, "the odd pixel goes right and down");
    }

    /// The value of a pixel is its place in the original, so every pixel of the result tells where it came from.
    #[test]
    fn every_pixel_comes_from_where_the_crop_says(
        w in 40_u32..200, h in 40_u32..200, tw in 8_u32..100, th in 8_u32..100,
    ) {
        let image = RgbImage::from_fn(w, h, |x, y| [x as u8, y as u8, 200 - x as u8].into());
        let (pixels, crop) = fit(&image, tw, th).unwrap();
        let found = bytes(&pixels.data);
        let place = |at: u32, offset: u32, resized: u32, original: u32| {
            (f64::from(at + offset) + 0.5) * f64::from(original) / f64::from(resized) - 0.5
        };
        // The filter is cut off at the border of the original, where a ramp is bent: look at the inside.
        let inside = |value: f64, original: u32, resized: u32| {
            let margin = 3.0 * (f64::from(original) / f64::from(resized)).max(1.0) + 1.0;
            value > margin && value < f64::from(original) - margin
        };
        for y in 0..th {
            for x in 0..tw {
                let from_x = place(x, crop.left_px, crop.resized_width_px, w);
                let from_y = place(y, crop.top_px, crop.resized_height_px, h);
                if inside(from_x, w, crop.resized_width_px) && inside(from_y, h, crop.resized_height_px) {
                    let pixel = &found[((y * tw + x) * 3) as usize..][..3];
                    for (value, expected) in pixel.iter().zip([from_x, from_y, 200.0 - from_x]) {
                        prop_assert!((f64::from(*value) - expected).abs() <= 1.6, "({}, {}): {} {}", x, y, value, expected);
                    }
                }
            }
        }
    }
}

#[rustfmt::skip]
const PILLOW_SMALLER: &[u8] = &[
    203, 41, 24, 94, 51, 48, 58, 62, 81, 178, 72, 119, 168, 82, 191, 38, 93, 144, 215, 99, 30, 101, 108, 54, 85,
    119, 87, 196, 128, 125, 108, 138, 197, 61, 149, 150, 197, 171, 37, 46, 189, 61, 124, 198, 94, 218, 211, 132, 76,
    223, 204, 86, 234, 157, 136, 193, 43, 54, 168, 67, 163, 194, 100, 191, 106, 138, 57, 78, 210, 124, 99, 162, 82,
    46, 49, 78, 23, 73, 193, 40, 106, 144, 47, 144, 52, 56, 216, 160, 66, 171, 41, 88, 55, 116, 107, 79, 212, 114,
    112, 78, 123, 152, 77, 133, 214, 195, 146, 77, 57, 156, 62, 155, 164, 86, 174, 179, 119, 42, 202, 160, 118, 214,
    219, 208, 214, 57, 64, 214, 68, 185, 231, 92, 185, 211, 125, 49, 127, 166, 153, 154, 225, 183, 114, 69,
];

#[rustfmt::skip]
const PILLOW_LARGER: &[u8] = &[
    20, 62, 6, 32, 63, 6, 58, 67, 7, 82, 70, 8, 101, 73, 10, 124, 76, 13, 144, 78, 17, 167, 81, 21, 185, 84, 25,
    210, 87, 32, 242, 91, 39, 255, 92, 43, 27, 80, 8, 39, 81, 8, 65, 85, 9, 89, 88, 10, 108, 91, 12, 131, 94, 15,
    151, 96, 19, 174, 99, 23, 192, 102, 27, 217, 105, 34, 245, 109, 41, 255, 110, 45, 33, 96, 10, 45, 97, 10, 71,
    101, 11, 95, 104, 12, 114, 107, 14, 137, 110, 17, 156, 112, 21, 178, 115, 25, 208, 118, 29, 220, 121, 36, 198,
    125, 43, 179, 126, 47, 40, 114, 12, 52, 115, 12, 78, 119, 13, 102, 122, 14, 121, 125, 16, 144, 128, 19, 162,
    130, 23, 182, 133, 27, 237, 136, 31, 221, 139, 38, 91, 143, 45, 1, 144, 49, 47, 131, 14, 59, 132, 14, 85, 136,
    15, 109, 139, 16, 128, 142, 18, 151, 145, 21, 169, 147, 25, 189, 150, 29, 244, 153, 33, 220, 156, 40, 73, 160,
    47, 0, 161, 51, 53, 147, 15, 65, 148, 15, 91, 152, 16, 115, 155, 17, 134, 158, 19, 157, 161, 22, 174, 163, 26,
    194, 166, 30, 254, 169, 34, 239, 172, 41, 98, 176, 48, 0, 177, 52, 60, 165, 17, 72, 166, 17, 98, 170, 18, 122,
    173, 19, 141, 176, 21, 164, 178, 24, 181, 182, 28, 201, 185, 32, 255, 183, 36, 248, 182, 43, 105, 185, 50, 6,
    188, 54, 66, 179, 19, 78, 180, 19, 104, 184, 20, 128, 187, 21, 147, 190, 23, 168, 193, 26, 192, 194, 30, 213,
    197, 34, 232, 209, 38, 189, 224, 45, 83, 228, 52, 18, 228, 56, 73, 193, 21, 85, 194, 21, 111, 198, 22, 135, 201,
    23, 154, 204, 25, 170, 207, 28, 213, 208, 32, 234, 211, 36, 143, 226, 40, 28, 244, 47, 23, 249, 54, 49, 248, 58,
];

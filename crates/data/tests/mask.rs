//! Masks: where their pixels end up among the latents, and which are refused.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::path::Path;

use loralei_data::{
    Alpha, Assigned, Crop, DataError, GrayImage, Mask, RgbImage, Size, decode_with, fit_crop, read_mask,
};
use proptest::prelude::*;

fn mask(grey: &GrayImage, picture: (u32, u32), size: (u32, u32)) -> Result<Mask, DataError> {
    Mask::new(grey, &Crop::cover(picture, size), Size::new(size.0, size.1), 8, Path::new("a/mask.png"))
}

#[test]
fn a_mask_is_averaged_over_the_pixels_of_each_latent_pixel() {
    // 24 x 16 pixels, 3 x 2 latent pixels; white in 0..12 x 0..6, and half grey in the last latent pixel
    let grey = GrayImage::from_fn(24, 16, |x, y| {
        [if x < 12 && y < 6 {
            255
        } else if x >= 16 && y >= 8 {
            102
        } else {
            0
        }]
        .into()
    });
    let mask = mask(&grey, (24, 16), (24, 16)).unwrap();
    assert_eq!((mask.width, mask.height), (3, 2));
    let expected = [48.0 / 64.0, 24.0 / 64.0, 0.0, 0.0, 0.0, 0.4];
    for (found, expected) in mask.data.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{:?}", mask.data);
    }
    let weights = mask.weights(0.1);
    for (found, expected) in weights.iter().zip([0.775, 0.4375, 0.1, 0.1, 0.1, 0.46]) {
        assert!((found - expected).abs() < 1e-6, "{weights:?}");
    }
}

#[test]
fn a_mask_is_cropped_as_its_picture_is() {
    // 100 x 40 to 64 x 64: scaled to 160 x 64, 48 columns cropped on either side: columns 30 to 70 of the original
    let grey = GrayImage::from_fn(100, 40, |x, _| [if (30..50).contains(&x) { 255 } else { 0 }].into());
    let found = mask(&grey, (100, 40), (64, 64)).unwrap();
    assert_eq!(found.data, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0].repeat(8));
    let mirrored = found.mirrored();
    assert_eq!(mirrored.data, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0].repeat(8));
}

#[test]
fn a_mask_of_another_size_is_scaled_to_its_picture() {
    let of = |width: u32, height: u32| {
        GrayImage::from_fn(width, height, |x, y| [if x * 2 < width && y * 4 < height { 255 } else { 0 }].into())
    };
    let expected = mask(&of(800, 640), (800, 640), (64, 64)).unwrap();
    assert!(expected.data.iter().any(|&share| share > 0.9) && expected.data.contains(&0.0));
    for (width, height) in [(400, 320), (200, 160), (1600, 1280)] {
        assert_eq!(mask(&of(width, height), (800, 640), (64, 64)).unwrap(), expected, "{width} x {height}");
    }
    // rounded sides: 801 x 640 halved
    assert!(mask(&of(400, 320), (801, 640), (64, 64)).is_ok());
}

#[test]
fn a_mask_of_another_shape_is_an_error_with_both_sizes() {
    for (width, height) in [(640, 800), (800, 650), (0, 0)] {
        let error = mask(&GrayImage::from_pixel(width, height, [255].into()), (800, 640), (64, 64)).unwrap_err();
        assert!(matches!(error, DataError::MaskSize { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("a/mask.png") && text.contains(&format!("{width} x {height}")) && text.contains("800 x 640")
        );
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_mask_that_leaves_nothing_to_learn_is_an_error() {
    // black, or white only where the crop has cut it away
    let beside = GrayImage::from_fn(100, 40, |x, _| [if x < 29 { 255 } else { 0 }].into());
    for grey in [GrayImage::new(100, 40), beside] {
        let error = mask(&grey, (100, 40), (64, 64)).unwrap_err();
        assert!(matches!(error, DataError::MaskEmpty { .. }) && error.to_string().contains("a/mask.png"), "{error:?}");
    }
}

#[test]
fn the_alpha_of_a_picture_is_its_mask_and_a_file_is_read_by_its_red_channel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    image::RgbaImage::from_fn(16, 8, |x, _| [10, 20, 30, if x < 8 { 255 } else { 51 }].into()).save(&path).unwrap();
    let decoded = decode_with(&path, Alpha::Mask).unwrap();
    assert_eq!(decoded.rgb.get_pixel(12, 3).0, [206, 208, 210], "a fifth of the colour over white");
    let found = mask(&decoded.alpha.unwrap(), (16, 8), (16, 8)).unwrap();
    assert_eq!(found.data, [1.0, 0.2]);
    // opaque: nothing to mask
    RgbImage::from_pixel(16, 8, [1, 2, 3].into()).save(&path).unwrap();
    assert_eq!(decode_with(&path, Alpha::Mask).unwrap().alpha, None);

    RgbImage::from_fn(4, 2, |x, _| [x as u8 * 80, 7, 9].into()).save(&path).unwrap();
    assert_eq!(read_mask(&path).unwrap().into_raw(), [0, 80, 160, 240].repeat(2));
    image::RgbaImage::from_fn(2, 1, |x, _| [255, 255, 255, x as u8 * 255].into()).save(&path).unwrap();
    assert_eq!(read_mask(&path).unwrap().into_raw(), [0, 255], "transparent is black");
}

proptest! {
    /// The mask that is the picture's own red channel must be what scaling and then averaging the picture gives.
    #[test]
    fn a_mask_lies_where_its_picture_does(w in 30_u32..300, h in 30_u32..300, tw in 2_u32..8, th in 2_u32..8, flip: bool) {
        let (tw, th) = (tw * 8, th * 8);
        let smooth = |x: u32, y: u32| (60.0 + 55.0 * (f64::from(x) * 6.0 / f64::from(w)).sin() + f64::from(y) * 110.0 / f64::from(h)) as u8;
        let grey = GrayImage::from_fn(w, h, |x, y| [smooth(x, y)].into());
        let image = RgbImage::from_fn(w, h, |x, y| [smooth(x, y), 0, 0].into());
        let crop = Crop::cover((w, h), (tw, th));
        let (mut mask, mut pixels) = (mask(&grey, (w, h), (tw, th)).unwrap(), fit_crop(&image, &crop, Size::new(tw, th)).unwrap());
        if flip {
            (mask, pixels) = (mask.mirrored(), pixels.mirrored());
        }
        for y in 0..th / 8 {
            for x in 0..tw / 8 {
                let cell = (0..64).map(|at| pixels.data[(((y * 8 + at / 8) * tw + x * 8 + at % 8) * 3) as usize]);
                let expected = f32::midpoint(cell.sum::<f32>() / 64.0, 1.0);
                let found = mask.data[(y * (tw / 8) + x) as usize];
                prop_assert!((found - expected).abs() < 0.02, "{} {} {} {}", x, y, found, expected);
            }
        }
    }

    #[test]
    fn the_crop_of_the_mirrored_picture_shows_the_mirrored_part(w in 20_u32..200, h in 20_u32..200, tw in 8_u32..60, th in 8_u32..60) {
        let image = RgbImage::from_fn(w, h, |x, y| [(x * 7 + y) as u8, (x * x) as u8, y as u8].into());
        let mirrored_image = image::imageops::flip_horizontal(&image);
        // every offset, so that an odd surplus shows on which side it is
        let resized = Size::new(tw + w % 5, th + 3);
        let crop = Crop::centred(Size::new(w, h), &Assigned { bucket: Size::new(tw, th), resized });
        let pixels = fit_crop(&image, &crop, Size::new(tw, th)).unwrap().mirrored();
        let again = fit_crop(&mirrored_image, &crop.mirrored(tw), Size::new(tw, th)).unwrap();
        prop_assert_eq!(crop.mirrored(tw).mirrored(tw), crop);
        for (a, b) in pixels.data.iter().zip(&again.data) {
            prop_assert!((a - b).abs() <= 2.0 / 127.5, "{} {}", a, b);
        }
    }
}

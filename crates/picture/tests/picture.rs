//! Pixels: rounding, comparing, enlarging.
#![allow(clippy::unwrap_used)]

use loralei_picture::picture::MAX_PIXELS;
use loralei_picture::{Picture, PictureError};

#[test]
fn unit_values_are_rounded_as_diffusers_does() {
    // >>> x = torch.tensor([...], dtype=torch.float32)
    // >>> ((x * 0.5 + 0.5).clamp(0, 1).numpy() * 255).round().astype("uint8")
    let data = [
        -1.0,
        1.0,
        0.0,
        -1.5,
        2.0,
        0.5,
        -0.5,
        0.1,
        -0.1,
        0.003,
        0.33333334,
        -0.99607843,
        0.9960784,
        0.7,
        -0.7,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.999,
    ];
    let picture = Picture::from_unit(&data, (3, 2)).unwrap();
    assert_eq!((picture.width_px(), picture.height_px()), (3, 2));
    assert_eq!(picture.rgb(), [0, 255, 128, 0, 255, 191, 64, 140, 115, 128, 170, 0, 254, 217, 38, 255, 0, 255]);
    assert_eq!(picture.pixel(2, 1), Some([255, 0, 255]));
    assert_eq!((picture.pixel(3, 0), picture.pixel(0, 2)), (None, None));
}

#[test]
fn a_value_that_is_no_number_is_an_error_with_its_place() {
    let mut data = vec![0.25; 2 * 3 * 3];
    data[3 * 3 + 2 * 3 + 1] = f32::NAN;
    let error = Picture::from_unit(&data, (3, 2)).unwrap_err();
    assert!(matches!(error, PictureError::NotANumber { x: 2, y: 1 }), "{error}");
    assert!(error.hint().unwrap().contains("f32"));
    assert!(Picture::from_unit(&[f32::NAN], (0, 0)).is_err());
}

#[test]
fn sizes_that_do_not_match_the_values_are_errors() {
    let count = Picture::from_rgb(3, 2, vec![7; 17]).unwrap_err();
    assert!(matches!(count, PictureError::ValueCount { expected: 18, found: 17, .. }), "{count}");
    assert!(matches!(Picture::from_rgb(0, 2, vec![]), Err(PictureError::NoPixels { .. })));
    assert!(matches!(Picture::of_colour(u32::MAX, u32::MAX, [0; 3]), Err(PictureError::TooLarge { .. })));
    let picture = Picture::of_colour(3, 2, [1, 2, 3]).unwrap();
    assert!(matches!(picture.enlarged(0), Err(PictureError::NoPixels { .. })));
    assert!(matches!(picture.enlarged(MAX_PIXELS as u32), Err(PictureError::TooLarge { .. })));
}

#[test]
fn difference_is_the_mean_over_values_and_one_between_black_and_white() {
    let black = Picture::of_colour(5, 3, [0; 3]).unwrap();
    let white = Picture::of_colour(5, 3, [255; 3]).unwrap();
    assert_eq!(black.mean_abs_difference(&white).unwrap(), 1.0);
    assert_eq!(white.mean_abs_difference(&white).unwrap(), 0.0);
    let left = Picture::from_rgb(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap();
    let right = Picture::from_rgb(2, 1, vec![13, 14, 30, 40, 50, 102]).unwrap();
    assert_eq!(left.mean_abs_difference(&right).unwrap(), 51.0 / (6.0 * 255.0));
    let turned = Picture::from_rgb(1, 2, vec![0; 6]).unwrap();
    assert!(matches!(left.mean_abs_difference(&turned), Err(PictureError::SizesDiffer { .. })));
}

#[test]
fn enlarging_turns_every_pixel_into_a_square() {
    let picture = Picture::from_rgb(3, 2, (0..18).collect()).unwrap();
    let large = picture.enlarged(4).unwrap();
    assert_eq!((large.width_px(), large.height_px()), (12, 8));
    for (x, y) in (0..12).flat_map(|x| (0..8).map(move |y| (x, y))) {
        assert_eq!(large.pixel(x, y), picture.pixel(x / 4, y / 4), "at {x}, {y}");
    }
    assert_eq!(picture.enlarged(1).unwrap(), picture);
}

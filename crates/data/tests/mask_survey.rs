//! All masks of a data set at once: how much they leave, and which do not fit.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use loralei_data::{
    Alpha, BucketRules, CaptionRules, DataError, Depth, GrayImage, Inspection, RgbImage, Role, Source, survey_masks,
};

fn source(path: &Path, alpha: Alpha) -> Source {
    let buckets = BucketRules {
        width_px: 64,
        height_px: 64,
        enabled: false,
        min_px: 64,
        max_px: 64,
        step_px: 64,
        no_upscale: false,
    };
    let captions = CaptionRules { prompt: Some("a dog".to_owned()), ..CaptionRules::default() };
    Source {
        path: path.to_owned(),
        role: Role::Subject,
        repeats: None,
        captions,
        buckets,
        alpha,
        flip: false,
        weight: 1.0,
    }
}

#[test]
fn each_mask_tells_what_it_leaves_or_why_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b", "c", "d", "e"] {
        RgbImage::from_pixel(96, 64, [9, 99, 199].into()).save(path(&format!("{name}.png"))).unwrap();
    }
    // 96 x 64 to 64 x 64 keeps columns 16 to 80: of those below 32, a quarter.
    let quarter = GrayImage::from_fn(96, 64, |x, _| [if x < 32 { 255 } else { 0 }].into());
    quarter.save(path("a-masklabel.png")).unwrap();
    GrayImage::from_pixel(96, 64, [0].into()).save(path("b-masklabel.png")).unwrap();
    GrayImage::from_pixel(64, 64, [255].into()).save(path("c-masklabel.png")).unwrap();
    std::fs::write(path("d-masklabel.png"), "no picture").unwrap();

    let pictures = Inspection::new(&[source(dir.path(), Alpha::default())], Depth::Header, |_, _| ()).unwrap().pictures;
    let most = AtomicUsize::new(0);
    let found = survey_masks(&pictures, 8, |seen, all| {
        assert_eq!(all, 4);
        most.fetch_max(seen, Ordering::Relaxed);
    });
    assert_eq!(most.into_inner(), 4);
    assert!((found[0].as_ref().unwrap().unwrap() - 0.25).abs() < 1e-6, "{found:?}");
    assert!(matches!(found[1], Err(DataError::MaskEmpty { .. })), "{found:?}");
    assert!(matches!(found[2], Err(DataError::MaskSize { .. })), "{found:?}");
    assert!(matches!(found[3], Err(DataError::ImageContent { .. })), "{found:?}");
    assert!(matches!(found[4], Ok(None)), "{found:?}");
}

#[test]
fn transparency_is_a_mask_only_where_it_is_asked_for_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let half = image::RgbaImage::from_fn(64, 64, |_, y| [9, 9, 9, if y < 32 { 255 } else { 0 }].into());
    half.save(dir.path().join("a.png")).unwrap();
    image::RgbaImage::from_pixel(64, 64, [9, 9, 9, 255].into()).save(dir.path().join("b.png")).unwrap();
    let shares = |alpha: Alpha| {
        let pictures = Inspection::new(&[source(dir.path(), alpha)], Depth::Pixels, |_, _| ()).unwrap().pictures;
        survey_masks(&pictures, 8, |_, _| ()).into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(shares(Alpha::Mask), [Some(0.5), None]);
    assert_eq!(shares(Alpha::default()), [None, None]);
}

//! Buckets: kohya's lists number by number, its rule for pictures that are not enlarged against a second writing of it,
//! and what must hold for every picture.

use loralei_data::{Assigned, BucketRules, Crop, Size};
use proptest::prelude::*;

fn rules(side_px: u32, max_px: u32, step_px: u32) -> BucketRules {
    BucketRules {
        width_px: side_px,
        height_px: side_px,
        enabled: true,
        min_px: 256,
        max_px,
        step_px,
        no_upscale: false,
    }
}

#[test]
fn the_list_for_512_is_kohyas() {
    let listed = [
        (256, 832),
        (256, 896),
        (256, 960),
        (256, 1024),
        (320, 704),
        (320, 768),
        (384, 640),
        (448, 576),
        (512, 512),
        (576, 448),
        (640, 384),
        (704, 320),
        (768, 320),
        (832, 256),
        (896, 256),
        (960, 256),
        (1024, 256),
    ];
    assert_eq!(rules(512, 1024, 64).buckets(), listed.map(|(width, height)| Size::new(width, height)));
}

#[test]
fn the_lists_of_other_sizes_have_as_many_buckets_as_kohyas() {
    for (side_px, max_px, step_px, expected) in [
        (512, 1024, 64, 17),
        (768, 1024, 64, 19),
        (1024, 1024, 64, 25),
        (1024, 2048, 64, 41),
        (512, 1024, 8, 129),
        (512, 1024, 32, 33),
        (512, 1024, 16, 65),
    ] {
        assert_eq!(rules(side_px, max_px, step_px).buckets().len(), expected, "{side_px} {max_px} {step_px}");
    }
}

#[test]
fn limits_that_are_no_multiple_of_the_step_are_widened_to_one() {
    let exact = rules(512, 1024, 64).buckets();
    for (min_px, max_px) in [(256, 1024), (319, 1024), (256, 961), (300, 1000)] {
        assert_eq!(BucketRules { min_px, max_px, ..rules(512, 0, 64) }.buckets(), exact, "{min_px} {max_px}");
    }
}

#[test]
fn the_cropped_share_of_usual_photographs_is_that_of_the_table() {
    let shares = [
        ((6000, 4000), [(64, 640, 384, 10.0), (32, 608, 416, 2.6), (16, 624, 416, 0.0), (8, 624, 416, 0.0)]),
        ((3840, 2160), [(64, 640, 384, 6.2), (32, 672, 384, 1.6), (16, 672, 384, 1.6), (8, 680, 384, 0.4)]),
        ((4000, 3000), [(64, 576, 448, 3.6), (32, 576, 448, 3.6), (16, 592, 432, 2.7), (8, 592, 440, 0.9)]),
        ((2560, 1080), [(64, 768, 320, 1.2), (32, 768, 320, 1.2), (16, 784, 320, 3.3), (8, 784, 328, 0.8)]),
    ];
    for ((width, height), by_step) in shares {
        for (step_px, bucket_width, bucket_height, percent) in by_step {
            let assigned = rules(512, 1024, step_px).assign(Size::new(width, height));
            let what = format!("{width} x {height}, step {step_px}: {assigned:?}");
            assert_eq!(assigned.bucket, Size::new(bucket_width, bucket_height), "{what}");
            assert!((assigned.cropped_share() * 100.0 - percent).abs() < 0.15, "{} {what}", assigned.cropped_share());
        }
    }
}

#[test]
fn wide_and_tall_pictures_are_treated_alike() {
    // By differences of the ratio, 1.13 would go to the square and 1 / 1.13 to 448 x 576.
    let rules = rules(512, 1024, 64);
    assert_eq!(rules.assign(Size::new(1130, 1000)).bucket, Size::new(512, 512));
    assert_eq!(rules.assign(Size::new(1000, 1130)).bucket, Size::new(512, 512));
    assert_eq!(rules.assign(Size::new(1140, 1000)).bucket, Size::new(576, 448));
    assert_eq!(rules.assign(Size::new(1000, 1140)).bucket, Size::new(448, 576));
}

#[test]
fn a_picture_of_exactly_a_listed_size_takes_it() {
    for rules in [rules(512, 1024, 8), BucketRules { width_px: 1024, ..rules(512, 1024, 32) }] {
        for bucket in rules.buckets() {
            assert_eq!(rules.assign(bucket), Assigned { bucket, resized: bucket });
        }
    }
}

#[test]
fn without_buckets_there_is_the_one_size_exactly() {
    let rules = BucketRules { width_px: 500, height_px: 300, enabled: false, no_upscale: true, ..rules(0, 1024, 64) };
    assert_eq!(rules.buckets(), [Size::new(500, 300)]);
    let assigned = rules.assign(Size::new(1000, 100));
    assert_eq!((assigned.bucket, assigned.resized), (Size::new(500, 300), Size::new(3000, 300)));
}

#[test]
fn small_pictures_keep_their_size_where_nothing_is_enlarged() {
    let rules = BucketRules { no_upscale: true, ..rules(512, 1024, 64) };
    assert!(rules.buckets().is_empty());
    let assigned = rules.assign(Size::new(300, 200));
    assert_eq!((assigned.bucket, assigned.resized), (Size::new(256, 192), Size::new(300, 200)));
    let crop = Crop::centred(Size::new(300, 200), &assigned);
    assert_eq!((crop.left_px, crop.top_px), (22, 4));
    // narrower than a step: one step, and then there is no way but to enlarge
    let assigned = rules.assign(Size::new(40, 200));
    assert_eq!((assigned.bucket, assigned.resized), (Size::new(64, 192), Size::new(64, 320)));
}

/// kohya's rule for a picture that is not enlarged, in its words (trainers compared, section "bucketing"): scale to the
/// area, round one side down to the step, let the other follow, take the better of both; cut to the step.
fn kohya_without_upscaling(area: u64, step: u64, width: u32, height: u32) -> ((u64, u64), (u64, u64)) {
    let ratio = f64::from(width) / f64::from(height);
    let to_step = |x: f64| {
        let x = (x + 0.5) as u64;
        x - x % step
    };
    let resized = if u64::from(width) * u64::from(height) > area {
        let rw = (area as f64 * ratio).sqrt();
        let rh = area as f64 / rw;
        let (w1, h2) = (to_step(rw), to_step(rh));
        let (h1, w2) = (to_step(w1 as f64 / ratio), to_step(h2 as f64 * ratio));
        if (w1 as f64 / h1 as f64 - ratio).abs() < (w2 as f64 / h2 as f64 - ratio).abs() {
            (w1, (w1 as f64 / ratio + 0.5) as u64)
        } else {
            ((h2 as f64 * ratio + 0.5) as u64, h2)
        }
    } else {
        (u64::from(width), u64::from(height))
    };
    ((resized.0 - resized.0 % step, resized.1 - resized.1 % step), resized)
}

/// kohya's list in its words: the square, and for each width the greatest height that the area allows, and both mirrored.
fn kohya_list(area: u64, min: u64, max: u64, step: u64) -> Vec<(u64, u64)> {
    let square = ((area as f64).sqrt() / step as f64).floor() as u64 * step;
    let mut list = std::collections::BTreeSet::from([(square, square)]);
    for width in (min..=max).step_by(step as usize) {
        let height = max.min(area / width / step * step);
        if height >= min {
            list.insert((width, height));
            list.insert((height, width));
        }
    }
    list.into_iter().collect()
}

proptest! {
    #[test]
    fn a_picture_goes_to_a_bucket_of_the_list_that_it_covers_tightly(
        w in 1_u32..9_000, h in 1_u32..9_000, side in 64_u32..1_500, step in prop::sample::select(vec![8_u32, 16, 32, 64]),
    ) {
        let side = side.max(step);
        let rules = BucketRules { min_px: (side / 2).max(step), max_px: side * 2, ..rules(side, 0, step) };
        let list = rules.buckets();
        let expected = kohya_list(
            u64::from(side * side),
            u64::from(rules.min_px / step * step),
            u64::from(rules.max_px.div_ceil(step) * step),
            u64::from(step),
        );
        prop_assert!(list.iter().map(|size| (u64::from(size.width_px), u64::from(size.height_px))).eq(expected));

        let picture = Size::new(w, h);
        let Assigned { bucket, resized } = rules.assign(picture);
        prop_assert!(list.contains(&bucket));
        prop_assert!(bucket.width_px % step == 0 && bucket.height_px % step == 0 && bucket.area() <= u64::from(side * side));
        prop_assert!(resized.width_px >= bucket.width_px && resized.height_px >= bucket.height_px, "covers");
        prop_assert!(resized.width_px == bucket.width_px || resized.height_px == bucket.height_px, "tightly");
        let scale = (f64::from(bucket.width_px) / f64::from(w)).max(f64::from(bucket.height_px) / f64::from(h));
        let rounded = Size::new((f64::from(w) * scale + 0.5) as u32, (f64::from(h) * scale + 0.5) as u32);
        prop_assert!(resized.width_px.abs_diff(rounded.width_px) <= 1 && resized.height_px.abs_diff(rounded.height_px) <= 1);
        // no other bucket is nearer
        let distance = |size: Size| (size.log_ratio() - picture.log_ratio()).abs();
        let nearest = list.iter().map(|&size| distance(size)).fold(f64::INFINITY, f64::min);
        prop_assert!(picture == bucket || distance(bucket) <= nearest + 1e-9);
        // and the mirrored picture goes to a bucket as near
        let turned = rules.assign(Size::new(h, w)).bucket;
        prop_assert!((distance(Size::new(turned.height_px, turned.width_px)) - distance(bucket)).abs() < 1e-9 || picture == bucket);
    }

    #[test]
    fn without_upscaling_the_sizes_are_kohyas_wherever_it_gives_any(
        w in 1_u32..9_000, h in 1_u32..9_000, side in 128_u32..1_500, step in prop::sample::select(vec![8_u32, 32, 64]),
    ) {
        let rules = BucketRules { no_upscale: true, ..rules(side, 0, step) };
        let Assigned { bucket, resized } = rules.assign(Size::new(w, h));
        prop_assert!(bucket.width_px % step == 0 && bucket.height_px % step == 0 && bucket.width_px.min(bucket.height_px) >= step);
        prop_assert!(resized.width_px >= bucket.width_px && resized.height_px >= bucket.height_px);
        let (expected, expected_resized) = kohya_without_upscaling(u64::from(side * side), u64::from(step), w, h);
        let ratio = f64::from(w.max(h)) / f64::from(w.min(h));
        // beyond, one of kohya's sides is less than a step
        let is_usual = expected.0.min(expected.1) >= u64::from(step) && f64::from(side) / ratio.sqrt() > f64::from(2 * step);
        if is_usual {
            prop_assert_eq!((u64::from(bucket.width_px), u64::from(bucket.height_px)), expected);
            prop_assert_eq!((u64::from(resized.width_px), u64::from(resized.height_px)), expected_resized);
        }
    }

    #[test]
    fn no_rules_and_no_picture_make_it_fail(
        w: u32, h: u32, width_px in 0_u32..70_000, height_px in 0_u32..70_000, min_px: u32, max_px: u32,
        step_px in prop::sample::select(vec![0_u32, 1, 64, 5_000_000, u32::MAX]), no_upscale: bool, enabled: bool,
    ) {
        // a step of 1 up to the greatest side would be a list of thousands of millions
        let max_px = if step_px <= 1 { max_px % 5_000 } else { max_px };
        let rules = BucketRules { width_px, height_px, enabled, min_px, max_px: max_px % 1_000_000, step_px, no_upscale };
        let assigned = rules.assign(Size::new(w, h));
        prop_assert!(!enabled || assigned.bucket.width_px.min(assigned.bucket.height_px) >= 1);
    }
}

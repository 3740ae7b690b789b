//! The survey of a data set and the duplicates found in it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image::ImageFormat;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use loralei_data::duplicates::MAX_LOOK_DISTANCE;
use loralei_data::{
    ContentHash, DataError, Depth, Duplicates, Look, Note, RgbImage, Size, Surveyed, find_duplicates, survey,
};
use proptest::prelude::*;

/// A scene of soft blobs, different for each number: what photographs have and noise has not.
fn scene(number: u32, width: u32, height: u32) -> RgbImage {
    let mut state = u64::from(number) * 0x9e37_79b9_7f4a_7c15 + 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f64 / f64::from(1_u32 << 24)
    };
    let blobs: Vec<[f64; 4]> = (0..24).map(|_| [draw(), draw(), 0.03 + 0.12 * draw(), draw() * 2.0 - 1.0]).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = ((f64::from(x) + 0.5) / f64::from(width), (f64::from(y) + 0.5) / f64::from(height));
        let blob = |[cx, cy, radius, grey]: &[f64; 4]| {
            grey * (-((x - cx).powi(2) + (y - cy).powi(2)) / (2.0 * radius * radius)).exp()
        };
        let grey = 118.0 + 50.0 * blobs.iter().map(blob).sum::<f64>();
        [grey, grey * 0.9, grey * 0.8 + 20.0].map(|value| value.clamp(0.0, 255.0) as u8).into()
    })
}

fn jpeg(image: &RgbImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(image).unwrap();
    bytes
}

/// Copies as they come about: saved again, scaled, made darker and brighter.
fn copies(image: &RgbImage) -> Vec<RgbImage> {
    let mut copies = vec![];
    for quality in [30, 60, 90] {
        copies.push(image::load(std::io::Cursor::new(jpeg(image, quality)), ImageFormat::Jpeg).unwrap().into_rgb8());
    }
    for scale in [0.25, 0.5, 0.83, 1.6] {
        let [width, height] = [image.width(), image.height()].map(|side| (f64::from(side) * scale) as u32);
        copies.push(image::imageops::resize(image, width, height, FilterType::Lanczos3));
    }
    for brightness in [0.8, 1.2] {
        let mut copy = image.clone();
        copy.iter_mut().for_each(|value| *value = (f64::from(*value) * brightness).min(255.0) as u8);
        copies.push(copy);
    }
    copies
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn results_come_in_the_order_of_the_paths_and_broken_pictures_are_among_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = vec![];
    for number in 0..20 {
        let bytes = jpeg(&scene(number, 40 + number, 30), 90);
        paths.push(put(dir.path(), &format!("{number:02}.jpg"), if number == 7 { &bytes[..300] } else { &bytes }));
    }
    paths.push(dir.path().join("missing.png"));
    // whole by its structure, but the pixels are not there
    let mut hollow = std::io::Cursor::new(vec![]);
    scene(3, 40, 30).write_to(&mut hollow, ImageFormat::Png).unwrap();
    let mut hollow = hollow.into_inner();
    let data = hollow.windows(4).position(|id| id == b"IDAT").unwrap();
    hollow[data + 20..data + 40].fill(0);
    paths.push(put(dir.path(), "hollow.png", &hollow));

    for depth in [Depth::Header, Depth::Pixels] {
        let seen = Mutex::new(BTreeSet::new());
        let results = survey(&paths, depth, |num_seen| assert!(seen.lock().unwrap().insert(num_seen)));
        assert_eq!(seen.into_inner().unwrap(), (1..=22).collect());
        for (number, result) in results.iter().enumerate() {
            match (number, result) {
                (7, Err(error)) => assert!(matches!(error, DataError::ImageTruncated { .. }), "{error:?}"),
                (20, Err(error)) => assert!(matches!(error, DataError::ImageRead { .. }), "{error:?}"),
                (21, Ok(_)) => assert_eq!(depth, Depth::Header),
                (21, Err(error)) => {
                    assert_eq!(depth, Depth::Pixels);
                    assert!(matches!(error, DataError::ImageDecode { .. }), "{error:?}");
                }
                (_, Ok(found)) => {
                    assert_eq!(found.size, Size::new(40 + number as u32, 30));
                    assert_eq!(found.content, ContentHash::of(&fs::read(&paths[number]).unwrap()));
                    assert_eq!(found.look.is_some(), depth == Depth::Pixels);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn the_content_is_the_sha_256_of_the_file() {
    // FIPS 180-4, example "abc"
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(ContentHash::of(b"abc").to_string(), expected);
}

#[test]
fn notes_and_alpha_are_reported_by_header_and_by_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    image::RgbaImage::from_fn(9, 9, |x, _| [1, 2, 3, x as u8].into()).save(&path).unwrap();
    let of = |depth| survey(std::slice::from_ref(&path), depth, |_| {}).remove(0).unwrap();
    assert!(of(Depth::Header).has_alpha && of(Depth::Header).notes.is_empty());
    assert_eq!(of(Depth::Pixels).notes, [Note::Flattened]);
}

#[test]
fn copies_look_the_same_and_other_scenes_do_not() {
    let scenes: Vec<RgbImage> = (0..40).map(|number| scene(number, 300, 200)).collect();
    let looks: Vec<Look> = scenes.iter().map(|image| Look::of(image).unwrap()).collect();
    for (image, look) in scenes.iter().zip(&looks) {
        for (number, copy) in copies(image).iter().enumerate() {
            let distance = Look::of(copy).unwrap().distance(*look);
            assert!(distance <= MAX_LOOK_DISTANCE, "copy {number}: {distance}");
        }
    }
    for (a, first) in looks.iter().enumerate() {
        for second in &looks[a + 1..] {
            assert!(first.distance(*second) > MAX_LOOK_DISTANCE, "{}", first.distance(*second));
        }
    }
}

/// On the photographs that the threshold was chosen with; they are not in the repository.
#[test]
fn photographs_of_the_same_dog_do_not_look_the_same_but_their_copies_do() {
    let Some(dir) = std::env::var_os("LORALEI_PHOTOGRAPHS") else { return };
    let mut looks = vec![];
    let (mut farthest_copy, mut nearest_other) = (0, 64);
    for entry in
        fs::read_dir(dir).unwrap().flat_map(|folder| fs::read_dir(folder.unwrap().path()).into_iter().flatten())
    {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let image = loralei_data::decode(&path).unwrap();
        let look = Look::of(&image).unwrap();
        for copy in copies(&image) {
            farthest_copy = farthest_copy.max(Look::of(&copy).unwrap().distance(look));
        }
        for &other in &looks {
            nearest_other = nearest_other.min(look.distance(other));
        }
        looks.push(look);
    }
    println!("{} photographs: copies within {farthest_copy} bits, others from {nearest_other}", looks.len());
    assert!(farthest_copy <= MAX_LOOK_DISTANCE && nearest_other > MAX_LOOK_DISTANCE);
}

#[test]
fn pictures_of_one_colour_look_like_nothing() {
    for colour in [[0; 3], [255; 3], [10, 200, 30]] {
        assert_eq!(Look::of(&RgbImage::from_pixel(50, 40, colour.into())), None);
    }
    assert!(Look::of(&scene(1, 1, 1)).is_none(), "one pixel is one colour");
}

#[test]
fn duplicates_are_grouped_by_content_and_by_look() {
    let dir = tempfile::tempdir().unwrap();
    let scenes: Vec<RgbImage> = (0..4).map(|number| scene(number, 160, 120)).collect();
    let smaller = image::imageops::resize(&scenes[1], 100, 75, FilterType::Lanczos3);
    let white = RgbImage::from_pixel(30, 30, [255; 3].into());
    let files = [
        jpeg(&scenes[0], 90),
        jpeg(&scenes[1], 90),
        jpeg(&scenes[0], 90),
        jpeg(&scenes[2], 90),
        jpeg(&smaller, 80),
        b"no picture".to_vec(),
        jpeg(&scenes[0], 50),
        jpeg(&scenes[3], 90),
        jpeg(&white, 90),
        jpeg(&white, 40),
        jpeg(&scenes[3], 90),
    ];
    let paths: Vec<PathBuf> =
        files.iter().enumerate().map(|(number, bytes)| put(dir.path(), &format!("{number:02}.jpg"), bytes)).collect();
    let found = find_duplicates(&survey(&paths, Depth::Pixels, |_| {}));
    assert_eq!(found.same_content, [vec![0, 2], vec![7, 10]]);
    assert_eq!(found.same_look, [vec![0, 2, 6], vec![1, 4]]);

    let found = find_duplicates(&survey(&paths, Depth::Header, |_| {}));
    assert_eq!((found.same_content.len(), found.same_look.len()), (2, 0));
    assert_eq!(find_duplicates(&[]), Duplicates::default());
}

#[expect(clippy::unnecessary_wraps, reason = "as a survey returns it")]
fn with_look(number: usize, look: u64) -> Result<Surveyed, DataError> {
    let content = ContentHash::of(&number.to_le_bytes());
    Ok(Surveyed { size: Size::new(1, 1), content, look: Some(Look(look)), has_alpha: false, notes: vec![] })
}

#[test]
fn ten_thousand_pictures_that_all_look_the_same_are_one_group() {
    let surveyed: Vec<_> = (0..10_000).map(|number| with_look(number, 1 << (number % 10))).collect();
    let found = find_duplicates(&surveyed);
    assert_eq!(found.same_look, [(0..10_000).collect::<Vec<_>>()]);
    assert!(found.same_content.is_empty());
}

proptest! {
    /// Groups are the connected parts of "at most so many bits apart", found here by plain flooding.
    #[test]
    fn groups_are_what_is_alike_directly_or_through_others(centres in prop::collection::vec(any::<u64>(), 1..6), steps in prop::collection::vec((0_usize..6, 0_u32..64), 1..300)) {
        let mut walkers = centres.clone();
        let mut looks = vec![];
        for (walker, bit) in steps {
            let walker = walker % walkers.len();
            walkers[walker] ^= 0b11_1111_u64.rotate_left(bit);
            looks.push(walkers[walker]);
        }
        let mut groups = BTreeSet::new();
        for start in 0..looks.len() {
            let mut group = BTreeSet::from([start]);
            let mut waiting = vec![start];
            while let Some(at) = waiting.pop() {
                for other in 0..looks.len() {
                    if (looks[at] ^ looks[other]).count_ones() <= MAX_LOOK_DISTANCE && group.insert(other) {
                        waiting.push(other);
                    }
                }
            }
            if group.len() > 1 {
                groups.insert(group.into_iter().collect::<Vec<_>>());
            }
        }
        let surveyed: Vec<_> = looks.iter().enumerate().map(|(number, &look)| with_look(number, look)).collect();
        prop_assert_eq!(find_duplicates(&surveyed).same_look, groups.into_iter().collect::<Vec<_>>());
    }
}

//! A folder on disk: what becomes a sample, in which order, and what is said about the rest.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use std::fs;
use std::path::Path;

use loralei_data::{CaptionRules, DataError, Folder, RgbImage, SkipReason};

const PROMPT: CaptionRules<'_> = CaptionRules { prompt: Some("a dog"), trigger: None };

fn names(folder: &Folder) -> Vec<String> {
    folder.samples.iter().map(|sample| sample.path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn skipped(folder: &Folder) -> Vec<(String, SkipReason)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    folder.skipped.iter().map(|entry| (name(&entry.path), entry.reason)).collect()
}

#[test]
fn pictures_are_found_in_any_case_and_sorted_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["c.webp", "10.png", "b.JPG", "9.jpeg", "a.Png"] {
        fs::write(dir.path().join(name), "not opened yet").unwrap();
    }
    let folder = Folder::read(dir.path(), PROMPT).unwrap();
    assert_eq!(names(&folder), ["10.png", "9.jpeg", "a.Png", "b.JPG", "c.webp"]);
    assert!(
        folder.samples.iter().all(|sample| sample.caption == "a dog" && (sample.weight - 1.0).abs() < f32::EPSILON)
    );
    assert!(folder.skipped.is_empty());
}

#[test]
fn captions_belong_to_the_image_of_their_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("a.png", ""), ("a.txt", "text a"), ("b.png", ""), ("b.TXT", "text b"), ("c.d.jpg", "")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    fs::write(dir.path().join("c.d.txt"), "text cd").unwrap();
    fs::write(dir.path().join("e.png"), "").unwrap();
    fs::write(dir.path().join("a.webp"), "").unwrap();
    let folder = Folder::read(dir.path(), CaptionRules { trigger: Some("sks"), ..PROMPT }).unwrap();
    let captions: Vec<_> = folder.samples.iter().map(|sample| sample.caption.as_str()).collect();
    assert_eq!(names(&folder), ["a.png", "a.webp", "b.png", "c.d.jpg", "e.png"]);
    assert_eq!(captions, ["sks, text a", "sks, text a", "sks, text b", "sks, text cd", "sks, a dog"]);
    assert_eq!(folder.num_caption_files, 4);
    assert!(folder.skipped.is_empty());
}

#[test]
fn whatever_is_not_used_is_said_and_hidden_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", ".hidden.png", ".DS_Store", "README.md", "z.caption", "lost.txt", "noextension"] {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::create_dir(dir.path().join("sub.png")).unwrap();
    fs::write(dir.path().join("sub.png/inside.png"), "x").unwrap();
    let folder = Folder::read(dir.path(), PROMPT).unwrap();
    assert_eq!(names(&folder), ["a.png"]);
    let expected = [
        ("README.md", SkipReason::UnknownKind),
        ("lost.txt", SkipReason::CaptionWithoutImage),
        ("noextension", SkipReason::UnknownKind),
        ("sub.png", SkipReason::Subfolder),
        ("z.caption", SkipReason::UnknownKind),
    ];
    assert_eq!(skipped(&folder), expected.map(|(name, reason)| (name.to_owned(), reason)));
}

#[test]
fn missing_wrong_and_empty_folders_are_errors_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Folder::read(&dir.path().join("nowhere"), PROMPT).unwrap_err();
    assert!(matches!(missing, DataError::FolderMissing { .. }) && missing.to_string().contains("nowhere"));
    assert!(missing.hint().is_some());

    let file = dir.path().join("file.png");
    fs::write(&file, "x").unwrap();
    assert!(matches!(Folder::read(&file, PROMPT), Err(DataError::NotAFolder { .. })));

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = Folder::read(&empty, PROMPT).unwrap_err();
    assert!(matches!(error, DataError::NoImages { num_skipped: 0, has_folders: false, .. }), "{error:?}");

    fs::create_dir(empty.join("10_dog")).unwrap();
    let error = Folder::read(&empty, PROMPT).unwrap_err();
    assert!(error.hint().unwrap().contains("subfolders"), "{error:?}");
}

#[test]
fn an_image_without_any_caption_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("a.png", ""), ("a.txt", "text"), ("b.png", "")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let error = Folder::read(dir.path(), CaptionRules::default()).unwrap_err();
    assert!(error.to_string().ends_with("b.png"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_may_stay_in_the_folder_but_not_lead_out_of_it() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("a.png"), "x").unwrap();
    fs::write(dir.path().join("secret.png"), "x").unwrap();
    fs::write(dir.path().join("secret.txt"), "secret").unwrap();
    symlink("a.png", data.join("b.png")).unwrap();
    symlink("../secret.png", data.join("c.png")).unwrap();
    symlink("../secret.txt", data.join("a.txt")).unwrap();
    symlink("nothing.png", data.join("d.png")).unwrap();
    symlink("e.png", data.join("e.png")).unwrap(); // a loop
    let folder = Folder::read(&data, PROMPT).unwrap();
    assert_eq!(names(&folder), ["a.png", "b.png"]);
    assert_eq!(folder.samples[0].caption, "a dog");
    let expected = [
        ("a.txt", SkipReason::LinkOutside),
        ("c.png", SkipReason::LinkOutside),
        ("d.png", SkipReason::NotAFile),
        ("e.png", SkipReason::NotAFile),
    ];
    assert_eq!(skipped(&folder), expected.map(|(name, reason)| (name.to_owned(), reason)));

    // The folder itself may be a link.
    symlink("data", dir.path().join("link")).unwrap();
    assert_eq!(names(&Folder::read(&dir.path().join("link"), PROMPT).unwrap()), ["a.png", "b.png"]);
}

#[cfg(unix)]
#[test]
fn sockets_are_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("b.png")).unwrap();
    fs::write(dir.path().join("a.png"), "x").unwrap();
    let folder = Folder::read(dir.path(), PROMPT).unwrap();
    assert_eq!(skipped(&folder), [("b.png".to_owned(), SkipReason::NotAFile)]);
    let error = loralei_data::decode(&dir.path().join("b.png")).unwrap_err();
    assert!(matches!(error, DataError::ImageNotAFile { .. }), "{error:?}");
}

#[test]
fn a_sample_gives_its_picture_at_the_size_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let left_dark = RgbImage::from_fn(80, 40, |x, _| if x < 40 { [0, 0, 51].into() } else { [255, 204, 0].into() });
    left_dark.save(dir.path().join("a.png")).unwrap();
    let folder = Folder::read(dir.path(), PROMPT).unwrap();
    let (pixels, crop) = folder.samples[0].pixels(20, 40).unwrap();
    assert_eq!((crop.original_width_px, crop.resized_width_px, crop.left_px, crop.top_px), (80, 80, 30, 0));
    let row: Vec<f32> = [[-1.0, -1.0, -0.6]; 10].into_iter().chain([[1.0, 0.6, -1.0]; 10]).flatten().collect();
    for found in pixels.data.chunks_exact(20 * 3) {
        assert!(found.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

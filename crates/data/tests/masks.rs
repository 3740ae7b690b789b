//! Files of masks: which picture each belongs to, and what is said where one is missing.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

mod tree;

use loralei_data::{Dataset, Role, SkipReason, Source};
use tree::{Tree, reasons, with_prompt};

fn mask_source(tree: &Tree, folder: &str) -> Source {
    let mut source = tree.source(folder);
    source.role = Role::Mask;
    source
}

fn masks(tree: &Tree, dataset: &Dataset) -> Vec<(String, Option<String>)> {
    let mask = |sample: &loralei_data::Sample| sample.mask.as_deref().map(|mask| tree.name_of(mask));
    dataset.samples.iter().map(|sample| (tree.name_of(&sample.path), mask(sample))).collect()
}

fn rows<const N: usize>(rows: [(&str, Option<&str>); N]) -> Vec<(String, Option<String>)> {
    rows.iter().map(|(image, mask)| ((*image).to_owned(), mask.map(str::to_owned))).collect()
}

#[test]
fn masklabels_beside_pictures_are_masks_and_no_pictures() {
    let tree = Tree::of([
        ("a.jpg", ""),
        ("a-masklabel.png", ""),
        ("b.png", ""),
        ("b.webp", ""),
        ("b-masklabel.PNG", ""),
        ("c.png", ""),
        ("lost-masklabel.png", ""),
        ("sub/d.png", ""),
        ("e-masklabel.jpg", ""),
    ]);
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    let expected = rows([
        ("a.jpg", Some("a-masklabel.png")),
        ("b.png", Some("b-masklabel.PNG")),
        ("b.webp", Some("b-masklabel.PNG")),
        ("c.png", None),
        ("e-masklabel.jpg", None),
        ("sub/d.png", None),
    ]);
    assert_eq!(masks(&tree, &dataset), expected);
    assert_eq!(tree.skipped(&dataset), reasons([("lost-masklabel.png", SkipReason::MaskWithoutImage)]));
    assert_eq!(
        tree.warnings(&dataset),
        [
            ".: 1 masks have no image of their name, such as lost-masklabel.png",
            ".: 2 of 5 images have no mask and count everywhere",
            "sub: 1 of 1 images have no mask and count everywhere",
        ]
    );
    assert_eq!((dataset.places[0].num_images, dataset.places[0].num_masks), (5, 3));
    assert!(dataset.problems.is_empty());
}

#[test]
fn a_source_of_masks_serves_the_pictures_of_the_same_path() {
    let tree = Tree::of([
        ("dogs/a.jpg", ""),
        ("dogs/sub/a.png", ""),
        ("dogs/c.png", ""),
        ("dogs/c-masklabel.png", ""),
        ("dogs/d.png", ""),
        ("class/a.png", ""),
        ("masks/a.png", ""),
        ("masks/sub/a-masklabel.png", ""),
        ("masks/c.png", ""),
        ("masks/x.png", ""),
        ("masks/a.txt", ""),
        ("masks/a.webp", ""),
        ("masks/notes.md", ""),
    ]);
    let mut class = with_prompt(tree.source("class"), "p");
    class.role = Role::Class;
    // The order of the sources does not matter for masks.
    let dataset = Dataset::read(&[mask_source(&tree, "masks"), with_prompt(tree.source("dogs"), "p"), class]).unwrap();
    let expected = rows([
        ("dogs/a.jpg", Some("masks/a.png")),
        ("dogs/c.png", Some("dogs/c-masklabel.png")),
        ("dogs/d.png", None),
        ("dogs/sub/a.png", Some("masks/sub/a-masklabel.png")),
        ("class/a.png", None),
    ]);
    assert_eq!(masks(&tree, &dataset), expected);
    assert!(dataset.samples.iter().all(|sample| sample.role != Role::Mask));
    let expected = reasons([
        ("masks/a.txt", SkipReason::CaptionOfMask),
        ("masks/a.webp", SkipReason::SecondMask),
        ("masks/c.png", SkipReason::SecondMask),
        ("masks/notes.md", SkipReason::UnknownKind),
        ("masks/x.png", SkipReason::MaskWithoutImage),
    ]);
    assert_eq!(tree.skipped(&dataset), expected);
    assert_eq!(
        tree.warnings(&dataset),
        [
            "dogs: 1 of 3 images have no mask and count everywhere",
            "masks: 1 masks have no image of their name, such as masks/x.png",
        ]
    );
    let places: Vec<_> =
        dataset.places.iter().map(|p| (p.source, tree.name_of(&p.path), p.num_images, p.num_masks)).collect();
    let expected =
        [(0, "masks", 0, 1), (0, "masks/sub", 0, 1), (1, "dogs", 3, 2), (1, "dogs/sub", 1, 1), (2, "class", 1, 0)];
    assert_eq!(places, expected.map(|(source, path, images, masks)| (source, path.to_owned(), images, masks)));
}

#[test]
fn a_mask_for_pictures_of_two_sources_is_said() {
    let tree = Tree::of([("one/a.png", ""), ("two/a.png", ""), ("masks/a.png", "")]);
    let images = ["one", "two"].map(|name| with_prompt(tree.source(name), "p"));
    let dataset = Dataset::read(&[images[0].clone(), images[1].clone(), mask_source(&tree, "masks")]).unwrap();
    assert_eq!(masks(&tree, &dataset), rows([("one/a.png", Some("masks/a.png")), ("two/a.png", Some("masks/a.png"))]));
    assert_eq!(tree.warnings(&dataset), ["1 masks belong to images of several sources, such as masks/a.png"]);
}

#[test]
fn a_source_of_masks_without_masks_or_without_others_is_a_problem() {
    let tree = Tree::of([("one/a.png", ""), ("masks/notes.md", ""), ("good/a.png", "")]);
    let dataset = Dataset::read(&[with_prompt(tree.source("one"), "p"), mask_source(&tree, "masks")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["no images in masks (1 other entries)"]);
    let dataset = Dataset::read(&[mask_source(&tree, "good")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["no source of images is given"]);
}

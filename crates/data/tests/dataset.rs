//! Sources on disk: what becomes a sample, in which order, how often, and what is said about the rest.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

mod tree;

use std::fs;
use std::path::Path;
use std::time::Instant;

use loralei_data::{
    CaptionCounts, CaptionOrigin, CaptionSource, DataError, Dataset, Layout, RgbImage, Role, SkipReason, Warning,
};
use tree::{Tree, owned, reasons, source, with_prompt};

#[test]
fn a_flat_folder_is_read_in_any_case_of_extension_and_sorted_bytewise() {
    let tree = Tree::of(["c.webp", "10.png", "b.JPG", "9.jpeg", "a.Png"].map(|name| (name, "not opened yet")));
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "a  dog ")]).unwrap();
    let row = |name| (name, "a dog", 1);
    assert_eq!(tree.texts(&dataset), owned(["10.png", "9.jpeg", "a.Png", "b.JPG", "c.webp"].map(row)));
    assert!(dataset.samples.iter().all(|sample| sample.caption.origin == CaptionOrigin::Prompt));
    assert!(dataset.skipped.is_empty() && dataset.problems.is_empty() && dataset.warnings.is_empty());
    let [place] = &dataset.places[..] else { panic!("{:?}", dataset.places) };
    assert_eq!((&place.path, &place.layout, place.num_images), (&tree.path(""), &Layout::Flat, 5));
    assert_eq!(place.captions, CaptionCounts { prompts: 5, ..CaptionCounts::default() });
}

#[test]
fn captions_belong_to_the_image_of_their_name() {
    let tree = Tree::of([
        ("a.png", ""),
        ("a.txt", "text a"),
        ("a.webp", ""),
        ("b.png", ""),
        ("b.TXT", "text b"),
        ("c.d.jpg", ""),
        ("c.d.caption", "text cd"),
        ("e.png", ""),
        ("f/a.png", ""),
    ]);
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "prompt")]).unwrap();
    let expected = owned([
        ("a.png", "text a", 1),
        ("a.webp", "text a", 1),
        ("b.png", "text b", 1),
        ("c.d.jpg", "text cd", 1),
        ("e.png", "prompt", 1),
        ("f/a.png", "prompt", 1),
    ]);
    assert_eq!(tree.texts(&dataset), expected);
    assert!(dataset.skipped.is_empty() && dataset.problems.is_empty() && dataset.warnings.is_empty());
    assert_eq!(dataset.samples[2].caption.origin, CaptionOrigin::File(tree.path("b.TXT")));
    assert_eq!(dataset.places[0].captions, CaptionCounts { files: 4, prompts: 1, ..CaptionCounts::default() });
}

#[test]
fn of_two_captions_txt_wins_and_the_other_is_said() {
    for names in [["a.txt", "a.caption"], ["a.caption", "a.txt"], ["a.CAPTION", "a.TXT"], ["a.TXT", "a.txt"]] {
        let tree = Tree::of([("a.png", ""), (names[0], names[0]), (names[1], names[1])]);
        let dataset = Dataset::read(&[tree.source("")]).unwrap();
        let winner = names.iter().copied().filter(|name| name.to_ascii_lowercase().ends_with("txt")).max().unwrap();
        let loser = names.iter().copied().find(|&name| name != winner).unwrap();
        assert_eq!(tree.texts(&dataset), owned([("a.png", winner, 1)]));
        assert_eq!(tree.skipped(&dataset), reasons([(loser, SkipReason::SecondCaption)]));
    }
}

#[test]
fn nested_folders_are_searched_to_any_depth_and_sorted_by_the_whole_path() {
    let deep = format!("{}x.png", "d/".repeat(300));
    let tree = Tree::of([("a/b.png", ""), ("a-c.png", ""), ("a.png", ""), ("a/a/z.png", ""), (&deep, "")]);
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    assert_eq!(tree.images(&dataset), ["a-c.png", "a.png", "a/a/z.png", "a/b.png", &deep]);
    let layouts: Vec<_> = dataset.places.iter().map(|place| (tree.name_of(&place.path), &place.layout)).collect();
    assert_eq!(
        layouts[..3],
        [(String::new(), &Layout::Flat), ("a".to_owned(), &Layout::Nested), ("a/a".to_owned(), &Layout::Nested),]
    );
    assert_eq!(layouts.len(), 4);
}

const KOHYA: [(&str, &str); 7] = [
    ("10_sks dog/a.png", ""),
    ("10_sks dog/b.png", ""),
    ("10_sks dog/b.caption", "on grass"),
    ("10_sks dog/side/c.png", ""),
    ("3_a_cat/d.png", ""),
    ("plain/e.png", ""),
    ("plain/e.txt", "e"),
];

#[test]
fn kohyas_folders_are_read_from_their_parent() {
    let tree = Tree::of(KOHYA);
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let expected = owned([
        ("10_sks dog/a.png", "sks dog", 10),
        ("10_sks dog/b.png", "on grass", 10),
        ("10_sks dog/side/c.png", "sks dog", 10),
        ("3_a_cat/d.png", "a_cat", 3),
        ("plain/e.png", "e", 1),
    ]);
    assert_eq!(tree.texts(&dataset), expected);
    assert!(dataset.problems.is_empty() && dataset.warnings.is_empty() && dataset.skipped.is_empty());
    let place = &dataset.places[0];
    assert_eq!(place.layout, Layout::Repeats { repeats: 10, words: "sks dog".to_owned() });
    assert_eq!((place.repeats, place.num_images), (10, 2));
    assert_eq!(place.captions, CaptionCounts { files: 1, folder_names: 1, ..CaptionCounts::default() });
}

#[test]
fn kohyas_folder_may_be_given_itself() {
    let tree = Tree::of(KOHYA);
    let dataset = Dataset::read(&[tree.source("10_sks dog")]).unwrap();
    let expected = owned([
        ("10_sks dog/a.png", "sks dog", 10),
        ("10_sks dog/b.png", "on grass", 10),
        ("10_sks dog/side/c.png", "sks dog", 10),
    ]);
    assert_eq!(tree.texts(&dataset), expected);
}

#[test]
fn a_prompt_wins_over_the_name_of_the_folder_and_not_over_a_caption() {
    let tree = Tree::of(KOHYA);
    let dataset = Dataset::read(&[with_prompt(tree.source("10_sks dog"), "prompt")]).unwrap();
    let texts: Vec<_> = dataset.samples.iter().map(|sample| sample.caption.lines[0].as_str()).collect();
    assert_eq!(texts, ["prompt", "on grass", "prompt"]);
}

#[test]
fn repeats_that_are_set_win_over_the_folders_and_that_is_said_once() {
    let tree = Tree::of(KOHYA);
    let mut source = tree.source("");
    source.repeats = Some(3);
    let dataset = Dataset::read(&[source]).unwrap();
    assert!(dataset.samples.iter().all(|sample| sample.repeats == 3));
    assert_eq!(tree.warnings(&dataset), ["10_sks dog: 3 repeats as set, not 10 as its name says"]);
}

#[test]
fn a_year_is_not_read_as_repeats_and_that_is_said() {
    let tree = Tree::of([("2024_holiday/a.png", ""), ("2024_holiday/b/c.png", ""), ("1000_x/a.png", "")]);
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    let expected =
        owned([("1000_x/a.png", "p", 1_000), ("2024_holiday/a.png", "p", 1), ("2024_holiday/b/c.png", "p", 1)]);
    assert_eq!(tree.texts(&dataset), expected);
    assert_eq!(tree.warnings(&dataset), ["2024_holiday: 2024 is not read as repeats, since it is above 1000"]);
    // Nor is the rest of such a name a caption.
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    assert_eq!(tree.problems(&dataset), ["no caption for 2024_holiday/a.png", "no caption for 2024_holiday/b/c.png"]);
}

#[test]
fn a_folder_of_zero_repeats_is_left_aside_as_in_kohya_unless_repeats_are_set() {
    let tree = Tree::of([("0_off/a.png", ""), ("2_on/b.png", "")]);
    let mut source = tree.source("");
    let dataset = Dataset::read(std::slice::from_ref(&source)).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("2_on/b.png", "on", 2)]));
    assert_eq!(tree.skipped(&dataset), reasons([("0_off", SkipReason::ZeroRepeats)]));
    source.repeats = Some(1);
    assert_eq!(Dataset::read(&[source]).unwrap().samples.len(), 2);
}

#[test]
fn several_sources_keep_their_roles_repeats_weights_and_order() {
    let tree = Tree::of([("z/a.png", ""), ("z/a.txt", "sks dog"), ("a/7_dog/b.png", ""), ("a/7_dog/c.png", "")]);
    let mut subject = tree.source("z");
    (subject.repeats, subject.weight, subject.flip) = (Some(4), 0.5, true);
    let mut class = tree.source("a");
    class.role = Role::Class;
    let dataset = Dataset::read(&[subject, class]).unwrap();
    let expected = owned([("z/a.png", "sks dog", 4), ("a/7_dog/b.png", "dog", 7), ("a/7_dog/c.png", "dog", 7)]);
    assert_eq!(tree.texts(&dataset), expected);
    let rest: Vec<_> = dataset.samples.iter().map(|s| (s.source, s.role, s.weight, s.flip)).collect();
    assert_eq!(rest, [(0, Role::Subject, 0.5, true), (1, Role::Class, 1.0, false), (1, Role::Class, 1.0, false)]);
}

#[test]
fn files_in_two_sources_of_one_role_are_warned_of() {
    let tree = Tree::of(KOHYA);
    let (whole, part) = (tree.source(""), tree.source("10_sks dog"));
    let dataset = Dataset::read(&[whole.clone(), part.clone()]).unwrap();
    assert_eq!(dataset.samples.len(), 8);
    assert_eq!(tree.warnings(&dataset), ["sources 1 and 2 share 3 images, such as 10_sks dog/a.png"]);
    let mut class = part;
    class.role = Role::Class;
    assert!(Dataset::read(&[whole, class]).unwrap().warnings.is_empty());
}

#[test]
fn file_names_can_be_the_captions() {
    let tree = Tree::of([
        ("a_red-ball (2).png", ""),
        ("a_red-ball (2).txt", "not this"),
        ("0001.png", ""),
        ("metadata.jsonl", "{}"),
    ]);
    let mut source = with_prompt(tree.source(""), "prompt");
    source.captions.from = CaptionSource::FileName;
    let dataset = Dataset::read(&[source]).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("0001.png", "prompt", 1), ("a_red-ball (2).png", "a red ball", 1)]));
    let is_name = SkipReason::CaptionIsFileName;
    assert_eq!(tree.skipped(&dataset), reasons([("a_red-ball (2).txt", is_name), ("metadata.jsonl", is_name)]));
    assert!(dataset.problems.is_empty() && dataset.warnings.is_empty());
    assert_eq!(dataset.places[0].captions, CaptionCounts { file_names: 1, prompts: 1, ..CaptionCounts::default() });
}

#[test]
fn whatever_is_not_used_is_said_and_hidden_files_are_not() {
    let tree = Tree::of([
        ("a.png", ""),
        (".hidden.png", ""),
        (".DS_Store", ""),
        ("README.md", ""),
        ("lost.txt", "x"),
        ("noextension", ""),
        (".thumbnails/a.png", ""),
        ("sub.png/lost.caption", "x"),
    ]);
    fs::create_dir(tree.path("empty")).unwrap();
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    assert_eq!(tree.images(&dataset), ["a.png"]);
    let expected = reasons([
        (".thumbnails", SkipReason::HiddenFolder),
        ("README.md", SkipReason::UnknownKind),
        ("empty", SkipReason::EmptyFolder),
        ("lost.txt", SkipReason::CaptionWithoutImage),
        ("noextension", SkipReason::UnknownKind),
        ("sub.png/lost.caption", SkipReason::CaptionWithoutImage),
    ]);
    assert_eq!(tree.skipped(&dataset), expected);
}

#[test]
fn only_where_nothing_can_be_listed_is_there_no_data_set() {
    let tree = Tree::of([("file.png", ""), ("good/a.png", ""), ("empty/notes.md", "")]);
    let missing = Dataset::read(&[tree.source("nowhere"), tree.source("file.png")]).unwrap_err();
    assert!(matches!(missing, DataError::FolderMissing { .. }) && missing.to_string().contains("nowhere"));
    assert!(missing.hint().is_some());
    assert!(matches!(Dataset::read(&[tree.source("file.png")]), Err(DataError::NotAFolder { .. })));
    assert!(matches!(Dataset::read(&[]), Err(DataError::NoSources)));

    let sources = ["nowhere", "good", "empty"].map(|name| with_prompt(tree.source(name), "p"));
    let dataset = Dataset::read(&sources).unwrap();
    assert_eq!(tree.texts(&dataset), owned([("good/a.png", "p", 1)]));
    assert_eq!(tree.problems(&dataset), ["no such folder: nowhere", "no images in empty (1 other entries)"]);
}

#[cfg(unix)]
#[test]
fn links_may_stay_in_the_folder_but_not_lead_out_of_it() {
    use std::os::unix::fs::symlink;
    let tree = Tree::of([("data/a.png", ""), ("secret.png", ""), ("secret.txt", "secret"), ("data/sub/f.png", "")]);
    let link = |to: &str, name: &str| symlink(to, tree.path(name)).unwrap();
    link("a.png", "data/b.png");
    link("../secret.png", "data/c.png");
    link("../secret.txt", "data/a.txt");
    link("nothing.png", "data/d.png");
    link("e.png", "data/e.png"); // a loop
    link("..", "data/sub/loop");
    link(".", "data/self");
    link("..", "data/up");
    link("sub", "data/again");
    let expected = reasons([
        ("data/a.txt", SkipReason::LinkOutside),
        ("data/again", SkipReason::LinkToFolder),
        ("data/c.png", SkipReason::LinkOutside),
        ("data/d.png", SkipReason::NotAFile),
        ("data/e.png", SkipReason::NotAFile),
        ("data/self", SkipReason::LinkToFolder),
        ("data/sub/loop", SkipReason::LinkToFolder),
        ("data/up", SkipReason::LinkOutside),
    ]);
    let dataset = Dataset::read(&[with_prompt(tree.source("data"), "p")]).unwrap();
    assert_eq!(
        tree.texts(&dataset),
        owned([("data/a.png", "p", 1), ("data/b.png", "p", 1), ("data/sub/f.png", "p", 1)])
    );
    assert_eq!(tree.skipped(&dataset), expected);

    // The source itself may be a link, and files in two sources are the same whatever leads to them.
    link("data", "link");
    let both = [tree.source("data"), tree.source("link")].map(|source| with_prompt(source, "p"));
    let dataset = Dataset::read(&both).unwrap();
    assert_eq!(tree.images(&dataset)[3..], ["link/a.png", "link/b.png", "link/sub/f.png"]);
    assert!(matches!(dataset.warnings[..], [Warning::ImagesShared { first: 0, second: 1, num_images: 3, .. }]));
}

#[cfg(unix)]
#[test]
fn sockets_and_pipes_are_never_opened() {
    let tree = Tree::of([("a.png", "x")]);
    let sockets = ["b.png", "a.txt"].map(|name| std::os::unix::net::UnixListener::bind(tree.path(name)).unwrap());
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    drop(sockets);
    assert_eq!(tree.images(&dataset), ["a.png"]);
    assert_eq!(tree.skipped(&dataset), reasons([("a.txt", SkipReason::NotAFile), ("b.png", SkipReason::NotAFile)]));
    let error = loralei_data::decode(&tree.path("b.png")).unwrap_err();
    assert!(matches!(error, DataError::ImageNotAFile { .. }), "{error:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_unicode_are_names_too() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let tree = Tree::of([]);
    for name in [&b"caf\xe9.png"[..], b"caf\xe9.txt", b"caf\xe9-masklabel.png"] {
        fs::write(tree.path("").join(OsStr::from_bytes(name)), "text").unwrap();
    }
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let [sample] = &dataset.samples[..] else { panic!("{:?}", dataset.samples) };
    assert_eq!(sample.caption.lines, ["text"]);
    assert!(sample.mask.as_ref().unwrap().as_os_str().as_bytes().ends_with(b"caf\xe9-masklabel.png"));
}

#[test]
fn a_folder_that_cannot_be_read_is_one_problem_among_others() {
    let tree = Tree::of([("a.png", ""), ("locked/b.png", "")]);
    let Ok(()) = lock(&tree.path("locked")) else { return };
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    unlock(&tree.path("locked"));
    let problems = tree.problems(&dataset);
    assert!(problems.len() == 2 && problems[0].starts_with("cannot read folder locked"), "{problems:?}");
    assert_eq!(problems[1], "no caption for a.png");
}

#[test]
fn the_data_sets_of_the_repository_are_read_without_a_word() {
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let dataset = Dataset::read(&["octopus", "sticker"].map(|name| source(&datasets.join(name)))).unwrap();
    assert!(dataset.samples.len() >= 16 && dataset.problems.is_empty() && dataset.warnings.is_empty(), "{dataset:?}");
    assert!(dataset.samples.iter().all(|sample| matches!(sample.caption.origin, CaptionOrigin::File(_))));
}

#[test]
fn a_sample_gives_its_picture_at_the_size_of_the_run() {
    let tree = Tree::of([]);
    let left_dark = RgbImage::from_fn(80, 40, |x, _| if x < 40 { [0, 0, 51].into() } else { [255, 204, 0].into() });
    left_dark.save(tree.path("a.png")).unwrap();
    let dataset = Dataset::read(&[with_prompt(tree.source(""), "p")]).unwrap();
    let (pixels, crop) = dataset.samples[0].pixels(20, 40).unwrap();
    assert_eq!((crop.original_width_px, crop.resized_width_px, crop.left_px, crop.top_px), (80, 80, 30, 0));
    let row: Vec<f32> = [[-1.0, -1.0, -0.6]; 10].into_iter().chain([[1.0, 0.6, -1.0]; 10]).flatten().collect();
    for found in pixels.data.chunks_exact(20 * 3) {
        assert!(found.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
fn ten_thousand_pictures_are_listed_in_well_under_a_second() {
    let tree = Tree::of([]);
    for folder in 0..10 {
        fs::create_dir(tree.path(&format!("{folder}"))).unwrap();
    }
    for number in 0..10_000 {
        let folder = number % 10;
        fs::write(tree.path(&format!("{folder}/{number:05}.png")), "").unwrap();
        fs::write(tree.path(&format!("{folder}/{number:05}.txt")), format!("sks dog, number {number}")).unwrap();
    }
    let start = Instant::now();
    let dataset = Dataset::read(&[tree.source("")]).unwrap();
    let elapsed_s = start.elapsed().as_secs_f64();
    println!("10,000 pictures and captions in {:.0} ms", elapsed_s * 1e3);
    assert_eq!((dataset.samples.len(), dataset.places.len(), dataset.skipped.len()), (10_000, 10, 0));
    assert_eq!(dataset.samples[1].caption.lines, ["sks dog, number 10"]);
    assert!(elapsed_s < 2.0, "{elapsed_s} s"); // a tenth of that; the margin is for a busy machine
}

#[cfg(unix)]
fn lock(path: &Path) -> Result<(), ()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if fs::read_dir(path).is_ok() { Err(()) } else { Ok(()) }
}

#[cfg(unix)]
fn unlock(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

#[cfg(not(unix))]
fn lock(_: &Path) -> Result<(), ()> {
    Err(())
}

#[cfg(not(unix))]
fn unlock(_: &Path) {}

//! Files are written whole or not at all.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its files plainly")]

use std::io::{self, Write};
use std::path::Path;

use loralei_adapter::{AdapterError, atomic_write, atomic_write_bytes};

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder with the file `a` of content `old`.
fn folder_with_old_file() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, "old").unwrap();
    (folder, path)
}

#[test]
fn a_new_file_replaces_the_old_one() {
    let (folder, path) = folder_with_old_file();
    atomic_write_bytes(&path, b"new").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn a_writer_that_fails_after_any_number_of_pieces_leaves_the_old_file() {
    let piece = vec![7_u8; 300_000]; // several of them overflow the buffer and reach the disk
    for num_good_pieces in 0..8 {
        let (folder, path) = folder_with_old_file();
        let write = |out: &mut dyn Write| {
            for _ in 0..num_good_pieces {
                out.write_all(&piece)?;
            }
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let error = atomic_write(&path, write, |_| Ok::<_, AdapterError>(())).unwrap_err();
        assert!(error.is_disk() && error.hint().unwrap().contains("space"), "{error:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names_in(folder.path()), ["a"]);
    }
}

#[test]
fn a_verifier_sees_the_finished_file_and_its_refusal_leaves_the_old_one() {
    let (folder, path) = folder_with_old_file();
    let verify = |temporary: &Path| {
        assert_eq!(std::fs::read(temporary).unwrap(), b"new");
        assert_eq!(temporary.parent(), path.parent());
        Err(AdapterError::NoModules { path: temporary.to_owned() })
    };
    let error = atomic_write(&path, |out| out.write_all(b"new"), verify).unwrap_err();
    assert!(matches!(error, AdapterError::NoModules { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn a_writer_that_panics_leaves_the_old_file_and_no_other() {
    let (folder, path) = folder_with_old_file();
    let result = std::panic::catch_unwind(|| {
        atomic_write(&path, |_| panic!("an encoder with a bug"), |_| Ok::<_, AdapterError>(()))
    });
    assert!(result.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["a"]);
}

#[test]
fn a_target_that_cannot_be_replaced_leaves_no_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("is-a-folder");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("inside"), "x").unwrap();
    assert!(atomic_write_bytes(&path, b"new").unwrap_err().is_disk());
    assert_eq!(names_in(folder.path()), ["is-a-folder"]);
    assert_eq!(names_in(&path), ["inside"]);
}

#[test]
fn a_missing_folder_is_named_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("absent").join("a");
    let error = atomic_write_bytes(&path, b"new").unwrap_err();
    assert!(error.to_string().contains("absent") && error.hint().unwrap().contains("folder"), "{error}");
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_a_plainly_created_file() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = folder_with_old_file(); // made with the mode that the umask leaves of 0666
    let ours = folder.path().join("ours");
    atomic_write_bytes(&ours, b"new").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&path));
}

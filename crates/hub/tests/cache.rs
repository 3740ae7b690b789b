//! The cache as Python's `huggingface_hub` leaves and finds it, and work without a network.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fake_hub;

use std::path::{Path, PathBuf};

use fake_hub::{COMMIT, FakeHub, Reply, Server, dead_endpoint, git_id, pipeline, settings, sha256};
use loralei_hub::{BaseOptions, Hub, HubError, HubEvent, HubSettings};

const OLD_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn fetch_id(settings: HubSettings, id: &str) -> Result<(PathBuf, Vec<String>), HubError> {
    let mut events = Vec::new();
    let mut on_event = |event: HubEvent<'_>| events.push(format!("{event:?}"));
    let path = Hub::new(settings)?.fetch_base(&id.parse()?, &BaseOptions::default(), &mut on_event)?;
    Ok((path, events))
}

fn fetch(settings: HubSettings) -> Result<(PathBuf, Vec<String>), HubError> {
    fetch_id(settings, "owner/name")
}

#[allow(clippy::disallowed_methods, reason = "files for the test")]
fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Puts files into a cache as Python does it: content under its ETag, a relative link, the commit under the branch.
#[cfg(unix)]
fn python_cache(cache: &Path, commit: &str, files: &[(&str, Vec<u8>)]) {
    let repo = cache.join("models--owner--name");
    for (path, content) in files {
        let etag = if path.ends_with(".safetensors") { sha256(content) } else { git_id(content) };
        write(&repo.join("blobs").join(&etag), content);
        let link = repo.join("snapshots").join(commit).join(path);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(path.matches('/').count() + 2);
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), link).unwrap();
    }
    write(&repo.join("refs/main"), commit);
}

#[test]
#[cfg(unix)]
fn the_layout_is_that_of_python() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    let (folder, _) = fetch(hub.settings(cache.path())).unwrap();
    let repo = cache.path().join("models--owner--name");
    let content = |wanted: &str| pipeline().into_iter().find(|(path, _)| *path == wanted).unwrap().1;
    let link = |path: &str| std::fs::read_link(folder.join(path)).unwrap();
    assert_eq!(link(UNET), PathBuf::from(format!("../../../blobs/{}", sha256(&content(UNET)))));
    let etag = git_id(&content("model_index.json"));
    assert_eq!(link("model_index.json"), PathBuf::from(format!("../../blobs/{etag}")));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(cache.path().join(format!(".locks/models--owner--name/{etag}.lock")).is_file());
    let blobs: Vec<_> =
        std::fs::read_dir(repo.join("blobs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(blobs.len(), 10);
    assert!(blobs.iter().all(|name| matches!(name.len(), 40 | 64)), "{blobs:?}");
}

#[test]
#[cfg(unix)]
fn what_python_has_downloaded_is_not_downloaded_again() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    // The same content at an older commit: new links, and no bytes of weights.
    python_cache(cache.path(), OLD_COMMIT, &pipeline());
    let (folder, _) = fetch(hub.settings(cache.path())).unwrap();
    assert!(folder.ends_with(COMMIT));
    for (path, content) in pipeline().iter().filter(|(path, _)| folder.join(path).exists()) {
        assert!(std::fs::read(folder.join(path)).unwrap() == *content);
    }
    assert_eq!(std::fs::read_to_string(cache.path().join("models--owner--name/refs/main")).unwrap(), COMMIT);
    let mut blobs: Vec<_> = std::fs::read_dir(cache.path().join("models--owner--name/blobs")).unwrap().collect();
    assert_eq!(blobs.len(), pipeline().len());
    blobs.clear();

    // The same commit: nothing but the list is asked for.
    let cache = tempfile::tempdir().unwrap();
    python_cache(cache.path(), COMMIT, &pipeline());
    hub.endpoint.take_requests();
    fetch(hub.settings(cache.path())).unwrap();
    assert_eq!(hub.endpoint.take_requests().len(), 1);
}

#[test]
#[cfg(unix)]
fn offline_the_cache_is_used_and_nobody_is_asked() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    let offline = || HubSettings { is_offline: true, ..hub.settings(cache.path()) };
    let error = fetch(offline()).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }) && error.hint().unwrap().contains("HF_HUB_OFFLINE"));

    python_cache(cache.path(), COMMIT, &pipeline());
    assert!(fetch(offline()).unwrap().0.join(UNET).is_file());
    assert!(fetch_id(offline(), &format!("owner/name@{COMMIT}")).is_ok());
    assert!(matches!(fetch_id(offline(), "owner/name@other"), Err(HubError::NotCached { .. })));
    std::fs::remove_file(cache.path().join("models--owner--name/snapshots").join(COMMIT).join("vae/config.json"))
        .unwrap();
    assert!(matches!(fetch(offline()), Err(HubError::MissingPart { part, .. }) if part == "vae/config.json"));
    assert!(hub.endpoint.take_requests().is_empty());
}

#[test]
fn without_a_network_or_a_repository_the_cache_is_used_and_says_so() {
    let cache = tempfile::tempdir().unwrap();
    assert!(fetch(settings(&dead_endpoint(), cache.path())).unwrap_err().is_network());
    let hub = FakeHub::start(&pipeline());
    let (folder, events) = fetch(hub.settings(cache.path())).unwrap();
    assert!(!events.iter().any(|event| event.starts_with("CacheInstead")));

    let deleted = Server::start(|_| Reply::new(401, &[("X-Error-Code", "RepoNotFound")], b""));
    for endpoint in [dead_endpoint(), deleted.url] {
        let (found, events) = fetch(settings(&endpoint, cache.path())).unwrap();
        assert_eq!(found, folder);
        assert!(events.len() == 1 && events[0].starts_with("CacheInstead"), "{events:?}");
    }
}

#[test]
fn a_revision_is_asked_for_and_found_again_offline() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    let id = "owner/name@refs/pr/1";
    let (folder, _) = fetch_id(hub.settings(cache.path()), id).unwrap();
    assert_eq!(hub.endpoint.take_requests()[0].path, "/api/models/owner/name/revision/refs%2Fpr%2F1");
    let noted = cache.path().join("models--owner--name/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(noted).unwrap(), COMMIT);
    let offline = || HubSettings { is_offline: true, ..hub.settings(cache.path()) };
    assert_eq!(fetch_id(offline(), id).unwrap().0, folder);
    assert!(matches!(fetch(offline()), Err(HubError::NotCached { .. })));
    assert!(matches!(fetch_id(hub.settings(cache.path()), "owner/name@nope"), Err(HubError::NoSuchRevision { .. })));
    assert!(fetch_id(hub.settings(cache.path()), &format!("owner/name@{COMMIT}")).is_ok());
    assert!(!cache.path().join("models--owner--name/refs").join(COMMIT).exists());
}

#[test]
fn a_file_that_is_named_comes_alone() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    let (path, _) = fetch_id(hub.settings(cache.path()), "owner/name/vae/diffusion_pytorch_model.bin").unwrap();
    assert_eq!(std::fs::read(path).unwrap().len(), 3);
    assert_eq!(hub.storage.take_requests().len(), 1);
    let error = fetch_id(hub.settings(cache.path()), "owner/name/nope.ckpt").unwrap_err();
    assert!(matches!(error, HubError::NoSuchFile { .. }));
}

#[test]
fn where_links_do_not_work_the_files_themselves_are_in_the_snapshot() {
    // Two files of the same content: the blob of the first is moved, so the second comes anew.
    let files = [("model_index.json", b"{}\n".to_vec()), ("twin.json", b"{}\n".to_vec())];
    let hub = FakeHub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let settings = || HubSettings { use_symlinks: false, ..hub.settings(cache.path()) };
    let all = |files: &[String]| Ok(files.to_vec());
    let fetch = || Hub::new(settings()).unwrap().fetch(&"owner/name".parse().unwrap(), &all, &mut |_| {}).unwrap();
    let snapshot = fetch();
    assert_eq!(snapshot.files, ["model_index.json", "twin.json"]);
    for (path, content) in &files {
        let path = snapshot.folder.join(path);
        assert!(path.is_file() && !path.is_symlink());
        assert_eq!(std::fs::read(path).unwrap(), *content);
    }
    hub.endpoint.take_requests();
    fetch();
    assert_eq!(hub.endpoint.take_requests().len(), 1);

    // A blob that is there already may belong to another snapshot, so it is copied.
    let cache = tempfile::tempdir().unwrap();
    let blob = cache.path().join("models--owner--name/blobs").join(git_id(b"{}\n"));
    write(&blob, "{}\n");
    let settings = HubSettings { use_symlinks: false, ..hub.settings(cache.path()) };
    let snapshot = Hub::new(settings).unwrap().fetch(&"owner/name".parse().unwrap(), &all, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join("twin.json")).unwrap(), b"{}\n");
    assert!(blob.is_file() && !snapshot.folder.join("twin.json").is_symlink());
}

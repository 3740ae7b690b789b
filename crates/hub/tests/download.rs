//! Downloads from a hub on the loopback interface, well and badly behaved.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fake_hub;

use std::path::{Path, PathBuf};
use std::time::Duration;

use fake_hub::{COMMIT, FakeHub, Reply, Server, dead_endpoint, git_id, listing, noise, pipeline, settings, sha256};
use loralei_hub::{BaseOptions, Hub, HubError, HubEvent, HubSettings};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn fetch_with(settings: HubSettings, id: &str, on_event: &mut dyn FnMut(HubEvent<'_>)) -> Result<PathBuf, HubError> {
    Hub::new(settings)?.fetch_base(&id.parse()?, &BaseOptions::default(), on_event)
}

fn fetch(settings: HubSettings) -> Result<PathBuf, HubError> {
    fetch_with(settings, "owner/name", &mut |_| {})
}

/// A hub with one checkpoint of a megabyte, which is in the storage.
fn one_checkpoint() -> (FakeHub, Vec<u8>) {
    let content = noise(1_000_000, 7);
    (FakeHub::start(&[("README.md", b"x".to_vec()), ("model.safetensors", content.clone())]), content)
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    server.take_requests().iter().map(|request| request.range().map(str::to_owned)).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() && !path.is_symlink() { files_below(&path) } else { vec![path] })
        .collect()
}

#[test]
fn a_pipeline_comes_whole_without_what_is_not_needed_and_only_once() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let folder =
        fetch_with(hub.settings(cache.path()), "owner/name", &mut |event| events.push(format!("{event:?}"))).unwrap();
    assert_eq!(folder, cache.path().join("models--owner--name/snapshots").join(COMMIT));
    let unwanted =
        |path: &str| path.contains("fp16") || path.contains("safety") || path.contains(".bin") || path == "README.md";
    let mut num_files = 0;
    for (path, content) in pipeline() {
        assert_eq!(folder.join(path).exists(), !unwanted(path), "{path}");
        if !unwanted(path) {
            assert!(std::fs::read(folder.join(path)).unwrap() == content, "{path} differs");
            num_files += 1;
        }
    }
    assert_eq!(num_files, 10);
    assert!(events.contains(&format!("Chosen {{ commit: {COMMIT:?}, num_files: 10, num_cached: 0 }}")));
    assert!(
        events.contains(&format!("Progress {{ file: {UNET:?}, done_bytes: 1000003, total_bytes: Some(1000003) }}"))
    );
    assert!(!events.iter().any(|event| event.starts_with("Retry") || event.starts_with("Unverified")), "{events:?}");

    hub.endpoint.take_requests();
    hub.storage.take_requests();
    assert_eq!(fetch(hub.settings(cache.path())).unwrap(), folder);
    let again: Vec<String> = hub.endpoint.take_requests().into_iter().map(|request| request.path).collect();
    assert_eq!(again, ["/api/models/owner/name/revision/main"]);
    assert!(hub.storage.take_requests().is_empty());
}

#[test]
fn the_token_goes_to_the_endpoint_and_never_to_the_storage() {
    let hub = FakeHub::start(&pipeline());
    let cache = tempfile::tempdir().unwrap();
    fetch(HubSettings { token: Some("hf_secret".to_owned()), ..hub.settings(cache.path()) }).unwrap();
    for request in hub.endpoint.take_requests() {
        assert_eq!(request.headers.get("authorization").unwrap(), "Bearer hf_secret", "{}", request.path);
    }
    let stored = hub.storage.take_requests();
    assert_eq!(stored.len(), 3);
    for request in stored {
        assert!(!format!("{request:?}").contains("hf_secret"), "{request:?}");
    }
}

#[test]
fn a_dropped_connection_goes_on_where_it_broke() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    // More breaks than attempts: as long as new bytes come, it is worth going on.
    hub.faults.lock().unwrap().cuts = [400_000, 1, 0, 99_999, 7, 10].into();
    let mut num_retries = 0;
    let path = fetch_with(hub.settings(cache.path()), "owner/name", &mut |event| {
        num_retries += usize::from(matches!(event, HubEvent::Retry { .. }));
    });
    assert!(std::fs::read(path.unwrap()).unwrap() == content);
    assert_eq!(num_retries, 6);
    let expected = [0, 400_000, 400_001, 400_001, 500_000, 500_007, 500_017];
    let expected = expected.map(|first| (first > 0).then(|| format!("bytes={first}-")));
    assert_eq!(ranges(&hub.storage), expected);
}

#[test]
fn the_next_run_goes_on_where_the_last_one_gave_up() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    hub.faults.lock().unwrap().cuts = [250_000].into();
    let error = fetch(HubSettings { num_attempts: 1, ..hub.settings(cache.path()) }).unwrap_err();
    assert!(matches!(error, HubError::Dropped { done_bytes: 250_000, .. }), "{error:?}");
    assert!(error.is_network() && error.hint().unwrap().contains("goes on where it stopped"));
    let repo = cache.path().join("models--owner--name");
    let incomplete = repo.join("blobs").join(format!("{}.incomplete", sha256(&content)));
    assert!(std::fs::read(incomplete).unwrap() == content[..250_000]);
    assert!(!repo.join("refs").exists() && files_below(&repo.join("snapshots")).is_empty());

    hub.storage.take_requests();
    let path = fetch(hub.settings(cache.path())).unwrap();
    assert!(std::fs::read(path).unwrap() == content);
    assert_eq!(ranges(&hub.storage).last().unwrap().as_deref(), Some("bytes=250000-"));
}

#[test]
fn a_server_that_knows_no_ranges_or_answers_with_others_is_read_from_the_start() {
    for shifts in [false, true] {
        let (hub, content) = one_checkpoint();
        let cache = tempfile::tempdir().unwrap();
        {
            let mut faults = hub.faults.lock().unwrap();
            (faults.cuts, faults.ignores_ranges, faults.shifts_ranges) = ([400_001].into(), !shifts, shifts);
        }
        let path = fetch(hub.settings(cache.path())).unwrap();
        assert!(std::fs::read(path).unwrap() == content);
        assert_eq!(ranges(&hub.storage)[1].as_deref(), Some("bytes=400001-"));
    }
}

#[test]
fn a_silent_server_is_given_up_and_asked_again() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    {
        let mut faults = hub.faults.lock().unwrap();
        (faults.cuts, faults.stall) = ([300_000].into(), Some(Duration::from_secs(20)));
    }
    let start = std::time::Instant::now();
    let path = fetch(HubSettings { timeout: Duration::from_millis(500), ..hub.settings(cache.path()) }).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(std::fs::read(path).unwrap() == content);
    assert_eq!(ranges(&hub.storage)[1].as_deref(), Some("bytes=300000-"));
}

#[test]
fn a_wrong_checksum_never_lands_in_the_cache() {
    for (file, content) in [("model.safetensors", noise(100_000, 1)), ("model.json", b"{}\n".to_vec())] {
        let hub = FakeHub::start(&[(file, content.clone())]);
        let cache = tempfile::tempdir().unwrap();
        hub.faults.lock().unwrap().corrupts = true;
        let error = fetch_with(hub.settings(cache.path()), &format!("owner/name/{file}"), &mut |_| {}).unwrap_err();
        let due = if file.ends_with("json") { git_id(&content) } else { sha256(&content) };
        assert!(matches!(&error, HubError::WrongChecksum { expected, .. } if *expected == due), "{error:?}");
        assert!(!error.is_network() && !error.is_disk() && error.hint().is_some());
        assert_eq!(files_below(&cache.path().join("models--owner--name")), Vec::<PathBuf>::new());

        hub.faults.lock().unwrap().corrupts = false;
        let path = fetch_with(hub.settings(cache.path()), &format!("owner/name/{file}"), &mut |_| {}).unwrap();
        assert!(std::fs::read(path).unwrap() == content);
    }
}

#[test]
fn a_damaged_beginning_is_found_when_the_rest_has_come() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    hub.faults.lock().unwrap().cuts = [250_000].into();
    fetch(HubSettings { num_attempts: 1, ..hub.settings(cache.path()) }).unwrap_err();
    let blobs = cache.path().join("models--owner--name/blobs");
    #[allow(clippy::disallowed_methods, reason = "damages a file on purpose")]
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(&content))), vec![0; 250_000]).unwrap();
    assert!(matches!(fetch(hub.settings(cache.path())), Err(HubError::WrongChecksum { .. })));
    assert!(files_below(&blobs).is_empty());
    assert!(fetch(hub.settings(cache.path())).is_ok());
}

#[test]
fn of_several_at_once_one_downloads_and_the_others_wait_for_it() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    hub.faults.lock().unwrap().delay = Duration::from_millis(50);
    let run = || {
        let mut has_progress = false;
        let mut on_event = |event: HubEvent<'_>| has_progress |= matches!(event, HubEvent::Progress { .. });
        let path = fetch_with(hub.settings(cache.path()), "owner/name", &mut on_event).unwrap();
        assert!(std::fs::read(path).unwrap() == content);
        has_progress
    };
    let num_downloads =
        std::thread::scope(|scope| [(); 4].map(|()| scope.spawn(run)).map(|run| usize::from(run.join().unwrap())))
            .iter()
            .sum::<usize>();
    assert_eq!(num_downloads, 1);
    let blobs = cache.path().join("models--owner--name/blobs");
    assert_eq!(files_below(&blobs), [blobs.join(sha256(&content))]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_a_clean_error_that_says_what_to_do() {
    let (hub, content) = one_checkpoint();
    let cache = tempfile::tempdir().unwrap();
    let blobs = cache.path().join("models--owner--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{}.incomplete", sha256(&content)))).unwrap();
    let error = fetch(hub.settings(cache.path())).unwrap_err();
    assert!(error.is_disk() && !error.is_network(), "{error:?}");
    assert!(error.hint().unwrap().starts_with("free some space"), "{:?}", error.hint());
}

#[test]
fn names_and_commits_that_could_leave_the_cache_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    for name in
        ["../../evil.safetensors", "/tmp/evil.safetensors", "unet/../../../evil.bin", "..\\\\evil.ckpt", "C:evil.ckpt"]
    {
        let server =
            Server::start(move |_| Reply::new(200, &[("ETag", "\"abc\"")], &listing(COMMIT, &["a.ckpt", name])));
        let error = fetch(settings(&server.url, cache.path())).unwrap_err();
        assert!(matches!(error, HubError::UnsafeName { .. }), "{name}: {error:?}");
    }
    for commit in ["../../x", "", "a/b"] {
        let server = Server::start(move |_| Reply::new(200, &[("ETag", "\"abc\"")], &listing(commit, &["a.ckpt"])));
        assert!(matches!(fetch(settings(&server.url, cache.path())), Err(HubError::BadCommit { .. })));
    }
    for etag in ["\"../../x\"", "\"\"", "\"a/b\""] {
        let server = Server::start(move |_| Reply::new(200, &[("ETag", etag)], &listing(COMMIT, &["a.ckpt"])));
        assert!(matches!(fetch(settings(&server.url, cache.path())), Err(HubError::NoEtag { .. })));
    }
    assert!(files_below(cache.path()).is_empty());
}

#[test]
fn more_bytes_than_announced_are_not_written_and_another_commit_is_not_taken() {
    let cache = tempfile::tempdir().unwrap();
    let serve = |headers: &'static [(&'static str, &'static str)]| {
        let server = Server::start(move |request| match request.path.as_str() {
            "/api/models/owner/name/revision/main" => Reply::new(200, &[], &listing(COMMIT, &["a.ckpt"])),
            _ => Reply::new(200, headers, b"0123456789"),
        });
        fetch(settings(&server.url, cache.path()))
    };
    assert!(matches!(
        serve(&[("ETag", "abc"), ("X-Linked-Size", "9")]),
        Err(HubError::TooLong { expected_bytes: 9, .. })
    ));
    assert!(matches!(serve(&[("ETag", "abc"), ("X-Repo-Commit", "fff")]), Err(HubError::OtherCommit { .. })));
    assert!(files_below(&cache.path().join("models--owner--name")).is_empty());
}

#[test]
fn an_etag_that_is_no_checksum_is_taken_with_a_warning() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/api/models/owner/name/revision/main" => Reply::new(200, &[], &listing(COMMIT, &["a.ckpt"])),
        _ => Reply::new(200, &[("ETag", "\"5f3c-1a2b\"")], b"0123456789"),
    });
    let mut warned = Vec::new();
    let path = fetch_with(settings(&server.url, cache.path()), "owner/name", &mut |event| {
        if let HubEvent::Unverified { file } = event {
            warned.push(file.to_owned());
        }
    });
    assert_eq!(std::fs::read(path.unwrap()).unwrap(), b"0123456789");
    assert_eq!(warned, ["a.ckpt"]);
}

#[test]
fn a_renamed_repository_is_followed_and_the_redirect_s_own_etag_does_not_count() {
    let cache = tempfile::tempdir().unwrap();
    let content = b"0123456789";
    let server = Server::start(move |request| match request.path.as_str() {
        "/api/models/owner/name/revision/main" => Reply::new(200, &[], &listing(COMMIT, &["a.ckpt"])),
        path if path.starts_with("/owner/name/") => {
            let location = path.replace("/owner/name/", "/owner/new/");
            Reply::new(307, &[("Location", &location), ("ETag", "\"abc\"")], b"Temporary Redirect")
        }
        _ => Reply::new(200, &[("ETag", &git_id(content))], content),
    });
    let token = Some("hf_secret".to_owned());
    let path = fetch(HubSettings { token, ..settings(&server.url, cache.path()) }).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content);
    assert!(cache.path().join("models--owner--name/blobs").join(git_id(content)).is_file());
    assert!(server.take_requests().iter().all(|request| request.headers.contains_key("authorization")));
}

#[test]
fn what_the_storage_says_about_a_file_does_not_count() {
    let cache = tempfile::tempdir().unwrap();
    let content = b"0123456789";
    let lies = [("X-Repo-Commit", "fff"), ("X-Linked-ETag", "\"abc\""), ("X-Linked-Size", "3")];
    let storage = Server::start(move |_| Reply::new(200, &lies, content));
    let location = storage.url.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        "/api/models/owner/name/revision/main" => Reply::new(200, &[], &listing(COMMIT, &["a.ckpt"])),
        _ => Reply::new(302, &[("Location", &location), ("ETag", &format!("\"{}\"", sha256(content)))], b""),
    });
    assert_eq!(std::fs::read(fetch(settings(&server.url, cache.path())).unwrap()).unwrap(), content);
}

#[test]
fn refusals_say_what_to_do_and_trouble_of_the_server_is_waited_out() {
    let cache = tempfile::tempdir().unwrap();
    let refused = |status: u16, code: &'static str, token: Option<&str>| {
        let server = Server::start(move |_| Reply::new(status, &[("X-Error-Code", code)], b"{}"));
        let token = token.map(str::to_owned);
        let error = fetch(HubSettings { token, ..settings(&server.url, cache.path()) }).unwrap_err();
        assert_eq!(server.take_requests().len(), if error.is_network() { 3 } else { 1 });
        (error.hint().unwrap(), error)
    };
    let (hint, error) = refused(401, "RepoNotFound", None);
    assert!(matches!(error, HubError::NoSuchRepo { .. }) && hint.contains("set HF_TOKEN"), "{hint}");
    let (hint, error) = refused(404, "", Some("hf_x"));
    assert!(matches!(error, HubError::NoSuchRepo { .. }) && hint.contains("check the id at"), "{hint}");
    let (hint, error) = refused(401, "GatedRepo", None);
    assert!(matches!(error, HubError::Gated { .. }) && hint.contains("/owner/name, then set HF_TOKEN"), "{hint}");
    let (hint, error) = refused(403, "", Some("hf_x"));
    assert!(matches!(error, HubError::Gated { .. }) && hint.contains("account that the token"), "{hint}");
    let (_, error) = refused(404, "RevisionNotFound", None);
    assert!(matches!(error, HubError::NoSuchRevision { .. }));
    let (_, error) = refused(503, "", None);
    assert!(matches!(error, HubError::Status { status: 503, .. }));
    assert!(matches!(fetch(settings(&dead_endpoint(), cache.path())), Err(error) if error.is_network()));
    assert!(matches!(fetch(settings("ftp://x", cache.path())), Err(HubError::BadEndpoint { .. })));
}

//! A hub on the loopback interface: an endpoint that lists and serves small files, and a storage on another port to
//! which it redirects for weights. Every request is recorded; faults can be asked for.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::format_push_string, clippy::format_collect, reason = "a part of tests")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loralei_hub::HubSettings;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came in; header names in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn range(&self) -> Option<&str> {
        self.headers.get("range").map(String::as_str)
    }

    fn first_byte(&self) -> usize {
        self.range().map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Bytes of the body after which the connection is closed, or (with `stall`) goes silent.
    pub(crate) cut_after: Option<usize>,
    pub(crate) stall: Option<Duration>,
}

impl Reply {
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { status, headers, body: body.to_vec(), ..Self::default() }
    }
}

pub(crate) struct Server {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test program ends.
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (record, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
                std::thread::spawn(move || {
                    if let Some(request) = read_request(&stream) {
                        record.lock().unwrap().push(request.clone());
                        let reply = answer(&request);
                        let _ = send(&stream, &reply);
                    }
                });
            }
        });
        Self { url, requests }
    }

    /// The requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.strip_prefix("GET ")?.split(' ').next()?.to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { path, headers })
}

fn send(mut stream: &TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.cut_after.unwrap_or(reply.body.len())])?;
    stream.flush()?;
    if let Some(silence) = reply.stall {
        std::thread::sleep(silence);
    }
    Ok(())
}

/// What goes wrong at the storage. Each request takes the next cut, until there are none.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) cuts: VecDeque<usize>,
    pub(crate) stall: Option<Duration>,
    pub(crate) ignores_ranges: bool,
    pub(crate) shifts_ranges: bool,
    pub(crate) corrupts: bool,
    pub(crate) delay: Duration,
}

pub(crate) struct FakeHub {
    pub(crate) endpoint: Server,
    pub(crate) storage: Server,
    pub(crate) faults: Arc<Mutex<Faults>>,
}

impl FakeHub {
    /// A hub with the repository `owner/name`. What ends like weights is in the storage.
    pub(crate) fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let files: Arc<BTreeMap<String, Vec<u8>>> =
            Arc::new(files.iter().map(|(path, content)| ((*path).to_owned(), content.clone())).collect());
        let faults = Arc::new(Mutex::new(Faults::default()));
        let stored: BTreeMap<String, Vec<u8>> =
            files.values().map(|content| (sha256(content), content.clone())).collect();
        let storage_faults = Arc::clone(&faults);
        let storage = Server::start(move |request| stored_reply(request, &stored, &mut storage_faults.lock().unwrap()));
        let (storage_url, endpoint_faults) = (storage.url.clone(), Arc::clone(&faults));
        let endpoint = Server::start(move |request| {
            let corrupts = endpoint_faults.lock().unwrap().corrupts;
            endpoint_reply(request, &files, &storage_url, corrupts)
        });
        Self { endpoint, storage, faults }
    }

    pub(crate) fn settings(&self, cache: &Path) -> HubSettings {
        settings(&self.endpoint.url, cache)
    }
}

pub(crate) fn settings(endpoint: &str, cache: &Path) -> HubSettings {
    let first_wait = Duration::from_millis(1);
    HubSettings { endpoint: endpoint.to_owned(), first_wait, num_attempts: 3, ..HubSettings::new(cache) }
}

/// An endpoint at which nobody listens.
pub(crate) fn dead_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

pub(crate) fn listing(commit: &str, files: &[&str]) -> Vec<u8> {
    let siblings: Vec<String> = files.iter().map(|file| format!(r#"{{"rfilename": "{file}"}}"#)).collect();
    format!(r#"{{"id": "owner/name", "sha": "{commit}", "siblings": [{}]}}"#, siblings.join(", ")).into_bytes()
}

fn is_large(path: &str) -> bool {
    [".safetensors", ".ckpt", ".bin"].iter().any(|ending| path.ends_with(ending))
}

fn endpoint_reply(request: &Request, files: &BTreeMap<String, Vec<u8>>, storage: &str, corrupts: bool) -> Reply {
    let revisions = ["main", COMMIT, "refs%2Fpr%2F1"];
    if let Some(revision) = request.path.strip_prefix("/api/models/owner/name/revision/") {
        if !revisions.contains(&revision) {
            return Reply::new(404, &[("X-Error-Code", "RevisionNotFound")], b"");
        }
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        return Reply::new(200, &[("Content-Type", "application/json")], &listing(COMMIT, &names));
    }
    let path = request.path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
    let Some((path, content)) = path.and_then(|path| files.get_key_value(path)) else {
        return Reply::new(404, &[("X-Error-Code", "EntryNotFound")], b"");
    };
    if is_large(path) {
        let etag = sha256(content);
        let (location, size) = (format!("{storage}/{etag}?signature=secret"), content.len().to_string());
        let headers = [
            ("Location", location.as_str()),
            ("X-Repo-Commit", COMMIT),
            ("ETag", "\"of-the-pointer\""),
            ("X-Linked-ETag", &format!("\"{etag}\"")),
            ("X-Linked-Size", &size),
        ];
        return Reply::new(302, &headers, b"Found. Redirecting");
    }
    let etag = format!("W/\"{}\"", git_id(content));
    Reply::new(200, &[("X-Repo-Commit", COMMIT), ("ETag", &etag)], &maybe_corrupt(content, corrupts))
}

fn stored_reply(request: &Request, stored: &BTreeMap<String, Vec<u8>>, faults: &mut Faults) -> Reply {
    std::thread::sleep(faults.delay);
    let path = request.path.strip_prefix('/').and_then(|path| path.strip_suffix("?signature=secret"));
    let Some(content) = path.and_then(|path| stored.get(path)) else { return Reply::new(403, &[], b"") };
    let content = maybe_corrupt(content, faults.corrupts);
    let first = if faults.ignores_ranges { 0 } else { request.first_byte() };
    // Some caches send whole blocks.
    let first = if faults.shifts_ranges { first / 1000 * 1000 } else { first };
    let range = format!("bytes {first}-{}/{}", content.len() - 1, content.len());
    let headers =
        [("ETag", "\"of-the-storage\""), ("X-Repo-Commit", "of-the-storage"), ("Content-Range", range.as_str())];
    let (status, headers) = if first > 0 { (206, &headers[..]) } else { (200, &headers[..2]) };
    let mut reply = Reply::new(status, headers, &content[first..]);
    reply.cut_after = faults.cuts.pop_front();
    reply.stall = reply.cut_after.and(faults.stall);
    reply
}

fn maybe_corrupt(content: &[u8], corrupts: bool) -> Vec<u8> {
    let mut content = content.to_vec();
    if corrupts && let Some(byte) = content.last_mut() {
        *byte ^= 1;
    }
    content
}

/// Content that no piece of can be taken for another.
pub(crate) fn noise(num_bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    std::iter::repeat_with(next).take(num_bytes).collect()
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub(crate) fn git_id(content: &[u8]) -> String {
    let mut text = format!("blob {}\0", content.len()).into_bytes();
    text.extend_from_slice(content);
    hex(&Sha1::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A small pipeline, and what repositories hold besides.
pub(crate) fn pipeline() -> Vec<(&'static str, Vec<u8>)> {
    let text = |seed| format!("{{\"number\": {seed}}}\n").into_bytes();
    vec![
        ("README.md", b"read me\n".to_vec()),
        ("model_index.json", text(1)),
        ("safety_checker/model.safetensors", noise(900, 9)),
        ("scheduler/scheduler_config.json", text(2)),
        ("text_encoder/config.json", text(3)),
        ("text_encoder/model.safetensors", noise(70_000, 1)),
        ("tokenizer/merges.txt", Vec::new()),
        ("tokenizer/vocab.json", text(5)),
        ("unet/config.json", text(6)),
        ("unet/diffusion_pytorch_model.fp16.safetensors", noise(500_001, 2)),
        ("unet/diffusion_pytorch_model.safetensors", noise(1_000_003, 3)),
        ("vae/config.json", text(7)),
        ("vae/diffusion_pytorch_model.bin", noise(3, 4)),
        ("vae/diffusion_pytorch_model.safetensors", noise(300_000, 5)),
    ]
}

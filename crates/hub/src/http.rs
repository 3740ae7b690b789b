//! Requests to the endpoint, with redirects followed by hand: the token stays with the endpoint, and what the hub says
//! about a large file is in its first answer, not in that of the storage to which it redirects.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::{HubError, HubId, HubSettings};

const MAX_REDIRECTS: usize = 10;
const MAX_RETRY_AFTER_S: u64 = 60;

pub(crate) struct Http {
    agent: Agent,
    endpoint: Uri,
    base: String,
    token: Option<String>,
}

/// What the endpoint says about a file.
#[derive(Debug, Default, Clone)]
pub(crate) struct RemoteFile {
    /// Commit that the file was taken from.
    pub(crate) commit: Option<String>,
    /// ETag of the content, as it is written in the header.
    pub(crate) etag: Option<String>,
    pub(crate) size_bytes: Option<u64>,
}

/// The last answer of a chain of redirects (status 200, 206 or 416), and what was said about the file on the way.
pub(crate) struct Answer {
    pub(crate) remote: RemoteFile,
    pub(crate) response: Response<Body>,
}

impl Answer {
    fn checked(uri: &Uri, mut remote: RemoteFile, response: Response<Body>) -> Result<Self, HubError> {
        match response.status() {
            StatusCode::OK => {
                remote.size_bytes = remote.size_bytes.or_else(|| number(response.headers(), CONTENT_LENGTH.as_str()));
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {}
            status => {
                let retry_after = number(response.headers(), RETRY_AFTER.as_str());
                let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.min(MAX_RETRY_AFTER_S)));
                let code = text(response.headers(), "x-error-code");
                return Err(HubError::Status { url: without_query(uri), status: status.as_u16(), code, retry_after });
            }
        }
        Ok(Self { remote, response })
    }

    /// First byte and total of a 206 answer.
    pub(crate) fn content_range(&self) -> Option<(u64, Option<u64>)> {
        let value = text(self.response.headers(), CONTENT_RANGE.as_str())?;
        let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
        Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
    }
}

impl Http {
    pub(crate) fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let bad_endpoint = || HubError::BadEndpoint { endpoint: settings.endpoint.clone() };
        let base = settings.endpoint.trim_end_matches('/').to_owned();
        let endpoint: Uri = base.parse().map_err(|_| bad_endpoint())?;
        let is_http = matches!(endpoint.scheme_str(), Some("http" | "https"));
        if !is_http || endpoint.host().is_none() || endpoint.query().is_some() {
            return Err(bad_endpoint());
        }
        let timeout = Some(settings.timeout);
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("loralei/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length and checksum.
            .accept_encoding("identity")
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_send_request(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout);
        if !settings.use_env_proxy {
            config = config.proxy(None);
        }
        if let Some(tls) = tls_config(settings)? {
            config = config.tls_config(tls);
        }
        Ok(Self { agent: config.build().new_agent(), endpoint, base, token: settings.token.clone() })
    }

    pub(crate) fn listing_url(&self, id: &HubId) -> String {
        format!("{}/api/models/{}/revision/{}", self.base, id.repo(), escaped(id.revision(), false))
    }

    pub(crate) fn file_url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.base, id.repo(), escaped(file, true))
    }

    /// Asks for `url`, from byte `first_byte` on if that is not 0.
    pub(crate) fn get(&self, url: &str, first_byte: u64) -> Result<Answer, HubError> {
        let mut uri: Uri = url.parse().map_err(|_| HubError::BadEndpoint { endpoint: url.to_owned() })?;
        let mut remote = RemoteFile::default();
        let mut is_at_endpoint = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&uri, first_byte)?;
            let next = redirected_to(&uri, &response)?;
            if is_at_endpoint {
                let stays = next.as_ref().is_some_and(|next| is_same_origin(next, &self.endpoint));
                remote.update(response.headers(), stays, response.status());
                is_at_endpoint = stays;
            }
            match next {
                Some(next) => uri = next,
                None => return Answer::checked(&uri, remote, response),
            }
        }
        Err(HubError::Redirect { url: without_query(&uri), location: "too many times".to_owned() })
    }

    fn request(&self, uri: &Uri, first_byte: u64) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(uri);
        if let Some(token) = &self.token
            && is_same_origin(uri, &self.endpoint)
        {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if first_byte > 0 {
            request = request.header(RANGE, format!("bytes={first_byte}-"));
        }
        request.call().map_err(|source| HubError::Connect { url: without_query(uri), source: Box::new(source) })
    }

    /// What a refusal of the endpoint means, from the hub's own code if it sent one, else from the status.
    pub(crate) fn explain(&self, id: &HubId, file: Option<&str>, error: HubError) -> HubError {
        let HubError::Status { url, status, code, .. } = &error else { return error };
        if !url.starts_with(&self.base) {
            return error;
        }
        let (repo, page, has_token) = (id.repo(), format!("{}/{}", self.base, id.repo()), self.token.is_some());
        let code = code.as_deref().unwrap_or_default();
        match (code, status, file) {
            ("RevisionNotFound", ..) => HubError::NoSuchRevision { repo, revision: id.revision().to_owned() },
            ("GatedRepo", ..) => HubError::Gated { repo, page, has_token },
            ("RepoNotFound", ..) | (_, 401 | 404, None) => HubError::NoSuchRepo { repo, page, has_token },
            (_, 401 | 403, _) => HubError::Gated { repo, page, has_token },
            (_, 404, Some(file)) => HubError::NoSuchFile { repo, file: file.to_owned(), others: Vec::new() },
            _ => error,
        }
    }
}

impl RemoteFile {
    /// Takes what an answer of the endpoint says. A redirect to another address of the endpoint (a renamed repository)
    /// has an ETag of its own text, which does not count.
    fn update(&mut self, headers: &HeaderMap, is_internal_redirect: bool, status: StatusCode) {
        let etag = || if is_internal_redirect { None } else { text(headers, ETAG.as_str()) };
        self.etag = self.etag.take().or_else(|| text(headers, "x-linked-etag")).or_else(etag);
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
        let length = || if status == StatusCode::OK { number(headers, CONTENT_LENGTH.as_str()) } else { None };
        self.size_bytes = self.size_bytes.or_else(|| number(headers, "x-linked-size")).or_else(length);
    }
}

fn tls_config(settings: &HubSettings) -> Result<Option<TlsConfig>, HubError> {
    let Some(path) = &settings.ca_file else { return Ok(None) };
    let pem = std::fs::read(path).map_err(|source| HubError::Read { path: path.clone(), source })?;
    let bad = |source| HubError::BadCertificates { path: path.clone(), source: Box::new(source) };
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(bad)? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(bad(ureq::Error::Tls("no certificate in the file")));
    }
    Ok(Some(TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(certificates))).build()))
}

/// Where an answer redirects to; an encrypted connection is not left for a plain one.
fn redirected_to(from: &Uri, response: &Response<Body>) -> Result<Option<Uri>, HubError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
    let refused = || HubError::Redirect { url: without_query(from), location: location.clone() };
    let next = resolved(from, &location).ok_or_else(refused)?;
    match (from.scheme_str(), next.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) if next.host().is_some() => Ok(Some(next)),
        _ => Err(refused()),
    }
}

/// RFC 3986, section 5.2, for the references that occur in a `Location`.
fn resolved(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let is_absolute = location.split(['/', '?']).next().is_some_and(|start| start.ends_with(':'));
    let text = if location.is_empty() {
        return None;
    } else if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    text.parse().ok()
}

fn is_same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// For messages: signed addresses carry their secret in the query.
fn without_query(uri: &Uri) -> String {
    uri.to_string().split('?').next().unwrap_or_default().to_owned()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// Percent-encoding of all but the unreserved characters (RFC 3986) and, in a path, the slash.
fn escaped(path: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if keep_slash => out.push('/'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn locations_are_resolved_as_browsers_do() {
        let from = uri("https://hub.test/a/b/resolve/c/unet/x.bin?download=1");
        for (location, expected) in [
            ("https://cdn.test/x?sig=1#f", "https://cdn.test/x?sig=1"),
            ("//cdn.test/x", "https://cdn.test/x"),
            ("/new/b/x?u=http://z", "https://hub.test/new/b/x?u=http://z"),
            ("y.bin", "https://hub.test/a/b/resolve/c/unet/y.bin"),
        ] {
            assert_eq!(resolved(&from, location), Some(uri(expected)), "{location}");
        }
        assert_eq!(resolved(&from, ""), None);
    }

    #[test]
    fn the_token_s_origin_is_scheme_host_and_port_and_not_what_precedes_an_at() {
        let hub = uri("https://hub.test");
        assert!(is_same_origin(&uri("https://HUB.test:443/x"), &hub));
        for other in ["http://hub.test/", "https://hub.test:8443/", "https://hub.test.evil/", "https://hub.test@evil/x"]
        {
            assert!(!is_same_origin(&uri(other), &hub), "{other}");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a file for the test")]
    fn a_file_without_certificates_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let settings = HubSettings { ca_file: Some(path.clone()), ..HubSettings::new(folder.path()) };
        assert!(matches!(Http::new(&settings), Err(HubError::Read { .. })));
        std::fs::write(&path, "no certificate\n").unwrap();
        assert!(matches!(Http::new(&settings), Err(HubError::BadCertificates { .. })));
    }

    #[test]
    fn names_are_escaped_in_addresses() {
        assert_eq!(escaped("a b/\u{e9}+1.bin", true), "a%20b/%C3%A9%2B1.bin");
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
    }

    #[test]
    fn an_encrypted_connection_is_not_left_for_a_plain_one() {
        let redirect = |location: &str| {
            Response::builder().status(302).header(LOCATION, location).body(Body::builder().data("")).unwrap()
        };
        let (safe, plain) = (uri("https://hub.test/x"), uri("http://hub.test/x"));
        assert!(matches!(redirected_to(&safe, &redirect("http://cdn.test/y")), Err(HubError::Redirect { .. })));
        assert!(matches!(redirected_to(&plain, &redirect("file:///etc/passwd")), Err(HubError::Redirect { .. })));
        assert_eq!(redirected_to(&plain, &redirect("http://cdn.test/y")).unwrap(), Some(uri("http://cdn.test/y")));
        assert_eq!(redirected_to(&plain, &redirect("https://cdn.test/y")).unwrap(), Some(uri("https://cdn.test/y")));
    }
}

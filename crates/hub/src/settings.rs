//! Where the hub and its cache are, and with which patience it is asked.
//!
//! The environment variables are those of Python's `huggingface_hub`, so that both programs share one cache and one
//! sign-in.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const NUM_ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of a [`crate::Hub`]. [`HubSettings::from_env`] is what a program wants, [`HubSettings::new`] what a test does.
#[derive(Clone)]
pub struct HubSettings {
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The user's secret; goes to the endpoint and nowhere else.
    pub token: Option<String>,
    /// The folder that holds `models--OWNER--NAME`.
    pub cache: PathBuf,
    /// Only use what the cache has.
    pub is_offline: bool,
    /// Snapshots hold links into `blobs`; else (or where the file system has no links) the files themselves.
    pub use_symlinks: bool,
    /// Take `HTTPS_PROXY` and its like from the environment.
    pub use_env_proxy: bool,
    /// Certificates (PEM) to trust instead of Mozilla's, as behind a company's proxy.
    pub ca_file: Option<PathBuf>,
    /// Failures in a row without a new byte after which a download gives up.
    pub num_attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub first_wait: Duration,
    /// Longest silence of a server, at every stage.
    pub timeout: Duration,
}

impl HubSettings {
    /// The public hub, nobody signed in, with the given cache folder; nothing of the environment counts.
    pub fn new(cache: &Path) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            cache: cache.to_owned(),
            is_offline: false,
            use_symlinks: true,
            use_env_proxy: false,
            ca_file: None,
            num_attempts: NUM_ATTEMPTS,
            first_wait: FIRST_WAIT,
            timeout: TIMEOUT,
        }
    }

    /// What the environment says: `HF_ENDPOINT`, `HF_TOKEN` (or the file `HF_TOKEN_PATH`, `$HF_HOME/token`),
    /// `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, `HF_HUB_DISABLE_SYMLINKS`,
    /// `REQUESTS_CA_BUNDLE` or `SSL_CERT_FILE`, and the usual variables of a proxy.
    ///
    /// # Errors
    /// [`HubError::NoHome`] if neither these nor a home folder say where the cache is.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var_os(name), std::env::home_dir().as_deref())
    }

    /// [`HubSettings::from_env`] with the environment as a function and the user's home folder.
    ///
    /// # Errors
    /// [`HubError::NoHome`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(|value| expand_home(PathBuf::from(value), home));
        let is_true = |name: &str| text(name).is_some_and(|value| is_true(&value));

        let hf_home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| home.map(|home| home.join(".cache/huggingface")));
        let in_hf_home = |name: &str| hf_home.as_ref().map(|folder| folder.join(name));
        let cache = path("HF_HUB_CACHE").or_else(|| in_hf_home("hub")).ok_or(HubError::NoHome)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| in_hf_home("token"));
        let stored_token = || std::fs::read_to_string(token_file?).ok();

        Ok(Self {
            endpoint: text("HF_ENDPOINT")
                .map_or(DEFAULT_ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned()),
            token: text("HF_TOKEN")
                .or_else(stored_token)
                .map(|token| token.trim().to_owned())
                .filter(|t| !t.is_empty()),
            is_offline: is_true("HF_HUB_OFFLINE"),
            use_symlinks: !is_true("HF_HUB_DISABLE_SYMLINKS"),
            use_env_proxy: true,
            ca_file: path("REQUESTS_CA_BUNDLE").or_else(|| path("SSL_CERT_FILE")),
            ..Self::new(&cache)
        })
    }
}

impl fmt::Debug for HubSettings {
    /// Everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(secret)"))
            .field("cache", &self.cache)
            .field("is_offline", &self.is_offline)
            .finish_non_exhaustive()
    }
}

/// The spellings of "yes" that huggingface_hub takes.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

fn expand_home(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)], home: Option<&str>) -> Result<HubSettings, HubError> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        HubSettings::from_variables(find, home.map(Path::new))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[(&str, &str)]| with(variables, Some("/home/u")).unwrap().cache;
        assert_eq!(cache(&[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")]), Path::new("/home/u/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(cache(&[("HF_HOME", "")]), Path::new("/home/u/.cache/huggingface/hub"));
        assert!(matches!(with(&[], None), Err(HubError::NoHome)));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a file for the test")]
    fn the_token_comes_from_the_variable_or_the_file_and_is_never_printed() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_stored\n").unwrap();
        let hf_home = home.path().to_str().unwrap();
        let stored = with(&[("HF_HOME", hf_home)], None).unwrap();
        assert_eq!(stored.token.as_deref(), Some("hf_stored"));
        let given = with(&[("HF_HOME", hf_home), ("HF_TOKEN", " hf_given ")], None).unwrap();
        assert_eq!(given.token.as_deref(), Some("hf_given"));
        assert!(!format!("{given:?}").contains("hf_given"));
    }

    #[test]
    fn endpoint_and_switches_are_read() {
        let variables = [("HF_ENDPOINT", "http://mirror:8080/hf/"), ("HF_HUB_OFFLINE", "yes")];
        let settings = with(&variables, Some("/home/u")).unwrap();
        assert_eq!(settings.endpoint, "http://mirror:8080/hf");
        assert!(settings.is_offline && settings.use_symlinks);
        let settings = with(&[("HF_HUB_OFFLINE", "0"), ("HF_HUB_DISABLE_SYMLINKS", "1")], Some("/home/u")).unwrap();
        assert!(!settings.is_offline && !settings.use_symlinks);
        assert_eq!(settings.endpoint, "https://huggingface.co");
    }
}

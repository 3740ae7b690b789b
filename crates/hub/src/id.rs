//! What a user calls a model on the hub: `OWNER/NAME[/FILE][@REVISION]`.

use std::fmt;
use std::str::FromStr;

use crate::HubError;

const DEFAULT_REVISION: &str = "main";
const MAX_NAME_BYTES: usize = 96;
const MAX_PATH_BYTES: usize = 1024;

/// A repository of models, the revision wanted, and the one file wanted, if the user named one.
///
/// ```
/// use loralei_hub::HubId;
/// let id: HubId = "owner/name/v1-5-pruned.safetensors@refs/pr/3".parse()?;
/// assert_eq!((id.owner(), id.name(), id.revision()), ("owner", "name", "refs/pr/3"));
/// assert_eq!(id.file(), Some("v1-5-pruned.safetensors"));
/// # Ok::<(), loralei_hub::HubError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    owner: String,
    name: String,
    file: Option<String>,
    revision: Option<String>,
}

impl HubId {
    /// The user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The repository's name, without the owner.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one file that was named, as a path in the repository.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// A branch, a tag or a commit; `main` unless one was named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// `OWNER/NAME`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl FromStr for HubId {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::BadId { id: text.to_owned(), reason };
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return Err(bad("an owner and a name with a slash between them are needed"));
        };
        let file = parts.next();
        if !is_name(owner) || !is_name(name) || name.strip_suffix(".git").is_some() {
            return Err(bad("owner and name have letters, digits, single '-' and '.', and '_' only, 96 at most"));
        }
        if file.is_some_and(|file| !is_safe_path(file)) {
            return Err(bad("what follows the name is no path of a file in it"));
        }
        if revision.is_some_and(|revision| !is_safe_path(revision) || revision.contains(char::is_whitespace)) {
            return Err(bad("what follows '@' is no branch, tag or commit"));
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// The hub's own rule; with it, `models--OWNER--NAME` is one plain folder that stands for one repository only.
fn is_name(name: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    name.len() <= MAX_NAME_BYTES
        && name.chars().all(is_inner)
        && is_edge(name.chars().next())
        && is_edge(name.chars().next_back())
        && !name.contains("--")
        && !name.contains("..")
}

/// Whether a path with forward slashes stays, on every system, below the folder that it is joined to.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let is_safe_char = |c: char| !c.is_control() && !matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    path.len() <= MAX_PATH_BYTES
        && path.chars().all(is_safe_char)
        && path.split('/').all(|part| !part.is_empty() && part.len() <= 255 && part != "." && part != "..")
}

/// Whether a path would, on some system, leave the folder that it is joined to: never written by mistake.
pub(crate) fn climbs(path: &str) -> bool {
    let is_drive = path.as_bytes().get(1) == Some(&b':');
    is_drive || path.starts_with(['/', '\\']) || path.split(['/', '\\']).any(|part| part == "..")
}

/// Whether a word from a server (a commit, an ETag) may name a file: what hashes are made of, and nothing else.
pub(crate) fn is_safe_word(word: &str) -> bool {
    (1..=128).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_back() {
        for text in ["a/b", "stable-diffusion-v1-5/x_y.z@fp16", "a/b/c/d.ckpt", "a/b/c.safetensors@refs/pr/1"] {
            assert_eq!(text.parse::<HubId>().unwrap().to_string(), text);
        }
        let id: HubId = "a/b".parse().unwrap();
        assert_eq!((id.repo().as_str(), id.revision(), id.file()), ("a/b", "main", None));
    }

    #[test]
    fn what_could_leave_the_cache_or_the_url_is_no_id() {
        let bad = [
            "",
            "a",
            "a/",
            "/b",
            "../b",
            "a/..",
            "a/b/",
            "a/b/../c",
            "a/b//c",
            "a/b@",
            "a/b@../x",
            "a/b@x y",
            "a--x/b",
            "a/b.git",
            "a/.b",
            "-a/b",
            "a/b?c",
            "a/b/c\\d",
            "a/b/c:d",
            "a/b@/x",
            "https://huggingface.co/a/b",
            "a/b/\n",
        ];
        for text in bad {
            assert!(matches!(text.parse::<HubId>(), Err(HubError::BadId { .. })), "{text:?} was taken");
        }
        for path in ["../x", "a/../../x", "/etc/x", "\\x", "a\\..\\x", "C:x", ".."] {
            assert!(climbs(path) && !is_safe_path(path), "{path}");
        }
        assert!(!climbs("a..b/c") && is_safe_path("a..b/c"));
        assert!(!climbs("at 12:30?.png") && !is_safe_path("at 12:30?.png"));
        assert!(format!("a/{}", "b".repeat(96)).parse::<HubId>().is_ok());
        assert!(format!("a/{}", "b".repeat(97)).parse::<HubId>().is_err());
    }
}

//! Which content an ETag of the hub stands for, and whether a file has it.
//!
//! Files in Git LFS carry the SHA-256 of their bytes (64 hex digits), all others the id that Git gives their content:
//! the SHA-1 of `blob LENGTH`, a zero byte and the bytes (40 hex digits).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

const BUFFER_BYTES: usize = 1 << 20;

/// The checksum of the file at `path`, of the kind that `etag` is; `None` if it is neither kind.
pub(crate) fn of_kind(etag: &str, path: &Path) -> io::Result<Option<String>> {
    if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let file = File::open(path)?;
    match etag.len() {
        64 => digest(Sha256::new(), file).map(Some),
        40 => {
            let header = format!("blob {}\0", file.metadata()?.len());
            digest(Sha1::new_with_prefix(header), file).map(Some)
        }
        _ => Ok(None),
    }
}

fn digest<D: Digest>(mut digest: D, mut file: File) -> io::Result<String> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(num_bytes) => digest.update(&buffer[..num_bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(digest.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a file for the test")]
    fn both_kinds_are_what_git_and_sha256sum_print() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `git hash-object x` and `sha256sum x`
        let (git, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        assert_eq!(of_kind(git, &path).unwrap().as_deref(), Some(git));
        assert_eq!(of_kind(sha256, &path).unwrap().as_deref(), Some(sha256));
        assert_eq!(of_kind(&"0".repeat(40), &path).unwrap().as_deref(), Some(git));
        assert_eq!(of_kind("5f3c-1a2b", &path).unwrap(), None);
        assert_eq!(of_kind(&sha256[..32], &path).unwrap(), None);
    }
}

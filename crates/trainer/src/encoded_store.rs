//! Where encoded images and captions are kept: in memory, or in a folder for the next run.
//!
//! An entry is found by a hash of everything that it was made from (the content of the image, its crop, the weights of the
//! network, the version of this program), never by a name or a date, so there is none that could be stale. A file is written
//! whole or not at all, holds the hash of its numbers, and is made anew if they do not fit it; so a run that was killed or
//! another one at the same time does no harm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use loralei_adapter::{TensorFile, TensorView, sha256_hex, write_tensors};

use crate::config::CacheChoice;
use crate::error::TrainError;
use crate::network::tensor;

/// Changes whenever the meaning of entries does.
const FORMAT: &str = "1";
/// The hash of the numbers, in the metadata of a file.
const CHECKSUM: &str = "loralei.sha256";

/// What an entry is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(String);

impl Key {
    /// The key of what `kind` makes of `parts`: all that it depends on.
    pub(crate) fn new(kind: &str, parts: &[&str]) -> Self {
        let all = [kind, FORMAT, env!("CARGO_PKG_VERSION")].into_iter().chain(parts.iter().copied());
        // Lengths keep two lists apart that would read the same.
        let parts: Vec<String> = all.map(|part| format!("{} {part}", part.len())).collect();
        Self(sha256_hex(parts.join("\n").as_bytes()))
    }
}

/// Named tensors of f32 on the processor.
pub(crate) type Entry = BTreeMap<String, Tensor>;

/// The entries.
pub(crate) enum EncodedStore {
    /// Lost with the run.
    Memory(Mutex<BTreeMap<Key, Entry>>),
    /// A file for each.
    Folder(PathBuf),
}

impl EncodedStore {
    /// The store that the settings ask for.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub(crate) fn open(choice: &CacheChoice) -> Result<Self, TrainError> {
        let folder = match choice {
            CacheChoice::Off => None,
            CacheChoice::Folder(folder) => Some(folder.clone()),
            CacheChoice::Auto => default_folder(|name| std::env::var_os(name).map(PathBuf::from), std::env::home_dir()),
        };
        let Some(folder) = folder else { return Ok(Self::Memory(Mutex::default())) };
        std::fs::create_dir_all(&folder).map_err(|source| TrainError::Disk { path: folder.clone(), source })?;
        Ok(Self::Folder(folder))
    }

    /// The folder, if it is one.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Memory(_) => None,
            Self::Folder(folder) => Some(folder),
        }
    }

    /// The entry; `None` if there is none, or a damaged one.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Entry>, TrainError> {
        match self {
            Self::Memory(entries) => Ok(entries.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()),
            Self::Folder(folder) => read(&path_of(folder, key)),
        }
    }

    /// Keeps an entry.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn put(&self, key: &Key, entry: Entry) -> Result<(), TrainError> {
        match self {
            Self::Memory(entries) => {
                entries.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), entry);
                Ok(())
            }
            Self::Folder(folder) => write(&path_of(folder, key), &entry),
        }
    }
}

/// `XDG_CACHE_HOME/loralei/encoded`, or that in `.cache` of the user's home folder.
fn default_folder(variable: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let caches = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let caches = caches.or_else(|| home.map(|home| home.join(".cache")))?;
    Some(caches.join("loralei/encoded"))
}

/// Files are spread over folders by the first two digits: 10,000 in one are slow to list on some systems.
fn path_of(folder: &Path, Key(key): &Key) -> PathBuf {
    folder.join(&key[..2]).join(format!("{key}.safetensors"))
}

fn read(path: &Path) -> Result<Option<Entry>, TrainError> {
    let Ok(file) = TensorFile::open(path) else { return Ok(None) };
    let mut numbers = BTreeMap::new();
    for name in file.names() {
        let (Some(info), Ok(values)) = (file.info(name), file.read_f32(name)) else { return Ok(None) };
        numbers.insert(name.to_owned(), (info.shape.clone(), values));
    }
    let parts = numbers.iter().map(|(name, (_, values))| (name.as_str(), values.as_slice()));
    if file.metadata().get(CHECKSUM) != Some(&checksum(parts)) {
        return Ok(None);
    }
    let entry = numbers.into_iter().map(|(name, (shape, values))| Ok((name, tensor(values, shape)?)));
    Ok(Some(entry.collect::<Result<Entry, TrainError>>()?))
}

fn write(path: &Path, entry: &Entry) -> Result<(), TrainError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|source| TrainError::Disk { path: folder.to_owned(), source })?;
    let mut numbers = BTreeMap::new();
    for (name, tensor) in entry {
        numbers.insert(name.clone(), (tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1::<f32>()?));
    }
    let parts = numbers.iter().map(|(name, (_, values))| (name.as_str(), values.as_slice()));
    let metadata = [(CHECKSUM.to_owned(), checksum(parts))].into();
    let views = numbers.iter().map(|(name, (shape, values))| (name.clone(), TensorView::f32(shape, values)));
    Ok(write_tensors(path, &views.collect(), &metadata)?)
}

fn checksum<'a>(parts: impl Iterator<Item = (&'a str, &'a [f32])>) -> String {
    let mut bytes = Vec::new();
    for (name, values) in parts {
        bytes.extend(name.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    sha256_hex(&bytes)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // files are damaged here on purpose
mod tests {
    use super::*;

    fn entry() -> Entry {
        [("mean".to_owned(), tensor(vec![1.0, -2.5, 3.0, 0.5], (2, 2)).unwrap())].into()
    }

    fn values(entry: Option<Entry>) -> Option<Vec<f32>> {
        entry.map(|entry| entry["mean"].flatten_all().unwrap().to_vec1().unwrap())
    }

    #[test]
    fn an_entry_comes_back_to_the_bit_from_memory_and_from_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        for choice in [CacheChoice::Off, CacheChoice::Folder(folder.path().join("new"))] {
            let store = EncodedStore::open(&choice).unwrap();
            let key = Key::new("latents", &["a", "b"]);
            assert_eq!(values(store.get(&key).unwrap()), None);
            store.put(&key, entry()).unwrap();
            assert_eq!(values(store.get(&key).unwrap()).unwrap(), [1.0, -2.5, 3.0, 0.5]);
        }
    }

    #[test]
    fn anything_that_differs_is_another_key() {
        let keys = [
            Key::new("latents", &["a", "b"]),
            Key::new("latents", &["a", "c"]),
            Key::new("latents", &["ab"]),
            Key::new("latents", &["a\n1 b"]),
            Key::new("text", &["a", "b"]),
        ];
        let different: std::collections::BTreeSet<&Key> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }

    #[test]
    fn a_damaged_file_is_no_entry_wherever_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let store = EncodedStore::open(&CacheChoice::Folder(folder.path().to_owned())).unwrap();
        let key = Key::new("latents", &["a"]);
        store.put(&key, entry()).unwrap();
        let path = path_of(folder.path(), &key);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(values(store.get(&key).unwrap()), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            let read = values(store.get(&key).unwrap());
            assert!(read.is_none() || read.unwrap() == [1.0, -2.5, 3.0, 0.5], "byte {at}");
        }
        store.put(&key, entry()).unwrap();
        assert!(store.get(&key).unwrap().is_some(), "made anew");
    }

    #[test]
    fn the_folder_is_that_of_the_system_for_caches() {
        let home = || Some(PathBuf::from("/home/a"));
        assert_eq!(default_folder(|_| None, home()).unwrap(), Path::new("/home/a/.cache/loralei/encoded"));
        assert_eq!(default_folder(|_| Some("/caches".into()), home()).unwrap(), Path::new("/caches/loralei/encoded"));
        assert_eq!(default_folder(|_| Some("relative".into()), None), None);
    }
}

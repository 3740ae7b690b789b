//! The tensors of one network under the names that diffusers gives them, whatever the file calls them.

use loralei_adapter::{AdapterError, StreamedHash, TensorBytes, TensorFiles, TensorInfo};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    part: Part,
}

/// What of a tensor in the file is the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// This third of its rows, where three are stacked into one.
    Third(usize),
    /// A matrix, with rows and columns exchanged.
    Transposed,
}

/// The tensors of one network.
#[derive(Clone, Debug)]
pub struct WeightFiles {
    files: Arc<TensorFiles>,
    /// By the name in the network.
    places: BTreeMap<String, Place>,
}

impl From<TensorFiles> for WeightFiles {
    /// A file that holds one network under its own names.
    fn from(files: TensorFiles) -> Self {
        Self::renamed(files, str::to_owned)
    }
}

impl WeightFiles {
    /// A file that holds one network under names of its own; `rename` gives the network's.
    pub(crate) fn renamed(files: TensorFiles, rename: impl Fn(&str) -> String) -> Self {
        let files = Arc::new(files);
        let all: Vec<String> = files.names().map(str::to_owned).collect();
        let mut this = Self { files, places: BTreeMap::new() };
        for name in all {
            this.insert(rename(&name), name, Part::Whole);
        }
        this
    }

    /// No tensor yet of a file that holds several networks.
    pub(crate) fn part_of(files: Arc<TensorFiles>) -> Self {
        Self { files, places: BTreeMap::new() }
    }

    /// Says where the tensor `ours` of the network is: a part of the tensor `name` of the file.
    pub(crate) fn insert(&mut self, ours: String, name: String, part: Part) {
        self.places.insert(ours, Place { name, part });
    }

    /// From now on the matrix `name` is the other way round.
    pub(crate) fn transpose(&mut self, name: &str) {
        if let Some(place) = self.places.get_mut(name) {
            place.part = if place.part == Part::Transposed { Part::Whole } else { Part::Transposed };
        }
    }

    /// The files, with whatever else is in them.
    pub(crate) fn files(&self) -> &TensorFiles {
        &self.files
    }

    /// The name in the file, and what of that tensor it is.
    pub(crate) fn place_in_file(&self, name: &str) -> Option<(&str, Part)> {
        self.places.get(name).map(|place| (place.name.as_str(), place.part))
    }

    /// Names the file in messages.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        let place = self.places.get(name)?;
        let mut info = self.files.info(&place.name)?.clone();
        match place.part {
            Part::Whole => {}
            Part::Third(_) => *info.shape.first_mut()? /= 3,
            Part::Transposed => {
                if let [rows, columns] = &mut info.shape[..] {
                    std::mem::swap(rows, columns);
                }
            }
        }
        Some(info)
    }

    /// Reads a tensor of any floating type as f32, row-major.
    ///
    /// # Errors
    /// A tensor that is not there, another type, a file that cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, AdapterError> {
        let place = self.place(name)?;
        if place.part == Part::Whole {
            return self.files.read_f32(&place.name);
        }
        let (bytes, mut values) = (self.bytes(name)?, Vec::new());
        bytes.read_f32(0, bytes.shape().iter().product(), &mut Vec::new(), &mut values)?;
        Ok(values)
    }

    /// A tensor that is to be read part by part.
    ///
    /// # Errors
    /// A tensor that is not there; a file that cannot be read.
    pub(crate) fn bytes(&self, name: &str) -> Result<TensorBytes<'_>, AdapterError> {
        let place = self.place(name)?;
        let bytes = self.files.bytes(&place.name)?;
        match place.part {
            Part::Whole => Ok(bytes),
            Part::Third(third) => Ok(bytes.part(third, 3)),
            Part::Transposed => bytes.transposed(),
        }
    }

    /// What the network is, to the byte: the SHA-256 over names, types, shapes and numbers of all its tensors. Reads them all.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fingerprint(&self) -> Result<String, AdapterError> {
        const NUMBERS_AT_ONCE: usize = 1 << 20;
        let (mut hash, mut buffer) = (StreamedHash::default(), Vec::new());
        for name in self.names() {
            let bytes = self.bytes(name)?;
            hash.update(format!("{name} {} {:?}\n", bytes.dtype(), bytes.shape()).as_bytes());
            let count: usize = bytes.shape().iter().product();
            for first in (0..count).step_by(NUMBERS_AT_ONCE) {
                bytes.read(first, NUMBERS_AT_ONCE.min(count - first), &mut buffer)?;
                hash.update(&buffer);
            }
        }
        Ok(hash.hex())
    }

    /// Which network it is, at a glance: the SHA-256 over names, types and shapes of all its tensors and the first numbers of
    /// each. Tells networks apart that were trained apart; reads little. It does not find a damaged file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn sketch(&self) -> Result<String, AdapterError> {
        const NUMBERS: usize = 256;
        let (mut hash, mut buffer) = (StreamedHash::default(), Vec::new());
        for name in self.names() {
            let bytes = self.bytes(name)?;
            hash.update(format!("{name} {} {:?}\n", bytes.dtype(), bytes.shape()).as_bytes());
            bytes.read(0, NUMBERS.min(bytes.shape().iter().product()), &mut buffer)?;
            hash.update(&buffer);
        }
        Ok(hash.hex())
    }

    fn place(&self, name: &str) -> Result<&Place, AdapterError> {
        let missing = || AdapterError::MissingTensor { path: self.path().to_owned(), tensor: name.to_owned() };
        self.places.get(name).ok_or_else(missing)
    }
}

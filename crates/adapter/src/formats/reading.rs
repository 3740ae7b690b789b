//! From tensors of any format to the changes of modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::adapter_file::Format;
use crate::change::Change;
use crate::error::AdapterError;
use crate::formats::adapter_place::AdapterPlace;
use crate::formats::dotted_key::{DottedKey, PEFT_PREFIX};
use crate::formats::{cloneofsimo, dotted_reader, kohya_reader, position_reader};
use crate::keys::split_kohya_key;
use crate::source_key::{KeySpelling, SourceKey};
use crate::{Array, Dtype, TensorFiles};

/// What one file gives.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) changes: BTreeMap<String, Change>,
    pub(crate) embeddings: BTreeMap<String, Array>,
    pub(crate) keys: Vec<SourceKey>,
    pub(crate) dtypes: BTreeSet<Dtype>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Reads the tensors of one place.
pub(crate) fn read(place: &AdapterPlace) -> Result<(Format, Content), AdapterError> {
    let files = TensorFiles::open(&place.tensors)?;
    let names: Vec<&str> = files.names().collect();
    let format = format_of(&names, &place.tensors)?;
    let mut content = match format {
        Format::Kohya => kohya_reader::read(&files)?,
        Format::Diffusers | Format::Peft => dotted_reader::read(&files, place)?,
        Format::Cloneofsimo => position_reader::read(&files)?,
    };
    content.dtypes = names.iter().filter_map(|name| files.info(name)).map(|info| info.dtype).collect();
    content.metadata = files.metadata().clone();
    Ok((format, content))
}

/// Told from the keys: the first that belongs to some format.
fn format_of(names: &[&str], path: &Path) -> Result<Format, AdapterError> {
    let of_key = |key: &&str| {
        if split_kohya_key(key).is_some() {
            Some(Format::Kohya)
        } else if cloneofsimo::parse_key(key).is_some() {
            Some(Format::Cloneofsimo)
        } else if DottedKey::parse(key).is_some() {
            Some(if key.starts_with(PEFT_PREFIX) { Format::Peft } else { Format::Diffusers })
        } else {
            None
        }
    };
    if let Some(format) = names.iter().find_map(of_key) {
        return Ok(format);
    }
    match names.first() {
        None => Err(AdapterError::NoModules { path: path.to_owned() }),
        Some(_) if names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_digit())) => Ok(Format::Cloneofsimo),
        Some(key) => Err(AdapterError::UnknownKey { path: path.to_owned(), key: (*key).to_owned() }),
    }
}

/// The leaves of modules as they are found.
#[derive(Debug, Default)]
pub(crate) struct Leaves(BTreeMap<String, BTreeMap<String, Array>>);

impl Leaves {
    /// Adds a tensor; two keys for the same are an error.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        key: &str,
        module: &str,
        leaf: &str,
        array: Array,
    ) -> Result<(), AdapterError> {
        match self.0.entry(module.to_owned()).or_default().insert(leaf.to_owned(), array) {
            Some(_) => Err(AdapterError::DuplicateName { path: path.to_owned(), name: key.to_owned() }),
            None => Ok(()),
        }
    }

    pub(crate) fn modules(&mut self) -> impl Iterator<Item = (&String, &mut BTreeMap<String, Array>)> {
        self.0.iter_mut()
    }

    pub(crate) fn into_changes(self) -> Result<BTreeMap<String, Change>, AdapterError> {
        let change = |(module, leaves): (String, BTreeMap<String, Array>)| {
            let change = Change::from_leaves(&module, leaves)?;
            Ok((module, change))
        };
        self.0.into_iter().map(change).collect()
    }
}

/// A tensor as f32. Some programs write alphas as integers.
pub(crate) fn read_array(files: &TensorFiles, key: &str) -> Result<Array, AdapterError> {
    let info = files.info(key);
    let shape = info.map(|info| info.shape.clone()).unwrap_or_default();
    let is_integer = info.is_some_and(|info| matches!(info.dtype, Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8));
    let data = if is_integer && shape.iter().product::<usize>() == 1 {
        files.read_i64(key)?.iter().map(|value| *value as f32).collect()
    } else {
        files.read_f32(key)?
    };
    Ok(Array { shape, data })
}

/// Notes a key.
pub(crate) fn source_key(files: &TensorFiles, key: &str, module: Option<String>, spelling: KeySpelling) -> SourceKey {
    let shape = files.info(key).map(|info| info.shape.clone()).unwrap_or_default();
    SourceKey { key: key.to_owned(), module, spelling, shape }
}

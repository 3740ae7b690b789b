//! Adapters as kohya files: the layout that every program loads completely.
//!
//! Per module `lora_down.weight`, `lora_up.weight` and a 0-d `alpha`, all of one element type; metadata of text.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base_family::BaseFamily;
use crate::error::AdapterError;
use crate::formats::kohya_writer::names_in_file;
use crate::hashes::AdapterHashes;
use crate::keys::{Component, Leaf, kohya_key, parse_kohya_key, with_diffusers_blocks};
use crate::low_rank::{Array, LoraModule};
use crate::tensor_file_writer::{TensorView, write_tensors};
use crate::{Dtype, TensorFile};

/// Metadata that makes diffusers refuse a file with kohya keys.
const PEFT_METADATA_KEY: &str = "lora_adapter_metadata";
/// Programs that list adapters do not show larger metadata.
const WELL_READ_METADATA_BYTES: usize = 1 << 20;

/// How the numbers of an adapter are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaveDtype {
    /// Half precision: half the size, read by everything. Values from 65520 on do not fit.
    #[default]
    F16,
    /// The range of f32 with 8 bits of precision.
    Bf16,
    /// What training works with.
    F32,
}

impl From<SaveDtype> for Dtype {
    fn from(dtype: SaveDtype) -> Self {
        match dtype {
            SaveDtype::F16 => Dtype::F16,
            SaveDtype::Bf16 => Dtype::Bf16,
            SaveDtype::F32 => Dtype::F32,
        }
    }
}

/// A LoRA adapter: its modules by kohya name (`lora_unet_...`, `lora_te_...`), and its metadata.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adapter {
    /// Modules by name, without leaf; the U-Net's blocks as diffusers calls them. Files of SDXL have the original names.
    pub modules: BTreeMap<String, LoraModule>,
    /// The text of the header. Hashes in it are those of the file it was read from; writing replaces them.
    pub metadata: BTreeMap<String, String>,
}

impl Adapter {
    /// Reads a file with kohya keys of any floating type.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`] and [`Adapter::from_tensors`].
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        Self::from_tensors(&TensorFile::open(path)?)
    }

    /// Reads all tensors of an open file.
    ///
    /// # Errors
    /// [`AdapterError::UnknownKey`] for any tensor that is not part of a plain LoRA module,
    /// [`AdapterError::MissingTensor`] if a module lacks a factor, [`AdapterError::NoModules`], and the errors of
    /// [`LoraModule::check`].
    pub fn from_tensors(file: &TensorFile) -> Result<Self, AdapterError> {
        let mut names = BTreeMap::new();
        for key in file.names() {
            let found = parse_kohya_key(key);
            let Some((module, name)) = found.and_then(|(name, _)| Some((with_diffusers_blocks(name)?, name))) else {
                return Err(AdapterError::UnknownKey { path: file.path().to_owned(), key: key.to_owned() });
            };
            if *names.entry(module).or_insert(name) != name {
                return Err(AdapterError::DuplicateName { path: file.path().to_owned(), name: name.to_owned() });
            }
        }
        if names.is_empty() {
            return Err(AdapterError::NoModules { path: file.path().to_owned() });
        }
        let mut modules = BTreeMap::new();
        for (module, name) in names {
            modules.insert(module, read_module(file, name)?);
        }
        Ok(Self { modules, metadata: file.metadata().clone() })
    }

    /// Writes the adapter atomically and reads it back. The same adapter always gives the same bytes.
    ///
    /// An alpha that is `None` is left out. `sshs_model_hash` and `sshs_legacy_hash` are computed and put in place of
    /// what the metadata has; so is `modelspec.hash_sha256` where the metadata has any `modelspec.*`.
    ///
    /// # Errors
    /// The errors of [`LoraModule::check`], [`AdapterError::BadModuleName`], [`AdapterError::ForbiddenMetadata`] for
    /// `lora_adapter_metadata`, [`AdapterError::NoModules`] for an empty adapter, and those of [`write_tensors`],
    /// [`AdapterError::Overflow`] with the key of a value that is too large for the type among them.
    pub fn write(&self, path: &Path, dtype: SaveDtype) -> Result<(), AdapterError> {
        if self.modules.is_empty() {
            return Err(AdapterError::NoModules { path: path.to_owned() });
        }
        for (name, module) in &self.modules {
            if name.contains('.') || Component::of_module(name).is_none() {
                return Err(AdapterError::BadModuleName { module: name.clone() });
            }
            module.check(name)?;
        }
        if self.metadata.contains_key(PEFT_METADATA_KEY) {
            return Err(AdapterError::ForbiddenMetadata { key: PEFT_METADATA_KEY.to_owned() });
        }
        let tensors = self.tensors(dtype.into());
        let metadata = metadata_with_hashes(&self.metadata, &tensors)?;
        let metadata_bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if metadata_bytes > WELL_READ_METADATA_BYTES {
            tracing::warn!(path = %path.display(), metadata_bytes, "some programs do not show metadata of over 1 MiB");
        }
        write_tensors(path, &tensors, &metadata)
    }

    /// Names of the modules that change nothing because their up factor is zero throughout, as it is before training.
    /// To include factors so small that they vanish in the file's type, ask the adapter that was read back.
    pub fn modules_that_never_moved(&self) -> Vec<&str> {
        self.modules.iter().filter(|(_, module)| !module.has_moved()).map(|(name, _)| name.as_str()).collect()
    }

    fn tensors(&self, dtype: Dtype) -> BTreeMap<String, TensorView<'_>> {
        let mut tensors = BTreeMap::new();
        let names = names_in_file(self.modules.keys(), BaseFamily::of_adapter(self));
        for (module_name, module) in &self.modules {
            let name = names.get(module_name).unwrap_or(module_name);
            for (leaf, factor) in [(Leaf::Down, &module.down), (Leaf::Up, &module.up)] {
                let view = TensorView::f32_stored_as(dtype, &factor.shape, &factor.data);
                tensors.insert(kohya_key(name, leaf), view);
            }
            if let Some(alpha) = &module.alpha {
                let view = TensorView::f32_stored_as(dtype, &[], std::slice::from_ref(alpha));
                tensors.insert(kohya_key(name, Leaf::Alpha), view);
            }
        }
        tensors
    }
}

/// The metadata with the hashes of these tensors in place of what it has.
pub(crate) fn metadata_with_hashes(
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, TensorView<'_>>,
) -> Result<BTreeMap<String, String>, AdapterError> {
    let hashes = AdapterHashes::of(tensors, metadata)?;
    let mut metadata = metadata.clone();
    if metadata.keys().any(|key| key.starts_with("modelspec.")) {
        metadata.insert("modelspec.hash_sha256".to_owned(), format!("0x{}", hashes.model));
    }
    metadata.insert("sshs_model_hash".to_owned(), hashes.model);
    metadata.insert("sshs_legacy_hash".to_owned(), hashes.legacy);
    Ok(metadata)
}

fn read_module(file: &TensorFile, name: &str) -> Result<LoraModule, AdapterError> {
    let read_factor = |leaf| -> Result<Array, AdapterError> {
        let key = kohya_key(name, leaf);
        let data = file.read_f32(&key)?;
        let shape = file.info(&key).map(|info| info.shape.clone()).unwrap_or_default();
        Ok(Array { shape, data })
    };
    let alpha_key = kohya_key(name, Leaf::Alpha);
    let alpha = match file.info(&alpha_key) {
        None => None,
        // Some programs have written shape (1) where others write a scalar.
        Some(info) if info.num_elements() == 1 => file.read_f32(&alpha_key)?.first().copied(),
        Some(info) => {
            return Err(AdapterError::AlphaShape { module: name.to_owned(), shape: info.shape.clone() });
        }
    };
    let module = LoraModule { down: read_factor(Leaf::Down)?, up: read_factor(Leaf::Up)?, alpha };
    module.check(name)?;
    Ok(module)
}

//! An adapter of any format, as it was found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base_family::BaseFamily;
use crate::change::Change;
use crate::error::AdapterError;
use crate::formats::{adapter_place, reading};
use crate::keys::Component;
use crate::source_key::{KeySpelling, SourceKey};
use crate::{Adapter, Array, Dtype, SaveDtype};

/// How an adapter lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// kohya's keys: the only ones that every program loads.
    Kohya,
    /// diffusers' `pytorch_lora_weights`.
    Diffusers,
    /// A folder of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// The first format, of cloneofsimo/lora.
    Cloneofsimo,
}

impl Format {
    /// `kohya`, `diffusers`, `peft` or `cloneofsimo`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers",
            Self::Peft => "peft",
            Self::Cloneofsimo => "cloneofsimo",
        }
    }
}

/// How a kohya file calls the blocks of the U-Net.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockNames {
    /// `input_blocks_4_1`: as Stable Diffusion was first published; what kohya files of SDXL have.
    Original,
    /// `down_blocks_1_attentions_0`: what kohya files of all others have.
    Diffusers,
}

/// An adapter in memory, whatever format it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFile {
    /// Where it was read from.
    pub path: PathBuf,
    /// What it was.
    pub format: Format,
    /// By kohya's module name, with diffusers' block names.
    pub changes: BTreeMap<String, Change>,
    /// Learned tokens: (vectors, width) or (width).
    pub embeddings: BTreeMap<String, Array>,
    /// The text of the header.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor's name as it stood in the file.
    pub keys: Vec<SourceKey>,
    /// Element types of the tensors.
    pub dtypes: BTreeSet<Dtype>,
    /// What a kohya file that it is written to shall call the blocks of the U-Net. `None`, as after reading: what is usual for
    /// its base.
    pub block_names: Option<BlockNames>,
}

impl AdapterFile {
    /// Reads a file or a folder. Which format it has is told from its keys, not from its name.
    ///
    /// Read are kohya's keys with all kinds of changes, diffusers' of every generation, a folder of PEFT (or of one for each
    /// component), cloneofsimo's safetensors files and, as data only, its `.pt` lists. Names become kohya's, with the block
    /// names of diffusers. Memory: all tensors as f32. Factors of a text encoder's projection are left out: see
    /// [`AdapterFile::remarks`].
    ///
    /// # Errors
    /// Those of [`crate::TensorFiles::open`] and [`Change::from_leaves`]; [`AdapterError::UnknownKey`] for a tensor that is
    /// no part of an adapter, [`AdapterError::NoModules`], [`AdapterError::NoAdapter`] for a folder without one,
    /// [`AdapterError::AdapterSettings`] for settings that are not understood, [`AdapterError::LayerOrder`] where positions
    /// do not lead to names.
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        let file = Self::read_with_unknown_keys(path)?;
        match file.keys.iter().find(|key| key.spelling == KeySpelling::Unknown) {
            Some(key) => Err(AdapterError::UnknownKey { path: path.to_owned(), key: key.key.clone() }),
            None => Ok(file),
        }
    }

    /// The same for an adapter that may have tensors which belong to no adapter: they are in `keys` and nowhere else.
    ///
    /// # Errors
    /// As [`AdapterFile::read`].
    pub fn read_with_unknown_keys(path: &Path) -> Result<Self, AdapterError> {
        let mut found: Option<Self> = None;
        for place in adapter_place::places(path)? {
            let (format, content) = reading::read(&place)?;
            let reading::Content { changes, embeddings, keys, dtypes, metadata } = content;
            let file = found.get_or_insert_with(|| Self {
                path: path.to_owned(),
                format,
                changes: BTreeMap::new(),
                embeddings: BTreeMap::new(),
                metadata,
                keys: Vec::new(),
                dtypes: BTreeSet::new(),
                block_names: None,
            });
            file.embeddings.extend(embeddings);
            file.keys.extend(keys);
            file.dtypes.extend(dtypes);
            let is_carried = |module: &String| !is_text_projection(module);
            for (module, change) in changes.into_iter().filter(|(module, _)| is_carried(module)) {
                if file.changes.insert(module.clone(), change).is_some() {
                    return Err(AdapterError::DuplicateName { path: path.to_owned(), name: module });
                }
            }
        }
        match found {
            Some(mut file) if !file.changes.is_empty() => {
                file.number_text_encoders();
                Ok(file)
            }
            _ => Err(AdapterError::NoModules { path: path.to_owned() }),
        }
    }

    /// Dotted names do not tell the only text encoder from the first of two; kohya's do.
    fn number_text_encoders(&mut self) {
        let has_second = self.changes.keys().any(|name| Component::of_module(name) == Some(Component::TextEncoder2));
        let is_dotted = matches!(self.format, Format::Diffusers | Format::Peft);
        if !is_dotted || !(has_second || self.family() == BaseFamily::Sdxl) {
            return;
        }
        let numbered = |name: &str| {
            let path = name.strip_prefix(Component::TextEncoder.prefix())?;
            Some(format!("{}{path}", Component::TextEncoder1.prefix()))
        };
        let changes = std::mem::take(&mut self.changes).into_iter();
        self.changes = changes.map(|(name, change)| (numbered(&name).unwrap_or(name), change)).collect();
        for key in &mut self.keys {
            if let Some(name) = key.module.as_deref().and_then(numbered) {
                key.module = Some(name);
            }
        }
    }

    /// An adapter that was made rather than read, at the path that messages name.
    pub fn from_adapter(adapter: Adapter, path: &Path) -> Self {
        let changes = adapter.modules.into_iter().map(|(name, module)| (name, Change::Lora(module)));
        Self {
            path: path.to_owned(),
            format: Format::Kohya,
            changes: changes.collect(),
            embeddings: BTreeMap::new(),
            metadata: adapter.metadata,
            keys: Vec::new(),
            dtypes: BTreeSet::new(),
            block_names: None,
        }
    }

    /// Which Stable Diffusion it belongs to. Where nothing else tells, original block names do: no other kohya file has them.
    pub fn family(&self) -> BaseFamily {
        let layers = self.changes.iter().map(|(name, change)| (name.as_str(), change.weight_shape()));
        match BaseFamily::of(layers, &self.metadata) {
            BaseFamily::Unknown if self.has_spelling(KeySpelling::KohyaOriginal) => BaseFamily::Sdxl,
            family => family,
        }
    }

    fn has_spelling(&self, spelling: KeySpelling) -> bool {
        self.keys.iter().any(|key| key.spelling == spelling)
    }

    /// What its user should know of the file that it was read from: names of both kinds, tensors that were left out.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let has_diffusers_names = self.keys.iter().any(|key| {
            let component = key.module.as_deref().and_then(Component::of_module);
            key.spelling == KeySpelling::Kohya && component == Some(Component::Unet)
        });
        if has_diffusers_names && self.has_spelling(KeySpelling::KohyaOriginal) {
            let both = "some blocks of the U-Net have their original names and others those of diffusers";
            remarks.push(format!("{both}: both are read, and most programs read only one of them"));
        }
        let projection = self.keys.iter().find(|key| key.module.as_deref().is_some_and(is_text_projection));
        if let Some(SourceKey { key, .. }) = projection {
            remarks.push(format!("left out: factors of a text encoder's projection, which few programs read ({key})"));
        }
        remarks
    }

    /// The type that holds the numbers of the file exactly: its own if it has one, F32 if it has several.
    pub fn save_dtype(&self) -> SaveDtype {
        let floats: Vec<Dtype> = self.dtypes.iter().copied().filter(|dtype| is_float(*dtype)).collect();
        match floats.as_slice() {
            [Dtype::F16] => SaveDtype::F16,
            [Dtype::Bf16] => SaveDtype::Bf16,
            _ => SaveDtype::F32,
        }
    }

    /// The adapter as plain LoRA.
    ///
    /// # Errors
    /// [`AdapterError::NotLowRank`] for a change that two factors cannot give.
    pub fn to_adapter(&self) -> Result<Adapter, AdapterError> {
        let mut modules = BTreeMap::new();
        for (name, change) in &self.changes {
            let module = change
                .to_low_rank()
                .ok_or_else(|| AdapterError::NotLowRank { module: name.clone(), kind: change.kind() })?;
            modules.insert(name.clone(), module);
        }
        Ok(Adapter { modules, metadata: self.metadata.clone() })
    }
}

/// The layer behind the pooled text. Some trainers make factors of it.
fn is_text_projection(module: &str) -> bool {
    let component = Component::of_module(module).filter(|component| component.is_text_encoder());
    let path = component.and_then(|component| module.strip_prefix(component.prefix()));
    matches!(path, Some("text_projection" | "text_model_text_projection"))
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
}

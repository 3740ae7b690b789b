//! An adapter written in another format, and what that costs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::adapter_file::{AdapterFile, BlockNames, Format};
use crate::base_family::BaseFamily;
use crate::change::Change;
use crate::error::AdapterError;
use crate::formats::cloneofsimo::{EMBEDDING_MARK, parse_key};
use crate::formats::dotted_reader::METADATA_KEY;
use crate::formats::{dotted_writer, kohya_writer, position_writer};
use crate::keys::Component;
use crate::{LoraModule, SaveDtype};

/// Something that is not in the result as it was in the source. Display is a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "Display says it")]
pub enum ConversionNote {
    EmbeddingsLeftOut { tokens: Vec<String> },
    AlphasFolded { num_modules: usize },
    StoredAsF32,
    WrittenAsLora { kind: &'static str, num_modules: usize },
    ProjectionsReshaped { num_modules: usize, are_convolutions: bool },
    ZeroLayersAdded { num_layers: usize },
    MetadataLeftOut { keys: Vec<String> },
    MetadataAdded { keys: Vec<String> },
    HashesLeftOut,
    SeveralFolders { names: Vec<&'static str> },
    TextLevel,
}

impl std::fmt::Display for ConversionNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmbeddingsLeftOut { tokens } => {
                write!(f, "left out: the learned tokens {} (this format has no place for them)", tokens.join(", "))
            }
            Self::AlphasFolded { num_modules } => {
                write!(f, "{num_modules} alphas are in the factors now: this format has none")
            }
            Self::StoredAsF32 => {
                f.write_str("stored as f32, because folded scales that are no power of two would be rounded (--dtype decides otherwise)")
            }
            Self::WrittenAsLora { kind, num_modules } => {
                write!(f, "{num_modules} modules of {kind} are written as plain LoRA with the same change")
            }
            Self::ProjectionsReshaped { num_modules, are_convolutions: true } => {
                write!(f, "{num_modules} of proj_in and proj_out have four dimensions now, as the convolutions of this base")
            }
            Self::ProjectionsReshaped { num_modules, .. } => {
                write!(f, "{num_modules} of proj_in and proj_out have two dimensions now, as the linear layers of this base")
            }
            Self::ZeroLayersAdded { num_layers } => {
                write!(f, "{num_layers} layers that the adapter leaves alone are written as zeros: this format counts layers")
            }
            Self::MetadataLeftOut { keys } => write!(f, "left out of the metadata: {}", keys.join(", ")),
            Self::MetadataAdded { keys } => {
                write!(f, "added to the metadata, so that programs list it for the right base: {}", keys.join(", "))
            }
            Self::HashesLeftOut => f.write_str("the hashes in the metadata are left out: they are those of a kohya file"),
            Self::SeveralFolders { names } => write!(f, "a folder for each component: {}", names.join(", ")),
            Self::TextLevel => {
                f.write_str("the text encoder's layers begin with text_model., as in published bases; PEFT with transformers 5 looks for them without it")
            }
        }
    }
}

/// What a writer works on: changes that fit the family's layers, and metadata without what belongs to the source's format.
pub(crate) struct Outgoing {
    pub(crate) changes: BTreeMap<String, Change>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) family: BaseFamily,
    pub(crate) block_names: Option<BlockNames>,
    pub(crate) asked_dtype: Option<SaveDtype>,
    pub(crate) own_dtype: SaveDtype,
    pub(crate) notes: Vec<ConversionNote>,
}

impl Outgoing {
    pub(crate) fn dtype(&self) -> SaveDtype {
        self.asked_dtype.unwrap_or(self.own_dtype)
    }

    /// The change of a module as two factors; notes where that is another kind than the source's.
    pub(crate) fn low_rank(&mut self, module: &str, change: &Change) -> Result<LoraModule, AdapterError> {
        let kind = change.kind();
        let lora = change.to_low_rank().ok_or_else(|| AdapterError::NotLowRank { module: module.to_owned(), kind })?;
        if !matches!(change, Change::Lora(_)) {
            let known = self.notes.iter_mut().find_map(|note| match note {
                ConversionNote::WrittenAsLora { kind: noted, num_modules } if *noted == kind => Some(num_modules),
                _ => None,
            });
            match known {
                Some(num_modules) => *num_modules += 1,
                None => self.notes.push(ConversionNote::WrittenAsLora { kind, num_modules: 1 }),
            }
        }
        Ok(lora)
    }
}

impl AdapterFile {
    /// Writes the adapter in a format: a file, or for PEFT a folder (with a folder for each component if there are
    /// several). Every file appears whole or not at all. Gives what is not in the result as it was.
    ///
    /// Numbers keep the type of the file ([`AdapterFile::save_dtype`]) unless `dtype` says another; factors and alphas
    /// are kept to the bit. cloneofsimo's format has no alpha: the scale goes into the first factor, in f32 where that is
    /// not exact otherwise.
    ///
    /// # Errors
    /// [`AdapterError::NotLowRank`] and [`AdapterError::CannotCarry`] where the result would be another adapter, and those
    /// of [`crate::write_tensors`].
    pub fn write(
        &self,
        path: &Path,
        format: Format,
        dtype: Option<SaveDtype>,
    ) -> Result<Vec<ConversionNote>, AdapterError> {
        if self.changes.is_empty() {
            return Err(AdapterError::NoModules { path: path.to_owned() });
        }
        for (name, change) in &self.changes {
            if name.contains('.') || Component::of_module(name).is_none() {
                return Err(AdapterError::BadModuleName { module: name.clone() });
            }
            change.check(name)?;
        }
        let mut outgoing = self.outgoing(dtype);
        match format {
            Format::Kohya => kohya_writer::write(&mut outgoing, path)?,
            Format::Diffusers => dotted_writer::write_diffusers(&mut outgoing, path)?,
            Format::Peft => dotted_writer::write_peft(&mut outgoing, path)?,
            Format::Cloneofsimo => position_writer::write(&mut outgoing, &self.embeddings, path)?,
        }
        if format != Format::Cloneofsimo && !self.embeddings.is_empty() {
            let tokens = self.embeddings.keys().cloned().collect();
            outgoing.notes.push(ConversionNote::EmbeddingsLeftOut { tokens });
        }
        Ok(outgoing.notes)
    }

    fn outgoing(&self, asked_dtype: Option<SaveDtype>) -> Outgoing {
        let belongs_to_format = |key: &str, value: &str| {
            key == "format"
                || value == EMBEDDING_MARK
                || (self.format == Format::Cloneofsimo && (key == "unet" || key == "text_encoder"))
                || parse_key(&key.replace(":rank", ":up")).is_some()
                || (key == METADATA_KEY && matches!(self.format, Format::Diffusers | Format::Peft))
        };
        let (mut metadata, mut left_out) = (BTreeMap::new(), Vec::new());
        for (key, value) in &self.metadata {
            if key == METADATA_KEY && self.format == Format::Kohya {
                left_out.push(key.clone()); // it contradicts the keys, and diffusers refuses both together
            } else if !belongs_to_format(key, value) {
                metadata.insert(key.clone(), value.clone());
            }
        }
        let mut notes = Vec::new();
        if !left_out.is_empty() {
            notes.push(ConversionNote::MetadataLeftOut { keys: left_out });
        }
        let family = self.family();
        let mut changes = self.changes.clone();
        let num_modules =
            changes.iter_mut().map(|(name, change)| usize::from(restore_projection(name, change, family))).sum();
        if num_modules > 0 {
            let are_convolutions = family == BaseFamily::Sd1;
            notes.push(ConversionNote::ProjectionsReshaped { num_modules, are_convolutions });
        }
        let (block_names, own_dtype) = (self.block_names, self.save_dtype());
        Outgoing { changes, metadata, family, block_names, asked_dtype, own_dtype, notes }
    }
}

/// `proj_in` and `proj_out` are 1x1 convolutions in SD 1.x and linear layers in SD 2.x and SDXL; programs that inject refuse
/// the other shape. Whether the factors were changed.
fn restore_projection(module: &str, change: &mut Change, family: BaseFamily) -> bool {
    let is_projection =
        module.contains("_attentions_") && (module.ends_with("_proj_in") || module.ends_with("_proj_out"));
    let Change::Lora(lora) = change else { return false };
    if !is_projection {
        return false;
    }
    match (family, lora.down.shape.len(), &lora.down.shape.get(2..)) {
        (BaseFamily::Sd1, 2, _) => {
            lora.down.shape.extend([1, 1]);
            lora.up.shape.extend([1, 1]);
            true
        }
        (BaseFamily::Sd2 | BaseFamily::Sdxl, 4, Some([1, 1])) => {
            lora.down.shape.truncate(2);
            lora.up.shape.truncate(2);
            true
        }
        _ => false,
    }
}

/// The components of some changes.
pub(crate) fn components(changes: &BTreeMap<String, Change>) -> BTreeSet<Component> {
    changes.keys().filter_map(|module| Component::of_module(module)).collect()
}

/// The value times its scale; the same bits where the scale is 1.
pub(crate) fn fold_alpha(module: &mut LoraModule) -> bool {
    let scale = f64::from(module.alpha.unwrap_or(module.rank() as f32)) / module.rank() as f64;
    module.alpha = None;
    if scale == 1.0 {
        return false;
    }
    module.down.data.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    true
}

/// Whether multiplying by the module's scale rounds nothing (but for the smallest numbers).
pub(crate) fn has_exact_scale(module: &LoraModule) -> bool {
    let scale = f64::from(module.alpha.unwrap_or(module.rank() as f32)) / module.rank() as f64;
    scale > 0.0 && scale.log2().fract() == 0.0
}

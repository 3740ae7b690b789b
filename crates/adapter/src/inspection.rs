//! What is in an adapter: a description that people read, and figures that programs compare.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::change::Change;
use crate::error::AdapterError;
use crate::file_hashes::{file_hashes, match_metadata};
use crate::layer_name::LayerName;
use crate::measures::LayerChange;
use crate::trigger_words::trigger_words;
use crate::{AdapterFile, Array};

/// Gives the weight of a module of a base, `None` where the base has no such layer.
pub type BaseWeights<'a> = dyn Fn(&str) -> Result<Option<Array>, AdapterError> + Sync + 'a;

/// Everything about one adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Name of the file or folder.
    pub file: String,
    /// Size on disk.
    pub num_bytes: u64,
    /// As `kohya`, `diffusers`, `peft`, `cloneofsimo`.
    pub format: String,
    /// `Stable Diffusion 1.x`, `2.x`, `XL`, or unknown.
    pub family: String,
    /// Element types in the file, as `F16`.
    pub dtypes: Vec<String>,
    /// All numbers of the factors.
    pub num_parameters: u64,
    /// How many modules have each rank.
    pub ranks: BTreeMap<usize, usize>,
    /// How many modules have each alpha; the text `none` where the file has none.
    pub alphas: BTreeMap<String, usize>,
    /// Kinds of change: `LoRA`, `LoHa`, ... and how many modules have it.
    pub kinds: BTreeMap<String, usize>,
    /// Kinds of layers that are changed (as `U-Net attn1.to_q`), and how many of each.
    pub targets: BTreeMap<String, usize>,
    /// Words that call it, as far as the metadata says.
    pub trigger_words: Vec<String>,
    /// Learned tokens and their shapes.
    pub embeddings: BTreeMap<String, Vec<usize>>,
    /// `sha256`, `autov2` (its first 10 digits), `sshs_model_hash` (of the tensors), `autov3` (its first 12),
    /// `sshs_legacy_hash`.
    pub hashes: BTreeMap<String, String>,
    /// Whether hashes in the metadata are those of the content.
    pub hashes_match: Option<bool>,
    /// The header's text.
    pub metadata: BTreeMap<String, String>,
    /// Each layer, in the order of names.
    pub modules: Vec<ModuleMeasures>,
    /// How the subspaces of two adapters lie to each other.
    pub against: Option<Comparison>,
}

impl Inspection {
    /// Looks at every layer of an adapter; with `base` against the weights that it changes, with `against` beside another
    /// adapter. Layers are spread over the processor's cores; no figure depends on their number. Memory: the adapter, and
    /// for each core one weight and what is computed of it.
    ///
    /// # Errors
    /// A file that cannot be read any more, [`AdapterError::WeightShapes`] for a base or an adapter of another family, and
    /// those of [`ModuleMeasures::of`].
    pub fn of(
        file: &AdapterFile,
        base: Option<&BaseWeights<'_>>,
        against: Option<&AdapterFile>,
    ) -> Result<Self, AdapterError> {
        let hashes = if file.path.is_file() { file_hashes(&file.path)? } else { BTreeMap::new() };
        let changes: Vec<(&String, &Change)> = file.changes.iter().collect();
        let other = |name: &str| against.and_then(|against| against.changes.get(name));
        let figures = changes.into_par_iter().map(|(name, change)| {
            let weight = base.map(|weight_of| weight_of(name)).transpose()?.flatten();
            let measures = ModuleMeasures::of(name, change, weight.as_ref())?;
            let similarity = other(name).map(|second| {
                let change_of = |change| LayerChange::of(name, change, weight.as_ref());
                SubspaceSimilarity::between(name, &change_of(change)?, &change_of(second)?)
            });
            Ok::<_, AdapterError>((measures, similarity.transpose()?))
        });
        let figures: Vec<(ModuleMeasures, Option<SubspaceSimilarity>)> = figures.collect::<Result<_, _>>()?;
        let (modules, similarities): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
        let alpha_text = |change: &Change| change.alpha().map_or_else(|| "none".to_owned(), |alpha| alpha.to_string());
        Ok(Self {
            file: file_name(&file.path),
            num_bytes: bytes_on_disk(&file.path),
            format: file.format.name().to_owned(),
            family: file.family().name().to_owned(),
            dtypes: file.dtypes.iter().map(ToString::to_string).collect(),
            num_parameters: file.changes.values().map(|change| change.num_parameters() as u64).sum(),
            ranks: counted(file.changes.values().filter_map(Change::rank)),
            alphas: counted(file.changes.values().map(alpha_text)),
            kinds: counted(file.changes.values().map(|change| change.kind().to_owned())),
            targets: counted(file.changes.keys().map(|name| {
                let LayerName { part, kind, .. } = LayerName::of(name);
                format!("{part} {kind}")
            })),
            trigger_words: trigger_words(&file.metadata),
            embeddings: file.embeddings.iter().map(|(token, array)| (token.clone(), array.shape.clone())).collect(),
            hashes_match: match_metadata(&hashes, &file.metadata),
            hashes,
            metadata: file.metadata.clone(),
            modules,
            against: against.map(|against| Comparison {
                file: file_name(&against.path),
                modules: similarities.into_iter().flatten().collect(),
                only_here: only_in_first(file, against),
                only_there: only_in_first(against, file),
            }),
        })
    }
}

fn counted<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

fn only_in_first(first: &AdapterFile, second: &AdapterFile) -> Vec<String> {
    first.changes.keys().filter(|name| !second.changes.contains_key(*name)).cloned().collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Of the file, or of all files in the folder and the folders in it.
fn bytes_on_disk(path: &Path) -> u64 {
    const DEPTH: usize = 2;
    fn sum(path: &Path, depth: usize) -> u64 {
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => found.len(),
            Ok(found) if found.is_dir() && depth > 0 => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                entries.map(|entry| sum(&entry.path(), depth - 1)).sum()
            }
            _ => 0,
        }
    }
    sum(path, DEPTH)
}

/// Figures of one layer's change dW.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleMeasures {
    /// kohya's module name.
    pub module: String,
    /// `LoRA`, `LoHa`, ...
    pub kind: String,
    /// Of the weight: (out, in) or (out, in, kh, kw).
    pub weight_shape: Vec<usize>,
    /// Of the factors, where there are some.
    pub rank: Option<usize>,
    /// As in the file.
    pub alpha: Option<f32>,
    /// ||dW||_F.
    pub frobenius: f64,
    /// sigma_max(dW).
    pub spectral: f64,
    /// ||dW||_F^2 / sigma_max^2.
    pub stable_rank: f64,
    /// exp of the entropy of the shares sigma_i / sum of sigma (Roy and Vetterli 2007).
    pub effective_rank: f64,
    /// Descending; those that are not 0 within rounding.
    pub singular_values: Vec<f64>,
    /// Against the weight of a base.
    pub base: Option<BaseMeasures>,
}

/// One layer's change against the weight that it changes (LoRA paper, section 7.3).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaseMeasures {
    /// ||W||_F.
    pub weight_frobenius: f64,
    /// ||dW||_F / ||W||_F.
    pub share: f64,
    /// ||U^T W V^T||_F with the singular directions of dW.
    pub projected: f64,
    /// ||dW||_F / ||U^T W V^T||_F: how much the change amplifies what the base has in these directions.
    pub amplification: f64,
}

/// Two adapters, layer by layer (LoRA paper, section 7.2).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The other file's name.
    pub file: String,
    /// Each layer that both change.
    pub modules: Vec<SubspaceSimilarity>,
    /// Layers that only one changes.
    pub only_here: Vec<String>,
    /// Layers that only the other changes.
    pub only_there: Vec<String>,
}

/// phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j) over the first i and j singular directions: 1 the same subspace, 0 orthogonal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubspaceSimilarity {
    /// kohya's module name.
    pub module: String,
    /// Of the input side (right singular vectors): row i - 1, column j - 1.
    pub input: Vec<Vec<f64>>,
    /// Of the output side (left singular vectors).
    pub output: Vec<Vec<f64>>,
    /// What phi would be for random subspaces of full size: max(r1, r2) / width.
    pub random_input: f64,
    /// The same of the output side.
    pub random_output: f64,
    /// Cosine of the two changes as vectors.
    pub cosine: f64,
}

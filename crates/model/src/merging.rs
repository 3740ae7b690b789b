//! A base with adapters in its weights: the same files with the same tensors, of which some have other numbers.
//!
//! One tensor and its change are in memory at a time. A weight is summed in f32 and rounded once, to the type it had.

use crate::base::Base;
use crate::base_files::{BaseFiles, FileContent};
use crate::base_layers::BaseLayers;
use crate::error::ModelError;
use crate::new_folder::{make_folder, write_new_folder};
use crate::weight_files::{Part, WeightFiles};
use crate::weights::Result;
use loralei_adapter::{
    AdapterError, AdapterFile, Array, Change, Dtype, TensorFile, TensorFiles, TensorInfo, TensorValues,
    atomic_write_bytes, write_tensors_streamed,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the metadata of weights tell what was merged into them: a JSON list, oldest first.
const MERGED: &str = "loralei.merged";
/// How files of weights end, of whatever program.
const WEIGHT_ENDINGS: [&str; 10] = [
    ".safetensors",
    ".bin",
    ".ckpt",
    ".pt",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".index.json",
    ".index.fp16.json",
];

/// What a merge has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// The file or folder. A base that was a `.ckpt` became a `.safetensors`.
    pub path: PathBuf,
    /// Modules of all adapters.
    pub num_modules: usize,
    /// Tensors with other numbers than before.
    pub num_tensors: usize,
    /// What the user should know: what was not merged, or not copied.
    pub notes: Vec<String>,
}

/// Writes `base` with every adapter times its scale in its weights to `output`, which must not exist, in the layout that the
/// base has. A negative scale takes out what was merged before: to rounding, in the type of the weights.
///
/// Tensors keep their number types, or all floating ones are stored as `dtype`; whatever has no numbers to change is copied
/// byte for byte. `progress` is told how many tensors are written, and of how many.
///
/// # Errors
/// [`ModelError::Exists`], [`ModelError::ForeignAdapter`] for a module that fits no layer, numbers that do not fit the type, a
/// disk that is full. Nothing is written then.
pub fn merge(
    base: &Base,
    adapters: &[(&AdapterFile, f32)],
    output: &Path,
    dtype: Option<Dtype>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<MergeReport> {
    let mut notes = notes_on(adapters);
    let output = match base.files() {
        BaseFiles::Single(_) if is_torch(output) => {
            let renamed = output.with_extension("safetensors");
            notes.push(format!("only .safetensors are written: the result is `{}`", renamed.display()));
            renamed
        }
        _ => output.to_owned(),
    };
    if output.exists() {
        return Err(ModelError::Exists { path: output });
    }
    let networks = networks(base, adapters)?;
    let rewriting = Rewriting { dtype, adapters, progress: &mut *progress, num_done: 0, num_tensors: 0 };
    match base.files() {
        BaseFiles::Single(file) => {
            let metadata = file.metadata()?;
            single_file(&networks, &metadata, &output, rewriting)?;
        }
        files => folder(base, files, networks.as_slice(), &output, rewriting, &mut notes)?,
    }
    let num_modules = adapters.iter().map(|(adapter, _)| adapter.changes.len()).sum();
    let changed = networks.iter().map(|network| network.additions.len()).sum();
    Ok(MergeReport { path: output, num_modules, num_tensors: changed, notes })
}

/// Whether PyTorch writes files with such a name.
fn is_torch(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["ckpt", "pt", "pth", "bin"].iter().any(|torch| extension == *torch))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What these adapters have that no weight can hold.
fn notes_on(adapters: &[(&AdapterFile, f32)]) -> Vec<String> {
    let mut notes = Vec::new();
    for (adapter, scale) in adapters {
        let file = file_name(&adapter.path);
        if !adapter.embeddings.is_empty() {
            let tokens: Vec<&str> = adapter.embeddings.keys().map(String::as_str).collect();
            notes.push(format!("`{file}`: the learned tokens {} are not merged", tokens.join(", ")));
        }
        if *scale < 0.0 && adapter.changes.values().any(|change| matches!(change, Change::Dora(_))) {
            notes.push(format!("`{file}` is a DoRA: a negative scale does not take out exactly what was merged"));
        }
    }
    notes
}

/// A network and what is added to its tensors, by their names in the file.
struct Network<'a> {
    weights: WeightFiles,
    additions: BTreeMap<String, Vec<Addition<'a>>>,
}

/// A change of a tensor, or of a third of its rows.
struct Addition<'a> {
    part: Part,
    is_bias: bool,
    change: &'a Change,
    scale: f32,
}

fn networks<'a>(base: &Base, adapters: &[(&'a AdapterFile, f32)]) -> Result<Vec<Network<'a>>> {
    let layers = BaseLayers::of(base)?;
    let network = |weights: &WeightFiles| Network { weights: weights.clone(), additions: BTreeMap::new() };
    let mut networks: Vec<_> = layers.networks().iter().map(network).collect();
    for (adapter, scale) in adapters {
        if !scale.is_finite() {
            return Err(AdapterError::BadScale { scale: *scale }.into());
        }
        for (module, change) in &adapter.changes {
            change.check(module)?;
            let foreign = || ModelError::ForeignAdapter { key: module.clone() };
            let (network, path) = layers.place(module).ok_or_else(foreign)?;
            networks[network].add(path, change, *scale).ok_or_else(foreign)?;
        }
    }
    Ok(networks)
}

impl<'a> Network<'a> {
    /// `None` if the change does not fit the layer.
    fn add(&mut self, path: &str, change: &'a Change, scale: f32) -> Option<()> {
        let weight = format!("{path}.weight");
        if !change.fits(&self.weights.info(&weight)?.shape) {
            return None;
        }
        self.add_to(&weight, false, change, scale)?;
        if let Some(delta) = change.bias_delta(scale) {
            let bias = format!("{path}.bias");
            if self.weights.info(&bias)?.shape != delta.shape {
                return None;
            }
            self.add_to(&bias, true, change, scale)?;
        }
        Some(())
    }

    fn add_to(&mut self, name: &str, is_bias: bool, change: &'a Change, scale: f32) -> Option<()> {
        let (in_file, part) = self.weights.place_in_file(name)?;
        let addition = Addition { part, is_bias, change, scale };
        self.additions.entry(in_file.to_owned()).or_default().push(addition);
        Some(())
    }
}

impl Addition<'_> {
    /// Adds to the tensor of a file, which has this shape.
    fn apply(&self, shape: &[usize], values: &mut [f32]) -> std::result::Result<(), AdapterError> {
        let mut shape = shape.to_vec();
        let values = match (self.part, shape.first_mut()) {
            (Part::Third(third), Some(rows)) => {
                *rows /= 3;
                let length = values.len() / 3;
                &mut values[third * length..(third + 1) * length]
            }
            _ => values,
        };
        let delta = match self.change {
            change if self.is_bias => change.bias_delta(self.scale).map_or_else(Vec::new, |delta| delta.data),
            Change::Dora(_) => {
                let weight = Array { shape, data: values.to_vec() };
                self.change.delta(Some(&weight), self.scale)?.data
            }
            change => change.delta(None, self.scale)?.data,
        };
        values.iter_mut().zip(delta).for_each(|(value, more)| *value += more);
        Ok(())
    }
}

/// What all files of a base are rewritten with.
struct Rewriting<'a> {
    dtype: Option<Dtype>,
    adapters: &'a [(&'a AdapterFile, f32)],
    progress: &'a mut dyn FnMut(u64, u64),
    num_done: u64,
    /// Of all files.
    num_tensors: u64,
}

impl Rewriting<'_> {
    /// The tensors of `source` under the same names, with `additions` in those that have some.
    fn rewrite(
        &mut self,
        source: &TensorFiles,
        additions: &[&BTreeMap<String, Vec<Addition>>],
        metadata: &BTreeMap<String, String>,
        target: &Path,
    ) -> Result<()> {
        let of = |name: &str| additions.iter().filter_map(|all| all.get(name)).flatten().collect::<Vec<_>>();
        let mut plan = BTreeMap::new();
        for name in source.names() {
            let Some(info) = source.info(name) else { continue };
            let dtype = self.stored(info.dtype, !of(name).is_empty());
            plan.insert(name.to_owned(), TensorInfo { dtype, shape: info.shape.clone() });
        }
        write_tensors_streamed(target, &plan, metadata, |name| {
            let (additions, info) = (of(name), source.info(name));
            let is_as_before = additions.is_empty() && info == plan.get(name);
            let values = if is_as_before {
                TensorValues::Raw(source.read_bytes(name)?)
            } else {
                let mut values = source.read_f32(name)?;
                let shape = info.map(|info| info.shape.as_slice()).unwrap_or_default();
                additions.iter().try_for_each(|addition| addition.apply(shape, &mut values))?;
                values.into()
            };
            self.num_done += 1;
            (self.progress)(self.num_done, self.num_tensors);
            Ok(values)
        })?;
        Ok(())
    }

    /// The type that a tensor of type `own` gets. Sums are f32 at most.
    fn stored(&self, own: Dtype, is_changed: bool) -> Dtype {
        match (own, self.dtype) {
            (Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64, Some(dtype)) => dtype,
            (Dtype::F64, None) if is_changed => Dtype::F32,
            _ => own,
        }
    }

    /// The metadata of a file of weights after the merge. Hashes of what was before are left out.
    fn metadata(&self, before: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut metadata = before.clone();
        for stale in ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"] {
            metadata.remove(stale);
        }
        let mut merged: Vec<Value> =
            before.get(MERGED).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        for (adapter, scale) in self.adapters {
            // As it was typed: 0.7 as f64 has more digits.
            let scale = scale.to_string().parse().unwrap_or_else(|_| f64::from(*scale));
            let mut entry = json!({ "adapter": file_name(&adapter.path), "scale": scale });
            if let Some(hash) = adapter.metadata.get("sshs_model_hash") {
                entry["sshs_model_hash"] = json!(hash);
            }
            merged.push(entry);
        }
        metadata.insert(MERGED.to_owned(), Value::from(merged).to_string());
        // transformers refuses a file without it.
        metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
        metadata
    }
}

fn single_file(
    networks: &[Network],
    metadata: &BTreeMap<String, String>,
    output: &Path,
    mut rewriting: Rewriting,
) -> Result<()> {
    let Some(network) = networks.first() else { return Ok(()) };
    let source = network.weights.files(); // all networks are in one file
    let additions: Vec<_> = networks.iter().map(|network| &network.additions).collect();
    rewriting.num_tensors = source.names().len() as u64;
    let metadata = rewriting.metadata(metadata);
    rewriting.rewrite(source, &additions, &metadata, output)
}

/// A file of weights that is to be rewritten.
struct WeightFile<'a> {
    content: &'a FileContent,
    additions: Option<&'a BTreeMap<String, Vec<Addition<'a>>>>,
    target: String,
}

fn folder(
    base: &Base,
    files: &BaseFiles,
    networks: &[Network],
    output: &Path,
    mut rewriting: Rewriting,
    notes: &mut Vec<String>,
) -> Result<()> {
    let all = files.all()?;
    let vae = base.vae_weights()?;
    let mut rewritten: BTreeMap<&str, WeightFile> = BTreeMap::new();
    let mut folders = BTreeSet::new();
    let with_vae = networks.iter().map(|network| (&network.weights, Some(&network.additions))).chain([(&vae, None)]);
    for (weights, additions) in with_vae {
        if rewriting.dtype.is_none() && additions.is_none_or(BTreeMap::is_empty) {
            continue;
        }
        let labels: BTreeSet<String> = weights.files().file_paths().map(|path| path.display().to_string()).collect();
        for (relative, content) in all.iter().filter(|(relative, _)| labels.contains(&files.label(relative))) {
            let target = safetensors_name(relative);
            if target != *relative {
                notes.push(format!("`{relative}` became `{target}`"));
            }
            folders.extend(relative.rsplit_once('/').map(|(folder, _)| folder));
            rewritten.insert(relative, WeightFile { content, additions, target });
        }
        rewriting.num_tensors += weights.files().names().len() as u64;
    }
    let indices: BTreeSet<String> =
        networks.iter().map(|network| &network.weights).chain([&vae]).map(|w| w.path().display().to_string()).collect();
    write_new_folder(output, |unfinished| {
        for (relative, content) in &all {
            let place = |relative: &str| unfinished.join(relative);
            make_folder(place(relative).parent().unwrap_or(unfinished))?;
            if let Some(file) = rewritten.get(relative.as_str()) {
                let source = file.content.open(&files.label(relative))?;
                let metadata = rewriting.metadata(source.metadata());
                let additions: Vec<_> = file.additions.into_iter().collect();
                rewriting.rewrite(&source, &additions, &metadata, &place(&file.target))?;
            } else if is_other_copy(relative, &folders) && !indices.contains(&files.label(relative)) {
                notes.push(format!("`{relative}` is left out: it has the weights from before"));
            } else {
                content.copy_to(&place(relative))?;
            }
        }
        Ok(())
    })
}

/// Whether a file holds weights that another one, which is rewritten, holds too: a variant of another type or format, or a
/// whole checkpoint at the top.
fn is_other_copy(relative: &str, rewritten_folders: &BTreeSet<&str>) -> bool {
    let is_weights = WEIGHT_ENDINGS.iter().any(|ending| relative.ends_with(ending));
    let folder = relative.rsplit_once('/').map(|(folder, _)| folder);
    is_weights && folder.is_none_or(|folder| rewritten_folders.contains(folder))
}

/// `text_encoder/pytorch_model.bin` is `text_encoder/model.safetensors` for diffusers.
fn safetensors_name(relative: &str) -> String {
    match relative.strip_suffix(".bin") {
        Some(stem) => format!("{}.safetensors", stem.replace("/pytorch_model", "/model")),
        None => relative.to_owned(),
    }
}

impl FileContent {
    fn open(&self, label: &str) -> Result<TensorFiles> {
        Ok(match self {
            Self::Path(path) => TensorFiles::open(path)?,
            Self::Bytes(bytes) => TensorFile::from_bytes(label, *bytes)?.into(),
        })
    }

    fn copy_to(&self, target: &Path) -> Result<()> {
        match self {
            Self::Bytes(bytes) => atomic_write_bytes(target, bytes)?,
            Self::Path(path) => {
                let disk = |source| AdapterError::Write { path: target.to_owned(), source };
                std::fs::copy(path, target).map_err(disk)?;
                std::fs::File::open(target).and_then(|file| file.sync_all()).map_err(disk)?;
            }
        }
        Ok(())
    }
}

//! diffusers' file with PEFT's names, and PEFT's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::atomic_file::atomic_write_bytes;
use crate::change::Change;
use crate::conversion::{ConversionNote, Outgoing, components};
use crate::error::AdapterError;
use crate::formats::adapter_place::{PEFT_CONFIG, PEFT_TENSORS};
use crate::formats::dotted_key::{PEFT_PREFIX, component_prefix};
use crate::formats::dotted_reader::METADATA_KEY;
use crate::formats::lora_config::config_of;
use crate::formats::module_path::dotted_path;
use crate::keys::Component;
use crate::tensor_file_writer::write_tensors;
use crate::{Array, LoraModule, TensorView};

/// What a component's modules are in PEFT's words.
struct ComponentFactors {
    component: Component,
    modules: BTreeMap<String, Factors>,
    use_dora: bool,
}

/// By dotted path.
struct Factors {
    lora: LoraModule,
    magnitude: Option<Array>,
}

/// One file `pytorch_lora_weights.safetensors`: names as diffusers writes them now, ranks and alphas in the header.
pub(crate) fn write_diffusers(outgoing: &mut Outgoing, path: &Path) -> Result<(), AdapterError> {
    let parts = parts(outgoing, "diffusers")?;
    let (mut arrays, mut settings) = (BTreeMap::new(), Map::new());
    for part in &parts {
        let prefix = component_prefix(part.component);
        arrays.extend(part.arrays(prefix));
        settings.extend(part.config().into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
    }
    let mut metadata = without_hashes(outgoing);
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata.insert(METADATA_KEY.to_owned(), Value::Object(settings).to_string());
    write_arrays(outgoing, path, &arrays, &metadata)
}

/// A folder with `adapter_config.json` and `adapter_model.safetensors`; for several components one folder each inside.
pub(crate) fn write_peft(outgoing: &mut Outgoing, path: &Path) -> Result<(), AdapterError> {
    let parts = parts(outgoing, "peft")?;
    let mut metadata = without_hashes(outgoing);
    metadata.insert("format".to_owned(), "pt".to_owned());
    let name = |part: &ComponentFactors| component_prefix(part.component).trim_end_matches('.');
    if parts.len() > 1 {
        outgoing.notes.push(ConversionNote::SeveralFolders { names: parts.iter().map(name).collect() });
    }
    if parts.iter().any(|part| part.component.is_text_encoder()) {
        outgoing.notes.push(ConversionNote::TextLevel);
    }
    for part in &parts {
        let folder: PathBuf = if parts.len() > 1 { path.join(name(part)) } else { path.to_owned() };
        std::fs::create_dir_all(&folder).map_err(|source| AdapterError::Write { path: folder.clone(), source })?;
        write_arrays(outgoing, &folder.join(PEFT_TENSORS), &part.arrays(PEFT_PREFIX), &metadata)?;
        let config = format!("{:#}\n", Value::Object(part.config()));
        atomic_write_bytes(&folder.join(PEFT_CONFIG), config.as_bytes())?;
    }
    Ok(())
}

fn write_arrays(
    outgoing: &Outgoing,
    path: &Path,
    arrays: &BTreeMap<String, Array>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), AdapterError> {
    let dtype = outgoing.dtype().into();
    let tensors: BTreeMap<String, TensorView<'_>> = arrays
        .iter()
        .map(|(key, array)| (key.clone(), TensorView::f32_stored_as(dtype, &array.shape, &array.data)))
        .collect();
    write_tensors(path, &tensors, metadata)
}

/// The hashes are of the tensors under kohya's names.
fn without_hashes(outgoing: &mut Outgoing) -> BTreeMap<String, String> {
    let is_hash = |key: &str| key.starts_with("sshs_") || key == "modelspec.hash_sha256";
    let mut metadata = outgoing.metadata.clone();
    metadata.retain(|key, _| !is_hash(key));
    if metadata.len() < outgoing.metadata.len() {
        outgoing.notes.push(ConversionNote::HashesLeftOut);
    }
    metadata
}

fn parts(outgoing: &mut Outgoing, format: &'static str) -> Result<Vec<ComponentFactors>, AdapterError> {
    let changes = std::mem::take(&mut outgoing.changes);
    let mut parts = Vec::new();
    for component in components(&changes) {
        let mut modules = BTreeMap::new();
        for (module, change) in changes.iter().filter(|(module, _)| Component::of_module(module) == Some(component)) {
            let cannot =
                |reason: &str| AdapterError::CannotCarry { module: module.clone(), format, reason: reason.to_owned() };
            let (_, path) = dotted_path(module).ok_or_else(|| cannot("its name is none of a known network"))?;
            let factors = match change {
                Change::Dora(dora) => {
                    if dora.magnitude.shape.first() != dora.direction.weight_shape().first() {
                        return Err(cannot("its DoRA has a length for each column, PEFT's for each row"));
                    }
                    let lora = outgoing.low_rank(module, &dora.direction)?;
                    Factors { magnitude: Some(peft_magnitude(&dora.magnitude, &lora)), lora }
                }
                change => Factors { lora: outgoing.low_rank(module, change)?, magnitude: None },
            };
            modules.insert(path, factors);
        }
        let num_dora = modules.values().filter(|factors| factors.magnitude.is_some()).count();
        if num_dora != 0 && num_dora != modules.len() {
            let module = component.prefix().to_owned();
            let reason = "DoRA for some modules only: PEFT has it for all of a component or for none".to_owned();
            return Err(AdapterError::CannotCarry { module, format, reason });
        }
        parts.push(ComponentFactors { component, modules, use_dora: num_dora > 0 });
    }
    Ok(parts)
}

/// (out), or (1, out, 1, 1) for a convolution.
fn peft_magnitude(magnitude: &Array, lora: &LoraModule) -> Array {
    let out = magnitude.data.len();
    let shape = if lora.down.shape.len() == 4 { vec![1, out, 1, 1] } else { vec![out] };
    Array { shape, data: magnitude.data.clone() }
}

impl ComponentFactors {
    fn arrays(&self, prefix: &str) -> BTreeMap<String, Array> {
        let mut arrays = BTreeMap::new();
        for (path, Factors { lora, magnitude }) in &self.modules {
            arrays.insert(format!("{prefix}{path}.lora_A.weight"), lora.down.clone());
            arrays.insert(format!("{prefix}{path}.lora_B.weight"), lora.up.clone());
            if let Some(magnitude) = magnitude {
                arrays.insert(format!("{prefix}{path}.lora_magnitude_vector"), magnitude.clone());
            }
        }
        arrays
    }

    fn config(&self) -> Map<String, Value> {
        let modules: Vec<(String, usize, f32)> = self
            .modules
            .iter()
            .map(|(path, Factors { lora, .. })| (path.clone(), lora.rank(), lora.alpha.unwrap_or(lora.rank() as f32)))
            .collect();
        config_of(&modules, self.use_dora)
    }
}

//! kohya's keys for every kind of change.

use std::collections::BTreeMap;
use std::path::Path;

use crate::adapter_file::BlockNames;
use crate::base_family::BaseFamily;
use crate::conversion::{ConversionNote, Outgoing};
use crate::error::AdapterError;
use crate::formats::module_path::with_original_blocks;
use crate::keys::Component;
use crate::kohya::metadata_with_hashes;
use crate::tensor_file_writer::write_tensors;
use crate::{Array, TensorView};

pub(crate) fn write(outgoing: &mut Outgoing, path: &Path) -> Result<(), AdapterError> {
    add_visibility(outgoing);
    let names = match outgoing.block_names {
        None => names_in_file(outgoing.changes.keys(), outgoing.family),
        Some(BlockNames::Original) => original_names(outgoing.changes.keys())?,
        Some(BlockNames::Diffusers) => BTreeMap::new(),
    };
    let mut arrays: BTreeMap<String, Array> = BTreeMap::new();
    for (module, change) in &outgoing.changes {
        let name = names.get(module).unwrap_or(module);
        arrays.extend(change.leaves().into_iter().map(|(leaf, array)| (format!("{name}.{leaf}"), array)));
    }
    let dtype = outgoing.dtype().into();
    let tensors: BTreeMap<String, TensorView<'_>> = arrays
        .iter()
        .map(|(key, array)| (key.clone(), TensorView::f32_stored_as(dtype, &array.shape, &array.data)))
        .collect();
    let metadata = metadata_with_hashes(&outgoing.metadata, &tensors)?;
    write_tensors(path, &tensors, &metadata)
}

/// The names in the file where they differ. SDXL's U-Net has the original blocks: all of it or, where one has no such name,
/// nothing.
pub(crate) fn names_in_file<'a>(
    modules: impl Iterator<Item = &'a String>,
    family: BaseFamily,
) -> BTreeMap<String, String> {
    match family {
        BaseFamily::Sdxl => original_names(modules).unwrap_or_default(),
        _ => BTreeMap::new(),
    }
}

/// The original names of the U-Net's modules.
fn original_names<'a>(modules: impl Iterator<Item = &'a String>) -> Result<BTreeMap<String, String>, AdapterError> {
    let unet = modules.filter(|module| Component::of_module(module) == Some(Component::Unet));
    let renamed = unet.map(|module| {
        let original = with_original_blocks(module).ok_or_else(|| AdapterError::CannotCarry {
            module: module.clone(),
            format: "kohya",
            reason: "its block has no original name".to_owned(),
        })?;
        Ok((module.clone(), original))
    });
    renamed.collect()
}

/// The entries by which programs decide for which base they list an adapter, where there are none. Those of SD 2.x would
/// have to say what the base predicts, which nothing here knows.
fn add_visibility(outgoing: &mut Outgoing) {
    let (version, is_v2, architecture) = match outgoing.family {
        BaseFamily::Sd1 => ("sd_v1", "False", "stable-diffusion-v1/lora"),
        BaseFamily::Sdxl => ("sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora"),
        BaseFamily::Sd2 | BaseFamily::Unknown => return,
    };
    let entries = [
        ("ss_base_model_version", version),
        ("ss_v2", is_v2),
        ("modelspec.architecture", architecture),
        ("modelspec.sai_model_spec", "1.0.1"),
    ];
    let mut keys = Vec::new();
    for (key, value) in entries {
        if !outgoing.metadata.contains_key(key) {
            outgoing.metadata.insert(key.to_owned(), value.to_owned());
            keys.push(key.to_owned());
        }
    }
    if !keys.is_empty() {
        outgoing.notes.push(ConversionNote::MetadataAdded { keys });
    }
}

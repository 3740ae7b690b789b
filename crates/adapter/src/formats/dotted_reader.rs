//! Keys with dotted paths: diffusers of all generations, and PEFT.

use std::collections::BTreeMap;

use crate::error::AdapterError;
use crate::formats::adapter_place::AdapterPlace;
use crate::formats::dotted_key::{DottedKey, DottedLeaf, Spelling, component_prefix};
use crate::formats::lora_config::LoraConfig;
use crate::formats::reading::{Content, Leaves, read_array, source_key};
use crate::keys::{Component, Leaf};
use crate::source_key::KeySpelling;
use crate::{Array, TensorFiles};

/// The header's entry with PEFT's settings of each component.
pub(crate) const METADATA_KEY: &str = "lora_adapter_metadata";
const MAGNITUDE: &str = "dora_scale";

pub(crate) fn read(files: &TensorFiles, place: &AdapterPlace) -> Result<Content, AdapterError> {
    let configs = configs(files)?;
    let mut content = Content::default();
    let mut leaves = Leaves::default();
    let mut paths: BTreeMap<String, (Component, String)> = BTreeMap::new();
    for key in files.names() {
        let Some(parsed) = DottedKey::parse(key) else {
            content.keys.push(source_key(files, key, None, KeySpelling::Unknown));
            continue;
        };
        let component = place.component.unwrap_or(parsed.component);
        let parsed = DottedKey { component, ..parsed };
        let module = parsed.module();
        let leaf = match parsed.leaf {
            DottedLeaf::Down => Leaf::Down.name(),
            DottedLeaf::Up => Leaf::Up.name(),
            DottedLeaf::Alpha => Leaf::Alpha.name(),
            DottedLeaf::Magnitude => MAGNITUDE,
        };
        leaves.add(files.path(), key, &module, leaf, read_array(files, key)?)?;
        content.keys.push(source_key(files, key, Some(module.clone()), spelling(parsed.spelling)));
        paths.insert(module, (component, parsed.path));
    }
    for (module, leaves) in leaves.modules() {
        let Some((component, path)) = paths.get(module) else { continue };
        let name = component_prefix(*component).trim_end_matches('.');
        if let Some(config) = place.config.as_ref().or_else(|| configs.get(name)) {
            complete(leaves, path, config);
        }
        orient_magnitude(leaves);
    }
    content.changes = leaves.into_changes()?;
    Ok(content)
}

fn configs(files: &TensorFiles) -> Result<BTreeMap<String, LoraConfig>, AdapterError> {
    let Some(text) = files.metadata().get(METADATA_KEY) else { return Ok(BTreeMap::new()) };
    let wrong = |problem| AdapterError::AdapterSettings { path: files.path().to_owned(), problem };
    LoraConfig::by_component(text).map_err(wrong)
}

/// The alpha that the settings give, unless the file has one.
fn complete(leaves: &mut BTreeMap<String, Array>, path: &str, config: &LoraConfig) {
    let rank = leaves.get(Leaf::Down.name()).and_then(|down| down.shape.first().copied()).unwrap_or(0);
    let alpha = config.alpha(path, rank);
    leaves.entry(Leaf::Alpha.name().to_owned()).or_insert_with(|| Array { shape: Vec::new(), data: vec![alpha] });
}

/// PEFT keeps one length for each row, as (out) or, for convolutions, (1, out, 1, 1).
fn orient_magnitude(leaves: &mut BTreeMap<String, Array>) {
    let num_dims = leaves.get(Leaf::Down.name()).map_or(2, |down| down.shape.len().max(1));
    if let Some(magnitude) = leaves.get_mut(MAGNITUDE) {
        let mut shape = vec![1; num_dims];
        shape[0] = magnitude.data.len();
        magnitude.shape = shape;
    }
}

fn spelling(spelling: Spelling) -> KeySpelling {
    match spelling {
        Spelling::Processor => KeySpelling::Processor,
        Spelling::LoraDown => KeySpelling::LoraDown,
        Spelling::LinearLayer => KeySpelling::LinearLayer,
        Spelling::Peft => KeySpelling::Peft,
    }
}

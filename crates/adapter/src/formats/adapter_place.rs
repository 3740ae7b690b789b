//! Where an adapter's tensors and settings lie: in a file, or in a folder of PEFT or diffusers.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::AdapterError;
use crate::formats::lora_config::LoraConfig;
use crate::keys::Component;

pub(crate) const PEFT_CONFIG: &str = "adapter_config.json";
pub(crate) const PEFT_TENSORS: &str = "adapter_model.safetensors";
const PEFT_OLD_TENSORS: &str = "adapter_model.bin";
const DIFFUSERS_NAMES: [&str; 2] = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];
/// Folders of components beside each other.
pub(crate) const COMPONENT_FOLDERS: [(&str, Component); 3] =
    [("unet", Component::Unet), ("text_encoder", Component::TextEncoder), ("text_encoder_2", Component::TextEncoder2)];
/// PEFT's settings have some kB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// One file of tensors and what stands beside it.
#[derive(Debug)]
pub(crate) struct AdapterPlace {
    pub(crate) tensors: PathBuf,
    pub(crate) config: Option<LoraConfig>,
    /// Where the folder's name says it.
    pub(crate) component: Option<Component>,
}

/// The files of the adapter at a path.
///
/// # Errors
/// [`AdapterError::NoAdapter`] for a folder without one, [`AdapterError::AdapterSettings`] for PEFT's settings.
pub(crate) fn places(path: &Path) -> Result<Vec<AdapterPlace>, AdapterError> {
    if !path.is_dir() {
        let folder = path.parent().unwrap_or(Path::new(""));
        let is_named_by_peft = path.file_name().is_some_and(|name| name == PEFT_TENSORS || name == PEFT_OLD_TENSORS);
        if is_named_by_peft && folder.join(PEFT_CONFIG).is_file() {
            return Ok(vec![peft_place(folder, path.to_owned())?]);
        }
        return Ok(vec![AdapterPlace { tensors: path.to_owned(), config: None, component: None }]);
    }
    if path.join(PEFT_CONFIG).is_file() {
        return Ok(vec![peft_place(path, peft_tensors(path))?]);
    }
    let mut places = Vec::new();
    for (name, component) in COMPONENT_FOLDERS {
        let folder = path.join(name);
        if folder.join(PEFT_CONFIG).is_file() {
            places.push(AdapterPlace { component: Some(component), ..peft_place(&folder, peft_tensors(&folder))? });
        }
    }
    if let Some(tensors) = DIFFUSERS_NAMES.map(|name| path.join(name)).into_iter().find(|path| path.is_file())
        && places.is_empty()
    {
        places.push(AdapterPlace { tensors, config: None, component: None });
    }
    if places.is_empty() {
        return Err(AdapterError::NoAdapter { path: path.to_owned() });
    }
    Ok(places)
}

fn peft_tensors(folder: &Path) -> PathBuf {
    let [new, old] = [PEFT_TENSORS, PEFT_OLD_TENSORS].map(|name| folder.join(name));
    if !new.is_file() && old.is_file() { old } else { new }
}

fn peft_place(folder: &Path, tensors: PathBuf) -> Result<AdapterPlace, AdapterError> {
    let path = folder.join(PEFT_CONFIG);
    let failed = |source| AdapterError::Read { path: path.clone(), source };
    let wrong = |problem| AdapterError::AdapterSettings { path: path.clone(), problem };
    let mut json = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut json).map_err(failed)?;
    if json.len() as u64 > MAX_CONFIG_BYTES {
        return Err(wrong(format!("more than {MAX_CONFIG_BYTES} bytes")));
    }
    let value = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
    let config = LoraConfig::from_json(value).map_err(wrong)?;
    let is_named = |name: &str| folder.file_name().is_some_and(|folder| folder == name);
    let component = COMPONENT_FOLDERS.into_iter().find_map(|(name, component)| is_named(name).then_some(component));
    Ok(AdapterPlace { tensors, config: Some(config), component })
}

//! The tensors and settings that the pickle of a PyTorch file describes.
//!
//! Understood are a dictionary of tensors (`torch.save(model.state_dict())`), one with such a dictionary under
//! `state_dict` (checkpoints of Stable Diffusion), and a list of tensors (named by position).

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::AdapterError;
use crate::pickle::{Pickle, TensorRecord, Value, ValueId};
use crate::tensor_header::{self, MAX_TENSORS};

const STATE_DICT: &str = "state_dict";
/// The most settings that are kept, and the longest text among them in bytes.
const MAX_SETTINGS: usize = 1000;
const MAX_SETTING_BYTES: usize = 1024;

/// What a PyTorch file holds, by name.
#[derive(Debug)]
pub(crate) struct TorchState<'a> {
    pub(crate) tensors: BTreeMap<String, &'a TensorRecord>,
    /// Numbers and texts beside the tensors, such as `global_step`.
    pub(crate) settings: BTreeMap<String, String>,
}

impl<'a> TorchState<'a> {
    pub(crate) fn of(path: &Path, pickle: &'a Pickle) -> Result<Self, AdapterError> {
        let mut state = Self { tensors: BTreeMap::new(), settings: BTreeMap::new() };
        match pickle.root() {
            Value::Dict(items) => {
                let inner = items.iter().find(|(key, _)| pickle.text(*key) == Some(STATE_DICT));
                match inner.map(|(_, value)| pickle.value(*value)) {
                    Some(Value::Dict(inner)) => state.add_tensors(path, pickle, inner)?,
                    _ => state.add_tensors(path, pickle, items)?,
                }
                state.add_settings(pickle, items);
            }
            Value::List(items) | Value::Tuple(items) => {
                for (position, id) in items.iter().enumerate() {
                    if let Value::Tensor(tensor) = pickle.value(*id) {
                        state.add_tensor(path, &position.to_string(), tensor)?;
                    }
                }
            }
            _ => {}
        }
        if state.tensors.is_empty() {
            return Err(AdapterError::NoTensors { path: path.to_owned() });
        }
        Ok(state)
    }

    fn add_tensors(
        &mut self,
        path: &Path,
        pickle: &'a Pickle,
        items: &[(ValueId, ValueId)],
    ) -> Result<(), AdapterError> {
        for (key, value) in items {
            if let (Some(name), Value::Tensor(tensor)) = (pickle.text(*key), pickle.value(*value)) {
                self.add_tensor(path, name, tensor)?;
            }
        }
        Ok(())
    }

    fn add_tensor(&mut self, path: &Path, name: &str, tensor: &'a TensorRecord) -> Result<(), AdapterError> {
        if !tensor_header::is_tensor_name(name) {
            return Err(tensor_header::bad_name(path, name));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(AdapterError::TooManyTensors { path: path.to_owned(), limit: MAX_TENSORS });
        }
        match self.tensors.insert(name.to_owned(), tensor) {
            Some(_) => Err(AdapterError::DuplicateName { path: path.to_owned(), name: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn add_settings(&mut self, pickle: &Pickle, items: &[(ValueId, ValueId)]) {
        for (key, value) in items {
            let Some(name) = pickle.text(*key).filter(|name| tensor_header::is_tensor_name(name)) else { continue };
            let text = match pickle.value(*value) {
                Value::Bool(value) => value.to_string(),
                Value::Int(value) => value.to_string(),
                Value::Float(value) => value.to_string(),
                Value::Text(value) if value.len() <= MAX_SETTING_BYTES => value.clone(),
                _ => continue,
            };
            if self.settings.len() < MAX_SETTINGS {
                self.settings.insert(name.to_owned(), text);
            }
        }
    }
}

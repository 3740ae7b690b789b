//! An optimizer's state as plain named numbers and tensors, for files.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use crate::error::TrainError;

/// Tensors by the key of the factor that they belong to.
pub type FactorTensors = BTreeMap<String, Tensor>;

/// All that the next step depends on, besides factors, gradients and settings.
#[derive(Debug, Clone, Default)]
pub struct OptimizerState {
    /// Steps made.
    pub num_steps: u64,
    /// Numbers by name.
    pub scalars: BTreeMap<String, f64>,
    /// Slot to factor key to tensor, f32: `first`, `second`, ... A slot may be empty before the first step.
    pub tensors: BTreeMap<String, FactorTensors>,
}

impl OptimizerState {
    pub(super) fn put(&mut self, slot: &str, tensors: &FactorTensors) {
        self.tensors.insert(slot.to_owned(), tensors.clone());
    }

    pub(crate) fn put_scalar(&mut self, name: &str, value: f64) {
        self.scalars.insert(name.to_owned(), value);
    }

    /// Takes a slot out. Before the first step a slot that is not there is empty.
    pub(crate) fn take(&mut self, slot: &str) -> Result<FactorTensors, TrainError> {
        match self.tensors.remove(slot) {
            Some(tensors) => Ok(tensors),
            None if self.num_steps == 0 => Ok(FactorTensors::new()),
            None => Err(TrainError::OptimizerState { reason: format!("it has no `{slot}`") }),
        }
    }

    pub(crate) fn take_scalar(&mut self, name: &str) -> Result<f64, TrainError> {
        let lacks = || TrainError::OptimizerState { reason: format!("it has no `{name}`") };
        self.scalars.remove(name).ok_or_else(lacks)
    }

    /// # Errors
    /// [`TrainError::OptimizerState`] if something is left that nobody took.
    pub(super) fn expect_empty(&self) -> Result<(), TrainError> {
        let left = self.tensors.iter().find(|(_, tensors)| !tensors.is_empty()).map(|(slot, _)| slot);
        match left.or(self.scalars.keys().next()) {
            Some(name) => Err(TrainError::OptimizerState { reason: format!("`{name}` belongs to another optimizer") }),
            None => Ok(()),
        }
    }

    /// Moves all tensors to `device`.
    pub(crate) fn moved_to(mut self, device: &Device) -> candle_core::Result<Self> {
        for tensor in self.tensors.values_mut().flat_map(BTreeMap::values_mut) {
            *tensor = tensor.to_device(device)?;
        }
        Ok(self)
    }
}

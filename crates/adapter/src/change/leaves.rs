//! The tensors of one module, taken one after the other: what is left at the end belongs to no known kind.

use std::collections::BTreeMap;

use crate::Array;
use crate::error::AdapterError;

pub(super) struct Leaves<'a> {
    module: &'a str,
    arrays: BTreeMap<String, Array>,
}

impl<'a> Leaves<'a> {
    pub(super) fn new(module: &'a str, arrays: BTreeMap<String, Array>) -> Self {
        Self { module, arrays }
    }

    pub(super) fn has(&self, leaf: &str) -> bool {
        self.arrays.contains_key(leaf)
    }

    pub(super) fn has_any_like(&self, beginning: &str) -> bool {
        self.arrays.keys().any(|leaf| leaf.starts_with(beginning))
    }

    pub(super) fn take_any(&mut self, leaf: &str) -> Option<Array> {
        self.arrays.remove(leaf)
    }

    pub(super) fn take(&mut self, leaf: &str) -> Result<Array, AdapterError> {
        self.take_any(leaf).ok_or_else(|| self.missing(leaf))
    }

    pub(super) fn missing(&self, leaf: &str) -> AdapterError {
        AdapterError::MissingLeaf { module: self.module.to_owned(), leaf: leaf.to_owned() }
    }

    /// Some programs have written shape (1) where others write a scalar.
    pub(super) fn alpha(&mut self) -> Result<Option<f32>, AdapterError> {
        match self.take_any("alpha") {
            None => Ok(None),
            Some(Array { data, .. }) if data.len() == 1 => Ok(data.first().copied()),
            Some(Array { shape, .. }) => Err(AdapterError::AlphaShape { module: self.module.to_owned(), shape }),
        }
    }

    pub(super) fn finish(self) -> Result<(), AdapterError> {
        match self.arrays.into_keys().next() {
            None => Ok(()),
            Some(leaf) => Err(AdapterError::UnknownLeaf { module: self.module.to_owned(), leaf }),
        }
    }
}

//! A Python pickle as plain data.
//!
//! The values lie in one list and refer to each other by position. So a pickle whose lists contain each other costs no
//! more than its bytes, and neither reading nor dropping one recurses, however deeply it is nested.

use std::path::Path;

use crate::Dtype;
use crate::error::AdapterError;
use crate::pickle_globals::Global;
use crate::pickle_machine::PickleMachine;

/// The position of a value in its pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValueId(pub(crate) u32);

/// A Python value, as far as checkpoints need it.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<ValueId>),
    List(Vec<ValueId>),
    /// Pairs of key and value in the order in which they were set.
    Dict(Vec<(ValueId, ValueId)>),
    Global(Global),
    Storage(StorageRecord),
    Tensor(Box<TensorRecord>),
    /// Something that was skipped.
    Opaque,
}

/// A block of elements in an entry of the archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StorageRecord {
    pub(crate) dtype: Dtype,
    /// A text: the name of the entry.
    pub(crate) key: ValueId,
    pub(crate) num_elements: u64,
}

/// A tensor as a view of a storage. Offset and strides count elements; nothing is checked yet, except that shape and
/// strides are of one length of at most 8.
#[derive(Debug, Clone)]
pub(crate) struct TensorRecord {
    pub(crate) storage: StorageRecord,
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// All values of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: ValueId,
}

impl Pickle {
    /// Parses a pickle of protocol 2 to 5. `path` serves messages.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, AdapterError> {
        let (values, root) = PickleMachine::new(path, bytes).run()?;
        Ok(Self { values, root })
    }

    /// The value that Python's `load` would return.
    pub(crate) fn root(&self) -> &Value {
        self.value(self.root)
    }

    pub(crate) fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The text that a value is, if it is one.
    pub(crate) fn text(&self, id: ValueId) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

//! The difference itself, as it is.

use super::Leaves;
use crate::Array;
use crate::error::AdapterError;

/// The difference itself.
#[derive(Debug, Clone, PartialEq)]
pub struct FullModule {
    /// Of the weight; of one dimension for a norm.
    pub weight: Array,
    /// Of the bias: (out).
    pub bias: Option<Array>,
}

impl FullModule {
    /// The leaves are `diff` and `diff_b`, of norms `w_norm` and `b_norm`.
    pub(super) fn from_leaves(leaves: &mut Leaves) -> Result<Self, AdapterError> {
        let (weight, bias) = if leaves.has("w_norm") { ("w_norm", "b_norm") } else { ("diff", "diff_b") };
        Ok(Self { weight: leaves.take(weight)?, bias: leaves.take_any(bias) })
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, &Array)> {
        let (weight, bias) = if self.weight.shape.len() == 1 { ("w_norm", "b_norm") } else { ("diff", "diff_b") };
        std::iter::once((weight, &self.weight)).chain(self.bias.as_ref().map(|array| (bias, array))).collect()
    }

    pub(super) fn is_sound(&self) -> bool {
        let is_weight = matches!(self.weight.shape.len(), 1 | 2 | 4);
        is_weight && self.bias.as_ref().is_none_or(|bias| bias.shape[..] == self.weight.shape[..1])
    }
}

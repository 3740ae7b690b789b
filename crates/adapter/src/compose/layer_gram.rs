//! What the inputs of a layer leave behind for gradient fusion.

use crate::Array;

/// Second moments of the inputs of one layer, recorded while each member of a composition works under its own prompts.
///
/// With X_i (in x samples) the inputs under member i and G_i = X_i X_i^T. Linear layers and 1x1 convolutions only.
/// Inputs may be divided by one common factor: fusion does not depend on it.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerGram {
    /// G = sum of all G_i, row-major (in, in). Members that do not change the layer count too: on their inputs the fused
    /// change should do nothing.
    pub gram: Vec<f32>,
    /// A_i G_i (rank_i, in) for each member in their order, with A_i the `down` of its module as it is in the file;
    /// (0, in) for a member that does not change the layer.
    pub projected: Vec<Array>,
}

impl LayerGram {
    /// Whether anything went through the layer.
    pub(crate) fn has_inputs(&self) -> bool {
        self.gram.iter().any(|value| *value != 0.0)
    }
}

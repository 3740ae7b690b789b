//! In which number types a network keeps its tensors and computes.

use candle_core::DType;

/// How frozen matrices and kernels are kept. An operation widens them where it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// In 16 bits: f16 and bf16 of the file as they are, wider numbers as f16, or as bf16 in a tensor that holds one beyond
    /// the range of f16.
    Half,
    /// In this type.
    Exactly(DType),
}

/// The number types of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberTypes {
    /// Of activations, norms, biases and embeddings.
    pub activations: DType,
    /// Of the frozen weights of linear layers and convolutions.
    pub weights: WeightType,
}

impl From<DType> for NumberTypes {
    /// One type for all.
    fn from(dtype: DType) -> Self {
        Self { activations: dtype, weights: WeightType::Exactly(dtype) }
    }
}

impl NumberTypes {
    /// The same with other activations; weights of the activations' type stay so.
    #[must_use]
    pub fn with_activations(self, activations: DType) -> Self {
        let weights = match self.weights {
            WeightType::Exactly(dtype) if dtype == self.activations => WeightType::Exactly(activations),
            other => other,
        };
        Self { activations, weights }
    }

    /// Bytes of a number in a frozen weight.
    pub fn weight_bytes(self) -> u64 {
        match self.weights {
            WeightType::Half => 2,
            WeightType::Exactly(dtype) => dtype.size_in_bytes() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autoencoder_in_f32_has_narrow_weights_only_where_narrow_ones_were_asked_for() {
        let with_f32 = |weights| NumberTypes { activations: DType::BF16, weights }.with_activations(DType::F32);
        assert_eq!(with_f32(WeightType::Exactly(DType::BF16)), DType::F32.into()); // as on a card
        assert_eq!(with_f32(WeightType::Exactly(DType::F16)).weights, WeightType::Exactly(DType::F16));
        assert_eq!(with_f32(WeightType::Half).weights, WeightType::Half);
        assert_eq!((with_f32(WeightType::Half).weight_bytes(), NumberTypes::from(DType::F32).weight_bytes()), (2, 4));
    }
}

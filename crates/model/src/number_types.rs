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
    /// Matrices of linear layers in 8 bits with a scale for each row ([`crate::ops::FrozenMatrix`]); kernels of convolutions in the type of
    /// the activations, where that has 16 bits, otherwise as [`WeightType::Half`].
    Int8,
}

/// Bytes of a number in frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightBytes {
    /// In matrices of linear layers.
    pub matrices: u64,
    /// In kernels of convolutions.
    pub kernels: u64,
}

impl WeightBytes {
    /// The same in both.
    pub fn alike(bytes: u64) -> Self {
        Self { matrices: bytes, kernels: bytes }
    }
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
    /// The same with other activations, for an autoencoder: weights of the activations' type stay so, and its few matrices
    /// are not worth 8 bits.
    #[must_use]
    pub fn with_activations(self, activations: DType) -> Self {
        let weights = match self.weights {
            WeightType::Exactly(dtype) if dtype == self.activations => WeightType::Exactly(activations),
            WeightType::Int8 => WeightType::Half,
            other => other,
        };
        Self { activations, weights }
    }

    /// How kernels of convolutions are kept.
    pub fn kernels(self) -> WeightType {
        match self.weights {
            WeightType::Int8 if self.activations.size_in_bytes() == 2 => WeightType::Exactly(self.activations),
            WeightType::Int8 => WeightType::Half,
            other => other,
        }
    }

    /// Bytes of a number in a frozen weight.
    pub fn weight_bytes(self) -> WeightBytes {
        match self.weights {
            WeightType::Half => WeightBytes::alike(2),
            WeightType::Exactly(dtype) => WeightBytes::alike(dtype.size_in_bytes() as u64),
            WeightType::Int8 => WeightBytes { matrices: 1, kernels: 2 },
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
        assert_eq!(with_f32(WeightType::Int8).weights, WeightType::Half);
        let bytes = |types: NumberTypes| types.weight_bytes();
        assert_eq!(bytes(with_f32(WeightType::Half)), WeightBytes::alike(2));
        assert_eq!(bytes(NumberTypes::from(DType::F32)), WeightBytes::alike(4));
    }

    #[test]
    fn eight_bits_are_for_matrices_and_kernels_stay_in_sixteen() {
        let of = |activations| NumberTypes { activations, weights: WeightType::Int8 };
        assert_eq!(of(DType::F32).kernels(), WeightType::Half);
        assert_eq!(of(DType::BF16).kernels(), WeightType::Exactly(DType::BF16));
        assert_eq!(of(DType::F32).weight_bytes(), WeightBytes { matrices: 1, kernels: 2 });
        assert_eq!(NumberTypes::from(DType::F32).kernels(), WeightType::Exactly(DType::F32));
    }
}

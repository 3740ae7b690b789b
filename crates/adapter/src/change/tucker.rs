//! LoCon in Tucker form: a convolution as 1x1, kxk and 1x1.

use super::matrix::Matrix;
use super::{Leaves, low_rank_module};
use crate::error::AdapterError;
use crate::{Array, LoraModule};

/// Up x mid x down: W[o, c, y, x] = alpha / r * sum of up[o, i] mid[i, j, y, x] down[j, c] (`LyCORIS`, locon with
/// `use_tucker`).
#[derive(Debug, Clone, PartialEq)]
pub struct TuckerModule {
    /// (rank, in, 1, 1)
    pub down: Array,
    /// (rank, rank, kh, kw)
    pub mid: Array,
    /// (out, rank, 1, 1)
    pub up: Array,
    /// `None` if the file has none, which means alpha = rank.
    pub alpha: Option<f32>,
}

impl TuckerModule {
    pub(super) fn from_leaves(leaves: &mut Leaves) -> Result<Self, AdapterError> {
        Ok(Self {
            down: leaves.take("lora_down.weight")?,
            mid: leaves.take("lora_mid.weight")?,
            up: leaves.take("lora_up.weight")?,
            alpha: leaves.alpha()?,
        })
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, &Array)> {
        vec![("lora_down.weight", &self.down), ("lora_mid.weight", &self.mid), ("lora_up.weight", &self.up)]
    }

    pub(super) fn is_sound(&self) -> bool {
        match (&self.down.shape[..], &self.mid.shape[..], &self.up.shape[..]) {
            ([rank, _, 1, 1], [a, b, _, _], [_, up_rank, 1, 1]) => a == rank && b == rank && up_rank == rank,
            _ => false,
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.down.shape[0]
    }

    pub(super) fn weight_shape(&self) -> Vec<usize> {
        vec![self.up.shape[0], self.down.shape[1], self.mid.shape[2], self.mid.shape[3]]
    }

    /// The core taken into down: the rank stays.
    pub(super) fn to_low_rank(&self) -> LoraModule {
        let down = fold_core(&self.mid, &Matrix::flattened(&self.down));
        let alpha = self.alpha.unwrap_or(self.rank() as f32);
        low_rank_module(Matrix::flattened(&self.up), down, &self.weight_shape(), alpha)
    }
}

/// (rank, in * kh * kw): sum over j of `core`[i, j, y, x] * `right`[j, c].
pub(super) fn fold_core(core: &Array, right: &Matrix) -> Matrix<'static> {
    let (rank, pixels) = (core.shape[0], core.shape[2] * core.shape[3]);
    // For each i: (in, j) x (j, pixels).
    let turned = right.transposed();
    let mut data = Vec::with_capacity(rank * right.columns * pixels);
    for slice in core.data.chunks((right.rows * pixels).max(1)) {
        let slice = Matrix { rows: right.rows, columns: pixels, data: slice.into() };
        data.extend_from_slice(&turned.product(&slice, 1.0).data);
    }
    Matrix { rows: rank, columns: right.columns * pixels, data: data.into() }
}

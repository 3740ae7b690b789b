//! LoKr: a Kronecker product.

use super::kernel::{kernel_of, weight_shape};
use super::matrix::Matrix;
use super::tucker::fold_core;
use super::{Leaves, low_rank_module};
use crate::error::AdapterError;
use crate::{Array, LoraModule};

/// One side of a Kronecker product.
#[derive(Debug, Clone, PartialEq)]
pub enum KroneckerFactor {
    /// As it is.
    Whole(Array),
    /// a b, of low rank.
    Product(Array, Array),
}

/// w1 (x) w2 (Edalati et al. 2022; `LyCORIS`, lokr).
#[derive(Debug, Clone, PartialEq)]
pub struct KroneckerModule {
    /// (out_l, in_m)
    pub w1: KroneckerFactor,
    /// (out_k, in_n) or (out_k, in_n, kh, kw); as a product (out_k, rank) x (rank, in_n * kh * kw), with a core
    /// (rank, out_k) and (rank, in_n).
    pub w2: KroneckerFactor,
    /// Core (rank, rank, kh, kw) of w2's Tucker form.
    pub core: Option<Array>,
    /// Counts only where a side is a product: the scale is alpha / rank there, 1 otherwise.
    pub alpha: Option<f32>,
    /// (kh, kw) of a convolution whose w2 is flattened: it is not in the factors. Read by the name of the layer.
    pub kernel: Option<[usize; 2]>,
}

impl KroneckerFactor {
    fn from_leaves(leaves: &mut Leaves, whole: &str, a: &str, b: &str) -> Result<Self, AdapterError> {
        match leaves.take_any(whole) {
            Some(array) => Ok(Self::Whole(array)),
            None if leaves.has(a) || leaves.has(b) => Ok(Self::Product(leaves.take(a)?, leaves.take(b)?)),
            None => Err(leaves.missing(whole)),
        }
    }

    fn arrays<'a>(
        &'a self,
        whole: &'static str,
        a: &'static str,
        b: &'static str,
    ) -> impl Iterator<Item = (&'static str, &'a Array)> {
        let (first, second) = match self {
            Self::Whole(array) => ((whole, array), None),
            Self::Product(first, second) => ((a, first), Some((b, second))),
        };
        std::iter::once(first).chain(second)
    }

    /// (rows, columns) of what it stands for, flattened, if its arrays belong together.
    fn size(&self, core: Option<&Array>) -> Option<(usize, usize)> {
        match (self, core) {
            (Self::Whole(array), None) => match array.shape[..] {
                [rows, columns] => Some((rows, columns)),
                [rows, columns, height, width] => {
                    Some((rows, columns.checked_mul(height)?.checked_mul(width)?)) // a hostile shape
                }
                _ => None,
            },
            (Self::Product(a, b), None) => match (&a.shape[..], &b.shape[..]) {
                ([rows, rank], [b_rank, columns]) if rank == b_rank => Some((*rows, *columns)),
                _ => None,
            },
            (Self::Product(a, b), Some(core)) => match (&a.shape[..], &b.shape[..], &core.shape[..]) {
                ([rank, rows], [b_rank, columns], [i, j, height, width]) if i == rank && j == b_rank => {
                    Some((*rows, columns.checked_mul(*height)?.checked_mul(*width)?))
                }
                _ => None,
            },
            (Self::Whole(_), Some(_)) => None,
        }
    }

    /// Two matrices whose product it is.
    fn sides(&self, core: Option<&Array>) -> (Matrix<'_>, Matrix<'_>) {
        match (self, core) {
            (Self::Whole(array), _) => Matrix::flattened(array).split(),
            (Self::Product(a, b), None) => (Matrix::flattened(a), Matrix::flattened(b)),
            (Self::Product(a, b), Some(core)) => {
                (Matrix::flattened(a).transposed(), fold_core(core, &Matrix::flattened(b)))
            }
        }
    }

    fn matrix(&self, core: Option<&Array>) -> Matrix<'_> {
        match self {
            Self::Whole(array) => Matrix::flattened(array),
            Self::Product(..) => {
                let (a, b) = self.sides(core);
                a.product(&b, 1.0)
            }
        }
    }

    /// The sides, of no higher rank than the matrix can have.
    fn shortest_sides(&self, core: Option<&Array>) -> (Matrix<'_>, Matrix<'_>) {
        let (a, b) = self.sides(core);
        if a.columns > a.rows.min(b.columns) { a.product(&b, 1.0).split() } else { (a, b) }
    }
}

impl KroneckerModule {
    pub(super) fn from_leaves(module: &str, leaves: &mut Leaves) -> Result<Self, AdapterError> {
        let w1 = KroneckerFactor::from_leaves(leaves, "lokr_w1", "lokr_w1_a", "lokr_w1_b")?;
        let w2 = KroneckerFactor::from_leaves(leaves, "lokr_w2", "lokr_w2_a", "lokr_w2_b")?;
        let core = leaves.take_any("lokr_t2");
        let kernel = match (&w2, &core) {
            (KroneckerFactor::Whole(w2), None) if w2.shape.len() == 2 => kernel_of(module, w2.shape[1]),
            (KroneckerFactor::Product(_, b), None) => kernel_of(module, b.shape.last().copied().unwrap_or(0)),
            _ => None,
        };
        Ok(Self { w1, w2, core, alpha: leaves.alpha()?, kernel })
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, &Array)> {
        let first = self.w1.arrays("lokr_w1", "lokr_w1_a", "lokr_w1_b");
        let second = self.w2.arrays("lokr_w2", "lokr_w2_a", "lokr_w2_b");
        first.chain(second).chain(self.core.as_ref().map(|core| ("lokr_t2", core))).collect()
    }

    pub(super) fn is_sound(&self) -> bool {
        let (Some(_), Some((_, columns))) = (self.w1.size(None), self.w2.size(self.core.as_ref())) else {
            return false;
        };
        let is_flat = match &self.w1 {
            KroneckerFactor::Whole(w1) => w1.shape.len() == 2,
            KroneckerFactor::Product(..) => true,
        };
        let pixels = self.kernel.map_or(1, |[height, width]| height.saturating_mul(width));
        is_flat && pixels > 0 && columns.is_multiple_of(pixels)
    }

    /// Of the sides that are products: w2's, or else w1's.
    pub(super) fn rank(&self) -> Option<usize> {
        match (&self.w1, &self.w2) {
            (_, KroneckerFactor::Product(_, b)) | (KroneckerFactor::Product(_, b), _) => b.shape.first().copied(),
            _ => None,
        }
    }

    fn scale(&self) -> f32 {
        match (self.alpha, self.rank()) {
            (Some(alpha), Some(rank)) => alpha / rank as f32,
            _ => 1.0,
        }
    }

    pub(super) fn weight_shape(&self) -> Vec<usize> {
        let (rows1, columns1) = self.w1.size(None).unwrap_or_default();
        let (rows2, columns2) = self.w2.size(self.core.as_ref()).unwrap_or_default();
        let kernel = match (&self.w2, &self.core) {
            (_, Some(core)) => Some([core.shape[2], core.shape[3]]),
            (KroneckerFactor::Whole(w2), _) if w2.shape.len() == 4 => Some([w2.shape[2], w2.shape[3]]),
            _ => self.kernel,
        };
        weight_shape(rows1.saturating_mul(rows2), columns1.saturating_mul(columns2), kernel)
    }

    pub(super) fn delta(&self, strength: f32) -> Vec<f32> {
        let (w1, w2) = (self.w1.matrix(None), self.w2.matrix(self.core.as_ref()));
        w1.kronecker(&w2, strength * self.scale()).data.into_owned()
    }

    /// Of rank rank(w1) rank(w2): the Kronecker product of products is the product of Kronecker products.
    pub(super) fn to_low_rank(&self) -> LoraModule {
        let (a1, b1) = self.w1.shortest_sides(None);
        let (a2, b2) = self.w2.shortest_sides(self.core.as_ref());
        let (up, down) = (a1.kronecker(&a2, 1.0), b1.kronecker(&b2, 1.0));
        let alpha = self.scale() * up.columns as f32;
        low_rank_module(up, down, &self.weight_shape(), alpha)
    }
}

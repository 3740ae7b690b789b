//! LoHa: the product, entry by entry, of two low-rank matrices.

use super::kernel::{kernel_of, weight_shape};
use super::matrix::Matrix;
use super::tucker::fold_core;
use super::{Leaves, low_rank_module};
use crate::error::AdapterError;
use crate::{Array, LoraModule};

/// alpha / r * (`w1_a` `w1_b`) * (`w2_a` `w2_b`), entry by entry (Hyeon-Woo et al. 2021; `LyCORIS`, loha).
#[derive(Debug, Clone, PartialEq)]
pub struct HadamardModule {
    /// (out, rank); in Tucker form (rank, out).
    pub w1_a: Array,
    /// (rank, in * kh * kw); in Tucker form (rank, in).
    pub w1_b: Array,
    /// As `w1_a`.
    pub w2_a: Array,
    /// As `w1_b`.
    pub w2_b: Array,
    /// Cores (rank, rank, kh, kw) of the Tucker form.
    pub cores: Option<(Array, Array)>,
    /// `None` means alpha = rank.
    pub alpha: Option<f32>,
    /// (kh, kw) of a convolution that is not in Tucker form: it is not in the factors. Read by the name of the layer; `None`
    /// for a linear layer.
    pub kernel: Option<[usize; 2]>,
}

impl HadamardModule {
    pub(super) fn from_leaves(module: &str, leaves: &mut Leaves) -> Result<Self, AdapterError> {
        let (w1_a, w1_b) = (leaves.take("hada_w1_a")?, leaves.take("hada_w1_b")?);
        let (w2_a, w2_b) = (leaves.take("hada_w2_a")?, leaves.take("hada_w2_b")?);
        let cores = match (leaves.take_any("hada_t1"), leaves.take_any("hada_t2")) {
            (None, None) => None,
            (Some(first), Some(second)) => Some((first, second)),
            (None, Some(_)) => return Err(leaves.missing("hada_t1")),
            (Some(_), None) => return Err(leaves.missing("hada_t2")),
        };
        let columns = w1_b.shape.last().copied().unwrap_or(0);
        let kernel = if cores.is_some() { None } else { kernel_of(module, columns) };
        Ok(Self { w1_a, w1_b, w2_a, w2_b, cores, alpha: leaves.alpha()?, kernel })
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, &Array)> {
        let mut arrays = vec![
            ("hada_w1_a", &self.w1_a),
            ("hada_w1_b", &self.w1_b),
            ("hada_w2_a", &self.w2_a),
            ("hada_w2_b", &self.w2_b),
        ];
        if let Some((first, second)) = &self.cores {
            arrays.extend([("hada_t1", first), ("hada_t2", second)]);
        }
        arrays
    }

    pub(super) fn is_sound(&self) -> bool {
        let side = |a: &Array, b: &Array, core: Option<&Array>| match (&a.shape[..], &b.shape[..], core) {
            ([out, rank], [b_rank, columns], None) => (rank == b_rank).then_some((*out, *columns, 1, 1)),
            ([rank, out], [b_rank, columns], Some(core)) => match core.shape[..] {
                [i, j, height, width] if i == *rank && j == *b_rank => Some((*out, *columns, height, width)),
                _ => None,
            },
            _ => None,
        };
        let cores = self.cores.as_ref();
        let first = side(&self.w1_a, &self.w1_b, cores.map(|(first, _)| first));
        let second = side(&self.w2_a, &self.w2_b, cores.map(|(_, second)| second));
        let holds_kernel = |[height, width]: [usize; 2]| {
            let pixels = height.saturating_mul(width);
            cores.is_none() && pixels > 0 && self.w1_b.shape[1].is_multiple_of(pixels)
        };
        first.is_some() && first == second && self.kernel.is_none_or(holds_kernel)
    }

    /// Rows of `w1_b`.
    pub(super) fn rank(&self) -> usize {
        self.w1_b.shape[0]
    }

    pub(super) fn weight_shape(&self) -> Vec<usize> {
        match &self.cores {
            Some((core, _)) => vec![self.w1_a.shape[1], self.w1_b.shape[1], core.shape[2], core.shape[3]],
            None => weight_shape(self.w1_a.shape[0], self.w1_b.shape[1], self.kernel),
        }
    }

    fn scale(&self) -> f32 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank() as f32)
    }

    /// The two matrices, each as a product (out, rank) x (rank, columns).
    fn sides(&self) -> [(Matrix<'_>, Matrix<'_>); 2] {
        let side = |a, b, core: Option<&Array>| {
            let (a, b) = (Matrix::flattened(a), Matrix::flattened(b));
            match core {
                None => (a, b),
                Some(core) => (a.transposed(), fold_core(core, &b)),
            }
        };
        let cores = self.cores.as_ref();
        [
            side(&self.w1_a, &self.w1_b, cores.map(|(first, _)| first)),
            side(&self.w2_a, &self.w2_b, cores.map(|(_, second)| second)),
        ]
    }

    pub(super) fn delta(&self, strength: f32) -> Vec<f32> {
        let [(a1, b1), (a2, b2)] = self.sides();
        let mut data = a1.product(&b1, strength * self.scale()).data.into_owned();
        let second = a2.product(&b2, 1.0);
        data.iter_mut().zip(second.data.iter()).for_each(|(value, other)| *value *= other);
        data
    }

    /// Of rank r1 r2: rows k of one and l of the other multiply to row (k, l), and so do the columns. Where that is more than
    /// the weight's shorter side, the whole weight is one factor.
    pub(super) fn to_low_rank(&self) -> LoraModule {
        let shape = self.weight_shape();
        let [(a1, b1), (a2, b2)] = self.sides();
        let (rank, rows, columns) = (a1.columns * a2.columns, a1.rows, b1.columns);
        if rank >= rows.min(columns) {
            let (up, down) = Matrix { rows, columns, data: self.delta(1.0).into() }.split();
            let rank = up.columns as f32;
            return low_rank_module(up, down, &shape, rank);
        }
        let mut up = Vec::with_capacity(rows * rank);
        for (row1, row2) in a1.data.chunks(a1.columns).zip(a2.data.chunks(a2.columns)) {
            up.extend(row1.iter().flat_map(|first| row2.iter().map(move |second| first * second)));
        }
        let mut down = Vec::with_capacity(rank * columns);
        for row1 in b1.data.chunks(columns) {
            for row2 in b2.data.chunks(columns) {
                down.extend(row1.iter().zip(row2).map(|(first, second)| first * second));
            }
        }
        let up = Matrix { rows, columns: rank, data: up.into() };
        let down = Matrix { rows: rank, columns, data: down.into() };
        low_rank_module(up, down, &shape, self.scale() * rank as f32)
    }
}

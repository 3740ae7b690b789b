//! A singular value decomposition, and the factors of LoRA that it makes.

use faer::{Mat, MatRef};

use crate::error::AdapterError;
use crate::{Array, LoraModule};

/// U diag(s) V^T of a matrix (m, n): k singular values with their vectors. Convolutions are flattened from their second
/// dimension on.
#[derive(Debug, Clone)]
pub struct Svd {
    /// (m, k), orthonormal columns.
    pub(crate) u: Mat<f64>,
    /// Descending, none negative.
    pub(crate) s: Vec<f64>,
    /// (n, k), orthonormal columns.
    pub(crate) v: Mat<f64>,
}

/// How many descending singular values of a matrix of this longer side are above the rounding of f64.
pub(crate) fn num_above_rounding(singular_values: &[f64], longer_side: usize) -> usize {
    let largest = singular_values.first().copied().unwrap_or(0.0);
    let limit = largest * longer_side as f64 * f64::EPSILON;
    singular_values.iter().take_while(|value| **value > limit).count()
}

impl Svd {
    /// Of a matrix that is small in one dimension at least.
    pub(crate) fn exact(module: &str, matrix: MatRef<'_, f64>) -> Result<Self, AdapterError> {
        let failed = |_| AdapterError::NoSingularValues { module: module.to_owned() };
        let svd = matrix.thin_svd().map_err(failed)?;
        let s: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        if s.iter().any(|value| !value.is_finite()) {
            return Err(AdapterError::NoSingularValues { module: module.to_owned() });
        }
        Ok(Self { u: svd.U().to_owned(), s, v: svd.V().to_owned() })
    }

    /// Descending.
    pub fn singular_values(&self) -> &[f64] {
        &self.s
    }

    /// How many singular values are above the rounding of f64: s > s_max * max(m, n) * 2^-52, as NumPy's `matrix_rank`.
    pub fn numerical_rank(&self) -> usize {
        num_above_rounding(&self.s, self.u.nrows().max(self.v.nrows()))
    }

    /// The first `keep` of them.
    pub(crate) fn truncated(mut self, keep: usize) -> Self {
        let keep = keep.min(self.s.len());
        self.u.resize_with(self.u.nrows(), keep, |_, _| 0.0);
        self.v.resize_with(self.v.nrows(), keep, |_, _| 0.0);
        self.s.truncate(keep);
        self
    }

    /// The factors of the best approximation of this `rank`: up = U sqrt(c S), down = sqrt(c S) V^T with c = rank / alpha,
    /// so that the product times alpha / rank is U S V^T. `None` for alpha is the scale 1, as is alpha = rank.
    ///
    /// Both factors get the root of the singular values, which keeps their numbers of one size: f16 loses least so. If
    /// `rank` is more than there are singular values, the rest of the factors is zero.
    ///
    /// `weight_shape` is (out, in) or (out, in, kh, kw) with m = out and n = in * kh * kw.
    pub fn to_module(&self, rank: usize, weight_shape: &[usize], alpha: Option<f32>) -> LoraModule {
        let per_scale = alpha.map_or(1.0, |alpha| rank as f64 / f64::from(alpha));
        let num_terms = rank.min(self.s.len());
        let roots: Vec<f64> = self.s[..num_terms].iter().map(|s| (s * per_scale).sqrt()).collect();
        let (num_rows, num_columns) = (self.u.nrows(), self.v.nrows());
        let mut up = vec![0.0; num_rows * rank];
        let mut down = vec![0.0; rank * num_columns];
        for (term, root) in roots.iter().enumerate() {
            for (row, value) in self.u.col(term).iter().enumerate() {
                up[row * rank + term] = (root * value) as f32;
            }
            for (to, value) in down[term * num_columns..].iter_mut().zip(self.v.col(term).iter()) {
                *to = (root * value) as f32;
            }
        }
        let mut up_shape = vec![num_rows, rank];
        let mut down_shape = vec![rank];
        down_shape.extend(weight_shape.iter().skip(1));
        if weight_shape.len() == 4 {
            up_shape.extend([1, 1]);
        }
        LoraModule { down: Array { shape: down_shape, data: down }, up: Array { shape: up_shape, data: up }, alpha }
    }
}

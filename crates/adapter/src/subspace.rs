//! How the changes of one layer by two adapters lie to each other (Hu et al. 2021, section 7.2).
//!
//! phi is of the singular directions of the whole change, not of the factor A alone as in the paper's figures: the
//! directions of a factor depend on how the product is split, so that a resize would move them.

use faer::Mat;

use crate::Array;
use crate::error::AdapterError;
use crate::inspection::SubspaceSimilarity;
use crate::linear_algebra::Svd;
use crate::measures::{LayerChange, root_of_squares};

/// As many directions of each change are held against each other: a heat map has no more room.
const MAX_DIRECTIONS: usize = 64;

impl SubspaceSimilarity {
    /// Of the changes of one layer.
    pub(crate) fn between(module: &str, first: &LayerChange, second: &LayerChange) -> Result<Self, AdapterError> {
        let (a, b) = (first.directions(module)?, second.directions(module)?);
        let shape = |svd: &Svd| vec![svd.u.nrows(), svd.v.nrows()];
        if shape(&a) != shape(&b) {
            let (first, second) = (shape(&a), shape(&b));
            return Err(AdapterError::WeightShapes { module: module.to_owned(), first, second });
        }
        let (left, right) = (a.u.transpose() * &b.u, a.v.transpose() * &b.v);
        let cosine = match (first, second) {
            (LayerChange::LowRank(_), LayerChange::LowRank(_)) => cosine_of_factors(&a, &b, &left, &right),
            _ => cosine_of_numbers(&first.dense(), &second.dense()),
        };
        let larger = a.s.len().max(b.s.len()) as f64;
        let random = |width: usize| (larger / width.max(1) as f64).min(1.0);
        Ok(Self {
            module: module.to_owned(),
            input: phi(&right),
            output: phi(&left),
            random_input: random(a.v.nrows()),
            random_output: random(a.u.nrows()),
            cosine,
        })
    }
}

/// phi(i, j) for all i and j up to [`MAX_DIRECTIONS`], from U^T V, to six decimals.
fn phi(overlap: &Mat<f64>) -> Vec<Vec<f64>> {
    let (num_rows, num_columns) = (overlap.nrows().min(MAX_DIRECTIONS), overlap.ncols().min(MAX_DIRECTIONS));
    let mut sums = vec![0.0; num_columns]; // over the rows so far, column by column
    (0..num_rows)
        .map(|i| {
            let mut sum = 0.0;
            sums.iter_mut()
                .enumerate()
                .map(|(j, column)| {
                    *column += overlap[(i, j)].powi(2);
                    sum += *column;
                    let phi = sum / (i.min(j) + 1) as f64;
                    (phi.min(1.0) * 1e6).round() / 1e6
                })
                .collect()
        })
        .collect()
}

/// <U S V^T, X T Y^T> = sum of s_i t_j (U^T X)_ij (V^T Y)_ij, over the norms; 0 where a change is zero.
fn cosine_of_factors(a: &Svd, b: &Svd, left: &Mat<f64>, right: &Mat<f64>) -> f64 {
    let terms =
        a.s.iter()
            .enumerate()
            .flat_map(|(i, s)| b.s.iter().enumerate().map(move |(j, t)| s * t * left[(i, j)] * right[(i, j)]));
    cosine(terms.sum(), root_of_squares(&a.s) * root_of_squares(&b.s))
}

fn cosine_of_numbers(a: &Array, b: &Array) -> f64 {
    let product = a.data.iter().zip(&b.data).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    cosine(product, a.norm() * b.norm())
}

fn cosine(product: f64, norms: f64) -> f64 {
    if norms > 0.0 { (product / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

//! Gradient fusion (Gu et al. 2023, Mix-of-Show, arXiv 2305.18292), in closed form.
//!
//! The paper looks for the weight that does on each member's inputs X_i what the member did, W* = argmin sum_i ||(W0 + dW_i)
//! X_i - W X_i||_F^2, by L-BFGS. It is a least-squares problem: with G_i = X_i X_i^T and G = sum_i G_i, W0 cancels and
//! dW* = (sum_i dW_i G_i) G^-1. As dW_i = B_i A_i, dW* = [B_1 .. B_n] [A_1 G_1; ..; A_n G_n] G^-1, whose rank is the sum of
//! ranks. A ridge on the diagonal of G keeps the change at zero where there was no input.

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side};

use crate::LoraModule;
use crate::error::AdapterError;

use super::layer::Layer;
use super::layer_gram::LayerGram;

/// Where f32 has made G indefinite, the ridge becomes ten times as large, at most so often.
const MOST_ATTEMPTS: usize = 6;

/// The fused change of a layer. `ridge` is a multiple of the mean of G's diagonal. In f64; takes 16 in^2 bytes.
pub(crate) fn fused(layer: &Layer<'_>, recorded: &LayerGram, ridge: f64) -> Result<LoraModule, AdapterError> {
    let mut sum = layer.sum()?; // its `up` is all B_i with their scales
    let shape = layer.weight_shape();
    let (width, kernel) = (shape[1], shape.iter().skip(2).product::<usize>());
    let has_shape = recorded.gram.len() == width * width && kernel == 1;
    let projected: Option<Vec<&[f32]>> = layer.terms.iter().map(|term| rows_of(recorded, term.member)).collect();
    let projected = projected.unwrap_or_default().concat();
    if !has_shape || projected.len() != sum.down.data.len() {
        return Err(AdapterError::LayerGramShape { module: layer.name.to_owned() });
    }
    let solved = solve(&recorded.gram, &projected, width, ridge);
    let solved = solved.ok_or_else(|| AdapterError::NoSingularValues { module: layer.name.to_owned() })?;
    for (row, values) in sum.down.data.chunks_exact_mut(width).enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            *value = solved[(column, row)] as f32;
        }
    }
    sum.check(layer.name)?;
    Ok(sum)
}

fn rows_of(recorded: &LayerGram, member: usize) -> Option<&[f32]> {
    recorded.projected.get(member).map(|rows| rows.data.as_slice())
}

/// (G + ridge * mean(diag G) I)^-1 H^T, (in, ranks); G is symmetric.
fn solve(gram: &[f32], projected: &[f32], width: usize, ridge: f64) -> Option<Mat<f64>> {
    let gram = MatRef::from_row_major_slice(gram, width, width);
    let projected = MatRef::from_row_major_slice(projected, projected.len() / width, width);
    let mean: f64 = (0..width).map(|i| f64::from(gram[(i, i)])).sum::<f64>() / width as f64;
    let mut ridge = ridge * mean;
    for _ in 0..MOST_ATTEMPTS {
        let entry = |row, column| f64::from(gram[(row, column)]) + if row == column { ridge } else { 0.0 };
        if let Ok(cholesky) = Llt::new(Mat::from_fn(width, width, entry).as_ref(), Side::Lower) {
            let right = Mat::from_fn(width, projected.nrows(), |row, column| f64::from(projected[(column, row)]));
            return Some(cholesky.solve(right));
        }
        ridge *= 10.0;
    }
    None
}

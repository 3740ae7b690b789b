//! KnOTS: TIES in a basis that all members share (Stoica et al. 2024, arXiv 2410.19735).
//!
//! [dW_1 | ... | dW_n] = U S [V_1 | ... | V_n] gives every member the same output directions, so that entries of S V_i mean
//! the same thing in each. They are merged by TIES, and U brings the result back. From the factors alone: with the QR
//! decompositions [B_1 .. B_n] = Q R and A_i^T = Q_i T_i, the SVD of the core [R_1 T_1^T | ... | R_n T_n^T] = U_c S W^T, of the
//! size of the ranks, gives U = Q U_c and S V_i = S W_i^T Q_i^T.

use faer::linalg::solvers::Qr;
use faer::{Mat, MatRef};

use crate::concatenation::weight_shape;
use crate::error::AdapterError;
use crate::linear_algebra::{Svd, product_svd};
use crate::{Array, LoraModule};

use super::layer::Layer;
use super::ties::ties;

/// The merged change of a layer at this rank, or at what the members have together if that is less.
pub(crate) fn aligned_merge(layer: &Layer<'_>, density: f64, rank: usize) -> Result<LoraModule, AdapterError> {
    let merged = merge_aligned(layer, |members| ties(members, density))?;
    let rank = rank.min(merged.rank());
    let svd = product_svd(layer.name, &merged)?;
    Ok(svd.to_module(rank, &weight_shape(&merged), Some(rank as f32)))
}

/// Merges the members' S V_i, each (k, in * kh * kw) row-major, by `merge`.
fn merge_aligned(layer: &Layer<'_>, merge: impl FnOnce(Vec<Vec<f32>>) -> Vec<f32>) -> Result<LoraModule, AdapterError> {
    let aligned = Aligned::of(layer)?;
    let (num_rows, rank) = (aligned.basis.nrows(), aligned.basis.ncols());
    let mut up = Vec::with_capacity(num_rows * rank);
    for row in 0..num_rows {
        up.extend(aligned.basis.row(row).iter().map(|value| *value as f32));
    }
    let data = merge(aligned.members);
    let weight_shape = layer.weight_shape();
    let (mut down_shape, mut up_shape) = (vec![rank], vec![num_rows, rank]);
    down_shape.extend(weight_shape.iter().skip(1));
    up_shape.extend(weight_shape.iter().skip(2).map(|_| 1));
    let down = Array { shape: down_shape, data };
    Ok(LoraModule { down, up: Array { shape: up_shape, data: up }, alpha: Some(rank as f32) })
}

/// U, and S V_i of each member.
struct Aligned {
    /// (out, k)
    basis: Mat<f64>,
    /// (k, in * kh * kw) each, row-major.
    members: Vec<Vec<f32>>,
}

impl Aligned {
    fn of(layer: &Layer<'_>) -> Result<Self, AdapterError> {
        let sum = layer.sum()?; // its `up` is all B_i with their scales
        let (num_rows, total_rank) = (layer.weight_shape()[0], sum.rank());
        let up = Qr::new(in_f64(&sum.up.data, num_rows, total_rank).as_ref());
        let up_core = up.thin_R();

        let mut core = Mat::zeros(up_core.nrows(), 0);
        let mut downs = Vec::with_capacity(layer.terms.len());
        let mut from = 0;
        for term in &layer.terms {
            let rank = term.module.rank();
            let down = in_f64(&term.module.down.data, rank, term.module.down.data.len() / rank);
            let down = Qr::new(down.transpose());
            let part = up_core.subcols(from, rank) * down.thin_R().transpose();
            let width = core.ncols();
            core.resize_with(core.nrows(), width + part.ncols(), |row, column| part[(row, column - width)]);
            downs.push((down.compute_thin_Q(), width));
            from += rank;
        }

        let svd = Svd::exact(layer.name, core.as_ref())?;
        let rank = svd.numerical_rank().max(1); // one direction of zeros, if there is no change at all
        let svd = svd.truncated(rank);
        let members = downs.iter().map(|(basis, from)| {
            let turned = svd.v.as_ref().subrows(*from, basis.ncols());
            let aligned = turned.transpose() * basis.transpose(); // (k, in)
            let scaled = |row: usize| aligned.row(row).iter().map(|value| (svd.s[row] * value) as f32).collect();
            (0..rank).flat_map(|row| -> Vec<f32> { scaled(row) }).collect()
        });
        let members = members.collect();
        Ok(Self { basis: up.compute_thin_Q() * &svd.u, members })
    }
}

fn in_f64(data: &[f32], num_rows: usize, num_columns: usize) -> Mat<f64> {
    let values = MatRef::from_row_major_slice(data, num_rows, num_columns);
    Mat::from_fn(num_rows, num_columns, |row, column| f64::from(values[(row, column)]))
}

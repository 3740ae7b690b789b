//! How large the change of a layer is, and in how many directions: figures of dW, from factors where there are some.

use faer::{Mat, MatRef};

use crate::change::Change;
use crate::error::AdapterError;
use crate::inspection::{BaseMeasures, ModuleMeasures};
use crate::linear_algebra::{
    Svd, dense_singular_values, matrix_shape, num_above_rounding, product_singular_values, product_svd, truncated_svd,
};
use crate::{Array, LoraModule};

/// Singular directions that are looked for in a change without factors.
const DENSE_DIRECTIONS: usize = 64;
/// Singular values of a dense matrix in f32 below this share of the largest are rounding.
const DENSE_ROUNDING: f64 = 1e-6;

/// What a layer's change is made of: factors, or numbers.
pub(crate) enum LayerChange {
    LowRank(LoraModule),
    Dense(Array),
}

impl LayerChange {
    /// DoRA without a weight is taken by its direction.
    pub(crate) fn of(module: &str, change: &Change, weight: Option<&Array>) -> Result<Self, AdapterError> {
        if let Some(weight) = weight.filter(|weight| !change.fits(&weight.shape)) {
            let (first, second) = (change.weight_shape(), weight.shape.clone());
            return Err(AdapterError::WeightShapes { module: module.to_owned(), first, second });
        }
        let change = match (change, weight) {
            (Change::Dora(dora), None) => &dora.direction,
            _ => change,
        };
        match change.to_low_rank() {
            Some(factors) => {
                factors.check(module)?;
                Ok(Self::LowRank(factors))
            }
            None => Ok(Self::Dense(change.delta(weight, 1.0)?)),
        }
    }

    /// The singular directions above rounding, at most [`DENSE_DIRECTIONS`] of a change without factors.
    pub(crate) fn directions(&self, module: &str) -> Result<Svd, AdapterError> {
        let svd = match self {
            Self::LowRank(factors) => product_svd(module, factors)?,
            Self::Dense(delta) => truncated_svd(module, delta, DENSE_DIRECTIONS, 0)?,
        };
        let rank = match self {
            Self::LowRank(_) => svd.numerical_rank(),
            Self::Dense(_) => num_above(&svd.s, DENSE_ROUNDING),
        };
        Ok(svd.truncated(rank))
    }

    /// All numbers of dW.
    pub(crate) fn dense(&self) -> Array {
        match self {
            Self::LowRank(factors) => factors.delta(),
            Self::Dense(delta) => delta.clone(),
        }
    }

    /// ||dW||_F and all singular values above rounding.
    fn size(&self, module: &str, directions: Option<&Svd>) -> Result<(f64, Vec<f64>), AdapterError> {
        match (self, directions) {
            (Self::LowRank(_), Some(svd)) => Ok((root_of_squares(&svd.s), svd.s.clone())),
            (Self::LowRank(factors), None) => {
                let mut values = product_singular_values(module, factors)?;
                let longer_side = (factors.up.data.len().max(factors.down.data.len())) / factors.rank().max(1);
                values.truncate(num_above_rounding(&values, longer_side));
                Ok((root_of_squares(&values), values))
            }
            (Self::Dense(delta), _) => {
                let mut values = dense_singular_values(module, delta)?;
                values.truncate(num_above(&values, DENSE_ROUNDING));
                Ok((delta.norm(), values))
            }
        }
    }
}

impl ModuleMeasures {
    /// Figures of one change; against the layer's weight too where it is given. DoRA is measured as what it adds to the
    /// weight, and without one by its direction, which `kind` then says.
    ///
    /// # Errors
    /// [`AdapterError::WeightShapes`] for a weight of another shape, [`AdapterError::NoSingularValues`], and those of
    /// [`Change::delta`].
    pub fn of(module: &str, change: &Change, weight: Option<&Array>) -> Result<Self, AdapterError> {
        let layer = LayerChange::of(module, change, weight)?;
        let directions = weight.map(|_| layer.directions(module)).transpose()?;
        let (frobenius, singular_values) = layer.size(module, directions.as_ref())?;
        let spectral = singular_values.first().copied().unwrap_or(0.0);
        let is_direction_only = matches!(change, Change::Dora(_)) && weight.is_none();
        Ok(Self {
            module: module.to_owned(),
            kind: format!("{}{}", change.kind(), if is_direction_only { ", direction only" } else { "" }),
            weight_shape: change.weight_shape(),
            rank: change.rank(),
            alpha: change.alpha(),
            frobenius,
            spectral,
            stable_rank: if spectral > 0.0 { (frobenius / spectral).powi(2) } else { 0.0 },
            effective_rank: effective_rank(&singular_values),
            base: weight.zip(directions.as_ref()).map(|(weight, svd)| against_weight(frobenius, svd, weight)),
            singular_values,
        })
    }
}

/// exp of the entropy of the shares of the sum (Roy and Vetterli 2007, definition 1); 0 without a change.
fn effective_rank(singular_values: &[f64]) -> f64 {
    let sum: f64 = singular_values.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let shares = singular_values.iter().map(|value| value / sum).filter(|share| *share > 0.0);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

/// ||U^T W V||_F with all singular directions of the change (LoRA paper, section 7.3). A change without directions
/// amplifies nothing: 0.
fn against_weight(frobenius: f64, svd: &Svd, weight: &Array) -> BaseMeasures {
    let (num_rows, num_columns) = matrix_shape(weight);
    let values = MatRef::from_row_major_slice(&weight.data, num_rows, num_columns);
    let left = Mat::from_fn(num_rows, svd.u.ncols(), |row, term| svd.u[(row, term)] as f32);
    let rows = values.transpose() * left; // W^T U: (n, k)
    let rows = Mat::from_fn(rows.nrows(), rows.ncols(), |row, term| f64::from(rows[(row, term)]));
    let projected = (svd.v.transpose() * rows).norm_l2();
    let weight_frobenius = weight.norm();
    let ratio = |of: f64| if of > 0.0 { frobenius / of } else { 0.0 };
    BaseMeasures {
        weight_frobenius,
        share: ratio(weight_frobenius),
        projected,
        amplification: if frobenius > 0.0 { ratio(projected) } else { 0.0 },
    }
}

pub(crate) fn root_of_squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// How many of descending values are above this share of the first.
fn num_above(values: &[f64], share: f64) -> usize {
    let limit = values.first().copied().unwrap_or(0.0) * share;
    values.iter().take_while(|value| **value > limit).count()
}

//! Max-norm regularisation of a module's update: kohya's `scale_weight_norms`.
//!
//! After a step, a module whose update scale * B A is longer than the limit (Frobenius norm) has both factors multiplied by
//! sqrt(limit / norm), so that the update is as long as the limit; of a fixed A only B, by limit / norm. The norm is the root of trace((B^T B) (A A^T)), from two
//! r x r matrices: B A is never made.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};

use super::factor_pair::FactorPair;
use crate::error::TrainError;

/// The limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MaxNorm {
    /// Longest update, above 0.
    pub(crate) limit: f64,
}

impl MaxNorm {
    /// Shortens what is too long of `pairs`, at least one; returns how many modules that were, a scalar on the device. Nothing
    /// waits, and factors that are short enough keep their bits.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub(crate) fn apply(self, pairs: &[&FactorPair], factors: &BTreeMap<String, Var>) -> Result<Tensor, TrainError> {
        let norms = pairs.iter().map(|pair| norm(pair, factors)).collect::<candle_core::Result<Vec<_>>>()?;
        let norms = Tensor::stack(&norms, 0)?; // (modules)
        let whole = (norms.recip()? * self.limit)?.minimum(1.0)?;
        let (roots, whole) = (whole.sqrt()?.to_dtype(DType::F32)?, whole.to_dtype(DType::F32)?);
        let shorten = |key: &String, ratio: Tensor| {
            let var = &factors[key];
            var.set(&var.as_detached_tensor().broadcast_mul(&ratio)?)
        };
        for (i, pair) in pairs.iter().enumerate() {
            if pair.fixed_down.is_some() {
                shorten(&pair.up, whole.get(i)?)?;
            } else {
                shorten(&pair.down, roots.get(i)?)?;
                shorten(&pair.up, roots.get(i)?)?;
            }
        }
        Ok(norms.gt(self.limit)?.to_dtype(DType::F32)?.sum_all()?)
    }
}

/// ||scale B A||, a scalar.
fn norm(pair: &FactorPair, factors: &BTreeMap<String, Var>) -> candle_core::Result<Tensor> {
    // Both matrices are symmetric: the trace of their product is the sum of their products number by number.
    let square = (pair.up_gram(factors)? * pair.down_gram(factors)?)?.sum_all()?;
    // Rounding may make of nearly nothing a little less than nothing.
    square.maximum(0.0)?.sqrt()? * pair.scale.abs()
}

#[cfg(test)]
mod tests {
    use super::super::factor_pair::tests::{matrix, modules, product};
    use super::super::golden_factors::flat;
    use super::*;

    /// ||scale B A|| by its definition: all of B A.
    fn norm_of(pair: &FactorPair, factors: &BTreeMap<String, Var>) -> f64 {
        let update = product(&matrix(&factors[&pair.up]), &matrix(&factors[&pair.down]));
        pair.scale * update.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()
    }

    #[test]
    fn updates_beyond_the_limit_are_as_long_as_it_and_the_others_keep_their_bits() {
        let (pairs, factors) = modules();
        let before: Vec<f64> = pairs.iter().map(|pair| norm_of(pair, &factors)).collect();
        let limit = before[2] * 1.01;
        assert!(before[0] < limit && before[1] > limit, "{before:?} must lie on both sides of {limit}");
        let copy = |key: &str| flat([factors[key].as_tensor()]);
        let (kept, down, up) = (copy("2.down"), copy("1.down"), copy("1.up"));
        let num_scaled = MaxNorm { limit }.apply(&pairs.iter().collect::<Vec<_>>(), &factors).unwrap();
        assert_eq!(num_scaled.to_scalar::<f32>().unwrap(), 1.0);
        assert_eq!(copy("2.down"), kept);
        assert_eq!(norm_of(&pairs[0], &factors), before[0]);
        assert!((norm_of(&pairs[1], &factors) / limit - 1.0).abs() < 1e-6);
        // Both factors by the same.
        let ratio = (limit / before[1]).sqrt();
        for (after, before) in [(copy("1.down"), down), (copy("1.up"), up)] {
            after.iter().zip(before).for_each(|(a, b)| assert!((f64::from(a / b) / ratio - 1.0).abs() < 1e-6));
        }
    }

    #[test]
    fn where_a_is_fixed_only_b_is_shortened() {
        let (mut pairs, mut factors) = modules();
        let before = norm_of(&pairs[1], &factors);
        let (down, up) = (flat([factors["1.down"].as_tensor()]), flat([factors["1.up"].as_tensor()]));
        let fixed = factors.remove("1.down").unwrap();
        pairs[1].fixed_down = Some(fixed.as_detached_tensor());
        MaxNorm { limit: before / 3.0 }.apply(&[&pairs[1]], &factors).unwrap();
        assert_eq!(flat([fixed.as_tensor()]), down);
        let after = flat([factors["1.up"].as_tensor()]);
        after.iter().zip(up).for_each(|(a, b)| assert!((f64::from(a / b) * 3.0 - 1.0).abs() < 1e-6));
    }

    #[test]
    fn an_update_that_is_zero_stays_so() {
        let (pairs, factors) = modules();
        for pair in &pairs {
            factors[&pair.up].set(&factors[&pair.up].zeros_like().unwrap()).unwrap();
        }
        let down = flat([factors["0.down"].as_tensor()]);
        let num_scaled = MaxNorm { limit: 0.1 }.apply(&pairs.iter().collect::<Vec<_>>(), &factors).unwrap();
        assert_eq!(num_scaled.to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(flat([factors["0.down"].as_tensor()]), down);
    }
}

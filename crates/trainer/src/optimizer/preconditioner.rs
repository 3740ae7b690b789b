//! Gradients by the metric of the low-rank product (Zhang and Pilanci 2024, arXiv 2402.02347, "scaled" optimizers).
//!
//! The gradient of A is multiplied by (B^T B + damping I)^-1 from the left, that of B by (A A^T + damping I)^-1 from the
//! right: how far the product B A moves then no longer depends on how its size is shared between the factors. While B is
//! near zero its matrix is a constant, which Adam cancels. The inverses are r x r and are made in f64 on the processor; a card
//! is waited for once a step.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use super::factor_pair::{FactorPair, rows};
use crate::error::TrainError;
use crate::gradient_tree::Gradients;

/// The damping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Preconditioner {
    /// Added to the diagonal, above 0.
    pub(crate) damping: f64,
}

impl Preconditioner {
    /// Replaces the gradients of `pairs`, at least one.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub(crate) fn apply(
        self,
        pairs: &[&FactorPair],
        factors: &BTreeMap<String, Var>,
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let mut grams = Vec::with_capacity(2 * pairs.len());
        for pair in pairs {
            grams.extend([pair.up_gram(factors)?, pair.down_gram(factors)?]);
        }
        let mut inverses = self.inverses(&grams)?.into_iter();
        for pair in pairs {
            let (Some(of_up), Some(of_down)) = (inverses.next(), inverses.next()) else { break };
            if let Some(gradient) = gradients.get_mut(&pair.down) {
                *gradient = of_up.matmul(&rows(gradient)?)?.reshape(gradient.shape())?;
            }
            if let Some(gradient) = gradients.get_mut(&pair.up) {
                *gradient = rows(gradient)?.matmul(&of_down)?.reshape(gradient.shape())?;
            }
        }
        Ok(())
    }

    /// (gram + damping I)^-1 of each (r, r), in f32 where they were.
    fn inverses(self, grams: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        let together = grams.iter().map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        let together = Tensor::cat(&together, 0)?;
        let device = together.device().clone();
        let mut values = together.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut rest = values.as_mut_slice();
        for gram in grams {
            let (matrix, after) = rest.split_at_mut(gram.elem_count());
            invert(matrix, gram.dims()[0], self.damping);
            rest = after;
        }
        let inverses = Tensor::new(values, &Device::Cpu)?.to_dtype(DType::F32)?.to_device(&device)?;
        let mut at = 0;
        let mut next = |gram: &Tensor| {
            let inverse = inverses.narrow(0, at, gram.elem_count())?.reshape(gram.shape());
            at += gram.elem_count();
            inverse
        };
        grams.iter().map(&mut next).collect()
    }
}

/// Makes a symmetric, positive semidefinite (n, n) matrix plus `damping` on its diagonal its inverse, by Gauss-Jordan
/// elimination: of such a matrix every pivot is at least the damping, so rows need no exchange.
fn invert(matrix: &mut [f64], n: usize, damping: f64) {
    for i in 0..n {
        matrix[i * n + i] += damping;
    }
    let mut pivot_row = vec![0.0; n];
    for k in 0..n {
        let pivot = matrix[k * n + k];
        matrix[k * n + k] = 1.0;
        matrix[k * n..(k + 1) * n].iter_mut().for_each(|x| *x /= pivot);
        pivot_row.copy_from_slice(&matrix[k * n..(k + 1) * n]);
        for (_, row) in matrix.chunks_exact_mut(n).enumerate().filter(|(i, _)| *i != k) {
            let factor = std::mem::replace(&mut row[k], 0.0);
            row.iter_mut().zip(&pivot_row).for_each(|(x, p)| *x -= factor * p);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::factor_pair::tests::{drawn, matrix, modules, product, transposed};
    use super::*;

    fn damped(mut gram: Vec<Vec<f64>>, damping: f64) -> Vec<Vec<f64>> {
        gram.iter_mut().enumerate().for_each(|(i, row)| row[i] += damping);
        gram
    }

    fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>]) {
        for (f, e) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f - e).abs() < 1e-4, "{found:?} are not {expected:?}");
        }
    }

    #[test]
    fn times_the_damped_gram_matrices_the_gradients_are_what_they_were() {
        let (pairs, factors) = modules();
        let damping = 0.05;
        let given: Gradients =
            factors.iter().enumerate().map(|(i, (key, var))| (key.clone(), drawn(var.dims(), 40 + i))).collect();
        let mut gradients = given.clone();
        Preconditioner { damping }.apply(&pairs.iter().collect::<Vec<_>>(), &factors, &mut gradients).unwrap();
        for pair in &pairs {
            let (a, b) = (matrix(&factors[&pair.down]), matrix(&factors[&pair.up]));
            let (of_a, of_b) = (&gradients[&pair.down], &gradients[&pair.up]);
            assert_eq!((of_a.dims(), of_b.dims()), (given[&pair.down].dims(), given[&pair.up].dims()));
            let back = product(&damped(product(&transposed(&b), &b), damping), &matrix(of_a));
            assert_close(&back, &matrix(&given[&pair.down]));
            let back = product(&matrix(of_b), &damped(product(&a, &transposed(&a)), damping));
            assert_close(&back, &matrix(&given[&pair.up]));
        }
    }

    #[test]
    fn while_b_is_zero_the_gradient_of_a_is_divided_by_the_damping() {
        let (pairs, factors) = modules();
        let up = &factors[&pairs[0].up];
        up.set(&up.zeros_like().unwrap()).unwrap();
        let gradient = drawn(&[3, 7], 9);
        let mut gradients = Gradients::from([(pairs[0].down.clone(), gradient.clone())]);
        Preconditioner { damping: 0.25 }.apply(&[&pairs[0]], &factors, &mut gradients).unwrap();
        assert_close(&matrix(&gradients[&pairs[0].down]), &matrix(&(gradient * 4.0).unwrap()));
    }
}

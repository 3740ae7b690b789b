//! The two factors of a module together: what its update B A is made of.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use loralei_adapter::keys::{Leaf, kohya_key};
use loralei_model::{AdapterSet, LoraFactors};

use super::wide;

/// A module's factors by their keys.
#[derive(Debug, Clone)]
pub(crate) struct FactorPair {
    /// A: (r, in) or (r, in, kh, kw).
    pub(crate) down: String,
    /// B: (out, r) or (out, r, 1, 1).
    pub(crate) up: String,
    /// What multiplies B A.
    pub(crate) scale: f64,
    /// A, where it is none of the factors that learn.
    pub(crate) fixed_down: Option<Tensor>,
}

impl FactorPair {
    /// Of every module, in the order of their names.
    pub(crate) fn all_of(factors: &AdapterSet) -> Vec<Self> {
        let pair = |factors: &LoraFactors| Self {
            down: kohya_key(factors.module(), Leaf::Down),
            up: kohya_key(factors.module(), Leaf::Up),
            scale: factors.scale(),
            fixed_down: factors.fixed_down(),
        };
        factors.modules().map(pair).collect()
    }

    /// A A^T (r, r), in the wide number type.
    ///
    /// # Errors
    /// As the product.
    pub(super) fn down_gram(&self, factors: &BTreeMap<String, Var>) -> candle_core::Result<Tensor> {
        let a = self.fixed_down.clone().unwrap_or_else(|| factors[&self.down].as_detached_tensor());
        let a = rows(&a)?; // (r, in kh kw)
        let a = a.to_dtype(wide(a.device()))?;
        a.matmul(&a.t()?)
    }

    /// B^T B (r, r), in the wide number type.
    ///
    /// # Errors
    /// As the product.
    pub(super) fn up_gram(&self, factors: &BTreeMap<String, Var>) -> candle_core::Result<Tensor> {
        let b = rows(&factors[&self.up].as_detached_tensor())?; // (out, r)
        let b = b.to_dtype(wide(b.device()))?;
        b.t()?.matmul(&b)
    }
}

/// A factor as a matrix: everything behind the first dimension is one. (r, in, kh, kw) -> (r, in kh kw), (out, r, 1, 1) -> (out, r).
pub(super) fn rows(factor: &Tensor) -> candle_core::Result<Tensor> {
    factor.flatten_from(1)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use candle_core::Device;
    use loralei_model::{Draw, Purpose};

    /// A linear layer 7 -> 6 at rank 3, a convolution 3x2 of 4 -> 5 channels at rank 2, and a rank of 8 above both sizes.
    pub(crate) fn modules() -> (Vec<FactorPair>, BTreeMap<String, Var>) {
        let shapes: [(&[usize], &[usize], f64); 3] =
            [(&[3, 7], &[6, 3], 0.5), (&[2, 4, 3, 2], &[5, 2, 1, 1], 3.0), (&[8, 4], &[5, 8], 1.0)];
        let mut factors = BTreeMap::new();
        let pairs = shapes.iter().enumerate().map(|(i, (down, up, scale))| {
            let key = |name: &str| format!("{i}.{name}");
            let pair = FactorPair { down: key("down"), up: key("up"), scale: *scale, fixed_down: None };
            for (k, (key, shape)) in [(&pair.down, down), (&pair.up, up)].into_iter().enumerate() {
                factors.insert(key.clone(), Var::from_tensor(&drawn(shape, 2 * i + k)).unwrap());
            }
            pair
        });
        (pairs.collect(), factors)
    }

    pub(crate) fn drawn(shape: &[usize], index: usize) -> Tensor {
        let values = Draw::new(5, index as u64, 0, Purpose::Check).uniform(-1.0, 1.0, shape.iter().product());
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// A factor as rows of f64, by its definition.
    pub(crate) fn matrix(factor: &Tensor) -> Vec<Vec<f64>> {
        let num_rows = factor.dims()[0];
        let values = factor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.chunks(values.len() / num_rows).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
    }

    pub(crate) fn product(left: &[Vec<f64>], right: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let entry = |row: &[f64], j: usize| row.iter().zip(right).map(|(x, other)| x * other[j]).sum();
        left.iter().map(|row| (0..right[0].len()).map(|j| entry(row, j)).collect()).collect()
    }

    pub(crate) fn transposed(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
        (0..matrix[0].len()).map(|j| matrix.iter().map(|row| row[j]).collect()).collect()
    }
}

//! One LoRA module: two factors whose scaled product is added to a frozen weight.
//!
//! Delta W = (alpha / rank) * up * down, with down flattened from its second dimension on (Hu et al. 2021, section 4.1;
//! for convolutions the kernel stays in down, as sd-scripts does).

use crate::error::AdapterError;

/// A dense array of f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub data: Vec<f32>,
}

impl Array {
    /// The square root of the sum of squares (Frobenius norm), summed in f64.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim)) == Some(self.data.len())
    }
}

/// The factors of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// A: (rank, in) for linear layers, (rank, in, kh, kw) for convolutions.
    pub down: Array,
    /// B: (out, rank) for linear layers, (out, rank, 1, 1) for convolutions.
    pub up: Array,
    /// `None` if the file has none, which means alpha = rank.
    pub alpha: Option<f32>,
}

impl LoraModule {
    /// Rows of down.
    pub fn rank(&self) -> usize {
        self.down.shape.first().copied().unwrap_or(0)
    }

    /// alpha / rank; 1 without an alpha.
    pub fn scale(&self) -> f32 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank() as f32)
    }

    /// Whether the module changes anything: training starts with up = 0, so an untouched one has only zeros there.
    pub fn has_moved(&self) -> bool {
        self.up.data.iter().any(|value| *value != 0.0)
    }

    /// Checks that the factors belong together and that the numbers are numbers. `module` serves messages.
    ///
    /// # Errors
    /// [`AdapterError::FactorShapes`], [`AdapterError::NonFinite`] or [`AdapterError::BadAlpha`].
    pub fn check(&self, module: &str) -> Result<(), AdapterError> {
        let are_shapes_right = match (self.down.shape.as_slice(), self.up.shape.as_slice()) {
            ([rank, _], [_, up_rank]) | ([rank, _, _, _], [_, up_rank, 1, 1]) => rank == up_rank && *rank > 0,
            _ => false,
        };
        if !are_shapes_right || !self.down.is_complete() || !self.up.is_complete() {
            let (down, up) = (self.down.shape.clone(), self.up.shape.clone());
            return Err(AdapterError::FactorShapes { module: module.to_owned(), down, up });
        }
        for (factor, name) in [(&self.down, "lora_down.weight"), (&self.up, "lora_up.weight")] {
            if factor.data.iter().any(|value| !value.is_finite()) {
                return Err(AdapterError::NonFinite { tensor: format!("{module}.{name}") });
            }
        }
        match self.alpha {
            Some(alpha) if !(alpha.is_finite() && alpha > 0.0) => {
                Err(AdapterError::BadAlpha { module: module.to_owned(), alpha })
            }
            _ => Ok(()),
        }
    }

    /// The change of the weight, dense: (out, in) or (out, in, kh, kw), summed in f64. For checks: a layer of 1280 x
    /// 10240 takes 52 MB and seconds. The module must pass [`LoraModule::check`].
    pub fn delta(&self) -> Array {
        let (rank, out) = (self.rank(), self.up.shape.first().copied().unwrap_or(0));
        let num_columns = self.down.data.len() / rank.max(1); // in * kh * kw
        let scale = f64::from(self.scale());
        let mut data = Vec::with_capacity(out * num_columns);
        let mut row = vec![0_f64; num_columns];
        for up_row in self.up.data.chunks(rank.max(1)) {
            row.fill(0.0);
            for (up, down_row) in up_row.iter().zip(self.down.data.chunks(num_columns.max(1))) {
                for (sum, down) in row.iter_mut().zip(down_row) {
                    *sum += f64::from(*up) * f64::from(*down);
                }
            }
            data.extend(row.iter().map(|sum| (scale * sum) as f32));
        }
        let mut shape = self.down.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = out;
        }
        Array { shape, data }
    }

    /// The Frobenius norm of [`LoraModule::delta`], without forming it: ||BA||^2 = sum of (B^T B) * (A A^T), both rank
    /// x rank.
    pub fn delta_norm(&self) -> f64 {
        let rank = self.rank().max(1);
        let num_columns = (self.down.data.len() / rank).max(1);
        let down_rows: Vec<&[f32]> = self.down.data.chunks(num_columns).collect();
        let mut sum = 0.0;
        for (i, row_i) in down_rows.iter().enumerate() {
            for (j, row_j) in down_rows.iter().enumerate() {
                let down_product: f64 = row_i.iter().zip(*row_j).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let up_product: f64 = self.up.data.chunks(rank).map(|b| f64::from(b[i]) * f64::from(b[j])).sum();
                sum += down_product * up_product;
            }
        }
        f64::from(self.scale()).abs() * sum.max(0.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], data: &[f32]) -> Array {
        Array { shape: shape.to_vec(), data: data.to_vec() }
    }

    fn linear() -> LoraModule {
        LoraModule {
            down: array(&[2, 3], &[1.0, 2.0, 3.0, -1.0, 0.5, 4.0]),
            up: array(&[4, 2], &[1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 3.0, -2.0]),
            alpha: Some(3.0), // not the rank
        }
    }

    #[test]
    fn delta_of_a_linear_layer_is_the_scaled_product() {
        // import torch
        // down = torch.tensor([[1, 2, 3], [-1, .5, 4]]); up = torch.tensor([[1., 0], [0, 2], [-1, 1], [3, -2]])
        // print((3 / 2 * up @ down).flatten().tolist())
        let expected = [1.5, 3.0, 4.5, -3.0, 1.5, 12.0, -3.0, -2.25, 1.5, 7.5, 7.5, 1.5];
        assert_eq!(linear().delta(), array(&[4, 3], &expected));
    }

    #[test]
    fn delta_of_a_convolution_keeps_the_kernel_and_norms_agree() {
        let kernel: Vec<f32> = (0..2 * 3 * 9).map(|i| ((i * 7) % 11) as f32 / 4.0 - 1.0).collect();
        let conv = LoraModule {
            down: array(&[2, 3, 3, 3], &kernel),
            up: array(&[4, 2, 1, 1], &linear().up.data),
            alpha: None,
        };
        let delta = conv.delta();
        assert_eq!(delta.shape, [4, 3, 3, 3]);
        for (index, value) in delta.data.iter().enumerate() {
            let (row, column) = (index / 27, index % 27);
            let expected = conv.up.data[row * 2] * kernel[column] + conv.up.data[row * 2 + 1] * kernel[27 + column];
            assert!((value - expected).abs() < 1e-5);
        }
        for module in [conv, linear()] {
            assert!((module.delta_norm() - module.delta().norm()).abs() < 1e-5 * module.delta_norm());
        }
    }

    #[test]
    fn factors_that_do_not_belong_together_are_refused() {
        let wrong = [
            (&[2, 3][..], &[4, 1][..]),     // ranks differ
            (&[2, 3], &[4, 2, 1, 1]),       // linear with convolution
            (&[2, 3, 3, 3], &[4, 2, 3, 3]), // kernel in up
            (&[2, 3, 1], &[4, 2, 1]),       // 3-d
            (&[0, 3], &[4, 0]),             // rank 0
        ];
        for (down, up) in wrong {
            let fill = |shape: &[usize]| array(shape, &vec![1.0; shape.iter().product()]);
            let module = LoraModule { down: fill(down), up: fill(up), alpha: None };
            assert!(matches!(module.check("m"), Err(AdapterError::FactorShapes { .. })), "{down:?} {up:?}");
        }
        assert!(linear().check("m").is_ok());
    }

    #[test]
    fn values_that_are_no_numbers_are_refused_by_key() {
        let mut module = linear();
        module.up.data[3] = f32::NAN;
        assert_eq!(
            module.check("m").unwrap_err().to_string(),
            "m.lora_up.weight holds a value that is not a finite number"
        );
        for alpha in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let module = LoraModule { alpha: Some(alpha), ..linear() };
            assert!(matches!(module.check("m"), Err(AdapterError::BadAlpha { .. })));
        }
    }

    #[test]
    fn a_module_with_up_all_zero_has_not_moved() {
        let mut module = linear();
        assert!(module.has_moved());
        module.up.data.fill(0.0);
        assert!(!module.has_moved());
    }
}

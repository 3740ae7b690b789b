//! DoRA: the direction of a weight apart from the lengths of its rows or columns (Liu et al. 2024).

use super::Change;
use crate::Array;
use crate::error::AdapterError;

/// m * (W + delta) / |W + delta|, the norm over each row (`LyCORIS`, PEFT) or each column (the paper, A1111).
#[derive(Debug, Clone, PartialEq)]
pub struct DoraModule {
    /// The change of the direction.
    pub direction: Box<Change>,
    /// m: (out), (out, 1[, 1, 1]) for each row, or (1, in[, 1, 1]) for each column.
    pub magnitude: Array,
}

impl DoraModule {
    pub(super) fn is_sound(&self) -> bool {
        let shape = self.direction.weight_shape();
        let is_low_rank = !matches!(*self.direction, Change::Dora(_) | Change::Full(_));
        let [out, columns, ..] = shape[..] else { return false };
        let ones = |dims: &[usize]| dims.iter().all(|dim| *dim == 1);
        is_low_rank
            && match self.magnitude.shape[..] {
                [rows, ref rest @ ..] if rows == out && ones(rest) => true,
                // A kernel may be flattened into the columns.
                [1, inputs, ref rest @ ..] => ones(rest) && inputs > 0 && columns.is_multiple_of(inputs),
                _ => false,
            }
    }

    /// What is added to `weight`: strength * (DoRA(W) - W), as ComfyUI and A1111 scale it. The norm is that of the sum.
    pub(super) fn delta(&self, weight: &Array, strength: f32) -> Result<Vec<f32>, AdapterError> {
        let mut changed = self.direction.delta(Some(weight), 1.0)?.data;
        changed.iter_mut().zip(&weight.data).for_each(|(value, base)| *value += base);
        let out = weight.shape.first().copied().unwrap_or(0);
        let is_by_row = self.magnitude.shape.first() == Some(&out) && self.magnitude.data.len() == out;
        let inputs = if is_by_row { 1 } else { self.magnitude.data.len() };
        let columns = weight.data.len() / out.max(1);
        let pixels = (columns / inputs.max(1)).max(1);
        let group = |row: usize, column: usize| if is_by_row { row } else { column / pixels };

        let mut squares = vec![0_f64; self.magnitude.data.len()];
        for (row, values) in changed.chunks(columns.max(1)).enumerate() {
            for (column, value) in values.iter().enumerate() {
                squares[group(row, column)] += f64::from(*value).powi(2);
            }
        }
        let lengthen = |(square, magnitude): (&f64, &f32)| match square.sqrt() {
            0.0 => 0.0, // no direction
            norm => f64::from(*magnitude) / norm,
        };
        let factors: Vec<f64> = squares.iter().zip(&self.magnitude.data).map(lengthen).collect();
        for (row, values) in changed.chunks_mut(columns.max(1)).enumerate() {
            let base = &weight.data[row * columns..(row + 1) * columns];
            for (column, (value, base)) in values.iter_mut().zip(base).enumerate() {
                let difference = f64::from(*value) * factors[group(row, column)] - f64::from(*base);
                *value = (f64::from(strength) * difference) as f32;
            }
        }
        Ok(changed)
    }
}

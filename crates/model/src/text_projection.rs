//! Which way round the matrix lies that projects the pooled text. It is square in every published model, so nothing else
//! would show that a file has it transposed, and some programs write it so.

use crate::original_layout::PROJECTION_WEIGHT;
use crate::weight_files::WeightFiles;
use loralei_adapter::AdapterError;

/// Of SDXL's published weights as diffusers has them: the elements at (row 0, column 1) and (row 1, column 0).
const PUBLISHED: [f32; 2] = [-0.0037, 0.0218];
/// Half of the last digit, and the rounding to bf16.
const TOLERANCE: f32 = 1.2e-4;

/// Whether the matrix of `weights` is the published one transposed. Of a matrix with other numbers nothing can be told.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn is_transposed(weights: &WeightFiles) -> Result<bool, AdapterError> {
    let Some(info) = weights.info(PROJECTION_WEIGHT) else { return Ok(false) };
    let [rows, columns] = info.shape[..] else { return Ok(false) };
    if rows < 2 || columns < 2 {
        return Ok(false);
    }
    let (matrix, mut bytes, mut value) = (weights.bytes(PROJECTION_WEIGHT)?, Vec::new(), Vec::new());
    for (place, published) in [(columns, PUBLISHED[0]), (1, PUBLISHED[1])] {
        matrix.read_f32(place, 1, &mut bytes, &mut value)?;
        if value.iter().any(|value| (value - published).abs() > TOLERANCE) {
            return Ok(false);
        }
    }
    Ok(true)
}

//! Singular values and vectors of a dense matrix: the largest ones from a random sketch (Halko, Martinsson and Tropp 2011,
//! algorithms 4.4 and 5.1), and all values from its Gram matrix.

use faer::linalg::solvers::Qr;
use faer::{Mat, MatRef, Side};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::svd::Svd;
use crate::Array;
use crate::error::AdapterError;

/// Columns of the sketch beyond the rank that is asked for.
const OVERSAMPLING: usize = 10;
/// How often the sketch goes through the matrix and back. Differences of models have slowly falling singular values:
/// with four the error is within half a percent of the exact decomposition's even for noise.
const POWER_ITERATIONS: usize = 4;

/// The `rank` largest singular values (fewer where the matrix has fewer) of a weight's shape (out, in) or (out, in, kh,
/// kw), flattened from the second dimension on. The same `seed` gives the same bits on the same machine. `module` serves
/// messages.
///
/// Exact where the rank is not small against the matrix. Products with the matrix are in f32, the rest in f64.
///
/// # Errors
/// [`AdapterError::NoSingularValues`] for numbers that are not finite, or too large for f32 to square.
pub fn truncated_svd(module: &str, matrix: &Array, rank: usize, seed: u64) -> Result<Svd, AdapterError> {
    let (num_rows, num_columns) = matrix_shape(matrix);
    let values = MatRef::from_row_major_slice(&matrix.data, num_rows, num_columns);
    let sketch_width = rank.saturating_add(OVERSAMPLING);
    if sketch_width.saturating_mul(2) >= num_rows.min(num_columns) {
        let matrix = Mat::from_fn(num_rows, num_columns, |row, column| f64::from(values[(row, column)]));
        return Ok(Svd::exact(module, matrix.as_ref())?.truncated(rank));
    }
    let mut basis = orthonormal(&(values * signs(num_columns, sketch_width, seed)));
    for _ in 0..POWER_ITERATIONS {
        let rows = orthonormal(&(values.transpose() * &basis));
        basis = orthonormal(&(values * &rows));
    }
    // B = Q^T A; A ~ Q B = (Q U_B) S V^T
    let projected = in_f64(&(values.transpose() * &basis));
    let projected = Svd::exact(module, projected.as_ref())?.truncated(rank);
    Ok(Svd { u: in_f64(&basis) * &projected.v, s: projected.s, v: projected.u })
}

/// All singular values of a dense matrix, descending, as roots of the eigenvalues of its smaller Gram matrix. Values below
/// about 1e-8 of the largest are rounding.
pub(crate) fn dense_singular_values(module: &str, matrix: &Array) -> Result<Vec<f64>, AdapterError> {
    let (num_rows, num_columns) = matrix_shape(matrix);
    let values = MatRef::from_row_major_slice(&matrix.data, num_rows, num_columns);
    let values = if num_rows <= num_columns { values } else { values.transpose() };
    let values = Mat::from_fn(values.nrows(), values.ncols(), |row, column| f64::from(values[(row, column)]));
    let gram = &values * values.transpose();
    let failed = |_| AdapterError::NoSingularValues { module: module.to_owned() };
    let eigenvalues = gram.self_adjoint_eigenvalues(Side::Lower).map_err(failed)?;
    if eigenvalues.iter().any(|value| !value.is_finite()) {
        return Err(AdapterError::NoSingularValues { module: module.to_owned() });
    }
    Ok(eigenvalues.iter().rev().map(|value| value.max(0.0).sqrt()).collect())
}

/// (out, in * kh * kw).
pub(crate) fn matrix_shape(matrix: &Array) -> (usize, usize) {
    let num_rows = matrix.shape.first().copied().unwrap_or(0);
    (num_rows, matrix.data.len() / num_rows.max(1))
}

/// An orthonormal basis of the columns.
fn orthonormal(columns: &Mat<f32>) -> Mat<f32> {
    let basis = Qr::new(in_f64(columns).as_ref()).compute_thin_Q();
    Mat::from_fn(basis.nrows(), basis.ncols(), |row, column| basis[(row, column)] as f32)
}

fn in_f64(matrix: &Mat<f32>) -> Mat<f64> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |row, column| f64::from(matrix[(row, column)]))
}

/// A random matrix of 1 and -1, which sketches as well as normal numbers do.
fn signs(num_rows: usize, num_columns: usize, seed: u64) -> Mat<f32> {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    let mut bits = 0;
    let mut matrix = Mat::zeros(num_rows, num_columns);
    for column in 0..num_columns {
        for row in 0..num_rows {
            if row % 64 == 0 {
                bits = random.next_u64();
            }
            matrix[(row, column)] = if (bits >> (row % 64)) & 1 == 1 { 1.0 } else { -1.0 };
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear_algebra::product_svd;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha12Rng::seed_from_u64(seed);
        (0..count).map(|_| (random.next_u32() as f64 / f64::from(u32::MAX) - 0.5) as f32).collect()
    }

    fn error_of(svd: &Svd, rank: usize, matrix: &Array) -> f64 {
        let made = svd.to_module(rank, &matrix.shape, None).delta();
        made.data.iter().zip(&matrix.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() / matrix.norm()
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_whole() {
        let factors = crate::LoraModule {
            down: Array { shape: vec![6, 20, 3, 3], data: numbers(6 * 180, 1) },
            up: Array { shape: vec![150, 6, 1, 1], data: numbers(150 * 6, 2) },
            alpha: Some(2.0),
        };
        let delta = factors.delta();
        let svd = truncated_svd("m", &delta, 6, 3).unwrap();
        assert!(error_of(&svd, 6, &delta) < 1e-6);
        for (found, expected) in svd.s.iter().zip(product_svd("m", &factors).unwrap().s) {
            assert!((found - expected).abs() < 1e-6 * expected);
        }
        let all = dense_singular_values("m", &delta).unwrap();
        assert_eq!(all.len(), 150);
        assert!((all[0] - svd.s[0]).abs() < 1e-6 * all[0] && all[6] < 1e-6 * all[0]);
    }

    #[test]
    fn noise_is_approximated_as_well_as_by_the_exact_decomposition() {
        for shape in [[300, 120], [120, 300]] {
            let matrix = Array { shape: shape.to_vec(), data: numbers(36_000, 5) };
            let exact = dense_singular_values("m", &matrix).unwrap();
            let kept: f64 = exact[..16].iter().map(|s| s * s).sum();
            let best = (1.0 - kept / matrix.norm().powi(2)).sqrt();
            let found = error_of(&truncated_svd("m", &matrix, 16, 0).unwrap(), 16, &matrix);
            assert!(found >= best - 1e-7 && found < 1.005 * best, "{found} {best}");
            let whole = truncated_svd("m", &matrix, 60, 0).unwrap(); // exact from here on
            assert!(whole.s.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 1e-9 * exact[0]));
        }
    }

    #[test]
    fn the_seed_decides_the_bits() {
        let matrix = Array { shape: vec![100, 90], data: numbers(9000, 7) };
        let of = |seed| truncated_svd("m", &matrix, 4, seed).unwrap();
        assert_eq!(of(1).s, of(1).s);
        assert_eq!(of(1).u, of(1).u);
        assert_ne!(of(1).u, of(2).u);
    }

    #[test]
    fn zero_and_one_column_and_no_number_are_right() {
        let zero = Array { shape: vec![200, 100], data: vec![0.0; 20_000] };
        let svd = truncated_svd("m", &zero, 4, 0).unwrap();
        assert!(svd.s.iter().all(|s| *s == 0.0) && svd.u.is_all_finite() && svd.v.is_all_finite());
        assert_eq!(dense_singular_values("m", &zero).unwrap(), [0.0; 100]);

        let column = Array { shape: vec![50, 1], data: numbers(50, 9) };
        let svd = truncated_svd("m", &column, 8, 0).unwrap();
        assert!(svd.s.len() == 1 && (svd.s[0] - column.norm()).abs() < 1e-12);

        let mut broken = Array { shape: vec![200, 100], data: numbers(20_000, 9) };
        broken.data[777] = f32::INFINITY;
        assert!(matches!(truncated_svd("m", &broken, 4, 0), Err(AdapterError::NoSingularValues { .. })));
        assert!(matches!(dense_singular_values("m", &broken), Err(AdapterError::NoSingularValues { .. })));
    }
}

//! The singular value decomposition of a product B A of thin factors, without ever forming it.
//!
//! With QR of both, B = Q_B R_B and A^T = Q_A R_A, the product is Q_B (R_B R_A^T) Q_A^T. The core in the middle has at most
//! the rank's size; its U and V, turned by Q_B and Q_A, are those of the product. The cost is linear in the size of the
//! layer.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::solvers::Qr;
use faer::{Conj, Mat, MatRef, Par};

use super::svd::Svd;
use crate::LoraModule;
use crate::error::AdapterError;

/// Of the change alpha / rank * up * down of a module that passes [`LoraModule::check`]: min(rank, out, in * kh * kw)
/// singular values. `module` serves messages.
pub(crate) fn product_svd(module: &str, factors: &LoraModule) -> Result<Svd, AdapterError> {
    let scale = f64::from(factors.scale());
    stacked_svd(module, &factors.up.data, &factors.down.data, factors.rank(), scale, usize::MAX)
}

/// Of scale * up * down, row-major (m, rank) and (rank, n): the `keep` largest singular values, or as many as there can
/// be. A negative scale turns U over.
pub(crate) fn stacked_svd(
    module: &str,
    up: &[f32],
    down: &[f32],
    rank: usize,
    scale: f64,
    keep: usize,
) -> Result<Svd, AdapterError> {
    let (up, down, core) = decomposed(up, down, rank, scale);
    let core = Svd::exact(module, core.as_ref())?.truncated(keep);
    Ok(Svd { u: turned(&up, core.u.as_ref()), v: turned(&down, core.v.as_ref()), s: core.s })
}

/// The singular values of [`product_svd`] without the vectors, which take most of the time.
pub(crate) fn product_singular_values(module: &str, factors: &LoraModule) -> Result<Vec<f64>, AdapterError> {
    let scale = f64::from(factors.scale());
    let (_, _, core) = decomposed(&factors.up.data, &factors.down.data, factors.rank(), scale);
    let values = core.singular_values();
    let found = values.ok().filter(|values| values.iter().all(|value| value.is_finite()));
    found.ok_or_else(|| AdapterError::NoSingularValues { module: module.to_owned() })
}

/// QR of B and A^T, and scale * R_B R_A^T.
fn decomposed(up: &[f32], down: &[f32], rank: usize, scale: f64) -> (Qr<f64>, Qr<f64>, Mat<f64>) {
    let (num_rows, num_columns) = (up.len() / rank.max(1), down.len() / rank.max(1));
    let up = Mat::from_fn(num_rows, rank, |row, term| f64::from(up[row * rank + term]));
    let down_transposed = Mat::from_fn(num_columns, rank, |column, term| f64::from(down[term * num_columns + column]));
    let (up, down) = (Qr::new(up.as_ref()), Qr::new(down_transposed.as_ref()));
    let core = faer::Scale(scale) * (up.thin_R() * down.thin_R().transpose());
    (up, down, core)
}

/// Q * matrix, by the reflections that Q consists of.
fn turned(qr: &Qr<f64>, matrix: MatRef<'_, f64>) -> Mat<f64> {
    let (basis, coefficients) = (qr.Q_basis(), qr.Q_coeff());
    let mut product = Mat::zeros(basis.nrows(), matrix.ncols());
    product.get_mut(..matrix.nrows(), ..).copy_from(matrix);
    let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
        basis.nrows(),
        coefficients.nrows(),
        matrix.ncols(),
    );
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        basis,
        coefficients,
        Conj::No,
        product.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Array;

    /// Numbers without a pattern that NumPy can make too: ((i * 7919 + seed) mod 1009) / 504.5 - 1.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i * 7919 + seed) % 1009) as f64 / 504.5 - 1.0) as f32).collect()
    }

    fn module(out: usize, rank: usize, width: usize, alpha: Option<f32>) -> LoraModule {
        LoraModule {
            down: Array { shape: vec![rank, width], data: numbers(rank * width, 17) },
            up: Array { shape: vec![out, rank], data: numbers(out * rank, 401) },
            alpha,
        }
    }

    /// U S V^T, its distance from `module`'s change, and how far U and V are from orthonormal columns.
    fn distances(module: &LoraModule, svd: &Svd) -> (f64, f64) {
        let (out, columns) = (svd.u.nrows(), svd.v.nrows());
        let scaled = Mat::from_fn(out, svd.s.len(), |i, j| svd.u[(i, j)] * svd.s[j]);
        let product = scaled * svd.v.transpose();
        let (rank, scale) = (module.rank(), f64::from(module.scale()));
        let entry = |i: usize, j: usize| -> f64 {
            (0..rank)
                .map(|t| f64::from(module.up.data[i * rank + t]) * f64::from(module.down.data[t * columns + j]))
                .sum::<f64>()
                * scale
        };
        let expected = Mat::from_fn(out, columns, entry);
        let off = |q: &Mat<f64>| (q.transpose() * q - Mat::<f64>::identity(q.ncols(), q.ncols())).norm_l2();
        ((product - &expected).norm_l2() / expected.norm_l2().max(1e-300), off(&svd.u).max(off(&svd.v)))
    }

    #[test]
    fn singular_values_are_those_of_numpy() {
        // import numpy as np
        // f = lambda n, s: ((np.arange(n) * 7919 + s) % 1009 / 504.5 - 1).astype(np.float32).astype(float)
        // for m, r, n, a in [(23, 5, 31, 3), (4, 6, 9, 2), (9, 6, 3, 6), (7, 3, 1, 1)]:
        //     print(np.linalg.svd(a / r * f(m * r, 401).reshape(m, r) @ f(r * n, 17).reshape(r, n))[1][:min(m, r, n)])
        let golden = [
            (
                23,
                5,
                31,
                3.0,
                vec![6.705771029774963, 6.261746500893871, 4.937647900575231, 2.9583745630913327, 1.880928573618964],
            ),
            (4, 6, 9, 2.0, vec![1.0948735399629579, 0.8684690430193523, 0.627892521353831, 0.09317697684045737]), // rank > out
            (9, 6, 3, 6.0, vec![2.9496615044850865, 2.008285282209817, 0.5792188341077616]), // rank > in
            (7, 3, 1, 1.0, vec![0.8549241575203687]),
        ];
        for (out, rank, width, alpha, expected) in golden {
            let module = module(out, rank, width, Some(alpha));
            let svd = product_svd("m", &module).unwrap();
            assert_eq!(svd.s.len(), expected.len(), "{out} {rank} {width}");
            for (value, expected) in svd.s.iter().zip(&expected) {
                // alpha / rank is rounded to f32, as in all other uses
                assert!((value - expected).abs() < 1e-7 * svd.s[0], "{out} {rank} {width}: {:?}", svd.s);
            }
            let (distance, skew) = distances(&module, &svd);
            assert!(distance < 1e-13 && skew < 1e-13, "{distance:e} {skew:e}");
            let alone = product_singular_values("m", &module).unwrap();
            assert!(alone.len() == svd.s.len());
            assert!(alone.iter().zip(&svd.s).all(|(a, b)| (a - b).abs() < 1e-13 * svd.s[0]));
        }
    }

    #[test]
    fn factors_that_repeat_a_direction_or_are_zero_give_zero_singular_values_and_whole_vectors() {
        let mut repeated = module(20, 4, 30, Some(2.0));
        let (first, rest) = repeated.down.data.split_at_mut(30);
        rest[30..60].copy_from_slice(first); // the third direction is the first
        let svd = product_svd("m", &repeated).unwrap();
        assert_eq!((svd.s.len(), svd.numerical_rank()), (4, 3));
        let (distance, skew) = distances(&repeated, &svd);
        assert!(distance < 1e-13 && skew < 1e-13, "{distance:e} {skew:e}");

        for zero_down in [false, true] {
            let mut zero = module(20, 4, 30, None);
            if zero_down { &mut zero.down } else { &mut zero.up }.data.fill(0.0);
            let svd = product_svd("m", &zero).unwrap();
            assert_eq!((svd.s.as_slice(), svd.numerical_rank()), (&[0.0; 4][..], 0));
            assert!(distances(&zero, &svd).1 < 1e-13);
            assert!(svd.to_module(2, &[20, 30], Some(2.0)).check("m").is_ok());
        }
    }

    #[test]
    fn kept_terms_are_the_first_of_all_and_a_negative_scale_turns_the_sign() {
        let module = module(40, 6, 50, None);
        let all = product_svd("m", &module).unwrap();
        let two = stacked_svd("m", &module.up.data, &module.down.data, 6, -1.5, 2).unwrap();
        assert_eq!((two.s.len(), two.u.ncols(), two.v.ncols()), (2, 2, 2));
        for term in 0..2 {
            assert!((two.s[term] - 1.5 * all.s[term]).abs() < 1e-12 * all.s[0]);
            let sign = |svd: &Svd| svd.u[(3, term)] * svd.v[(5, term)];
            assert!((sign(&two) + sign(&all)).abs() < 1e-12);
        }
    }

    #[test]
    fn factors_of_any_alpha_have_the_product_of_the_decomposition() {
        let module = module(12, 4, 18, Some(3.0));
        let svd = product_svd("m", &module).unwrap();
        let expected = module.delta();
        for (rank, alpha) in [(4, Some(4.0)), (4, Some(1.0)), (4, None), (7, Some(7.0)), (7, Some(2.0))] {
            let made = svd.to_module(rank, &[12, 2, 3, 3], alpha);
            assert_eq!(
                (made.down.shape.as_slice(), made.up.shape.as_slice()),
                (&[rank, 2, 3, 3][..], &[12, rank, 1, 1][..])
            );
            assert!(made.check("m").is_ok());
            let error: f64 =
                made.delta().data.iter().zip(&expected.data).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
            assert!(error < 1e-6 * expected.norm(), "{rank} {alpha:?}: {error:e}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_an_error() {
        let mut module = module(5, 2, 6, None);
        module.up.data[3] = f32::NAN;
        assert!(matches!(product_svd("m", &module), Err(AdapterError::NoSingularValues { .. })));
        assert!(matches!(product_singular_values("m", &module), Err(AdapterError::NoSingularValues { .. })));
    }
}

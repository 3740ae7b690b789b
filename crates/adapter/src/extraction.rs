//! A LoRA module from what two weights differ by.

use crate::change::Change;
use crate::error::AdapterError;
use crate::linear_algebra::truncated_svd;
use crate::{Array, LoraModule};

/// The best factors for one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtractedModule {
    /// Alpha is the rank.
    pub factors: LoraModule,
    /// ||D - BA|| / ||D|| in Frobenius norms.
    pub relative_error: f64,
}

/// Factors of `rank`, or of the weight's shorter side if that is less, for a `difference` (out, in) or (out, in, kh, kw) that
/// is not zero: its largest singular values, from a random sketch with `seed`. `module` serves messages.
///
/// `clamp` in 0..=1 cuts numbers of the factors off that are larger than this quantile of the sizes of all numbers of U S and
/// V^T together, after `extract_lora_from_models.py` of sd-scripts (which takes the quantile of the numbers with their signs;
/// but those of singular vectors are arbitrary, and so would the limit be). 1 cuts nothing. What is cut is part of the error.
///
/// # Errors
/// [`AdapterError::NoSingularValues`] for numbers that are not finite.
pub fn extract_module(
    module: &str,
    difference: &Array,
    rank: usize,
    clamp: f64,
    seed: u64,
) -> Result<ExtractedModule, AdapterError> {
    let svd = truncated_svd(module, difference, rank, seed)?;
    let rank = rank.min(svd.singular_values().len()).max(1);
    let mut factors = svd.to_module(rank, &difference.shape, Some(rank as f32));
    if clamp < 1.0 {
        cut_outliers(&mut factors, svd.singular_values(), clamp);
    }
    let mut rest = Change::Lora(factors.clone()).delta(None, 1.0)?;
    rest.data.iter_mut().zip(&difference.data).for_each(|(value, wanted)| *value -= wanted);
    Ok(ExtractedModule { factors, relative_error: rest.norm() / difference.norm() })
}

/// Both factors have the root of the singular values in them; kohya's up has all of them, and down none.
fn cut_outliers(factors: &mut LoraModule, singular_values: &[f64], clamp: f64) {
    let rank = factors.rank();
    let roots: Vec<f32> = singular_values.iter().take(rank).map(|value| value.sqrt() as f32).collect();
    let num_columns = factors.down.data.len() / rank;
    let (up, down) = (&mut factors.up.data, &mut factors.down.data);
    let is_used = |term: usize| roots.get(term).is_some_and(|root| *root > 0.0);
    let kohyas_up =
        up.iter().enumerate().map(|(i, value)| if is_used(i % rank) { value.abs() * roots[i % rank] } else { 0.0 });
    let kohyas_down = down.iter().enumerate().map(|(i, value)| {
        let term = i / num_columns;
        if is_used(term) { value.abs() / roots[term] } else { 0.0 }
    });
    let limit = quantile(kohyas_up.chain(kohyas_down).collect(), clamp);
    for (i, value) in up.iter_mut().enumerate().filter(|(i, _)| is_used(i % rank)) {
        let root = roots[i % rank];
        *value = value.clamp(-limit / root, limit / root);
    }
    for (i, value) in down.iter_mut().enumerate().filter(|(i, _)| is_used(i / num_columns)) {
        let root = roots[i / num_columns];
        *value = value.clamp(-limit * root, limit * root);
    }
}

/// Between two of the values by linear interpolation, as `torch.quantile`.
fn quantile(mut values: Vec<f32>, share: f64) -> f32 {
    let position = share.clamp(0.0, 1.0) * (values.len() - 1) as f64;
    let (_, lower, above) = values.select_nth_unstable_by(position as usize, f32::total_cmp);
    let next = above.iter().copied().min_by(f32::total_cmp).unwrap_or(*lower);
    *lower + (next - *lower) * position.fract() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0).collect()
    }

    #[test]
    fn a_product_of_the_rank_comes_back() {
        for (shape, up_shape) in [(vec![3, 40], vec![60, 3]), (vec![3, 20, 3, 3], vec![60, 3, 1, 1])] {
            let length = shape.iter().product();
            let known = LoraModule {
                down: Array { shape, data: numbers(length, 1) },
                up: Array { shape: up_shape, data: numbers(180, 2) },
                alpha: Some(0.07),
            };
            let difference = Change::Lora(known).delta(None, 1.0).unwrap();
            let found = extract_module("m", &difference, 3, 1.0, 5).unwrap();
            assert!(found.relative_error < 1e-5, "{:e}", found.relative_error);
            assert_eq!((found.factors.rank(), found.factors.alpha), (3, Some(3.0)));
            found.factors.check("m").unwrap();
        }
    }

    #[test]
    fn the_error_is_that_of_the_factors_and_the_rank_has_a_limit() {
        let difference = Array { shape: vec![6, 5], data: numbers(30, 3) };
        let found = extract_module("m", &difference, 2, 1.0, 5).unwrap();
        let rest: Vec<f32> =
            found.factors.delta().data.iter().zip(&difference.data).map(|(ours, wanted)| ours - wanted).collect();
        let expected = Array { shape: vec![6, 5], data: rest }.norm() / difference.norm();
        assert!(found.relative_error > 0.1 && (found.relative_error - expected).abs() < 1e-6);
        assert_eq!(extract_module("m", &difference, 99, 1.0, 5).unwrap().factors.rank(), 5);
    }

    #[test]
    fn the_clamp_cuts_as_torch_would() {
        // import torch
        // d = torch.tensor([[3., 1, 0, 2], [0, -1, 4, 1], [2, 2, 1, -3]]).double(); q = 0.8
        // u, s, vh = torch.linalg.svd(d); u = u[:, :2] @ torch.diag(s[:2]); vh = vh[:2]
        // hi = torch.quantile(torch.cat([u.flatten(), vh.flatten()]).abs(), q)
        // print((u.clamp(-hi, hi) @ vh.clamp(-hi, hi)).norm().item())
        let difference = [3.0, 1.0, 0.0, 2.0, 0.0, -1.0, 4.0, 1.0, 2.0, 2.0, 1.0, -3.0].to_vec();
        let difference = Array { shape: vec![3, 4], data: difference };
        let exact = extract_module("m", &difference, 2, 1.0, 1).unwrap();
        let cut = extract_module("m", &difference, 2, 0.8, 1).unwrap();
        assert!(cut.relative_error > exact.relative_error);
        let norm = cut.factors.delta().norm();
        assert!((norm - 4.283_946_38).abs() < 1e-5, "{norm}");
    }

    #[test]
    fn a_quantile_lies_between_two_values() {
        // torch.quantile(torch.tensor([4., -1, 2, 10]), torch.tensor([0, .5, .9, 1]))
        let of = |share| quantile(vec![4.0, -1.0, 2.0, 10.0], share);
        assert_eq!([of(0.0), of(0.5), of(1.0)], [-1.0, 3.0, 10.0]);
        assert!((of(0.9) - 8.2).abs() < 1e-6);
    }
}

//! The sum within a budget of spectral norm: our answer to pictures that burn.
//!
//! s = min(1, budget * max_i sigma_max(dW_i) / sigma_max(sum)) times the sum, for each layer. n equal members give one of
//! them, and members without a common direction their sum.
//!
//! Bringing only the singular values above the budget down to it would be nearer to the sum (nearest of all within the
//! budget), but it flattens them: of two equal members it makes one whose weaker directions are twice as strong. On the
//! bundled base, with two subjects that share directions and a style, backgrounds stayed broken so, and were whole when the
//! layers were scaled.

use crate::LoraModule;
use crate::error::AdapterError;
use crate::linear_algebra::stacked_svd;

use super::layer::Layer;

/// A spectral norm so little above the budget is there by rounding.
const ROUNDING: f64 = 1e-6;

/// The scaled sum; the sum itself, to the bit, where it is within the budget.
pub(crate) fn within_budget(layer: &Layer<'_>, budget: f64) -> Result<LoraModule, AdapterError> {
    let mut sum = layer.sum()?;
    let (limit, strength) = (budget * strongest_member(layer)?, spectral_norm(layer.name, &sum)?);
    if strength > limit * (1.0 + ROUNDING) {
        let scale = limit / strength;
        sum.up.data.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
    Ok(sum)
}

/// max_i sigma_max(dW_i), with the members' scales.
fn strongest_member(layer: &Layer<'_>) -> Result<f64, AdapterError> {
    let mut largest: f64 = 0.0;
    for term in &layer.terms {
        largest = largest.max(spectral_norm(layer.name, term.module)? * f64::from(term.scale).abs());
    }
    Ok(largest)
}

/// sigma_max of a module's change.
pub(crate) fn spectral_norm(name: &str, module: &LoraModule) -> Result<f64, AdapterError> {
    let scale = f64::from(module.scale());
    let svd = stacked_svd(name, &module.up.data, &module.down.data, module.rank(), scale, 1)?;
    Ok(svd.s.first().copied().unwrap_or(0.0))
}

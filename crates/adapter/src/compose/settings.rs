//! How adapters become one.

use serde::Serialize;

use crate::error::AdapterError;

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The sum, by concatenation of the factors: PEFT's `cat`, diffusers' `set_adapters`.
    Sum,
    /// Truncated SVD of the sum.
    Svd,
    /// Trim, elect sign and merge (Yadav et al. 2023, arXiv 2306.01708).
    Ties,
    /// Drop and rescale (Yu et al. 2023, arXiv 2311.03099).
    Dare,
    /// TIES in a common basis (Stoica et al. 2024, arXiv 2410.19735).
    Knots,
    /// The sum within a budget of spectral norm.
    Budget,
    /// Gradient fusion (Gu et al. 2023, arXiv 2305.18292), in closed form.
    Fusion,
}

impl Method {
    /// Every method once.
    pub const ALL: [Self; 7] = [Self::Sum, Self::Svd, Self::Ties, Self::Dare, Self::Knots, Self::Budget, Self::Fusion];

    /// What commands call it. Two names stand for the sum, because concatenation is how it is exact.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("sum", Self::Sum),
        ("concat", Self::Sum),
        ("svd", Self::Svd),
        ("ties", Self::Ties),
        ("dare", Self::Dare),
        ("knots", Self::Knots),
        ("budget", Self::Budget),
        ("fusion", Self::Fusion),
    ];

    /// As `budget`.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find_map(|(name, method)| (*method == self).then_some(*name)).unwrap_or_default()
    }

    /// Whether it drops entries, so that [`ComposeSettings::density`] counts.
    pub fn has_density(self) -> bool {
        matches!(self, Self::Ties | Self::Dare | Self::Knots)
    }
}

/// How, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ComposeSettings {
    /// Which method.
    pub method: Method,
    /// Highest rank of a layer, at least 1. Without: the sum of the members' ranks where a method can be exact (sum,
    /// budget, fusion), otherwise the largest of the members' ranks in the layer.
    pub rank: Option<usize>,
    /// Largest spectral norm of a layer as a multiple of its strongest member's, above 0: [`Method::Budget`].
    pub budget: f64,
    /// Share of the entries that are kept, above 0 and at most 1: [`Method::Ties`], [`Method::Dare`], [`Method::Knots`].
    pub density: f64,
    /// Of what is drawn: the entries that [`Method::Dare`] drops, and the sketches from which it and [`Method::Ties`]
    /// come back to factors.
    pub seed: u64,
    /// What [`Method::Fusion`] adds to the diagonal of G, as a multiple of its mean, above 0. Without it, directions in
    /// which there was hardly an input would be solved from noise.
    pub ridge: f64,
}

impl ComposeSettings {
    /// The usual numbers for a method: budget 1, density 0.5, ridge 0.01, seed 0.
    pub fn new(method: Method) -> Self {
        Self { method, rank: None, budget: 1.0, density: 0.5, seed: 0, ridge: 0.01 }
    }

    /// # Errors
    /// [`AdapterError::ComposeSetting`].
    pub(crate) fn check(&self) -> Result<(), AdapterError> {
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = |setting, value: String, expected| AdapterError::ComposeSetting { setting, value, expected };
        if self.rank == Some(0) {
            return Err(wrong("rank", "0".to_owned(), "at least 1"));
        }
        if !is_positive(self.budget) {
            return Err(wrong("budget", self.budget.to_string(), "a number above 0"));
        }
        if !is_positive(self.density) || self.density > 1.0 {
            return Err(wrong("density", self.density.to_string(), "above 0 and at most 1"));
        }
        if !is_positive(self.ridge) {
            return Err(wrong("ridge", self.ridge.to_string(), "a number above 0"));
        }
        Ok(())
    }
}

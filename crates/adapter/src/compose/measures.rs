//! How a composition stands to its members and to their plain sum, in numbers. From the factors alone.

use std::collections::BTreeMap;

use faer::{Mat, MatRef};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::AdapterError;
use crate::linear_algebra::{Svd, product_svd};
use crate::{Adapter, Array, LoraModule};

use super::budget::spectral_norm;
use super::layer::{Layer, Member, layers_of};

/// A sum of changes that is smaller than this against them is rounding: they cancel.
const ROUNDING: f64 = 1e-6;

/// Figures of one composed layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerMeasures {
    /// kohya's module name.
    pub module: String,
    /// sigma_max of the result against that of the strongest member: above 1 where changes add up in a direction.
    pub rho: f64,
    /// ||result||_F / sqrt(sum ||dW_i||_F^2): the plain sum has 1 if the members are orthogonal.
    pub norm_ratio: f64,
    /// ||result - sum||_F / ||sum||_F; `None` where the members cancel.
    pub difference: Option<f64>,
    /// Of the factors.
    pub rank: usize,
}

/// Figures of a composition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodMeasures {
    /// What was measured, as `budget`.
    pub method: String,
    /// Largest rho of a layer.
    pub rho_max: f64,
    /// Mean of rho over the layers.
    pub rho_mean: f64,
    /// The layer with the largest rho.
    pub worst_module: String,
    /// As [`LayerMeasures::norm_ratio`], over all layers.
    pub norm_ratio: f64,
    /// As [`LayerMeasures::difference`], over all layers.
    pub difference: Option<f64>,
    /// Largest rank of a layer.
    pub rank: usize,
    /// Bytes of the factors in f16.
    pub num_bytes: u64,
    /// Over a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseFigures>,
    /// Each layer that a member changes, in the order of names. Layers in which no member has moved are left out.
    pub layers: Vec<LayerMeasures>,
}

/// What a composition does to a base's predictions and pictures. This crate knows no network: who has one fills it in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BaseFigures {
    /// ||e' - e - sum (e_i - e)|| / ||e' - e||, with e the base's prediction, e' the composition's and e_i the members'.
    pub additivity_error: Option<f64>,
    /// Standard deviation of the estimate of x_0 to that of the base.
    pub clean_std_ratio: f64,
    /// Share of clipped colour values to that of the base; `None` where the base has none.
    pub clipped_ratio: Option<f64>,
    /// Clipped at most twice the base's, and the standard deviation within 10 % of it.
    pub passes: bool,
}

/// How the changes of two members lie to each other in one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerOverlap {
    /// kohya's module name.
    pub module: String,
    /// phi of the full input subspaces, ||V_1^T V_2||_F^2 / min(r_1, r_2): 1 the same or one within the other, 0 orthogonal.
    pub input: f64,
    /// phi of the full output subspaces.
    pub output: f64,
    /// What `input` would be for random subspaces of these ranks.
    pub random_input: f64,
    /// What `output` would be for random subspaces.
    pub random_output: f64,
    /// Cosine of the changes, with the signs of their scales.
    pub cosine: f64,
}

/// How two members lie to each other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairOverlap {
    /// The members' numbers, from 0.
    pub members: [usize; 2],
    /// Mean of [`LayerOverlap::input`] over the layers that both change; `None` if there is none.
    pub input: Option<f64>,
    /// Mean of [`LayerOverlap::output`].
    pub output: Option<f64>,
    /// Mean of [`LayerOverlap::random_input`].
    pub random_input: Option<f64>,
    /// Mean of [`LayerOverlap::random_output`].
    pub random_output: Option<f64>,
    /// Cosine of the two adapters as vectors over all layers, with the signs of their scales; `None` for one that changes
    /// nothing.
    pub cosine: Option<f64>,
    /// Each layer that both have moved.
    pub layers: Vec<LayerOverlap>,
}

/// The plain sum and its members, against which compositions are measured.
#[derive(Debug, Clone)]
pub struct Yardstick {
    num_members: usize,
    layers: BTreeMap<String, LayerYardstick>,
}

#[derive(Debug, Clone)]
struct LayerYardstick {
    sum: LoraModule,
    /// ||sum||_F^2
    sum_square: f64,
    /// max_i sigma_max(dW_i)
    strongest: f64,
    /// Which member, and ||dW_i||_F^2.
    squares: Vec<(usize, f64)>,
    overlaps: Vec<(LayerOverlap, [usize; 2], f64)>,
}

impl Yardstick {
    /// Of the members at their scales.
    ///
    /// # Errors
    /// Those of [`Adapter::sum`].
    pub fn of(members: &[Member<'_>]) -> Result<Self, AdapterError> {
        let layers = layers_of(members)?;
        let of_layer = |layer: &Layer<'_>| Ok((layer.name.to_owned(), LayerYardstick::of(layer)?));
        let layers = layers.par_iter().map(of_layer).collect::<Result<_, AdapterError>>()?;
        Ok(Self { num_members: members.len(), layers })
    }

    /// Measures what a method made of the members. A layer that the result lacks counts as unchanged.
    ///
    /// # Errors
    /// [`AdapterError::NoSingularValues`] for numbers that are too large.
    pub fn measure(&self, method: &str, result: &Adapter) -> Result<MethodMeasures, AdapterError> {
        let moved: Vec<_> = self.layers.iter().filter(|(_, layer)| layer.strongest > 0.0).collect();
        let figures = |(name, layer): &(&String, &LayerYardstick)| layer.measure(name, result.modules.get(*name));
        let figures: Vec<LayerFigures> = moved.par_iter().map(figures).collect::<Result<_, _>>()?;
        let total = |of: &dyn Fn(&LayerFigures) -> f64| figures.iter().map(of).sum::<f64>();
        let (result_square, members_square) = (total(&|f| f.result_square), total(&|f| f.members_square));
        let (difference_square, sum_square) = (total(&|f| f.difference_square), total(&|f| f.sum_square));
        let worst = figures.iter().max_by(|a, b| a.measures.rho.total_cmp(&b.measures.rho)).map(|f| &f.measures);
        let num_values = |module: &LoraModule| module.down.data.len() + module.up.data.len();
        Ok(MethodMeasures {
            method: method.to_owned(),
            rho_max: worst.map_or(0.0, |worst| worst.rho),
            rho_mean: total(&|f| f.measures.rho) / figures.len().max(1) as f64,
            worst_module: worst.map(|worst| worst.module.clone()).unwrap_or_default(),
            norm_ratio: ratio(result_square, members_square).unwrap_or(0.0),
            difference: relative_difference(difference_square, sum_square, members_square),
            rank: result.modules.values().map(LoraModule::rank).max().unwrap_or(0),
            base: None,
            num_bytes: 2 * result.modules.values().map(num_values).sum::<usize>() as u64,
            layers: figures.into_iter().map(|f| f.measures).collect(),
        })
    }

    /// Every pair of members, in their order.
    pub fn overlaps(&self) -> Vec<PairOverlap> {
        let pairs =
            (0..self.num_members).flat_map(|first| (first + 1..self.num_members).map(move |second| [first, second]));
        pairs.map(|pair| self.overlap(pair)).collect()
    }

    fn overlap(&self, members: [usize; 2]) -> PairOverlap {
        let of_pair = || self.layers.values().flat_map(|layer| &layer.overlaps).filter(|(_, pair, _)| *pair == members);
        let layers: Vec<LayerOverlap> = of_pair().map(|(overlap, ..)| overlap.clone()).collect();
        let square = |member: usize| -> f64 {
            let squares = self.layers.values().flat_map(|layer| &layer.squares);
            squares.filter(|(of, _)| *of == member).map(|(_, square)| square).sum()
        };
        let lengths = (square(members[0]) * square(members[1])).sqrt();
        let inner: f64 = of_pair().map(|(_, _, inner)| inner).sum();
        let mean = |of: fn(&LayerOverlap) -> f64| {
            (!layers.is_empty()).then(|| layers.iter().map(of).sum::<f64>() / layers.len() as f64)
        };
        PairOverlap {
            members,
            input: mean(|layer| layer.input),
            output: mean(|layer| layer.output),
            random_input: mean(|layer| layer.random_input),
            random_output: mean(|layer| layer.random_output),
            cosine: (lengths > 0.0).then(|| inner / lengths),
            layers,
        }
    }
}

/// Figures of a layer, and the squares that go into those of all layers.
struct LayerFigures {
    measures: LayerMeasures,
    result_square: f64,
    members_square: f64,
    difference_square: f64,
    sum_square: f64,
}

impl LayerYardstick {
    fn of(layer: &Layer<'_>) -> Result<Self, AdapterError> {
        let (sum, terms) = (layer.sum()?, layer.scaled_terms()?);
        let svds = terms.iter().map(|term| product_svd(layer.name, term)).collect::<Result<Vec<_>, _>>()?;
        let strongest = |svd: &Svd| svd.s.first().copied().unwrap_or(0.0);
        let square = |svd: &Svd| svd.s.iter().map(|s| s * s).sum::<f64>();
        let mut overlaps = Vec::new();
        for (second, two) in layer.terms.iter().enumerate() {
            for (first, one) in layer.terms[..second].iter().enumerate() {
                let inner = inner_product(&terms[first], &terms[second]);
                let overlap = LayerOverlap::of(layer.name, &svds[first], &svds[second], inner);
                overlaps.extend(overlap.map(|overlap| (overlap, [one.member, two.member], inner)));
            }
        }
        Ok(Self {
            sum_square: inner_product(&sum, &sum).max(0.0),
            sum,
            strongest: svds.iter().map(strongest).fold(0.0, f64::max),
            squares: layer.terms.iter().zip(&svds).map(|(term, svd)| (term.member, square(svd))).collect(),
            overlaps,
        })
    }

    fn measure(&self, name: &str, result: Option<&LoraModule>) -> Result<LayerFigures, AdapterError> {
        let members_square: f64 = self.squares.iter().map(|(_, square)| square).sum();
        let mut result_square = 0.0;
        let mut difference_square = self.sum_square;
        let mut rho = 0.0;
        if let Some(result) = result {
            result_square = inner_product(result, result).max(0.0);
            difference_square = (result_square - 2.0 * inner_product(result, &self.sum) + self.sum_square).max(0.0);
            rho = spectral_norm(name, result)? / self.strongest;
        }
        let measures = LayerMeasures {
            module: name.to_owned(),
            rho,
            norm_ratio: ratio(result_square, members_square).unwrap_or(0.0),
            difference: relative_difference(difference_square, self.sum_square, members_square),
            rank: result.map_or(0, LoraModule::rank),
        };
        let sum_square = self.sum_square;
        Ok(LayerFigures { measures, result_square, members_square, difference_square, sum_square })
    }
}

impl LayerOverlap {
    /// `None` if one of them changes nothing.
    fn of(name: &str, first: &Svd, second: &Svd, inner: f64) -> Option<Self> {
        let ranks = (moved_rank(first), moved_rank(second));
        let (smaller, larger) = (ranks.0.min(ranks.1), ranks.0.max(ranks.1));
        let phi = |a: &Mat<f64>, b: &Mat<f64>| {
            (a.as_ref().subcols(0, ranks.0).transpose() * b.as_ref().subcols(0, ranks.1)).squared_norm_l2()
                / smaller as f64
        };
        let length = |svd: &Svd| svd.s.iter().map(|s| s * s).sum::<f64>().sqrt();
        (smaller > 0).then(|| Self {
            module: name.to_owned(),
            input: phi(&first.v, &second.v),
            output: phi(&first.u, &second.u),
            random_input: larger as f64 / first.v.nrows() as f64,
            random_output: larger as f64 / first.u.nrows() as f64,
            cosine: inner / (length(first) * length(second)),
        })
    }
}

/// Singular values above the rounding of the f32 factors.
fn moved_rank(svd: &Svd) -> usize {
    let limit = svd.s.first().map_or(0.0, |largest| largest * ROUNDING);
    svd.s.iter().take_while(|value| **value > limit).count()
}

/// The square root of a / b; `None` if b is 0.
fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| (a / b).sqrt())
}

fn relative_difference(difference_square: f64, sum_square: f64, members_square: f64) -> Option<f64> {
    let cancels = sum_square <= ROUNDING.powi(2) * members_square;
    if cancels { None } else { ratio(difference_square, sum_square) }
}

/// <dW_1, dW_2> = sum of (B_1^T B_2) * (A_1 A_2^T), both rank_1 x rank_2.
fn inner_product(first: &LoraModule, second: &LoraModule) -> f64 {
    let up_product = in_f64(&first.up).transpose() * in_f64(&second.up);
    let down_product = in_f64(&first.down) * in_f64(&second.down).transpose();
    let mut sum = 0.0;
    for column in 0..up_product.ncols() {
        for row in 0..up_product.nrows() {
            sum += up_product[(row, column)] * down_product[(row, column)];
        }
    }
    sum * f64::from(first.scale()) * f64::from(second.scale())
}

/// (out, rank) of `up`, (rank, in * kh * kw) of `down`: flattened from the second dimension on either way.
fn in_f64(factor: &Array) -> Mat<f64> {
    let num_rows = factor.shape.first().copied().unwrap_or(0);
    let num_columns = factor.data.len() / num_rows.max(1);
    let values = MatRef::from_row_major_slice(&factor.data, num_rows, num_columns);
    Mat::from_fn(num_rows, num_columns, |row, column| f64::from(values[(row, column)]))
}

//! Several adapters as one.
//!
//! Adapters that were each tuned to full strength add up where they change the same directions: the picture burns. The
//! methods differ in what they do there. All work layer by layer on the factors, need no network, and give plain LoRA:
//!
//! | method | what becomes of the members' changes dW_i at their scales |
//! |---|---|
//! | [`Method::Sum`] | their sum, exactly; ranks add up |
//! | [`Method::Svd`] | the best approximation of the sum at a rank |
//! | [`Method::Ties`] | large entries, and only those that agree in sign, are averaged |
//! | [`Method::Dare`] | entries are dropped at random, the others made larger, and added |
//! | [`Method::Knots`] | TIES in the members' common singular directions |
//! | [`Method::Budget`] | the sum, scaled so that its spectral norm stays within a multiple of the strongest's |
//! | [`Method::Fusion`] | the change that does best what each did on the inputs of its own prompts |
//!
//! [`Yardstick`] holds the results against the plain sum. Layers are spread over threads; the result does not depend on
//! their number.

mod budget;
mod dare;
mod dense_rows;
mod description;
mod even_ranks;
mod fusion;
mod knots;
mod layer;
mod layer_gram;
mod measures;
mod settings;
mod ties;

use std::collections::BTreeMap;

use rayon::prelude::*;

pub use description::{MemberOrigin, describe};
pub use layer::Member;
pub use layer_gram::LayerGram;
pub use measures::{BaseFigures, LayerMeasures, LayerOverlap, MethodMeasures, PairOverlap, Yardstick};
pub use settings::{ComposeSettings, Method};

use crate::concatenation::weight_shape;
use crate::error::AdapterError;
use crate::linear_algebra::{product_svd, truncated_svd};
use crate::{Adapter, Array, LoraModule};
pub(crate) use layer::{Layer, layers_of};

/// What came of several adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    /// One rank and alpha for each component where that costs little; no metadata: see [`describe`].
    pub adapter: Adapter,
    /// Layers that fusion summed plainly, because none of their inputs were recorded.
    pub summed_plainly: Vec<String>,
}

/// Makes one adapter of `members`. `recorded` has the inputs of layers by module name, for [`Method::Fusion`]; the other
/// methods do not look at it. A layer that only some members change is composed of those.
///
/// # Errors
/// [`AdapterError::ComposeSetting`] for a setting out of range, the errors of [`Adapter::sum`], and
/// [`AdapterError::LayerGramShape`] for recorded inputs of another layer.
pub fn compose(
    members: &[Member<'_>],
    settings: &ComposeSettings,
    recorded: &BTreeMap<String, LayerGram>,
) -> Result<Composition, AdapterError> {
    settings.check()?;
    let layers = layers_of(members)?;
    let composed = |layer: &Layer<'_>| {
        let gram = recorded.get(layer.name).filter(|gram| gram.has_inputs());
        Ok((layer.name.to_owned(), compose_layer(layer, settings, gram)?, gram.is_some()))
    };
    let composed: Vec<_> = layers.par_iter().map(composed).collect::<Result<_, AdapterError>>()?;
    let is_fusion = settings.method == Method::Fusion;
    let summed = composed.iter().filter(|(_, _, has_gram)| is_fusion && !has_gram).map(|(name, ..)| name.clone());
    let summed_plainly = summed.collect();
    let mut modules: BTreeMap<String, LoraModule> =
        composed.into_iter().map(|(name, module, _)| (name, module)).collect();
    even_ranks::even_ranks(&mut modules);
    Ok(Composition { adapter: Adapter { modules, metadata: BTreeMap::new() }, summed_plainly })
}

/// One layer, at scale 1.
fn compose_layer(
    layer: &Layer<'_>,
    settings: &ComposeSettings,
    gram: Option<&LayerGram>,
) -> Result<LoraModule, AdapterError> {
    let name = layer.name;
    let rank = settings.rank.unwrap_or_else(|| layer.largest_rank());
    match settings.method {
        Method::Sum => of_rank(name, layer.sum()?, settings.rank),
        Method::Svd => of_rank(name, layer.sum()?, Some(rank)),
        Method::Budget => of_rank(name, budget::within_budget(layer, settings.budget)?, settings.rank),
        Method::Knots => knots::aligned_merge(layer, settings.density, rank),
        Method::Ties => from_dense(layer, ties::of_layer(layer, settings.density)?, rank, settings.seed),
        Method::Dare => from_dense(layer, dare::of_layer(layer, settings.density, settings.seed)?, rank, settings.seed),
        Method::Fusion => match gram {
            Some(gram) => of_rank(name, fusion::fused(layer, gram, settings.ridge)?, settings.rank),
            None => of_rank(name, layer.sum()?, settings.rank),
        },
    }
}

/// The best approximation of at most this rank (Eckart and Young 1936); the module itself where it has no more.
fn of_rank(name: &str, module: LoraModule, rank: Option<usize>) -> Result<LoraModule, AdapterError> {
    match rank {
        Some(rank) if rank < module.rank() => {
            let svd = product_svd(name, &module)?;
            Ok(svd.to_module(rank, &weight_shape(&module), Some(rank as f32)))
        }
        _ => Ok(module),
    }
}

/// Factors of a dense change, row-major (out, in * kh * kw).
fn from_dense(layer: &Layer<'_>, data: Vec<f32>, rank: usize, seed: u64) -> Result<LoraModule, AdapterError> {
    let shape = layer.weight_shape();
    let dense = Array { shape: shape.clone(), data };
    let svd = truncated_svd(layer.name, &dense, rank, seed)?;
    let rank = rank.min(svd.singular_values().len());
    Ok(svd.to_module(rank, &shape, Some(rank as f32)))
}

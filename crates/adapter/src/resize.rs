//! An adapter of fewer ranks: the best approximation of each layer's change, by the singular values of its product (Eckart
//! and Young 1936). The error is the root of the sum of squares of the singular values that are left out.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::Serialize;

use crate::change::Change;
use crate::error::AdapterError;
use crate::keys::Component;
use crate::linear_algebra::product_svd;
use crate::measures::root_of_squares;
use crate::{AdapterFile, LoraModule};

/// How many ranks each layer keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeptRanks {
    /// This many, or all that the layer has if those are fewer.
    Rank(usize),
    /// The fewest that keep a share (above 0, at most 1) of the Frobenius norm: the root of the sum of squares.
    Norm {
        /// The share.
        share: f64,
        /// Never more than this.
        max_rank: Option<usize>,
    },
    /// The fewest that keep a share of the sum of the singular values.
    Values {
        /// The share.
        share: f64,
        /// Never more than this.
        max_rank: Option<usize>,
    },
}

/// What a resize has cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResizeReport {
    /// Each layer, in the order of names.
    pub modules: Vec<ResizedModule>,
    /// ||all dW - dW'||_F / ||all dW||_F over the whole adapter, before the numbers are rounded to the file's type.
    pub error: f64,
    /// Numbers of the factors before.
    pub num_parameters_before: usize,
    /// Numbers of the factors after.
    pub num_parameters_after: usize,
}

/// What it has cost one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResizedModule {
    /// kohya's module name.
    pub module: String,
    /// Of the factors before, as plain LoRA.
    pub rank_before: usize,
    /// Of the factors now.
    pub rank_after: usize,
    /// ||dW||_F before.
    pub frobenius: f64,
    /// ||dW - dW'||_F / ||dW||_F; 0 where dW is zero.
    pub error: f64,
}

impl AdapterFile {
    /// The adapter with fewer ranks, and what that costs. LoHa, LoKr and LoCon become plain LoRA. At least one rank is kept
    /// of every layer, so that no program misses one.
    ///
    /// Where all layers of a component have one rank, alpha is that rank: the scale is 1. Where ranks differ (or are 1)
    /// there is no alpha, which every program takes for the scale 1; with one, diffusers would use the most frequent alpha
    /// for all layers and stable-diffusion.cpp would lose rank 1.
    ///
    /// # Errors
    /// [`AdapterError::BadResize`] for a rank of 0 or a share outside of (0, 1], [`AdapterError::NotLowRank`] for DoRA and
    /// whole differences, [`AdapterError::NoSingularValues`].
    pub fn resized(&self, kept: KeptRanks) -> Result<(Self, ResizeReport), AdapterError> {
        kept.check()?;
        let modules: Vec<(&String, &Change)> = self.changes.iter().collect();
        let resized = modules.into_par_iter().map(|(name, change)| resize_module(name, change, kept));
        let resized: Vec<(LoraModule, ResizedModule)> = resized.collect::<Result<_, _>>()?;
        let norm = root_of_squares(&resized.iter().map(|(_, report)| report.frobenius).collect::<Vec<_>>());
        let lost: Vec<f64> = resized.iter().map(|(_, report)| report.error * report.frobenius).collect();

        let mut modules = BTreeMap::new();
        let mut reports = Vec::new();
        for (module, report) in resized {
            modules.insert(report.module.clone(), module);
            reports.push(report);
        }
        leave_out_uneven_alphas(&mut modules);
        let file = Self {
            metadata: self.resized_metadata(&modules, kept),
            changes: modules.into_iter().map(|(name, module)| (name, Change::Lora(module))).collect(),
            ..self.clone()
        };
        let count = |changes: &BTreeMap<String, Change>| changes.values().map(Change::num_parameters).sum();
        let report = ResizeReport {
            modules: reports,
            error: if norm > 0.0 { root_of_squares(&lost) / norm } else { 0.0 },
            num_parameters_before: count(&self.changes),
            num_parameters_after: count(&file.changes),
        };
        Ok((file, report))
    }

    /// Rank and alpha as sd-scripts' own resize names them (`Dynamic` where ranks differ), and a word in the comment. A file
    /// without them gets none.
    fn resized_metadata(&self, modules: &BTreeMap<String, LoraModule>, kept: KeptRanks) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        let Some(before) = metadata.get("ss_network_dim").cloned() else { return metadata };
        let ranks: BTreeSet<usize> = modules.values().map(LoraModule::rank).collect();
        let rank = match ranks.first() {
            Some(rank) if ranks.len() == 1 => rank.to_string(),
            _ => "Dynamic".to_owned(),
        };
        let how = match kept {
            KeptRanks::Rank(rank) => format!("to {rank}"),
            KeptRanks::Norm { share, .. } => format!("to {share} of the norm"),
            KeptRanks::Values { share, .. } => format!("to {share} of the singular values"),
        };
        let note = format!("rank resized from {before} {how}");
        let comment = match metadata.get("ss_training_comment") {
            Some(comment) if !comment.is_empty() && comment != "None" => format!("{note}; {comment}"),
            _ => note,
        };
        metadata.insert("ss_network_dim".to_owned(), rank.clone());
        metadata.insert("ss_network_alpha".to_owned(), rank);
        metadata.insert("ss_training_comment".to_owned(), comment);
        metadata
    }
}

impl KeptRanks {
    fn check(self) -> Result<(), AdapterError> {
        let (share, max_rank) = match self {
            Self::Rank(rank) => (1.0, Some(rank)),
            Self::Norm { share, max_rank } | Self::Values { share, max_rank } => (share, max_rank),
        };
        if !(share > 0.0 && share <= 1.0) {
            return Err(AdapterError::BadResize { setting: format!("the share {share}") });
        }
        if max_rank == Some(0) {
            return Err(AdapterError::BadResize { setting: "the rank 0".to_owned() });
        }
        Ok(())
    }

    /// How many of these singular values, of which `num_sound` are above rounding; at least 1 (of none: 1 as well).
    fn of(self, singular_values: &[f64], num_sound: usize) -> usize {
        let fewest = |share: f64, size: fn(f64) -> f64| {
            let total: f64 = singular_values.iter().map(|s| size(*s)).sum();
            let mut sum = 0.0;
            let reaches = |s: &f64| {
                sum += size(*s);
                sum >= share * total
            };
            singular_values.iter().position(reaches).map_or(singular_values.len(), |index| index + 1).min(num_sound)
        };
        let (rank, limit) = match self {
            Self::Rank(rank) => (rank.min(singular_values.len()), None),
            Self::Norm { share, max_rank } => (fewest(share * share, |s| s * s), max_rank),
            Self::Values { share, max_rank } => (fewest(share, |s| s), max_rank),
        };
        rank.min(limit.unwrap_or(usize::MAX)).max(1)
    }
}

fn resize_module(name: &str, change: &Change, kept: KeptRanks) -> Result<(LoraModule, ResizedModule), AdapterError> {
    let factors = change
        .to_low_rank()
        .ok_or_else(|| AdapterError::NotLowRank { module: name.to_owned(), kind: change.kind() })?;
    factors.check(name)?;
    let svd = product_svd(name, &factors)?;
    let rank = kept.of(svd.singular_values(), svd.numerical_rank());
    let frobenius = root_of_squares(svd.singular_values());
    let tail = root_of_squares(svd.singular_values().get(rank..).unwrap_or_default());
    let report = ResizedModule {
        module: name.to_owned(),
        rank_before: factors.rank(),
        rank_after: rank,
        frobenius,
        error: if frobenius > 0.0 { tail / frobenius } else { 0.0 },
    };
    Ok((svd.to_module(rank, &change.weight_shape(), Some(rank as f32)), report))
}

/// The factors have the scale 1 with an alpha that is the rank and without an alpha alike.
fn leave_out_uneven_alphas(modules: &mut BTreeMap<String, LoraModule>) {
    let mut ranks: BTreeMap<Option<Component>, BTreeSet<usize>> = BTreeMap::new();
    for (name, module) in &*modules {
        ranks.entry(Component::of_module(name)).or_default().insert(module.rank());
    }
    for (name, module) in modules {
        let is_even =
            ranks.get(&Component::of_module(name)).is_some_and(|ranks| ranks.len() == 1 && !ranks.contains(&1));
        if !is_even {
            module.alpha = None;
        }
    }
}

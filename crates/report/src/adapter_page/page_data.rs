//! What the page's script draws.

use std::collections::BTreeMap;

use loralei_adapter::{Inspection, ModuleMeasures, SubspaceSimilarity};
use serde::Serialize;

use super::layer_map::{LayerMap, layer_maps};
use super::subspace_data::SubspaceData;
use crate::number_text::rounded;

/// Most singular values of a layer that are drawn.
const MAX_SINGULAR_VALUES: usize = 128;

/// Everything that is drawn.
#[derive(Debug, Serialize)]
pub(super) struct PageData {
    modules: Vec<ModuleData>,
    maps: Vec<LayerMap>,
    subspaces: Option<SubspaceData>,
}

/// Figures of a layer by the names of the measures.
#[derive(Debug, Serialize)]
struct ModuleData {
    module: String,
    about: String,
    measures: BTreeMap<&'static str, f64>,
    singular_values: Vec<f64>,
}

impl PageData {
    pub(super) fn of(inspection: &Inspection) -> Self {
        let against: BTreeMap<&str, &SubspaceSimilarity> = inspection
            .against
            .iter()
            .flat_map(|comparison| &comparison.modules)
            .map(|phi| (phi.module.as_str(), phi))
            .collect();
        let data = |module: &ModuleMeasures| ModuleData {
            module: module.module.clone(),
            about: about(module),
            measures: measures(module, against.get(module.module.as_str()).copied())
                .into_iter()
                .filter(|(_, value)| value.is_finite())
                .map(|(name, value)| (name, rounded(value)))
                .collect(),
            singular_values: module.singular_values.iter().take(MAX_SINGULAR_VALUES).copied().map(rounded).collect(),
        };
        Self {
            modules: inspection.modules.iter().map(data).collect(),
            maps: layer_maps(inspection.modules.iter().map(|module| module.module.as_str())),
            subspaces: inspection.against.as_ref().map(|comparison| SubspaceData::of(inspection, comparison)),
        }
    }
}

/// The measures of a layer, by their names in the page's script and table.
pub(super) fn measures(module: &ModuleMeasures, against: Option<&SubspaceSimilarity>) -> Vec<(&'static str, f64)> {
    let mut measures = vec![
        ("spectral", module.spectral),
        ("frobenius", module.frobenius),
        ("stable_rank", module.stable_rank),
        ("effective_rank", module.effective_rank),
    ];
    if let Some(base) = &module.base {
        measures.extend([("share", base.share), ("amplification", base.amplification)]);
    }
    if let Some(against) = against {
        let full = |phi: &[Vec<f64>]| phi.last().and_then(|row| row.last()).copied().unwrap_or(f64::NAN);
        measures.extend([
            ("cosine", against.cosine),
            ("phi_input", full(&against.input)),
            ("phi_output", full(&against.output)),
        ]);
    }
    measures
}

/// `LoRA, 320 × 768, rank 8, alpha 4`.
pub(super) fn about(module: &ModuleMeasures) -> String {
    let shape = module.weight_shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ");
    let mut parts = vec![module.kind.clone(), shape];
    parts.extend(module.rank.map(|rank| format!("rank {rank}")));
    parts.extend(module.alpha.map(|alpha| format!("alpha {alpha}")));
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

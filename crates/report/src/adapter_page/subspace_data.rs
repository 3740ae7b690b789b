//! phi of every layer as the page draws it: a byte a value, and at most [`MAX_SIDE`] directions a side.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loralei_adapter::{Comparison, Inspection, SubspaceSimilarity};
use serde::Serialize;

/// Most directions of a side that are drawn; of more, evenly spread ones.
const MAX_SIDE: usize = 64;

/// Every layer that two adapters share.
#[derive(Debug, Serialize)]
pub(super) struct SubspaceData {
    this: String,
    other: String,
    /// Means over the layers.
    mean: MeanPhi,
    /// By index of the module.
    layers: BTreeMap<usize, LayerPhi>,
}

/// phi of one layer.
#[derive(Debug, Serialize)]
struct LayerPhi {
    /// Numbers i of the rows and j of the columns, from 1.
    i: Vec<usize>,
    j: Vec<usize>,
    /// Base64 of one byte a value, 255 is 1.
    input: String,
    output: String,
    /// phi of random subspaces of full size.
    random_input: f64,
    random_output: f64,
    cosine: f64,
}

/// phi(i, j), each the mean over those layers that have i and j directions.
#[derive(Debug, Serialize)]
struct MeanPhi {
    i: Vec<usize>,
    j: Vec<usize>,
    input: Vec<f64>,
    output: Vec<f64>,
    /// What random subspaces of these widths would have, on the mean.
    random_input: Vec<f64>,
    random_output: Vec<f64>,
}

impl SubspaceData {
    pub(super) fn of(inspection: &Inspection, comparison: &Comparison) -> Self {
        let index_of: BTreeMap<&str, usize> =
            inspection.modules.iter().enumerate().map(|(index, module)| (module.module.as_str(), index)).collect();
        let layers =
            comparison.modules.iter().filter_map(|phi| Some((*index_of.get(phi.module.as_str())?, layer(phi))));
        Self {
            this: inspection.file.clone(),
            other: comparison.file.clone(),
            mean: mean(&comparison.modules),
            layers: layers.collect(),
        }
    }
}

fn layer(phi: &SubspaceSimilarity) -> LayerPhi {
    let (i, j) = (shown(num_rows(phi)), shown(num_columns(phi)));
    let bytes = |matrix: &[Vec<f64>]| {
        let value = |i: &usize, j: &usize| (255.0 * at(matrix, *i, *j).unwrap_or(0.0)).round().clamp(0.0, 255.0) as u8;
        STANDARD.encode(i.iter().flat_map(|i| j.iter().map(move |j| value(i, j))).collect::<Vec<u8>>())
    };
    LayerPhi {
        input: bytes(&phi.input),
        output: bytes(&phi.output),
        random_input: phi.random_input,
        random_output: phi.random_output,
        cosine: phi.cosine,
        i,
        j,
    }
}

fn mean(layers: &[SubspaceSimilarity]) -> MeanPhi {
    let i = shown(layers.iter().map(num_rows).max().unwrap_or(0));
    let j = shown(layers.iter().map(num_columns).max().unwrap_or(0));
    let over_layers = |value: &dyn Fn(&SubspaceSimilarity, usize, usize) -> Option<f64>| {
        let places = i.iter().flat_map(|i| j.iter().map(move |j| (*i, *j)));
        let means = places.map(|(i, j)| {
            let values = || layers.iter().filter_map(|phi| value(phi, i, j)).filter(|value| value.is_finite());
            let mean = values().sum::<f64>() / values().count() as f64;
            (1e4 * mean).round() / 1e4
        });
        means.collect::<Vec<f64>>()
    };
    // For random subspaces of i and j directions in d dimensions the expectation is max(i, j) / d.
    let random = |phi: &SubspaceSimilarity, of_full: f64, i: usize, j: usize| {
        at(&phi.input, i, j)?;
        Some(of_full * i.max(j) as f64 / num_rows(phi).max(num_columns(phi)) as f64)
    };
    MeanPhi {
        input: over_layers(&|phi, i, j| at(&phi.input, i, j)),
        output: over_layers(&|phi, i, j| at(&phi.output, i, j)),
        random_input: over_layers(&|phi, i, j| random(phi, phi.random_input, i, j)),
        random_output: over_layers(&|phi, i, j| random(phi, phi.random_output, i, j)),
        i,
        j,
    }
}

fn num_rows(phi: &SubspaceSimilarity) -> usize {
    phi.input.len()
}

fn num_columns(phi: &SubspaceSimilarity) -> usize {
    phi.input.first().map_or(0, Vec::len)
}

/// phi(i, j), from 1.
fn at(matrix: &[Vec<f64>], i: usize, j: usize) -> Option<f64> {
    matrix.get(i.checked_sub(1)?)?.get(j.checked_sub(1)?).copied()
}

/// 1 to `num_directions`, or as many evenly spread ones as are drawn, the last one among them.
fn shown(num_directions: usize) -> Vec<usize> {
    let num_shown = num_directions.min(MAX_SIDE);
    (1..=num_shown).map(|k| k * num_directions / num_shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn similarity(rows: usize, columns: usize, value: f64) -> SubspaceSimilarity {
        let matrix: Vec<Vec<f64>> = vec![vec![value; columns]; rows];
        SubspaceSimilarity {
            module: "m".to_owned(),
            input: matrix.clone(),
            output: matrix,
            random_input: 0.25,
            random_output: 0.5,
            cosine: 0.0,
        }
    }

    #[test]
    fn the_mean_is_over_the_layers_that_have_these_directions() {
        let mean = mean(&[similarity(2, 3, 0.5), similarity(1, 3, 0.1)]);
        assert_eq!((mean.i, mean.j), (vec![1, 2], vec![1, 2, 3]));
        assert_eq!(mean.input, [0.3, 0.3, 0.3, 0.5, 0.5, 0.5]);
        // max(i, j) / 12 and max(i, j) / 12: full size is 3 directions of 12.
        assert_eq!(mean.random_input, [0.0833, 0.1667, 0.25, 0.1667, 0.1667, 0.25]);
    }

    #[test]
    fn many_directions_are_thinned_out_and_the_last_one_stays() {
        let phi = layer(&similarity(3, 200, 1.0));
        assert_eq!((phi.i.len(), phi.j.len(), phi.j.last()), (3, MAX_SIDE, Some(&200)));
        assert!(phi.j.is_sorted_by(|a, b| a < b));
        assert_eq!(STANDARD.decode(phi.input).unwrap(), vec![255; 3 * MAX_SIDE]);
    }
}

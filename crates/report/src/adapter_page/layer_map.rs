//! The layers as maps: a column a block, in the order of the network, a row a kind of layer.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::layer_place::{Column, Kind, LayerPlace, Map};

/// A map as the page's script draws it.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct LayerMap {
    title: &'static str,
    /// Blocks and how many columns each has.
    blocks: Vec<(String, usize)>,
    /// Of each column, within its block.
    columns: Vec<String>,
    rows: Vec<LayerRow>,
}

/// A row of a map.
#[derive(Debug, PartialEq, Serialize)]
struct LayerRow {
    kind: String,
    /// Index into the modules, for each column.
    cells: Vec<Option<usize>>,
}

/// The maps of these modules, in the order of the network.
pub(super) fn layer_maps<'a>(modules: impl Iterator<Item = &'a str>) -> Vec<LayerMap> {
    let mut by_map: BTreeMap<Map, BTreeMap<(Kind, Column), usize>> = BTreeMap::new();
    for (index, module) in modules.enumerate() {
        let LayerPlace { map, column, kind } = LayerPlace::of(module);
        by_map.entry(map).or_default().insert((kind, column), index);
    }
    by_map.into_iter().map(|(map, cells)| layer_map(map, &cells)).collect()
}

fn layer_map(map: Map, cells: &BTreeMap<(Kind, Column), usize>) -> LayerMap {
    let kinds: BTreeSet<&Kind> = cells.keys().map(|(kind, _)| kind).collect();
    let columns: BTreeSet<&Column> = cells.keys().map(|(_, column)| column).collect();
    let mut blocks: Vec<(String, usize)> = Vec::new();
    for column in &columns {
        match blocks.last_mut().filter(|(block, _)| *block == column.block) {
            Some((_, num_columns)) => *num_columns += 1,
            None => blocks.push((column.block.clone(), 1)),
        }
    }
    let row = |kind: &Kind| LayerRow {
        kind: kind.name.clone(),
        cells: columns.iter().map(|column| cells.get(&(kind.clone(), (*column).clone())).copied()).collect(),
    };
    LayerMap {
        title: map.title(),
        blocks,
        rows: kinds.into_iter().map(row).collect(),
        columns: columns.iter().map(|column| column.number.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_is_in_one_cell_of_its_row_and_column() {
        let name = |block: &str, rest: &str| format!("lora_unet_{block}_attentions_0_{rest}");
        let modules = [
            name("mid_block", "transformer_blocks_0_attn1_to_v"),
            name("up_blocks_1", "transformer_blocks_0_attn1_to_q"),
            name("down_blocks_0", "transformer_blocks_0_attn1_to_q"),
            name("down_blocks_0", "proj_out"),
        ];
        let maps = layer_maps(modules.iter().map(String::as_str));
        assert_eq!(maps.len(), 1);
        assert_eq!(maps[0].blocks, [("down 0".to_owned(), 1), ("mid".to_owned(), 1), ("up 1".to_owned(), 1)]);
        let rows: Vec<_> = maps[0].rows.iter().map(|row| (row.kind.as_str(), row.cells.clone())).collect();
        assert_eq!(
            rows,
            [
                ("attn1.to_q", vec![Some(2), None, Some(1)]),
                ("attn1.to_v", vec![None, Some(0), None]),
                ("proj_out", vec![Some(3), None, None]),
            ]
        );
    }
}

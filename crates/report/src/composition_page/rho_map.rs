//! rho by method and layer, in the order of the network, as the page's script draws it.

use serde::Serialize;

use super::composition::CompositionPage;
use crate::adapter_page::LayerPlace;
use crate::number_text::rounded;

/// A row a method, a column a layer.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct RhoMap {
    methods: Vec<String>,
    /// Parts of the network, each with its layers.
    parts: Vec<RhoPart>,
}

/// Layers that stand together.
#[derive(Debug, PartialEq, Serialize)]
struct RhoPart {
    title: &'static str,
    layers: Vec<String>,
    /// By row, of as many columns as there are layers.
    values: Vec<Option<f64>>,
}

impl RhoMap {
    pub(super) fn of(composition: &CompositionPage) -> Option<Self> {
        let methods: Vec<_> = composition.methods.iter().filter(|method| !method.layer_rho.is_empty()).collect();
        if methods.is_empty() || composition.layers.is_empty() {
            return None;
        }
        let mut layers: Vec<(LayerPlace, usize)> =
            composition.layers.iter().enumerate().map(|(index, layer)| (LayerPlace::of(layer), index)).collect();
        layers.sort();
        let part = |part: &[(LayerPlace, usize)]| RhoPart {
            title: part[0].0.map.title(),
            layers: part.iter().map(|(_, index)| composition.layers[*index].clone()).collect(),
            values: methods
                .iter()
                .flat_map(|method| part.iter().map(|(_, index)| method.layer_rho.get(*index).copied().flatten()))
                .map(|value| value.filter(|value| value.is_finite()).map(rounded))
                .collect(),
        };
        Some(Self {
            methods: methods.iter().map(|method| method.name.clone()).collect(),
            parts: layers.chunk_by(|(a, _), (b, _)| a.map == b.map).map(part).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composition_page::ComposedMethod;

    #[test]
    fn a_value_stays_with_its_layer_when_layers_are_put_in_the_order_of_the_network() {
        let unet = |block: &str| format!("lora_unet_{block}_attentions_0_proj_in");
        let method =
            |name: &str, layer_rho| ComposedMethod { name: name.to_owned(), layer_rho, ..ComposedMethod::default() };
        let composition = CompositionPage {
            layers: vec![
                "lora_te_text_model_encoder_layers_0_mlp_fc1".to_owned(),
                unet("up_blocks_1"),
                unet("down_blocks_0"),
            ],
            methods: vec![
                method("sum", vec![Some(1.0), Some(2.0), Some(3.0)]),
                method("none", Vec::new()),
                method("budget", vec![None, Some(f64::NAN), Some(0.5)]),
            ],
            ..CompositionPage::default()
        };
        let map = RhoMap::of(&composition).unwrap();
        assert_eq!(map.methods, ["sum", "budget"]);
        let parts: Vec<_> = map.parts.iter().map(|part| (part.title, part.values.clone())).collect();
        assert_eq!(
            parts,
            [
                ("U-Net, attention", vec![Some(3.0), Some(2.0), Some(0.5), None]),
                ("Text encoder", vec![Some(1.0), None]),
            ]
        );
    }
}

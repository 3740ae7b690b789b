//! The layers of a base under the names that adapters give them.

use crate::base::Base;
use crate::original_layout::PROJECTION_WEIGHT;
use crate::weight_files::WeightFiles;
use crate::weights::Result;
use loralei_adapter::keys::kohya_module;
use loralei_adapter::{AdapterError, Array};
use std::collections::BTreeMap;

/// The weights of the U-Net and the text encoders by kohya's module names. Reads a tensor only when it is asked for.
#[derive(Clone, Debug)]
pub struct BaseLayers {
    networks: Vec<WeightFiles>,
    /// Module to (index of the network, path of the layer in it).
    layers: BTreeMap<String, (usize, String)>,
}

impl BaseLayers {
    /// All layers that have a weight.
    ///
    /// # Errors
    /// Weight files that are missing or damaged.
    pub fn of(base: &Base) -> Result<Self> {
        let mut parts = vec![(base.unet_prefix(), base.unet_weights()?)];
        for (index, prefix) in base.text_prefixes().into_iter().enumerate() {
            parts.push((prefix, base.text_encoder_weights(index)?));
        }
        let (mut networks, mut layers) = (Vec::new(), BTreeMap::new());
        for (index, (prefix, weights)) in parts.into_iter().enumerate() {
            for path in layer_paths(&weights) {
                layers.insert(kohya_module(prefix, path), (index, path.to_owned()));
            }
            networks.push(weights);
        }
        Ok(Self { networks, layers })
    }

    /// Names of all modules, sorted.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The U-Net, then the text encoders.
    pub(crate) fn networks(&self) -> &[WeightFiles] {
        &self.networks
    }

    /// Which of the networks has the module, and the path of the layer in it, as `mid_block.attentions.0.proj_in`.
    pub(crate) fn place(&self, module: &str) -> Option<(usize, &str)> {
        self.layers.get(module).map(|(network, path)| (*network, path.as_str()))
    }

    /// The weight as f32; `None` if the base has no such layer.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn weight(&self, module: &str) -> std::result::Result<Option<Array>, AdapterError> {
        let Some((network, path)) = self.place(module) else { return Ok(None) };
        let weights = &self.networks[network];
        let name = format!("{path}.weight");
        let shape = weights.info(&name).map(|info| info.shape).unwrap_or_default();
        Ok(Some(Array { shape, data: weights.read_f32(&name)? }))
    }
}

/// The paths of all layers with a weight that an adapter may change. The projection of the pooled text is none: no program
/// reads factors for it.
pub(crate) fn layer_paths(weights: &WeightFiles) -> impl Iterator<Item = &str> {
    weights.names().filter(|name| *name != PROJECTION_WEIGHT).filter_map(|name| name.strip_suffix(".weight"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BaseSource;
    use candle_core::{DType, Device};
    use loralei_adapter::Adapter;
    use std::path::PathBuf;

    #[test]
    fn every_module_of_an_adapter_finds_the_layer_that_it_changes() {
        for name in ["sd1", "sd2"] {
            let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
            let base = Base::open(BaseSource::Folder(golden.join("base")), None, DType::F32, &Device::Cpu).unwrap();
            let layers = BaseLayers::of(&base).unwrap();
            for (module, factors) in Adapter::read(&golden.join("adapter.safetensors")).unwrap().modules {
                let (weight, delta) = (layers.weight(&module).unwrap().unwrap(), factors.delta());
                assert_eq!((weight.shape[0], weight.data.len()), (delta.shape[0], delta.data.len()), "{module}");
            }
            assert!(layers.weight("lora_unet_no_such_layer").unwrap().is_none());
        }
    }
}

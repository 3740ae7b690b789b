//! Modules of an adapter that change a layer which nothing reads: of a text encoder whose last layer but one is taken, the last
//! layer. kohya's trainer makes them and leaves them at zero.

use crate::base::Base;
use loralei_adapter::keys::kohya_module;
use loralei_adapter::{Adapter, LoraModule};

impl Base {
    /// Whether a module of an adapter changes a layer that the base has and nobody reads.
    pub fn leaves_out(&self, module: &str) -> bool {
        self.unread_text_layers().any(|(prefix, path)| {
            let layer = kohya_module(prefix, &path);
            module.strip_prefix(&layer).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        })
    }

    /// A line about those modules of an adapter that the base leaves out and that are not zero: the others lose nothing.
    pub fn note_on_unread(&self, adapter: &Adapter) -> Option<String> {
        let is_unread = |(name, module): &(&String, &LoraModule)| module.has_moved() && self.leaves_out(name);
        let unread: Vec<&String> = adapter.modules.iter().filter(is_unread).map(|(name, _)| name).collect();
        let (first, count) = (unread.first()?, unread.len());
        Some(format!("nothing reads what {count} of the modules change, first {first}: these do nothing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BaseSource;
    use candle_core::{DType, Device};
    use std::path::PathBuf;

    fn base(name: &str) -> Base {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name).join("base");
        Base::open(BaseSource::Folder(golden), None, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_last_layer_is_left_out_where_the_one_before_is_taken_and_nowhere_else() {
        let layer = |encoder: &str, layer: usize| format!("lora_{encoder}_text_model_encoder_layers_{layer}_mlp_fc1");
        let base_of_two = base("sdxl");
        let last = |index: usize| base_of_two.text_encoder_config(index).num_hidden_layers - 1;
        assert!(base_of_two.leaves_out(&layer("te1", last(0))) && !base_of_two.leaves_out(&layer("te1", last(0) - 1)));
        assert!(!base_of_two.leaves_out(&layer("te2", last(1))), "the pooled text is read from it");
        assert!(!base_of_two.leaves_out(&layer("te1", 10 * last(0))), "a longer number is another layer");
        let base_of_one = base("sd1");
        let last = base_of_one.text_encoder_config(0).num_hidden_layers - 1;
        assert!((0..=last).all(|i| !base_of_one.leaves_out(&layer("te", i))));
    }
}

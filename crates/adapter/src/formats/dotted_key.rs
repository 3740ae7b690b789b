//! Keys with dotted module paths: every generation of diffusers, and PEFT.

use crate::keys::{Component, kohya_module};

/// Which program's habit a key follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Spelling {
    /// `attn1.processor.to_q_lora.down.weight`
    Processor,
    /// `to_q.lora.down.weight`
    LoraDown,
    /// `q_proj.lora_linear_layer.down.weight`
    LinearLayer,
    /// `to_q.lora_A.weight`
    Peft,
}

/// What a tensor is in its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DottedLeaf {
    Down,
    Up,
    Alpha,
    /// DoRA's lengths of rows.
    Magnitude,
}

/// A key taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DottedKey {
    /// The only text encoder stands for the first of two as well: a key does not tell.
    pub(crate) component: Component,
    /// Dotted, as the network has it.
    pub(crate) path: String,
    pub(crate) leaf: DottedLeaf,
    pub(crate) spelling: Spelling,
    /// Whether it began with `unet.` or the like.
    pub(crate) has_component: bool,
    /// Whether it began with `base_model.model.`.
    pub(crate) has_peft_prefix: bool,
}

/// What PEFT puts before every path.
pub(crate) const PEFT_PREFIX: &str = "base_model.model.";
const LEAVES: [(&str, DottedLeaf, Spelling); 12] = [
    (".lora_A.weight", DottedLeaf::Down, Spelling::Peft),
    (".lora_B.weight", DottedLeaf::Up, Spelling::Peft),
    (".lora_A.default.weight", DottedLeaf::Down, Spelling::Peft),
    (".lora_B.default.weight", DottedLeaf::Up, Spelling::Peft),
    (".lora_magnitude_vector", DottedLeaf::Magnitude, Spelling::Peft),
    (".lora_magnitude_vector.weight", DottedLeaf::Magnitude, Spelling::Peft),
    (".lora_magnitude_vector.default.weight", DottedLeaf::Magnitude, Spelling::Peft),
    (".lora_linear_layer.down.weight", DottedLeaf::Down, Spelling::LinearLayer),
    (".lora_linear_layer.up.weight", DottedLeaf::Up, Spelling::LinearLayer),
    (".lora.down.weight", DottedLeaf::Down, Spelling::LoraDown),
    (".lora.up.weight", DottedLeaf::Up, Spelling::LoraDown),
    (".alpha", DottedLeaf::Alpha, Spelling::Peft),
];
const PROCESSOR_LEAVES: [(&str, DottedLeaf); 2] =
    [("_lora.down.weight", DottedLeaf::Down), ("_lora.up.weight", DottedLeaf::Up)];
const COMPONENTS: [(&str, Component); 3] = [
    ("unet.", Component::Unet),
    ("text_encoder.", Component::TextEncoder),
    ("text_encoder_2.", Component::TextEncoder2),
];
/// How paths of the U-Net begin.
const UNET_STARTS: [&str; 7] =
    ["down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding."];
/// How paths of a text encoder begin, with and without its first level.
const TEXT_STARTS: [&str; 3] = ["text_model.", "encoder.", "text_projection"];

impl DottedKey {
    /// `None` if it is not a key of an adapter.
    pub(crate) fn parse(key: &str) -> Option<Self> {
        let (has_peft_prefix, rest) = match key.strip_prefix(PEFT_PREFIX) {
            Some(rest) => (true, rest),
            None => (false, key),
        };
        let named = COMPONENTS.iter().find_map(|(prefix, component)| Some((*component, rest.strip_prefix(prefix)?)));
        let (component, rest) = match named {
            Some(named) => named,
            None if UNET_STARTS.iter().any(|start| rest.starts_with(start)) => (Component::Unet, rest),
            None if TEXT_STARTS.iter().any(|start| rest.starts_with(start)) => (Component::TextEncoder, rest),
            None => return None,
        };
        let (path, leaf, spelling) = split_leaf(rest)?;
        let is_path = !path.is_empty() && path.split('.').all(|part| !part.is_empty());
        is_path.then_some(Self { component, path, leaf, spelling, has_component: named.is_some(), has_peft_prefix })
    }

    /// kohya's name of the module.
    pub(crate) fn module(&self) -> String {
        kohya_module(self.component.prefix(), &self.path)
    }
}

fn split_leaf(rest: &str) -> Option<(String, DottedLeaf, Spelling)> {
    for (end, leaf, spelling) in LEAVES {
        if let Some(path) = rest.strip_suffix(end) {
            return Some((path.to_owned(), leaf, spelling));
        }
    }
    for (end, leaf) in PROCESSOR_LEAVES {
        if let Some(path) = rest.strip_suffix(end) {
            let (layer, name) = path.rsplit_once('.')?;
            let layer = layer.strip_suffix(".processor").unwrap_or(layer);
            // The output projection is the first of a list.
            let name = if name == "to_out" { "to_out.0" } else { name };
            return Some((format!("{layer}.{name}"), leaf, Spelling::Processor));
        }
    }
    None
}

/// The first part of a key of a component, with its dot: `unet.`.
pub(crate) fn component_prefix(component: Component) -> &'static str {
    match component {
        Component::Unet => "unet.",
        Component::TextEncoder | Component::TextEncoder1 => "text_encoder.",
        Component::TextEncoder2 => "text_encoder_2.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generation_names_the_same_modules() {
        let block = "down_blocks.0.attentions.1.transformer_blocks.0";
        let name = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0";
        let text = "encoder.layers.3.self_attn.q_proj";
        let text_name = "lora_te_text_model_encoder_layers_3_self_attn_q_proj";
        for (key, module, spelling) in [
            (
                format!("{block}.attn1.processor.to_q_lora.down.weight"),
                format!("{name}_attn1_to_q"),
                Spelling::Processor,
            ),
            (
                format!("unet.{block}.attn2.processor.to_out_lora.down.weight"),
                format!("{name}_attn2_to_out_0"),
                Spelling::Processor,
            ),
            (
                format!("unet.{block}.ff.net.0.proj.lora.down.weight"),
                format!("{name}_ff_net_0_proj"),
                Spelling::LoraDown,
            ),
            (format!("unet.{block}.attn1.to_out.0.lora_A.weight"), format!("{name}_attn1_to_out_0"), Spelling::Peft),
            (
                format!("base_model.model.{block}.attn1.to_v.lora_A.weight"),
                format!("{name}_attn1_to_v"),
                Spelling::Peft,
            ),
            (
                format!("text_encoder.text_model.{text}.lora_linear_layer.down.weight"),
                text_name.to_owned(),
                Spelling::LinearLayer,
            ),
            (format!("text_encoder.{text}.lora_A.weight"), text_name.to_owned(), Spelling::Peft),
            (format!("base_model.model.text_model.{text}.lora_A.default.weight"), text_name.to_owned(), Spelling::Peft),
        ] {
            let parsed = DottedKey::parse(&key).unwrap();
            assert_eq!((parsed.module(), parsed.leaf, parsed.spelling), (module, DottedLeaf::Down, spelling), "{key}");
        }
        let second = DottedKey::parse("text_encoder_2.text_model.encoder.layers.3.mlp.fc1.lora_B.weight").unwrap();
        assert_eq!(
            (second.module().as_str(), second.leaf),
            ("lora_te2_text_model_encoder_layers_3_mlp_fc1", DottedLeaf::Up)
        );
        for key in [
            "",
            ".",
            "unet.",
            "unet..lora_A.weight",
            "unet.a",
            "lora_unet_a.alpha",
            "vae.a.lora_A.weight",
            "_lora.up.weight",
            "unet._lora.up.weight",
        ] {
            assert_eq!(DottedKey::parse(key), None, "{key}");
        }
    }
}

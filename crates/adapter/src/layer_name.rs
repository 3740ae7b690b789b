//! Where a module's layer is, as people say it.

use std::fmt;

use crate::formats::module_path::dotted_path;
use crate::keys::Component;

/// Part, block and kind of a layer, told by kohya's module name with diffusers' block names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerName {
    /// `U-Net`, `text encoder`, `text encoder 1`, `text encoder 2`.
    pub part: &'static str,
    /// `down 0`, `mid`, `up 3`; empty outside of the blocks and in text encoders.
    pub block: String,
    /// Without the numbers that say which of its kind it is: `attn1.to_q`, `proj_in`, `conv1`, `self_attn.q_proj`. The
    /// module's whole name where it has words that no network has.
    pub kind: String,
}

impl LayerName {
    /// Of any name.
    pub fn of(module: &str) -> Self {
        let Some((component, path)) = dotted_path(module) else {
            let part = Component::of_module(module).map_or("unknown", Component::name);
            return Self { part, block: String::new(), kind: module.to_owned() };
        };
        let parts: Vec<&str> = path.split('.').collect();
        let (block, rest) = match parts.as_slice() {
            ["down_blocks", level, rest @ ..] => (format!("down {level}"), rest),
            ["up_blocks", level, rest @ ..] => (format!("up {level}"), rest),
            ["mid_block", rest @ ..] => ("mid".to_owned(), rest),
            ["text_model", "encoder", "layers", _, rest @ ..] | rest => (String::new(), rest),
        };
        let kind = match rest {
            ["attentions", _, "transformer_blocks", _, kind @ ..] | ["attentions" | "resnets", _, kind @ ..]
                if !kind.is_empty() =>
            {
                kind
            }
            ["downsamplers" | "upsamplers", ..] => &rest[..1],
            _ => rest,
        };
        Self { part: component.name(), block, kind: kind.join(".") }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, block, kind } = self;
        if block.is_empty() { write!(f, "{part} {kind}") } else { write!(f, "{part} {block} {kind}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_named_by_its_part_block_and_kind() {
        let names = [
            ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0", "U-Net down 0 attn1.to_out.0"),
            ("lora_unet_mid_block_attentions_0_proj_in", "U-Net mid proj_in"),
            ("lora_unet_up_blocks_3_attentions_2_transformer_blocks_9_ff_net_0_proj", "U-Net up 3 ff.net.0.proj"),
            ("lora_unet_up_blocks_1_resnets_2_conv_shortcut", "U-Net up 1 conv_shortcut"),
            ("lora_unet_down_blocks_2_downsamplers_0_conv", "U-Net down 2 downsamplers"),
            ("lora_unet_conv_in", "U-Net conv_in"),
            ("lora_unet_time_embedding_linear_1", "U-Net time_embedding.linear_1"),
            ("lora_te_text_model_encoder_layers_11_self_attn_q_proj", "text encoder self_attn.q_proj"),
            ("lora_te2_text_model_encoder_layers_31_mlp_fc1", "text encoder 2 mlp.fc1"),
        ];
        for (module, expected) in names {
            assert_eq!(LayerName::of(module).to_string(), expected);
        }
    }

    #[test]
    fn a_strange_name_is_its_own_kind() {
        for module in ["lora_unet_what_is_this", "lora_te_", "", "ä"] {
            assert_eq!(LayerName::of(module).kind, module);
        }
    }
}

//! The one place that knows how kohya files name things.
//!
//! A key is `<prefix><module path with underscores>.<leaf>`. The prefix tells the component: `lora_unet_` the U-Net,
//! `lora_te_` the only text encoder of SD 1.x and 2.x, `lora_te1_` and `lora_te2_` the two of SDXL. Module paths are
//! those of the diffusers U-Net and of the Hugging Face text encoder with its `text_model.` level. In files of SDXL the
//! U-Net's blocks have their original names instead.

use crate::formats::module_path;

/// A part of the model that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The U-Net.
    Unet,
    /// The text encoder of a model that has one.
    TextEncoder,
    /// The first text encoder of a model that has two.
    TextEncoder1,
    /// The second text encoder of a model that has two.
    TextEncoder2,
}

impl Component {
    const ALL: [Self; 4] = [Self::Unet, Self::TextEncoder, Self::TextEncoder1, Self::TextEncoder2];

    /// Text encoder `index` (from 0) of a model that has `count` of them. `None` for what kohya files cannot name.
    pub fn text_encoder(index: usize, count: usize) -> Option<Self> {
        match (index, count) {
            (0, 1) => Some(Self::TextEncoder),
            (0, 2) => Some(Self::TextEncoder1),
            (1, 2) => Some(Self::TextEncoder2),
            _ => None,
        }
    }

    /// What its module names start with, the underscore included.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Unet => "lora_unet_",
            Self::TextEncoder => "lora_te_",
            Self::TextEncoder1 => "lora_te1_",
            Self::TextEncoder2 => "lora_te2_",
        }
    }

    /// `U-Net`, `text encoder`, `text encoder 1`, `text encoder 2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "U-Net",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder1 => "text encoder 1",
            Self::TextEncoder2 => "text encoder 2",
        }
    }

    /// The component that a module name such as `lora_te_text_model_encoder_layers_0_mlp_fc1` belongs to.
    pub fn of_module(module: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| module.starts_with(component.prefix()))
    }

    /// The place, from 0, of a text encoder among those of its model; `None` for the U-Net.
    pub fn text_encoder_index(self) -> Option<usize> {
        match self {
            Self::Unet => None,
            Self::TextEncoder | Self::TextEncoder1 => Some(0),
            Self::TextEncoder2 => Some(1),
        }
    }

    /// Whether it is a text encoder.
    pub fn is_text_encoder(self) -> bool {
        self.text_encoder_index().is_some()
    }
}

/// One tensor of a LoRA module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    /// The first factor A: (rank, in) or (rank, in, k, k).
    Down,
    /// The second factor B: (out, rank) or (out, rank, 1, 1).
    Up,
    /// The scalar alpha; the product is scaled by alpha / rank.
    Alpha,
}

impl Leaf {
    const ALL: [Self; 3] = [Self::Down, Self::Up, Self::Alpha];

    /// The part of the key behind the first dot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Down => "lora_down.weight",
            Self::Up => "lora_up.weight",
            Self::Alpha => "alpha",
        }
    }
}

/// The module name of a layer: `kohya_module("lora_unet_", "mid_block.attentions.0.proj_in")` is
/// `lora_unet_mid_block_attentions_0_proj_in`.
///
/// A text encoder's path may come with or without its leading `text_model.` (newer libraries have dropped that level);
/// the name always has it, because that is what every program looks for.
pub fn kohya_module(prefix: &str, module_path: &str) -> String {
    const TEXT_LEVEL: &str = "text_model.";
    let is_text = Component::of_module(prefix).is_some_and(Component::is_text_encoder);
    let level = if is_text && !module_path.starts_with(TEXT_LEVEL) { TEXT_LEVEL } else { "" };
    format!("{prefix}{}", format!("{level}{module_path}").replace('.', "_"))
}

/// The full key of a tensor: `<module>.<leaf>`.
pub fn kohya_key(module: &str, leaf: Leaf) -> String {
    format!("{module}.{}", leaf.name())
}

/// Takes a key apart; `None` unless it is a known leaf of a module of a known component.
pub fn parse_kohya_key(key: &str) -> Option<(&str, Leaf)> {
    let (module, name) = key.split_once('.')?;
    Component::of_module(module)?;
    let leaf = Leaf::ALL.into_iter().find(|leaf| leaf.name() == name)?;
    Some((module, leaf))
}

/// The name of a module with the U-Net's blocks as diffusers calls them, whichever way the name has them: kohya files of SDXL call
/// them as the original code does. `None` for an original name of a place that no U-Net has.
pub fn with_diffusers_blocks(module: &str) -> Option<String> {
    if module_path::has_original_blocks(module) {
        return module_path::with_diffusers_blocks(module);
    }
    Some(module.to_owned())
}

/// Module and leaf of any key with kohya's module name, whatever the leaf: `lora_unet_a.hada_w1_a`.
pub fn split_kohya_key(key: &str) -> Option<(&str, &str)> {
    let (module, leaf) = key.split_once('.')?;
    let component = Component::of_module(module)?;
    (module.len() > component.prefix().len() && !leaf.is_empty()).then_some((module, leaf))
}

/// The learned token that some trainers put beside the modules: `bundle_emb.<token>.string_to_param.*`.
pub(crate) fn bundled_embedding(key: &str) -> Option<&str> {
    let (token, _) = key.strip_prefix("bundle_emb.")?.split_once('.')?;
    (!token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_other_programs_look_for() {
        let unet = kohya_module("lora_unet_", "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0");
        assert_eq!(unet, "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0");
        assert_eq!(kohya_key(&unet, Leaf::Down), format!("{unet}.lora_down.weight"));
    }

    #[test]
    fn text_encoder_names_have_the_text_model_level_whether_the_path_has_it_or_not() {
        for component in [Component::TextEncoder, Component::TextEncoder1, Component::TextEncoder2] {
            let prefix = component.prefix();
            let expected = format!("{prefix}text_model_encoder_layers_11_self_attn_q_proj");
            assert_eq!(kohya_module(prefix, "text_model.encoder.layers.11.self_attn.q_proj"), expected);
            assert_eq!(kohya_module(prefix, "encoder.layers.11.self_attn.q_proj"), expected);
            assert_eq!(Component::of_module(&expected), Some(component));
        }
    }

    #[test]
    fn the_number_is_in_the_prefix_only_where_there_are_two_text_encoders() {
        let prefixes = |count| -> Vec<&str> {
            (0..count).filter_map(|index| Component::text_encoder(index, count)).map(Component::prefix).collect()
        };
        assert_eq!(prefixes(1), ["lora_te_"]);
        assert_eq!(prefixes(2), ["lora_te1_", "lora_te2_"]);
        assert!(prefixes(3).is_empty());
    }

    #[test]
    fn only_plain_lora_keys_are_taken_apart() {
        assert_eq!(parse_kohya_key("lora_te_a.alpha"), Some(("lora_te_a", Leaf::Alpha)));
        assert_eq!(parse_kohya_key("lora_unet_a_b.lora_up.weight"), Some(("lora_unet_a_b", Leaf::Up)));
        for key in ["lora_unet_a.lora_mid.weight", "lora_te_a.hada_w1_a", "unet.a.lora_A.weight", "lora_unet_a", ""] {
            assert_eq!(parse_kohya_key(key), None, "{key}");
        }
    }
}

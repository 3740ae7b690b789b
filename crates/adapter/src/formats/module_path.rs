//! From kohya's names with underscores to dotted paths and back.
//!
//! A name has lost the difference between a dot and an underscore; the words of which the networks' paths are made
//! bring it back. Names of blocks are those of diffusers; [`with_diffusers_blocks`] and [`with_original_blocks`] know
//! those that Stable Diffusion was first published with, which kohya files of SDXL have.

use crate::keys::Component;

/// Parts of paths that have an underscore themselves.
const WORDS_WITH_UNDERSCORE: [&str; 30] = [
    "down_blocks",
    "up_blocks",
    "mid_block",
    "transformer_blocks",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "add_embedding",
    "linear_1",
    "linear_2",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "text_model",
    "text_projection",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "layer_norm1",
    "layer_norm2",
    "final_layer_norm",
    "token_embedding",
];
/// The others, beside numbers.
const WORDS: [&str; 22] = [
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "attn1",
    "attn2",
    "ff",
    "net",
    "proj",
    "conv",
    "conv1",
    "conv2",
    "norm",
    "norm1",
    "norm2",
    "norm3",
    "encoder",
    "layers",
    "mlp",
    "fc1",
    "fc2",
    "embeddings",
];

/// The component and the dotted path of a module with diffusers' block names, as `lora_unet_mid_block_attentions_0_proj_in`
/// gives `mid_block.attentions.0.proj_in`. `None` for a name with a word that no network has.
pub(crate) fn dotted_path(module: &str) -> Option<(Component, String)> {
    let component = Component::of_module(module)?;
    let mut rest = module.strip_prefix(component.prefix())?;
    let mut path = String::with_capacity(rest.len());
    while !rest.is_empty() {
        let word = first_word(rest)?;
        path.push_str(word);
        rest = &rest[word.len()..];
        if let Some(behind) = rest.strip_prefix('_') {
            if behind.is_empty() {
                return None;
            }
            path.push('.');
            rest = behind;
        }
    }
    (!path.is_empty()).then_some((component, path))
}

/// The longest known word at the start of `text`, followed by an underscore or the end.
fn first_word(text: &str) -> Option<&str> {
    let ends_behind = |length: usize| matches!(text.as_bytes().get(length), None | Some(b'_'));
    let fits = |word: &&&str| text.starts_with(**word) && ends_behind(word.len());
    if let Some(word) = WORDS_WITH_UNDERSCORE.iter().filter(fits).max_by_key(|word| word.len()) {
        return text.get(..word.len());
    }
    let word = text.split('_').next()?;
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    (is_number || WORDS.contains(&word)).then_some(word)
}

/// Modules of a resnet: in diffusers, in the original.
const RESNET: [(&str, &str); 4] = [
    ("conv1", "in_layers_2"),
    ("time_emb_proj", "emb_layers_1"),
    ("conv2", "out_layers_3"),
    ("conv_shortcut", "skip_connection"),
];
/// Modules outside of the blocks: in diffusers, in the original.
const OUTSIDE: [(&str, &str); 7] = [
    ("conv_in", "input_blocks_0_0"),
    ("conv_out", "out_2"),
    ("time_embedding_linear_1", "time_embed_0"),
    ("time_embedding_linear_2", "time_embed_2"),
    ("add_embedding_linear_1", "label_emb_0_0"),
    ("add_embedding_linear_2", "label_emb_0_2"),
    ("conv_norm_out", "out_0"),
];
const DOWN: &str = "input_blocks_";
const MIDDLE: &str = "middle_block_";
const UP: &str = "output_blocks_";

/// Whether a U-Net's module has an original name.
pub(crate) fn has_original_blocks(module: &str) -> bool {
    module.strip_prefix(Component::Unet.prefix()).is_some_and(|name| {
        [DOWN, MIDDLE, UP].iter().any(|start| name.starts_with(start)) || outside(name, |pair| pair.1).is_some()
    })
}

fn outside(
    name: &str,
    side: impl Fn(&(&'static str, &'static str)) -> &'static str,
) -> Option<(&'static str, &'static str)> {
    OUTSIDE.into_iter().find(|pair| side(pair) == name)
}

/// The diffusers name of a module with an original name: `lora_unet_input_blocks_4_1_proj_in` is
/// `lora_unet_down_blocks_1_attentions_0_proj_in`. `None` if the U-Net of SDXL (or SD 1.x, 2.x) has no such place.
pub(crate) fn with_diffusers_blocks(module: &str) -> Option<String> {
    let prefix = Component::Unet.prefix();
    let name = module.strip_prefix(prefix)?;
    if let Some((diffusers, _)) = outside(name, |pair| pair.1) {
        return Some(format!("{prefix}{diffusers}"));
    }
    let (block, rest) = if let Some(rest) = name.strip_prefix(DOWN) {
        let (index, rest) = number(rest)?;
        let (place, rest) = number(rest)?;
        let (level, position) = (index.checked_sub(1)? / 3, index.checked_sub(1)? % 3);
        match (position, place, rest) {
            (2, 0, "op") => (format!("down_blocks_{level}_downsamplers_0"), "conv".to_owned()),
            (0 | 1, 0, _) => (format!("down_blocks_{level}_resnets_{position}"), resnet_part(rest)?),
            (0 | 1, 1, _) => (format!("down_blocks_{level}_attentions_{position}"), rest.to_owned()),
            _ => return None,
        }
    } else if let Some(rest) = name.strip_prefix(UP) {
        let (index, rest) = number(rest)?;
        let (place, rest) = number(rest)?;
        let (level, position) = (index / 3, index % 3);
        match (position, place, rest) {
            // Behind the attention, or in its place where the level has none.
            (2, 1 | 2, "conv") => (format!("up_blocks_{level}_upsamplers_0"), "conv".to_owned()),
            (_, 0, _) => (format!("up_blocks_{level}_resnets_{position}"), resnet_part(rest)?),
            (_, 1, _) => (format!("up_blocks_{level}_attentions_{position}"), rest.to_owned()),
            _ => return None,
        }
    } else {
        let (place, rest) = number(name.strip_prefix(MIDDLE)?)?;
        match place {
            0 => ("mid_block_resnets_0".to_owned(), resnet_part(rest)?),
            1 => ("mid_block_attentions_0".to_owned(), rest.to_owned()),
            2 => ("mid_block_resnets_1".to_owned(), resnet_part(rest)?),
            _ => return None,
        }
    };
    (!rest.is_empty()).then(|| format!("{prefix}{block}_{rest}"))
}

/// The original name of a module of SDXL's U-Net with diffusers' name; `None` if it has no such place.
pub(crate) fn with_original_blocks(module: &str) -> Option<String> {
    let prefix = Component::Unet.prefix();
    let name = module.strip_prefix(prefix)?;
    if let Some((_, original)) = outside(name, |pair| pair.0) {
        return Some(format!("{prefix}{original}"));
    }
    let place = if let Some(rest) = name.strip_prefix("down_blocks_") {
        let (level, rest) = number(rest)?;
        if rest == "downsamplers_0_conv" {
            format!("{DOWN}{}_0_op", 3 * level + 3)
        } else {
            let (place, position, rest) = layer(rest)?;
            format!("{DOWN}{}_{place}_{rest}", 3 * level + position + 1)
        }
    } else if let Some(rest) = name.strip_prefix("up_blocks_") {
        let (level, rest) = number(rest)?;
        if rest == "upsamplers_0_conv" {
            format!("{UP}{}_2_conv", 3 * level + 2) // both levels of SDXL that end so have attention
        } else {
            let (place, position, rest) = layer(rest)?;
            format!("{UP}{}_{place}_{rest}", 3 * level + position)
        }
    } else {
        let (place, position, rest) = layer(name.strip_prefix("mid_block_")?)?;
        format!("{MIDDLE}{}_{rest}", if place == 1 { 1 } else { 2 * position })
    };
    let original = format!("{prefix}{place}");
    // What does not lead back has no place in the original.
    (with_diffusers_blocks(&original).as_deref() == Some(module)).then_some(original)
}

/// `resnets_1_conv1` as the place in an original block (0 resnet, 1 attention), the position and the original rest.
fn layer(name: &str) -> Option<(usize, usize, String)> {
    if let Some(rest) = name.strip_prefix("resnets_") {
        let (position, rest) = number(rest)?;
        let original = RESNET.iter().find_map(|(diffusers, original)| (*diffusers == rest).then_some(*original))?;
        return Some((0, position, original.to_owned()));
    }
    let (position, rest) = number(name.strip_prefix("attentions_")?)?;
    Some((1, position, rest.to_owned()))
}

fn resnet_part(original: &str) -> Option<String> {
    RESNET.iter().find_map(|(diffusers, part)| (*part == original).then(|| (*diffusers).to_owned()))
}

/// A number of one or two digits and what follows its underscore.
fn number(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.split_once('_')?;
    let is_plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then_some(())?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::kohya_module;

    #[test]
    fn every_kind_of_layer_finds_its_dots_again() {
        let unet = [
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "up_blocks.3.attentions.2.transformer_blocks.9.ff.net.0.proj",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
            "mid_block.attentions.0.proj_in",
            "down_blocks.2.resnets.1.time_emb_proj",
            "down_blocks.2.resnets.1.conv_shortcut",
            "down_blocks.2.downsamplers.0.conv",
            "up_blocks.0.upsamplers.0.conv",
            "time_embedding.linear_1",
            "add_embedding.linear_2",
            "conv_in",
        ];
        for path in unet {
            let module = kohya_module("lora_unet_", path);
            assert_eq!(dotted_path(&module), Some((Component::Unet, path.to_owned())));
        }
        for path in ["text_model.encoder.layers.11.self_attn.out_proj", "text_model.encoder.layers.0.mlp.fc1"] {
            let module = kohya_module("lora_te2_", path);
            assert_eq!(dotted_path(&module), Some((Component::TextEncoder2, path.to_owned())));
        }
        for strange in ["lora_unet_", "lora_unet_a", "lora_unet_to_q_", "lora_unet__to_q", "lora_unet_to_qq", "x"] {
            assert_eq!(dotted_path(strange), None, "{strange}");
        }
    }

    // Left: diffusers' convert_unet of sd-scripts; the places are those of generative-models' sd_xl_base.yaml.
    #[test]
    fn blocks_of_sdxl_have_their_original_places() {
        let pairs = [
            ("conv_in", "input_blocks_0_0"),
            ("down_blocks_0_resnets_1_conv1", "input_blocks_2_0_in_layers_2"),
            ("down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op"),
            ("down_blocks_1_attentions_0_proj_in", "input_blocks_4_1_proj_in"),
            ("down_blocks_1_resnets_0_conv_shortcut", "input_blocks_4_0_skip_connection"),
            (
                "down_blocks_2_attentions_1_transformer_blocks_9_attn2_to_k",
                "input_blocks_8_1_transformer_blocks_9_attn2_to_k",
            ),
            ("mid_block_resnets_0_conv2", "middle_block_0_out_layers_3"),
            ("mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
            ("mid_block_resnets_1_time_emb_proj", "middle_block_2_emb_layers_1"),
            ("up_blocks_0_attentions_2_proj_in", "output_blocks_2_1_proj_in"),
            ("up_blocks_0_upsamplers_0_conv", "output_blocks_2_2_conv"),
            ("up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
            ("up_blocks_2_resnets_2_conv1", "output_blocks_8_0_in_layers_2"),
            ("add_embedding_linear_1", "label_emb_0_0"),
        ];
        for (diffusers, original) in pairs {
            let (diffusers, original) = (format!("lora_unet_{diffusers}"), format!("lora_unet_{original}"));
            assert_eq!(with_diffusers_blocks(&original).as_deref(), Some(diffusers.as_str()), "{original}");
            assert_eq!(with_original_blocks(&diffusers).as_deref(), Some(original.as_str()), "{diffusers}");
            assert!(has_original_blocks(&original) && !has_original_blocks(&diffusers));
        }
        for strange in ["input_blocks_0_1_x", "input_blocks_3_1_x", "middle_block_3_x", "output_blocks_1_2_x", "out_3"]
        {
            assert_eq!(with_diffusers_blocks(&format!("lora_unet_{strange}")), None, "{strange}");
        }
    }
}

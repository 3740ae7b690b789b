//! Where a layer is in its network, told by kohya's name of it: a column (the block) and a row (the kind of layer) of a map.

use std::cmp::Ordering;

/// Kinds of layers in the order of the network, as kohya and as diffusers write them. Others come after them.
const KINDS: [(&str, &str); 25] = [
    ("proj_in", "proj_in"),
    ("attn1_to_q", "attn1.to_q"),
    ("attn1_to_k", "attn1.to_k"),
    ("attn1_to_v", "attn1.to_v"),
    ("attn1_to_out_0", "attn1.to_out.0"),
    ("attn2_to_q", "attn2.to_q"),
    ("attn2_to_k", "attn2.to_k"),
    ("attn2_to_v", "attn2.to_v"),
    ("attn2_to_out_0", "attn2.to_out.0"),
    ("ff_net_0_proj", "ff.net.0.proj"),
    ("ff_net_2", "ff.net.2"),
    ("proj_out", "proj_out"),
    ("conv1", "conv1"),
    ("time_emb_proj", "time_emb_proj"),
    ("conv2", "conv2"),
    ("conv_shortcut", "conv_shortcut"),
    ("downsamplers_conv", "downsampler"),
    ("upsamplers_conv", "upsampler"),
    ("self_attn_q_proj", "self_attn.q_proj"),
    ("self_attn_k_proj", "self_attn.k_proj"),
    ("self_attn_v_proj", "self_attn.v_proj"),
    ("self_attn_out_proj", "self_attn.out_proj"),
    ("mlp_fc1", "mlp.fc1"),
    ("mlp_fc2", "mlp.fc2"),
    ("conv_in", "conv_in"),
];

/// A map of its own: networks whose layers stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Map {
    Attention,
    Convolutions,
    UnetOther,
    TextEncoder,
    TextEncoder1,
    TextEncoder2,
    Other,
}

impl Map {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Attention => "U-Net, attention",
            Self::Convolutions => "U-Net, convolutions",
            Self::UnetOther => "U-Net, other layers",
            Self::TextEncoder => "Text encoder",
            Self::TextEncoder1 => "Text encoder 1",
            Self::TextEncoder2 => "Text encoder 2",
            Self::Other => "Other layers",
        }
    }
}

/// A row of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    order: usize,
    pub name: String,
}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.order, &self.name).cmp(&(other.order, &other.name))
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Kind {
    fn of(kohya: &str) -> Self {
        match KINDS.iter().position(|(known, _)| *known == kohya) {
            Some(order) => Self { order, name: KINDS[order].1.to_owned() },
            None => Self { order: KINDS.len(), name: kohya.to_owned() },
        }
    }
}

/// A column of a map: the block (`down 0`, `mid`, `up 3`, `layer`) and what in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Column {
    block_order: usize,
    numbers: Vec<usize>,
    pub block: String,
    /// `1`, or `1.0` for the first transformer of attention 1.
    pub number: String,
}

/// The place of a layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LayerPlace {
    pub map: Map,
    pub column: Column,
    pub kind: Kind,
}

impl LayerPlace {
    pub(crate) fn of(module: &str) -> Self {
        if let Some(path) = module.strip_prefix("lora_unet_") {
            return Self::in_unet(path);
        }
        let text_encoders =
            [("lora_te_", Map::TextEncoder), ("lora_te1_", Map::TextEncoder1), ("lora_te2_", Map::TextEncoder2)];
        for (prefix, map) in text_encoders {
            let Some(path) = module.strip_prefix(prefix) else { continue };
            return match path.strip_prefix("text_model_encoder_layers_").and_then(number_and_rest) {
                Some((layer, kind)) => {
                    let column =
                        Column { numbers: vec![layer], number: layer.to_string(), ..Column::named(0, "layer") };
                    Self { map, column, kind: Kind::of(kind) }
                }
                None => Self { map, column: Column::named(1, "other"), kind: Kind::of(path) },
            };
        }
        Self { map: Map::Other, column: Column::default(), kind: Kind::of(module) }
    }

    fn in_unet(path: &str) -> Self {
        let outside = || Self { map: Map::UnetOther, column: Column::default(), kind: Kind::of(path) };
        let (column, rest) = if let Some((index, rest)) = path.strip_prefix("down_blocks_").and_then(number_and_rest) {
            (Column::named(index, &format!("down {index}")), rest)
        } else if let Some(rest) = path.strip_prefix("mid_block_") {
            (Column::named(1000, "mid"), rest)
        } else if let Some((index, rest)) = path.strip_prefix("up_blocks_").and_then(number_and_rest) {
            (Column::named(2000 + index, &format!("up {index}")), rest)
        } else {
            return outside();
        };
        if let Some((attention, rest)) = rest.strip_prefix("attentions_").and_then(number_and_rest) {
            let (numbers, kind) = match rest.strip_prefix("transformer_blocks_").and_then(number_and_rest) {
                Some((transformer, kind)) => (vec![attention, transformer], kind),
                None => (vec![attention, 0], rest),
            };
            let number = numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
            return Self { map: Map::Attention, column: Column { numbers, number, ..column }, kind: Kind::of(kind) };
        }
        if let Some((resnet, kind)) = rest.strip_prefix("resnets_").and_then(number_and_rest) {
            let column = Column { numbers: vec![resnet], number: resnet.to_string(), ..column };
            return Self { map: Map::Convolutions, column, kind: Kind::of(kind) };
        }
        for sampler in ["downsamplers", "upsamplers"] {
            let inside = rest.strip_prefix(sampler).and_then(|rest| number_and_rest(rest.strip_prefix('_')?));
            if let Some((number, kind)) = inside {
                // Of its block, but of none of its ResNets: in the column of the first.
                let column = Column { numbers: vec![number], number: number.to_string(), ..column };
                return Self { map: Map::Convolutions, column, kind: Kind::of(&format!("{sampler}_{kind}")) };
            }
        }
        outside()
    }
}

impl Column {
    fn named(block_order: usize, block: &str) -> Self {
        Self { block_order, block: block.to_owned(), ..Self::default() }
    }
}

/// `2_attn` is 2 and `attn`.
fn number_and_rest(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('_')?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    // A number of three digits is more than any network has, and nothing that is longer can overflow.
    (number.len() <= 3).then_some(())?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_at_its_block_and_kind() {
        let place = |module: &str| {
            let LayerPlace { map, column, kind } = LayerPlace::of(module);
            (map, format!("{} {}", column.block, column.number), kind.name)
        };
        let expected = |map, column: &str, kind: &str| (map, column.to_owned(), kind.to_owned());
        assert_eq!(
            place("lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_attn2_to_out_0"),
            expected(Map::Attention, "up 2 1.0", "attn2.to_out.0")
        );
        assert_eq!(place("lora_unet_mid_block_attentions_0_proj_in"), expected(Map::Attention, "mid 0.0", "proj_in"));
        assert_eq!(
            place("lora_unet_down_blocks_1_resnets_0_conv_shortcut"),
            expected(Map::Convolutions, "down 1 0", "conv_shortcut")
        );
        assert_eq!(
            place("lora_unet_down_blocks_1_downsamplers_0_conv"),
            expected(Map::Convolutions, "down 1 0", "downsampler")
        );
        assert_eq!(place("lora_unet_conv_in"), expected(Map::UnetOther, " ", "conv_in"));
        assert_eq!(
            place("lora_te1_text_model_encoder_layers_11_mlp_fc2"),
            expected(Map::TextEncoder1, "layer 11", "mlp.fc2")
        );
    }

    #[test]
    fn a_strange_name_has_a_place_too() {
        for name in ["", "lora_unet_", "lora_unet_down_blocks_", "lora_unet_down_blocks_x_y", "lora_te_", "text", "ä_ö"]
        {
            LayerPlace::of(name);
        }
        let long = LayerPlace::of("lora_unet_down_blocks_99999999999999999999999_attentions_0_proj_in");
        assert_eq!(long.map, Map::UnetOther);
    }

    #[test]
    fn blocks_are_in_the_order_of_the_network_and_numbers_that_of_counting() {
        let of = |block: &str, number: usize| {
            LayerPlace::of(&format!("lora_unet_{block}_attentions_0_transformer_blocks_{number}_attn1_to_q"))
        };
        let order = [
            of("down_blocks_1", 2),
            of("down_blocks_1", 10),
            of("down_blocks_2", 0),
            of("mid_block", 0),
            of("up_blocks_0", 0),
        ];
        assert!(order.is_sorted());
    }
}

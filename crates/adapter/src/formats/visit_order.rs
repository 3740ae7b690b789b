//! The order in which cloneofsimo/lora visits layers: its files name none.
//!
//! A file lists classes; the layers are the linear ones and convolutions below modules of these classes, in the order in
//! which diffusers registered them when the files were made: the way down, the way up, the middle; in a level attentions
//! before resnets. diffusers 0.11 (whose order the published files have) puts the feed-forward between the two
//! attentions, later ones behind them; shapes tell which.

use crate::keys::{Component, kohya_module};

/// What of a U-Net decides about its layers: all levels but the last have attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnetStructure {
    levels: usize,
    /// Layers of a level on the way down; one more on the way up.
    layers: usize,
    /// The last level on the way down whose width differs from the one before.
    last_wider_level: usize,
}

/// SD 1.x and 2.x, and the base that comes with Loralei.
pub(crate) const STRUCTURES: [UnetStructure; 2] = [
    UnetStructure { levels: 4, layers: 2, last_wider_level: 2 },
    UnetStructure { levels: 3, layers: 1, last_wider_level: 2 },
];

/// Where the feed-forward stands in a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedForwardPlace {
    BetweenAttentions,
    Last,
}

impl FeedForwardPlace {
    pub(crate) const ALL: [Self; 2] = [Self::BetweenAttentions, Self::Last];
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visited {
    /// kohya's name.
    pub(crate) module: String,
    /// Layers of one group share a width.
    pub(crate) group: String,
    pub(crate) shape: LayerShape,
}

/// What is known of a layer's weight (out, in), where c is the width of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerShape {
    /// (c, c)
    Square,
    /// (c, c), a linear layer or a 1x1 convolution
    Projection,
    /// (c, width of the text)
    FromText,
    /// (8 c, c)
    Gated,
    /// (c, 4 c)
    FromHidden,
    /// (c, c, 3, 3)
    Kernel,
    /// (c, any, 3, 3)
    FirstKernel,
    /// (c, any, 1, 1)
    Shortcut,
    /// (c, any)
    Into,
    /// (any, c)
    OutOf,
}

/// The classes that a text encoder's layers are below.
const TEXT_CLASSES: [&str; 3] = ["CLIPAttention", "CLIPMLP", "CLIPEncoderLayer"];
/// Projections in the order in which transformers registers them.
const TEXT_ATTENTION: [&str; 4] = ["k_proj", "v_proj", "q_proj", "out_proj"];
const UNET_CLASSES: [&str; 9] = [
    "CrossAttention",
    "Attention",
    "GEGLU",
    "FeedForward",
    "BasicTransformerBlock",
    "Transformer2DModel",
    "ResnetBlock2D",
    "Downsample2D",
    "Upsample2D",
];

/// The first class of a list that is not known.
pub(crate) fn unknown_class(component: Component, classes: &[String]) -> Option<&str> {
    let known: &[&str] = if component.is_text_encoder() { &TEXT_CLASSES } else { &UNET_CLASSES };
    classes.iter().map(String::as_str).find(|class| !known.contains(class))
}

/// The layers of a U-Net below the classes.
pub(crate) fn unet_order(unet: UnetStructure, classes: &[String], feed_forward: FeedForwardPlace) -> Vec<Visited> {
    let UnetStructure { levels, layers, last_wider_level } = unet;
    let mut visit = Visit { classes, feed_forward, layers: Vec::new() };
    for level in 0..levels {
        let (block, group) = (format!("down_blocks.{level}"), format!("width {level}"));
        let is_wider = (1..=last_wider_level).contains(&level);
        visit.level(&block, &group, layers, level + 1 < levels, |resnet| is_wider && resnet == 0);
        if level + 1 < levels {
            visit.resample(&format!("{block}.downsamplers.0.conv"), "Downsample2D", &group);
        }
    }
    for level in 0..levels {
        let (block, group) = (format!("up_blocks.{level}"), format!("width {}", levels - 1 - level));
        visit.level(&block, &group, layers + 1, level > 0, |_| true);
        if level + 1 < levels {
            visit.resample(&format!("{block}.upsamplers.0.conv"), "Upsample2D", &group);
        }
    }
    let group = format!("width {}", levels - 1);
    visit.attention("mid_block.attentions.0", &group);
    visit.resnet("mid_block.resnets.0", &group, false);
    visit.resnet("mid_block.resnets.1", &group, false);
    visit.layers
}

struct Visit<'a> {
    classes: &'a [String],
    feed_forward: FeedForwardPlace,
    layers: Vec<Visited>,
}

impl Visit<'_> {
    fn has(&self, classes: &[&str]) -> bool {
        self.classes.iter().any(|class| classes.contains(&class.as_str()))
    }

    fn add(&mut self, path: &str, classes: &[&str], group: &str, shape: LayerShape) {
        if self.has(classes) {
            let module = kohya_module(Component::Unet.prefix(), path);
            self.layers.push(Visited { module, group: group.to_owned(), shape });
        }
    }

    fn level(
        &mut self,
        block: &str,
        group: &str,
        layers: usize,
        has_attention: bool,
        has_shortcut: impl Fn(usize) -> bool,
    ) {
        if has_attention {
            for i in 0..layers {
                self.attention(&format!("{block}.attentions.{i}"), group);
            }
        }
        for i in 0..layers {
            self.resnet(&format!("{block}.resnets.{i}"), group, has_shortcut(i));
        }
    }

    fn attention(&mut self, path: &str, group: &str) {
        const WHOLE: [&str; 1] = ["Transformer2DModel"];
        const FEED_FORWARD: [&str; 3] = ["FeedForward", "BasicTransformerBlock", "Transformer2DModel"];
        const GATE: [&str; 4] = ["GEGLU", "FeedForward", "BasicTransformerBlock", "Transformer2DModel"];
        self.add(&format!("{path}.proj_in"), &WHOLE, group, LayerShape::Projection);
        let block = format!("{path}.transformer_blocks.0");
        self.projections(&format!("{block}.attn1"), group, LayerShape::Square);
        if self.feed_forward == FeedForwardPlace::Last {
            self.projections(&format!("{block}.attn2"), group, LayerShape::FromText);
        }
        self.add(&format!("{block}.ff.net.0.proj"), &GATE, group, LayerShape::Gated);
        self.add(&format!("{block}.ff.net.2"), &FEED_FORWARD, group, LayerShape::FromHidden);
        if self.feed_forward == FeedForwardPlace::BetweenAttentions {
            self.projections(&format!("{block}.attn2"), group, LayerShape::FromText);
        }
        self.add(&format!("{path}.proj_out"), &WHOLE, group, LayerShape::Projection);
    }

    fn projections(&mut self, path: &str, group: &str, keys_and_values: LayerShape) {
        const CLASSES: [&str; 4] = ["CrossAttention", "Attention", "BasicTransformerBlock", "Transformer2DModel"];
        self.add(&format!("{path}.to_q"), &CLASSES, group, LayerShape::Square);
        self.add(&format!("{path}.to_k"), &CLASSES, group, keys_and_values);
        self.add(&format!("{path}.to_v"), &CLASSES, group, keys_and_values);
        self.add(&format!("{path}.to_out.0"), &CLASSES, group, LayerShape::Square);
    }

    fn resnet(&mut self, path: &str, group: &str, has_shortcut: bool) {
        const CLASSES: [&str; 1] = ["ResnetBlock2D"];
        self.add(&format!("{path}.conv1"), &CLASSES, group, LayerShape::FirstKernel);
        self.add(&format!("{path}.time_emb_proj"), &CLASSES, group, LayerShape::Into);
        self.add(&format!("{path}.conv2"), &CLASSES, group, LayerShape::Kernel);
        if has_shortcut {
            self.add(&format!("{path}.conv_shortcut"), &CLASSES, group, LayerShape::Shortcut);
        }
    }

    fn resample(&mut self, path: &str, class: &str, group: &str) {
        self.add(path, &[class], group, LayerShape::Kernel);
    }
}

/// The layers of a text encoder of `num_layers` layers below the classes.
pub(crate) fn text_order(classes: &[String], num_layers: usize) -> Vec<Visited> {
    let has = |wanted: &[&str]| classes.iter().any(|class| wanted.contains(&class.as_str()));
    let mut layers = Vec::new();
    let mut add = |path: String, shape| {
        let module = kohya_module(Component::TextEncoder.prefix(), &path);
        layers.push(Visited { module, group: "text".to_owned(), shape });
    };
    for i in 0..num_layers {
        let layer = format!("text_model.encoder.layers.{i}");
        if has(&["CLIPAttention", "CLIPEncoderLayer"]) {
            TEXT_ATTENTION.iter().for_each(|end| add(format!("{layer}.self_attn.{end}"), LayerShape::Square));
        }
        if has(&["CLIPMLP", "CLIPEncoderLayer"]) {
            add(format!("{layer}.mlp.fc1"), LayerShape::OutOf);
            add(format!("{layer}.mlp.fc2"), LayerShape::Into);
        }
    }
    layers
}

/// The widths that weights (out, in[, kh, kw]) of visited layers show; `None` if a shape is not that of its layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Widths {
    groups: std::collections::BTreeMap<String, usize>,
    text: Option<usize>,
}

impl Widths {
    /// Adds what one layer shows; `false` if it contradicts.
    pub(crate) fn learn(&mut self, layer: &Visited, shape: &[usize]) -> bool {
        let (out, input, kernel) = match *shape {
            [out, input] => (out, input, None),
            [out, input, height, width] => (out, input, Some([height, width])),
            _ => return false,
        };
        let c = match layer.shape {
            LayerShape::Gated if out % 8 == 0 => out / 8,
            LayerShape::Gated => return false,
            LayerShape::OutOf => input,
            _ => out,
        };
        let kernel_fits = match layer.shape {
            LayerShape::Kernel | LayerShape::FirstKernel => kernel == Some([3, 3]),
            LayerShape::Shortcut => kernel == Some([1, 1]),
            LayerShape::Projection => kernel.is_none() || kernel == Some([1, 1]),
            _ => kernel.is_none(),
        };
        let input_fits = match layer.shape {
            LayerShape::Square | LayerShape::Projection | LayerShape::Gated | LayerShape::Kernel => input == c,
            LayerShape::FromHidden => input == 4 * c,
            LayerShape::FromText => *self.text.get_or_insert(input) == input,
            _ => true,
        };
        kernel_fits && input_fits && *self.groups.entry(layer.group.clone()).or_insert(c) == c
    }

    /// The weight's shape of a layer that no file shows; `None` where it does not follow from the others.
    pub(crate) fn shape_of(&self, layer: &Visited, projections_are_convolutions: bool) -> Option<Vec<usize>> {
        let c = *self.groups.get(&layer.group)?;
        Some(match layer.shape {
            LayerShape::Projection if projections_are_convolutions => vec![c, c, 1, 1],
            LayerShape::Square | LayerShape::Projection => vec![c, c],
            LayerShape::FromText => vec![c, self.text?],
            LayerShape::Gated => vec![8 * c, c],
            LayerShape::FromHidden => vec![c, 4 * c],
            LayerShape::Kernel => vec![c, c, 3, 3],
            LayerShape::FirstKernel | LayerShape::Shortcut | LayerShape::Into | LayerShape::OutOf => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_classes_give_as_many_layers_as_sd_has() {
        let count = |names: &[&str]| unet_order(STRUCTURES[0], &classes(names), FeedForwardPlace::Last).len();
        assert_eq!(count(&["CrossAttention", "Attention"]), 128);
        assert_eq!(count(&["CrossAttention", "Attention", "GEGLU"]), 144);
        assert_eq!(count(&["Transformer2DModel"]), 192);
        assert_eq!(count(&["ResnetBlock2D", "Transformer2DModel", "Downsample2D", "Upsample2D"]), 278);
        assert_eq!(text_order(&classes(&["CLIPAttention"]), 12).len(), 48);
        assert_eq!(text_order(&classes(&["CLIPAttention", "CLIPMLP"]), 23).len(), 138);
    }

    #[test]
    fn the_middle_comes_last_and_the_feed_forward_where_that_time_had_it() {
        let names = |place| -> Vec<String> {
            let order = unet_order(STRUCTURES[0], &classes(&["CrossAttention", "GEGLU"]), place);
            order.into_iter().map(|layer| layer.module).collect()
        };
        let between = names(FeedForwardPlace::BetweenAttentions);
        assert!(
            between[4].ends_with("down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"),
            "{}",
            between[4]
        );
        assert!(between[143].ends_with("mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"));
        assert!(between[54].starts_with("lora_unet_up_blocks_1_attentions_0"), "{}", between[54]);
        assert!(names(FeedForwardPlace::Last)[8].ends_with("ff_net_0_proj"));
        let text = text_order(&classes(&["CLIPAttention"]), 2);
        assert!(
            text[0].module.ends_with("layers_0_self_attn_k_proj")
                && text[6].module.ends_with("layers_1_self_attn_q_proj")
        );
    }
}

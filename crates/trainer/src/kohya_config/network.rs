//! The base, and the network: which layers get factors, and how large (sd-scripts `networks/lora.py`).

use toml::Value;

use super::Import;
use super::arguments::{number, numbers};
use super::blocks::{NUM_BLOCKS, UnetBlocks, lr_weights};
use crate::first_config::is_named_xl;

/// kohya's rank where none is set.
const USUAL_DIM: i64 = 4;
/// Blocks that it counts in SDXL's U-Net.
const SDXL_BLOCKS: usize = 23;
/// Its alpha where none is set.
const USUAL_ALPHA: f64 = 1.0;

/// Keys of the text encoders: which layers, at which rate.
const TEXT_ENCODERS: [(&str, &str); 2] = [
    ("lora.text_encoder.targets", "lora.text_encoder.learning_rate"),
    ("lora.text_encoder_2.targets", "lora.text_encoder_2.learning_rate"),
];

impl Import {
    pub(super) fn model(&mut self) {
        if let Some(base) = self.arguments.text("pretrained_model_name_or_path") {
            self.carry("model.base", base, "pretrained_model_name_or_path");
        }
        if self.arguments.flag("v_parameterization") {
            self.carry("model.prediction", "v", "v_parameterization");
        }
        if self.arguments.flag("zero_terminal_snr") {
            self.carry("model.zero_terminal_snr", true, "zero_terminal_snr");
        }
        if let Some(skip) = self.arguments.count("clip_skip").filter(|skip| *skip > 1) {
            self.leave("clip_skip", &skip.into(), "captions are read from the text encoder's last layer");
            self.warn(format!("clip_skip = {skip} is not there: draw with clip skip 1 what is trained here"));
        }
    }

    pub(super) fn network(&mut self) {
        let module = self.arguments.text("network_module").unwrap_or_else(|| "networks.lora".to_owned());
        if module != "networks.lora" {
            self.leave("network_module", &module.as_str().into(), "networks are plain LoRA here");
            self.warn(format!("`{module}` is another kind of network: this trains LoRA of the same rank and alpha"));
        }
        let (rank, alpha) = self.rank_and_alpha();
        for (theirs, ours) in [("network_dropout", "lora.dropout"), ("scale_weight_norms", "lora.max_norm")] {
            if let Some(value) = self.arguments.number(theirs).filter(|value| *value > 0.0) {
                self.carry(ours, value, theirs);
            }
        }
        if let Some(file) = self.arguments.text("network_weights") {
            self.carry("lora.start_from", file, "network_weights");
        }
        if self.arguments.flag("dim_from_weights") {
            let reason = "the rank is not read from the file: set `lora.rank` to that of `lora.start_from`";
            self.leave("dim_from_weights", &true.into(), reason);
        }
        let is_convolved = self.network_args(rank, alpha);
        self.components(is_convolved);
    }

    fn rank_and_alpha(&mut self) -> (i64, f64) {
        let dim = self.arguments.count("network_dim").filter(|dim| *dim > 0);
        let rank = dim.unwrap_or(USUAL_DIM);
        self.set("lora.rank", rank, dim.map_or("kohya's default", |_| "kohya: network_dim"));
        let given = self.arguments.number("network_alpha");
        let alpha = match given {
            Some(0.0) => rank as f64,
            Some(alpha) => alpha,
            None => USUAL_ALPHA,
        };
        let from = match given {
            Some(0.0) => "kohya: network_alpha = 0, which is the rank",
            Some(_) => "kohya: network_alpha",
            None => "kohya's default; the rank would be usual here",
        };
        self.set("lora.alpha", alpha, from);
        if given.is_none() && rank > 1 {
            self.warn(format!(
                "network_alpha is not set: kohya takes 1, which scales the update by 1/{rank}, and so does this file; where \
                 alpha is the rank, as it is by default here, the same learning rate does {rank} times as much"
            ));
        }
        (rank, alpha)
    }

    /// Which component is trained, at which rate.
    fn components(&mut self, is_convolved: bool) {
        let unet_only = self.arguments.flag("network_train_unet_only");
        let text_only = self.arguments.flag("network_train_text_encoder_only");
        let unet_rate = self.arguments.number("unet_lr");
        let (text_rate, is_sdxl) = (self.text_encoder_rate(), self.is_sdxl());
        let encoders = if is_sdxl { &TEXT_ENCODERS[..] } else { &TEXT_ENCODERS[..1] };
        if text_only || unet_rate == Some(0.0) {
            let from = if text_only { "kohya: network_train_text_encoder_only" } else { "kohya: unet_lr = 0" };
            self.set("lora.unet.targets", "none", from);
        } else {
            if is_convolved {
                let layers = ["*.attentions.*", "*.resnets.*", "*.downsamplers.*", "*.upsamplers.*"];
                let patterns: Vec<Value> = layers.into_iter().map(Value::from).collect();
                self.set("lora.unet.targets", patterns, "kohya: conv_dim in network_args");
            } else {
                self.set("lora.unet.targets", "full", "kohya's layers");
            }
            if let Some(rate) = unet_rate {
                self.carry("lora.unet.learning_rate", rate, "unet_lr");
            }
        }
        if unet_only || text_rate == Some(0.0) {
            let from = if unet_only { "kohya: network_train_unet_only" } else { "kohya: text_encoder_lr = 0" };
            encoders.iter().for_each(|(targets, _)| self.set(targets, "none", from));
        } else {
            for (targets, learning_rate) in encoders {
                self.set(targets, "full", "kohya trains it, unless it is told not to");
                if let Some(rate) = text_rate {
                    self.carry(learning_rate, rate, "text_encoder_lr");
                }
            }
        }
    }

    /// Whether the base has two text encoders, as far as the options tell.
    fn is_sdxl(&self) -> bool {
        let base = self.settings.iter().find(|carried| carried.key == "model.base");
        let name = base.and_then(|carried| carried.value.as_str()).unwrap_or_default();
        self.arguments.peek_flag("sdxl") || is_named_xl(name)
    }

    /// Newer versions take a list, of which this kind of network uses the first.
    fn text_encoder_rate(&mut self) -> Option<f64> {
        let value = self.arguments.raw("text_encoder_lr").filter(|value| value.as_str() != Some(""))?;
        let rate = value.as_array().map_or(Some(&value), |rates| rates.first()).and_then(number);
        let others = value.as_array().into_iter().flatten().filter_map(number);
        if rate.is_some_and(|rate| others.into_iter().any(|other| other.to_bits() != rate.to_bits())) {
            self.warn(
                "text_encoder_lr has several rates: kohya takes the first for all text encoders, and so does this file; here each \
                 can have its own",
            );
        }
        if rate.is_none() {
            self.leave("text_encoder_lr", &value, "is not a number");
        }
        rate
    }

    /// Whether convolutions get factors too.
    fn network_args(&mut self, rank: i64, alpha: f64) -> bool {
        let mut blocks = UnetBlocks::new(rank, alpha);
        for (name, text) in self.arguments.pairs("network_args") {
            let place = format!("network_args: {name}");
            let value = Value::from(text.as_str());
            let one = text.parse::<f64>().ok().filter(|number| number.is_finite());
            let list = numbers(&text).filter(|list| list.iter().all(|number| number.is_finite()));
            match (name.as_str(), one, list) {
                ("rank_dropout", Some(part), _) => self.carry_part("lora.rank_dropout", part, &place),
                ("module_dropout", Some(part), _) => self.carry_part("lora.module_dropout", part, &place),
                ("dropout", Some(part), _) => self.carry_part("lora.dropout", part, &place),
                ("loraplus_lr_ratio", Some(ratio), _) => self.carry("optimizer.loraplus_ratio", ratio, &place),
                ("loraplus_unet_lr_ratio" | "loraplus_text_encoder_lr_ratio", Some(ratio), _) => {
                    if !self.has("optimizer.loraplus_ratio") {
                        self.warn(format!("`{name}` is of one component there, of both here"));
                    }
                    self.carry("optimizer.loraplus_ratio", ratio, &place);
                }
                ("conv_dim", Some(dim), _) => blocks.conv_rank = Some(dim as i64).filter(|dim| *dim > 0),
                ("conv_alpha", Some(alpha), _) => blocks.conv_alpha = alpha,
                ("block_dims", _, Some(list)) if list.len() == NUM_BLOCKS => blocks.ranks = Some(list),
                ("block_alphas", _, Some(list)) if list.len() == NUM_BLOCKS => blocks.alphas = Some(list),
                ("conv_block_dims", _, Some(list)) if list.len() == NUM_BLOCKS => blocks.conv_ranks = Some(list),
                ("conv_block_alphas", _, Some(list)) if list.len() == NUM_BLOCKS => blocks.conv_alphas = Some(list),
                ("block_dims" | "block_alphas" | "conv_block_dims" | "conv_block_alphas", _, Some(list)) => {
                    let reason = match list.len() {
                        SDXL_BLOCKS => {
                            "blocks of SDXL are not carried over: `[[lora.unet.blocks]]` names them".to_owned()
                        }
                        count => format!("{count} numbers, and this U-Net has {NUM_BLOCKS} blocks"),
                    };
                    self.leave(&place, &value, reason);
                }
                ("down_lr_weight", ..) if blocks.set_down(lr_weights(&text)) => {}
                ("up_lr_weight", ..) if blocks.set_up(lr_weights(&text)) => {}
                ("mid_lr_weight", Some(weight), _) => blocks.mid_weight = Some(weight),
                ("block_lr_zero_threshold", Some(threshold), _) => blocks.zero_threshold = threshold,
                _ => {
                    let known = super::outside::network_reason(&name);
                    self.leave(&place, &value, known.unwrap_or("not known here, or not a value for it"));
                }
            }
        }
        let entries = blocks.entries();
        if !entries.is_empty() {
            self.set("lora.unet.blocks", entries, "kohya: network_args");
        }
        blocks.is_convolved()
    }

    fn carry_part(&mut self, key: &'static str, part: f64, theirs: &str) {
        if part > 0.0 {
            self.carry(key, part, theirs);
        }
    }
}

//! `[lora]`, checked: which layers get factors, and what these leave out.

use std::path::PathBuf;

use loralei_model::{DropoutRates, matches_path};

use super::checks::Checks;
use crate::config::{BlockConfig, LoraConfig, OptimizerConfig, Targets};

/// The factors of one component of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentPlan {
    /// Which layers; never [`Targets::None`], and patterns are never empty.
    pub targets: Targets,
    /// Rank, 1 or more.
    pub rank: usize,
    /// The update is scaled by alpha / rank; finite, above 0. With rsLoRA it is sqrt(rank) times what the settings say.
    pub alpha: f64,
    /// Number of the subspace that A is fixed to; `None` if A learns.
    pub subspace: Option<usize>,
    /// Full learning rate, before the schedule; finite, above 0.
    pub learning_rate: f64,
    /// Layers that differ; the first that matches counts.
    pub blocks: Vec<BlockPlan>,
}

/// Layers of a component that differ from the others.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockPlan {
    /// Which layers: a pattern over module paths, not empty.
    pub layers: String,
    /// Rank, 1 or more.
    pub rank: usize,
    /// As that of the component.
    pub alpha: f64,
    /// Multiplies the component's learning rate; finite, not negative. 0 gives the layers no factors.
    pub learning_rate_ratio: f64,
}

impl ComponentPlan {
    /// What the learning rate of the layer at `path` is multiplied by.
    pub fn ratio_of(&self, path: &str) -> f64 {
        let block = self.blocks.iter().find(|block| matches_path(&block.layers, path));
        block.map_or(1.0, |block| block.learning_rate_ratio)
    }

    /// The largest rank of all layers that have factors, if every entry of the blocks has some.
    pub fn largest_rank(&self) -> usize {
        let with_factors = self.blocks.iter().filter(|block| block.learning_rate_ratio > 0.0);
        with_factors.map(|block| block.rank).fold(self.rank, usize::max)
    }
}

impl Checks {
    /// Those of the U-Net, then of the text encoders.
    pub(super) fn components(
        &mut self,
        lora: &LoraConfig,
        learning_rate: f64,
    ) -> (Option<ComponentPlan>, [Option<ComponentPlan>; 2]) {
        let (unet, texts) = (&lora.unet, lora.text_encoders());
        for (section, text) in texts {
            if text.targets == Targets::CrossAttention {
                let hint = "use \"attention\", \"full\", \"none\" or a list of patterns";
                self.refuse(&format!("{section}.targets"), "the text encoder has no cross-attention", hint);
            }
        }
        if unet.targets == Targets::None && texts.iter().all(|(_, text)| text.targets == Targets::None) {
            let problem = "nothing to train: the text encoder's targets are \"none\" as well";
            self.refuse("lora.unet.targets", problem, "set one of them to \"attention\" or \"full\"");
        }
        self.rank("lora.rank", lora.rank);
        self.alpha("lora.alpha", lora.alpha);
        let unet = Component {
            section: "lora.unet",
            targets: &unet.targets,
            rank: unet.rank,
            alpha: unet.alpha,
            learning_rate: unet.learning_rate,
            blocks: &unet.blocks,
        };
        let unet = self.component(unet, lora, learning_rate);
        let text_encoders = texts.map(|(section, text)| {
            let text = Component {
                section,
                targets: &text.targets,
                rank: text.rank,
                alpha: text.alpha,
                learning_rate: text.learning_rate,
                blocks: &text.blocks,
            };
            self.component(text, lora, learning_rate)
        });
        (unet, text_encoders)
    }

    fn component(&mut self, own: Component<'_>, lora: &LoraConfig, learning_rate: f64) -> Option<ComponentPlan> {
        let key = |name: &str| format!("{}.{name}", own.section);
        if let Targets::Patterns(patterns) = own.targets
            && (patterns.is_empty() || patterns.iter().any(|pattern| pattern.trim().is_empty()))
        {
            let hint = "name at least one pattern, such as \"*.attn2.to_k\", or use \"none\"";
            self.refuse(&key("targets"), "is an empty list or has an empty pattern", hint);
        }
        if let Some(rank) = own.rank {
            self.rank(&key("rank"), rank);
        }
        self.alpha(&key("alpha"), own.alpha);
        if let Some(rate) = own.learning_rate {
            self.within(&key("learning_rate"), rate, |rate| rate > 0.0, "above 0", 1e-4);
        }
        let rank = own.rank.unwrap_or(lora.rank);
        let alpha = own.alpha.or(lora.alpha);
        // The file's alpha / rank is what every program scales by: alpha / sqrt(rank) is that of alpha sqrt(rank).
        let of_rank = |alpha: Option<f64>, rank: usize| {
            alpha.unwrap_or(rank as f64) * if lora.rslora { (rank as f64).sqrt() } else { 1.0 }
        };
        let mut blocks = Vec::with_capacity(own.blocks.len());
        for (i, block) in own.blocks.iter().enumerate() {
            self.block(&key(&format!("blocks[{i}]")), block);
            let rank = block.rank.unwrap_or(rank);
            blocks.push(BlockPlan {
                layers: block.layers.trim().to_owned(),
                rank,
                alpha: of_rank(block.alpha.or(alpha), rank),
                learning_rate_ratio: block.learning_rate_ratio.unwrap_or(1.0),
            });
        }
        if *own.targets == Targets::None {
            if !blocks.is_empty() {
                self.has_no_effect(&key("blocks"), format!("of {} entries", blocks.len()), "the targets are \"none\"");
            }
            return None;
        }
        if lora.rslora && alpha.is_none() && rank > 1 {
            self.warnings.push(format!(
                "`lora.rslora` without `{}` scales the update by sqrt(rank) = {:.1}, since alpha is then the rank",
                key("alpha"),
                (rank as f64).sqrt()
            ));
        }
        Some(ComponentPlan {
            targets: own.targets.clone(),
            rank,
            alpha: of_rank(alpha, rank),
            subspace: lora.orthogonal,
            learning_rate: own.learning_rate.unwrap_or(learning_rate),
            blocks,
        })
    }

    fn block(&mut self, section: &str, block: &BlockConfig) {
        let key = |name: &str| format!("{section}.{name}");
        if block.layers.trim().is_empty() {
            self.refuse(&key("layers"), "is empty", "name layers by a pattern, such as \"mid_block.*\"");
        }
        if let Some(rank) = block.rank {
            self.rank(&key("rank"), rank);
        }
        self.alpha(&key("alpha"), block.alpha);
        let ratio = block.learning_rate_ratio.unwrap_or(1.0);
        self.within(&key("learning_rate_ratio"), ratio, |ratio| ratio >= 0.0, "0 or above", 0.5);
        if ratio == 0.0 && (block.rank.is_some() || block.alpha.is_some()) {
            let why = "its `learning_rate_ratio` is 0, so those layers get no factors";
            self.has_no_effect(&key("rank"), "or alpha", why);
        }
    }

    pub(super) fn dropout(&mut self, lora: &LoraConfig) -> DropoutRates {
        let LoraConfig { dropout, rank_dropout, module_dropout, .. } = *lora;
        for (key, rate) in
            [("lora.dropout", dropout), ("lora.rank_dropout", rank_dropout), ("lora.module_dropout", module_dropout)]
        {
            self.within(key, rate, |rate| (0.0..1.0).contains(&rate), "from 0 to below 1", 0.1);
        }
        DropoutRates { elements: dropout, ranks: rank_dropout, modules: module_dropout }
    }

    /// What makes no sense where A is fixed. Whether the number fits is known when the base is.
    pub(super) fn orthogonal(&mut self, lora: &LoraConfig, optimizer: &OptimizerConfig) {
        if lora.orthogonal.is_none() {
            return;
        }
        let leave_out = "leave one of both out";
        if lora.start_from.is_some() {
            let problem = "begins with an A of its own, but `lora.orthogonal` fixes A";
            self.refuse_once("lora.start_from", problem, leave_out);
        }
        if optimizer.loraplus_ratio != 1.0 {
            let problem = "is the rate of B against that of A, but `lora.orthogonal` fixes A";
            self.refuse_once("optimizer.loraplus_ratio", problem, "set `optimizer.learning_rate`: it is the rate of B");
        }
        if optimizer.preconditioned {
            let problem = "divides by A A^T, which is a constant where `lora.orthogonal` fixes A";
            self.refuse_once("optimizer.preconditioned", problem, leave_out);
        }
    }

    pub(super) fn start_from(&mut self, lora: &LoraConfig) -> Option<PathBuf> {
        if lora.start_from.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            self.refuse("lora.start_from", "is empty", "name an adapter's file, or leave it out");
        }
        lora.start_from.clone()
    }

    fn rank(&mut self, key: &str, rank: usize) {
        self.at_least_one(key, rank as u64, "4 to 32 is usual");
    }

    fn alpha(&mut self, key: &str, alpha: Option<f64>) {
        if let Some(alpha) = alpha {
            self.within(key, alpha, |alpha| alpha > 0.0, "above 0", 4.0);
        }
    }
}

/// The settings of one component before the shared ones fill the gaps.
#[derive(Clone, Copy)]
struct Component<'a> {
    section: &'static str,
    targets: &'a Targets,
    rank: Option<usize>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
    blocks: &'a [BlockConfig],
}

//! Blocks of the U-Net in kohya's numbering: 12 on the way down, one in the middle, 12 on the way up, whether a model has layers
//! there or not (sd-scripts `networks/lora.py`, `get_block_index`).

use std::f64::consts::PI;

use toml::{Table, Value};

/// Down, middle, up.
pub(super) const NUM_BLOCKS: usize = 25;
const NUM_DOWN: usize = 12;
const MIDDLE: usize = 12;

/// Ranks, alphas and learning rates by block.
pub(super) struct UnetBlocks {
    rank: i64,
    alpha: f64,
    /// Rank of 3x3 convolutions; `None` for no factors there.
    pub(super) conv_rank: Option<i64>,
    pub(super) conv_alpha: f64,
    pub(super) ranks: Option<Vec<f64>>,
    pub(super) alphas: Option<Vec<f64>>,
    pub(super) conv_ranks: Option<Vec<f64>>,
    pub(super) conv_alphas: Option<Vec<f64>>,
    down_weights: Option<Vec<f64>>,
    pub(super) mid_weight: Option<f64>,
    up_weights: Option<Vec<f64>>,
    /// Weights up to it are 0.
    pub(super) zero_threshold: f64,
}

/// What a layer gets.
#[derive(Clone, Copy, PartialEq)]
struct Factors {
    rank: i64,
    alpha: f64,
    learning_rate_ratio: f64,
}

impl UnetBlocks {
    pub(super) fn new(rank: i64, alpha: f64) -> Self {
        Self {
            rank,
            alpha,
            conv_rank: None,
            conv_alpha: 1.0,
            ranks: None,
            alphas: None,
            conv_ranks: None,
            conv_alphas: None,
            down_weights: None,
            mid_weight: None,
            up_weights: None,
            zero_threshold: 0.0,
        }
    }

    pub(super) fn set_down(&mut self, weights: Option<Vec<f64>>) -> bool {
        self.down_weights = weights;
        self.down_weights.is_some()
    }

    pub(super) fn set_up(&mut self, weights: Option<Vec<f64>>) -> bool {
        self.up_weights = weights;
        self.up_weights.is_some()
    }

    pub(super) fn is_convolved(&self) -> bool {
        self.conv_rank.is_some() || self.conv_ranks.is_some()
    }

    /// Entries of `lora.unet.blocks`: none where all blocks are as the U-Net is.
    pub(super) fn entries(&self) -> Vec<Value> {
        let usual = Factors { rank: self.rank, alpha: self.alpha, learning_rate_ratio: 1.0 };
        if !self.differs() {
            let conv = Factors { rank: self.conv_rank.unwrap_or(self.rank), alpha: self.conv_alpha, ..usual };
            let layers = ["*.resnets.*.conv?", "*.downsamplers.*", "*.upsamplers.*"];
            return layers.into_iter().filter(|_| self.is_convolved()).filter_map(|l| conv.entry(l, usual)).collect();
        }
        let mut entries = Vec::new();
        for place in places() {
            let (linear, conv) = (self.of_linear(place.block), self.of_conv(place.block));
            let wanted = match place.kind {
                "attentions" => vec![("*", linear)],
                _ if !self.is_convolved() => Vec::new(),
                "resnets" => vec![("conv?", conv), ("*", linear)],
                _ => vec![("*", conv)],
            };
            let layers = |tail| format!("{}.{}.{}.{tail}", place.part, place.kind, place.number);
            entries.extend(wanted.into_iter().filter_map(|(tail, factors)| factors.entry(&layers(tail), usual)));
        }
        entries
    }

    fn differs(&self) -> bool {
        let lists =
            [&self.ranks, &self.alphas, &self.conv_ranks, &self.conv_alphas, &self.down_weights, &self.up_weights];
        lists.iter().any(|list| list.is_some()) || self.mid_weight.is_some()
    }

    fn of_linear(&self, block: usize) -> Factors {
        let rank = self.ranks.as_ref().map_or(self.rank, |ranks| ranks[block] as i64);
        let alpha = self.alphas.as_ref().map_or(self.alpha, |alphas| alphas[block]);
        Factors { rank, alpha, learning_rate_ratio: self.weight(block) }
    }

    /// No rank is no factors.
    fn of_conv(&self, block: usize) -> Factors {
        let of_all = self.conv_rank.unwrap_or(0);
        let rank = self.conv_ranks.as_ref().map_or(of_all, |ranks| ranks[block] as i64);
        let alpha = self.conv_alphas.as_ref().map_or(self.conv_alpha, |alphas| alphas[block]);
        Factors { rank, alpha, learning_rate_ratio: self.weight(block) }
    }

    fn weight(&self, block: usize) -> f64 {
        let of = |weights: &Option<Vec<f64>>, index: usize| weights.as_ref().and_then(|w| w.get(index)).copied();
        let weight = match block {
            MIDDLE => self.mid_weight,
            ..MIDDLE => of(&self.down_weights, block),
            _ => of(&self.up_weights, block - MIDDLE - 1),
        };
        weight.map_or(1.0, |weight| if weight > self.zero_threshold { weight } else { 0.0 })
    }
}

impl Factors {
    fn entry(self, layers: &str, usual: Self) -> Option<Value> {
        if self == usual {
            return None;
        }
        let mut table = Table::from_iter([("layers".to_owned(), Value::from(layers))]);
        if self.rank <= 0 || self.learning_rate_ratio <= 0.0 {
            table.insert("learning_rate_ratio".to_owned(), 0.0.into());
            return Some(table.into());
        }
        if self.rank != usual.rank {
            table.insert("rank".to_owned(), self.rank.into());
        }
        if self.alpha != usual.alpha {
            table.insert("alpha".to_owned(), self.alpha.into());
        }
        if self.learning_rate_ratio != 1.0 {
            table.insert("learning_rate_ratio".to_owned(), self.learning_rate_ratio.into());
        }
        Some(table.into())
    }
}

/// A module of the U-Net of Stable Diffusion 1 and 2 and its block's number.
struct Place {
    part: String,
    kind: &'static str,
    number: usize,
    block: usize,
}

fn places() -> Vec<Place> {
    let mut all = Vec::new();
    let mut add = |part: &str, kind, numbers: std::ops::Range<usize>, first: usize| {
        all.extend(numbers.map(|number| Place { part: part.to_owned(), kind, number, block: first + number }));
    };
    for i in 0..4 {
        let (part, first) = (format!("down_blocks.{i}"), 1 + 3 * i);
        add(&part, "attentions", 0..if i < 3 { 2 } else { 0 }, first);
        add(&part, "resnets", 0..2, first);
        add(&part, "downsamplers", 0..usize::from(i < 3), first + 2);
    }
    for (kind, count) in [("attentions", 1), ("resnets", 2)] {
        (0..count).for_each(|number| {
            all.push(Place { part: "mid_block".to_owned(), kind, number, block: MIDDLE });
        });
    }
    let mut add = |part: &str, kind, numbers: std::ops::Range<usize>, first: usize| {
        all.extend(numbers.map(|number| Place { part: part.to_owned(), kind, number, block: first + number }));
    };
    for i in 0..4 {
        let (part, first) = (format!("up_blocks.{i}"), MIDDLE + 1 + 3 * i);
        add(&part, "attentions", 0..if i > 0 { 3 } else { 0 }, first);
        add(&part, "resnets", 0..3, first);
        add(&part, "upsamplers", 0..usize::from(i < 3), first + 2);
    }
    all
}

/// Weights of the 12 blocks of one way: numbers, those missing being 1, or a curve such as `cosine+.25`.
pub(super) fn lr_weights(text: &str) -> Option<Vec<f64>> {
    let (name, added) = text.split_once('+').unwrap_or((text, "0"));
    let added: f64 = added.trim().parse().ok()?;
    let last = (NUM_DOWN - 1) as f64;
    let up = (0..NUM_DOWN).map(|i| i as f64 / last);
    let curve: Vec<f64> = match name.trim() {
        "linear" => up.collect(),
        "reverse_linear" => up.rev().collect(),
        "sine" => up.map(|x| libm::sin(PI * x / 2.0)).collect(),
        "cosine" => up.rev().map(|x| libm::sin(PI * x / 2.0)).collect(),
        "zeros" => vec![0.0; NUM_DOWN],
        _ => {
            let mut weights = super::arguments::numbers(text)?;
            weights.resize(NUM_DOWN, 1.0);
            return Some(weights);
        }
    };
    Some(curve.into_iter().map(|weight| weight + added).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_are_those_of_stable_diffusion_1_and_2() {
        let places = places();
        let count = |kind: &str| places.iter().filter(|place| place.kind == kind).count();
        let kinds = ["attentions", "resnets", "downsamplers", "upsamplers"];
        assert_eq!(kinds.map(count), [16, 22, 3, 3]);
        let block = |layers: &str| {
            let found = places.iter().find(|p| format!("{}.{}.{}", p.part, p.kind, p.number) == layers);
            found.map(|place| place.block)
        };
        for (layers, number) in [
            ("down_blocks.0.downsamplers.0", 3),
            ("down_blocks.3.resnets.1", 11),
            ("mid_block.resnets.1", 12),
            ("up_blocks.0.resnets.0", 13),
            ("up_blocks.0.upsamplers.0", 15),
            ("up_blocks.3.attentions.2", 24),
        ] {
            assert_eq!(block(layers), Some(number), "{layers}");
        }
        assert_eq!(block("up_blocks.0.attentions.0"), None);
    }

    #[test]
    fn curves_of_rates_are_kohyas() {
        let linear = lr_weights("linear+.5").unwrap();
        assert_eq!((linear[0], linear[11], linear.len()), (0.5, 1.5, 12));
        let cosine = lr_weights("cosine").unwrap();
        assert!((cosine[0] - 1.0).abs() < 1e-15 && cosine[11] == 0.0 && cosine[1] > cosine[2]);
        assert!((lr_weights("sine").unwrap()[11] - 1.0).abs() < 1e-15);
        assert_eq!(lr_weights("0.5,0.25").unwrap()[..3], [0.5, 0.25, 1.0], "what is missing is 1");
        assert_eq!(lr_weights("steep"), None);
    }

    #[test]
    fn a_convolution_without_a_rank_of_its_block_has_no_factors() {
        let mut blocks = UnetBlocks::new(8, 8.0);
        let mut ranks = vec![0.0; NUM_BLOCKS];
        ranks[1] = 2.0;
        blocks.conv_ranks = Some(ranks);
        let entries = blocks.entries();
        let entry = |layers: &str| {
            let found = entries.iter().find(|entry| entry["layers"].as_str() == Some(layers));
            found.map(|entry| {
                (entry.get("rank").and_then(Value::as_integer), entry.get("learning_rate_ratio").is_some())
            })
        };
        assert!(blocks.is_convolved());
        assert_eq!(entry("down_blocks.0.resnets.0.conv?"), Some((Some(2), false)));
        assert_eq!(entry("down_blocks.0.resnets.1.conv?"), Some((None, true)));
        assert_eq!(entry("down_blocks.0.resnets.1.*"), None, "the projections of a resnet have the U-Net's rank");
    }
}

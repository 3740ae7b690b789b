//! `[lora]`: the adapter, which layers of the base get factors, and how large.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// `[lora]`: the adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the factors: how much the adapter can hold. The file grows in proportion.
    pub rank: usize,
    /// Strength: the update is scaled by alpha / rank. Unset: the rank of each component, so that learning rates keep
    /// their meaning when the rank changes.
    pub alpha: Option<f64>,
    /// Whether the update is scaled by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732), so that large
    /// ranks learn as fast as small ones. The file's alpha is changed to say the same to every program.
    pub rslora: bool,
    /// Part of the numbers between the factors (x A) that is set to 0 at random while training, 0 to below 1; the others grow
    /// by 1 / (1 - dropout).
    pub dropout: f64,
    /// Part of the ranks that is left out for each image at random while training, 0 to below 1; the others grow alike.
    pub rank_dropout: f64,
    /// Chance of each layer to do without its factors in a batch while training, 0 to below 1.
    pub module_dropout: f64,
    /// Longest a layer's update B A * scale may get (Frobenius norm): after each step, factors beyond it shrink. 1 is a start.
    /// It is what keeps several adapters from burning a picture. Unset: no limit.
    pub max_norm: Option<f64>,
    /// Number of the subspace, from 0, that the adapter is trained in: A is then a block of rows of an orthogonal matrix that is
    /// the same for everybody, and only B learns (Orthogonal Adaptation, arXiv 2312.02432). Adapters of the same ranks and
    /// different numbers can be added without disturbing each other. Unset: A is random and learns.
    pub orthogonal: Option<usize>,
    /// Adapter file whose factors the training begins with, instead of new ones. Its layers and ranks must be those that are
    /// trained.
    pub start_from: Option<PathBuf>,
    /// The U-Net, which draws.
    pub unet: UnetConfig,
    /// The text encoder, which reads the caption; the first, where the base has two.
    pub text_encoder: TextEncoderConfig,
    /// The second text encoder, of a base that has two.
    pub text_encoder_2: TextEncoderConfig,
}

/// `[lora.unet]`: factors in the U-Net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnetConfig {
    /// Which layers get factors: `attention` (query, key, value and output of every attention), `cross-attention` (of
    /// those only the ones that look at the text), `full` (attention, feed-forward and the projections around them),
    /// `none`, or a list of patterns over module paths with `*` for any text: `["down_blocks.*.attn2.to_k"]`.
    pub targets: Targets,
    /// Rank in the U-Net. Unset: `lora.rank`.
    pub rank: Option<usize>,
    /// Alpha in the U-Net. Unset: `lora.alpha`.
    pub alpha: Option<f64>,
    /// Learning rate in the U-Net. Unset: `optimizer.learning_rate`.
    pub learning_rate: Option<f64>,
    /// Layers that differ, each a table `[[lora.unet.blocks]]`: `layers`, a pattern over module paths such as `mid_block.*`,
    /// and any of `rank`, `alpha`, `learning_rate_ratio` (times the U-Net's rate; 0 gives those layers no factors). The first
    /// entry that matches a layer counts.
    pub blocks: Vec<BlockConfig>,
}

/// `[lora.text_encoder]`, `[lora.text_encoder_2]`: factors in the text encoder. The number is that of a base's second one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextEncoderConfig {
    /// Which layers get factors: `none`, `attention` (query, key, value and output of every layer), `full` (attention
    /// and feed-forward), or a list of patterns over module paths as for the U-Net.
    pub targets: Targets,
    /// Rank in the text encoder. Unset: `lora.rank`.
    pub rank: Option<usize>,
    /// Alpha in the text encoder. Unset: `lora.alpha`.
    pub alpha: Option<f64>,
    /// Learning rate in the text encoder; half the U-Net's or less is usual. Unset: `optimizer.learning_rate`.
    pub learning_rate: Option<f64>,
    /// Layers that differ, as for the U-Net.
    pub blocks: Vec<BlockConfig>,
    /// Part of the run, above 0 and up to 1, after which the text encoder stays as it is: it learns faster than the U-Net and
    /// overfits first.
    pub stop_after: f64,
}

/// An entry of `blocks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockConfig {
    /// Which layers: `*` for any text, `?` for one character, over the whole module path.
    pub layers: String,
    /// Their rank. Unset: the component's.
    pub rank: Option<usize>,
    /// Their alpha. Unset: the component's alpha; where that is unset too, their rank.
    pub alpha: Option<f64>,
    /// Their learning rate as a multiple of the component's. Unset: 1.
    pub learning_rate_ratio: Option<f64>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 4,
            alpha: None,
            rslora: false,
            dropout: 0.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            max_norm: None,
            orthogonal: None,
            start_from: None,
            unet: UnetConfig::default(),
            text_encoder: TextEncoderConfig::default(),
            text_encoder_2: TextEncoderConfig::default(),
        }
    }
}

impl LoraConfig {
    /// The sections of the text encoders, in the order of a base.
    pub(crate) fn text_encoders(&self) -> [(&'static str, &TextEncoderConfig); 2] {
        [("lora.text_encoder", &self.text_encoder), ("lora.text_encoder_2", &self.text_encoder_2)]
    }
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self { targets: Targets::Attention, rank: None, alpha: None, learning_rate: None, blocks: Vec::new() }
    }
}

impl Default for TextEncoderConfig {
    fn default() -> Self {
        Self {
            targets: Targets::None,
            rank: None,
            alpha: None,
            learning_rate: None,
            blocks: Vec::new(),
            stop_after: 1.0,
        }
    }
}

/// Which layers of a component get factors. In TOML the name of a set or a list of patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// No layer: the component stays frozen.
    None,
    /// The attention projections.
    Attention,
    /// The projections of those attentions that look at the text.
    CrossAttention,
    /// Attention, feed-forward and, in the U-Net, the projections around them.
    Full,
    /// Layers whose module path matches one of these patterns.
    Patterns(Vec<String>),
}

impl Targets {
    const SETS: [(&'static str, Targets); 4] = [
        ("none", Targets::None),
        ("attention", Targets::Attention),
        ("cross-attention", Targets::CrossAttention),
        ("full", Targets::Full),
    ];
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Targets::Patterns(patterns) = self {
            return patterns.serialize(serializer);
        }
        let name = Self::SETS.iter().find(|(_, set)| set == self).map_or("none", |(name, _)| name);
        serializer.serialize_str(name)
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TargetsVisitor)
    }
}

struct TargetsVisitor;

impl<'de> de::Visitor<'de> for TargetsVisitor {
    type Value = Targets;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("\"none\", \"attention\", \"cross-attention\", \"full\" or a list of patterns")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Targets, E> {
        let set = Targets::SETS.into_iter().find(|(name, _)| *name == value);
        set.map(|(_, set)| set).ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Targets, A::Error> {
        let mut patterns = Vec::new();
        while let Some(pattern) = sequence.next_element()? {
            patterns.push(pattern);
        }
        Ok(Targets::Patterns(patterns))
    }
}

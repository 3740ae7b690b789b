//! The attention module of the U-Net: a group norm, a projection, transformer blocks over the pixels as tokens, a
//! projection back. Checked against diffusers' `Transformer2DModel` and `BasicTransformerBlock`.

use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::ops::{self, ConvGeometry};
use crate::weights::{Result, Weights};
use candle_core::Tensor;

/// `attn1` (to itself) or `attn2` (to the text).
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    num_heads: usize,
}

impl Attention {
    fn new(weights: &Weights, channels: usize, context: usize, num_heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: weights.at("to_q").linear(channels, channels, false)?,
            to_k: weights.at("to_k").linear(context, channels, false)?,
            to_v: weights.at("to_v").linear(context, channels, false)?,
            to_out: weights.at("to_out.0").linear(channels, channels, true)?,
            num_heads,
        })
    }

    /// `xs`: (b, l, c), `context`: (b, keys, context) -> (b, l, c)
    fn forward(&self, xs: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(xs)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward(&ops::attention(&q, &k, &v, self.num_heads, false)?)
    }
}

/// `ff`: a gated feed-forward of four times the width.
struct FeedForward {
    proj: Linear, // net.0.proj
    out: Linear,  // net.2
}

impl FeedForward {
    fn new(weights: &Weights, channels: usize) -> Result<Self> {
        Ok(Self {
            proj: weights.at("net.0.proj").linear(channels, 8 * channels, true)?,
            out: weights.at("net.2").linear(4 * channels, channels, true)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.out.forward(&ops::geglu(&self.proj.forward(xs)?)?)
    }
}

/// `transformer_blocks.N`.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(weights: &Weights, channels: usize, context: usize, num_heads: usize) -> Result<Self> {
        let norm = |name| weights.at(name).layer_norm(channels, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(&weights.at("attn1"), channels, channels, num_heads)?,
            norm2: norm("norm2")?,
            attn2: Attention::new(&weights.at("attn2"), channels, context, num_heads)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(&weights.at("ff"), channels)?,
        })
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = (self.attn1.forward(&normed, &normed)? + xs)?;
        let xs = (self.attn2.forward(&self.norm2.forward(&xs)?, context)? + xs)?;
        self.ff.forward(&self.norm3.forward(&xs)?)? + xs
    }
}

/// SD 1.x projects by 1x1 convolutions, SD 2.x by linear layers: the same numbers, but other shapes in the file.
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn new(weights: &Weights, channels: usize, linear: bool) -> Result<Self> {
        Ok(if linear {
            Self::Linear(weights.linear(channels, channels, true)?)
        } else {
            Self::Conv(weights.conv2d(channels, channels, 1, ConvGeometry::same(1))?)
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Linear(linear) => linear.forward(xs),
            Self::Conv(conv) => conv.forward(xs),
        }
    }
}

/// `attentions.N`.
pub(crate) struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

/// What decides a transformer's shape.
#[derive(Clone, Copy)]
pub(crate) struct TransformerShape {
    pub(crate) channels: usize,
    /// Width of the text.
    pub(crate) context: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_blocks: usize,
    pub(crate) groups: usize,
    pub(crate) linear_projection: bool,
}

impl Transformer {
    pub(crate) fn new(weights: &Weights, shape: TransformerShape) -> Result<Self> {
        let TransformerShape { channels, context, num_heads, num_blocks, groups, linear_projection } = shape;
        let block = |i| {
            TransformerBlock::new(&weights.at(format_args!("transformer_blocks.{i}")), channels, context, num_heads)
        };
        Ok(Self {
            norm: weights.at("norm").group_norm(channels, groups, 1e-6)?,
            proj_in: Projection::new(&weights.at("proj_in"), channels, linear_projection)?,
            transformer_blocks: (0..num_blocks).map(block).collect::<Result<_>>()?,
            proj_out: Projection::new(&weights.at("proj_out"), channels, linear_projection)?,
        })
    }

    /// `xs`: (b, h, w, c), `context`: (b, keys, context) -> (b, h, w, c)
    pub(crate) fn forward(&self, xs: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let (b, h, w, c) = xs.dims4()?;
        let mut hidden = self.proj_in.forward(&self.norm.forward(xs)?)?.reshape((b, h * w, c))?; // (b, h w, c)
        for block in &self.transformer_blocks {
            hidden = block.forward(&hidden, context)?;
        }
        self.proj_out.forward(&hidden.reshape((b, h, w, c))?)? + xs // (b, h, w, c)
    }
}

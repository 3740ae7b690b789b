//! CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): a causal pre-norm transformer over at most 77 tokens.
//! Checked against transformers' `CLIPTextModel`.

use crate::config::TextEncoderConfig;
use crate::layers::{LayerNorm, Linear};
use crate::ops::{self, Activation};
use crate::unet::{Checkpointing, Unit};
use crate::weights::{Result, Weights};
use candle_core::{DType, Tensor};

/// `self_attn`.
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    num_heads: usize,
}

impl SelfAttention {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let (q, k, v) = (self.q_proj.forward(xs)?, self.k_proj.forward(xs)?, self.v_proj.forward(xs)?);
        self.out_proj.forward(&ops::attention(&q, &k, &v, self.num_heads, true)?)
    }
}

/// `mlp`.
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    act: Activation,
}

impl Mlp {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.fc2.forward(&ops::activation(&self.fc1.forward(xs)?, self.act)?)
    }
}

/// `encoder.layers.N`.
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl EncoderLayer {
    fn new(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        let (width, inner, attention) = (config.hidden_size, config.intermediate_size, weights.at("self_attn"));
        let projection = |name| attention.at(name).linear(width, width, true);
        Ok(Self {
            layer_norm1: weights.at("layer_norm1").layer_norm(width, config.layer_norm_eps)?,
            self_attn: SelfAttention {
                q_proj: projection("q_proj")?,
                k_proj: projection("k_proj")?,
                v_proj: projection("v_proj")?,
                out_proj: projection("out_proj")?,
                num_heads: config.num_attention_heads,
            },
            layer_norm2: weights.at("layer_norm2").layer_norm(width, config.layer_norm_eps)?,
            mlp: Mlp {
                fc1: weights.at("mlp.fc1").linear(width, inner, true)?,
                fc2: weights.at("mlp.fc2").linear(inner, width, true)?,
                act: if config.hidden_act == "gelu" { Activation::Gelu } else { Activation::QuickGelu },
            },
        })
    }

    /// (b, l, d) -> (b, l, d)
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        let xs = (self.self_attn.forward(&self.layer_norm1.forward(xs)?)? + xs)?;
        self.mlp.forward(&self.layer_norm2.forward(&xs)?)? + xs
    }
}

/// One text encoder.
pub struct TextEncoder {
    token_embedding: Tensor,    // (vocabulary, d)
    position_embedding: Tensor, // (77, d)
    layers: Vec<Unit>,
    final_layer_norm: LayerNorm,
}

impl TextEncoder {
    /// Builds it from weights whose paths begin below `text_model.`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        let (width, embeddings) = (config.hidden_size, weights.at("embeddings"));
        let layer = |i| {
            let weights = weights.at(format_args!("encoder.layers.{i}"));
            let layer = EncoderLayer::new(&weights, config)?;
            Ok(Unit::new(&weights, move |x| layer.forward(&x[0])))
        };
        let positions = config.max_position_embeddings;
        Ok(Self {
            token_embedding: embeddings.at("token_embedding").tensor("weight", &[config.vocab_size, width])?,
            position_embedding: embeddings.at("position_embedding").tensor("weight", &[positions, width])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: weights.at("final_layer_norm").layer_norm(width, config.layer_norm_eps)?,
        })
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Tokens that it takes at once: 77.
    pub fn num_positions(&self) -> usize {
        self.position_embedding.dims().first().copied().unwrap_or(1)
    }

    /// `input_ids`: (b, l) i64, l at most 77, every id below the vocabulary's size. Returns the last hidden state after
    /// the final norm: (b, l, d).
    ///
    /// # Errors
    /// An id out of range, or too many tokens.
    pub fn forward(&self, input_ids: &Tensor, checkpointing: Checkpointing) -> candle_core::Result<Tensor> {
        self.forward_without_last(input_ids, 0, checkpointing)
    }

    /// The same, but leaving out the last `num_left_out` layers: 1 is what is called clip skip 2. The final norm stays.
    ///
    /// # Errors
    /// As [`TextEncoder::forward`].
    pub fn forward_without_last(
        &self,
        input_ids: &Tensor,
        num_left_out: usize,
        checkpointing: Checkpointing,
    ) -> candle_core::Result<Tensor> {
        let (b, tokens) = input_ids.dims2()?;
        let ids = input_ids.to_dtype(DType::I64)?.flatten_all()?;
        let vocabulary = self.token_embedding.dim(0)? as i64;
        if let Some(id) = ids.to_vec1::<i64>()?.into_iter().find(|id| *id < 0 || *id >= vocabulary) {
            candle_core::bail!("token {id} is not in a vocabulary of {vocabulary}");
        }
        let ids = ids.to_device(self.token_embedding.device())?;
        let words = self.token_embedding.index_select(&ids, 0)?.reshape((b, tokens, ()))?; // (b, l, d)
        let mut hidden = words.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)?;
        for layer in &self.layers[..self.layers.len().saturating_sub(num_left_out)] {
            hidden = layer.forward(&[&hidden], checkpointing)?;
        }
        self.final_layer_norm.forward(&hidden)
    }
}

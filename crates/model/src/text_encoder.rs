//! CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): a causal pre-norm transformer over at most 77 tokens.
//! Checked against transformers' `CLIPTextModel`.

use crate::conditioning::EncodedText;
use crate::config::{TextEncoderConfig, TextOutput};
use crate::error::ModelError;
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
    /// Layers that the vectors of tokens come from.
    num_context_layers: usize,
    final_layer_norm: Option<LayerNorm>,
    pooling: Option<Pooling>,
}

/// How the text becomes one vector.
struct Pooling {
    text_projection: Linear,
    /// The token at whose first place the text as a whole is read.
    end: i64,
}

impl TextEncoder {
    /// Builds it from weights whose paths begin below `text_model.`, as far as `output` needs it. `end` is the end mark of its
    /// tokenizer: what configurations say of it is historical.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn new(weights: &Weights, config: &TextEncoderConfig, output: TextOutput, end: i64) -> Result<Self> {
        let (width, embeddings) = (config.hidden_size, weights.at("embeddings"));
        let layer = |i| {
            let weights = weights.at(format_args!("encoder.layers.{i}"));
            let layer = EncoderLayer::new(&weights, config)?;
            Ok(Unit::new(&weights, move |x| layer.forward(&x[0])))
        };
        let positions = config.max_position_embeddings;
        let num_context_layers = config.num_hidden_layers.saturating_sub(output.num_skipped());
        let num_layers = if output.is_pooled() { config.num_hidden_layers } else { num_context_layers };
        let has_norm = output != TextOutput::Penultimate;
        let norm = has_norm.then(|| weights.at("final_layer_norm").layer_norm(width, config.layer_norm_eps));
        let pooling = output.is_pooled().then(|| {
            let num_out = config.projection_dim.unwrap_or(width);
            let text_projection = weights.at("text_projection").linear_without_factors(width, num_out)?;
            Ok::<_, ModelError>(Pooling { text_projection, end })
        });
        Ok(Self {
            token_embedding: embeddings.at("token_embedding").tensor("weight", &[config.vocab_size, width])?,
            position_embedding: embeddings.at("position_embedding").tensor("weight", &[positions, width])?,
            layers: (0..num_layers).map(layer).collect::<Result<_>>()?,
            num_context_layers,
            final_layer_norm: norm.transpose()?,
            pooling: pooling.transpose()?,
        })
    }

    /// Whether a tensor of its file is of no use to `output`.
    pub(crate) fn leaves_out(name: &str, config: &TextEncoderConfig, output: TextOutput) -> bool {
        let is_below = |path: &String| name.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.'));
        Self::unread_paths(config, output).iter().any(is_below) || name.ends_with("position_ids")
    }

    /// The parts that are of no use to `output`: the last layer and what comes after it, where nobody reads them.
    pub(crate) fn unread_paths(config: &TextEncoderConfig, output: TextOutput) -> Vec<String> {
        let last = format!("encoder.layers.{}", config.num_hidden_layers.saturating_sub(1));
        match output {
            TextOutput::Penultimate => vec![last, "final_layer_norm".to_owned(), "text_projection".to_owned()],
            TextOutput::LastNormed | TextOutput::PenultimateAndPooled => Vec::new(),
        }
    }

    /// Number of layers that the vectors of tokens come from.
    pub fn num_layers(&self) -> usize {
        self.num_context_layers
    }

    /// Tokens that it takes at once: 77.
    pub fn num_positions(&self) -> usize {
        self.position_embedding.dims().first().copied().unwrap_or(1)
    }

    /// `input_ids`: (b, l) i64, l at most 77, every id below the vocabulary's size. Returns (b, l, d) and, if it pools,
    /// (b, p). The context leaves out the last `num_left_out` layers more than usual: 1 is what is called clip skip 2. The
    /// final norm stays where there is one.
    ///
    /// # Errors
    /// An id out of range, too many tokens, a text without an end mark.
    pub fn forward(
        &self,
        input_ids: &Tensor,
        num_left_out: usize,
        checkpointing: Checkpointing,
    ) -> candle_core::Result<EncodedText> {
        let ids = self.checked(input_ids)?;
        let mut hidden = self.embed(&ids, input_ids.dims2()?)?; // (b, l, d)
        let (seen, rest) = self.layers.split_at(self.num_context_layers.saturating_sub(num_left_out));
        for layer in seen {
            hidden = layer.forward(&[&hidden], checkpointing)?;
        }
        let normed = |hidden: &Tensor| match &self.final_layer_norm {
            Some(norm) => norm.forward(hidden),
            None => Ok(hidden.clone()),
        };
        let Some(pooling) = &self.pooling else { return Ok(EncodedText { context: normed(&hidden)?, pooled: None }) };
        let context = hidden.clone();
        for layer in rest {
            hidden = layer.forward(&[&hidden], checkpointing)?;
        }
        let pooled = pooling.pool(&normed(&hidden)?, &ids)?;
        Ok(EncodedText { context, pooled: Some(pooled) })
    }

    /// `input_ids`: (b, 77 n), n chunks of which each is a text of its own to the encoder, as A1111 has it. Returns
    /// (b, 77 n, d) and the pooled vector of the first chunk.
    ///
    /// # Errors
    /// As [`TextEncoder::forward`].
    pub fn forward_chunks(&self, input_ids: &Tensor, checkpointing: Checkpointing) -> candle_core::Result<EncodedText> {
        let ((b, length), positions) = (input_ids.dims2()?, self.num_positions());
        let num_chunks = length / positions;
        let text = self.forward(&input_ids.reshape((b * num_chunks, positions))?, 0, checkpointing)?; // (b n, 77, d)
        let width = text.context.dim(2)?;
        let first = |pooled: Tensor| pooled.reshape((b, num_chunks, ()))?.narrow(1, 0, 1)?.squeeze(1); // (b, p)
        Ok(EncodedText {
            context: text.context.reshape((b, length, width))?,
            pooled: text.pooled.map(first).transpose()?,
        })
    }

    /// The ids of (b, l), row after row.
    fn checked(&self, input_ids: &Tensor) -> candle_core::Result<Vec<i64>> {
        let ids = input_ids.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        let vocabulary = self.token_embedding.dim(0)? as i64;
        match ids.iter().find(|id| **id < 0 || **id >= vocabulary) {
            Some(id) => candle_core::bail!("token {id} is not in a vocabulary of {vocabulary}"),
            None => Ok(ids),
        }
    }

    fn embed(&self, ids: &[i64], (b, tokens): (usize, usize)) -> candle_core::Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), self.token_embedding.device())?;
        let words = self.token_embedding.index_select(&ids, 0)?.reshape((b, tokens, ()))?; // (b, l, d)
        words.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)
    }
}

impl Pooling {
    /// `hidden`: (b, l, d), with the `ids` (b l) that it is of -> (b, p)
    fn pool(&self, hidden: &Tensor, ids: &[i64]) -> candle_core::Result<Tensor> {
        let (_, l, width) = hidden.dims3()?;
        let mut rows = Vec::with_capacity(ids.len() / l);
        for (text, ids) in ids.chunks(l).enumerate() {
            let Some(end) = ids.iter().position(|id| *id == self.end) else {
                candle_core::bail!("a text without the end mark {}", self.end)
            };
            rows.push((text * l + end) as u32);
        }
        let rows = Tensor::from_slice(&rows, rows.len(), hidden.device())?;
        self.text_projection.forward(&hidden.reshape(((), width))?.index_select(&rows, 0)?) // (b, p)
    }
}

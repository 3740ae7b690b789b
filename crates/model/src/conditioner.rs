//! From a prompt to what the U-Net is told: chunks of 75 tokens, encoded one by one and laid side by side, each token's
//! vector multiplied by its weight.

use crate::conditioning::EncodedText;
use crate::error::ModelError;
use crate::prompt::{PromptPart, parse_prompt};
use crate::text_encoder::TextEncoder;
use crate::tokenizer::Tokenizer;
use crate::unet::Checkpointing;
use crate::weights::Result;
use candle_core::{Device, Tensor};

/// One text encoder with its tokenizer.
#[derive(Clone, Copy)]
pub struct TextStage<'a> {
    /// Cuts text into tokens.
    pub tokenizer: &'a Tokenizer,
    /// Makes vectors of them.
    pub encoder: &'a TextEncoder,
}

/// All text encoders of a base, and how their output is taken.
pub struct Conditioner<'a> {
    stages: Vec<TextStage<'a>>,
    clip_skip: usize,
    absent_is_zeros: bool,
}

/// A picture's prompt and what it must not show, encoded to the same length.
#[derive(Clone, Debug)]
pub struct EncodedPrompts {
    /// (1, 77 n, d).
    pub prompt: EncodedText,
    /// (1, 77 n, d).
    pub negative: EncodedText,
}

/// Token ids with a weight each, cut into chunks.
type Chunks = Vec<Vec<(i64, f64)>>;

impl<'a> Conditioner<'a> {
    /// `clip_skip` as A1111 counts it: 1 takes what the base usually takes of its text encoders, 2 leaves out a layer more.
    ///
    /// # Errors
    /// [`ModelError::ClipSkip`] if there are not that many layers.
    pub fn new(stages: Vec<TextStage<'a>>, clip_skip: usize) -> Result<Self> {
        let num_layers = stages.iter().map(|stage| stage.encoder.num_layers()).min().unwrap_or(1);
        if clip_skip == 0 || clip_skip > num_layers {
            return Err(ModelError::ClipSkip { clip_skip, num_layers });
        }
        Ok(Self { stages, clip_skip, absent_is_zeros: false })
    }

    /// The same; if `absent_is_zeros`, zeros stand for a negative prompt that is not given, instead of the empty text:
    /// [`crate::Base::zeros_for_empty_prompt`].
    #[must_use]
    pub fn with_zeros_for_absent(self, absent_is_zeros: bool) -> Self {
        Self { absent_is_zeros, ..self }
    }

    /// Encodes both texts; the shorter one gets empty chunks.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn encode(&self, prompt: &str, negative: Option<&str>) -> Result<EncodedPrompts> {
        let [wanted, unwanted] = [self.chunks(prompt)?, self.chunks(negative.unwrap_or_default())?];
        let num_chunks = wanted.iter().chain(&unwanted).map(Vec::len).max().unwrap_or(1);
        let prompt = self.encode_chunks(wanted, num_chunks)?;
        let negative = if negative.is_none() && self.absent_is_zeros {
            prompt.map(Tensor::zeros_like)?
        } else {
            self.encode_chunks(unwanted, num_chunks)?
        };
        Ok(EncodedPrompts { prompt, negative })
    }

    /// Encodes one text, to as many chunks as it needs: (1, 77 n, d).
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub(crate) fn encode_alone(&self, text: &str) -> Result<EncodedText> {
        let chunks = self.chunks(text)?;
        let num_chunks = chunks.iter().map(Vec::len).max().unwrap_or(1);
        self.encode_chunks(chunks, num_chunks)
    }

    /// Of each stage: tokenizers may differ in how many tokens they make of a text.
    fn chunks(&self, text: &str) -> Result<Vec<Chunks>> {
        self.stages.iter().map(|stage| chunks(stage.tokenizer, text)).collect()
    }

    fn encode_chunks(&self, of_stages: Vec<Chunks>, num_chunks: usize) -> Result<EncodedText> {
        let of_stage = |(stage, mut chunks): (&TextStage, Chunks)| {
            chunks.resize(num_chunks, Vec::new());
            self.encode_with(stage, &chunks)
        };
        let encoded = self.stages.iter().zip(of_stages).map(of_stage);
        Ok(EncodedText::side_by_side(&encoded.collect::<Result<Vec<_>>>()?)?)
    }

    /// The text as a whole is that of its first chunk, as A1111 has it.
    fn encode_with(&self, stage: &TextStage, chunks: &Chunks) -> Result<EncodedText> {
        let (mut contexts, mut pooled) = (Vec::with_capacity(chunks.len()), None);
        for chunk in chunks {
            let ids: Vec<i64> = chunk.iter().map(|(id, _)| *id).collect();
            let input_ids = stage.tokenizer.with_marks(&ids);
            let positions = input_ids.len();
            let input_ids = Tensor::from_vec(input_ids, (1, positions), &Device::Cpu)?;
            let text = stage.encoder.forward(&input_ids, self.clip_skip - 1, Checkpointing::None)?; // (1, 77, d)
            contexts.push(weighted(&text.context, chunk)?);
            pooled = pooled.or(text.pooled);
        }
        Ok(EncodedText { context: Tensor::cat(&contexts, 1)?, pooled })
    }
}

/// At least one chunk, each of at most as many tokens as fit.
fn chunks(tokenizer: &Tokenizer, text: &str) -> Result<Chunks> {
    let mut chunks: Chunks = vec![Vec::new()];
    for part in parse_prompt(text) {
        match part {
            PromptPart::Break => chunks.push(Vec::new()),
            PromptPart::Text(piece) => {
                for id in tokenizer.ids(&piece.text)? {
                    if chunks.last().is_none_or(|chunk| chunk.len() >= tokenizer.room()) {
                        chunks.push(Vec::new());
                    }
                    if let Some(chunk) = chunks.last_mut() {
                        chunk.push((id, piece.weight));
                    }
                }
            }
        }
    }
    Ok(chunks)
}

/// Each token's vector times its weight; then all together so that their mean stays, as A1111 has it: otherwise the
/// weights of single words would change the strength of the whole prompt. Marks and padding weigh 1.
fn weighted(vectors: &Tensor, chunk: &[(i64, f64)]) -> candle_core::Result<Tensor> {
    if chunk.iter().all(|(_, weight)| *weight == 1.0) {
        return Ok(vectors.clone());
    }
    let (_, positions, _) = vectors.dims3()?;
    let mut weights = vec![1f32; positions];
    weights.iter_mut().skip(1).zip(chunk).for_each(|(weight, (_, of_token))| *weight = *of_token as f32);
    let weights = Tensor::from_vec(weights, (1, positions, 1), vectors.device())?.to_dtype(vectors.dtype())?;
    let changed = vectors.broadcast_mul(&weights)?; // (1, 77, d)
    // On the processor: some cards have no f64.
    let mean =
        |xs: &Tensor| xs.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F64)?.mean_all()?.to_scalar::<f64>();
    let (before, after) = (mean(vectors)?, mean(&changed)?);
    if after == 0.0 { Ok(changed) } else { changed * (before / after) }
}

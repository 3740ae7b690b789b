//! The data of a run as the network takes it, computed once: latents by the autoencoder, captions by the tokenizer and,
//! where the text encoder stays frozen, by the text encoder. Each network is dropped when its part is done.
//!
//! Latents are kept as mean and standard deviation, so that every step can draw a sample of its own.

use candle_core::{Device, Tensor};
use loralei_data::{Folder, Sample};
use loralei_model::{Base, Checkpointing, Tokens};
use std::collections::BTreeMap;

use crate::error::TrainError;
use crate::event::Event;
use crate::network::{Text, tensor};
use loralei_model::Draw;

/// One sample's posterior: (4, h, w) each, f32, not yet scaled.
struct Latents {
    mean: Tensor,
    std: Tensor,
}

/// One caption.
enum Caption {
    /// Token ids (77) of each encoder.
    Tokens(Vec<Vec<i64>>),
    /// (77, d).
    Encoded(Tensor),
}

/// The whole data set.
pub struct EncodedData {
    latents: Vec<Latents>,
    scaling_factor: f64,
    captions: BTreeMap<String, Caption>,
    caption_of: Vec<String>,
    weights: Vec<f32>,
    /// Captions of the prior, not of any image.
    prior: Vec<String>,
}

impl EncodedData {
    /// Encodes every sample of `folder` at a size in pixels; captions too, with those of the `prior`, unless the text
    /// encoder is trained: then they stay tokens.
    ///
    /// # Errors
    /// An image that cannot be read, a network that cannot be loaded.
    pub fn new(
        base: &Base,
        folder: &Folder,
        (width_px, height_px): (usize, usize),
        text_is_trained: bool,
        prior: Vec<String>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let (latents, scaling_factor) = encode_images(base, &folder.samples, (width_px, height_px), events)?;
        let caption_of: Vec<String> = folder.samples.iter().map(|sample| sample.caption.clone()).collect();
        let tokens = tokenize(base, caption_of.iter().chain(&prior), events)?;
        let captions = if text_is_trained { keep_tokens(tokens) } else { encode_captions(base, tokens, events)? };
        let weights = folder.samples.iter().map(|sample| sample.weight).collect();
        Ok(Self { latents, scaling_factor, captions, caption_of, weights, prior })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.latents.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.latents.is_empty()
    }

    /// Scaled latents of samples `indices`, (b, 4, h, w): a draw from each posterior that depends only on the place.
    ///
    /// # Errors
    /// If the samples differ in size.
    pub fn latents(&self, indices: &[usize], draw: Draw) -> Result<Tensor, TrainError> {
        let stack = |pick: fn(&Latents) -> &Tensor| {
            Tensor::stack(&indices.iter().map(|i| pick(&self.latents[*i])).collect::<Vec<_>>(), 0)
        };
        let (mean, std) = (stack(|l| &l.mean)?, stack(|l| &l.std)?); // (b, 4, h, w)
        let noise = tensor(draw.standard_normal(mean.elem_count()), mean.shape())?;
        Ok(((mean + (std * noise)?)? * self.scaling_factor)?)
    }

    /// The captions of samples `indices`.
    ///
    /// # Errors
    /// If captions differ in length, which the tokenizer excludes.
    pub fn text(&self, indices: &[usize]) -> Result<Text, TrainError> {
        self.text_of(&indices.iter().map(|i| &self.caption_of[*i]).collect::<Vec<_>>())
    }

    /// `b` captions of the prior, drawn at a place; `None` if there are none.
    ///
    /// # Errors
    /// As [`EncodedData::text`].
    pub fn prior_text(&self, b: usize, draw: Draw) -> Result<Option<Text>, TrainError> {
        if self.prior.is_empty() {
            return Ok(None);
        }
        let drawn = draw.integers(0..self.prior.len() as i64, b);
        self.text_of(&drawn.iter().map(|i| &self.prior[*i as usize]).collect::<Vec<_>>()).map(Some)
    }

    fn text_of(&self, captions: &[&String]) -> Result<Text, TrainError> {
        let b = captions.len();
        let captions: Vec<&Caption> = captions.iter().filter_map(|caption| self.captions.get(*caption)).collect();
        let encoded: Vec<&Tensor> =
            captions.iter().filter_map(|c| if let Caption::Encoded(text) = c { Some(text) } else { None }).collect();
        if encoded.len() == b {
            return Ok(Text::Encoded(Tensor::stack(&encoded, 0)?)); // (b, 77, d)
        }
        let tokens: Vec<&Vec<Vec<i64>>> =
            captions.iter().filter_map(|c| if let Caption::Tokens(ids) = c { Some(ids) } else { None }).collect();
        let num_encoders = tokens.first().map_or(0, |ids| ids.len());
        let of_encoder = |e: usize| {
            let ids: Vec<i64> = tokens.iter().flat_map(|ids| ids[e].iter().copied()).collect();
            Tensor::from_vec(ids, (b, tokens[0][e].len()), &Device::Cpu) // (b, 77)
        };
        Ok(Text::Tokens((0..num_encoders).map(of_encoder).collect::<candle_core::Result<_>>()?))
    }

    /// How much each of samples `indices` counts.
    pub fn weights(&self, indices: &[usize]) -> Vec<f32> {
        indices.iter().map(|i| self.weights[*i]).collect()
    }
}

fn encode_images(
    base: &Base,
    samples: &[Sample],
    (width_px, height_px): (usize, usize),
    events: &mut dyn FnMut(Event),
) -> Result<(Vec<Latents>, f64), TrainError> {
    let vae = base.load_vae()?;
    events(Event::PhaseStarted { name: "encoding images".into(), total: Some(samples.len() as u64) });
    let mut latents = Vec::with_capacity(samples.len());
    for (i, sample) in samples.iter().enumerate() {
        let (pixels, _) = sample.pixels(width_px as u32, height_px as u32)?;
        let posterior = vae.encode(&tensor(pixels.data, (1, height_px, width_px, 3))?)?;
        let (mean, std) = (posterior.mean.squeeze(0)?, posterior.std.squeeze(0)?); // (4, h, w)
        let norm = mean.abs()?.sum_all()?.to_scalar::<f32>()? + std.abs()?.sum_all()?.to_scalar::<f32>()?;
        if !norm.is_finite() {
            return Err(TrainError::NonFiniteLatents { path: sample.path.clone() });
        }
        latents.push(Latents { mean, std });
        events(Event::PhaseProgress { done: i as u64 + 1 });
    }
    Ok((latents, vae.scaling_factor()))
}

/// Every different caption as tokens; what does not fit into the encoder is said.
fn tokenize<'a>(
    base: &Base,
    captions: impl Iterator<Item = &'a String>,
    events: &mut dyn FnMut(Event),
) -> Result<BTreeMap<String, Vec<Tokens>>, TrainError> {
    let tokenizers = (0..base.num_text_encoders()).map(|i| base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
    let mut tokens = BTreeMap::new();
    for caption in captions {
        if tokens.contains_key(caption) {
            continue;
        }
        let of_each = tokenizers.iter().map(|t| t.encode(caption)).collect::<Result<Vec<_>, _>>()?;
        if let Some(num_cut) = of_each.iter().map(|t| t.num_cut).max().filter(|n| *n > 0) {
            let message = format!("the last {num_cut} tokens do not fit and are not learned from: caption {caption:?}");
            events(Event::Warning { message });
        }
        tokens.insert(caption.clone(), of_each);
    }
    Ok(tokens)
}

fn keep_tokens(tokens: BTreeMap<String, Vec<Tokens>>) -> BTreeMap<String, Caption> {
    let ids = |tokens: Vec<Tokens>| Caption::Tokens(tokens.into_iter().map(|t| t.input_ids).collect());
    tokens.into_iter().map(|(caption, tokens)| (caption, ids(tokens))).collect()
}

fn encode_captions(
    base: &Base,
    tokens: BTreeMap<String, Vec<Tokens>>,
    events: &mut dyn FnMut(Event),
) -> Result<BTreeMap<String, Caption>, TrainError> {
    let encoders =
        (0..base.num_text_encoders()).map(|i| base.load_text_encoder(i, None)).collect::<Result<Vec<_>, _>>()?;
    events(Event::PhaseStarted { name: "encoding captions".into(), total: Some(tokens.len() as u64) });
    let mut encoded = BTreeMap::new();
    for (caption, tokens) in tokens {
        let parts = encoders.iter().zip(&tokens).map(|(encoder, tokens)| {
            let ids = Tensor::from_slice(&tokens.input_ids, (1, tokens.input_ids.len()), &Device::Cpu)?;
            encoder.forward(&ids, Checkpointing::None)?.squeeze(0) // (77, d)
        });
        let text = Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 1)?;
        encoded.insert(caption, Caption::Encoded(text));
        events(Event::PhaseProgress { done: encoded.len() as u64 });
    }
    Ok(encoded)
}

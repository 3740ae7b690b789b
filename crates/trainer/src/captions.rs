//! The captions of a run as the network takes them: tokens where the text encoder learns, otherwise its vectors.
//!
//! What a frozen encoder makes of a caption is kept, so that it can be dropped before the U-Net is loaded. Where captions
//! are made anew for every showing, it stays and encodes each as it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use loralei_model::{Base, Checkpointing, EncodedText, TextEncoder, Tokenizer, ops};

use crate::config::EmptyCaptions;
use crate::encoded::EncodedImages;
use crate::encoded_store::{EncodedStore, Entry, Key};
use crate::error::TrainError;
use crate::event::Event;
use crate::network::{Text, encode_tokens, with_zeros_for};

/// Captions up to which all are encoded before the run; more for each image above.
const FEW_CAPTIONS: usize = 64;
/// Captions of one image, likewise.
const FEW_OF_EACH: usize = 4;
/// Captions whose cut text is said.
const MOST_CUT: usize = 5;

/// How captions become what the U-Net is told.
pub struct Captions {
    tokenizers: Vec<Tokenizer>,
    /// Of each caption, 1 to 3.
    num_chunks: usize,
    encoder: Encoder,
    /// What stands for a caption without text, one of it, if that is not what the encoders make of it.
    zeros: Option<EncodedText>,
}

enum Encoder {
    /// It learns: the network runs it.
    Learns,
    /// It is gone, and what it made is in the store.
    Kept { store: Arc<EncodedStore>, network: String },
    /// It encodes each caption as it comes.
    Stays(Vec<TextEncoder>),
}

/// The captions that a run will ask for, as far as they are few.
pub(crate) enum Wanted {
    /// These.
    All(BTreeSet<String>),
    /// New ones at every showing; these are some of them.
    New(BTreeSet<String>),
}

impl Wanted {
    /// The captions of the first `num_batches` micro-batches, and `others`.
    pub(crate) fn of(images: &EncodedImages, num_batches: u64, others: &[String]) -> Self {
        let mut captions: BTreeSet<String> = images.first_captions().collect();
        let most = captions.len().max(images.len() * FEW_OF_EACH) + FEW_CAPTIONS;
        captions.extend(others.iter().cloned());
        if !images.captions_vary() {
            return Self::All(captions);
        }
        for index in 0..num_batches {
            captions.extend(images.shown(index).into_iter().map(|shown| shown.caption));
            if captions.len() > most {
                return Self::New(captions);
            }
        }
        Self::All(captions)
    }

    fn captions(&self) -> &BTreeSet<String> {
        match self {
            Self::All(captions) | Self::New(captions) => captions,
        }
    }
}

impl Captions {
    /// Gets ready for the captions that are `wanted`; `computed_by` is what vectors depend on besides the weights.
    ///
    /// # Errors
    /// A text encoder or its tokenizer that cannot be loaded, a store that cannot be written.
    pub(crate) fn new(
        base: &Base,
        wanted: &Wanted,
        (num_chunks, empty_captions): (usize, EmptyCaptions),
        encoder_learns: bool,
        store: &Arc<EncodedStore>,
        computed_by: &str,
        events: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let tokenizers = (0..base.num_text_encoders()).map(|i| base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
        let zeros = empty_captions.are_zeros(base).then(|| zeros(base, num_chunks)).transpose()?;
        let mut captions = Self { tokenizers, num_chunks, encoder: Encoder::Learns, zeros };
        captions.say_what_is_cut(wanted.captions(), events)?;
        if encoder_learns {
            return Ok(captions);
        }
        let load =
            || (0..base.num_text_encoders()).map(|i| base.load_text_encoder(i, None)).collect::<Result<Vec<_>, _>>();
        if let Wanted::New(_) = wanted {
            captions.encoder = Encoder::Stays(load()?);
            return Ok(captions);
        }
        let mut parts = vec![num_chunks.to_string(), computed_by.to_owned()];
        for i in 0..base.num_text_encoders() {
            parts.extend([base.text_encoder_weights(i)?.fingerprint()?, format!("{:?}", base.text_encoder_config(i))]);
        }
        if let Some(width) = base.pooled_width() {
            parts.push(format!("last layers but one, pooled {width}"));
        }
        let network = parts.join(" ");
        captions.encoder = Encoder::Kept { store: store.clone(), network: network.clone() };
        captions.encode(wanted.captions(), store, &network, load, events)?;
        Ok(captions)
    }

    /// Whether a frozen encoder stays in memory.
    pub(crate) fn encoder_stays(&self) -> bool {
        matches!(self.encoder, Encoder::Stays(_))
    }

    /// What the network is told of `captions`: a text for each.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode, an entry that was removed from the store while the run goes on.
    pub fn text(&self, captions: &[&str]) -> Result<Text, TrainError> {
        let encoders = match &self.encoder {
            Encoder::Learns => {
                return Ok(Text::Tokens { input_ids: self.token_ids(captions)?, absent: self.absent(captions) });
            }
            Encoder::Kept { store, network } => {
                let of_each = captions.iter().map(|caption| -> Result<EncodedText, TrainError> {
                    if let Some(zeros) = self.zeros.as_ref().filter(|_| is_empty(caption)) {
                        return Ok(zeros.clone());
                    }
                    let entry = store.get(&self.key(network, caption)?)?.ok_or(TrainError::EncodedMissing)?;
                    let context = entry.get(CONTEXT).ok_or(TrainError::EncodedMissing)?.clone();
                    let text = EncodedText { context, pooled: entry.get(POOLED).cloned() };
                    Ok(text.map(|x| x.unsqueeze(0))?)
                });
                let of_each = of_each.collect::<Result<Vec<_>, _>>()?;
                return Ok(Text::Encoded(EncodedText::cat(&of_each.iter().collect::<Vec<_>>())?));
            }
            Encoder::Stays(encoders) => encoders,
        };
        let text = vectors(encoders, &self.token_ids(captions)?)?;
        Ok(Text::Encoded(with_zeros_for(&text, &self.absent(captions))?))
    }

    /// Which of them zeros stand for; nothing if that is none of any.
    fn absent(&self, captions: &[&str]) -> Vec<bool> {
        if self.zeros.is_none() { Vec::new() } else { captions.iter().map(|caption| is_empty(caption)).collect() }
    }

    /// Of each encoder, (b, 77 n).
    fn token_ids(&self, captions: &[&str]) -> Result<Vec<Tensor>, TrainError> {
        let of_tokenizer = |tokenizer: &Tokenizer| -> Result<Tensor, TrainError> {
            let encode = |caption: &&str| tokenizer.encode_in_chunks(caption, self.num_chunks).map(|t| t.input_ids);
            let ids = captions.iter().map(encode).collect::<Result<Vec<_>, _>>()?.concat();
            let length = ids.len() / captions.len().max(1);
            Ok(Tensor::from_vec(ids, (captions.len(), length), &Device::Cpu)?)
        };
        self.tokenizers.iter().map(of_tokenizer).collect()
    }

    fn key(&self, network: &str, caption: &str) -> Result<Key, TrainError> {
        let ids = self.tokenizers.iter().map(|tokenizer| tokenizer.encode_in_chunks(caption, self.num_chunks));
        let ids = ids.map(|tokens| tokens.map(|tokens| tokens.input_ids)).collect::<Result<Vec<_>, _>>()?;
        Ok(Key::new("text", &[network, &format!("{ids:?}")]))
    }

    fn encode(
        &self,
        captions: &BTreeSet<String>,
        store: &EncodedStore,
        network: &str,
        load: impl FnOnce() -> Result<Vec<TextEncoder>, loralei_model::ModelError>,
        events: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let mut wanted = BTreeMap::new();
        for caption in captions.iter().filter(|caption| self.zeros.is_none() || !is_empty(caption)) {
            let key = self.key(network, caption)?;
            if store.get(&key)?.is_none() {
                wanted.insert(key, caption.as_str());
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let encoders = load()?;
        events(Event::PhaseStarted { name: "encoding captions".into(), total: Some(wanted.len() as u64) });
        for (done, (key, caption)) in wanted.into_iter().enumerate() {
            let text = vectors(&encoders, &self.token_ids(&[caption])?)?;
            let text = text.map(|x| x.squeeze(0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32))?;
            let parts = [(CONTEXT, Some(text.context)), (POOLED, text.pooled)]; // (77 n, d), (p)
            let parts = parts.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?)));
            store.put(&key, parts.collect::<Entry>())?;
            events(Event::PhaseProgress { done: done as u64 + 1 });
        }
        Ok(())
    }

    fn say_what_is_cut(&self, captions: &BTreeSet<String>, events: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let mut count = 0;
        for caption in captions {
            let cut = self.tokenizers.iter().map(|t| t.encode_in_chunks(caption, self.num_chunks).map(|t| t.num_cut));
            let num_cut = cut.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
            count += usize::from(num_cut > 0);
            if num_cut > 0 && count <= MOST_CUT {
                let more = if self.num_chunks < 3 { "; `data.max_tokens` lets more in" } else { "" };
                let message =
                    format!("the last {num_cut} tokens do not fit and are not learned from{more}: caption {caption:?}");
                events(Event::Warning { message });
            }
        }
        if count > MOST_CUT {
            let message = format!("{} more captions do not fit: `loralei dataset check` lists them", count - MOST_CUT);
            events(Event::Warning { message });
        }
        Ok(())
    }
}

const CONTEXT: &str = "context";
const POOLED: &str = "pooled";

fn is_empty(caption: &str) -> bool {
    caption.trim().is_empty()
}

/// Zeros in the shape of one caption.
fn zeros(base: &Base, num_chunks: usize) -> candle_core::Result<EncodedText> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let (tokens, width) = (num_chunks * base.text_encoder_positions(), base.text_widths().iter().sum());
    Ok(EncodedText {
        context: zeros(&[1, tokens, width])?,
        pooled: base.pooled_width().map(|width| zeros(&[1, width])).transpose()?,
    })
}

/// Without a graph.
fn vectors(encoders: &[TextEncoder], input_ids: &[Tensor]) -> candle_core::Result<EncodedText> {
    ops::without_graph(|| encode_tokens(encoders, input_ids, Checkpointing::None))
}

//! The networks of a run: the U-Net with its factors, the text side with or without, and all factors as one set.

use candle_core::{DType, Device, Tensor};
use loralei_adapter::Adapter;
use loralei_adapter::keys::Component;
use loralei_model::{
    AdapterSet, Base, Checkpointing, Conditioning, Dropout, EncodedText, FactorValues, Injection, LayerShape,
    LoraFactors, LossTerm, NoiseSchedule, NumberTypes, PictureSizes, SchedulerConfig, Source, TextEncoder, Unet,
    UnetConfig, ops, with_dropout, without_factors,
};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{self, LossConfig, Targets};
use crate::error::{TrainError, Violation};
use crate::objective::{MicroBatch, Outcome};
use crate::orthogonal_rows::subspace_rows;
use crate::plan::ComponentPlan;
use loralei_model::{Draw, Purpose};

/// What trains: the frozen networks with factors inside.
pub struct Network {
    unet: Unet,
    text_encoders: Vec<TextEncoder>,
    factors: AdapterSet,
    schedule: NoiseSchedule,
    checkpointing: Checkpointing,
    device: Device,
    /// Side in pixels that a number of the latents stands for, if the base is told the sizes of pictures.
    told_px: Option<usize>,
}

/// Where the text of a micro-batch comes from.
pub enum Text {
    /// Texts that the encoders read, with their factors.
    Tokens {
        /// Token ids (b, 77 n), n chunks of 77, for each encoder.
        input_ids: Vec<Tensor>,
        /// Which of the b texts are none, so that zeros stand for them; empty if all are there.
        absent: Vec<bool>,
    },
    /// Encoded before, b of them.
    Encoded(EncodedText),
}

impl Text {
    /// Token ids (b, 77 n) for each encoder.
    pub fn tokens(input_ids: Vec<Tensor>) -> Self {
        Self::Tokens { input_ids, absent: Vec::new() }
    }
}

impl Network {
    /// Loads the networks with new factors as planned, `text_encoders` in the order of the base: all of them if any learns,
    /// otherwise none.
    ///
    /// # Errors
    /// A weight file that does not fit, targets or blocks that match nothing, blocks that leave nothing.
    pub fn load(
        base: &Base,
        unet: Option<&ComponentPlan>,
        text_encoders: &[Option<ComponentPlan>],
        seed: u64,
        checkpointing: config::Checkpointing,
    ) -> Result<Self, TrainError> {
        let narrowest = Rc::new(Cell::new(None));
        let injection = |prefix: &str, plan: &ComponentPlan| new_factors(prefix, plan, seed, &narrowest);
        let text = if text_encoders.iter().any(Option::is_some) {
            let of_encoder = |(i, prefix): (usize, &str)| Some(injection(prefix, text_encoders.get(i)?.as_ref()?));
            base.text_prefixes().into_iter().enumerate().map(of_encoder).collect()
        } else {
            Vec::new()
        };
        let unet = unet.map(|plan| injection(base.unet_prefix(), plan));
        let network = Self::assemble(base, unet, text, checkpointing.into())?;
        if let Some(Narrow { rank, fan_in }) = narrowest.get() {
            let problem =
                format!("the narrowest layer has {fan_in} inputs: {} subspaces of rank {rank}", fan_in / rank);
            let hint = match (fan_in / rank).checked_sub(1) {
                Some(0) => "set it to 0, or take a lower rank".to_owned(),
                Some(last) => format!("set it from 0 to {last}, or take a lower rank"),
                None => "take a lower rank".to_owned(),
            };
            return Err(Violation { key: "lora.orthogonal".to_owned(), problem, hint }.into());
        }
        if network.factors.is_empty() {
            let (problem, hint) = ("they leave no layer to train", "give some layers a `learning_rate_ratio` above 0");
            let (problem, hint) = (problem.to_owned(), hint.to_owned());
            return Err(Violation { key: "lora.unet.blocks".to_owned(), problem, hint }.into());
        }
        Ok(network)
    }

    /// Loads the networks with the factors of `adapter`, text encoders included.
    ///
    /// # Errors
    /// A weight file that does not fit, an adapter for another base.
    pub fn with_adapter(base: &Base, adapter: &Adapter, checkpointing: Checkpointing) -> Result<Self, TrainError> {
        let given = |prefix: &str| Some(Injection::from_adapter(prefix, adapter));
        let text: Vec<_> = base.text_prefixes().into_iter().map(given).collect();
        let network = Self::assemble(base, given(base.unet_prefix()), text, checkpointing)?;
        let is_strange = |module: &&String| !network.factors.contains(module) && !base.leaves_out(module);
        let strange = adapter.modules.keys().find(is_strange);
        match strange {
            Some(module) => Err(loralei_model::ModelError::ForeignAdapter { key: module.clone() }.into()),
            None => Ok(network),
        }
    }

    /// A U-Net of any size with random weights and new factors as planned, without text encoders: for measuring.
    ///
    /// # Errors
    /// Targets that match nothing, no memory.
    pub fn random(
        config: &UnetConfig,
        plan: &ComponentPlan,
        types: NumberTypes,
        device: &Device,
        checkpointing: Checkpointing,
    ) -> Result<Self, TrainError> {
        const SEED: u64 = 0;
        let injection = new_factors(Component::Unet.prefix(), plan, SEED, &Rc::default());
        let unet = Unet::new(&Source::random(SEED, types, device, Some(&injection)).root(), config)?;
        Ok(Self {
            unet,
            text_encoders: Vec::new(),
            factors: AdapterSet::new(injection.finish("U-Net")?),
            schedule: NoiseSchedule::new(&SchedulerConfig::default()),
            checkpointing,
            device: device.clone(),
            told_px: None,
        })
    }

    fn assemble(
        base: &Base,
        unet: Option<Injection>,
        text: Vec<Option<Injection>>,
        checkpointing: Checkpointing,
    ) -> Result<Self, TrainError> {
        let mut factors: Vec<Arc<LoraFactors>> = Vec::new();
        let mut text_encoders = Vec::new();
        for (i, injection) in text.into_iter().enumerate() {
            text_encoders.push(base.load_text_encoder(i, injection.as_ref())?);
            let name = Component::text_encoder(i, base.num_text_encoders()).map_or("text encoder", Component::name);
            factors.extend(injection.map_or(Ok(Vec::new()), |injection| injection.finish(name))?);
        }
        let network = base.load_unet(unet.as_ref())?;
        factors.extend(unet.map_or(Ok(Vec::new()), |injection| injection.finish("U-Net"))?);
        Ok(Self {
            unet: network,
            text_encoders,
            factors: AdapterSet::new(factors),
            schedule: base.noise_schedule(),
            checkpointing,
            device: base.device().clone(),
            told_px: base.pooled_width().map(|_| base.vae_config().downsampling()),
        })
    }

    /// The U-Net.
    pub fn unet(&self) -> &Unet {
        &self.unet
    }

    /// The text encoders; none if none of them is trained.
    pub fn text_encoders(&self) -> &[TextEncoder] {
        &self.text_encoders
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What learns.
    pub fn factors(&self) -> &AdapterSet {
        &self.factors
    }

    /// The noising process.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Forward and backward of one micro-batch, without what its dropout leaves out; `loss_scale` multiplies the gradients.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn run(&self, batch: &MicroBatch, text: &Text, loss_scale: f64) -> Result<Outcome, TrainError> {
        with_dropout(batch.dropout, || {
            let conditioning = self.conditioning(text, batch)?;
            batch.run(&self.unet, &conditioning, &self.schedule, self.checkpointing, loss_scale)
        })
    }

    /// Forward and backward of the prior: the same noisy latents under another `text`, for which the adapted network
    /// must predict what the frozen base predicts. Distances are squared and every timestep counts the same, whatever the loss
    /// of the images: what is compared are two predictions, in neither of which there is noise that could not be known.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn run_prior(&self, batch: &MicroBatch, text: &Text, loss_scale: f64) -> Result<Outcome, TrainError> {
        let noisy = batch.noisy(&self.schedule)?;
        let base = ops::without_graph(|| {
            without_factors(|| -> Result<Tensor, TrainError> {
                let conditioning = self.conditioning(text, batch)?;
                Ok(self.unet.forward(&noisy, &batch.times(), &conditioning, Checkpointing::None)?)
            })
        })?;
        let plain = MicroBatch { loss: LossConfig::default(), ..batch.clone() };
        with_dropout(batch.dropout.map(|dropout| Dropout { term: LossTerm::Prior, ..dropout }), || {
            let prediction =
                self.unet.forward(&noisy, &batch.times(), &self.conditioning(text, batch)?, self.checkpointing)?;
            plain.compare(&prediction, &base, &self.schedule, loss_scale)
        })
    }

    fn conditioning(&self, text: &Text, batch: &MicroBatch) -> Result<Conditioning, TrainError> {
        Ok(Conditioning::new(self.encoded(text)?, batch.time_ids.clone()))
    }

    /// The text as the U-Net takes it.
    pub(crate) fn encoded(&self, text: &Text) -> Result<EncodedText, TrainError> {
        match text {
            Text::Encoded(text) => Ok(text.clone()),
            Text::Tokens { input_ids, absent } => {
                let text = encode_tokens(&self.text_encoders, input_ids, self.checkpointing)?;
                Ok(with_zeros_for(&text, absent)?)
            }
        }
    }

    /// What is told of `b` whole pictures of `height` x `width` latents: (b, 6); `None` if the base is told no sizes.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn whole_sizes(&self, b: usize, (height, width): (usize, usize)) -> candle_core::Result<Option<Tensor>> {
        let whole = |px: usize| PictureSizes::tensor(&vec![PictureSizes::whole((width * px, height * px)); b]);
        self.told_px.map(whole).transpose()
    }
}

/// What `encoders` make of token ids, (b, 77 n) for each of them.
///
/// # Errors
/// Ids that are out of range.
pub(crate) fn encode_tokens(
    encoders: &[TextEncoder],
    input_ids: &[Tensor],
    checkpointing: Checkpointing,
) -> candle_core::Result<EncodedText> {
    let encoded = encoders.iter().zip(input_ids).map(|(encoder, ids)| encoder.forward_chunks(ids, checkpointing));
    EncodedText::side_by_side(&encoded.collect::<candle_core::Result<Vec<_>>>()?)
}

/// Zeros in place of those texts of `text` that are `absent`; nothing is learned from these.
///
/// # Errors
/// Another number of texts.
pub(crate) fn with_zeros_for(text: &EncodedText, absent: &[bool]) -> candle_core::Result<EncodedText> {
    if !absent.contains(&true) {
        return Ok(text.clone());
    }
    let kept: Vec<f32> = absent.iter().map(|absent| if *absent { 0.0 } else { 1.0 }).collect();
    text.map(|x| {
        let shape = if x.rank() == 3 { vec![absent.len(), 1, 1] } else { vec![absent.len(), 1] };
        x.broadcast_mul(&tensor(kept.clone(), shape)?.to_device(x.device())?.to_dtype(x.dtype())?)
    })
}

/// A layer that has not as many subspaces as are asked for.
#[derive(Clone, Copy)]
struct Narrow {
    rank: usize,
    fan_in: usize,
}

/// A ~ U(-1/sqrt(fan in), 1/sqrt(fan in)), which is what `kaiming_uniform(a = sqrt 5)` amounts to, or the rows of a subspace,
/// which stay as they are; and B = 0: the first step is the base, whatever the seed. `narrowest` becomes the layer that has the
/// fewest subspaces, if the plan's is not among them.
fn new_factors(prefix: &str, plan: &ComponentPlan, seed: u64, narrowest: &Rc<Cell<Option<Narrow>>>) -> Injection {
    let narrowest = narrowest.clone();
    let of_block = plan.clone();
    let initialize = move |module: &str, shape: LayerShape, block: Option<usize>| {
        let block = block.map(|i| &of_block.blocks[i]);
        if block.is_some_and(|block| block.learning_rate_ratio == 0.0) {
            return None;
        }
        let (rank, alpha) = block.map_or((of_block.rank, of_block.alpha), |block| (block.rank, block.alpha));
        let (down, up) = shape.factor_shapes(rank);
        let fan_in: usize = down[1..].iter().product();
        let down = if let Some(subspace) = of_block.subspace {
            let num_subspaces = fan_in / rank;
            if subspace >= num_subspaces && narrowest.get().is_none_or(|of| num_subspaces < of.fan_in / of.rank) {
                narrowest.set(Some(Narrow { rank, fan_in }));
            }
            subspace_rows(module, fan_in, subspace.min(num_subspaces.saturating_sub(1)) * rank, rank)
        } else {
            let bound = 1.0 / (fan_in as f32).sqrt();
            Draw::new(seed, 0, 0, Purpose::factor_init(module)).uniform(-bound, bound, rank * fan_in)
        };
        let up = vec![0.0; up.iter().product()];
        Some(FactorValues { down, up, alpha: alpha as f32, rank })
    };
    let blocks = plan.blocks.iter().map(|block| block.layers.clone()).collect();
    let injection = Injection::by_block(prefix, plan.targets.clone().into(), blocks, Box::new(initialize));
    if plan.subspace.is_some() { injection.with_fixed_down() } else { injection }
}

impl From<Targets> for loralei_model::Targets {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::None => Self::None,
            Targets::Attention => Self::Attention,
            Targets::CrossAttention => Self::CrossAttention,
            Targets::Full => Self::Full,
            Targets::Patterns(patterns) => Self::Patterns(patterns),
        }
    }
}

impl From<config::Checkpointing> for Checkpointing {
    fn from(checkpointing: config::Checkpointing) -> Self {
        match checkpointing {
            config::Checkpointing::None => Self::None,
            config::Checkpointing::Block => Self::Block,
        }
    }
}

/// A tensor of f32 values on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)?.to_dtype(DType::F32)
}

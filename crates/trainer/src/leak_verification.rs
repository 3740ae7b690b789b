//! `verify leak`: the leak score of an adapter's file on a base, at pictures or without.

use std::path::Path;

use candle_core::{Device, Tensor};
use loralei_adapter::Adapter;
use loralei_data::{Dataset, Source};
use loralei_model::{Base, BaseSource, Checkpointing, DeviceChoice, DeviceSession, ScheduleOverride, Tokenizer};

use crate::config::{Compute, Dtype, Ops, WeightDtype};
use crate::error::TrainError;
use crate::event::Event;
use crate::leak_prompts::PromptPair;
use crate::leak_score::{LeakProbes, LeakPrompt, LeakScore};
use crate::network::{Network, Text, tensor};

/// What `verify leak` is asked for.
pub struct LeakVerification<'a> {
    /// The base.
    pub base: BaseSource,
    /// Its noising process, against or instead of what it says.
    pub schedule: ScheduleOverride,
    /// The factors.
    pub adapter: &'a Adapter,
    /// What is asked, with and without the trigger.
    pub pairs: &'a [PromptPair],
    /// Pictures whose latents are made noisy; standard normal latents if `None`.
    pub images: Option<&'a Path>,
    /// Width and height of the pictures in pixels; the base's own size if `None`.
    pub size_px: Option<(usize, usize)>,
    /// Places at which each prompt is asked.
    pub num_points: usize,
    /// What noise and timesteps are drawn from.
    pub seed: u64,
    /// Number type in which the base computes.
    pub dtype: Dtype,
    /// How its frozen weights are kept.
    pub weights: WeightDtype,
    /// What products round to.
    pub compute: Compute,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Which implementation of the operations.
    pub ops: Ops,
}

impl LeakVerification<'_> {
    /// The score; its prompts are those of the pairs in order, each without the trigger and then with it.
    ///
    /// # Errors
    /// A base, adapter or picture that cannot be used, a size that does not fit, predictions that are not finite.
    pub fn run(self, events: &mut dyn FnMut(Event)) -> Result<LeakScore, TrainError> {
        let (ops, compute, device) = (self.ops, self.compute, self.device);
        let score = ops.run(|| compute.run(|| self.run_here(events)));
        score.map_err(|error| error.or_out_of_memory(device, None))
    }

    fn run_here(self, events: &mut dyn FnMut(Event)) -> Result<LeakScore, TrainError> {
        let device = self.device.open()?;
        let _session = DeviceSession::start(&device, false);
        self.compute.check(self.ops, device.is_cpu())?;
        let types = self.compute.weights(self.weights).number_types(self.dtype, self.ops, device.is_cpu())?;
        let base = Base::open(self.base, self.schedule, types, &device)?;
        let said = base.warnings().iter().cloned().map(|message| Event::Warning { message });
        said.chain(base.note_on_unread(self.adapter).map(|message| Event::Note { message })).for_each(&mut *events);
        let native_px = base.native_size_px();
        let (width_px, height_px) = self.size_px.unwrap_or((native_px, native_px));
        base.check_size(width_px, height_px)?;
        let schedule = base.noise_schedule();
        let probes = if let Some(images) = self.images {
            let latents = encode(&base, images, (width_px, height_px), self.num_points, events)?;
            LeakProbes::new(&latents, self.num_points, &schedule, self.seed)?
        } else {
            let downsampling = base.vae_config().downsampling();
            let size = (height_px / downsampling, width_px / downsampling);
            LeakProbes::without_pictures(size, self.num_points, &schedule, self.seed)?
        };
        let prompts = prompts(&base, self.pairs, events)?;
        events(Event::PhaseStarted { name: "loading the base".into(), total: None });
        let network = Network::with_adapter(&base, self.adapter, Checkpointing::None)?;
        let total = (prompts.len() * self.num_points) as u64;
        events(Event::PhaseStarted { name: "comparing predictions".into(), total: Some(total) });
        LeakScore::measure(&network, &probes, &prompts, &mut |done| events(Event::PhaseProgress { done }))
    }
}

/// Scaled latents of the pictures of a folder, (m, 4, h, w): the means of their posteriors, of at most `most` pictures spread
/// evenly over the folder.
fn encode(
    base: &Base,
    images: &Path,
    (width_px, height_px): (usize, usize),
    most: usize,
    events: &mut dyn FnMut(Event),
) -> Result<Tensor, TrainError> {
    let Dataset { samples, problems, .. } = Dataset::read(&[Source::of_pictures(images)])?;
    if samples.is_empty() {
        return Err(TrainError::Dataset { problems });
    }
    let num_pictures = samples.len().min(most);
    events(Event::PhaseStarted { name: "encoding images".into(), total: Some(num_pictures as u64) });
    let vae = base.load_vae()?;
    let mut latents = Vec::with_capacity(num_pictures);
    for i in 0..num_pictures {
        let sample = &samples[i * samples.len() / num_pictures];
        let (pixels, _) = sample.pixels(width_px as u32, height_px as u32)?;
        let posterior = vae.encode(&tensor(pixels.data, (1, height_px, width_px, 3))?)?;
        latents.push((posterior.mean * vae.scaling_factor())?);
        events(Event::PhaseProgress { done: i as u64 + 1 });
    }
    Ok(Tensor::cat(&latents, 0)?)
}

/// Tokens of each pair: without the trigger, then with it.
fn prompts(base: &Base, pairs: &[PromptPair], events: &mut dyn FnMut(Event)) -> Result<Vec<LeakPrompt>, TrainError> {
    let tokenizers = (0..base.num_text_encoders()).map(|i| base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
    let both = pairs.iter().flat_map(|PromptPair { without, with }| [(without, false), (with, true)]);
    let of_prompt = |(prompt, has_trigger): (&String, bool)| {
        let input_ids = tokenizers.iter().map(|of| tokens(of, prompt, events)).collect::<Result<_, _>>()?;
        let is_absent = prompt.trim().is_empty() && base.zeros_for_empty_prompt();
        let text = Text::Tokens { input_ids, absent: vec![is_absent] };
        Ok(LeakPrompt { prompt: prompt.clone(), has_trigger, text })
    };
    both.map(of_prompt).collect()
}

/// (1, 77).
fn tokens(tokenizer: &Tokenizer, prompt: &str, events: &mut dyn FnMut(Event)) -> Result<Tensor, TrainError> {
    let tokens = tokenizer.encode(prompt)?;
    if tokens.num_cut > 0 {
        let message = format!("the last {} tokens do not fit and are left out: prompt {prompt:?}", tokens.num_cut);
        events(Event::Warning { message });
    }
    let positions = tokens.input_ids.len();
    Ok(Tensor::from_vec(tokens.input_ids, (1, positions), &Device::Cpu)?)
}

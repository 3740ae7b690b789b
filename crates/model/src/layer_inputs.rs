//! Inputs of every layer that a composition changes, recorded while each of its members draws its own prompts: what
//! gradient fusion needs (Gu et al. 2023, Mix-of-Show, arXiv 2305.18292, section 3.3).
//!
//! Of a step's two predictions only that of the prompt is recorded: the negative prompt is the same for all members and asks
//! nothing of them. Memory: in^2 numbers of four bytes for each different input, about 1.1 GB for all layers of Stable
//! Diffusion 1.5 and 0.2 GB for those of its attentions.

use crate::base::Base;
use crate::conditioning::{Conditioning, EncodedText, PictureSizes};
use crate::drawing::{DrawingSettings, NoiseSource};
use crate::generator::{AdapterUse, TextSide};
use crate::lora::Injection;
use crate::noise_schedule::NoiseSchedule;
use crate::ops::without_graph;
use crate::recorded_inputs::Recorder;
use crate::sampler::Sampler;
use crate::unet::{Checkpointing, Unet};
use crate::weights::Result;
use loralei_adapter::compose::LayerGram;
use loralei_adapter::{Adapter, Array, LoraModule};
use std::collections::BTreeMap;

/// A member of a composition, with what it draws.
pub struct RecordedMember<'a> {
    /// Its factors.
    pub adapter: &'a Adapter,
    /// Its strength; not 0, or its prompts are drawn as the base does.
    pub scale: f32,
    /// What it is asked for. All of them together count as much as those of any other member.
    pub prompts: &'a [String],
}

/// How they are drawn.
pub struct RecordingSettings {
    /// Every step of each picture is recorded.
    pub drawing: DrawingSettings,
    /// Width and height.
    pub size_px: (usize, usize),
    /// One picture of each prompt for each.
    pub seeds: Vec<u64>,
}

/// G and A_i G_i of every module that a member changes and that is a linear layer or a 1x1 convolution, by kohya's name.
/// All of a component's are divided by one number, so that a member's number of prompts does not matter. `progress` is told
/// the steps that are done, of steps times seeds times all prompts.
///
/// # Errors
/// Adapters of another base or of different layers, prompts that cannot be encoded, a size that does not fit.
pub fn record_layer_inputs(
    base: &Base,
    members: &[RecordedMember],
    settings: &RecordingSettings,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<String, LayerGram>> {
    let (width_px, height_px) = settings.size_px;
    base.check_size(width_px, height_px)?;
    let all = Adapter::sum(&members.iter().map(|member| (member.adapter, member.scale)).collect::<Vec<_>>())?;
    let (mut recorder, mut done) = (Recorder::default(), 0);
    let mut projected = Vec::with_capacity(members.len());
    for member in members {
        let num_drawn = member.prompts.len() * settings.seeds.len();
        recorder.weight = 1.0 / (num_drawn * settings.drawing.steps).max(1) as f64;
        let adapter = with_silent_modules(member, &all)?;
        record_member(base, &adapter, member.prompts, settings, &mut recorder, &mut || {
            done += 1;
            progress(done);
        })?;
        projected.push(recorder.take_projected()?);
    }
    let mut grams = BTreeMap::new();
    for (module, gram) in recorder.into_grams()? {
        let num_in = all.modules.get(&module).and_then(|of_all| of_all.down.shape.get(1)).copied().unwrap_or_default();
        let of_member = |(member, projected): (&RecordedMember, &mut BTreeMap<String, Vec<f32>>)| {
            let rows = projected.remove(&module).filter(|_| member.adapter.modules.contains_key(&module));
            let data = rows.unwrap_or_default();
            Array { shape: vec![data.len() / num_in.max(1), num_in], data }
        };
        let projected = members.iter().zip(&mut projected).map(of_member).collect();
        grams.insert(module, LayerGram { gram, projected });
    }
    Ok(grams)
}

/// The member at its strength, and for every layer that only others change factors that add nothing: the layer is looked at
/// all the same.
fn with_silent_modules(member: &RecordedMember, all: &Adapter) -> Result<Adapter> {
    let mut adapter = Adapter::sum(&[(member.adapter, member.scale)])?;
    for (name, of_all) in &all.modules {
        adapter.modules.entry(name.clone()).or_insert_with(|| LoraModule {
            down: zeros(of_all.down.shape.iter().enumerate().map(|(axis, dim)| if axis == 0 { 1 } else { *dim })),
            up: zeros(of_all.up.shape.iter().enumerate().map(|(axis, dim)| if axis == 1 { 1 } else { *dim })),
            alpha: Some(1.0),
        });
    }
    Ok(adapter)
}

fn zeros(shape: impl Iterator<Item = usize>) -> Array {
    let shape: Vec<usize> = shape.collect();
    Array { data: vec![0.0; shape.iter().product()], shape }
}

/// The text encoders are loaded, used and dropped before the U-Net comes.
fn record_member(
    base: &Base,
    adapter: &Adapter,
    prompts: &[String],
    settings: &RecordingSettings,
    recorder: &mut Recorder,
    step_done: &mut dyn FnMut(),
) -> Result<()> {
    let text = TextSide::load(base, Some(AdapterUse { adapter, merged: false }))?;
    let negative = text.encode_alone("")?;
    let encoded = prompts.iter().map(|prompt| recorder.during(|| text.encode_alone(prompt)));
    let encoded = encoded.collect::<Result<Vec<_>>>()?;
    drop(text);
    let injection = Injection::from_adapter(base.unet_prefix(), adapter);
    let unet = base.load_unet(Some(&injection))?;
    injection.finish("U-Net")?;
    let schedule = base.noise_schedule();
    let side = base.vae_config().downsampling();
    let size = (base.vae_config().latent_channels, settings.size_px.1 / side, settings.size_px.0 / side);
    for prompt in &encoded {
        for seed in &settings.seeds {
            let texts = (prompt, &negative);
            draw_recorded(&unet, &schedule, texts, (*seed, size), &settings.drawing, recorder, step_done)?;
        }
    }
    Ok(())
}

/// Draws one picture of a prompt against a negative one.
fn draw_recorded(
    unet: &Unet,
    schedule: &NoiseSchedule,
    (prompt, negative): (&EncodedText, &EncodedText),
    (seed, size): (u64, (usize, usize, usize)),
    drawing: &DrawingSettings,
    recorder: &mut Recorder,
    step_done: &mut dyn FnMut(),
) -> Result<()> {
    let noise = NoiseSource::Seeds(vec![seed]);
    let mut sampler = Sampler::new(drawing.sampler, schedule, drawing.steps);
    let mut latents = sampler.begin(&noise.initial(size)?)?;
    let time_ids = PictureSizes::tensor(&[drawing.sizes])?;
    let [prompt, negative] = [prompt, negative].map(|text| Conditioning::new(text.clone(), Some(time_ids.clone())));
    let mut step = 0;
    while let Some(timestep) = sampler.timestep() {
        let predict =
            |text: &Conditioning| without_graph(|| unet.forward(&latents, &[timestep], text, Checkpointing::None));
        let with = recorder.during(|| predict(&prompt))?;
        let prediction = if drawing.guidance_scale > 1.0 {
            let without = predict(&negative)?;
            (&without + ((with - &without)? * drawing.guidance_scale)?)?
        } else {
            with
        };
        let fresh = sampler.wants_noise().then(|| noise.at_step(step, size)).transpose()?;
        latents = sampler.step(&latents, &prediction, fresh.as_ref())?;
        step += 1;
        step_done();
    }
    Ok(())
}

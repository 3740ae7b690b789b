//! One subject of a comparison: its predictions at fixed points and its pictures of fixed noise, for every prompt.

use candle_core::{DType, Device, Tensor};
use loralei_adapter::Adapter;
use loralei_model::{
    AdapterUse, Base, Checkpointing, Conditioning, DrawingStop, EncodedPrompts, EncodedText, Injection, ModelError,
    NoiseSchedule, NoiseSource, PictureSizes, TextSide, Unet, draw_latents_observed, ops,
};
use loralei_picture::{ColourMeasures, Picture};

use crate::composition_measures::CompositionSettings;
use crate::drawer::{LATENTS_AT_ONCE, given};
use crate::error::TrainError;
use crate::leak_score::LeakProbes;

/// What noise and timesteps of the points are drawn from: the same for all prompts.
const POINTS_SEED: u64 = 0;

/// What every subject is asked.
pub(crate) struct Asked<'a> {
    base: &'a Base,
    prompts: &'a [String],
    settings: &'a CompositionSettings,
    schedule: NoiseSchedule,
    /// For each prompt; made of the pictures of the first subject.
    points: Vec<LeakProbes>,
}

/// Numbers of one prompt, before they are compared with the base's.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawMeasures {
    pub(crate) change: f64,
    pub(crate) additivity_error: Option<f64>,
    pub(crate) guidance_spread: f64,
    pub(crate) clean_std: Vec<f64>,
    pub(crate) clean_extreme: Vec<f64>,
    pub(crate) colours: ColourMeasures,
}

/// What one subject gave; everything is by prompt.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) raw: Vec<RawMeasures>,
    /// At all points, one behind the other.
    pub(crate) predictions: Vec<Vec<f32>>,
    /// (seeds, 4, h, w), until they are decoded.
    latents: Vec<Tensor>,
    pub(crate) pictures: Vec<Vec<Picture>>,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(base: &'a Base, prompts: &'a [String], settings: &'a CompositionSettings) -> Self {
        Self { base, prompts, settings, schedule: base.noise_schedule(), points: Vec::new() }
    }

    /// Latents of one prompt (seeds, 4, h, w), and what x_0 looks like on the way.
    fn draw(
        &self,
        unet: &Unet,
        prompt: &EncodedPrompts,
        raw: &mut RawMeasures,
        count: &mut dyn FnMut(usize),
    ) -> Result<Tensor, TrainError> {
        let CompositionSettings { drawing, seeds, size_px: (width_px, height_px), .. } = self.settings;
        let vae = self.base.vae_config();
        let (height, width) = (height_px / vae.downsampling(), width_px / vae.downsampling());
        let at_once = (LATENTS_AT_ONCE / (height * width).max(1)).max(1);
        (raw.clean_std, raw.clean_extreme) = (vec![0.0; drawing.steps], vec![0.0; drawing.steps]);
        let mut latents = Vec::new();
        for seeds_at_once in seeds.chunks(at_once) {
            let noise = NoiseSource::Seeds(seeds_at_once.to_vec());
            let prompts = vec![prompt.clone(); seeds_at_once.len()];
            let mut observe = |stop: &DrawingStop| {
                for clean in rows(&stop.clean()?)? {
                    raw.clean_std[stop.step] += standard_deviation(&clean) / seeds.len() as f64;
                    raw.clean_extreme[stop.step] += extreme(clean) / seeds.len() as f64;
                }
                count(seeds_at_once.len());
                Ok(())
            };
            let size = (vae.latent_channels, height, width);
            latents.push(draw_latents_observed(unet, &self.schedule, &prompts, &noise, size, drawing, &mut observe)?);
        }
        Ok(Tensor::cat(&latents, 0)?)
    }

    /// The prompt's predictions at its points, one behind the other; and how much guidance spreads them, a mean.
    fn predict(
        &self,
        unet: &Unet,
        prompt: &EncodedPrompts,
        points: &LeakProbes,
        count: &mut dyn FnMut(usize),
    ) -> Result<(Vec<f32>, f64), TrainError> {
        let noisy = self.schedule.add_noise(&points.latents, &points.noise, &points.timesteps)?;
        let guidance_scale = self.settings.drawing.guidance_scale;
        let (mut predictions, mut spread) = (Vec::new(), 0.0);
        for (i, timestep) in points.timesteps.iter().enumerate() {
            let latents = noisy.narrow(0, i, 1)?;
            let predict = |text: &EncodedText| {
                let told = Conditioning::new(text.clone(), Some(PictureSizes::tensor(&[self.settings.drawing.sizes])?));
                let predict = || unet.forward(&latents, &[*timestep as f64], &told, Checkpointing::None);
                ops::without_graph(predict)?.flatten_all()?.to_vec1::<f32>()
            };
            let (with, without) = (predict(&prompt.prompt)?, predict(&prompt.negative)?);
            let guided: Vec<f32> = with
                .iter()
                .zip(&without)
                .map(|(with, without)| without + (with - without) * guidance_scale as f32)
                .collect();
            spread += standard_deviation(&guided) / standard_deviation(&with) / points.timesteps.len() as f64;
            predictions.extend(with);
            count(1);
        }
        Ok((predictions, spread))
    }
}

impl Subject {
    /// Loads the networks with `adapter` and asks. The text encoders are dropped before the U-Net comes.
    ///
    /// # Errors
    /// An adapter of another base, predictions that are not finite.
    pub(crate) fn measure(
        asked: &mut Asked,
        name: &str,
        adapter: &Adapter,
        count: &mut dyn FnMut(usize),
    ) -> Result<Self, TrainError> {
        let text = TextSide::load(asked.base, Some(AdapterUse { adapter, merged: false }))?;
        let encode = |prompt: &String| text.encode(prompt, given(&asked.settings.negative), 1);
        let encoded = asked.prompts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        drop(text);
        let injection = Injection::from_adapter(asked.base.unet_prefix(), adapter);
        let unet = asked.base.load_unet(Some(&injection))?;
        injection.finish("U-Net")?;
        let mut subject = Self {
            name: name.to_owned(),
            raw: Vec::new(),
            predictions: Vec::new(),
            latents: Vec::new(),
            pictures: Vec::new(),
        };
        for (i, prompt) in encoded.iter().enumerate() {
            let mut raw = RawMeasures::default();
            let latents = asked.draw(&unet, prompt, &mut raw, count)?;
            if asked.points.len() == i {
                let num_points = asked.settings.num_points;
                asked.points.push(LeakProbes::new(&latents, num_points, &asked.schedule, POINTS_SEED)?);
            }
            let (predictions, spread) = asked.predict(&unet, prompt, &asked.points[i], count)?;
            if predictions.iter().any(|value| !value.is_finite()) {
                return Err(TrainError::NonFinitePrediction { prompt: asked.prompts[i].clone() });
            }
            raw.guidance_spread = spread;
            subject.raw.push(raw);
            subject.predictions.push(predictions);
            subject.latents.push(latents);
        }
        Ok(subject)
    }
}

/// Makes pictures of all latents, with one autoencoder, and measures them.
///
/// # Errors
/// An autoencoder that cannot be loaded, a picture whose numbers are not finite.
pub(crate) fn decode(
    base: &Base,
    subjects: &mut [Subject],
    (width_px, height_px): (usize, usize),
    seeds: &[u64],
) -> Result<(), TrainError> {
    let vae = base.load_vae()?;
    for subject in subjects {
        for (latents, raw) in std::mem::take(&mut subject.latents).iter().zip(&mut subject.raw) {
            let mut pictures = Vec::with_capacity(seeds.len());
            for (i, seed) in seeds.iter().enumerate() {
                let pixels = ops::without_graph(|| vae.decode(&latents.narrow(0, i, 1)?))?;
                let pixels = pixels.flatten_all()?.to_vec1::<f32>()?;
                if pixels.iter().any(|value| !value.is_finite()) {
                    return Err(ModelError::NonFinitePicture { seed: *seed }.into());
                }
                pictures.push(Picture::from_unit(&pixels, (width_px as u32, height_px as u32))?);
            }
            raw.colours = ColourMeasures::mean(&pictures.iter().map(ColourMeasures::of).collect::<Vec<_>>());
            subject.pictures.push(pictures);
        }
    }
    Ok(())
}

impl RawMeasures {
    /// Of each number; the additivity error over the prompts that have one.
    pub(crate) fn mean(all: &[Self]) -> Self {
        let errors: Vec<f64> = all.iter().filter_map(|raw| raw.additivity_error).collect();
        let by_step = |of: fn(&Self) -> &Vec<f64>| {
            let num_steps = all.first().map_or(0, |raw| of(raw).len());
            (0..num_steps).map(|step| mean(all.iter().map(|raw| of(raw)[step]))).collect()
        };
        Self {
            change: mean(all.iter().map(|raw| raw.change)),
            additivity_error: (!errors.is_empty()).then(|| mean(errors.iter().copied())),
            guidance_spread: mean(all.iter().map(|raw| raw.guidance_spread)),
            clean_std: by_step(|raw| &raw.clean_std),
            clean_extreme: by_step(|raw| &raw.clean_extreme),
            colours: ColourMeasures::mean(&all.iter().map(|raw| raw.colours).collect::<Vec<_>>()),
        }
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Each sample's numbers.
fn rows(samples: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
    samples.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2()
}

/// In f64; of at least one number.
fn standard_deviation(values: &[f32]) -> f64 {
    let centre = mean(values.iter().map(|value| f64::from(*value)));
    mean(values.iter().map(|value| (f64::from(*value) - centre).powi(2))).sqrt()
}

/// The absolute value at 99.5 % of the sorted ones, of at least one.
fn extreme(values: Vec<f32>) -> f64 {
    let mut sizes: Vec<f32> = values.into_iter().map(f32::abs).collect();
    let at = ((sizes.len() as f64 * 0.995).ceil() as usize).clamp(1, sizes.len().max(1)) - 1;
    let (_, value, _) = sizes.select_nth_unstable_by(at, f32::total_cmp);
    f64::from(*value)
}

//! How well the noise of fixed images is predicted: at fixed timesteps, with fixed noise, so that a value can be compared with the
//! one before, as the training loss cannot.
//!
//! The loss of an image at a timestep t is the mean squared distance of the prediction from its target, where a mask counts, over
//! the mean of the image's posterior with noise that is a function of (seed, content of the image, bin). The timesteps are the
//! middles of equal bins of the schedule. Nothing is drawn from the run's streams and no graph is recorded: the figures are a
//! function of the factors alone, and the run goes on as if nothing had been measured.
//!
//! Beside it stands the leak, as [`crate::LeakScore`] defines it, on the same noisy latents: the change of the prediction against
//! the base's for the images' captions, and for the same captions without the trigger. What the base predicts never changes and
//! is computed once.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use loralei_data::{with_class_word, without_trigger};
use loralei_model::{Checkpointing, Conditioning, Draw, EncodedText, NoiseSchedule, Purpose, ops, without_factors};

use crate::drawer::LATENTS_AT_ONCE;
use crate::encoded::{EncodedData, EncodedImages, Latents};
use crate::error::TrainError;
use crate::leak_score::relative_change;
use crate::network::{Network, tensor};
use crate::plan::{MeasuredOn, Plan, ValidationPlan};
use crate::training_data::TrainingData;
use crate::validation_history::{BinLoss, LeakChange, ValidationPoint};

/// Captions that go through a text encoder together.
const CAPTIONS_AT_ONCE: usize = 16;

/// What a run is measured on, ready.
pub struct Validation {
    seed: u64,
    num_timesteps: usize,
    batch_size: usize,
    /// What the loss is of.
    images: Vec<MeasuredImage>,
    /// Images that are learned from, for comparison with `images` that are not; none if `images` are.
    learned: Vec<MeasuredImage>,
    /// What the base predicts, once it is known.
    base: Option<LeakPredictions>,
}

/// An image that is measured on.
struct MeasuredImage {
    content: u64,
    /// Scaled: (1, 4, h, w), f32.
    latents: Tensor,
    /// (1, 1, h, w), f32.
    mask: Option<Tensor>,
    /// What is told of its sizes: (1, 6).
    time_ids: Option<Tensor>,
    caption: String,
    /// The caption without the trigger, if the leak is measured on this image.
    without_trigger: Option<String>,
}

/// A prediction, 4 h w numbers.
type Prediction = Vec<f32>;

/// Of the images with a leak, bin after bin.
struct LeakPredictions {
    with_trigger: Vec<Prediction>,
    without_trigger: Vec<Prediction>,
}

impl Validation {
    /// The images of `data` that `plan` asks for; `None` if it asks for none, or none of them can be read.
    ///
    /// # Errors
    /// An entry that was removed from the store.
    pub fn prepare(plan: &Plan, data: &TrainingData) -> Result<Option<Self>, TrainError> {
        let Some(validation) = &plan.validation else { return Ok(None) };
        let ready = |chosen: Vec<Chosen<'_>>| -> Result<Vec<MeasuredImage>, TrainError> {
            let images = chosen.iter().map(|chosen| MeasuredImage::new(&data.images, chosen));
            let mut images = images.collect::<Result<Vec<_>, _>>()?;
            // Those of one size stand together, so that they go through the network together.
            images.sort_by_key(|image| image.latents.dims().to_vec());
            Ok(images)
        };
        let (images, learned) = choose(plan, validation, &data.images);
        let (images, learned) = (ready(images)?, ready(learned)?);
        let (seed, num_timesteps, batch_size) = (plan.seed, validation.num_timesteps, plan.batch_size);
        Ok((!images.is_empty()).then_some(Self { seed, num_timesteps, batch_size, images, learned, base: None }))
    }

    /// Number of images that the loss is of.
    pub fn num_images(&self) -> usize {
        self.images.len()
    }

    /// Measures `network` after `step` steps; its factors must be those that a file would have, without dropout. The first call
    /// also asks the base, if the leak is measured.
    ///
    /// # Errors
    /// [`TrainError::NonFinitePrediction`], an entry that was removed from the store.
    pub fn measure(
        &mut self,
        network: &Network,
        data: &TrainingData,
        step: u64,
    ) -> Result<ValidationPoint, TrainError> {
        let leaking = || self.images.iter().filter(|image| image.without_trigger.is_some());
        if self.base.is_none() && leaking().next().is_some() {
            let base = || -> Result<LeakPredictions, TrainError> {
                let questioner = self.questioner(network, data)?;
                Ok(LeakPredictions {
                    with_trigger: questioner.predict(leaking(), MeasuredImage::caption)?,
                    without_trigger: questioner.predict(leaking(), MeasuredImage::counterpart)?,
                })
            };
            self.base = Some(ops::without_graph(|| without_factors(base))?);
        }
        ops::without_graph(|| self.measure_now(network, data, step))
    }

    fn measure_now(&self, network: &Network, data: &TrainingData, step: u64) -> Result<ValidationPoint, TrainError> {
        let questioner = self.questioner(network, data)?;
        let own = questioner.predict(&self.images, MeasuredImage::caption)?;
        let losses = questioner.losses(&self.images, &own)?;
        let learned = questioner.predict(&self.learned, MeasuredImage::caption)?;
        let of_learned = questioner.losses(&self.learned, &learned)?;
        let timesteps = questioner.timesteps.iter().enumerate();
        let bins = timesteps.map(|(bin, timestep)| {
            let of_bin = losses.iter().skip(bin).step_by(self.num_timesteps);
            BinLoss { timestep: *timestep, loss: mean(of_bin.copied()) }
        });
        Ok(ValidationPoint {
            step,
            loss: mean(losses.iter().copied()),
            bins: bins.collect(),
            train_loss: (!of_learned.is_empty()).then(|| mean(of_learned.into_iter())),
            leak: self.base.as_ref().map(|base| self.leak(&questioner, base, &own)).transpose()?,
            best: false,
        })
    }

    /// How far the predictions are from the base's; `own` are those of all images for their captions.
    fn leak(
        &self,
        questioner: &Questioner<'_>,
        base: &LeakPredictions,
        own: &[Prediction],
    ) -> Result<LeakChange, TrainError> {
        let own = self.images.iter().zip(own.chunks(self.num_timesteps));
        let with_trigger = own.filter(|(image, _)| image.without_trigger.is_some()).flat_map(|(_, own)| own);
        let leaking = self.images.iter().filter(|image| image.without_trigger.is_some());
        let without_trigger = questioner.predict(leaking, MeasuredImage::counterpart)?;
        let changes = |base: &[Prediction], adapted: &mut dyn Iterator<Item = &Prediction>| {
            mean(base.iter().zip(adapted).map(|(base, adapted)| relative_change(base, adapted)))
        };
        Ok(LeakChange {
            with_trigger: changes(&base.with_trigger, &mut with_trigger.into_iter()),
            without_trigger: changes(&base.without_trigger, &mut without_trigger.iter()),
        })
    }

    fn questioner<'a>(&'a self, network: &'a Network, data: &TrainingData) -> Result<Questioner<'a>, TrainError> {
        let images = || self.images.iter().chain(&self.learned);
        let captions = images().flat_map(|image| [Some(&image.caption), image.without_trigger.as_ref()]).flatten();
        Ok(Questioner {
            network,
            seed: self.seed,
            batch_size: self.batch_size,
            timesteps: middles(network.schedule(), self.num_timesteps),
            texts: Texts::new(network, data, captions.map(String::as_str))?,
        })
    }
}

/// The middles of `count` equal parts of the schedule, ascending.
fn middles(schedule: &NoiseSchedule, count: usize) -> Vec<i64> {
    (0..count).map(|bin| ((2 * bin + 1) * schedule.num_timesteps() / (2 * count)) as i64).collect()
}

/// An image by its place, and what it is asked for.
struct Chosen<'a> {
    images: &'a EncodedImages,
    image: usize,
    caption: String,
    without_trigger: Option<String>,
}

/// The images that the loss is of, and as many of those that are learned from, if that is something else.
fn choose<'a>(plan: &Plan, validation: &ValidationPlan, data: &'a EncodedData) -> (Vec<Chosen<'a>>, Vec<Chosen<'a>>) {
    let (trigger, class) = (plan.data.trigger.as_deref(), plan.data.class.as_deref());
    let spread = |images: &'a EncodedImages, most: usize, leak: bool| {
        let count = images.len().min(most);
        let choose = |i: usize| {
            let image = i * images.len() / count;
            let caption = images.settled_caption(image);
            let without_trigger = trigger.filter(|_| leak).and_then(|trigger| match class {
                Some(class) => with_class_word(&caption, trigger, class),
                None => without_trigger(&caption, trigger),
            });
            Chosen { images, image, caption, without_trigger }
        };
        (0..count).map(choose).collect::<Vec<_>>()
    };
    match validation.measured_on {
        MeasuredOn::Training => (spread(&data.subject, validation.max_images, validation.leak), Vec::new()),
        MeasuredOn::HeldOut(_) | MeasuredOn::Folder(_) => {
            let images = spread(&data.validation, validation.max_images, validation.leak);
            let learned = spread(&data.subject, images.len(), false);
            (images, learned)
        }
    }
}

/// The captions that validation will ask for.
pub(crate) fn validation_captions(plan: &Plan, data: &EncodedData) -> Vec<String> {
    let Some(validation) = &plan.validation else { return Vec::new() };
    let (images, learned) = choose(plan, validation, data);
    images.into_iter().chain(learned).flat_map(|of| [Some(of.caption), of.without_trigger]).flatten().collect()
}

impl MeasuredImage {
    fn new(data: &EncodedData, chosen: &Chosen<'_>) -> Result<Self, TrainError> {
        let Chosen { images, image, caption, without_trigger } = chosen;
        let Latents { latents, loss_mask, time_ids, .. } = data.mean_latents(images, *image)?;
        let (caption, without_trigger) = (caption.clone(), without_trigger.clone());
        Ok(Self { content: images.content(*image), latents, mask: loss_mask, time_ids, caption, without_trigger })
    }

    fn caption(&self) -> &str {
        &self.caption
    }

    fn counterpart(&self) -> &str {
        self.without_trigger.as_deref().unwrap_or_default()
    }

    /// (1, 4, h, w), standard normal, always the same in `bin`.
    fn noise(&self, seed: u64, bin: usize) -> candle_core::Result<Tensor> {
        let draw = Draw::new(seed, self.content, bin as u64, Purpose::Validation);
        tensor(draw.standard_normal(self.latents.elem_count()), self.latents.shape())
    }
}

/// A network, and what it is asked.
struct Questioner<'a> {
    network: &'a Network,
    seed: u64,
    batch_size: usize,
    timesteps: Vec<i64>,
    texts: Texts,
}

impl Questioner<'_> {
    /// What the network predicts for each image under the caption that `caption` gives, bin after bin.
    fn predict<'i>(
        &self,
        images: impl IntoIterator<Item = &'i MeasuredImage>,
        caption: impl Fn(&MeasuredImage) -> &str,
    ) -> Result<Vec<Prediction>, TrainError> {
        let bins = 0..self.timesteps.len();
        let questions: Vec<(&MeasuredImage, usize)> =
            images.into_iter().flat_map(|image| bins.clone().map(move |bin| (image, bin))).collect();
        let mut predictions = Vec::with_capacity(questions.len());
        for alike in questions.chunk_by(|(a, _), (b, _)| a.latents.dims() == b.latents.dims()) {
            let (_, _, h, w) = alike[0].0.latents.dims4()?;
            for questions in alike.chunks((LATENTS_AT_ONCE / (h * w)).max(self.batch_size).max(1)) {
                let captions: Vec<&str> = questions.iter().map(|(image, _)| caption(image)).collect();
                let answers = self.ask(questions, &captions)?;
                let broken = answers.iter().position(|answer| answer.iter().any(|number| !number.is_finite()));
                if let Some(broken) = broken {
                    return Err(TrainError::NonFinitePrediction { prompt: captions[broken].to_owned() });
                }
                predictions.extend(answers);
            }
        }
        Ok(predictions)
    }

    /// A few that go through the network together.
    fn ask(&self, questions: &[(&MeasuredImage, usize)], captions: &[&str]) -> candle_core::Result<Vec<Prediction>> {
        let latents: Vec<&Tensor> = questions.iter().map(|(image, _)| &image.latents).collect();
        let noise = questions.iter().map(|(image, bin)| image.noise(self.seed, *bin));
        let noise = Tensor::cat(&noise.collect::<candle_core::Result<Vec<_>>>()?, 0)?; // (b, 4, h, w)
        let timesteps: Vec<i64> = questions.iter().map(|(_, bin)| self.timesteps[*bin]).collect();
        let noisy = self.network.schedule().add_noise(&Tensor::cat(&latents, 0)?, &noise, &timesteps)?;
        let times: Vec<f64> = timesteps.iter().map(|t| *t as f64).collect();
        let time_ids: Option<Vec<&Tensor>> = questions.iter().map(|(image, _)| image.time_ids.as_ref()).collect();
        let time_ids = time_ids.map(|all| Tensor::cat(&all, 0)).transpose()?; // (b, 6)
        let conditioning = Conditioning::new(self.texts.of(captions)?, time_ids);
        let prediction = self.network.unet().forward(&noisy, &times, &conditioning, Checkpointing::None)?;
        prediction.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2()
    }

    /// The loss of each prediction of `images`, bin after bin.
    fn losses(&self, images: &[MeasuredImage], predictions: &[Prediction]) -> Result<Vec<f64>, TrainError> {
        let mut losses = Vec::with_capacity(predictions.len());
        for (image, of_image) in images.iter().zip(predictions.chunks(self.timesteps.len())) {
            let mask =
                image.mask.as_ref().map(|mask| mask.broadcast_as(image.latents.shape())?.flatten_all()?.to_vec1());
            let mask = mask.transpose()?;
            for (bin, prediction) in of_image.iter().enumerate() {
                let noise = image.noise(self.seed, bin)?;
                let target = self.network.schedule().target(&image.latents, &noise, &self.timesteps[bin..=bin])?;
                losses.push(mean_square(prediction, &target.flatten_all()?.to_vec1()?, mask.as_deref()));
            }
        }
        Ok(losses)
    }
}

/// Mean squared distance, summed in f64, over the area of the mask; 0 where it is empty.
fn mean_square(prediction: &[f32], target: &[f32], mask: Option<&[f32]>) -> f64 {
    let squares = prediction.iter().zip(target).map(|(p, t)| (f64::from(*p) - f64::from(*t)).powi(2));
    match mask {
        None => mean(squares),
        Some(mask) => {
            let area = mask.iter().map(|weight| f64::from(*weight)).sum::<f64>();
            let sum = squares.zip(mask).map(|(square, weight)| square * f64::from(*weight)).sum::<f64>();
            if area > 0.0 { sum / area } else { 0.0 }
        }
    }
}

/// 0 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// Captions as the U-Net takes them.
struct Texts {
    rows: BTreeMap<String, u32>,
    /// n of them, by row.
    encoded: EncodedText,
}

impl Texts {
    /// Those of `captions`, of which there must be some.
    fn new<'c>(
        network: &Network,
        data: &TrainingData,
        captions: impl Iterator<Item = &'c str>,
    ) -> Result<Self, TrainError> {
        let mut rows: BTreeMap<String, u32> = captions.map(|caption| (caption.to_owned(), 0)).collect();
        rows.values_mut().zip(0..).for_each(|(row, number)| *row = number);
        let captions: Vec<&str> = rows.keys().map(String::as_str).collect();
        let encoded = captions.chunks(CAPTIONS_AT_ONCE).map(|some| network.encoded(&data.captions.text(some)?));
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { rows, encoded: EncodedText::cat(&encoded.iter().collect::<Vec<_>>())? })
    }

    /// b of them.
    fn of(&self, captions: &[&str]) -> candle_core::Result<EncodedText> {
        let rows: Vec<u32> = captions.iter().filter_map(|caption| self.rows.get(*caption)).copied().collect();
        let rows = Tensor::from_vec(rows, captions.len(), self.encoded.context.device())?;
        self.encoded.map(|x| x.index_select(&rows, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_model::SchedulerConfig;

    #[test]
    fn bins_are_the_middles_of_equal_parts_of_the_schedule() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        assert_eq!(middles(&schedule, 4), [125, 375, 625, 875]);
        assert_eq!(middles(&schedule, 1), [500]);
        assert_eq!(middles(&schedule, 3), [166, 500, 833]);
        let all = middles(&schedule, 1000);
        assert!(all.iter().zip(0..).all(|(timestep, expected)| *timestep == expected));
    }

    #[test]
    fn a_loss_is_the_mean_over_the_area_of_the_mask() {
        let (prediction, target) = ([1.0, 2.0, 3.0, 5.0], [0.0, 2.0, 5.0, 2.0]);
        assert!((mean_square(&prediction, &target, None) - 14.0 / 4.0).abs() < 1e-12);
        let masked = mean_square(&prediction, &target, Some(&[1.0, 1.0, 0.25, 0.0]));
        assert!((masked - 2.0 / 2.25).abs() < 1e-12);
        assert!(mean_square(&prediction, &target, Some(&[0.0; 4])).abs() < 1e-12);
    }
}

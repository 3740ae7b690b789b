//! All that a run learns from: encoded images and captions, and which of them each micro-batch sees, as a function of the
//! seed and the place in the run.

use std::path::PathBuf;
use std::sync::Arc;

use loralei_data::{Dataset, Role, Size, Source};
use loralei_model::{Base, Draw, Dropout, LossTerm, Purpose};

use crate::captions::{Captions, Wanted};
use crate::class_images::with_class_images;
use crate::data_warnings::idle_class_images;
use crate::encoded::{EncodedData, EncodedImages, Encoding, Latents};
use crate::encoded_store::EncodedStore;
use crate::error::{TrainError, Violation};
use crate::event::Event;
use crate::network::Text;
use crate::noise::Noise;
use crate::objective::MicroBatch;
use crate::plan::Plan;
use crate::prior::prior_captions;
use crate::training_images::TrainingImages;
use crate::validation::validation_captions;

/// The data of a run, encoded.
pub struct TrainingData {
    /// Latents, masks, order.
    pub images: EncodedData,
    /// Tokens or vectors of captions.
    pub captions: Captions,
    /// Captions of the prior, of none of the images.
    pub prior_captions: Vec<String>,
}

/// What the random numbers of a micro-batch are drawn for.
struct Purposes {
    latent_sample: Purpose,
    noise: Purpose,
    timesteps: Purpose,
    /// And all others.
    term: LossTerm,
}

const OF_SUBJECT: Purposes = Purposes {
    latent_sample: Purpose::LatentSample,
    noise: Purpose::Noise,
    timesteps: Purpose::Timesteps,
    term: LossTerm::Subject,
};
const OF_CLASS: Purposes = Purposes {
    latent_sample: Purpose::PriorLatentSample,
    noise: Purpose::PriorNoise,
    timesteps: Purpose::PriorTimesteps,
    term: LossTerm::Prior,
};

impl TrainingData {
    /// Reads the images of `plan` and encodes what the store does not have; draws class images where some are missing.
    ///
    /// # Errors
    /// Images or captions that stop a run, networks that cannot be loaded, a disk that cannot be written.
    pub fn prepare(
        plan: &Plan,
        base: &Base,
        events: &mut dyn FnMut(Event),
    ) -> Result<(TrainingImages, Self), TrainError> {
        plan.check_base(base)?;
        let images = read_images(plan, base, events)?;
        let data = encode(plan, base, &images, events)?;
        Ok((images, data))
    }

    /// Micro-batch `micro` of `step`, on the processor.
    ///
    /// # Errors
    /// An entry that was removed from the store while the run goes on.
    pub fn subject(
        &self,
        plan: &Plan,
        step: u64,
        micro: u64,
        num_timesteps: usize,
    ) -> Result<(MicroBatch, Text), TrainError> {
        let index = step * plan.accumulate as u64 + micro;
        self.micro_batch(plan, &self.images.subject, index, (step, micro), &OF_SUBJECT, num_timesteps)
    }

    /// The images that `step` sees, each once, those of the class too.
    pub fn paths(&self, plan: &Plan, step: u64) -> Vec<PathBuf> {
        let subject =
            (0..plan.accumulate as u64).map(|micro| (&self.images.subject, step * plan.accumulate as u64 + micro));
        let of_class = plan.class_batches(step).into_iter().map(|index| (&self.images.class, index));
        let mut paths: Vec<PathBuf> = subject
            .chain(of_class)
            .flat_map(|(images, index)| {
                images.shown(index).into_iter().map(|shown| images.path(shown.image).to_owned())
            })
            .collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The same of class images: micro-batch number `index` of them.
    ///
    /// # Errors
    /// As [`TrainingData::subject`].
    pub fn class(
        &self,
        plan: &Plan,
        index: u64,
        step: u64,
        micro: u64,
        num_timesteps: usize,
    ) -> Result<(MicroBatch, Text), TrainError> {
        self.micro_batch(plan, &self.images.class, index, (step, micro), &OF_CLASS, num_timesteps)
    }

    /// `b` captions of the prior, of which there must be some.
    ///
    /// # Errors
    /// As [`TrainingData::subject`].
    pub fn prior_text(&self, plan: &Plan, step: u64, micro: u64, b: usize) -> Result<Text, TrainError> {
        let draw = Draw::new(plan.seed, step, micro, Purpose::PriorCaption);
        let drawn = draw.integers(0..self.prior_captions.len() as i64, b);
        self.captions.text(&drawn.iter().map(|i| self.prior_captions[*i as usize].as_str()).collect::<Vec<_>>())
    }

    fn micro_batch(
        &self,
        plan: &Plan,
        images: &EncodedImages,
        index: u64,
        (step, micro_batch): (u64, u64),
        purposes: &Purposes,
        num_timesteps: usize,
    ) -> Result<(MicroBatch, Text), TrainError> {
        let (seed, term, rates) = (plan.seed, purposes.term, plan.dropout);
        let draw = |purpose| Draw::new(seed, step, micro_batch, purpose);
        let shown = images.shown(index);
        let Latents { latents, loss_mask, sample_weight, time_ids } =
            self.images.latents(images, &shown, draw(purposes.latent_sample))?;
        let Noise { noise, input_noise } = plan.noise.of(&latents, purposes.noise, term, draw)?;
        let timesteps = draw(purposes.timesteps).integers(plan.noise.timesteps(num_timesteps), shown.len());
        let batch = MicroBatch {
            loss_mask,
            sample_weight: Some(sample_weight),
            input_noise,
            time_ids,
            loss: plan.loss,
            dropout: (!rates.are_zero()).then_some(Dropout { rates, seed, step, micro_batch, term }),
            ..MicroBatch::new(latents, noise, timesteps)
        };
        let captions: Vec<&str> = shown.iter().map(|shown| shown.caption.as_str()).collect();
        Ok((batch, self.captions.text(&captions)?))
    }
}

/// The images at sizes that the base takes, class images drawn where some are missing.
fn read_images(plan: &Plan, base: &Base, events: &mut dyn FnMut(Event)) -> Result<TrainingImages, TrainError> {
    let num_class_images = |sources: &[Source]| {
        let found = Dataset::read(sources)?;
        Ok(found.samples.iter().filter(|sample| sample.role == Role::Class).count())
    };
    let sources = plan.data.sources(base.size_multiple_px());
    let sources = with_class_images(plan, base, sources, num_class_images, events)?;
    let mut images = TrainingImages::read(sources, &plan.data, events)?;
    if let Some(validation) = &plan.validation {
        images.set_apart(&validation.measured_on, &plan.data, plan.seed, events)?;
    }
    for picture in images.subject.iter().chain(&images.class).chain(&images.validation) {
        let Size { width_px, height_px } = picture.assigned.bucket;
        base.check_size(width_px as usize, height_px as usize)?;
    }
    if plan.learns_class() && images.class.is_empty() {
        let (problem, hint) = ("there is no class image that can be used", "set `data.class`, so that some are drawn");
        return Err(Violation { key: "prior.kind".into(), problem: problem.into(), hint: hint.into() }.into());
    }
    if let Some(message) = idle_class_images(plan, !images.class.is_empty()) {
        events(Event::Warning { message });
    }
    Ok(images)
}

/// Latents and captions, from the store or by the networks.
fn encode(
    plan: &Plan,
    base: &Base,
    images: &TrainingImages,
    events: &mut dyn FnMut(Event),
) -> Result<TrainingData, TrainError> {
    let store = Arc::new(EncodedStore::open(&plan.data.cache)?);
    let (device, types) = (base.device().location(), plan.number_types);
    let computed_by = format!("{device:?} {:?} {:?} {types:?}", plan.ops, plan.compute);
    let encoding = Encoding {
        seed: plan.seed,
        batch_size: plan.batch_size,
        outside_mask_weight: plan.data.outside_mask_weight,
        strict: plan.data.strict,
        computed_by: &computed_by,
    };
    let encoded = EncodedData::new(base, images, store.clone(), encoding, events)?;
    say_how_batches_fill(plan, &encoded.subject, events);
    let prior_captions = prior_captions(plan.prior.as_ref(), &plan.data, &encoded.subject)?;
    let mut others = prior_captions.clone();
    others.extend(encoded.class.first_captions());
    others.extend(validation_captions(plan, &encoded));
    let steps = plan.steps_of(encoded.subject.batches_per_epoch());
    let num_batches = steps.saturating_mul(plan.accumulate as u64);
    let wanted = Wanted::of(&encoded.subject, num_batches, &others);
    let (learns, texts) = (plan.learns_text(), (plan.data.num_chunks, plan.empty_captions));
    let captions = Captions::new(base, &wanted, texts, learns, &store, &computed_by, events)?;
    if captions.encoder_stays() {
        let message = "captions are made anew each time: the text encoder stays in memory".to_owned();
        events(Event::Note { message });
    }
    Ok(TrainingData { images: encoded, captions, prior_captions })
}

/// Says which sizes there are, and if no batch is ever full.
fn say_how_batches_fill(plan: &Plan, images: &EncodedImages, events: &mut dyn FnMut(Event)) {
    let sizes = images.sizes();
    let most = sizes.iter().map(|(_, count)| *count).max().unwrap_or_default();
    if sizes.len() > 1 {
        let each: Vec<String> = sizes.iter().map(|(size, count)| format!("{count} of {size}")).collect();
        events(Event::Note { message: format!("sizes: {} px", each.join(", ")) });
    }
    if most < plan.batch_size as u64 {
        let message = format!(
            "no batch has the {} images of `train.batch_size`: an epoch shows at most {most} of one size",
            plan.batch_size
        );
        events(Event::Warning { message });
    }
}

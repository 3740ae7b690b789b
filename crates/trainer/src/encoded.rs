//! The images of a run as the network takes them: latents by the autoencoder, computed once for each image, crop and
//! side, and kept as mean and standard deviation, so that every step can draw a sample of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use candle_core::{DType, Device, Tensor};
use loralei_data::{
    Batch, CaptionLine, CaptionRules, CaptionText, ContentHash, Crop, Depth, Fitted, Order, Picture, Role, Showing,
    Size, flipped, survey,
};
use loralei_model::{Base, Draw, PictureSizes, Vae};

use crate::encoded_store::{EncodedStore, Entry, Key};
use crate::error::TrainError;
use crate::event::Event;
use crate::hold_out::content_number;
use crate::network::tensor;
use crate::training_images::TrainingImages;

/// Fitted images that wait for the autoencoder: the next one is read while one is encoded.
const READ_AHEAD: usize = 2;

/// One image, encoded.
#[derive(Debug, Clone)]
struct EncodedImage {
    path: PathBuf,
    /// What its file holds, as a number.
    content: u64,
    latents: Key,
    /// Of the mirrored image, if it is shown mirrored.
    mirrored: Option<Key>,
    size: Size,
    crop: Crop,
    repeats: u32,
    weight: f32,
    rules: Arc<CaptionRules>,
    caption: CaptionText,
}

/// Images of one kind, and the order in which a run sees them.
pub struct EncodedImages {
    images: Vec<EncodedImage>,
    order: Order,
    seed: u64,
}

/// The seed of order, captions and mirroring: two orders of the same seed would show images of the same place together.
pub(crate) fn seed_of(role: Role, seed: u64) -> u64 {
    if role == Role::Class { !seed } else { seed }
}

/// An image in a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Which one.
    pub image: usize,
    /// Whether left and right are exchanged.
    pub is_mirrored: bool,
    /// Its caption this time.
    pub caption: String,
}

/// Latents of a micro-batch.
pub struct Latents {
    /// Scaled, drawn from each image's posterior: (b, 4, h, w), f32.
    pub latents: Tensor,
    /// Where the loss counts: (b, 1, h, w), f32; `None` if it does everywhere.
    pub loss_mask: Option<Tensor>,
    /// How much each image counts: b numbers.
    pub sample_weight: Vec<f32>,
    /// What the network is told of the images' sizes: (b, 6); `None` if it is told none.
    pub time_ids: Option<Tensor>,
}

impl EncodedImage {
    /// How it came to its size.
    fn sizes(&self, is_mirrored: bool) -> PictureSizes {
        picture_sizes(if is_mirrored { self.crop.mirrored(self.size.width_px) } else { self.crop }, self.size)
    }
}

/// What the network is told of a picture that `crop` cut to `size`.
fn picture_sizes(crop: Crop, size: Size) -> PictureSizes {
    let pixels = |width_px: u32, height_px: u32| (width_px as usize, height_px as usize);
    PictureSizes {
        original_px: pixels(crop.original_width_px, crop.original_height_px),
        crop_px: pixels(crop.left_px, crop.top_px),
        target_px: pixels(size.width_px, size.height_px),
    }
}

impl EncodedImages {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Micro-batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.order.batches_per_epoch()
    }

    /// Sizes with the number of images of each.
    pub fn sizes(&self) -> Vec<(Size, u64)> {
        let mut counts = BTreeMap::new();
        for image in &self.images {
            *counts.entry(image.size).or_default() += u64::from(image.repeats);
        }
        counts.into_iter().collect()
    }

    /// Micro-batch number `index` of the run: 1 to the batch size images, all of one size.
    pub fn shown(&self, index: u64) -> Vec<Shown> {
        let Batch { epoch, showings } = self.order.batch(index);
        let shown = |showing: Showing| {
            let image = &self.images[showing.sample];
            Shown {
                image: showing.sample,
                is_mirrored: image.mirrored.is_some() && flipped(self.seed, epoch, showing),
                caption: image.rules.of_showing(&image.caption, self.seed, epoch, showing),
            }
        };
        showings.into_iter().map(shown).collect()
    }

    /// What each image is to a run, as text: content, crop, captions, how often and how much it counts.
    pub(crate) fn fingerprint(&self) -> impl Iterator<Item = String> {
        self.images.iter().map(|image| {
            let EncodedImage { latents, mirrored, repeats, weight, rules, caption, .. } = image;
            format!("{latents:?} {mirrored:?} {repeats} {weight} {rules:?} {:?}", caption.lines)
        })
    }

    /// Where image number `image` came from.
    pub fn path(&self, image: usize) -> &Path {
        &self.images[image].path
    }

    /// A number for what the file of `image` holds.
    pub(crate) fn content(&self, image: usize) -> u64 {
        self.images[image].content
    }

    /// The caption of `image` with nothing left to chance that can be: its first line, no dropout, tags as they stand. Of
    /// wildcards, what the seed chooses.
    pub(crate) fn settled_caption(&self, image: usize) -> String {
        let EncodedImage { rules, caption, .. } = &self.images[image];
        let (line, shuffle) = (CaptionLine::First, false);
        let settled = CaptionRules { line, dropout: 0.0, shuffle, tag_dropout: 0.0, ..CaptionRules::clone(rules) };
        settled.of_showing(caption, self.seed, 0, Showing::default())
    }

    /// Whether any caption differs from one showing to the next.
    pub fn captions_vary(&self) -> bool {
        self.images.iter().any(|image| image.rules.varies(&image.caption))
    }

    /// The caption of each image in the first epoch.
    pub fn first_captions(&self) -> impl Iterator<Item = String> {
        self.images
            .iter()
            .enumerate()
            .map(|(sample, image)| image.rules.of_showing(&image.caption, self.seed, 0, Showing { sample, repeat: 0 }))
    }
}

/// The data set of a run.
pub struct EncodedData {
    /// What is learned.
    pub subject: EncodedImages,
    /// Images of the class.
    pub class: EncodedImages,
    /// Images that are measured on and not learned from; none if it is measured on those that are.
    pub validation: EncodedImages,
    store: Arc<EncodedStore>,
    scaling_factor: f64,
    outside_mask_weight: f32,
    /// Whether the base is told the sizes of pictures.
    tells_sizes: bool,
}

/// How images are encoded and ordered.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// Seed of order, captions and mirroring.
    pub seed: u64,
    /// Images of a micro-batch.
    pub batch_size: usize,
    /// Weight in the loss of what masks leave out, 0 to 1.
    pub outside_mask_weight: f32,
    /// Whether an image that cannot be decoded is an error; otherwise it is left out, and said.
    pub strict: bool,
    /// What the numbers also depend on: device and operations.
    pub computed_by: &'a str,
}

impl EncodedData {
    /// Encodes every image that `store` does not have.
    ///
    /// # Errors
    /// The autoencoder cannot be loaded, the store cannot be written, an image cannot be read though the encoding is
    /// strict, or none is left.
    pub(crate) fn new(
        base: &Base,
        images: &TrainingImages,
        store: Arc<EncodedStore>,
        encoding: Encoding,
        events: &mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let mut encoder = ImageEncoder::new(base, &store, encoding)?;
        encoder.encode(images.subject.iter().chain(&images.class).chain(&images.validation), events)?;
        let rules: Vec<_> = images.sources.iter().map(|source| Arc::new(source.captions.clone())).collect();
        let encoded = |pictures: &[Picture], seed: u64| {
            let kept = pictures.iter().filter(|picture| !encoder.failed.contains(&picture.sample.path));
            let kept: Vec<EncodedImage> =
                kept.map(|picture| encoder.encoded(picture, &rules[picture.sample.source])).collect();
            let order = Order::new(seed, encoding.batch_size, kept.iter().map(|image| (image.size, image.repeats)));
            EncodedImages { images: kept, order, seed }
        };
        let of_role = |pictures, role| encoded(pictures, seed_of(role, encoding.seed));
        let (subject, class) = (of_role(&images.subject, Role::Subject), of_role(&images.class, Role::Class));
        let validation = of_role(&images.validation, Role::Subject);
        if subject.is_empty() {
            let path = images.sources.first().map(|source| source.path.clone()).unwrap_or_default();
            return Err(loralei_data::DataError::NoImages { path, num_skipped: encoder.failed.len() }.into());
        }
        let (scaling_factor, outside_mask_weight) = (base.vae_config().scaling_factor, encoding.outside_mask_weight);
        let tells_sizes = base.pooled_width().is_some();
        Ok(Self { subject, class, validation, store, scaling_factor, outside_mask_weight, tells_sizes })
    }

    /// Latents of one image, which is of `images`: the mean of its posterior, not a draw from it; b = 1.
    ///
    /// # Errors
    /// As [`EncodedData::latents`].
    pub(crate) fn mean_latents(&self, images: &EncodedImages, image: usize) -> Result<Latents, TrainError> {
        let image = &images.images[image];
        let entries = [self.entry(&image.latents)?];
        let mean = entries[0].get(MEAN).ok_or(TrainError::EncodedMissing)?.unsqueeze(0)?; // (1, 4, h, w)
        Ok(Latents {
            latents: (&mean * self.scaling_factor)?,
            loss_mask: self.loss_mask(&entries, &mean)?,
            sample_weight: vec![image.weight],
            time_ids: self.time_ids([image.sizes(false)].into_iter())?,
        })
    }

    /// Latents of `shown`, which are of `images`; the draw from each posterior depends only on the place.
    ///
    /// # Errors
    /// An entry that was removed from the store while the run goes on.
    pub fn latents(&self, images: &EncodedImages, shown: &[Shown], draw: Draw) -> Result<Latents, TrainError> {
        let sides = || shown.iter().map(|shown| (&images.images[shown.image], shown.is_mirrored));
        let keys = sides()
            .map(|(image, is_mirrored)| image.mirrored.as_ref().filter(|_| is_mirrored).unwrap_or(&image.latents));
        let entries = keys.map(|key| self.entry(key)).collect::<Result<Vec<_>, _>>()?;
        let stack = |name: &str| -> Result<Tensor, TrainError> {
            let of_each = entries.iter().map(|entry| entry.get(name).ok_or(TrainError::EncodedMissing));
            Ok(Tensor::stack(&of_each.collect::<Result<Vec<_>, _>>()?, 0)?)
        };
        let (mean, std) = (stack(MEAN)?, stack(STD)?); // (b, 4, h, w)
        let noise = tensor(draw.standard_normal(mean.elem_count()), mean.shape())?;
        Ok(Latents {
            latents: ((&mean + (std * noise)?)? * self.scaling_factor)?,
            loss_mask: self.loss_mask(&entries, &mean)?,
            sample_weight: sides().map(|(image, _)| image.weight).collect(),
            time_ids: self.time_ids(sides().map(|(image, is_mirrored)| image.sizes(is_mirrored)))?,
        })
    }

    fn time_ids(&self, sizes: impl Iterator<Item = PictureSizes>) -> candle_core::Result<Option<Tensor>> {
        self.tells_sizes.then(|| PictureSizes::tensor(&sizes.collect::<Vec<_>>())).transpose()
    }

    /// Makes the latents of image number `image` what no training can use.
    #[cfg(test)]
    pub(crate) fn spoil(&self, image: usize) {
        let key = &self.subject.images[image].latents;
        let mut entry = self.entry(key).unwrap();
        let mean = entry.get_mut(MEAN).unwrap();
        *mean = (&*mean * f64::NAN).unwrap();
        self.store.put(key, entry).unwrap();
    }

    fn entry(&self, key: &Key) -> Result<Entry, TrainError> {
        self.store.get(key)?.ok_or(TrainError::EncodedMissing)
    }

    /// (b, 1, h, w), where an image without a mask counts everywhere.
    fn loss_mask(&self, entries: &[Entry], mean: &Tensor) -> Result<Option<Tensor>, TrainError> {
        if entries.iter().all(|entry| !entry.contains_key(MASK)) {
            return Ok(None);
        }
        let (_, _, h, w) = mean.dims4()?;
        let outside = f64::from(self.outside_mask_weight);
        let of_each = entries.iter().map(|entry| match entry.get(MASK) {
            Some(mask) => mask.affine(1.0 - outside, outside)?.reshape((1, h, w)),
            None => Tensor::ones((1, h, w), DType::F32, &Device::Cpu),
        });
        Ok(Some(Tensor::stack(&of_each.collect::<candle_core::Result<Vec<_>>>()?, 0)?))
    }
}

const MEAN: &str = "mean";
const STD: &str = "std";
const MASK: &str = "mask";

/// Turns images into entries.
struct ImageEncoder<'a> {
    base: &'a Base,
    store: &'a EncodedStore,
    strict: bool,
    /// What all keys share.
    network: String,
    masks: BTreeMap<PathBuf, Option<ContentHash>>,
    failed: BTreeSet<PathBuf>,
}

impl<'a> ImageEncoder<'a> {
    fn new(base: &'a Base, store: &'a EncodedStore, encoding: Encoding) -> Result<Self, TrainError> {
        let fingerprint = base.vae_weights()?.fingerprint()?;
        let network = format!("{fingerprint} {:?} {}", base.vae_config(), encoding.computed_by);
        let (masks, failed) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { base, store, strict: encoding.strict, network, masks, failed })
    }

    /// The key of an image: its content and its mask's, and what is done to them.
    fn key(&self, picture: &Picture, is_mirrored: bool) -> Key {
        let mask = picture.sample.mask.as_ref().and_then(|path| self.masks.get(path)).copied().flatten();
        let mask = mask.map_or("no mask".to_owned(), |hash| hash.to_string());
        let how = format!("{:?} {:?} {:?} {is_mirrored}", picture.surveyed.size, picture.assigned, picture.alpha);
        Key::new("latents", &[&self.network, &picture.surveyed.content.to_string(), &mask, &how])
    }

    fn encoded(&self, picture: &Picture, rules: &Arc<CaptionRules>) -> EncodedImage {
        let sample = &picture.sample;
        EncodedImage {
            path: sample.path.clone(),
            content: content_number(picture.surveyed.content),
            latents: self.key(picture, false),
            mirrored: sample.flip.then(|| self.key(picture, true)),
            size: picture.assigned.bucket,
            crop: Crop::centred(picture.surveyed.size, &picture.assigned),
            repeats: sample.repeats,
            weight: sample.weight,
            rules: rules.clone(),
            caption: sample.caption.clone(),
        }
    }

    fn encode<'p>(
        &mut self,
        pictures: impl Iterator<Item = &'p Picture>,
        events: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let pictures: Vec<&Picture> = pictures.collect();
        let masks: BTreeSet<&PathBuf> = pictures.iter().filter_map(|picture| picture.sample.mask.as_ref()).collect();
        let masks: Vec<PathBuf> = masks.into_iter().cloned().collect();
        // A mask that cannot be read fails with its image, below.
        let contents = survey(&masks, Depth::Header, |_| ()).into_iter().map(|seen| seen.ok().map(|seen| seen.content));
        self.masks = masks.iter().cloned().zip(contents).collect();
        let sides = |picture: &&'p Picture| if picture.sample.flip { vec![false, true] } else { vec![false] };
        let all = pictures.iter().flat_map(|picture| sides(picture).into_iter().map(move |side| (*picture, side)));
        let mut wanted = Vec::new();
        let mut known = BTreeSet::new();
        for (picture, side) in all {
            let key = self.key(picture, side);
            if known.insert(key.clone()) && self.store.get(&key)?.is_none() {
                wanted.push((picture, side, key));
            }
        }
        let num_kept = known.len() - wanted.len();
        if let Some(folder) = self.store.folder().filter(|_| num_kept > 0) {
            let message = format!("{num_kept} of {} encoded images come from `{}`", known.len(), folder.display());
            events(Event::Note { message });
        }
        if wanted.is_empty() { Ok(()) } else { self.encode_wanted(&wanted, events) }
    }

    fn encode_wanted(
        &mut self,
        wanted: &[(&Picture, bool, Key)],
        events: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        let vae = self.base.load_vae()?;
        let downsampling = self.base.vae_config().downsampling() as u32;
        events(Event::PhaseStarted { name: "encoding images".into(), total: Some(wanted.len() as u64) });
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(READ_AHEAD);
            scope.spawn(move || {
                for (picture, side, _) in wanted {
                    if sender.send(picture.fitted(downsampling, *side)).is_err() {
                        return; // the run has ended
                    }
                }
            });
            for (done, ((picture, _, key), fitted)) in wanted.iter().zip(receiver).enumerate() {
                match fitted {
                    Ok(fitted) => self.store.put(key, encode_one(&vae, fitted, picture)?)?,
                    Err(error) if self.strict => return Err(error.into()),
                    Err(error) => {
                        if self.failed.insert(picture.sample.path.clone()) {
                            events(Event::Warning { message: format!("left out: {error}") });
                        }
                    }
                }
                events(Event::PhaseProgress { done: done as u64 + 1 });
            }
            Ok(())
        })
    }
}

fn encode_one(vae: &Vae, fitted: Fitted, picture: &Picture) -> Result<Entry, TrainError> {
    let Fitted { pixels, mask, .. } = fitted;
    let shape = (1, pixels.height_px as usize, pixels.width_px as usize, 3);
    let posterior = vae.encode(&tensor(pixels.data, shape)?)?;
    let (mean, std) = (posterior.mean.squeeze(0)?, posterior.std.squeeze(0)?); // (4, h, w)
    let norm = mean.abs()?.sum_all()?.to_scalar::<f32>()? + std.abs()?.sum_all()?.to_scalar::<f32>()?;
    if !norm.is_finite() {
        return Err(TrainError::NonFiniteLatents { path: picture.sample.path.clone() });
    }
    let mut entry = Entry::from([(MEAN.to_owned(), mean), (STD.to_owned(), std)]);
    if let Some(mask) = mask {
        let (height, width) = (mask.height as usize, mask.width as usize);
        entry.insert(MASK.to_owned(), tensor(mask.data, (height, width))?);
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_photo_is_the_cut_really_made_of_the_scaled_picture() {
        // Original and bucket (width, height); cut off at the top and on the left, and on the left of the mirrored picture.
        for (original, bucket, [top, left, mirrored_left]) in [
            ((1500, 1000), (1216, 832), [0, 16, 16]),
            ((3000, 4000), (832, 1216), [0, 40, 40]),
            ((1000, 1500), (896, 1152), [96, 0, 0]),
            ((1501, 1000), (1216, 832), [0, 16, 17]),
        ] {
            let (crop, size) = (Crop::cover(original, bucket), Size::new(bucket.0, bucket.1));
            let expected = |left: u32| [original.1, original.0, top, left, bucket.1, bucket.0].map(|px| px as f32);
            assert_eq!(picture_sizes(crop, size).time_ids(), expected(left));
            assert_eq!(picture_sizes(crop.mirrored(bucket.0), size).time_ids(), expected(mirrored_left));
        }
    }
}

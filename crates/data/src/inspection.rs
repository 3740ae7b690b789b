//! All sources listed and every picture opened, before a run begins: what can be trained on, at which size, and what cannot
//! be read.

use std::path::PathBuf;

use crate::{
    Alpha, Assigned, Crop, DataError, Dataset, Decoded, Depth, Mask, Pixels, Sample, Size, Source, Surveyed,
    decode_with, fit_crop, read_mask, survey,
};

/// A picture that can be trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What is known about it from its name and its surroundings.
    pub sample: Sample,
    /// What its file holds.
    pub surveyed: Surveyed,
    /// The size it is trained at.
    pub assigned: Assigned,
    /// What transparency means in its source.
    pub alpha: Alpha,
}

/// A picture, or a mask, that cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub error: DataError,
}

/// Sources with all their pictures opened.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The pictures that can be read, in the order of the sources.
    pub pictures: Vec<Picture>,
    /// Those that cannot, in the same order.
    pub unreadable: Vec<Unreadable>,
    /// What was found beside them; its samples are in `pictures`.
    pub found: Dataset,
}

impl Inspection {
    /// Lists `sources` and looks at every picture, as deep as `depth` says. `on_seen` is called from any thread with the
    /// number of pictures seen so far and of all.
    ///
    /// # Errors
    /// Nothing can be listed at all (see [`Dataset::read`]). Everything else is collected.
    pub fn new(sources: &[Source], depth: Depth, on_seen: impl Fn(usize, usize) + Sync) -> Result<Self, DataError> {
        let mut found = Dataset::read(sources)?;
        let samples = std::mem::take(&mut found.samples);
        let paths: Vec<PathBuf> = samples.iter().map(|sample| sample.path.clone()).collect();
        let buckets: Vec<Vec<Size>> = sources.iter().map(|source| source.buckets.buckets()).collect();
        let mut inspection = Self { found, ..Self::default() };
        let surveyed = survey(&paths, depth, |seen| on_seen(seen, paths.len()));
        for (sample, surveyed) in samples.into_iter().zip(surveyed) {
            match surveyed {
                Ok(surveyed) => {
                    let source = &sources[sample.source];
                    let assigned = source.buckets.assign_from(&buckets[sample.source], surveyed.size);
                    inspection.pictures.push(Picture { sample, surveyed, assigned, alpha: source.alpha });
                }
                Err(error) => inspection.unreadable.push(Unreadable { path: sample.path, error }),
            }
        }
        Ok(inspection)
    }
}

/// A picture as the network sees it, with its mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Scaled and cropped: (h, w, 3).
    pub pixels: Pixels,
    /// Which part of the original that is.
    pub crop: Crop,
    /// Where the loss counts, at the size of the latents.
    pub mask: Option<Mask>,
}

impl Picture {
    /// Decodes the picture and brings it to its size, with its mask `downsampling` times smaller; mirrored if `is_mirrored`.
    ///
    /// A mask file goes before transparency.
    ///
    /// # Errors
    /// The picture or its mask is unreadable, or they do not fit each other.
    pub fn fitted(&self, downsampling: u32, is_mirrored: bool) -> Result<Fitted, DataError> {
        let Decoded { rgb, alpha, .. } = decode_with(&self.sample.path, self.alpha)?;
        let (bucket, crop) = (self.assigned.bucket, Crop::centred(self.surveyed.size, &self.assigned));
        let pixels = fit_crop(&rgb, &crop, bucket)?;
        drop(rgb);
        let grey = match &self.sample.mask {
            Some(path) => Some((read_mask(path)?, path)),
            None => alpha.map(|alpha| (alpha, &self.sample.path)),
        };
        let mask = grey.map(|(grey, path)| Mask::new(&grey, &crop, bucket, downsampling, path)).transpose()?;
        Ok(if is_mirrored {
            let crop = crop.mirrored(bucket.width_px);
            Fitted { pixels: pixels.mirrored(), crop, mask: mask.map(Mask::mirrored) }
        } else {
            Fitted { pixels, crop, mask }
        })
    }
}

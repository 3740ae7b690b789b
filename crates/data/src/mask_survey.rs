//! All masks read before a run begins: whether each fits its picture, and how much it leaves to learn.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::budget::Budget;
use crate::decode::{MAX_ALLOC_BYTES, decode_with, probe};
use crate::{Alpha, Crop, DataError, Mask, Picture, read_mask};

/// The share of each picture that its mask lets the loss count, in (0, 1]; `None` where there is no mask. Masks are
/// averaged to a size `downsampling` times smaller than the picture, as they are used.
///
/// In the order of `pictures`, on the threads of the current rayon pool, within the memory that
/// [`survey`](crate::survey()) takes. `on_seen` is called after each mask, from any thread, with the number of masks
/// seen so far and of all.
pub fn survey_masks(
    pictures: &[Picture],
    downsampling: u32,
    on_seen: impl Fn(usize, usize) + Sync,
) -> Vec<Result<Option<f32>, DataError>> {
    let pixels = Budget::new(MAX_ALLOC_BYTES);
    let num_masks = pictures.iter().filter(|picture| mask_path(picture).is_some()).count();
    let num_seen = AtomicUsize::new(0);
    pictures
        .par_iter()
        .with_max_len(1)
        .map(|picture| {
            let Some(path) = mask_path(picture) else { return Ok(None) };
            let share = learned_share(picture, path, downsampling, &pixels);
            on_seen(num_seen.fetch_add(1, Ordering::Relaxed) + 1, num_masks);
            share
        })
        .collect()
}

/// The file that the mask of a picture is read from: its own, or the picture itself where transparency is the mask.
fn mask_path(picture: &Picture) -> Option<&Path> {
    let is_transparent = picture.alpha == Alpha::Mask && picture.surveyed.has_alpha;
    picture.sample.mask.as_deref().or_else(|| is_transparent.then_some(picture.sample.path.as_path()))
}

fn learned_share(picture: &Picture, path: &Path, downsampling: u32, pixels: &Budget) -> Result<Option<f32>, DataError> {
    // A share of the memory for the decoder, and as much again for what is kept of its pixels.
    let _share = pixels.take(probe(path)?.needed_bytes.saturating_mul(2));
    let grey =
        if picture.sample.mask.is_some() { Some(read_mask(path)?) } else { decode_with(path, Alpha::Mask)?.alpha };
    let Some(grey) = grey else { return Ok(None) };
    let crop = Crop::centred(picture.surveyed.size, &picture.assigned);
    let mask = Mask::new(&grey, &crop, picture.assigned.bucket, downsampling, path)?;
    Ok(Some(mask.data.iter().sum::<f32>() / mask.data.len() as f32))
}

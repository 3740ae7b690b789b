//! A contact sheet of exactly what the network sees: each image cropped to its bucket, what its mask leaves out tinted, and
//! its caption.

use std::path::Path;

use loralei_data::{Fitted, RgbImage, Role, fit};
use loralei_picture::{ContactSheet, Picture, PictureError, SheetText};
use loralei_trainer::{CheckedPicture, DataCheck, Event, TrainError};
use rayon::prelude::*;

use crate::commands::dataset_text::below;
use crate::report::Reporter;

/// Most images of a sheet.
const MOST_IMAGES: usize = 200;
/// So many images are in memory at once.
const AT_ONCE: usize = 4;
/// What a mask leaves out is moved towards this colour by this share.
const TINT: ([u8; 3], f32) = ([255, 0, 255], 0.6);

/// Draws the sheet and says where it is.
///
/// # Errors
/// If there is no image, or the file cannot be written.
pub(crate) fn write_sheet(
    path: &Path,
    check: &DataCheck<'_>,
    pictures: &[CheckedPicture],
    reporter: &mut Reporter,
) -> anyhow::Result<()> {
    if pictures.is_empty() {
        reporter.show(&Event::Warning { message: "there is no image for the sheet".to_owned() });
        return Ok(());
    }
    let mut shown: Vec<&CheckedPicture> = pictures.iter().collect();
    shown.sort_by_key(|checked| (checked.picture.sample.role == Role::Class, checked.picture.assigned.bucket));
    shown.truncate(MOST_IMAGES);

    let root = check.plan.data.first_folder();
    let of_all = if shown.len() < pictures.len() {
        format!("the first {} of {} images by bucket", shown.len(), pictures.len())
    } else {
        format!("{} images", pictures.len())
    };
    let title = format!("{of_all} as the network sees them: {}", root.display());
    let texts: Vec<SheetText> = shown.iter().map(|checked| text_of(checked, root)).collect();
    let mut sheet = ContactSheet::new(&title, &texts).map_err(TrainError::from)?;

    reporter.show(&Event::PhaseStarted { name: "drawing the sheet".into(), total: Some(shown.len() as u64) });
    let side_px = sheet.cell(0).map_or(1, |cell| cell.width_px);
    let (downsampling, outside) = (check.downsampling() as u32, check.plan.data.outside_mask_weight);
    let mut done = 0;
    for some in shown.chunks(AT_ONCE) {
        let seen = |checked: &&CheckedPicture| seen(checked, downsampling, outside, side_px);
        let thumbnails = some.par_iter().map(seen).collect::<Result<Vec<_>, _>>()?;
        for thumbnail in thumbnails {
            sheet.draw(done, &thumbnail).map_err(TrainError::from)?;
            done += 1;
        }
        reporter.show(&Event::PhaseProgress { done: done as u64 });
    }
    reporter.finish();
    let png = sheet.finish().to_png(None).map_err(TrainError::from)?;
    loralei_adapter::atomic_write_bytes(path, &png).map_err(TrainError::from)?;
    reporter.show(&Event::Saved { path: path.to_owned(), num_bytes: png.len() as u64 });
    Ok(())
}

fn text_of(checked: &CheckedPicture, root: &Path) -> SheetText {
    let (picture, sample) = (&checked.picture, &checked.picture.sample);
    let bucket = picture.assigned.bucket;
    let mut details = vec![format!("{}x{}", bucket.width_px, bucket.height_px)];
    details.extend((sample.repeats > 1).then(|| format!("x{}", sample.repeats)));
    details.extend(checked.learned_share.is_some().then(|| "mask".to_owned()));
    details.extend((sample.role == Role::Class).then(|| "class".to_owned()));
    let details = details.join(" ");
    let (text, counted_bytes) = match &checked.caption {
        Some(caption) if caption.text.is_empty() => ("(empty caption)".to_owned(), 0),
        Some(caption) => (caption.text.clone(), caption.length.kept_bytes),
        None => ("(no caption)".to_owned(), 0),
    };
    SheetText { heading: below(root, &sample.path), details, text, counted_bytes }
}

/// An image as the network sees it, made smaller if it is larger than its cell.
fn seen(checked: &CheckedPicture, downsampling: u32, outside_weight: f32, side_px: u32) -> Result<Picture, TrainError> {
    let fitted = checked.picture.fitted(downsampling, false)?;
    let (width_px, height_px) = (fitted.pixels.width_px, fitted.pixels.height_px);
    let rgb = tinted(&fitted, downsampling, outside_weight)?;
    let longest_px = width_px.max(height_px);
    if longest_px <= side_px {
        return Ok(Picture::from_rgb(width_px, height_px, rgb)?);
    }
    let no_pixels = || PictureError::NoPixels { width_px: width_px.into(), height_px: height_px.into() };
    let whole = RgbImage::from_raw(width_px, height_px, rgb).ok_or_else(no_pixels)?;
    let scaled = |side: u32| ((u64::from(side) * u64::from(side_px)).div_ceil(u64::from(longest_px)) as u32).max(1);
    thumbnail(&whole, scaled(width_px), scaled(height_px))
}

fn thumbnail(whole: &RgbImage, width_px: u32, height_px: u32) -> Result<Picture, TrainError> {
    let (pixels, _) = fit(whole, width_px, height_px)?;
    Ok(Picture::from_unit(&pixels.data, (width_px, height_px))?)
}

/// The bytes of the image, (height, width, 3), tinted where the loss counts less.
fn tinted(fitted: &Fitted, downsampling: u32, outside_weight: f32) -> Result<Vec<u8>, TrainError> {
    let (width_px, height_px) = (fitted.pixels.width_px, fitted.pixels.height_px);
    let mut rgb = Picture::from_unit(&fitted.pixels.data, (width_px, height_px))?.rgb().to_vec();
    let Some(mask) = &fitted.mask else { return Ok(rgb) };
    let (weights, (tint, share)) = (mask.weights(outside_weight), TINT);
    for (at, pixel) in rgb.chunks_exact_mut(3).enumerate() {
        let (x, y) = (at as u32 % width_px / downsampling, at as u32 / width_px / downsampling);
        // Pixels beyond the last whole latent pixel do not count.
        let is_inside = x < mask.width && y < mask.height;
        let weight = if is_inside { weights[(y * mask.width + x) as usize] } else { 0.0 };
        let strength = share * (1.0 - weight);
        for (value, tint) in pixel.iter_mut().zip(tint) {
            *value = (f32::from(*value) + (f32::from(tint) - f32::from(*value)) * strength).round() as u8;
        }
    }
    Ok(rgb)
}

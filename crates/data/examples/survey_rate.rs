//! Measures how fast pictures are surveyed and how fast they are decoded and fitted, on all cores.
//!
//! `cargo run --release -p loralei-data --example survey_rate -- FOLDER [SIDE=512]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use loralei_data::decode::has_image_extension;
use loralei_data::{BucketRules, Crop, DataError, Depth, Size, decode, find_duplicates, fit_crop, survey};
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: survey_rate FOLDER [SIDE]")?;
    let side_px: u32 = args.next().map_or(Ok(512), |side| side.parse())?;
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    paths.retain(|path| has_image_extension(path));
    paths.sort();

    let mut megapixels = 0.0;
    for depth in [Depth::Header, Depth::Pixels] {
        let started = Instant::now();
        let surveyed = survey(&paths, depth, |_| {});
        let elapsed_s = started.elapsed().as_secs_f64();
        megapixels = surveyed.iter().flatten().map(|seen| seen.size.area() as f64 / 1e6).sum();
        let num_read = surveyed.iter().flatten().count();
        rate(&format!("{depth:?}, {num_read} readable"), paths.len(), megapixels, elapsed_s);
        let started = Instant::now();
        let found = find_duplicates(&surveyed);
        let num_groups = (found.same_content.len(), found.same_look.len());
        println!("duplicates: {num_groups:?} groups in {:.3} s", started.elapsed().as_secs_f64());
    }

    let (min_px, max_px) = (side_px / 2, side_px * 2);
    let (enabled, no_upscale) = (true, false);
    let rules = BucketRules { width_px: side_px, height_px: side_px, enabled, min_px, max_px, step_px: 64, no_upscale };
    let started = Instant::now();
    let num_fitted = paths
        .par_iter()
        .map(|path| -> Result<(), DataError> {
            let image = decode(path)?;
            let original = Size::new(image.width(), image.height());
            let assigned = rules.assign(original);
            fit_crop(&image, &Crop::centred(original, &assigned), assigned.bucket).map(drop)
        })
        .filter(|fitted| fitted.as_ref().inspect_err(|error| println!("{error}")).is_ok())
        .count();
    rate("decode and fit", num_fitted, megapixels, started.elapsed().as_secs_f64());
    Ok(())
}

fn rate(what: &str, num_pictures: usize, megapixels: f64, elapsed_s: f64) {
    let (pictures_per_s, megapixels_per_s) = (num_pictures as f64 / elapsed_s, megapixels / elapsed_s);
    println!(
        "{what}: {num_pictures} pictures in {elapsed_s:.2} s, {pictures_per_s:.0} a second, {megapixels_per_s:.0} MP/s"
    );
}

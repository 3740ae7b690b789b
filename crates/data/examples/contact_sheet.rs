//! Lists a folder and saves one picture of what the network would see of it, four pictures in a row.
//!
//! `cargo run -p loralei-data --example contact_sheet -- FOLDER [SIZE=256] [OUT.png]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::PathBuf;

use loralei_data::{Alpha, BucketRules, CaptionRules, Dataset, RgbImage, Role, Source};

const COLUMNS: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: contact_sheet FOLDER [SIZE] [OUT.png]")?;
    let size_px: u32 = args.next().map_or(Ok(256), |size| size.parse())?;
    let out = args.next().unwrap_or_else(|| "contact_sheet.png".to_owned());

    let dataset = Dataset::read(&[source(PathBuf::from(&dir), size_px)])?;
    for skipped in &dataset.skipped {
        println!("skipped {}: {}", skipped.path.display(), skipped.reason);
    }
    for warning in &dataset.warnings {
        println!("warning: {warning}");
    }
    for problem in &dataset.problems {
        println!("error: {problem}");
    }
    let rows = (dataset.samples.len() as u32).div_ceil(COLUMNS);
    let mut sheet = RgbImage::new(COLUMNS * size_px, rows * size_px);
    for (sample, tile) in dataset.samples.iter().zip(0..) {
        let (pixels, crop) = sample.pixels(size_px, size_px)?;
        println!("{}: {:?}, {crop:?}", sample.path.display(), sample.caption.lines);
        for (value, at) in pixels.data.chunks_exact(3).zip(0..) {
            let (x, y) = (tile % COLUMNS * size_px + at % size_px, tile / COLUMNS * size_px + at / size_px);
            for (channel, &value) in sheet.get_pixel_mut(x, y).0.iter_mut().zip(value) {
                *channel = ((value + 1.0) * 127.5).round() as u8;
            }
        }
    }
    sheet.save(&out)?;
    println!("{} pictures in {out}", dataset.samples.len());
    Ok(())
}

fn source(path: PathBuf, size_px: u32) -> Source {
    let prompt = Some("(no caption)".to_owned());
    Source {
        path,
        role: Role::Subject,
        repeats: None,
        captions: CaptionRules { prompt, ..CaptionRules::default() },
        buckets: BucketRules {
            width_px: size_px,
            height_px: size_px,
            enabled: false,
            min_px: size_px,
            max_px: size_px,
            step_px: 1,
            no_upscale: false,
        },
        alpha: Alpha::Over([255; 3]),
        flip: false,
        weight: 1.0,
    }
}

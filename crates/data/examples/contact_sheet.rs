//! Lists a folder and saves one picture of what the network would see of it, four pictures in a row.
//!
//! `cargo run -p loralei-data --example contact_sheet -- FOLDER [SIZE=256] [OUT.png]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use loralei_data::{CaptionRules, Folder, RgbImage};

const COLUMNS: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: contact_sheet FOLDER [SIZE] [OUT.png]")?;
    let size_px: u32 = args.next().map_or(Ok(256), |size| size.parse())?;
    let out = args.next().unwrap_or_else(|| "contact_sheet.png".to_owned());

    let folder = Folder::read(Path::new(&dir), CaptionRules { prompt: Some("(no caption)"), trigger: None })?;
    for skipped in &folder.skipped {
        println!("skipped {}: {}", skipped.path.display(), skipped.reason);
    }
    let rows = (folder.samples.len() as u32).div_ceil(COLUMNS);
    let mut sheet = RgbImage::new(COLUMNS * size_px, rows * size_px);
    for (sample, tile) in folder.samples.iter().zip(0..) {
        let (pixels, crop) = sample.pixels(size_px, size_px)?;
        println!("{}: {:?}, {crop:?}", sample.path.display(), sample.caption);
        for (value, at) in pixels.data.chunks_exact(3).zip(0..) {
            let (x, y) = (tile % COLUMNS * size_px + at % size_px, tile / COLUMNS * size_px + at / size_px);
            for (channel, &value) in sheet.get_pixel_mut(x, y).0.iter_mut().zip(value) {
                *channel = ((value + 1.0) * 127.5).round() as u8;
            }
        }
    }
    sheet.save(&out)?;
    println!("{} pictures in {out}", folder.samples.len());
    Ok(())
}

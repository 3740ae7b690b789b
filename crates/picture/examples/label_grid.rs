//! Lays the pictures of a folder out with their captions, and saves that as a PNG with parameters: first as a grid, then
//! as two halves, before and after.
//!
//! `cargo run -p loralei-picture --example label_grid -- FOLDER [OUT_PREFIX=grid]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use loralei_data::{CaptionRules, Folder};
use loralei_picture::{AdapterUse, GenerationParameters, Grid, Picture, read_parameters};

const COLUMNS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: label_grid FOLDER [OUT_PREFIX]")?;
    let prefix = args.next().unwrap_or_else(|| "grid".to_owned());

    let folder = Folder::read(Path::new(&dir), CaptionRules { prompt: Some("(no caption)"), trigger: None })?;
    let mut labelled = Vec::new();
    for sample in &folder.samples {
        let image = loralei_data::decode(&sample.path)?;
        let picture = Picture::from_rgb(image.width(), image.height(), image.into_raw())?;
        labelled.push((sample.caption.clone(), picture));
    }
    let parameters = GenerationParameters {
        prompt: labelled.first().map(|(caption, _)| caption.clone()).unwrap_or_default(),
        adapters: vec![AdapterUse { name: "example".to_owned(), scale: 0.8, hash: Some("0123456789ab".to_owned()) }],
        steps: Some(30),
        sampler: Some("DDIM".to_owned()),
        guidance: Some(7.5),
        seed: Some(1),
        ..Default::default()
    };

    let mut grid =
        Grid::new().title(format!("Pictures of {dir}")).columns((1..=COLUMNS).map(|n| format!("column {n}")));
    for row in labelled.chunks_exact(COLUMNS) {
        grid = grid.row(captions(row), row.iter().map(|(_, picture)| picture.clone()).collect());
    }
    save(&grid, &format!("{prefix}-rows.png"), &parameters)?;

    // What was learned is played by the pictures themselves, what came before by their negatives.
    let halves = labelled.chunks_exact(2).map(|row| {
        let after: Vec<Picture> = row.iter().map(|(_, picture)| picture.clone()).collect();
        (captions(row), after.iter().map(negative).collect(), after)
    });
    let grid = Grid::before_after(halves)?.title("An adapter, at work").columns(["first", "second"].repeat(2));
    save(&grid, &format!("{prefix}-halves.png"), &parameters)
}

fn captions(row: &[(String, Picture)]) -> String {
    row.iter().map(|(caption, _)| caption.as_str()).collect::<Vec<_>>().join(", ")
}

fn negative(picture: &Picture) -> Picture {
    let rgb = picture.rgb().iter().map(|value| 255 - value).collect();
    Picture::from_rgb(picture.width_px(), picture.height_px(), rgb).unwrap_or_else(|_| picture.clone())
}

fn save(grid: &Grid, path: &str, parameters: &GenerationParameters) -> Result<(), Box<dyn Error>> {
    let sheet = grid.render()?;
    let png = sheet.to_png(Some(&parameters.to_string()))?;
    OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(&png)?;
    println!("{path}: {} x {} pixels", sheet.width_px(), sheet.height_px());
    println!("{}", read_parameters(&png)?.unwrap_or_default());
    Ok(())
}

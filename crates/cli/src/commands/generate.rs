//! `loralei generate`: pictures from text.

mod cells;

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use loralei_adapter::{TensorFile, TensorView, atomic_write_bytes, write_tensors};
use loralei_model::{
    AdapterUse, Base, DeviceSession, DrawingSettings, EncodedPrompts, ImageSide, ModelError, NoiseSource, PictureSizes,
    TextSide,
};
use loralei_picture::{GenerationParameters, Grid, Picture};
use loralei_trainer::{Event, TrainError};
use serde::Serialize;

use crate::args::GenerateArguments;
use crate::commands::adapters::{Adapters, note_unread};
use crate::commands::base::{self, model};
use crate::report::Reporter;
use crate::usage::UsageError;
use cells::{Cell, Cells, Labels};

pub(crate) fn run(arguments: &GenerateArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    arguments.computation.ops.run(|| arguments.computation.compute.run(|| generate(arguments, reporter)))
}

fn generate(arguments: &GenerateArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let cells = Cells::new(arguments)?;
    let adapters = Adapters::read(&arguments.adapter, reporter)?;
    check_output(&arguments.output)?;
    let started = Instant::now();
    let computation = &arguments.computation;
    let device = computation.device.open().map_err(model)?;
    let _session = DeviceSession::start(&device, false);
    let (ops, is_cpu) = (computation.ops, device.is_cpu());
    computation.compute.check(ops, is_cpu).map_err(TrainError::from)?;
    let weights = computation.compute.weights(computation.weights);
    let types = weights.number_types(computation.dtype(), ops, is_cpu).map_err(TrainError::from)?;
    let base = base::open(&arguments.base.base, arguments.base.schedule, types, &device, reporter)?;
    if let Some(adapter) = &adapters.sum {
        note_unread(&base, adapter, reporter);
    }
    let noise =
        arguments.latents.as_deref().map(|path| GivenNoise::read(path, &base, cells.cells.len())).transpose()?;
    let size_px = match (&noise, arguments.size) {
        (Some(noise), None) => noise.size_px,
        (Some(noise), Some(size)) if size != noise.size_px => {
            let (width, height) = noise.size_px;
            let message = format!("--size does not fit --latents, which is for {width}x{height}");
            return Err(UsageError::new(message, "leave --size out").into());
        }
        (_, Some(size)) => size,
        (None, None) => (base.native_size_px(), base.native_size_px()),
    };
    base.check_size(size_px.0, size_px.1).map_err(model)?;
    let sizes = told_sizes(arguments, &base, size_px)?;
    let mut drawing = Drawing { arguments, base: &base, adapters: &adapters, cells: &cells, sizes, reporter };
    let encoded = drawing.encode()?;
    let drawn = drawing.draw(&encoded, noise.as_ref(), started)?;
    drawn.print(arguments.json)
}

/// What the network is told of the pictures' sizes.
fn told_sizes(arguments: &GenerateArguments, base: &Base, size_px: (usize, usize)) -> anyhow::Result<PictureSizes> {
    let flags = [("--original-size", arguments.original_size), ("--crop", arguments.crop)];
    if let Some((flag, _)) = flags.into_iter().find(|(_, told)| told.is_some() && base.pooled_width().is_none()) {
        let message = format!("{flag}: `{}` is told nothing of sizes", base.name());
        return Err(UsageError::new(message, "leave it out; Stable Diffusion XL has learned what it means").into());
    }
    let whole = PictureSizes::whole(size_px);
    Ok(PictureSizes {
        original_px: arguments.original_size.unwrap_or(whole.original_px),
        crop_px: arguments.crop.unwrap_or(whole.crop_px),
        ..whole
    })
}

/// One run of the command.
struct Drawing<'a> {
    arguments: &'a GenerateArguments,
    base: &'a Base,
    adapters: &'a Adapters,
    cells: &'a Cells,
    sizes: PictureSizes,
    reporter: &'a mut Reporter,
}

/// A prompt's number and the bits of the adapters' strength, on which its encoding depends.
type PromptKey = (usize, u32);

impl Cell {
    fn prompt_key(&self) -> PromptKey {
        (self.prompt, self.strength.to_bits())
    }

    /// Whether both can be drawn together.
    fn fits(&self, other: &Self) -> bool {
        let of = |cell: &Self| (cell.steps, cell.guidance_scale.to_bits(), cell.sampler, cell.strength.to_bits());
        of(self) == of(other)
    }
}

impl Drawing<'_> {
    fn adapter_use(&self) -> Option<AdapterUse<'_>> {
        self.adapters.sum.as_ref().map(|adapter| AdapterUse { adapter, merged: self.arguments.merge })
    }

    /// The text encoders are loaded, used and dropped before the U-Net comes.
    fn encode(&mut self) -> anyhow::Result<BTreeMap<PromptKey, EncodedPrompts>> {
        self.reporter.show(&Event::PhaseStarted { name: "reading the prompts".into(), total: None });
        let text = TextSide::load(self.base, self.adapter_use()).map_err(model)?;
        let mut encoded = BTreeMap::new();
        for cell in &self.cells.cells {
            if encoded.contains_key(&cell.prompt_key()) {
                continue;
            }
            text.set_strength(cell.strength);
            let prompt = &self.arguments.prompt[cell.prompt];
            let prompts =
                text.encode(prompt, self.arguments.negative.as_deref(), self.arguments.clip_skip).map_err(model)?;
            encoded.insert(cell.prompt_key(), prompts);
        }
        Ok(encoded)
    }

    fn draw(
        &mut self,
        encoded: &BTreeMap<PromptKey, EncodedPrompts>,
        noise: Option<&GivenNoise>,
        started: Instant,
    ) -> anyhow::Result<Drawn> {
        self.reporter.show(&Event::PhaseStarted { name: "loading the base".into(), total: None });
        let image = ImageSide::load(self.base, self.adapter_use()).map_err(model)?;
        let mut drawn = Drawn { load_s: started.elapsed().as_secs_f64(), ..Drawn::default() };
        let total = self.cells.cells.iter().map(|cell| cell.steps as u64).sum();
        self.reporter.show(&Event::PhaseStarted { name: "drawing".into(), total: Some(total) });
        let (mut pictures, mut latents, mut done) = (Vec::new(), Vec::new(), 0);
        let batches =
            batches(&self.cells.cells, encoded, if noise.is_some() { usize::MAX } else { self.arguments.batch.into() });
        for batch in batches {
            let batch_started = Instant::now();
            let reporter = &mut *self.reporter;
            let made = draw_batch(&image, batch, encoded, noise, self.sizes, &mut |step| {
                reporter.show(&Event::PhaseProgress { done: done + (step * batch.len()) as u64 });
            })?;
            done += (batch[0].steps * batch.len()) as u64;
            let size_px = as_u32(self.sizes.target_px);
            for (cell, pixels) in batch.iter().zip(image.decode(&made).map_err(model)?) {
                if pixels.iter().any(|value| !value.is_finite()) {
                    return Err(model(ModelError::NonFinitePicture { seed: cell.seed }));
                }
                let picture = Picture::from_unit(&pixels, size_px)?;
                if self.cells.grid.is_none() {
                    let path = numbered(&self.arguments.output, pictures.len() + 1, self.cells.cells.len());
                    write(&path, &picture, &self.parameters(cell))?;
                    drawn.pictures.push(self.description(path, cell));
                }
                pictures.push(picture);
            }
            drawn.picture_s.extend(vec![batch_started.elapsed().as_secs_f64() / batch.len() as f64; batch.len()]);
            latents.push(made);
        }
        if let Some(labels) = &self.cells.grid {
            let grid = grid(pictures, labels, self.title())?;
            write(&self.arguments.output, &grid, &self.parameters(&self.cells.cells[0]))?;
            drawn.pictures.push(self.description(self.arguments.output.clone(), &self.cells.cells[0]));
        }
        if let Some(path) = &self.arguments.save_latents {
            save_latents(path, &Tensor::cat(&latents, 0)?)?;
        }
        self.reporter.finish();
        Ok(drawn)
    }

    fn parameters(&self, cell: &Cell) -> GenerationParameters {
        let base = self.base.name();
        let name =
            Path::new(&base).file_name().map_or_else(|| base.clone(), |name| name.to_string_lossy().into_owned());
        let PictureSizes { original_px, crop_px, target_px } = self.sizes;
        GenerationParameters {
            prompt: self.arguments.prompt[cell.prompt].clone(),
            negative_prompt: self.arguments.negative.clone().unwrap_or_default(),
            adapters: self.adapters.in_use(cell.strength),
            steps: Some(cell.steps as u32),
            sampler: Some(cell.sampler.title().to_owned()),
            guidance: Some(cell.guidance_scale),
            seed: self.arguments.latents.is_none().then_some(cell.seed),
            size_px: Some(as_u32(target_px)),
            original_size_px: (original_px != target_px).then(|| as_u32(original_px)),
            crop_px: (crop_px != (0, 0)).then(|| as_u32(crop_px)),
            model: Some(name),
            clip_skip: (self.arguments.clip_skip > 1).then_some(self.arguments.clip_skip as u32),
            ..GenerationParameters::default()
        }
    }

    fn description(&self, path: PathBuf, cell: &Cell) -> PictureDescription {
        PictureDescription {
            path,
            prompt: self.arguments.prompt[cell.prompt].clone(),
            seed: cell.seed,
            steps: cell.steps,
            guidance_scale: cell.guidance_scale,
            sampler: cell.sampler.name(),
            width_px: self.sizes.target_px.0,
            height_px: self.sizes.target_px.1,
        }
    }

    /// Over a grid: the prompt, unless every row has its own.
    fn title(&self) -> String {
        if self.arguments.prompt.len() == 1 { self.arguments.prompt[0].clone() } else { String::new() }
    }
}

fn as_u32((first, second): (usize, usize)) -> (u32, u32) {
    (first as u32, second as u32)
}

fn write(path: &Path, picture: &Picture, parameters: &GenerationParameters) -> anyhow::Result<()> {
    let bytes = picture.to_png(Some(&parameters.to_string()))?;
    Ok(atomic_write_bytes(path, &bytes).map_err(TrainError::from)?)
}

/// Runs of neighbours that can be drawn together, at most `largest` long.
fn batches<'a>(
    cells: &'a [Cell],
    encoded: &'a BTreeMap<PromptKey, EncodedPrompts>,
    largest: usize,
) -> impl Iterator<Item = &'a [Cell]> {
    let length = |cell: &Cell| encoded.get(&cell.prompt_key()).map(|prompts| prompts.prompt.num_tokens());
    let runs = cells.chunk_by(move |a, b| a.fits(b) && length(a) == length(b));
    runs.flat_map(move |run| run.chunks(largest))
}

fn draw_batch(
    image: &ImageSide,
    batch: &[Cell],
    encoded: &BTreeMap<PromptKey, EncodedPrompts>,
    noise: Option<&GivenNoise>,
    sizes: PictureSizes,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Tensor> {
    let prompts: Vec<EncodedPrompts> =
        batch.iter().filter_map(|cell| encoded.get(&cell.prompt_key()).cloned()).collect();
    let noise = match noise {
        Some(given) => NoiseSource::Given { latents: given.latents.clone(), steps: given.steps.clone() },
        None => NoiseSource::Seeds(batch.iter().map(|cell| cell.seed).collect()),
    };
    let Cell { sampler, steps, guidance_scale, strength, .. } = batch[0];
    image.set_strength(strength);
    let settings = DrawingSettings { sampler, steps, guidance_scale, sizes };
    image.draw(&prompts, &noise, sizes.target_px, &settings, progress).map_err(model)
}

/// Noise from a file.
struct GivenNoise {
    latents: Tensor,
    steps: Option<Tensor>,
    size_px: (usize, usize),
}

impl GivenNoise {
    fn read(path: &Path, base: &Base, num_pictures: usize) -> anyhow::Result<Self> {
        let file = TensorFile::open(path).map_err(TrainError::from)?;
        let read = |name: &str| -> anyhow::Result<Tensor> {
            let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
            Ok(Tensor::from_vec(file.read_f32(name).map_err(TrainError::from)?, shape, &Device::Cpu)?)
        };
        let wrong = |message: String| UsageError::new(format!("`{}`: {message}", path.display()), LATENTS_HINT);
        if file.info("latents").is_none() {
            return Err(wrong("it has no tensor `latents`".into()).into());
        }
        let latents = read("latents")?;
        let Ok((n, channels, height, width)) = latents.dims4() else {
            return Err(wrong(format!("`latents` has shape {:?}", latents.dims())).into());
        };
        if channels != base.vae_config().latent_channels || n != num_pictures {
            return Err(wrong(format!("`latents` has shape {:?} for {num_pictures} pictures", latents.dims())).into());
        }
        let steps = file.info("noise").map(|_| read("noise")).transpose()?;
        if steps.as_ref().is_some_and(|noise| noise.dims().get(1..) != Some(latents.dims())) {
            return Err(wrong("`noise` has another shape than (steps, n, 4, h, w)".into()).into());
        }
        let side = base.vae_config().downsampling();
        Ok(Self { latents, steps, size_px: (width * side, height * side) })
    }
}

const LATENTS_HINT: &str = "`latents` is (n, 4, h, w) with one for each picture (--count); `noise` (steps, n, 4, h, w)";

fn save_latents(path: &Path, latents: &Tensor) -> anyhow::Result<()> {
    let (shape, values) = (latents.dims().to_vec(), latents.flatten_all()?.to_vec1::<f32>()?);
    let tensors = [("latents".to_owned(), TensorView::f32(&shape, &values))].into();
    Ok(write_tensors(path, &tensors, &BTreeMap::new()).map_err(TrainError::from)?)
}

fn grid(pictures: Vec<Picture>, labels: &Labels, title: String) -> anyhow::Result<Picture> {
    let mut grid = Grid::new().title(title).columns(labels.columns.clone());
    let mut pictures = pictures.into_iter();
    for row in 0..labels.rows.len().max(1) {
        let label = labels.rows.get(row).cloned().unwrap_or_default();
        grid = grid.row(label, pictures.by_ref().take(labels.columns.len()).collect());
    }
    Ok(grid.render()?)
}

/// `OUT.png` for one picture, else `OUT-01.png` and so on, with as many digits as the last number has, at least two.
fn numbered(output: &Path, number: usize, total: usize) -> PathBuf {
    if total == 1 {
        return output.to_owned();
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let digits = total.to_string().len().max(2);
    output.with_file_name(format!("{stem}-{number:0digits$}.png"))
}

fn check_output(output: &Path) -> anyhow::Result<()> {
    if output.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
        let message = format!("--output `{}` does not end in .png", output.display());
        return Err(UsageError::new(message, "pictures are written as PNG").into());
    }
    if let Some(folder) = output.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| TrainError::Disk { path: folder.to_owned(), source })?;
    }
    Ok(())
}

/// What was drawn.
#[derive(Default, Serialize)]
struct Drawn {
    pictures: Vec<PictureDescription>,
    /// Seconds for each, without loading.
    picture_s: Vec<f64>,
    /// Seconds of everything before the first picture.
    load_s: f64,
}

#[derive(Serialize)]
struct PictureDescription {
    path: PathBuf,
    prompt: String,
    seed: u64,
    steps: usize,
    guidance_scale: f64,
    sampler: &'static str,
    width_px: usize,
    height_px: usize,
}

impl Drawn {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = stdout();
        if json {
            return Ok(writeln!(out, "{}", serde_json::to_string(self)?)?);
        }
        self.pictures.iter().try_for_each(|picture| Ok(writeln!(out, "{}", picture.path.display())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_are_numbered_and_one_is_not() {
        let numbered = |number, total| numbered(Path::new("a/b.png"), number, total).display().to_string();
        assert_eq!([numbered(1, 1), numbered(3, 9), numbered(7, 120)], ["a/b.png", "a/b-03.png", "a/b-007.png"]);
    }
}

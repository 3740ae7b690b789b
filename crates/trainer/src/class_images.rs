//! Images of the class word for prior preservation (Ruiz et al. 2022, "DreamBooth", arXiv 2208.12242, section 3.2): those
//! that are missing are drawn by the frozen base before the run.

use std::path::{Path, PathBuf};

use loralei_data::{Role, Source};
use loralei_model::{Base, DrawingSettings, PictureSizes, TextEncoder};

use crate::drawer::{Drawer, PictureRequest, encode};
use crate::error::TrainError;
use crate::event::Event;
use crate::plan::Plan;
use crate::plan::{PriorPlan, PriorTerm};

/// Where drawn images go, in the run's folder.
pub(crate) const FOLDER: &str = "class-images";
/// Seed of the first drawn image: apart from those of samples and of people.
const FIRST_SEED: u64 = 0x636c_6173_7300;

/// `sources`, with a folder of drawn class images if the plan asks for more than there are. The same settings draw the same
/// images, and those that are there already are kept.
///
/// # Errors
/// Networks that cannot be loaded, a disk that cannot be written.
pub(crate) fn with_class_images(
    plan: &Plan,
    base: &Base,
    mut sources: Vec<Source>,
    num_found: impl FnOnce(&[Source]) -> Result<usize, TrainError>,
    events: &mut dyn FnMut(Event),
) -> Result<Vec<Source>, TrainError> {
    let Some(PriorPlan { kind: PriorTerm::Images { num_images, prompt }, .. }) = &plan.prior else {
        return Ok(sources);
    };
    let num_missing = num_images.saturating_sub(num_found(&sources)?);
    if num_missing == 0 || prompt.is_empty() {
        return Ok(sources);
    }
    let folder = plan.output_folder.join(FOLDER);
    draw_missing(plan, base, &folder, num_missing, prompt, events)?;
    let Some(model) = sources.iter().find(|source| source.role == Role::Subject) else { return Ok(sources) };
    let mut captions = loralei_data::CaptionRules { prompt: Some(prompt.clone()), ..model.captions.clone() };
    (captions.trigger, captions.prefix, captions.suffix) = (None, None, None);
    let source = Source { path: folder, role: Role::Class, repeats: None, captions, flip: false, ..model.clone() };
    sources.push(source);
    Ok(sources)
}

fn draw_missing(
    plan: &Plan,
    base: &Base,
    folder: &Path,
    num_images: usize,
    prompt: &str,
    events: &mut dyn FnMut(Event),
) -> Result<(), TrainError> {
    let disk = |source| TrainError::Disk { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(disk)?;
    let wanted: Vec<(u64, PathBuf)> =
        (0..num_images as u64).map(|i| (FIRST_SEED + i, folder.join(format!("{:04}.png", i + 1)))).collect();
    let is_there = |path: &PathBuf| path.is_file() && is_of(path, prompt);
    if wanted.iter().all(|(_, path)| is_there(path)) {
        return Ok(());
    }
    let size_px = plan.data.largest_px();
    let samples = plan.samples.clone().unwrap_or_default();
    let settings = DrawingSettings {
        sampler: samples.sampler.0,
        steps: samples.steps,
        guidance_scale: samples.guidance_scale,
        sizes: PictureSizes::whole(size_px),
    };
    let encoders =
        (0..base.num_text_encoders()).map(|i| base.load_text_encoder(i, None)).collect::<Result<Vec<_>, _>>()?;
    let (unet, vae, schedule) = (base.load_unet(None)?, base.load_vae()?, base.noise_schedule());
    let drawer = Drawer { base, unet: &unet, schedule: &schedule, vae: &vae };
    let encoded = encode(base, &encoders.iter().collect::<Vec<&TextEncoder>>(), &[(prompt, "")])?;
    // Always the same together: what is drawn beside a picture moves its last bits.
    let groups = wanted.chunks(drawer.at_once(size_px)).filter(|group| !group.iter().all(|(_, path)| is_there(path)));
    let groups: Vec<_> = groups.collect();
    let total = groups.iter().map(|group| group.len() * settings.steps).sum::<usize>() as u64;
    events(Event::PhaseStarted { name: "drawing class images".into(), total: Some(total) });
    let mut done = 0;
    for group in groups {
        let request = |seed: u64| {
            encoded.iter().map(move |prompts| PictureRequest { prompts: prompts.clone(), seed, size_px, settings })
        };
        let requests: Vec<PictureRequest> = group.iter().flat_map(|(seed, _)| request(*seed)).collect();
        let pictures = drawer.pictures(&requests, &mut |steps| {
            done += steps as u64;
            events(Event::PhaseProgress { done });
        })?;
        for ((_, path), picture) in group.iter().zip(pictures) {
            loralei_adapter::atomic_write_bytes(path, &picture.to_png(Some(prompt))?)?;
        }
    }
    Ok(())
}

/// Whether a drawn image was drawn from `prompt`.
fn is_of(path: &Path, prompt: &str) -> bool {
    let parameters = std::fs::read(path).ok().and_then(|bytes| loralei_picture::read_parameters(&bytes).ok().flatten());
    parameters.as_deref() == Some(prompt)
}

//! The first and the last pictures of a run side by side, and how far they moved.

use std::path::{Path, PathBuf};

use loralei_picture::{Grid, Picture};

use crate::error::TrainError;
use crate::event::Event;
use crate::plan::Plan;
use crate::samples::SampleLine;

/// How much the pictures changed.
#[derive(Debug, Clone, PartialEq)]
pub struct BeforeAfter {
    /// The grid.
    pub path: PathBuf,
    /// Mean absolute difference of the pictures whose prompt has the trigger, of the range from black to white; `None`
    /// if there are none.
    pub changed_with_trigger: Option<f64>,
    /// The same of the other pictures.
    pub changed_without_trigger: Option<f64>,
}

impl BeforeAfter {
    /// Writes `before-after.png` from the pictures that `first` and `last` name. What is only in one of them, because prompts
    /// were changed on the way, is left out; `None` if nothing is in both.
    ///
    /// # Errors
    /// Pictures that are gone, a disk that cannot be written.
    pub fn write(
        plan: &Plan,
        first: &[SampleLine],
        last: &[SampleLine],
        events: &mut dyn FnMut(Event),
    ) -> Result<Option<Self>, TrainError> {
        let is_same = |(a, b): &(&SampleLine, &SampleLine)| {
            (&a.prompt, a.seed, a.width_px, a.height_px) == (&b.prompt, b.seed, b.width_px, b.height_px)
        };
        let pairs: Vec<_> = first.iter().zip(last).filter(is_same).collect();
        if pairs.is_empty() {
            return Ok(None);
        }
        let read = |line: &SampleLine| read_picture(&plan.output_folder.join(&line.file));
        let (mut rows, mut changes) = (Vec::new(), [Vec::new(), Vec::new()]);
        for (first, last) in pairs {
            let (before, after) = (read(first)?, read(last)?);
            let has_trigger = plan.data.trigger.as_deref().is_none_or(|trigger| last.prompt.contains(trigger));
            changes[usize::from(has_trigger)].push(before.mean_abs_difference(&after)?);
            rows.push((last.prompt.clone(), vec![before], vec![after]));
        }
        let bytes = Grid::before_after(rows)?.render()?.to_png(None)?;
        let path = plan.output_folder.join("before-after.png");
        loralei_adapter::atomic_write_bytes(&path, &bytes)?;
        events(Event::Saved { path: path.clone(), num_bytes: bytes.len() as u64 });
        let [without, with] = changes.map(|of| (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64));
        Ok(Some(Self { path, changed_with_trigger: with, changed_without_trigger: without }))
    }
}

fn read_picture(path: &Path) -> Result<Picture, TrainError> {
    let pixels = loralei_data::decode(path)?;
    Ok(Picture::from_rgb(pixels.width(), pixels.height(), pixels.into_raw())?)
}

//! Which captions the prior speaks of: those on which the adapted network must still do what the base does.
//!
//! Captions of the class word alone leak into everything else; a mix of class, unrelated and empty ones does not.

use std::path::Path;

use loralei_data::{with_class_word, without_trigger};

use crate::config::PriorCaptions;
use crate::encoded::EncodedImages;
use crate::error::TrainError;
use crate::plan::{DataPlan, PriorPlan, PriorTerm};

/// Things that have nothing to do with most subjects.
pub(crate) const UNRELATED: [&str; 8] = [
    "a photo of a person",
    "a mountain landscape",
    "a street in a city",
    "a plate of food on a table",
    "an oil painting of a ship",
    "a car on a road",
    "a drawing of a tree",
    "the inside of a room",
];

/// The captions that `prior` asks for, for a run of `images`: in a fixed order, each once; none if it needs none.
///
/// # Errors
/// A file that cannot be read or holds no caption; images without the trigger, whose captions cannot be told from others.
pub(crate) fn prior_captions(
    prior: Option<&PriorPlan>,
    data: &DataPlan,
    images: &EncodedImages,
) -> Result<Vec<String>, TrainError> {
    let Some(PriorPlan { kind: PriorTerm::Base(captions), .. }) = prior else { return Ok(Vec::new()) };
    let class = || data.class.iter().cloned();
    let mut captions: Vec<String> = match captions {
        PriorCaptions::Mixed => {
            let unrelated = UNRELATED.map(str::to_owned);
            own(data, images).into_iter().chain(class()).chain(unrelated).chain([String::new()]).collect()
        }
        PriorCaptions::Own => own(data, images),
        PriorCaptions::Class => class().collect(),
        PriorCaptions::List(captions) => captions.clone(),
        PriorCaptions::File(path) => read_lines(path)?,
    };
    if captions.is_empty() {
        let message = "no caption of the images has the trigger, so none is without it".to_owned();
        return Err(TrainError::ConfigValue { place: "prior.captions".to_owned(), message });
    }
    captions.sort_unstable();
    captions.dedup();
    Ok(captions)
}

/// The run's own captions without the trigger, or with the class word in its place.
fn own(data: &DataPlan, images: &EncodedImages) -> Vec<String> {
    let Some(trigger) = data.trigger.as_deref() else { return Vec::new() };
    let other = |caption: String| match data.class.as_deref() {
        Some(class) => with_class_word(&caption, trigger, class),
        None => without_trigger(&caption, trigger),
    };
    images.first_captions().filter_map(other).collect()
}

/// The lines of a file of captions or prompts, trimmed; not all of them empty.
///
/// # Errors
/// A file that cannot be read or holds no caption.
pub(crate) fn read_lines(path: &Path) -> Result<Vec<String>, TrainError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| TrainError::ConfigRead { path: path.to_path_buf(), source })?;
    let lines: Vec<String> = text.lines().map(str::trim).map(str::to_owned).collect();
    if lines.iter().all(String::is_empty) {
        let message = "it holds no caption".to_owned();
        return Err(TrainError::ConfigValue { place: path.display().to_string(), message });
    }
    Ok(lines)
}

//! Which captions the prior speaks of: those on which the adapted network must still do what the base does.
//!
//! Captions of the class word alone leak into everything else; a mix of class, unrelated and empty ones does not.

use std::path::Path;

use loralei_data::Folder;

use crate::error::TrainError;
use crate::plan::Plan;

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

/// The captions of the plan's file, or the mix that stands in for it. Never empty; in a fixed order, each once.
///
/// # Errors
/// A file that cannot be read or holds no caption.
pub(crate) fn prior_captions(plan: &Plan, folder: &Folder) -> Result<Vec<String>, TrainError> {
    let Some(prior) = &plan.prior else { return Ok(Vec::new()) };
    let mut captions = prior.captions.as_deref().map_or_else(|| Ok(mixed(plan, folder)), read_lines)?;
    captions.sort_unstable();
    captions.dedup();
    Ok(captions)
}

/// The run's own captions without the trigger, some unrelated ones, and the empty one.
fn mixed(plan: &Plan, folder: &Folder) -> Vec<String> {
    let own = folder.samples.iter().filter_map(|sample| without_trigger(&sample.caption, plan.trigger.as_deref()?));
    own.chain(UNRELATED.map(str::to_owned)).chain([String::new()]).collect()
}

/// The caption with the trigger words taken out; none if they were not in it.
fn without_trigger(caption: &str, trigger: &str) -> Option<String> {
    if !caption.contains(trigger) {
        return None;
    }
    let rest = caption.replace(trigger, " ");
    let words: Vec<&str> = rest.split_whitespace().collect();
    Some(words.join(" ").trim_matches([',', ' ']).to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_is_taken_out_with_the_comma_behind_it() {
        assert_eq!(without_trigger("sks dog, on a sofa", "sks dog").as_deref(), Some("on a sofa"));
        assert_eq!(without_trigger("photo of the sks dog", "sks").as_deref(), Some("photo of the dog"));
        assert_eq!(without_trigger("a dog", "sks"), None);
    }
}

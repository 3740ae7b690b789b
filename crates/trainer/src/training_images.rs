//! The images of a run, before any network is loaded: what the sources hold, at which size each is trained, and what cannot
//! be used.

use std::collections::BTreeSet;
use std::path::Path;

use loralei_data::{ContentHash, Depth, Inspection, Picture, Place, Role, Source};

use crate::error::{TrainError, Violation};
use crate::event::Event;
use crate::hold_out::held_out;
use crate::plan::{DataPlan, MeasuredOn};

/// Most lines of one kind that are said; `loralei dataset check` lists all.
const MOST_LINES: usize = 10;

/// What a run learns from.
pub struct TrainingImages {
    /// The sources, whose rules make the captions.
    pub sources: Vec<Source>,
    /// The images of the subject.
    pub subject: Vec<Picture>,
    /// Images of the class.
    pub class: Vec<Picture>,
    /// Images of the subject that are measured on and not learned from; none if it is measured on those that are.
    pub validation: Vec<Picture>,
    /// The folders that those lie in that are learned from.
    pub places: Vec<Place>,
}

impl TrainingImages {
    /// Looks at every image of `sources`, and says what was found and what is left aside.
    ///
    /// # Errors
    /// No image, a caption that cannot be read, and with `strict` an image that cannot be read.
    pub fn read(sources: Vec<Source>, plan: &DataPlan, events: &mut dyn FnMut(Event)) -> Result<Self, TrainError> {
        events(Event::PhaseStarted { name: "reading images".into(), total: None });
        let Inspection { pictures, mut unreadable, found } = Inspection::new(&sources, Depth::Header, |_, _| ())?;
        let mut problems = found.problems;
        if plan.strict {
            problems.extend(unreadable.drain(..).map(|unreadable| unreadable.error));
        }
        if !problems.is_empty() {
            return Err(TrainError::Dataset { problems });
        }
        let left_aside =
            found.skipped.iter().map(|entry| format!("left aside `{}`: {}", entry.path.display(), entry.reason));
        warn(left_aside, "entries were left aside", events);
        let broken = unreadable.iter().map(|unreadable| format!("left out: {}", unreadable.error));
        warn(broken, "images were left out", events);
        warn(found.warnings.iter().map(ToString::to_string), "warnings", events);
        let (class, subject): (Vec<_>, Vec<_>) =
            pictures.into_iter().partition(|picture| picture.sample.role == Role::Class);
        if subject.is_empty() {
            let path = sources.first().map(|source| source.path.clone()).unwrap_or_default();
            let num_skipped = found.skipped.len() + unreadable.len();
            return Err(loralei_data::DataError::NoImages { path, num_skipped }.into());
        }
        let images = Self { sources, subject, class, validation: Vec::new(), places: found.places };
        images.say(events);
        Ok(images)
    }

    /// Sets apart what validation is measured on.
    ///
    /// # Errors
    /// A part of the images that would be all of them or none; a folder that [`TrainingImages::read`] refuses.
    pub(crate) fn set_apart(
        &mut self,
        measured_on: &MeasuredOn,
        plan: &DataPlan,
        seed: u64,
        events: &mut dyn FnMut(Event),
    ) -> Result<(), TrainError> {
        match measured_on {
            MeasuredOn::Training => Ok(()),
            MeasuredOn::HeldOut(share) => self.hold_out(*share, seed, events),
            MeasuredOn::Folder(folder) => self.measure_on(folder, plan, events),
        }
    }

    fn hold_out(&mut self, share: f64, seed: u64, events: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let contents: Vec<ContentHash> = self.subject.iter().map(|picture| picture.surveyed.content).collect();
        let Some(held) = held_out(seed, &contents, share) else {
            let problem = "there are no two different images, one to learn from and one to measure on";
            let hint = "set it to 0, or name a folder with `validation.images`";
            return Err(
                Violation { key: "validation.hold_out".into(), problem: problem.into(), hint: hint.into() }.into()
            );
        };
        let mut held = held.into_iter();
        let is_held = |_: &mut Picture| held.next().unwrap_or_default();
        self.validation = self.subject.extract_if(.., is_held).collect();
        for Picture { sample, .. } in &self.validation {
            let holds = |place: &&mut Place| {
                place.source == sample.source && sample.path.parent() == Some(place.path.as_path())
            };
            if let Some(place) = self.places.iter_mut().find(holds) {
                place.num_images -= 1;
            }
        }
        let names = self.validation.iter().take(MOST_LINES).filter_map(|picture| picture.sample.path.file_name());
        let names: Vec<String> = names.map(|name| format!("`{}`", name.to_string_lossy())).collect();
        let (count, dots) = (self.validation.len(), if self.validation.len() > MOST_LINES { ", ..." } else { "" });
        let message = format!("kept from training for validation: {count} images: {}{dots}", names.join(", "));
        events(Event::Note { message });
        Ok(())
    }

    /// Measures on the images of `folder`, under the rules of the first source.
    fn measure_on(&mut self, folder: &Path, plan: &DataPlan, events: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let Some(model) = self.sources.iter().find(|source| source.role == Role::Subject) else { return Ok(()) };
        let source = Source { path: folder.to_owned(), repeats: None, flip: false, ..model.clone() };
        let Self { mut subject, .. } = Self::read(vec![source.clone()], plan, events)?;
        let learned: BTreeSet<ContentHash> = self.subject.iter().map(|picture| picture.surveyed.content).collect();
        let num_learned = subject.iter().filter(|picture| learned.contains(&picture.surveyed.content)).count();
        if num_learned > 0 {
            let message = format!("{num_learned} images of `validation.images` are learned from as well");
            events(Event::Warning { message });
        }
        subject.iter_mut().for_each(|picture| picture.sample.source = self.sources.len());
        self.sources.push(source);
        self.validation = subject;
        Ok(())
    }

    fn say(&self, events: &mut dyn FnMut(Event)) {
        for place in &self.places {
            let counts = &place.captions;
            let mut parts = vec![format!("{} images, {} with a caption file", place.num_images, counts.files)];
            for (count, what) in [
                (counts.metadata, "in metadata.jsonl"),
                (counts.file_names, "named by their file"),
                (counts.folder_names, "named by their folder"),
                (counts.prompts, "with the prompt"),
                (place.num_masks, "with a mask"),
            ] {
                parts.extend((count > 0).then(|| format!("{count} {what}")));
            }
            parts.extend((place.repeats > 1).then(|| format!("each {} times an epoch", place.repeats)));
            let message = parts.join(", ");
            events(Event::Note { message: format!("{message}, in `{}`", place.path.display()) });
        }
    }
}

/// The first few lines as warnings, and how many there are besides.
fn warn(lines: impl ExactSizeIterator<Item = String>, what: &str, events: &mut dyn FnMut(Event)) {
    let count = lines.len();
    for message in lines.take(MOST_LINES) {
        events(Event::Warning { message });
    }
    if count > MOST_LINES {
        let message = format!("{} more {what}: `loralei dataset check` lists them", count - MOST_LINES);
        events(Event::Warning { message });
    }
}

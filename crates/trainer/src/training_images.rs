//! The images of a run, before any network is loaded: what the sources hold, at which size each is trained, and what cannot
//! be used.

use loralei_data::{Depth, Inspection, Picture, Place, Role, Source};

use crate::data_plan::DataPlan;
use crate::error::TrainError;
use crate::event::Event;

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
    /// The folders that they lie in.
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
            let path = plan.first_folder().to_owned();
            let num_skipped = found.skipped.len() + unreadable.len();
            return Err(loralei_data::DataError::NoImages { path, num_skipped }.into());
        }
        let images = Self { sources, subject, class, places: found.places };
        images.say(events);
        Ok(images)
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

//! The data of a run looked at as closely as can be before any network is loaded: every image decoded, every mask read, every
//! caption measured.

use std::collections::BTreeMap;

use loralei_data::{CaptionOrigin, Depth, Inspection, Picture, Role, Unreadable, survey_masks};
use loralei_model::Base;

use crate::checked_captions::{CaptionChecker, CheckedCaption};
use crate::data_report::{DataReport, Found};
use crate::encoded::seed_of;
use crate::error::TrainError;
use crate::plan::Plan;

/// Latents are so many times smaller than images, where no base says otherwise.
const USUAL_DOWNSAMPLING: usize = 8;

/// The data of a run, and what they are to be trained with.
#[derive(Clone, Copy)]
pub struct DataCheck<'a> {
    /// The settings.
    pub plan: &'a Plan,
    /// The base, for its tokenizers and its sizes, if there is one yet.
    pub base: Option<&'a Base>,
    /// Sides of images are multiples of it, where the settings do not say otherwise.
    pub size_multiple_px: usize,
    /// Whether every image is decoded, or only its header read.
    pub depth: Depth,
}

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckPhase {
    /// Images are decoded.
    Images,
    /// Masks are read.
    Masks,
}

/// An image that can be trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedPicture {
    /// The image and its size.
    pub picture: Picture,
    /// Its caption; `None` if there is none.
    pub caption: Option<CheckedCaption>,
    /// The share of the image that its mask lets the loss count.
    pub learned_share: Option<f32>,
}

/// Everything that was found.
#[derive(Debug)]
pub struct CheckedData {
    /// In figures and sentences.
    pub report: DataReport,
    /// The images that can be trained on, in the order of the sources.
    pub pictures: Vec<CheckedPicture>,
}

impl DataCheck<'_> {
    /// Looks at everything. `on_seen` is called from any thread with how many of how many are seen in each phase.
    ///
    /// What is wrong with the data is in the report.
    ///
    /// # Errors
    /// Tokenizers or weight files of the base that cannot be read.
    pub fn run(&self, on_seen: impl Fn(CheckPhase, usize, usize) + Sync) -> Result<CheckedData, TrainError> {
        let sources = self.plan.data.sources(self.size_multiple_px);
        let on_image = |seen, all| on_seen(CheckPhase::Images, seen, all);
        let mut inspection = Inspection::new(&sources, self.depth, on_image).unwrap_or_else(|error| {
            let mut nothing = Inspection::default();
            nothing.found.problems.push(error);
            nothing
        });
        let mut captions = CaptionChecker::new(self.base, self.plan.data.num_chunks)?;
        let on_mask = |seen, all| on_seen(CheckPhase::Masks, seen, all);
        let learned = survey_masks(&inspection.pictures, self.downsampling() as u32, on_mask);
        let mut pictures = Vec::with_capacity(inspection.pictures.len());
        let mut num_of_role = BTreeMap::new();
        for (picture, learned) in std::mem::take(&mut inspection.pictures).into_iter().zip(learned) {
            let learned_share = match learned {
                Ok(share) => share,
                Err(error) => {
                    inspection.unreadable.push(Unreadable { path: picture.sample.path, error });
                    continue;
                }
            };
            let is_class = picture.sample.role == Role::Class;
            let number = num_of_role.entry(is_class).or_insert(0);
            let seed = seed_of(picture.sample.role, self.plan.seed);
            let rules = &sources[picture.sample.source].captions;
            let has_caption = picture.sample.caption.origin != CaptionOrigin::Nowhere;
            let caption = has_caption.then(|| captions.check(rules, &picture.sample.caption, seed, *number));
            *number += 1;
            pictures.push(CheckedPicture { picture, caption: caption.transpose()?, learned_share });
        }
        let found = Found {
            check: self,
            sources: &sources,
            inspection: &inspection,
            pictures: &pictures,
            max_tokens: captions.max_tokens(),
        };
        Ok(CheckedData { report: DataReport::of(&found)?, pictures })
    }

    /// How many times smaller latents are.
    pub fn downsampling(&self) -> usize {
        self.base.map_or(USUAL_DOWNSAMPLING, |base| base.vae_config().downsampling())
    }
}

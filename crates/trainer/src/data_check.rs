//! The data of a run looked at as closely as can be before any network is loaded: every image decoded, every mask read, every
//! caption measured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use loralei_data::{
    CaptionText, DataError, Dataset, Depth, Inspection, Picture, Role, Source, Unreadable, survey_masks,
};
use loralei_model::Base;

use crate::checked_captions::{CaptionChecker, CheckedCaption};
use crate::data_report::{DataReport, Found};
use crate::error::TrainError;
use crate::plan::Plan;

/// Latents are so many times smaller than images, where no base says otherwise.
const USUAL_DOWNSAMPLING: usize = 8;
/// What stands in for a caption that is missing, so that the image is looked at all the same. Not empty.
const NO_CAPTION: &str = "no caption";

/// The data of a run, and what they are to be trained with.
#[derive(Clone, Copy)]
pub struct DataCheck<'a> {
    /// The settings.
    pub plan: &'a Plan,
    /// The base, for its tokenizers and its sizes, if there is one yet.
    pub base: Option<&'a Base>,
    /// Sides of images are multiples of it, where the settings do not say otherwise.
    pub size_multiple_px: usize,
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
        let (mut inspection, missing) = match inspect(&sources, |seen, all| on_seen(CheckPhase::Images, seen, all)) {
            Ok(found) => found,
            Err(error) => {
                let mut inspection = Inspection::default();
                inspection.found.problems.push(error);
                (inspection, BTreeSet::new())
            }
        };
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
            // As a run does: each role has an order of its own.
            let seed = if is_class { !self.plan.seed } else { self.plan.seed };
            let rules = &sources[picture.sample.source].captions;
            let has_caption = !missing.contains(&picture.sample.path);
            let caption = has_caption.then(|| captions.check(rules, &picture.sample.caption, seed, *number));
            *number += 1;
            pictures.push(CheckedPicture { picture, caption: caption.transpose()?, learned_share });
        }
        let found = Found {
            check: self,
            sources: &sources,
            inspection: &inspection,
            missing: &missing,
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

/// All images, those without a caption too, and which these are.
fn inspect(
    sources: &[Source],
    on_seen: impl Fn(usize, usize) + Sync,
) -> Result<(Inspection, BTreeSet<PathBuf>), DataError> {
    let mut listed = Dataset::read(sources)?;
    let missing: BTreeSet<PathBuf> = listed
        .problems
        .iter()
        .filter_map(
            |problem| if let DataError::CaptionMissing { image } = problem { Some(image.clone()) } else { None },
        )
        .collect();
    if missing.is_empty() {
        return Ok((Inspection::new(sources, Depth::Pixels, on_seen)?, missing));
    }
    let with_caption = |source: &Source| {
        let mut source = source.clone();
        source.captions.prompt.get_or_insert_with(|| NO_CAPTION.to_owned());
        source
    };
    let sources: Vec<Source> = sources.iter().map(with_caption).collect();
    let mut inspection = Inspection::new(&sources, Depth::Pixels, on_seen)?;
    // The stand-in has taken the place of folders' names as well.
    let captions: BTreeMap<(usize, PathBuf), CaptionText> = std::mem::take(&mut listed.samples)
        .into_iter()
        .map(|sample| ((sample.source, sample.path), sample.caption))
        .collect();
    for picture in &mut inspection.pictures {
        let place = (picture.sample.source, picture.sample.path.clone());
        if let Some(caption) = captions.get(&place) {
            picture.sample.caption = caption.clone();
        }
    }
    inspection.found = listed;
    Ok((inspection, missing))
}

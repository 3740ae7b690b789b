//! All sources together: the pictures a run sees, and all that is to be said about them at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::folder::Tree;
use crate::mask_files::MaskFiles;
use crate::source_reader::SourceReader;
use crate::{DataError, Place, Role, Sample, Skipped, Source, Warning};

/// What was found in the sources. Pictures are not opened yet.
///
/// Pictures with a broken caption file are not among the samples; those without any caption are, with an empty text. Both are
/// `problems`.
#[derive(Debug, Default)]
pub struct Dataset {
    /// The pictures, source after source, in each sorted bytewise by path, so that every machine has the same order.
    pub samples: Vec<Sample>,
    /// The folders that hold something, by source and path.
    pub places: Vec<Place>,
    /// Every entry that is not used and why, sorted by path. Hidden files are not listed.
    pub skipped: Vec<Skipped>,
    /// What should stop a run: all of it, not only the first.
    pub problems: Vec<DataError>,
    /// What may not be as it was meant.
    pub warnings: Vec<Warning>,
}

/// How many files two sources share, and one of them.
type Shared = BTreeMap<(usize, usize), (usize, PathBuf)>;

impl Dataset {
    /// Lists the sources and reads their captions.
    ///
    /// # Errors
    /// Nothing can be listed at all: no source is a folder that can be read, or there is none. Everything else is
    /// collected in [`problems`](Self::problems).
    pub fn read(sources: &[Source]) -> Result<Self, DataError> {
        let mut dataset = Self::default();
        let mut trees = Vec::with_capacity(sources.len());
        for (index, source) in sources.iter().enumerate() {
            match Tree::of(&source.path) {
                Ok(tree) => trees.push((index, source, tree)),
                Err(error) => dataset.problems.push(error),
            }
        }
        if trees.is_empty() {
            return Err(dataset.problems.into_iter().next().unwrap_or(DataError::NoSources));
        }
        let (of_masks, of_images): (Vec<_>, Vec<_>) =
            trees.into_iter().partition(|(_, source, _)| source.role == Role::Mask);
        if of_images.is_empty() && dataset.problems.is_empty() {
            dataset.problems.push(DataError::NoSources);
        }
        let mut masks = MaskFiles::default();
        for (index, _, tree) in of_masks {
            masks.add(index, tree, &mut dataset);
        }
        let mut seen = BTreeMap::new();
        let mut shared = Shared::new();
        for (index, source, tree) in of_images {
            let num_before = dataset.samples.len();
            let files = SourceReader::new(source, index, &tree, &mut masks, &mut dataset).read(tree);
            for (file, sample) in files.into_iter().zip(&dataset.samples[num_before..]) {
                let first = *seen.entry((source.role, file)).or_insert(index);
                if first != index {
                    shared.entry((first, index)).or_insert_with(|| (0, sample.path.clone())).0 += 1;
                }
            }
        }
        masks.report(sources, &mut dataset);
        dataset.warnings.extend(shared.into_iter().map(|((first, second), (num_images, example))| {
            Warning::ImagesShared { first, second, num_images, example }
        }));
        dataset.places.sort_by(|a, b| (a.source, &a.path).cmp(&(b.source, &b.path)));
        dataset.skipped.sort();
        let Self { samples, skipped, problems, warnings, .. } = &dataset;
        let (samples, skipped, problems, warnings) = (samples.len(), skipped.len(), problems.len(), warnings.len());
        tracing::info!(samples, skipped, problems, warnings, "data listed");
        Ok(dataset)
    }

    /// Pictures without a mask among those of one source that have one. The source's places start at `first_place`.
    pub(crate) fn warn_of_missing_masks(&mut self, first_place: usize) {
        let places = &self.places[first_place..];
        if places.iter().any(|place| place.num_masks > 0) {
            let unmasked = places.iter().filter(|place| place.num_masks < place.num_images);
            self.warnings.extend(unmasked.map(|place| Warning::ImagesWithoutMask {
                folder: place.path.clone(),
                num_without: place.num_images - place.num_masks,
                num_images: place.num_images,
            }));
        }
    }
}

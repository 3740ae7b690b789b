//! The masks of sources that hold nothing else, and which pictures of other sources they belong to: those whose path
//! from the folder of their source is the same, extensions apart.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::folder::{Tree, mask_stem, under};
use crate::{CaptionCounts, DataError, Dataset, Layout, Place, SkipReason, Skipped, Source, Warning};

/// The masks by their path from the folder of their source, without extension.
#[derive(Default)]
pub(crate) struct MaskFiles(BTreeMap<PathBuf, MaskFile>);

struct MaskFile {
    path: PathBuf,
    source: usize,
    /// Sources of the pictures that it is the mask of.
    used_by: BTreeSet<usize>,
    /// Whether a picture had a mask of its own.
    is_second: bool,
}

impl MaskFiles {
    /// Takes over what is in a source of masks.
    pub(crate) fn add(&mut self, source: usize, tree: Tree, dataset: &mut Dataset) {
        let num_before = dataset.skipped.len();
        let mut num_masks = 0;
        dataset.skipped.extend(tree.skipped);
        dataset.problems.extend(tree.problems);
        for folder in &tree.folders {
            let mut skip = |name, reason| {
                let path = under(&tree.root, &folder.below_root).join(name);
                dataset.skipped.push(Skipped { path, reason });
            };
            for name in folder.captions.values().chain(&folder.metadata) {
                skip(name, SkipReason::CaptionOfMask);
            }
            folder.other_metadata.iter().for_each(|name| skip(name, SkipReason::UnknownKind));
            let plain = folder.images.iter().map(|name| (Path::new(name).file_stem().unwrap_or_default(), name));
            let marked = folder.masks().map(|(stem, name)| (stem.as_os_str(), name));
            for (stem, name) in plain.chain(marked) {
                num_masks += 1;
                let key = folder.below_root.join(stem);
                if self.0.contains_key(&key) {
                    skip(name, SkipReason::SecondMask);
                    continue;
                }
                let path = under(&tree.root, &folder.below_root).join(name);
                self.0.insert(key, MaskFile { path, source, used_by: BTreeSet::new(), is_second: false });
            }
        }
        if num_masks == 0 {
            let num_skipped = dataset.skipped.len() - num_before;
            dataset.problems.push(DataError::NoImages { path: tree.root, num_skipped });
        }
    }

    /// The mask of a picture in folder `below_root` of `source`.
    pub(crate) fn mask_of(&mut self, below_root: &Path, stem: &OsStr, source: usize) -> Option<PathBuf> {
        let mask = self.find(below_root, stem)?;
        mask.used_by.insert(source);
        Some(mask.path.clone())
    }

    /// Notes that a picture has a mask of its own, so that one here, if any, is the second.
    pub(crate) fn lose(&mut self, below_root: &Path, stem: &OsStr) {
        if let Some(mask) = self.find(below_root, stem) {
            mask.is_second = true;
        }
    }

    /// Says which masks were used and which were not.
    pub(crate) fn report(self, sources: &[Source], dataset: &mut Dataset) {
        let mut num_used: BTreeMap<(usize, PathBuf), usize> = BTreeMap::new();
        let mut lost: BTreeMap<usize, Vec<PathBuf>> = BTreeMap::new();
        let mut shared = Vec::new();
        for mask in self.0.into_values() {
            let folder = mask.path.parent().unwrap_or(&mask.path).to_owned();
            *num_used.entry((mask.source, folder)).or_default() += usize::from(!mask.used_by.is_empty());
            if mask.used_by.is_empty() {
                let reason = if mask.is_second { SkipReason::SecondMask } else { SkipReason::MaskWithoutImage };
                dataset.skipped.push(Skipped { path: mask.path.clone(), reason });
                if !mask.is_second {
                    lost.entry(mask.source).or_default().push(mask.path);
                }
            } else if mask.used_by.len() > 1 {
                shared.push(mask.path);
            }
        }
        for ((source, path), num_masks) in num_used {
            let layout = if path == sources[source].path { Layout::Flat } else { Layout::Nested };
            let captions = CaptionCounts::default();
            let place =
                Place { source, path, layout, has_metadata: false, repeats: 1, num_images: 0, captions, num_masks };
            dataset.places.push(place);
        }
        for (source, masks) in lost {
            let (folder, num_masks, example) = (sources[source].path.clone(), masks.len(), masks[0].clone());
            dataset.warnings.push(Warning::MasksWithoutImage { folder, num_masks, example });
        }
        if let Some(example) = shared.first().cloned() {
            dataset.warnings.push(Warning::MasksShared { num_masks: shared.len(), example });
        }
    }

    fn find(&mut self, below_root: &Path, stem: &OsStr) -> Option<&mut MaskFile> {
        let plain = below_root.join(stem);
        let key = if self.0.contains_key(&plain) { plain } else { below_root.join(mask_stem(stem)) };
        self.0.get_mut(&key)
    }
}

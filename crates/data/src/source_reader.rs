//! The pictures of one source as samples: for each folder its repeats, for each picture its text and its mask.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::caption_file::CaptionFile;
use crate::folder::{Folder, Tree, path_bytes, under};
use crate::folder_name::FolderName;
use crate::mask_files::MaskFiles;
use crate::metadata::MetadataCaptions;
use crate::trigger::one_line;
use crate::{
    CaptionCounts, CaptionLine, CaptionOrigin, CaptionSource, CaptionText, DataError, Dataset, Layout, Place, Role,
    Sample, SkipReason, Skipped, Source, Warning, caption,
};

pub(crate) struct SourceReader<'a> {
    source: &'a Source,
    index: usize,
    root: PathBuf,
    canonical: PathBuf,
    metadata: MetadataCaptions,
    masks: &'a mut MaskFiles,
    dataset: &'a mut Dataset,
    samples: Vec<Sample>,
    /// Where the files of the samples really are.
    files: Vec<PathBuf>,
    num_images: usize,
    /// Folders whose names were spoken of.
    named: BTreeSet<PathBuf>,
}

/// A caption file beside pictures.
struct Sidecar {
    path: PathBuf,
    text: SidecarText,
    /// Whether a picture of its name takes its caption from elsewhere.
    loses: bool,
}

enum SidecarText {
    /// No picture has asked for it.
    Unread,
    Read(CaptionFile),
    /// It cannot be read, which is among the problems.
    Broken,
}

/// What is said once for a folder.
#[derive(Default)]
struct Tally {
    lines: (usize, usize),
    empty: Vec<PathBuf>,
    stripped: Vec<PathBuf>,
    lost_masks: Vec<PathBuf>,
    losing_sidecars: usize,
}

impl<'a> SourceReader<'a> {
    pub(crate) fn new(
        source: &'a Source,
        index: usize,
        tree: &Tree,
        masks: &'a mut MaskFiles,
        dataset: &'a mut Dataset,
    ) -> Self {
        let (root, canonical) = (tree.root.clone(), tree.canonical.clone());
        let (samples, files, metadata, named) = (Vec::new(), Vec::new(), MetadataCaptions::default(), BTreeSet::new());
        Self { source, index, root, canonical, metadata, masks, dataset, samples, files, num_images: 0, named }
    }

    /// Puts what is in the source into the data set, and gives where its files really are.
    pub(crate) fn read(mut self, tree: Tree) -> Vec<PathBuf> {
        self.dataset.problems.extend(tree.problems);
        let num_before = self.dataset.skipped.len();
        self.dataset.skipped.extend(tree.skipped);
        for folder in &tree.folders {
            self.read_metadata(folder);
        }
        let first_place = self.dataset.places.len();
        for folder in &tree.folders {
            self.read_folder(folder);
        }
        self.dataset.problems.extend(std::mem::take(&mut self.metadata).not_taken());
        if self.num_images == 0 {
            let num_skipped = self.dataset.skipped.len() - num_before;
            self.dataset.problems.push(DataError::NoImages { path: self.root, num_skipped });
        }
        self.dataset.warn_of_missing_masks(first_place);
        let mut sorted: Vec<(Sample, PathBuf)> = self.samples.into_iter().zip(self.files).collect();
        sorted.sort_by_cached_key(|(sample, _)| path_bytes(&sample.path));
        let (samples, files): (Vec<Sample>, Vec<PathBuf>) = sorted.into_iter().unzip();
        self.dataset.samples.extend(samples);
        files
    }

    fn read_metadata(&mut self, folder: &Folder) {
        let path = under(&self.root, &folder.below_root);
        match (&folder.metadata, self.source.captions.from) {
            (Some(name), CaptionSource::Beside) => {
                self.dataset.problems.extend(self.metadata.add(&path.join(name), &folder.below_root));
            }
            (Some(name), CaptionSource::FileName) => self.skip(path.join(name), SkipReason::CaptionIsFileName),
            (None, _) => {}
        }
        for name in &folder.other_metadata {
            let path = path.join(name);
            if folder.metadata.is_none() && self.source.captions.from == CaptionSource::Beside {
                self.dataset.problems.push(DataError::MetadataFormat { path });
            } else {
                self.skip(path, SkipReason::UnknownKind);
            }
        }
    }

    fn read_folder(&mut self, folder: &Folder) {
        let path = under(&self.root, &folder.below_root);
        self.num_images += folder.images.len();
        let layout = self.layout(folder);
        let repeats = match (self.source.repeats, &layout) {
            (Some(repeats), _) => repeats,
            (None, Layout::Repeats { repeats, .. }) => *repeats,
            (None, _) => 1,
        };
        if repeats == 0 {
            folder.images.iter().for_each(|name| drop(self.metadata.take(&folder.below_root.join(name))));
            self.skip(path, SkipReason::ZeroRepeats);
            return;
        }
        let has_metadata = folder.metadata.is_some() && self.source.captions.from == CaptionSource::Beside;
        let (source, captions) = (self.index, CaptionCounts::default());
        let mut place = Place { source, path, layout, has_metadata, repeats, num_images: 0, captions, num_masks: 0 };
        let mut tally = Tally::default();
        let mut sidecars = self.sidecars(folder);
        let mut used_masks = BTreeSet::new();
        for name in &folder.images {
            let Some(caption) = self.text_of(folder, name, &place.layout, &mut sidecars, &mut tally) else { continue };
            let mask = self.mask_of(folder, name, &mut used_masks);
            place.num_images += 1;
            place.num_masks += usize::from(mask.is_some());
            place.captions.add(&caption.origin);
            let Source { role, weight, flip, .. } = *self.source;
            let path = place.path.join(name);
            self.samples.push(Sample { path, source, role, repeats, caption, mask, weight, flip });
            let file = || self.canonical.join(&folder.below_root).join(name);
            self.files.push(folder.targets.get(name).cloned().unwrap_or_else(file));
        }
        self.leave_aside(folder, &place.path, sidecars, &used_masks, &mut tally);
        tally.warn(&place.path, &mut self.dataset.warnings);
        if place.num_images > 0 || place.has_metadata {
            self.dataset.places.push(place);
        }
    }

    /// What the folder's name says, or else that of the nearest folder around it, up to that of the source.
    fn layout(&mut self, folder: &Folder) -> Layout {
        for around in folder.below_root.ancestors() {
            let path = under(&self.root, around);
            // The source may be given as `.`, which is no name.
            let last = if around.as_os_str().is_empty() { &self.canonical } else { around };
            let (warning, layout) = match FolderName::of(last) {
                FolderName::Plain => continue,
                FolderName::TooMany { number } => {
                    (Some(Warning::RepeatsNotRead { folder: path.clone(), number: number.to_owned() }), None)
                }
                FolderName::Repeats { repeats: named, words } => {
                    let used = self.source.repeats.filter(|&used| used != named);
                    let warning = used.map(|used| Warning::RepeatsOverridden { folder: path.clone(), named, used });
                    (warning, Some(Layout::Repeats { repeats: named, words: words.to_owned() }))
                }
            };
            if !folder.images.is_empty() && self.named.insert(path) {
                self.dataset.warnings.extend(warning);
            }
            if let Some(layout) = layout {
                return layout;
            }
        }
        if folder.below_root.as_os_str().is_empty() { Layout::Flat } else { Layout::Nested }
    }

    fn sidecars(&self, folder: &Folder) -> BTreeMap<OsString, Sidecar> {
        let path = under(&self.root, &folder.below_root);
        let sidecar = |name: &OsString| Sidecar { path: path.join(name), text: SidecarText::Unread, loses: false };
        folder.captions.iter().map(|(stem, name)| (stem.clone(), sidecar(name))).collect()
    }

    /// The text of a picture; `None` if it cannot be read. That, and that there is none, is then among the problems.
    fn text_of(
        &mut self,
        folder: &Folder,
        name: &OsStr,
        layout: &Layout,
        sidecars: &mut BTreeMap<OsString, Sidecar>,
        tally: &mut Tally,
    ) -> Option<CaptionText> {
        let below_root = folder.below_root.join(name);
        let image = self.root.join(&below_root);
        let sidecar = sidecars.get_mut(stem_of(name));
        let elsewhere = match self.source.captions.from {
            CaptionSource::FileName => {
                let text = CaptionFile::of_text(&caption::file_name_caption(&image));
                Some((text, CaptionOrigin::FileName))
            }
            CaptionSource::Beside => self.metadata.take(&below_root).map(|found| (found.text, CaptionOrigin::Metadata)),
        };
        let own = match (elsewhere, sidecar) {
            (Some(own), sidecar) => {
                sidecar.into_iter().for_each(|sidecar| sidecar.loses = true);
                Some(own)
            }
            // A text that cannot be read has been said; that the picture has no other would only distract.
            (None, Some(sidecar)) => Some((self.read_sidecar(sidecar)?, CaptionOrigin::File(sidecar.path.clone()))),
            (None, None) => None,
        };
        let is_empty = own.as_ref().is_some_and(|(text, _)| text.lines.is_empty());
        let is_name = matches!(own, Some((_, CaptionOrigin::FileName)));
        if let Some((text, origin)) = own.filter(|(text, _)| !text.lines.is_empty()) {
            return Some(self.chosen(text, origin, image, tally));
        }
        let Some(text) = self.stand_in(layout) else {
            self.dataset.problems.push(DataError::CaptionMissing { image });
            return Some(CaptionText { lines: Vec::new(), origin: CaptionOrigin::Nowhere });
        };
        if is_empty && !is_name {
            tally.empty.push(image);
        }
        Some(text)
    }

    fn read_sidecar(&mut self, sidecar: &mut Sidecar) -> Option<CaptionFile> {
        if matches!(sidecar.text, SidecarText::Unread) {
            sidecar.text = CaptionFile::read(&sidecar.path).map_or_else(
                |error| {
                    self.dataset.problems.push(error);
                    SidecarText::Broken
                },
                SidecarText::Read,
            );
        }
        if let SidecarText::Read(text) = &sidecar.text { Some(text.clone()) } else { None }
    }

    fn chosen(&self, text: CaptionFile, origin: CaptionOrigin, image: PathBuf, tally: &mut Tally) -> CaptionText {
        let CaptionFile { mut lines, num_stripped } = text;
        if self.source.captions.line == CaptionLine::First && lines.len() > 1 {
            tally.lines = (tally.lines.0 + 1, tally.lines.1 + lines.len() - 1);
            lines.truncate(1);
        }
        if num_stripped > 0 {
            tally.stripped.push(image);
        }
        CaptionText { lines, origin }
    }

    /// The text of pictures without one of their own: the source's prompt, else the folder's name.
    fn stand_in(&self, layout: &Layout) -> Option<CaptionText> {
        let prompt = one_line(self.source.captions.prompt.as_deref().unwrap_or_default());
        if !prompt.is_empty() {
            return Some(CaptionText { lines: vec![prompt], origin: CaptionOrigin::Prompt });
        }
        match layout {
            Layout::Repeats { words, .. } if !words.is_empty() => {
                Some(CaptionText { lines: vec![one_line(words)], origin: CaptionOrigin::FolderName })
            }
            _ => None,
        }
    }

    fn mask_of(&mut self, folder: &Folder, name: &OsStr, used: &mut BTreeSet<OsString>) -> Option<PathBuf> {
        let stem = stem_of(name);
        let is_subject = self.source.role == Role::Subject;
        if let Some(file) = folder.mask_of(stem) {
            used.insert(file.clone());
            if is_subject {
                self.masks.lose(&folder.below_root, stem);
            }
            return Some(under(&self.root, &folder.below_root).join(file));
        }
        if is_subject { self.masks.mask_of(&folder.below_root, stem, self.index) } else { None }
    }

    fn leave_aside(
        &mut self,
        folder: &Folder,
        path: &Path,
        sidecars: BTreeMap<OsString, Sidecar>,
        used_masks: &BTreeSet<OsString>,
        tally: &mut Tally,
    ) {
        for sidecar in sidecars.into_values().filter(|sidecar| matches!(sidecar.text, SidecarText::Unread)) {
            let reason = match self.source.captions.from {
                _ if !sidecar.loses => SkipReason::CaptionWithoutImage,
                CaptionSource::FileName => SkipReason::CaptionIsFileName,
                CaptionSource::Beside => SkipReason::CaptionInMetadata,
            };
            tally.losing_sidecars += usize::from(reason == SkipReason::CaptionInMetadata);
            self.skip(sidecar.path, reason);
        }
        for (_, name) in folder.masks().filter(|(_, name)| !used_masks.contains(*name)) {
            self.skip(path.join(name), SkipReason::MaskWithoutImage);
            tally.lost_masks.push(path.join(name));
        }
    }

    fn skip(&mut self, path: PathBuf, reason: SkipReason) {
        self.dataset.skipped.push(Skipped { path, reason });
    }
}

impl Tally {
    fn warn(self, folder: &Path, warnings: &mut Vec<Warning>) {
        let folder = || folder.to_owned();
        let first = |paths: Vec<PathBuf>| {
            let num = paths.len();
            paths.into_iter().next().map(|example| (num, example))
        };
        if let (num_captions @ 1.., num_lines) = self.lines {
            warnings.push(Warning::LinesNotUsed { folder: folder(), num_captions, num_lines });
        }
        if let Some((num_captions, example)) = first(self.empty) {
            warnings.push(Warning::EmptyCaptions { folder: folder(), num_captions, example });
        }
        if let Some((num_captions, example)) = first(self.stripped) {
            warnings.push(Warning::ControlCharacters { folder: folder(), num_captions, example });
        }
        if let num_files @ 1.. = self.losing_sidecars {
            warnings.push(Warning::MetadataWins { folder: folder(), num_files });
        }
        if let Some((num_masks, example)) = first(self.lost_masks) {
            warnings.push(Warning::MasksWithoutImage { folder: folder(), num_masks, example });
        }
    }
}

fn stem_of(name: &OsStr) -> &OsStr {
    Path::new(name).file_stem().unwrap_or_default()
}

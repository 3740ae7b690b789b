//! What a folder of images says about itself.

use std::collections::BTreeSet;
use std::path::Path;

use loralei_data::folder_name::FolderName;
use loralei_data::{CaptionOrigin, CaptionRules, Depth, Inspection, Source};

use crate::error::TrainError;

/// Words of captions that are no name of anything.
const SMALL_WORDS: [&str; 40] = [
    "a",
    "an",
    "and",
    "at",
    "background",
    "behind",
    "black",
    "by",
    "drawing",
    "for",
    "from",
    "front",
    "his",
    "her",
    "image",
    "in",
    "is",
    "it",
    "its",
    "looking",
    "of",
    "on",
    "or",
    "over",
    "painting",
    "photo",
    "photograph",
    "picture",
    "portrait",
    "quality",
    "shot",
    "the",
    "to",
    "under",
    "up",
    "view",
    "white",
    "with",
    "best",
    "masterpiece",
];

/// A folder, looked at.
pub(super) struct Found {
    /// A name made of the folder's.
    pub(super) name: String,
    pub(super) num_images: usize,
    num_unreadable: usize,
    pub(super) num_skipped: usize,
    /// Captions of their own, first lines, each once.
    pub(super) captions: Vec<String>,
    num_with_caption: usize,
    pub(super) num_without_caption: usize,
    /// The words of `N_name` folders, each once.
    folder_words: BTreeSet<String>,
    /// Shortest and longest side, upright.
    sides_px: (u32, u32),
    /// Words that every caption has, small ones left out.
    common: Vec<String>,
}

impl Found {
    pub(super) fn of(folder: &Path) -> Result<Self, TrainError> {
        let source = Source { captions: CaptionRules::default(), ..Source::of_pictures(folder) };
        let inspection = Inspection::new(&[source], Depth::Header, |_, _| ())?;
        let pictures = &inspection.pictures;
        let is_own = |origin: &CaptionOrigin| matches!(origin, CaptionOrigin::File(_) | CaptionOrigin::Metadata);
        let texts = pictures.iter().map(|picture| &picture.sample.caption);
        let own: Vec<&str> = texts
            .clone()
            .filter(|text| is_own(&text.origin))
            .filter_map(|text| text.lines.first().map(String::as_str))
            .collect();
        let mut captions: Vec<String> = Vec::new();
        for caption in &own {
            if !captions.iter().any(|known| known == caption) {
                captions.push((*caption).to_owned());
            }
        }
        let sides = pictures.iter().flat_map(|picture| {
            let size = picture.surveyed.size;
            [size.width_px, size.height_px]
        });
        let root = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let folders = inspection.found.places.iter().filter(|place| place.num_images > 0).map(|place| &place.path);
        let folder_words = folders.chain([&root]).filter_map(|path| match FolderName::of(path) {
            FolderName::Repeats { words, .. } if !words.is_empty() => Some(words.to_owned()),
            _ => None,
        });
        Ok(Self {
            name: name_of(&root),
            num_images: pictures.len(),
            num_unreadable: inspection.unreadable.len(),
            num_skipped: inspection.found.skipped.len(),
            num_with_caption: own.len(),
            num_without_caption: texts.filter(|text| text.origin == CaptionOrigin::Nowhere).count(),
            folder_words: folder_words.collect(),
            sides_px: (sides.clone().min().unwrap_or_default(), sides.max().unwrap_or_default()),
            common: common_words(&own),
            captions,
        })
    }

    /// kohya's `10_ohwx dog`: the words before the last are the trigger, the last is the class. One word is the trigger.
    pub(super) fn trigger_and_class(&self) -> (Option<String>, Option<String>) {
        let mut all = self.folder_words.iter();
        let (Some(words), None) = (all.next(), all.next()) else { return (None, None) };
        let words: Vec<&str> = words.split_whitespace().collect();
        match &words[..] {
            [] => (None, None),
            [word] => (Some((*word).to_owned()), None),
            [trigger @ .., class] => (Some(trigger.join(" ")), Some((*class).to_owned())),
        }
    }

    /// The one or two words that all captions share.
    pub(super) fn common_words(&self) -> Option<String> {
        let says_enough = self.captions.len() >= 3 && self.num_with_caption == self.num_images;
        (says_enough && (1..=2).contains(&self.common.len())).then(|| self.common.join(" "))
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let Self { num_images, num_with_caption, num_unreadable, num_without_caption, .. } = self;
        let (shortest, longest) = self.sides_px;
        let mut lines =
            vec![format!("{num_images} images, sides of {shortest} to {longest} px; {num_with_caption} with captions")];
        if !self.folder_words.is_empty() {
            let words = self.folder_words.iter().map(|words| format!("{words:?}")).collect::<Vec<_>>();
            lines.push(format!("folders are called {}", words.join(", ")));
        }
        if *num_without_caption > 0 {
            lines.push(format!("{num_without_caption} images have no caption at all"));
        }
        if *num_unreadable > 0 {
            lines.push(format!("{num_unreadable} images cannot be read: `loralei dataset check` says why"));
        }
        lines
    }
}

/// In the order of the first caption.
fn common_words(captions: &[&str]) -> Vec<String> {
    let words = |caption: &str| -> Vec<String> {
        let parts = caption.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_');
        parts.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let Some((first, others)) = captions.split_first() else { return Vec::new() };
    let mut common = words(first);
    common.retain(|word| !SMALL_WORDS.contains(&word.to_lowercase().as_str()));
    let mut seen = BTreeSet::new();
    common.retain(|word| seen.insert(word.clone()));
    for other in others {
        let other = words(other);
        common.retain(|word| other.contains(word));
    }
    common
}

/// The folder's name, without kohya's number, of characters that every program finds in a picture's parameters.
fn name_of(folder: &Path) -> String {
    let name = match FolderName::of(folder) {
        FolderName::Repeats { words, .. } if !words.is_empty() => words.to_owned(),
        _ => folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let plain = plain.trim_matches(['.', '_']).to_owned();
    if plain.is_empty() { "lora".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_words_are_whole_words_of_every_caption() {
        assert_eq!(common_words(&["a octopus on red", "an octopus, on teal", "octopus"]), ["octopus"]);
        assert_eq!(common_words(&["sks dog in masks", "a dog, sks", "sks dog"]), ["sks", "dog"]);
        assert_eq!(common_words(&["a cat", "a dog"]), Vec::<String>::new());
        assert_eq!(common_words(&["masks", "sks"]), Vec::<String>::new());
    }

    #[test]
    fn a_name_holds_what_other_programs_can_read() {
        for (folder, name) in
            [("10_ohwx dog", "ohwx_dog"), ("a/Frühling 1", "Fr_hling_1"), ("...", "lora"), ("v1.5", "v1.5")]
        {
            assert_eq!(name_of(Path::new(folder)), name);
        }
    }
}

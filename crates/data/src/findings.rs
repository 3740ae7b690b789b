//! What was found in the sources, for a report: the folders and how they were read, what was not used and why, and what
//! may not be as it was meant.

use std::fmt;
use std::path::PathBuf;

use crate::CaptionOrigin;
use crate::folder_name::MAX_REPEATS;

/// A folder that holds pictures, captions in `metadata.jsonl`, or masks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Index of its source.
    pub source: usize,
    /// The folder.
    pub path: PathBuf,
    /// How it was read.
    pub layout: Layout,
    /// Whether it holds a `metadata.jsonl` that was read.
    pub has_metadata: bool,
    /// How often each of its pictures is shown an epoch.
    pub repeats: u32,
    /// Number of its pictures, those with a broken caption file not counted. In a source of masks: 0.
    pub num_images: usize,
    /// Where the captions of its pictures were found.
    pub captions: CaptionCounts,
    /// Number of its pictures that have a mask; in a source of masks, number of masks that were used.
    pub num_masks: usize,
}

/// How a folder was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// The folder of the source itself.
    Flat,
    /// A folder within it.
    Nested,
    /// kohya's `N_name`: this folder's name, or that of the nearest folder around it.
    Repeats {
        /// N.
        repeats: u32,
        /// The rest of the name.
        words: String,
    },
}

/// How many captions came from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptionCounts {
    /// Files beside the pictures.
    pub files: usize,
    /// `metadata.jsonl`.
    pub metadata: usize,
    /// The pictures' own names.
    pub file_names: usize,
    /// The name of a `N_name` folder.
    pub folder_names: usize,
    /// The source's prompt.
    pub prompts: usize,
}

impl CaptionCounts {
    pub(crate) fn add(&mut self, origin: &CaptionOrigin) {
        *match origin {
            CaptionOrigin::File(_) => &mut self.files,
            CaptionOrigin::Metadata => &mut self.metadata,
            CaptionOrigin::FileName => &mut self.file_names,
            CaptionOrigin::FolderName => &mut self.folder_names,
            CaptionOrigin::Prompt => &mut self.prompts,
            CaptionOrigin::Nowhere => return,
        } += 1;
    }
}

/// An entry of a folder that is not used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// The entry.
    pub path: PathBuf,
    /// Why it is not used.
    pub reason: SkipReason,
}

/// Why an entry of a folder is not used. Its `Display` is the reason in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SkipReason {
    /// A folder whose name starts with a dot.
    HiddenFolder,
    /// A folder with nothing in it.
    EmptyFolder,
    /// A folder named `0_name`.
    ZeroRepeats,
    /// Neither a picture of a known kind nor a caption.
    UnknownKind,
    /// A caption file without a picture of its name.
    CaptionWithoutImage,
    /// A second caption file for the same picture (`a.caption` or `a.TXT` beside `a.txt`).
    SecondCaption,
    /// A caption file of a picture whose caption is in `metadata.jsonl`.
    CaptionInMetadata,
    /// A caption file or `metadata.jsonl` where captions are the files' names.
    CaptionIsFileName,
    /// A caption file in a source of masks.
    CaptionOfMask,
    /// A mask without a picture of its name.
    MaskWithoutImage,
    /// A mask of a picture that has one already, beside it or in an earlier source.
    SecondMask,
    /// A link to something outside the folder.
    LinkOutside,
    /// A link to a folder within, which is searched where it is.
    LinkToFolder,
    /// A link to nothing, a device, a pipe, a socket.
    NotAFile,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HiddenFolder => "a hidden folder",
            Self::EmptyFolder => "an empty folder",
            Self::ZeroRepeats => "its name asks for 0 repeats",
            Self::UnknownKind => "neither an image of a known kind nor a caption",
            Self::CaptionWithoutImage => "a caption without an image of its name",
            Self::SecondCaption => "a second caption for the same image",
            Self::CaptionInMetadata => "the caption of its image is in metadata.jsonl",
            Self::CaptionIsFileName => "captions are the names of the files",
            Self::CaptionOfMask => "masks need no caption",
            Self::MaskWithoutImage => "a mask without an image of its name",
            Self::SecondMask => "a second mask for the same image",
            Self::LinkOutside => "a link that leaves the folder",
            Self::LinkToFolder => "a link to a folder that is searched anyway",
            Self::NotAFile => "not a regular file",
        })
    }
}

/// Something that does not stop a run but may not be as it was meant. Its `Display` is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The number in a folder's name is too large for repeats.
    RepeatsNotRead {
        /// The folder.
        folder: PathBuf,
        /// The number as written.
        number: String,
    },
    /// A folder's name and its source's settings give different repeats.
    RepeatsOverridden {
        /// The folder.
        folder: PathBuf,
        /// Repeats by its name.
        named: u32,
        /// Repeats by the settings, which win.
        used: u32,
    },
    /// Captions of several lines, of which the first is used.
    LinesNotUsed {
        /// The folder.
        folder: PathBuf,
        /// Number of such captions.
        num_captions: usize,
        /// Number of lines not used.
        num_lines: usize,
    },
    /// Captions without text, in whose place the prompt or the folder's name is used.
    EmptyCaptions {
        /// The folder.
        folder: PathBuf,
        /// Number of such captions.
        num_captions: usize,
        /// The picture of one of them.
        example: PathBuf,
    },
    /// Control characters were stripped from captions.
    ControlCharacters {
        /// The folder.
        folder: PathBuf,
        /// Number of such captions.
        num_captions: usize,
        /// The picture of one of them.
        example: PathBuf,
    },
    /// Caption files beside pictures whose captions are in `metadata.jsonl`.
    MetadataWins {
        /// The folder.
        folder: PathBuf,
        /// Number of caption files not used.
        num_files: usize,
    },
    /// Masks without a picture of their name.
    MasksWithoutImage {
        /// The folder.
        folder: PathBuf,
        /// Number of such masks.
        num_masks: usize,
        /// One of them.
        example: PathBuf,
    },
    /// Pictures without a mask where others have one: they count everywhere.
    ImagesWithoutMask {
        /// The folder.
        folder: PathBuf,
        /// Number of pictures without a mask.
        num_without: usize,
        /// Number of pictures.
        num_images: usize,
    },
    /// Masks that belong to pictures of several sources.
    MasksShared {
        /// Number of such masks.
        num_masks: usize,
        /// One of them.
        example: PathBuf,
    },
    /// The same files in two sources of one role.
    ImagesShared {
        /// The earlier source.
        first: usize,
        /// The later source.
        second: usize,
        /// Number of files.
        num_images: usize,
        /// One of them, as the later source names it.
        example: PathBuf,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RepeatsNotRead { folder, number } => {
                write!(f, "{}: {number} is not read as repeats, since it is above {MAX_REPEATS}", folder.display())
            }
            Self::RepeatsOverridden { folder, named, used } => {
                write!(f, "{}: {used} repeats as set, not {named} as its name says", folder.display())
            }
            Self::LinesNotUsed { folder, num_captions, num_lines } => write!(
                f,
                "{}: {num_captions} captions have more than one line; only the first is used, {num_lines} lines are not",
                folder.display()
            ),
            Self::EmptyCaptions { folder, num_captions, example } => write!(
                f,
                "{}: {num_captions} captions are empty and were replaced, such as that of {}",
                folder.display(),
                example.display()
            ),
            Self::ControlCharacters { folder, num_captions, example } => write!(
                f,
                "{}: control characters stripped from {num_captions} captions, such as that of {}",
                folder.display(),
                example.display()
            ),
            Self::MetadataWins { folder, num_files } => {
                write!(f, "{}: metadata.jsonl is used, {num_files} caption files are not", folder.display())
            }
            Self::MasksWithoutImage { folder, num_masks, example } => write!(
                f,
                "{}: {num_masks} masks have no image of their name, such as {}",
                folder.display(),
                example.display()
            ),
            Self::ImagesWithoutMask { folder, num_without, num_images } => {
                write!(
                    f,
                    "{}: {num_without} of {num_images} images have no mask and count everywhere",
                    folder.display()
                )
            }
            Self::MasksShared { num_masks, example } => {
                write!(f, "{num_masks} masks belong to images of several sources, such as {}", example.display())
            }
            Self::ImagesShared { first, second, num_images, example } => write!(
                f,
                "sources {} and {} share {num_images} images, such as {}",
                first + 1,
                second + 1,
                example.display()
            ),
        }
    }
}

//! Everything that can be wrong with a folder of pictures.

use std::path::PathBuf;

use crate::bucket::Size;
use crate::caption_file::MAX_CAPTION_BYTES;
use crate::decode::{MAX_ALLOC_BYTES, MAX_FILE_BYTES, MAX_PIXELS, MAX_SIDE_PX};
use crate::metadata::{LineFault, MAX_METADATA_BYTES};

/// What went wrong with the data, always with the path it went wrong at.
///
/// The one-line text holds the cause, so there is no `source` chain to print after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is not one source.
    #[error("no source of images is given")]
    NoSources,
    /// The folder of pictures does not exist.
    #[error("no such folder: {}", path.display())]
    FolderMissing {
        /// The folder asked for.
        path: PathBuf,
    },
    /// The folder of pictures is a file.
    #[error("not a folder: {}", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// The folder, or an entry of it, cannot be listed.
    #[error("cannot read folder {}: {cause}", path.display())]
    FolderRead {
        /// The folder or entry.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The folder holds no picture of a known kind.
    #[error("no images in {} ({num_skipped} other entries)", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// Entries seen there and in its folders and not used, hidden files not counted.
        num_skipped: usize,
    },
    /// A picture has neither a caption nor a prompt.
    #[error("no caption for {}", image.display())]
    CaptionMissing {
        /// The picture.
        image: PathBuf,
    },
    /// A caption file cannot be read.
    #[error("cannot read caption {}: {cause}", path.display())]
    CaptionRead {
        /// The caption file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A caption file is far larger than any caption.
    #[error("caption {} is larger than {MAX_CAPTION_BYTES} bytes", path.display())]
    CaptionTooLong {
        /// The caption file.
        path: PathBuf,
    },
    /// A caption file is not UTF-8.
    #[error("caption {} is not UTF-8: byte {offset_bytes} {found}", path.display())]
    CaptionEncoding {
        /// The caption file.
        path: PathBuf,
        /// Where the first wrong byte is, from the start of the file.
        offset_bytes: usize,
        /// What is there.
        found: &'static str,
    },
    /// A line of `metadata.jsonl` is wrong.
    #[error("{}, line {line}: {fault}", path.display())]
    MetadataLine {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: LineFault,
    },
    /// Captions in a table that is not read.
    #[error("captions in {} are not read", path.display())]
    MetadataFormat {
        /// The file.
        path: PathBuf,
    },
    /// A `metadata.jsonl` is far larger than any.
    #[error("{} is larger than {MAX_METADATA_BYTES} bytes", path.display())]
    MetadataTooLong {
        /// The file.
        path: PathBuf,
    },
    /// A picture cannot be opened or read from disk.
    #[error("cannot read image {}: {cause}", path.display())]
    ImageRead {
        /// The picture.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A picture's path is not a regular file (a folder, a device, a pipe).
    #[error("unreadable image {}: not a regular file", path.display())]
    ImageNotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A picture's name does not end in a known extension.
    #[error("unreadable image {}: its extension is not jpg, png, webp, bmp, gif or tiff", path.display())]
    ImageExtension {
        /// The picture.
        path: PathBuf,
    },
    /// A picture's first bytes are those of none of the known formats.
    #[error("unreadable image {}: its content is not JPEG, PNG, WebP, BMP, GIF or TIFF", path.display())]
    ImageContent {
        /// The picture.
        path: PathBuf,
    },
    /// A picture's file is too large.
    #[error("unreadable image {}: {file_bytes} bytes on disk, at most {MAX_FILE_BYTES} are read", path.display())]
    ImageFileSize {
        /// The picture.
        path: PathBuf,
        /// Its size on disk.
        file_bytes: u64,
    },
    /// A picture has too many pixels.
    #[error(
        "unreadable image {}: {width_px} x {height_px} pixels, at most {MAX_SIDE_PX} a side and {MAX_PIXELS} in all",
        path.display()
    )]
    ImageDimensions {
        /// The picture.
        path: PathBuf,
        /// Its width, as its header says.
        width_px: u32,
        /// Its height, as its header says.
        height_px: u32,
    },
    /// A picture needs too much memory to decode (16-bit, progressive JPEG and WebP need more per pixel).
    #[error("unreadable image {}: needs {needed_bytes} bytes of memory, at most {MAX_ALLOC_BYTES}", path.display())]
    ImageMemory {
        /// The picture.
        path: PathBuf,
        /// Memory its pixels need.
        needed_bytes: u64,
    },
    /// A progressive JPEG visits its pixels far more often than any encoder lets it.
    #[error("unreadable image {}: its {num_passes} passes would take too long", path.display())]
    ImagePasses {
        /// The picture.
        path: PathBuf,
        /// Passes over the whole picture.
        num_passes: u64,
    },
    /// A picture's file ends before the picture does.
    #[error("unreadable image {}: the file is cut off", path.display())]
    ImageTruncated {
        /// The picture.
        path: PathBuf,
    },
    /// The decoder refused the picture.
    #[error("unreadable image {}: {cause}", path.display())]
    ImageDecode {
        /// The picture.
        path: PathBuf,
        /// What the decoder said.
        cause: image::ImageError,
    },
    /// The decoder panicked; the panic was caught.
    #[error("unreadable image {}: the decoder failed ({message})", path.display())]
    ImagePanic {
        /// The picture.
        path: PathBuf,
        /// The panic's text.
        message: String,
    },
    /// A mask has another shape than its picture.
    #[error("mask {} is {mask} pixels, its picture {picture}: another aspect ratio", path.display())]
    MaskSize {
        /// The mask's file, or the picture whose alpha it is.
        path: PathBuf,
        /// Size of the mask.
        mask: Size,
        /// Size of the upright picture.
        picture: Size,
    },
    /// A mask leaves nothing to learn.
    #[error("mask {} is black everywhere that is trained on", path.display())]
    MaskEmpty {
        /// The mask's file, or the picture whose alpha it is.
        path: PathBuf,
    },
    /// A size nothing can be fitted to, or an image without pixels.
    #[error("cannot fit an image of {image_width_px} x {image_height_px} pixels to {width_px} x {height_px}")]
    FitSize {
        /// Width of the image.
        image_width_px: u32,
        /// Height of the image.
        image_height_px: u32,
        /// Width asked for.
        width_px: u32,
        /// Height asked for.
        height_px: u32,
    },
    /// The resizer refused the image.
    #[error("cannot resize an image: {cause}")]
    Resize {
        /// What the resizer said.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DataError {
    /// What the user can do about it, one line, or `None` where the text already says it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::FolderMissing { .. } => "check the spelling; relative paths start at the current folder",
            Self::NotAFolder { .. } => "give the folder that holds the images, not one of them",
            Self::FolderRead { .. } | Self::CaptionRead { .. } | Self::ImageRead { .. } => {
                "check that you may read it and that the disk is attached"
            }
            Self::NoSources => "give a folder of images",
            Self::MetadataLine { fault: LineFault::Missing { .. }, .. } => {
                "remove the line, or check the spelling: names start at the folder of the file"
            }
            Self::MetadataLine { .. } => r#"a line looks like {"file_name": "a.png", "text": "a dog"}"#,
            Self::MetadataFormat { .. } => {
                r#"write metadata.jsonl instead, a line each: {"file_name": "a.png", "text": "a dog"}"#
            }
            Self::MetadataTooLong { .. } => "split the images into several folders, each with its own",
            Self::NoImages { .. } => "put jpg, jpeg, png or webp files there",
            Self::CaptionMissing { image } => {
                let text = image.with_extension("txt");
                return Some(format!("write {} or give a prompt for images without one", text.display()));
            }
            Self::CaptionTooLong { .. } => "a caption is a sentence or two; is this another kind of file?",
            Self::CaptionEncoding { .. } => "save it as UTF-8",
            Self::ImageNotAFile { .. } | Self::ImageExtension { .. } => "give a jpg, png, webp, bmp, gif or tiff file",
            Self::ImageContent { .. } => "convert it to JPEG, PNG or WebP, or remove it",
            Self::ImageFileSize { .. } | Self::ImageDimensions { .. } | Self::ImageMemory { .. } => {
                "scale it down; training needs about a thousand pixels a side at most"
            }
            Self::MaskSize { .. } => "make the mask from the picture itself, or scale it to the picture's size",
            Self::MaskEmpty { .. } => "paint white what is to be learnt, or remove the mask",
            Self::ImageTruncated { .. } => "copy or download it again, or remove it",
            Self::ImageDecode { .. } | Self::ImagePanic { .. } | Self::ImagePasses { .. } => {
                "save it again with an image program, or remove it"
            }
            Self::FitSize { .. } => "give a width and a height of at least 1 pixel and of a sensible size",
            Self::Resize { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

//! One picture of the training set with its text.

use std::path::PathBuf;

use crate::{CaptionText, Crop, DataError, Pixels, Role, decode, fit};

/// One picture with what is known about it before it is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The picture's file.
    pub path: PathBuf,
    /// Index of its source, whose rules make the caption.
    pub source: usize,
    /// Subject or class; never a mask.
    pub role: Role,
    /// How often it is shown an epoch.
    pub repeats: u32,
    /// What is written about it.
    pub caption: CaptionText,
    /// The file of its mask.
    pub mask: Option<PathBuf>,
    /// Its weight in the loss; 1 is ordinary.
    pub weight: f32,
    /// Whether it is mirrored with probability 1/2 each time.
    pub flip: bool,
}

impl Sample {
    /// Reads the picture as the network sees it: (height_px, width_px, 3) f32 in [-1, 1], and the part that this is.
    ///
    /// # Errors
    /// The picture is unreadable (see [`decode`](crate::decode())) or the size makes no sense (see [`fit`](crate::fit())).
    pub fn pixels(&self, width_px: u32, height_px: u32) -> Result<(Pixels, Crop), DataError> {
        fit(&decode(&self.path)?, width_px, height_px)
    }
}

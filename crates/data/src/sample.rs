//! One picture of the training set with its text.

use std::path::PathBuf;

use crate::{Crop, DataError, Pixels, decode, fit};

/// One picture with its caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The picture's file.
    pub path: PathBuf,
    /// Its final caption, trigger word included.
    pub caption: String,
    /// Its weight in the loss; 1 is ordinary.
    pub weight: f32,
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

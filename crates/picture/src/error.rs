//! Everything that can be wrong with pictures on their way out.

use crate::picture::MAX_PIXELS;

/// What went wrong. The one-line text holds the cause, so there is no `source` chain to print after it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// A picture without a single pixel.
    #[error("a picture of {width_px} x {height_px} pixels has none")]
    NoPixels {
        /// Its width.
        width_px: u64,
        /// Its height.
        height_px: u64,
    },
    /// A picture or grid of too many pixels.
    #[error("a picture of {width_px} x {height_px} pixels is too large: at most {MAX_PIXELS} in all")]
    TooLarge {
        /// Its width.
        width_px: u64,
        /// Its height.
        height_px: u64,
    },
    /// As many values as the size needs were not given.
    #[error("a picture of {width_px} x {height_px} pixels needs {expected} values, found {found}")]
    ValueCount {
        /// Width asked for.
        width_px: u32,
        /// Height asked for.
        height_px: u32,
        /// Three for each pixel.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A value that is not a number.
    #[error("not a number at row {y}, column {x} of a picture")]
    NotANumber {
        /// Column, from the left.
        x: usize,
        /// Row, from the top.
        y: usize,
    },
    /// Two pictures that were to be compared differ in size.
    #[error("cannot compare pictures of {} x {} and {} x {} pixels", left_px.0, left_px.1, right_px.0, right_px.1)]
    SizesDiffer {
        /// Width and height of one.
        left_px: (u32, u32),
        /// Width and height of the other.
        right_px: (u32, u32),
    },
    /// A grid without a single picture.
    #[error("a grid without pictures")]
    GridEmpty,
    /// A row of a grid holds more or fewer pictures than its first row.
    #[error("row {row} of the grid ({label:?}) holds {found} pictures, the first row holds {expected}")]
    GridRow {
        /// Which row, the first is 0.
        row: usize,
        /// Its label.
        label: String,
        /// Pictures in the first row.
        expected: usize,
        /// Pictures in this row.
        found: usize,
    },
    /// A grid has more or fewer column labels than columns.
    #[error("{found} column labels for {expected} columns of a grid")]
    GridColumns {
        /// Columns.
        expected: usize,
        /// Labels.
        found: usize,
    },
    /// The groups of a grid's columns do not add up to its columns, or one has none.
    #[error("groups of {found:?} columns do not make up the {expected} columns of a grid")]
    GridGroups {
        /// Columns.
        expected: usize,
        /// Columns of each group.
        found: Vec<usize>,
    },
    /// The PNG encoder refused the picture.
    #[error("cannot encode a PNG: {cause}")]
    Encode {
        /// What the encoder said.
        cause: png::EncodingError,
    },
    /// Bytes that are no PNG, or a broken one.
    #[error("cannot read a PNG: {cause}")]
    Decode {
        /// What the decoder said.
        cause: png::DecodingError,
    },
}

impl PictureError {
    /// What the user can do about it, one line, or `None` where the text already says it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoPixels { .. } => "give a width and a height of at least 1 pixel",
            Self::TooLarge { .. } => "ask for a smaller size, or for fewer rows or columns",
            Self::NotANumber { .. } => "the model computed no numbers: try f32, or a smaller guidance or adapter scale",
            Self::GridEmpty => "give at least one value for each axis of the grid",
            Self::Decode { .. } => "give a PNG file as a generation tool wrote it",
            Self::ValueCount { .. }
            | Self::SizesDiffer { .. }
            | Self::GridRow { .. }
            | Self::GridColumns { .. }
            | Self::GridGroups { .. }
            | Self::Encode { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

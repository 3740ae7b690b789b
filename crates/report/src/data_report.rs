//! `data.json`, the report on images and captions that `loralei dataset check --json` makes: the part that a page shows.

use serde::Deserialize;

/// The report. What a version does not write is empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DataReport {
    pub images: u64,
    pub class_images: u64,
    pub captions: u64,
    pub captions_missing: Vec<serde_json::Value>,
    pub captions_too_long: Vec<serde_json::Value>,
    pub tokens: Option<Tokens>,
    pub tags: Vec<Tag>,
    pub smallest: Option<Size>,
    pub largest: Option<Size>,
    pub buckets: Vec<Bucket>,
    pub duplicates: Vec<serde_json::Value>,
    pub masks: Masks,
    pub unreadable: Vec<serde_json::Value>,
    pub steps_per_epoch: Option<f64>,
    pub epochs: Option<f64>,
    pub pictures: Vec<Listed>,
    pub warnings: Vec<String>,
    pub errors: Vec<String>,
}

/// Lengths of captions.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Tokens {
    pub shortest: Option<u64>,
    pub longest: Option<u64>,
    pub max: Option<u64>,
}

/// How often a tag stands in captions.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Tag {
    pub tag: String,
    pub count: u64,
}

/// Size of a picture in pixels.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Size {
    pub width: u32,
    pub height: u32,
}

/// A size of training and who is trained at it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Bucket {
    pub width: u32,
    pub height: u32,
    #[serde(default)]
    pub role: String,
    pub count: u64,
    /// Part of the pictures' area that is cut off, 0 to 1.
    #[serde(default)]
    pub cropped_share: f64,
}

/// How many pictures have a mask beside them, or of their own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Masks {
    pub files: u64,
    pub transparent: u64,
}

/// A picture of the list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Listed {
    pub path: String,
    pub width: u32,
    pub height: u32,
    pub bucket_width: u32,
    pub bucket_height: u32,
    pub repeats: u64,
    pub caption: Option<String>,
    pub tokens: Option<u64>,
}

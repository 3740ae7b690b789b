//! Where pictures lie, and what is said about all of them.

use std::path::{Path, PathBuf};

use crate::{Alpha, BucketRules, CaptionRules};

/// What the pictures of a source are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// What is learned.
    Subject,
    /// Pictures of the class word, for prior preservation.
    Class,
    /// Masks of the same names for the pictures of the subject.
    Mask,
}

/// One folder of pictures with its rules: an entry of `[[data.sources]]`, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The folder. Folders within are searched too, at any depth.
    pub path: PathBuf,
    /// What its pictures are for.
    pub role: Role,
    /// How often each picture is shown an epoch, from 1; `None`: from a folder's name `N_name`, else 1.
    pub repeats: Option<u32>,
    /// How captions are made.
    pub captions: CaptionRules,
    /// At which sizes.
    pub buckets: BucketRules,
    /// What transparency means.
    pub alpha: Alpha,
    /// Whether each showing is mirrored with probability 1/2.
    pub flip: bool,
    /// Weight in the loss; 1 is ordinary.
    pub weight: f32,
}

impl Source {
    /// A folder of pictures whose captions are not looked at: one that has none is good enough.
    pub fn of_pictures(path: &Path) -> Self {
        let (width_px, height_px) = (512, 512);
        Self {
            path: path.to_owned(),
            role: Role::Subject,
            repeats: None,
            captions: CaptionRules { prompt: Some("-".to_owned()), ..CaptionRules::default() },
            buckets: BucketRules {
                width_px,
                height_px,
                enabled: false,
                min_px: 256,
                max_px: 1024,
                step_px: 64,
                no_upscale: false,
            },
            alpha: Alpha::default(),
            flip: false,
            weight: 1.0,
        }
    }
}

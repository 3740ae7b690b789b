//! The sizes a run trains at.

/// Width and height of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
}

/// How sizes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketRules {
    /// Width of the run in pixels.
    pub width_px: u32,
    /// Height of the run in pixels.
    pub height_px: u32,
    /// Whether pictures of other shapes get sizes of their own.
    pub enabled: bool,
    /// Smallest side in pixels.
    pub min_px: u32,
    /// Largest side in pixels.
    pub max_px: u32,
    /// Sides are multiples of this, in pixels.
    pub step_px: u32,
    /// Whether small pictures keep their size.
    pub no_upscale: bool,
}

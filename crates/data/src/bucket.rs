//! The sizes a run uses, and which one a picture goes to: aspect-ratio buckets.
//!
//! The list of sizes and the scaling are kohya-ss/sd-scripts' (`make_bucket_resolutions` and `BucketManager`), so that a
//! data set prepared for it is cut the same way. One rule differs: a picture goes to the bucket whose aspect ratio is
//! nearest as a quotient, not as a difference, so that wide and tall pictures are treated alike.

use std::fmt;

/// A size in pixels. Ordered by width, then height, as kohya's lists are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size {
    /// Columns.
    pub width_px: u32,
    /// Rows.
    pub height_px: u32,
}

impl Size {
    /// A size of `width_px` x `height_px` pixels.
    pub const fn new(width_px: u32, height_px: u32) -> Self {
        Self { width_px, height_px }
    }

    /// Pixels in all.
    pub fn area(self) -> u64 {
        u64::from(self.width_px) * u64::from(self.height_px)
    }

    /// The natural logarithm of width by height: 0 for a square, and a picture turned on its side changes the sign.
    /// Meaningless where a side is 0.
    pub fn log_ratio(self) -> f64 {
        (f64::from(self.width_px) / f64::from(self.height_px)).ln()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.width_px, self.height_px)
    }
}

/// How pictures of different shapes are sorted into sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketRules {
    /// Width of the run. Width times height is the number of pixels that no bucket exceeds.
    pub width_px: u32,
    /// Height of the run.
    pub height_px: u32,
    /// Off: every picture is cropped to exactly the run's width and height.
    pub enabled: bool,
    /// Shortest side of a bucket, lowered to a multiple of the step. Ignored with `no_upscale`.
    pub min_px: u32,
    /// Longest side of a bucket, raised to a multiple of the step. Ignored with `no_upscale`.
    pub max_px: u32,
    /// Sides are multiples of this. Taken as 1 if it is 0.
    pub step_px: u32,
    /// Never enlarge: a picture smaller than the run keeps its size, and its bucket is that size cut to the step.
    pub no_upscale: bool,
}

/// Where a picture goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assigned {
    /// The size it is trained at.
    pub bucket: Size,
    /// The size it is scaled to before it is cropped to the bucket from the centre; no side is smaller than the
    /// bucket's.
    pub resized: Size,
}

impl Assigned {
    /// The share of the scaled picture that is cropped away, in [0, 1).
    pub fn cropped_share(self) -> f64 {
        1.0 - self.bucket.area() as f64 / self.resized.area() as f64
    }
}

impl BucketRules {
    /// All sizes that pictures can be assigned to, sorted, none twice. With `no_upscale` the sizes follow the pictures
    /// and the list is empty.
    ///
    /// If the limits leave no size at all, it is the one square that the area allows, at least one step a side.
    pub fn buckets(&self) -> Vec<Size> {
        if !self.enabled {
            return vec![Size::new(self.width_px, self.height_px)];
        }
        if self.no_upscale {
            return Vec::new();
        }
        let (area, step) = (self.area(), self.step());
        let min = u64::from(self.min_px) / step * step;
        let max = u64::from(self.max_px).div_ceil(step) * step;
        let square = (area.isqrt() / step * step).max(step);
        let mut buckets = vec![(square, square)];
        // A side of 0 is no size; beyond the area there is none either, so a huge maximum costs no time.
        let mut width = min.max(step);
        while width <= max.min(area) {
            let height = (area / width / step * step).min(max);
            if height >= min.max(step) {
                buckets.extend([(width, height), (height, width)]);
            }
            width += step;
        }
        let mut buckets: Vec<Size> =
            buckets.into_iter().map(|(width, height)| Size::new(side(width), side(height))).collect();
        buckets.sort_unstable();
        buckets.dedup();
        buckets
    }

    /// The bucket of an upright picture of this size, and the size it is scaled to.
    ///
    /// A picture whose size is in the list takes it, otherwise the nearest aspect ratio does: the least
    /// |ln(bucket) - ln(picture)|, the first in the list's order if several are equally near.
    pub fn assign(&self, picture: Size) -> Assigned {
        self.assign_from(&self.buckets(), picture)
    }

    /// [`assign`](Self::assign) with the list of [`buckets`](Self::buckets) made once for many pictures.
    pub fn assign_from(&self, buckets: &[Size], picture: Size) -> Assigned {
        let picture = Size::new(picture.width_px.max(1), picture.height_px.max(1));
        if self.enabled && self.no_upscale {
            return self.assign_without_upscaling(picture);
        }
        let bucket = if buckets.binary_search(&picture).is_ok() { picture } else { nearest(buckets, picture) };
        Assigned { bucket, resized: cover(picture, bucket) }
    }

    /// A picture of more pixels than the run's is scaled to about that number, one side to a multiple of the step, by
    /// whichever side bends the aspect ratio less. Then each side is cut down to a multiple.
    ///
    /// Where kohya would reach a side of 0 (a picture narrower than a step), the side is one step.
    fn assign_without_upscaling(&self, picture: Size) -> Assigned {
        let (area, step) = (self.area(), self.step());
        let mut resized = picture;
        if picture.area() > area {
            let ratio = f64::from(picture.width_px) / f64::from(picture.height_px);
            let rounded = |side: f64| (round(side) / step * step).max(step);
            let ideal_width = (area as f64 * ratio).sqrt();
            let by_width = rounded(ideal_width);
            let by_height = rounded(area as f64 / ideal_width);
            let width_error = (by_width as f64 / rounded(by_width as f64 / ratio) as f64 - ratio).abs();
            let height_error = (rounded(by_height as f64 * ratio) as f64 / by_height as f64 - ratio).abs();
            resized = if width_error < height_error {
                Size::new(side(by_width), side(round(by_width as f64 / ratio)))
            } else {
                Size::new(side(round(by_height as f64 * ratio)), side(by_height))
            };
        }
        let cut = |length: u32| side((u64::from(length) / step * step).max(step));
        let bucket = Size::new(cut(resized.width_px), cut(resized.height_px));
        if resized.width_px < bucket.width_px || resized.height_px < bucket.height_px {
            resized = cover(picture, bucket);
        }
        Assigned { bucket, resized }
    }

    fn area(&self) -> u64 {
        u64::from(self.width_px) * u64::from(self.height_px)
    }

    fn step(&self) -> u64 {
        u64::from(self.step_px.max(1))
    }
}

/// The size to scale an original to so that it covers `target` with no side longer than needed: one side is the
/// target's, the other is rounded to nearest, which cannot fall below it. Sides of 0 count as 1.
pub(crate) fn cover(original: Size, target: Size) -> Size {
    let [(width, height), (target_width, target_height)] =
        [original, target].map(|size| (u64::from(size.width_px.max(1)), u64::from(size.height_px.max(1))));
    let to_nearest = |numerator: u64, denominator: u64| side((numerator + denominator / 2) / denominator);
    if width * target_height >= height * target_width {
        Size::new(to_nearest(width * target_height, height), side(target_height))
    } else {
        Size::new(side(target_width), to_nearest(height * target_width, width))
    }
}

fn nearest(buckets: &[Size], picture: Size) -> Size {
    // Mirrored pairs are equally far from a square to the bit; what is nearer by less than rounding is no nearer.
    const ROUNDING: f64 = 1e-12;
    let mut best = (f64::INFINITY, picture);
    for &bucket in buckets {
        let distance = (bucket.log_ratio() - picture.log_ratio()).abs();
        if distance < best.0 - ROUNDING {
            best = (distance, bucket);
        }
    }
    best.1
}

/// Only sides near `u32::MAX`, far beyond what is decoded, could leave the range.
fn side(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn round(length: f64) -> u64 {
    (length + 0.5) as u64
}

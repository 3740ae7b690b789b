//! What a picture looks like in 64 bits, so that copies of other size, quality or brightness are found.
//!
//! The signs of a discrete cosine transform, after the perceptual hash of Zauner (2010, "Implementation and
//! benchmarking of perceptual image hash functions"): the lowest frequencies that have both directions, each a bit by
//! whether it is above the median. Hashes by differences of neighbours were tried too and could not tell drawings on a
//! white ground apart.

use std::f64::consts::PI;

use image::RgbImage;

use crate::area::area_average;

/// Side of the small grey picture that is transformed.
const SIDE: usize = 32;
/// Frequencies 1 to 8 of each direction.
const FREQUENCIES: usize = 8;
/// Below this amplitude, in grey values, a picture is flat: its bits would be chance.
const FLAT: f64 = 0.5;

/// A 64-bit perceptual hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Look(pub u64);

impl Look {
    /// The hash of an upright picture, or `None` if it is all of one colour, give or take noise.
    pub fn of(image: &RgbImage) -> Option<Self> {
        let coefficients = low_frequencies(&grey_thumbnail(image));
        // an amplitude in grey values: the transform of the average is 1 / SIDE^2 of the sum
        let largest = coefficients.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        if largest < FLAT {
            return None;
        }
        let mut sorted = coefficients.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = f64::midpoint(sorted[middle - 1], sorted[middle]);
        let bits = coefficients.iter().enumerate();
        Some(Self(bits.fold(0, |hash, (index, &value)| hash | u64::from(value > median) << index)))
    }

    /// In how many of the 64 bits two hashes differ.
    pub fn distance(self, other: Self) -> u32 {
        (self.0 ^ other.0).count_ones()
    }
}

/// (SIDE, SIDE) grey values in [0, 255].
fn grey_thumbnail(image: &RgbImage) -> Vec<f32> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let row = |y: usize| {
        let pixels = image.as_raw()[y * width * 3..][..width * 3].as_chunks::<3>().0;
        // the luma of ITU-R BT.601 in 1/256
        pixels.iter().map(|&[r, g, b]| (u32::from(r) * 77 + u32::from(g) * 150 + u32::from(b) * 29) as f32 / 256.0)
    };
    let whole = [0.0, 0.0, width as f64, height as f64];
    area_average(|y| row(y).collect(), (width, height), whole, (SIDE, SIDE))
}

/// The cosine transform of a (SIDE, SIDE) picture at the lowest frequencies, the constant ones left out, in grey
/// values; (FREQUENCIES, FREQUENCIES).
fn low_frequencies(grey: &[f32]) -> Vec<f64> {
    let wave = |frequency: usize, at: usize| (PI * (2 * at + 1) as f64 * frequency as f64 / (2 * SIDE) as f64).cos();
    let waves: Vec<Vec<f64>> = (1..=FREQUENCIES).map(|f| (0..SIDE).map(|at| wave(f, at)).collect()).collect();
    let dot = |wave: &[f64], values: &[f64]| wave.iter().zip(values).map(|(a, b)| a * b).sum::<f64>();
    let mut coefficients = Vec::with_capacity(FREQUENCIES * FREQUENCIES);
    for vertical in &waves {
        let columns: Vec<f64> = (0..SIDE)
            .map(|x| {
                let column: Vec<f64> = (0..SIDE).map(|y| f64::from(grey[y * SIDE + x])).collect();
                dot(vertical, &column)
            })
            .collect();
        coefficients.extend(waves.iter().map(|horizontal| dot(horizontal, &columns) * 4.0 / (SIDE * SIDE) as f64));
    }
    coefficients
}

//! Numbers that show whether a picture is burnt: colours at their ends, garish, hard.

use crate::picture::Picture;

/// Measures of one picture, or means of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct ColourMeasures {
    /// Share of all colour values that are 0 or 255.
    pub clipped: f64,
    /// Mean saturation of the HSV model, 0 to 1: (max - min) / max of a pixel's three values, 0 of black.
    pub saturation: f64,
    /// RMS contrast: standard deviation of the luma, 0 to 0.5.
    pub contrast: f64,
    /// Variance of the luma's Laplacian (four neighbours), luma from 0 to 1: how hard edges are. 0 below three pixels a side.
    pub laplacian_variance: f64,
}

impl ColourMeasures {
    /// Of one picture. Luma is 0.299 R + 0.587 G + 0.114 B (BT.601).
    pub fn of(picture: &Picture) -> Self {
        let (width, rgb) = (picture.width_px() as usize, picture.rgb());
        let is_clipped = |value: &&u8| **value == 0 || **value == u8::MAX;
        let pixels = || rgb.chunks_exact(3);
        let saturation = |pixel: &[u8]| {
            let (min, max) = pixel.iter().fold((u8::MAX, 0), |(min, max), value| (min.min(*value), max.max(*value)));
            f64::from(max - min) / f64::from(max.max(1))
        };
        let luma = |p: &[u8]| (0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])) / 255.0;
        let luma: Vec<f64> = pixels().map(luma).collect();
        Self {
            clipped: rgb.iter().filter(is_clipped).count() as f64 / rgb.len() as f64,
            saturation: pixels().map(saturation).sum::<f64>() / luma.len() as f64,
            contrast: variance(&luma).sqrt(),
            laplacian_variance: variance(&laplacian(&luma, width)),
        }
    }

    /// The mean of each number; zeros of nothing.
    pub fn mean(measures: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| measures.iter().map(of).sum::<f64>() / measures.len().max(1) as f64;
        Self {
            clipped: mean(|measures| measures.clipped),
            saturation: mean(|measures| measures.saturation),
            contrast: mean(|measures| measures.contrast),
            laplacian_variance: mean(|measures| measures.laplacian_variance),
        }
    }
}

/// Of the pixels that have four neighbours.
fn laplacian(luma: &[f64], width: usize) -> Vec<f64> {
    let height = luma.len() / width.max(1);
    let inside = (1..height.saturating_sub(1)).flat_map(|y| (1..width.saturating_sub(1)).map(move |x| y * width + x));
    inside.map(|i| luma[i - width] + luma[i + width] + luma[i - 1] + luma[i + 1] - 4.0 * luma[i]).collect()
}

/// 0 of nothing.
fn variance(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// import numpy as np
    /// p = np.array([[[(x * 37 + y * 91 + c * 53) % 256 for c in range(3)] for x in range(5)] for y in range(4)], float)
    /// p[0, 0] = [0, 255, 255]; p[3, 4] = [0, 0, 0]
    /// print(np.mean((p == 0) | (p == 255)))
    /// m = p.max(-1); print(np.mean(np.where(m > 0, (m - p.min(-1)) / np.maximum(m, 1), 0)))
    /// l = p @ [0.299, 0.587, 0.114] / 255; print(l.std())
    /// print((l[:-2, 1:-1] + l[2:, 1:-1] + l[1:-1, :-2] + l[1:-1, 2:] - 4 * l[1:-1, 1:-1]).var())
    /// ```
    #[test]
    fn numbers_are_those_of_numpy() {
        let value = |x: usize, y: usize, c: usize| match (x, y, c) {
            (0, 0, 0) | (4, 3, _) => 0,
            (0, 0, _) => 255,
            _ => ((x * 37 + y * 91 + c * 53) % 256) as u8,
        };
        let rgb = (0..60).map(|i| value(i / 3 % 5, i / 15, i % 3)).collect();
        let found = ColourMeasures::of(&Picture::from_rgb(5, 4, rgb).unwrap());
        let expected =
            [0.133_333_333_333_333_33, 0.671_996_245_841_310_7, 0.219_238_902_756_978_35, 0.942_104_286_590_627_3];
        for (found, expected) in
            [found.clipped, found.saturation, found.contrast, found.laplacian_variance].into_iter().zip(expected)
        {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    #[test]
    fn grey_has_no_colour_and_one_colour_no_contrast() {
        let measures = |colour| ColourMeasures::of(&Picture::of_colour(3, 2, colour).unwrap());
        let grey = ColourMeasures { clipped: 0.0, saturation: 0.0, contrast: 0.0, laplacian_variance: 0.0 };
        let rounded = |of: ColourMeasures| ColourMeasures { contrast: (of.contrast * 1e9).round(), ..of };
        assert_eq!(rounded(measures([90, 90, 90])), grey);
        assert_eq!(rounded(measures([255, 0, 0])), ColourMeasures { clipped: 1.0, saturation: 1.0, ..grey });
        assert_eq!(rounded(measures([200, 100, 150])), ColourMeasures { saturation: 0.5, ..grey });
    }
}

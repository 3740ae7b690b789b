//! Rows of the orthogonal matrix that all adapters share in a module, for an A that does not learn (Po et al. 2023,
//! Orthogonal Adaptation, arXiv 2312.02432).
//!
//! Adapters that take different rows of it have A_i A_j^T = 0: what one reads of a layer's input, the other does not see. The
//! matrix must be the same everywhere and for ever, so it is a formula instead of a decomposition: a cosine transform (DCT-II),
//! its columns with random signs, its rows in random order. Signs spread any input over all rows; signs and order are drawn from the
//! module's name alone.

use loralei_model::{Draw, Purpose};

/// Rows `first..first + num_rows` of the matrix of `module`, (num_rows, width) row-major: orthogonal, each of length
/// sqrt(1/3), which is what rows drawn from U(-1/sqrt(width), 1/sqrt(width)) have on average. Rows from `width` on are zeros.
pub(crate) fn subspace_rows(module: &str, width: usize, first: usize, num_rows: usize) -> Vec<f32> {
    let draw = |what: u64| Draw::new(0, 0, what, Purpose::shared_rows(module));
    let signs: Vec<f64> =
        draw(0).uniform(-1.0, 1.0, width).into_iter().map(|x| if x < 0.0 { -1.0 } else { 1.0 }).collect();
    let places = draw(1).integers(0..i64::MAX, width);
    let mut frequencies: Vec<usize> = (0..width).collect();
    frequencies.sort_by_key(|k| (places[*k], *k));
    let row = |row: usize| {
        let frequency = frequencies.get(row).copied();
        let signs = &signs;
        (0..width).map(move |j| frequency.map_or(0.0, |k| (signs[j] * cosine(k, j, width) / 3f64.sqrt()) as f32))
    };
    (first..first + num_rows).flat_map(row).collect()
}

/// Entry (k, j) of the orthonormal DCT-II of this width.
fn cosine(k: usize, j: usize, width: usize) -> f64 {
    if k == 0 {
        return (1.0 / width as f64).sqrt();
    }
    // The angle is a whole multiple of a quarter turn over the width; whole turns are taken away before anything is rounded.
    let quarters = (2 * j + 1) * k % (4 * width);
    let angle = std::f64::consts::FRAC_PI_2 * quarters as f64 / width as f64;
    (2.0 / width as f64).sqrt() * libm::cos(angle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    #[test]
    fn all_rows_of_a_width_are_orthogonal_and_as_long_as_drawn_ones() {
        for width in [1, 2, 7, 24, 45, 96] {
            let rows = subspace_rows("lora_unet_a", width, 0, width);
            for (i, a) in rows.chunks(width).enumerate() {
                for (j, b) in rows.chunks(width).enumerate() {
                    let expected = if i == j { 1.0 / 3.0 } else { 0.0 };
                    assert!((product(a, b) - expected).abs() < 1e-7, "{width}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_wide_layers_do_not_meet() {
        let (width, rank) = (2880, 16);
        let [first, last] = [0, width / rank - 1].map(|block| subspace_rows("lora_unet_b", width, block * rank, rank));
        let largest =
            first.chunks(width).flat_map(|a| last.chunks(width).map(|b| product(a, b).abs())).fold(0.0, f64::max);
        assert!(largest < 1e-7, "{largest}");
    }

    #[test]
    fn no_input_is_favoured_and_modules_differ() {
        let rows = |module: &str| subspace_rows(module, 320, 8, 8);
        let (a, b) = (rows("lora_unet_a"), rows("lora_unet_b"));
        // Energy of each input over the rows: on average 8 / 3 / 320 of each.
        for j in 0..320 {
            let energy: f64 = a.chunks(320).map(|row| f64::from(row[j]).powi(2)).sum();
            assert!(energy < 2.0 * 8.0 / 3.0 / 320.0 + 1e-9, "{energy}");
        }
        let overlap: f64 = a.chunks(320).flat_map(|x| b.chunks(320).map(move |y| (3.0 * product(x, y)).powi(2))).sum();
        assert!(overlap < 1.0, "of 8 at most, 0.2 by chance: {overlap}");
    }

    /// ```python
    /// import numpy as np
    /// # words, u64 and name_hash as in `loralei_model::Draw`'s test, for `lora_unet_mid`
    /// w = words(0, 0, 0, 32, name_hash); signs = np.array([1.0 if (next(w) >> 8) >= 2**23 else -1.0 for _ in range(8)])
    /// w = words(0, 0, 1, 32, name_hash); places = [u64(w) * (2**63 - 1) >> 64 for _ in range(8)]
    /// k = sorted(range(8), key=lambda k: (places[k], k))[5]
    /// row = signs * np.sqrt(2 / 8) * np.cos(np.pi * (2 * np.arange(8) + 1) * k / 16) / np.sqrt(3)
    /// print([float(np.float32(x)) for x in row])
    /// ```
    #[test]
    fn the_matrix_is_the_documented_one_for_ever() {
        let row = subspace_rows("lora_unet_mid", 8, 5, 1);
        assert_eq!(row, subspace_rows("lora_unet_mid", 8, 4, 3)[8..16]);
        let expected: [f32; 8] = [
            0.2667010426521301,
            -0.11047118902206421,
            0.11047118902206421,
            -0.2667010426521301,
            0.2667010426521301,
            -0.11047118902206421,
            0.11047118902206421,
            -0.2667010426521301,
        ];
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&row), bits(&expected), "{row:?}");
    }
}

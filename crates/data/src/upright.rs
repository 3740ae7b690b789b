//! Turns a picture by its EXIF orientation, in place: a phone's 48 megapixels, turned as a copy, would need twice the
//! memory of everything else.

use image::metadata::Orientation;

/// A larger picture is not copied to be turned, in bytes.
pub(crate) const LARGE_BYTES: usize = 48 * 1024 * 1024;

/// Turns `pixels`, (height, width), and returns the width and height of the result.
pub(crate) fn turn<T: Copy>(pixels: &mut [T], width: usize, height: usize, orientation: Orientation) -> (usize, usize) {
    let is_transposed = matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    let (width, height) = if is_transposed {
        transpose(pixels, width, height);
        (height, width)
    } else {
        (width, height)
    };
    match orientation {
        Orientation::NoTransforms | Orientation::Rotate90FlipH => {}
        Orientation::FlipHorizontal | Orientation::Rotate90 => mirror(pixels, width),
        Orientation::FlipVertical | Orientation::Rotate270 => {
            for y in 0..height / 2 {
                let (above, below) = pixels.split_at_mut((height - 1 - y) * width);
                above[y * width..][..width].swap_with_slice(&mut below[..width]);
            }
        }
        Orientation::Rotate180 | Orientation::Rotate270FlipH => pixels.reverse(),
    }
    (width, height)
}

/// Mirrors every row of `width` pixels.
pub(crate) fn mirror<T>(pixels: &mut [T], width: usize) {
    pixels.chunks_exact_mut(width.max(1)).for_each(<[T]>::reverse);
}

/// (height, width) to (width, height). A small picture is copied; a large one follows the cycles of the permutation
/// with a bit for each pixel that is in its place, which is slower but needs an eighth of a byte a pixel.
fn transpose<T: Copy>(pixels: &mut [T], width: usize, height: usize) {
    if size_of_val(pixels) <= LARGE_BYTES {
        transpose_by_copy(pixels, width, height);
    } else {
        transpose_by_cycles(pixels, width, height);
    }
}

fn transpose_by_copy<T: Copy>(pixels: &mut [T], width: usize, height: usize) {
    const TILE: usize = 32; // rows and columns that stay in the cache
    let source = pixels.to_vec();
    for top in (0..height).step_by(TILE) {
        for left in (0..width).step_by(TILE) {
            for y in top..height.min(top + TILE) {
                for x in left..width.min(left + TILE) {
                    pixels[x * height + y] = source[y * width + x];
                }
            }
        }
    }
}

fn transpose_by_cycles<T: Copy>(pixels: &mut [T], width: usize, height: usize) {
    let num_pixels = pixels.len();
    let mut is_placed = vec![0_u64; num_pixels.div_ceil(64)];
    for start in 0..num_pixels {
        if is_placed[start / 64] >> (start % 64) & 1 != 0 {
            continue;
        }
        let (mut carried, mut at) = (pixels[start], start);
        loop {
            at = at % width * height + at / width; // where the pixel from `at` belongs
            std::mem::swap(&mut carried, &mut pixels[at]);
            is_placed[at / 64] |= 1 << (at % 64);
            if at == start {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{transpose_by_copy, transpose_by_cycles};

    #[test]
    fn both_ways_to_transpose_put_every_pixel_in_its_place() {
        for (width, height) in [(1, 1), (1, 7), (7, 1), (5, 5), (37, 64), (64, 37), (70, 33)] {
            let source: Vec<usize> = (0..width * height).collect();
            for transpose in [transpose_by_copy, transpose_by_cycles] {
                let mut pixels = source.clone();
                transpose(&mut pixels, width, height);
                for (at, value) in pixels.into_iter().enumerate() {
                    assert_eq!(value, at % height * width + at / height, "{width} x {height}");
                }
            }
        }
    }
}

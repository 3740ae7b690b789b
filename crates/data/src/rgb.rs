//! What a decoder gives as 8-bit red, green and blue, in place where that is possible: a picture at the limit of
//! [`decode`](mod@crate::decode) must not need its memory twice.

use image::ColorType;

use crate::decode::Alpha;

/// Interleaved 8-bit samples of a picture.
pub(crate) struct Rgb8 {
    /// (pixels, 3)
    pub(crate) rgb: Vec<u8>,
    /// (pixels), where asked for and some pixel is transparent.
    pub(crate) alpha: Option<Vec<u8>>,
    /// Whether some pixel was transparent.
    pub(crate) is_transparent: bool,
}

/// Converts `samples`, in the byte order of this machine, as `image`'s decoders give them.
///
/// Returns `None` for a type of colour this crate does not know; `image` has none beyond those handled.
pub(crate) fn to_rgb8(mut samples: Vec<u8>, color: ColorType, alpha: Alpha) -> Option<Rgb8> {
    match color {
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => narrow(&mut samples, |sample| {
            let value = u32::from(u16::from_ne_bytes(sample));
            ((value * 255 + 32_767) / 65_535) as u8
        }),
        ColorType::Rgb32F | ColorType::Rgba32F => narrow(&mut samples, |sample| {
            (f32::from_ne_bytes(sample).clamp(0.0, 1.0) * 255.0 + 0.5) as u8 // not a number becomes 0
        }),
        ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8 => {}
        _ => return None,
    }
    Some(match color.channel_count() {
        1 => {
            let rgb = samples.iter().flat_map(|&grey| [grey; 3]).collect();
            Rgb8 { rgb, alpha: None, is_transparent: false }
        }
        3 => Rgb8 { rgb: samples, alpha: None, is_transparent: false },
        num_channels => flatten(samples, usize::from(num_channels), alpha),
    })
}

/// Replaces every sample of N bytes by one byte.
fn narrow<const N: usize>(samples: &mut Vec<u8>, to_byte: impl Fn([u8; N]) -> u8) {
    let num_samples = samples.len() / N;
    for index in 0..num_samples {
        let mut sample = [0; N];
        sample.copy_from_slice(&samples[index * N..][..N]);
        samples[index] = to_byte(sample);
    }
    samples.truncate(num_samples);
    samples.shrink_to_fit();
}

/// Lays grey with alpha (2 channels) or colour with alpha (4) over the one colour of `alpha`.
fn flatten(mut samples: Vec<u8>, num_channels: usize, alpha: Alpha) -> Rgb8 {
    let num_pixels = samples.len() / num_channels;
    let is_transparent = samples.chunks_exact(num_channels).any(|pixel| pixel[num_channels - 1] != 255);
    let (under, keeps_alpha) = match alpha {
        Alpha::Over(colour) => (colour, false),
        Alpha::Mask => ([255; 3], is_transparent),
    };
    let alpha = keeps_alpha.then(|| samples.iter().skip(num_channels - 1).step_by(num_channels).copied().collect());
    if num_channels == 2 {
        let over = |pixel: &[u8]| under.map(|under| blend(pixel[0], under, pixel[1]));
        return Rgb8 { rgb: samples.chunks_exact(2).flat_map(over).collect(), alpha, is_transparent };
    }
    for index in 0..num_pixels {
        let [r, g, b, a] = [0, 1, 2, 3].map(|channel| samples[index * 4 + channel]);
        let over = [blend(r, under[0], a), blend(g, under[1], a), blend(b, under[2], a)];
        samples[index * 3..][..3].copy_from_slice(&over);
    }
    samples.truncate(num_pixels * 3);
    samples.shrink_to_fit();
    Rgb8 { rgb: samples, alpha, is_transparent }
}

/// `value * alpha + under * (1 - alpha)` with alpha as a share of 255, rounded to nearest.
fn blend(value: u8, under: u8, alpha: u8) -> u8 {
    let [value, under, alpha] = [value, under, alpha].map(u32::from);
    ((value * alpha + under * (255 - alpha) + 127) / 255) as u8
}

//! The noise of a micro-batch where it is more than standard normal numbers: offset, pyramid and input perturbation, after
//! sd-scripts (`library/custom_train_functions.py`).
//!
//! Offset and pyramid noise are part of what the network is to predict; input perturbation is not.

use candle_core::Tensor;
use loralei_model::{Draw, LossTerm, Purpose};
use std::ops::Range;

use crate::config::NoiseConfig;
use crate::network::tensor;

/// What is added to latents.
pub(crate) struct Noise {
    /// What the network is to predict: (b, c, h, w), f32.
    pub(crate) noise: Tensor,
    /// What the latents get, where that is something else.
    pub(crate) input_noise: Option<Tensor>,
}

/// Values of (b, c, h, w).
#[derive(Clone, Copy)]
struct Maps {
    b: usize,
    c: usize,
    h: usize,
    w: usize,
}

impl Maps {
    fn plane(self) -> usize {
        self.h * self.w
    }

    fn len(self) -> usize {
        self.b * self.c * self.plane()
    }
}

impl NoiseConfig {
    /// The noise of `latents` (b, c, h, w), f32, on the processor. `normal` is the purpose of its normal numbers, `term` what
    /// the rest is drawn for.
    ///
    /// # Errors
    /// If the latents have another shape or lie elsewhere.
    pub(crate) fn of(
        &self,
        latents: &Tensor,
        normal: Purpose,
        term: LossTerm,
        draw: impl Fn(Purpose) -> Draw,
    ) -> candle_core::Result<Noise> {
        let (b, c, h, w) = latents.dims4()?;
        let maps = Maps { b, c, h, w };
        let mut noise = draw(normal).standard_normal(maps.len());
        if self.offset > 0.0 || self.offset_adaptive != 0.0 {
            let random =
                if self.offset_random { draw(Purpose::OffsetStrength(term)).uniform(0.0, 1.0, 1)[0] } else { 1.0 };
            let latents = latents.flatten_all()?.to_vec1::<f32>()?;
            let normals = draw(Purpose::OffsetNoise(term)).standard_normal(b * c);
            self.add_offset(&mut noise, &latents, f64::from(random), &normals);
        }
        if self.pyramid_iterations > 0 {
            let shrinks = draw(Purpose::PyramidScale(term)).uniform(2.0, 4.0, self.pyramid_iterations);
            let levels = Level::all(maps, &shrinks, self.pyramid_discount);
            let count = levels.iter().map(|level| level.len(maps)).sum();
            add_pyramid(&mut noise, maps, &levels, &draw(Purpose::PyramidNoise(term)).standard_normal(count));
        }
        let input_noise = (self.input_perturbation > 0.0).then(|| {
            let more = draw(Purpose::InputPerturbation(term)).standard_normal(maps.len());
            let perturbed = noise.iter().zip(more).map(|(noise, more)| noise + self.input_perturbation as f32 * more);
            tensor(perturbed.collect(), latents.shape())
        });
        Ok(Noise { input_noise: input_noise.transpose()?, noise: tensor(noise, latents.shape())? })
    }

    /// The timesteps that are drawn, for a base with so many.
    pub(crate) fn timesteps(&self, num_timesteps: usize) -> Range<i64> {
        self.min_timestep as i64..self.max_timestep.unwrap_or(num_timesteps) as i64
    }

    /// Adds one of `normals` (b c) to each channel of `noise` (b, c, h, w), times `random` * offset + adaptive * |mean of the
    /// channel's latents|, which is never below 0.
    fn add_offset(&self, noise: &mut [f32], latents: &[f32], random: f64, normals: &[f32]) {
        let plane = noise.len() / normals.len().max(1);
        let channels = noise.chunks_exact_mut(plane.max(1)).zip(latents.chunks_exact(plane.max(1)));
        for ((noise, latents), normal) in channels.zip(normals) {
            let mean = latents.iter().map(|x| f64::from(*x)).sum::<f64>() / plane as f64;
            let strength = (random * self.offset + self.offset_adaptive * mean.abs()).max(0.0);
            let offset = (strength * f64::from(*normal)) as f32;
            noise.iter_mut().for_each(|noise| *noise += offset);
        }
    }
}

/// A level of the pyramid.
struct Level {
    h: usize,
    w: usize,
    weight: f32,
}

impl Level {
    /// Level i is smaller by the i-th of `shrinks` to the power of i, so the first has the size of the noise itself; the last
    /// is the one that has a side of 1.
    fn all(maps: Maps, shrinks: &[f32], discount: f64) -> Vec<Self> {
        let mut levels = Vec::new();
        for (i, shrink) in (0..).zip(shrinks) {
            let side = |size: usize| ((size as f64 / f64::from(*shrink).powi(i)) as usize).max(1);
            levels.push(Self { h: side(maps.h), w: side(maps.w), weight: discount.powi(i) as f32 });
            if levels.last().is_some_and(|level| level.h == 1 || level.w == 1) {
                break;
            }
        }
        levels
    }

    fn len(&self, maps: Maps) -> usize {
        maps.b * maps.c * self.h * self.w
    }
}

/// Adds every level's share of `normals`, brought to the size of the noise, and divides the sum by its standard deviation over
/// the whole micro-batch.
fn add_pyramid(noise: &mut [f32], maps: Maps, levels: &[Level], normals: &[f32]) {
    let mut rest = normals;
    for level in levels {
        let (of_level, others) = rest.split_at(level.len(maps));
        rest = others;
        let planes = noise.chunks_exact_mut(maps.plane()).zip(of_level.chunks_exact(level.h * level.w));
        for (plane, coarse) in planes {
            let fine = enlarged(coarse, (level.h, level.w), (maps.h, maps.w));
            plane.iter_mut().zip(fine).for_each(|(plane, fine)| *plane += level.weight * fine);
        }
    }
    let n = noise.len() as f64;
    let mean = noise.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = noise.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let deviation = variance.sqrt() as f32;
    noise.iter_mut().for_each(|noise| *noise /= deviation);
}

/// A map of `from` (height, width) at size `to`: bilinear between the centres of pixels, as torch's `Upsample` without
/// `align_corners`.
fn enlarged(map: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    // For each new pixel: the two old ones, and the share of the second.
    let axis = |from: usize, to: usize| -> Vec<(usize, usize, f32)> {
        let place = |i: usize| {
            let at = ((i as f32 + 0.5) * (from as f32 / to as f32) - 0.5).max(0.0);
            let first = (at as usize).min(from - 1);
            (first, (first + 1).min(from - 1), at - first as f32)
        };
        (0..to).map(place).collect()
    };
    let (rows, columns) = (axis(from.0, to.0), axis(from.1, to.1));
    let mut large = Vec::with_capacity(to.0 * to.1);
    for (top, bottom, down) in rows {
        let (top, bottom) = (&map[top * from.1..][..from.1], &map[bottom * from.1..][..from.1]);
        large.extend(columns.iter().map(|(left, right, across)| {
            let along = |row: &[f32]| row[*left] * (1.0 - across) + row[*right] * across;
            along(top) * (1.0 - down) + along(bottom) * down
        }));
    }
    large
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const SHAPE: (usize, usize, usize, usize) = (2, 4, 6, 5);

    fn draw(purpose: Purpose) -> Draw {
        Draw::new(3, 17, 1, purpose)
    }

    fn latents() -> Tensor {
        let values = draw(Purpose::LatentSample).standard_normal(240);
        // Means far from 0 and of both signs.
        let shifted = values.iter().enumerate().map(|(i, x)| x + if i / 30 % 2 == 0 { 2.0 } else { -1.0 });
        Tensor::from_vec(shifted.collect::<Vec<_>>(), SHAPE, &Device::Cpu).unwrap()
    }

    fn noise(config: &NoiseConfig) -> Noise {
        config.of(&latents(), Purpose::Noise, LossTerm::Subject, draw).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn plain() -> Vec<f32> {
        draw(Purpose::Noise).standard_normal(240)
    }

    #[test]
    fn what_is_off_leaves_the_noise_as_it_was() {
        let noise = noise(&NoiseConfig::default());
        assert_eq!(numbers(&noise.noise), plain());
        assert!(noise.input_noise.is_none());
        assert_eq!(NoiseConfig::default().timesteps(1000), 0..1000);
        let range = NoiseConfig { min_timestep: 20, max_timestep: Some(700), ..NoiseConfig::default() };
        assert_eq!(range.timesteps(1000), 20..700);
    }

    #[test]
    fn an_offset_moves_each_channel_by_one_normal_number() {
        let found = numbers(&noise(&NoiseConfig { offset: 0.1, ..NoiseConfig::default() }).noise);
        let normals = draw(Purpose::OffsetNoise(LossTerm::Subject)).standard_normal(8);
        for (i, (found, plain)) in found.iter().zip(plain()).enumerate() {
            assert!((found - plain - 0.1 * normals[i / 30]).abs() < 1e-6, "{i}");
        }
    }

    #[test]
    fn an_adaptive_offset_grows_with_the_mean_of_the_channel_and_is_never_negative() {
        let normals = draw(Purpose::OffsetNoise(LossTerm::Subject)).standard_normal(8);
        let random = draw(Purpose::OffsetStrength(LossTerm::Subject)).uniform(0.0, 1.0, 1)[0];
        let latents = numbers(&latents());
        for (adaptive, is_random) in [(0.3, false), (0.3, true), (-0.075, false)] {
            let config = NoiseConfig {
                offset: 0.1,
                offset_adaptive: adaptive,
                offset_random: is_random,
                ..NoiseConfig::default()
            };
            let found = numbers(&noise(&config).noise);
            let mut strengths = Vec::new();
            for (i, (found, plain)) in found.iter().zip(plain()).enumerate() {
                let mean = latents[i / 30 * 30..][..30].iter().sum::<f32>() / 30.0;
                let strength = if is_random { 0.1 * random } else { 0.1 } + adaptive as f32 * mean.abs();
                strengths.push(strength);
                assert!((found - plain - strength.max(0.0) * normals[i / 30]).abs() < 2e-6, "{i} {adaptive}");
            }
            let has_both = strengths.iter().any(|x| *x < 0.0) && strengths.iter().any(|x| *x > 0.0);
            assert_eq!(has_both, adaptive < 0.0, "the last case must meet the limit and the others not");
        }
    }

    #[test]
    fn perturbation_is_added_to_the_input_alone() {
        let config = NoiseConfig { offset: 0.1, input_perturbation: 0.25, ..NoiseConfig::default() };
        let found = noise(&config);
        let target = numbers(&noise(&NoiseConfig { input_perturbation: 0.0, ..config }).noise);
        assert_eq!(numbers(&found.noise), target);
        let more = draw(Purpose::InputPerturbation(LossTerm::Subject)).standard_normal(240);
        let input = numbers(&found.input_noise.unwrap());
        for ((input, target), more) in input.iter().zip(target).zip(more) {
            assert!((input - target - 0.25 * more).abs() < 1e-6);
        }
    }

    #[test]
    fn another_term_has_other_numbers() {
        let config = NoiseConfig { offset: 0.1, pyramid_iterations: 3, ..NoiseConfig::default() };
        let of = |term| numbers(&config.of(&latents(), Purpose::Noise, term, draw).unwrap().noise);
        assert_ne!(of(LossTerm::Subject), of(LossTerm::Prior));
    }

    #[test]
    fn pyramid_noise_has_unit_variance_and_is_coarser_than_plain_noise() {
        let shape = (1, 4, 48, 32);
        let latents = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let config = NoiseConfig { pyramid_iterations: 6, pyramid_discount: 0.8, ..NoiseConfig::default() };
        let found = numbers(&config.of(&latents, Purpose::Noise, LossTerm::Subject, draw).unwrap().noise);
        let mean = found.iter().sum::<f32>() / found.len() as f32;
        let variance = found.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / (found.len() - 1) as f32;
        assert!((variance - 1.0).abs() < 1e-4, "{variance}");
        // Neighbours in a row: about 0 for plain noise, which tests of the numbers hold to.
        let along = found.windows(2).map(|pair| pair[0] * pair[1]).sum::<f32>() / found.len() as f32;
        assert!(along > 0.1, "{along}");
    }

    /// ```python
    /// import torch
    /// x = torch.tensor([[1.0, 4.0, 2.0], [0.0, -3.0, 8.0]]).reshape(1, 1, 2, 3)
    /// print(torch.nn.Upsample(size=(5, 4), mode="bilinear")(x).tolist())
    /// ```
    #[test]
    fn maps_are_enlarged_as_torch_does() {
        let expected = [
            [1.0, 2.875, 3.25, 2.0],
            [0.9, 2.4, 3.0375, 2.6],
            [0.5, 0.5, 2.1875, 5.0],
            [0.1, -1.4, 1.3375, 7.4],
            [0.0, -1.875, 1.125, 8.0],
        ];
        let found = enlarged(&[1.0, 4.0, 2.0, 0.0, -3.0, 8.0], (2, 3), (5, 4));
        assert_eq!(found.len(), 20);
        for (found, expected) in found.iter().zip(expected.as_flattened()) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    /// sd-scripts' `pyramid_noise_like` with given numbers:
    /// ```python
    /// import torch
    /// wave = lambda n, f: torch.sin(torch.arange(n, dtype=torch.float32) * f)
    /// noise = wave(2 * 3 * 12 * 7, 0.9).reshape(2, 3, 12, 7).clone()
    /// up = torch.nn.Upsample(size=(12, 7), mode="bilinear")
    /// used = 0
    /// for i, r in enumerate([2.5, 3.0, 2.25, 3.5]):
    ///     h, w = max(1, int(12 / r**i)), max(1, int(7 / r**i))
    ///     n = 2 * 3 * h * w
    ///     level = torch.sin((torch.arange(n, dtype=torch.float32) + used) * 1.7).reshape(2, 3, h, w)
    ///     used += n
    ///     noise += up(level) * 0.6**i
    ///     if h == 1 or w == 1: break
    /// noise = noise / noise.std()
    /// print(used, noise.flatten()[[0, 1, 40, 100, 251, 400, 503]].tolist(), noise.double().abs().sum().item())
    /// ```
    #[test]
    fn a_pyramid_is_that_of_sd_scripts() {
        let maps = Maps { b: 2, c: 3, h: 12, w: 7 };
        let wave = |n: usize, f: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * f).sin()).collect() };
        let levels = Level::all(maps, &[2.5, 3.0, 2.25, 3.5], 0.6);
        let count: usize = levels.iter().map(|level| level.len(maps)).sum();
        assert_eq!((levels.len(), count), (3, 564));
        let mut noise = wave(maps.len(), 0.9);
        add_pyramid(&mut noise, maps, &levels, &wave(count, 1.7));
        let expected = [
            (0, 0.694_608_3),
            (1, 2.355_000_3),
            (40, -1.555_506_2),
            (100, 0.916_756_45),
            (251, -1.380_049),
            (400, 1.310_881),
            (503, 1.373_559),
        ];
        for (i, expected) in expected {
            assert!((noise[i] - expected).abs() < 1e-4, "{i}: {} {expected}", noise[i]);
        }
        let sum: f64 = noise.iter().map(|x| f64::from(x.abs())).sum();
        assert!((sum - 404.860_53).abs() < 1e-2, "{sum}");
    }
}

//! Random numbers that depend on nothing but where they are used: (seed, purpose, step, micro-batch).
//!
//! A run that is resumed, split over devices or repeated draws the same numbers, because no generator carries state from
//! one step to the next. ChaCha12 with the place in its key: two places share no part of the key stream. Normal numbers
//! by Box-Muller (1958) in f64 with `libm`, so that every platform gives the same bits.
//!
//! The key is `seed | step | micro-batch | purpose`, four little-endian u64, and the stream number is the purpose's
//! detail (the hash of a name, or the term of the loss, or 0). Changing any of this changes every run: the golden values
//! below notice.

use std::ops::Range;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What numbers are drawn for. Each purpose is a stream of its own, so that switching one feature on or off leaves the
/// numbers of all others as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The noise that the network learns to predict.
    Noise,
    /// The timestep of each sample.
    Timesteps,
    /// The draw from the autoencoder's posterior: latents = mean + std * normal.
    LatentSample,
    /// The order of the images.
    Order,
    /// The first values of the factor whose name hashes to `name_hash`: see [`Purpose::factor_init`].
    FactorInit {
        /// FNV-1a hash of the factor's name.
        name_hash: u64,
    },
    /// Elements dropped between the factors of a module.
    Dropout {
        /// In which term.
        term: LossTerm,
        /// Of which module: a hash of its name.
        name_hash: u64,
    },
    /// Ranks of a module dropped for a sample.
    RankDropout {
        /// In which term.
        term: LossTerm,
        /// Of which module.
        name_hash: u64,
    },
    /// A module dropped for a micro-batch.
    ModuleDropout {
        /// In which term.
        term: LossTerm,
        /// Of which module.
        name_hash: u64,
    },
    /// Captions for which the adapted model is held to the frozen base's prediction.
    PriorCaption,
    /// Images mirrored left to right.
    Flip,
    /// Captions replaced by the empty one.
    CaptionDropout,
    /// The noise that a picture begins as.
    InitialNoise,
    /// The noise that a sampler adds at a step.
    SamplerNoise,
    /// The weights of a network that is only measured.
    Weights,
    /// Inputs and shapes for checking operations.
    Check,
    /// As [`Purpose::Noise`], for images of the class.
    PriorNoise,
    /// As [`Purpose::Timesteps`], for images of the class.
    PriorTimesteps,
    /// As [`Purpose::LatentSample`], for images of the class.
    PriorLatentSample,
    /// Where predictions with and without an adapter are compared.
    LeakScore,
    /// What is added to the noise of a whole channel.
    OffsetNoise(LossTerm),
    /// How strongly that is.
    OffsetStrength(LossTerm),
    /// The coarser noise of all levels.
    PyramidNoise(LossTerm),
    /// How much coarser each level is.
    PyramidScale(LossTerm),
    /// The noise that latents have besides the one to predict.
    InputPerturbation(LossTerm),
    /// The noise of images that validation is measured on.
    Validation,
    /// Which images are kept from training.
    HoldOut,
    /// Rows of the orthogonal matrix that all adapters share in the module whose name hashes to `name_hash`.
    SharedRows {
        /// FNV-1a hash of the module's name.
        name_hash: u64,
    },
}

/// Which term of the loss of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossTerm {
    /// The images to learn.
    Subject = 0,
    /// What must stay as it was.
    Prior = 1,
}

impl Purpose {
    /// The purpose of initialising the factor called `name`. Its numbers depend on the name alone, not on how many
    /// factors there are or in which order they are made.
    pub fn factor_init(name: &str) -> Self {
        Purpose::FactorInit { name_hash: name_hash(name) }
    }

    /// The purpose of the matrix that all adapters share in `module`.
    pub fn shared_rows(module: &str) -> Self {
        Purpose::SharedRows { name_hash: name_hash(module) }
    }

    /// The purposes of dropping elements, ranks and the whole of the module called `name`, in this order.
    pub(crate) fn dropout(term: LossTerm, name: &str) -> [Self; 3] {
        let name_hash = name_hash(name);
        [
            Purpose::Dropout { term, name_hash },
            Purpose::RankDropout { term, name_hash },
            Purpose::ModuleDropout { term, name_hash },
        ]
    }

    /// The fixed number of this purpose and its detail. Numbers are never reused or changed.
    fn number_and_detail(self) -> (u64, u64) {
        match self {
            Purpose::Noise => (1, 0),
            Purpose::Timesteps => (2, 0),
            Purpose::LatentSample => (3, 0),
            Purpose::Order => (4, 0),
            Purpose::FactorInit { name_hash } => (5, name_hash),
            Purpose::Dropout { term: LossTerm::Subject, name_hash } => (6, name_hash),
            Purpose::PriorCaption => (7, 0),
            Purpose::Flip => (8, 0),
            Purpose::CaptionDropout => (9, 0),
            Purpose::InitialNoise => (10, 0),
            Purpose::SamplerNoise => (11, 0),
            Purpose::Weights => (12, 0),
            Purpose::Check => (13, 0),
            Purpose::PriorNoise => (14, 0),
            Purpose::PriorTimesteps => (15, 0),
            Purpose::PriorLatentSample => (16, 0),
            Purpose::LeakScore => (17, 0),
            Purpose::OffsetNoise(term) => (18, term as u64),
            Purpose::OffsetStrength(term) => (19, term as u64),
            Purpose::PyramidNoise(term) => (20, term as u64),
            Purpose::PyramidScale(term) => (21, term as u64),
            Purpose::InputPerturbation(term) => (22, term as u64),
            Purpose::RankDropout { term: LossTerm::Subject, name_hash } => (23, name_hash),
            Purpose::ModuleDropout { term: LossTerm::Subject, name_hash } => (24, name_hash),
            Purpose::Dropout { term: LossTerm::Prior, name_hash } => (25, name_hash),
            Purpose::RankDropout { term: LossTerm::Prior, name_hash } => (26, name_hash),
            Purpose::ModuleDropout { term: LossTerm::Prior, name_hash } => (27, name_hash),
            Purpose::Validation => (30, 0),
            Purpose::HoldOut => (31, 0),
            Purpose::SharedRows { name_hash } => (32, name_hash),
        }
    }
}

/// FNV-1a, 64 bit: offset basis and prime of the published function.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The place in a run at which numbers are drawn. Every method is a pure function: the same place gives the same
/// numbers, and the first `n` of a longer draw are the draw of `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step, from 0.
    pub step: u64,
    /// The micro-batch within the step, from 0.
    pub micro_batch: u64,
    /// What the numbers are for.
    pub purpose: Purpose,
}

impl Draw {
    /// The place (`seed`, `step`, `micro_batch`, `purpose`).
    pub fn new(seed: u64, step: u64, micro_batch: u64, purpose: Purpose) -> Self {
        Self { seed, step, micro_batch, purpose }
    }

    fn generator(self) -> ChaCha12Rng {
        let (purpose, detail) = self.purpose.number_and_detail();
        let mut key = [0u8; 32];
        for (chunk, word) in key.chunks_exact_mut(8).zip([self.seed, self.step, self.micro_batch, purpose]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        let mut generator = ChaCha12Rng::from_seed(key);
        generator.set_stream(detail);
        generator
    }

    /// `n` independent standard normal numbers: mean 0, variance 1.
    pub fn standard_normal(self, n: usize) -> Vec<f32> {
        let mut generator = self.generator();
        let mut values = Vec::with_capacity(n + 1);
        while values.len() < n {
            // (0, 1] for the logarithm, [0, 1) for the angle.
            let radius = (-2.0 * libm::log(1.0 - unit_f64(&mut generator))).sqrt();
            let (sin, cos) = libm::sincos(std::f64::consts::TAU * unit_f64(&mut generator));
            values.push((radius * cos) as f32);
            values.push((radius * sin) as f32);
        }
        values.truncate(n);
        values
    }

    /// `n` independent numbers, uniform in `[low, high)`.
    pub fn uniform(self, low: f32, high: f32, n: usize) -> Vec<f32> {
        let mut generator = self.generator();
        // 24 bits: every value is an f32, and 1 cannot come out by rounding. `low + span * u` may round up to `high`.
        let unit = std::iter::repeat_with(|| (generator.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0));
        let below_high = high.next_down().max(low);
        unit.map(|u| (low + (high - low) * u).min(below_high)).take(n).collect()
    }

    /// `n` independent integers, uniform in `range`; empty where `range` is empty.
    ///
    /// A timestep is `integers(0..1000, batch)` for a schedule of 1000 steps. The bias is below the range's length / 2^64.
    pub fn integers(self, range: Range<i64>, n: usize) -> Vec<i64> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut generator = self.generator();
        let span = range.end.wrapping_sub(range.start) as u64;
        let scaled = std::iter::repeat_with(|| (u128::from(generator.next_u64()) * u128::from(span)) >> 64);
        scaled.map(|offset| range.start.wrapping_add(offset as i64)).take(n).collect()
    }
}

/// Uniform in [0, 1) with 53 bits.
fn unit_f64(generator: &mut ChaCha12Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, step: u64, micro_batch: u64) -> Draw {
        Draw::new(seed, step, micro_batch, Purpose::Noise)
    }

    fn correlation(a: &[f32], b: &[f32]) -> f64 {
        let sum: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        sum / a.len() as f64
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_law() {
        let n = 200_000;
        let values = noise(7, 3, 1).standard_normal(n);
        let moment = |p: i32| values.iter().map(|x| f64::from(*x).powi(p)).sum::<f64>() / n as f64;
        // Five standard errors of each sample moment: sqrt(var(x^p) / n).
        assert!(moment(1).abs() < 5.0 * (1.0 / n as f64).sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt());
        assert!(moment(3).abs() < 5.0 * (15.0 / n as f64).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n as f64).sqrt());
        let beyond_two = values.iter().filter(|x| x.abs() > 2.0).count() as f64 / n as f64;
        assert!((beyond_two - 0.0455).abs() < 0.0025, "{beyond_two}");
    }

    #[test]
    fn neighbouring_places_are_uncorrelated() {
        let n = 40_000;
        let here = noise(7, 3, 1).standard_normal(n);
        let others = [
            noise(8, 3, 1),
            noise(7, 4, 1),
            noise(7, 3, 2),
            noise(3, 7, 1),
            Draw::new(7, 3, 1, Purpose::LatentSample),
            Draw::new(7, 3, 1, Purpose::factor_init("a")),
        ];
        for other in others {
            let correlation = correlation(&here, &other.standard_normal(n));
            assert!(correlation.abs() < 5.0 / (n as f64).sqrt(), "{other:?}: {correlation}");
        }
        let shifted = correlation(&here[1..], &here[..n - 1]);
        assert!(shifted.abs() < 5.0 / (n as f64).sqrt(), "one draw is correlated with itself: {shifted}");
    }

    #[test]
    fn every_purpose_has_a_stream_of_its_own() {
        let mut purposes = vec![
            Purpose::Noise,
            Purpose::Timesteps,
            Purpose::LatentSample,
            Purpose::Order,
            Purpose::factor_init("lora_unet_a.lora_down.weight"),
            Purpose::factor_init("lora_unet_b.lora_down.weight"),
            Purpose::PriorCaption,
            Purpose::Flip,
            Purpose::CaptionDropout,
            Purpose::Weights,
            Purpose::Check,
            Purpose::LeakScore,
            Purpose::PriorNoise,
            Purpose::PriorTimesteps,
            Purpose::PriorLatentSample,
            Purpose::Validation,
            Purpose::HoldOut,
            Purpose::shared_rows("lora_unet_a"),
            Purpose::shared_rows("lora_unet_b"),
        ];
        for term in [LossTerm::Subject, LossTerm::Prior] {
            purposes.extend([
                Purpose::OffsetNoise(term),
                Purpose::OffsetStrength(term),
                Purpose::PyramidNoise(term),
                Purpose::PyramidScale(term),
                Purpose::InputPerturbation(term),
            ]);
            purposes
                .extend(["lora_unet_a", "lora_unet_b"].map(|name| Purpose::dropout(term, name)).into_iter().flatten());
        }
        let mut firsts: Vec<Vec<i64>> =
            purposes.iter().map(|p| Draw::new(1, 0, 0, *p).integers(0..1 << 40, 2)).collect();
        firsts.sort();
        firsts.dedup();
        assert_eq!(firsts.len(), purposes.len());
    }

    #[test]
    fn a_shorter_draw_is_the_start_of_a_longer_one() {
        assert_eq!(noise(1, 2, 3).standard_normal(5), noise(1, 2, 3).standard_normal(64)[..5]);
        assert_eq!(noise(1, 2, 3).uniform(-1.0, 2.0, 5), noise(1, 2, 3).uniform(-1.0, 2.0, 64)[..5]);
        assert_eq!(noise(1, 2, 3).integers(3..9, 5), noise(1, 2, 3).integers(3..9, 64)[..5]);
    }

    #[test]
    fn integers_are_spread_evenly_over_the_range_and_never_leave_it() {
        let n = 60_000;
        let mut counts = [0usize; 7];
        for value in Draw::new(5, 0, 0, Purpose::Timesteps).integers(-3..4, n) {
            counts[usize::try_from(value + 3).unwrap()] += 1;
        }
        // Chi-squared with 6 degrees of freedom: 22.5 is exceeded once in a thousand.
        let expected = n as f64 / 7.0;
        let chi_squared: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
        assert!(chi_squared < 22.5, "{chi_squared} {counts:?}");
        assert!(Draw::new(5, 0, 0, Purpose::Timesteps).integers(4..4, 3).is_empty());
    }

    #[test]
    fn uniform_numbers_fill_the_interval_and_stay_below_its_end() {
        let values = noise(5, 0, 0).uniform(-0.25, 0.75, 50_000);
        assert!(values.iter().all(|x| (-0.25..0.75).contains(x)));
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / 50_000.0;
        assert!((mean - 0.25).abs() < 5.0 * (1.0f64 / 12.0 / 50_000.0).sqrt());
        assert!(values.iter().any(|x| *x < -0.24) && values.iter().any(|x| *x > 0.74));
        // Without the guard most of these would round up to the excluded end.
        assert!(noise(5, 0, 0).uniform(1.0, 1.0f32.next_up(), 100).iter().all(|x| x.to_bits() == 1.0f32.to_bits()));
    }

    /// The scheme is part of every run: these numbers, made by a ChaCha12 written from its definition (Bernstein 2008), must
    /// not change.
    /// ```python
    /// import math, struct
    ///
    /// def block(key, counter, stream, rounds=12):
    ///     s = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key)) + [
    ///         counter & 0xffffffff, counter >> 32, stream & 0xffffffff, stream >> 32]
    ///     x = s[:]
    ///     def quarter(a, b, c, d):
    ///         for p, q, r, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
    ///             x[p] = (x[p] + x[q]) & 0xffffffff
    ///             x[r] ^= x[p]
    ///             x[r] = (x[r] << by | x[r] >> (32 - by)) & 0xffffffff
    ///     for _ in range(rounds // 2):
    ///         for i in range(4): quarter(i, 4 + i, 8 + i, 12 + i)
    ///         for i in range(4): quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    ///     return [(a + b) & 0xffffffff for a, b in zip(x, s)]
    ///
    /// def words(seed, step, micro_batch, purpose, detail=0):
    ///     key = struct.pack("<4Q", seed, step, micro_batch, purpose)
    ///     for counter in range(4): yield from block(key, counter, detail)
    ///
    /// def u64(w): return next(w) | next(w) << 32
    /// def unit(w): return (u64(w) >> 11) * 2.0**-53
    ///
    /// w = words(7, 3, 1, 1); normal = []
    /// for _ in range(2):
    ///     radius = math.sqrt(-2 * math.log(1 - unit(w))); angle = 2 * math.pi * unit(w)
    ///     normal += [radius * math.cos(angle), radius * math.sin(angle)]
    /// print([struct.unpack("<f", struct.pack("<f", v))[0] for v in normal])
    /// w = words(7, 3, 1, 2); print([u64(w) * 1000 >> 64 for _ in range(4)])
    /// name_hash = 0xcbf29ce484222325
    /// for byte in b"lora_unet_mid": name_hash = (name_hash ^ byte) * 0x100000001b3 % 2**64
    /// w = words(7, 0, 0, 5, name_hash); print([(next(w) >> 8) * 2.0**-24 - 0.5 for _ in range(4)])
    /// ```
    #[test]
    fn the_scheme_is_the_documented_one() {
        let normal: [f32; 4] = [-0.33496034145355225, -0.012166183441877365, -0.9145551919937134, 1.271284580230713];
        let found = Draw::new(7, 3, 1, Purpose::Noise).standard_normal(4);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&normal), "{found:?}");
        assert_eq!(Draw::new(7, 3, 1, Purpose::Timesteps).integers(0..1000, 4), [409, 655, 789, 373]);
        let uniform: [f32; 4] = [0.31597453355789185, -0.34052348136901855, -0.059873223304748535, 0.39573603868484497];
        let found = Draw::new(7, 0, 0, Purpose::factor_init("lora_unet_mid")).uniform(-0.5, 0.5, 4);
        assert_eq!(bits(&found), bits(&uniform), "{found:?}");
    }
}

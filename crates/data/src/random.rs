//! Random numbers as a pure function of what they are for: nothing is stored, so nothing has to be restored.
//!
//! A [`Stream`] is ChaCha8 keyed by (seed, epoch, showing, purpose), so one draw more in one place changes no other.
//! What is made of its bits is our own, so that no release of a library changes a run.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::order::Showing;

/// What a stream is drawn for. Streams of two purposes have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The order of an epoch.
    Order,
    /// The text of a picture in an epoch: line, dropout, wildcards, order of tags.
    Caption,
    /// Whether a picture is mirrored.
    Flip,
}

impl Purpose {
    /// Its part of the key. A change here changes every run.
    fn name(self) -> &'static [u8] {
        match self {
            Self::Order => b"order",
            Self::Caption => b"caption",
            Self::Flip => b"flip",
        }
    }
}

/// The random numbers of one purpose.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The numbers of one showing of a picture in one epoch (from 0).
    ///
    /// The key is seed (8 bytes), epoch (8), purpose (12), repeat (4), little-endian; the sample is the nonce.
    pub fn new(seed: u64, epoch: u64, showing: Showing, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&epoch.to_le_bytes());
        key[16..16 + purpose.name().len()].copy_from_slice(purpose.name());
        key[28..].copy_from_slice(&showing.repeat.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(showing.sample as u64);
        Self(rng)
    }

    /// A number in `0..bound`, by the high half of a 128-bit product; its bias is below bound / 2^64. 0 if `bound` is.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True with this probability: never at 0 or less, always at 1 or more. Draws one number whatever it is.
    pub fn chance(&mut self, probability: f64) -> bool {
        let unit = (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64; // in [0, 1), every value exact
        unit < probability
    }

    /// Puts the items in random order: Fisher-Yates, Durstenfeld's form.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Whether this showing is mirrored left to right: with probability 1/2.
pub fn flipped(seed: u64, epoch: u64, showing: Showing) -> bool {
    Stream::new(seed, epoch, showing, Purpose::Flip).chance(0.5)
}

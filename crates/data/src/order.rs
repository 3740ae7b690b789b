//! Which pictures a batch holds, as a pure function: nothing is stored, so nothing has to be restored.
//!
//! A run sees an endless row of epochs, each a fresh shuffle of all pictures, and batch `i` is the `i`-th piece of that
//! row. So every picture is seen exactly once an epoch, also where a batch straddles two epochs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Keeps this stream of random numbers apart from all others of the same seed.
const PURPOSE: &[u8; 16] = b"order\0\0\0\0\0\0\0\0\0\0\0";

/// The pictures of micro-batch number `micro_batch_index` (from 0, over the whole run), as indices below `num_samples`.
///
/// Gives `batch_size` indices, or none if there are no samples. Within one epoch an index never repeats.
pub fn batch_at(seed: u64, num_samples: usize, batch_size: usize, micro_batch_index: u64) -> Vec<usize> {
    if num_samples == 0 {
        return Vec::new();
    }
    let (num_samples_wide, batch_size_wide) = (num_samples as u128, batch_size as u128);
    let end = (u128::from(micro_batch_index) + 1) * batch_size_wide;
    let mut position = end - batch_size_wide;
    let mut batch = Vec::with_capacity(batch_size);
    while position < end {
        let epoch = epoch_order(seed, (position / num_samples_wide) as u64, num_samples);
        let start = (position % num_samples_wide) as usize;
        let taken = (num_samples - start).min((end - position) as usize);
        batch.extend_from_slice(&epoch[start..start + taken]);
        position += taken as u128;
    }
    batch
}

/// The order of all pictures in one epoch (from 0): a permutation of `0..num_samples`.
///
/// Fisher-Yates, Durstenfeld's form, drawing from ChaCha8 keyed by (seed, epoch, purpose).
pub fn epoch_order(seed: u64, epoch: u64, num_samples: usize) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(PURPOSE);
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..num_samples).collect();
    for last in (1..num_samples).rev() {
        order.swap(last, below(&mut rng, last as u64 + 1) as usize);
    }
    order
}

/// A number in `0..bound`, by the high half of a 128-bit product. Own, so that no release of a library changes the
/// order of a run; its bias is below bound / 2^64.
fn below(rng: &mut impl RngCore, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

//! Which pictures a micro-batch holds, as a pure function: nothing is stored, so nothing has to be restored.
//!
//! An epoch is one shuffle of all showings (each sample as often as it is repeated). Walking it, each showing goes to
//! the open batch of its bucket; a full batch is closed, and what is open at the end stays a smaller batch. Batches come
//! in the order of their first showings, so rare sizes are not left for the end. No batch mixes buckets or epochs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::random::{Purpose, Stream};

/// One picture in one epoch: the `repeat`-th time it is shown there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Showing {
    /// Index of the sample.
    pub sample: usize,
    /// Which of its repeats, from 0.
    pub repeat: u32,
}

/// The showings of one micro-batch: 1 to `batch_size`, all of one bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The epoch it belongs to, from 0.
    pub epoch: u64,
    /// What it holds.
    pub showings: Vec<Showing>,
}

/// The batches of a run, epoch after epoch without end.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    batch_size: usize,
    /// Per sample, its bucket as a number from 0.
    buckets: Vec<u32>,
    num_buckets: usize,
    /// All showings, by sample and repeat.
    showings: Vec<Showing>,
    batches_per_epoch: u64,
    /// The epoch asked for last: a run asks for its batches one after the other.
    recent: Mutex<Option<Arc<Epoch>>>,
}

/// One epoch, worked out.
#[derive(Debug)]
struct Epoch {
    index: u64,
    /// All showings, batch after batch.
    showings: Vec<Showing>,
    batches: Vec<Range<usize>>,
}

impl Order {
    /// The order for samples given as (bucket, repeats), by the index of the sample. A sample with 0 repeats is never
    /// shown. Without samples, or with a `batch_size` of 0, there are no batches.
    pub fn new<B: Ord>(seed: u64, batch_size: usize, samples: impl IntoIterator<Item = (B, u32)>) -> Self {
        let samples: Vec<(B, u32)> = samples.into_iter().collect();
        let mut numbers: BTreeMap<&B, u32> = BTreeMap::new();
        let mut sizes = Vec::new();
        let mut buckets = Vec::with_capacity(samples.len());
        let mut showings = Vec::new();
        for (sample, (bucket, repeats)) in samples.iter().enumerate() {
            let next = numbers.len() as u32;
            let number = *numbers.entry(bucket).or_insert(next);
            if number == next {
                sizes.push(0_usize);
            }
            sizes[number as usize] += *repeats as usize;
            buckets.push(number);
            showings.extend((0..*repeats).map(|repeat| Showing { sample, repeat }));
        }
        let batches_per_epoch =
            if batch_size == 0 { 0 } else { sizes.iter().map(|size| size.div_ceil(batch_size) as u64).sum() };
        let num_buckets = sizes.len();
        Self { seed, batch_size, buckets, num_buckets, showings, batches_per_epoch, recent: Mutex::new(None) }
    }

    /// Number of micro-batches in an epoch, the same in each: the sum over buckets of ceil(showings / batch size).
    pub fn batches_per_epoch(&self) -> u64 {
        self.batches_per_epoch
    }

    /// Number of showings in an epoch: the sum of all repeats.
    pub fn showings_per_epoch(&self) -> usize {
        self.showings.len()
    }

    /// Micro-batch number `micro_batch_index` (from 0, over the whole run). Empty only where there are no batches.
    pub fn batch(&self, micro_batch_index: u64) -> Batch {
        if self.batches_per_epoch == 0 {
            return Batch::default();
        }
        let epoch = self.epoch(micro_batch_index / self.batches_per_epoch);
        let place = epoch.batches[(micro_batch_index % self.batches_per_epoch) as usize].clone();
        Batch { epoch: epoch.index, showings: epoch.showings[place].to_vec() }
    }

    fn epoch(&self, index: u64) -> Arc<Epoch> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match &*recent {
            Some(epoch) if epoch.index == index => Arc::clone(epoch),
            _ => Arc::clone(recent.insert(Arc::new(self.compute(index)))),
        }
    }

    fn compute(&self, index: u64) -> Epoch {
        let shuffled = epoch_order(self.seed, index, self.showings.len());
        let mut open: Vec<Option<usize>> = vec![None; self.num_buckets];
        let mut sizes: Vec<usize> = Vec::with_capacity(self.batches_per_epoch as usize);
        let mut batch_of = Vec::with_capacity(shuffled.len());
        for &number in &shuffled {
            let bucket = self.buckets[self.showings[number].sample] as usize;
            let batch = *open[bucket].get_or_insert_with(|| {
                sizes.push(0);
                sizes.len() - 1
            });
            sizes[batch] += 1;
            if sizes[batch] == self.batch_size {
                open[bucket] = None;
            }
            batch_of.push(batch);
        }
        let mut end = 0;
        let mut batches: Vec<Range<usize>> = sizes
            .iter()
            .map(|size| {
                end += size;
                end - size..end - size
            })
            .collect();
        let mut showings = vec![Showing::default(); shuffled.len()];
        for (&number, &batch) in shuffled.iter().zip(&batch_of) {
            showings[batches[batch].end] = self.showings[number];
            batches[batch].end += 1;
        }
        Epoch { index, showings, batches }
    }
}

/// The order of all showings in one epoch (from 0): a permutation of `0..num_showings`.
pub fn epoch_order(seed: u64, epoch: u64, num_showings: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..num_showings).collect();
    Stream::new(seed, epoch, Showing::default(), Purpose::Order).shuffle(&mut order);
    order
}

//! The order of pictures: every epoch a permutation, whatever the batch size, from nothing but the seed.

use loralei_data::batch_at;
use loralei_data::order::epoch_order;
use proptest::prelude::*;

/// The first `num_batches` batches, joined.
fn row(seed: u64, num_samples: usize, batch_size: usize, num_batches: u64) -> Vec<usize> {
    (0..num_batches).flat_map(|index| batch_at(seed, num_samples, batch_size, index)).collect()
}

proptest! {
    #[test]
    fn every_image_is_seen_once_an_epoch_whatever_the_batch_size(
        seed: u64, num_samples in 1_usize..40, batch_size in 1_usize..90, num_epochs in 1_u64..5,
    ) {
        let num_seen = num_samples * num_epochs as usize;
        let row = row(seed, num_samples, batch_size, num_seen.div_ceil(batch_size) as u64);
        for epoch in row[..num_seen].chunks_exact(num_samples) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..num_samples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn batches_are_pieces_of_the_row_of_epochs(seed: u64, num_samples in 1_usize..12, batch_size in 1_usize..30) {
        let row = row(seed, num_samples, batch_size, 7);
        let epochs = (0..).flat_map(|epoch| epoch_order(seed, epoch, num_samples));
        prop_assert_eq!(row.len(), 7 * batch_size);
        prop_assert!(row.iter().copied().eq(epochs.take(row.len())));
    }

    #[test]
    fn far_batches_need_no_earlier_ones(seed: u64, index in u64::MAX - 9..=u64::MAX) {
        let batch = batch_at(seed, 5, 3, index);
        prop_assert!(batch.len() == 3 && batch.iter().all(|&sample| sample < 5));
        prop_assert_eq!(batch, batch_at(seed, 5, 3, index));
    }
}

#[test]
fn a_batch_that_straddles_two_epochs_takes_the_end_of_one_and_the_start_of_the_next() {
    let (first, second) = (epoch_order(3, 0, 5), epoch_order(3, 1, 5));
    assert_ne!(first, second);
    assert_eq!(batch_at(3, 5, 3, 1), [first[3], first[4], second[0]]);
}

#[test]
fn seeds_and_epochs_give_different_orders() {
    let orders: std::collections::BTreeSet<_> =
        (0..20).flat_map(|seed| (0..20).map(move |epoch| epoch_order(seed, epoch, 30))).collect();
    assert_eq!(orders.len(), 400);
}

#[test]
fn every_image_comes_first_equally_often() {
    let mut counts = [0_u32; 6];
    for epoch in 0..6_000 {
        counts[epoch_order(11, epoch, 6)[0]] += 1;
    }
    // 1000 expected, standard deviation 29
    assert!(counts.iter().all(|&count| count.abs_diff(1000) < 130), "{counts:?}");
}

/// Computed with a ChaCha8 written in Python from RFC 8439 (64-bit counter). A change here changes every
/// run's results: it belongs in the changelog.
#[test]
fn the_order_of_a_seed_never_changes() {
    assert_eq!(epoch_order(0, 0, 8), ORDER_OF_SEED_0);
    assert_eq!(epoch_order(42, 3, 8), ORDER_OF_SEED_42_EPOCH_3);
}

const ORDER_OF_SEED_0: [usize; 8] = [6, 4, 2, 1, 5, 3, 0, 7];
const ORDER_OF_SEED_42_EPOCH_3: [usize; 8] = [2, 1, 3, 5, 0, 6, 7, 4];

#[test]
fn no_samples_give_no_batch() {
    assert!(batch_at(1, 0, 4, 0).is_empty());
    assert!(batch_at(1, 4, 0, 9).is_empty());
}

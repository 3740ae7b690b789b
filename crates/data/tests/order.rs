//! The order of pictures: every epoch a permutation, whatever the batch size, from nothing but the seed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::time::Instant;

use loralei_data::order::epoch_order;
use loralei_data::{Batch, Order, Showing};
use proptest::prelude::*;

/// Samples as (bucket, repeats), some of them never shown.
fn samples() -> impl Strategy<Value = Vec<(u8, u32)>> {
    prop::collection::vec((0_u8..4, 0_u32..4), 1..30)
}

/// The batches of one epoch.
fn epoch(order: &Order, epoch: u64) -> Vec<Batch> {
    let num_batches = order.batches_per_epoch();
    (epoch * num_batches..(epoch + 1) * num_batches).map(|index| order.batch(index)).collect()
}

fn showings(batches: &[Batch]) -> Vec<Showing> {
    batches.iter().flat_map(|batch| batch.showings.clone()).collect()
}

fn pairs(batches: &[Batch]) -> Vec<Vec<(usize, u32)>> {
    batches.iter().map(|batch| batch.showings.iter().map(|s| (s.sample, s.repeat)).collect()).collect()
}

proptest! {
    #[test]
    fn an_epoch_holds_every_showing_once(seed: u64, samples in samples(), batch_size in 1_usize..6, number in 0_u64..9) {
        let order = Order::new(seed, batch_size, samples.clone());
        let mut expected = Vec::new();
        for (sample, &(_, repeats)) in samples.iter().enumerate() {
            expected.extend((0..repeats).map(|repeat| Showing { sample, repeat }));
        }
        let batches = epoch(&order, number);
        prop_assert!(batches.iter().all(|batch| batch.epoch == number));
        let mut found = showings(&batches);
        found.sort_unstable();
        prop_assert_eq!(order.showings_per_epoch(), expected.len());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn batches_never_mix_buckets_and_only_the_last_of_a_bucket_is_small(
        seed: u64, samples in samples(), batch_size in 1_usize..6,
    ) {
        let order = Order::new(seed, batch_size, samples.clone());
        let mut num_small = [0; 4];
        for batch in epoch(&order, 3) {
            let bucket = samples[batch.showings[0].sample].0;
            prop_assert!(batch.showings.iter().all(|showing| samples[showing.sample].0 == bucket));
            prop_assert!(batch.showings.len() <= batch_size);
            num_small[usize::from(bucket)] += usize::from(batch.showings.len() < batch_size);
        }
        prop_assert!(num_small.iter().all(|&num| num <= 1));
    }

    #[test]
    fn batches_come_in_the_order_of_their_first_showings_in_the_shuffle(
        seed: u64, buckets in prop::collection::vec(0_u8..4, 1..30), batch_size in 1_usize..6,
    ) {
        let order = Order::new(seed, batch_size, buckets.iter().map(|&bucket| (bucket, 1)));
        let shuffle = epoch_order(seed, 2, buckets.len());
        let place = |showing: &Showing| shuffle.iter().position(|&sample| sample == showing.sample);
        let batches = epoch(&order, 2);
        prop_assert!(batches.is_sorted_by_key(|batch| place(&batch.showings[0])));
        prop_assert!(batches.iter().all(|batch| batch.showings.is_sorted_by_key(place)));
    }

    #[test]
    fn a_restart_at_any_batch_goes_on_as_if_nothing_had_been(
        seed: u64, samples in samples(), batch_size in 1_usize..6, jumps in prop::collection::vec(0_u64..60, 1..12),
    ) {
        let order = Order::new(seed, batch_size, samples.clone());
        let row: Vec<Batch> = (0..60).map(|index| order.batch(index)).collect();
        for jump in jumps {
            prop_assert_eq!(&Order::new(seed, batch_size, samples.clone()).batch(jump), &row[jump as usize]);
            prop_assert_eq!(&order.batch(jump), &row[jump as usize]);
        }
    }

    #[test]
    fn one_bucket_is_the_shuffle_cut_into_batches(
        seed: u64, num_samples in 1_usize..30, batch_size in 1_usize..7, epoch in 0_u64..9,
    ) {
        let order = Order::new(seed, batch_size, vec![("512x512", 1); num_samples]);
        let shuffle = epoch_order(seed, epoch, num_samples);
        for (i, expected) in shuffle.chunks(batch_size).enumerate() {
            let batch = order.batch(epoch * order.batches_per_epoch() + i as u64);
            prop_assert_eq!(batch.epoch, epoch);
            prop_assert!(batch.showings.iter().map(|showing| &showing.sample).eq(expected));
        }
    }

    #[test]
    fn far_batches_need_no_earlier_ones(seed: u64, index in u64::MAX - 9..=u64::MAX) {
        let order = Order::new(seed, 3, vec![(0, 1); 5]);
        let batch = order.batch(index);
        prop_assert!((2..=3).contains(&batch.showings.len()));
        prop_assert_eq!(batch, Order::new(seed, 3, vec![(0, 1); 5]).batch(index));
    }
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
    assert!(Order::new(1, 4, Vec::<(u8, u32)>::new()).batch(0).showings.is_empty());
    assert!(Order::new(1, 0, vec![(0, 1); 4]).batch(9).showings.is_empty());
}

/// Computed with the same Python: two buckets of several, one of one, and repeats.
#[test]
fn the_batches_of_a_seed_never_change() {
    let samples = [("wide", 1), ("tall", 2), ("wide", 1), ("square", 1), ("tall", 1), ("wide", 3)];
    let order = Order::new(42, 2, samples);
    assert_eq!((order.batches_per_epoch(), order.showings_per_epoch()), (6, 9));
    let first =
        [vec![(5, 2), (5, 0)], vec![(1, 1), (4, 0)], vec![(5, 1), (0, 0)], vec![(2, 0)], vec![(3, 0)], vec![(1, 0)]];
    let second =
        [vec![(1, 1), (4, 0)], vec![(0, 0), (2, 0)], vec![(5, 2), (5, 0)], vec![(1, 0)], vec![(3, 0)], vec![(5, 1)]];
    assert_eq!(pairs(&epoch(&order, 0)), first);
    assert_eq!(pairs(&epoch(&order, 1)), second);
}

#[test]
fn epochs_and_seeds_give_different_batches() {
    let samples: Vec<(usize, u32)> = (0..30).map(|sample| (sample % 3, 1)).collect();
    let orders: Vec<Order> = (0..10).map(|seed| Order::new(seed, 4, samples.clone())).collect();
    let rows: BTreeSet<Vec<Showing>> =
        orders.iter().flat_map(|order| (0..10).map(|number| showings(&epoch(order, number)))).collect();
    assert_eq!(rows.len(), 100);
}

#[test]
fn a_picture_that_is_alone_in_its_bucket_comes_anywhere_in_the_epoch() {
    let order = Order::new(1, 4, (0..10).map(|sample| (sample == 0, 1)));
    let mut num_at = [0_u32; 4];
    for number in 0..1_000 {
        let batches = epoch(&order, number);
        num_at[batches.iter().position(|batch| batch.showings[0].sample == 0).unwrap()] += 1;
    }
    // First of the shuffle, second to fifth, sixth to ninth, last: 100, 400, 400, 100 expected.
    assert!(num_at.iter().zip([100, 400, 400, 100]).all(|(num, expected)| num.abs_diff(expected) < 75), "{num_at:?}");
}

#[test]
fn without_samples_repeats_or_a_batch_size_there_are_no_batches() {
    for order in [Order::new(1, 4, [(0, 0), (1, 0)]), Order::new(1, 4, [(0, 0); 0]), Order::new(1, 0, [(0, 5)])] {
        assert_eq!(order.batches_per_epoch(), 0);
        assert_eq!(order.batch(7), Batch::default());
    }
}

#[test]
fn the_last_batch_of_the_longest_run_exists() {
    let order = Order::new(1, 2, [(0, 1), (1, 1), (0, 2)]);
    assert!((1..=2).contains(&order.batch(u64::MAX).showings.len()));
}

#[test]
fn an_epoch_of_100_000_pictures_takes_a_fraction_of_a_second() {
    let order = Order::new(3, 4, (0..100_000_usize).map(|sample| (sample % 17, 1)));
    let start = Instant::now();
    assert_eq!(showings(&epoch(&order, 5)).len(), 100_000);
    let elapsed_s = start.elapsed().as_secs_f64();
    println!("an epoch of 100,000 pictures in {:.1} ms", elapsed_s * 1e3);
    assert!(elapsed_s < 0.5, "{elapsed_s} s"); // milliseconds; the margin is for a busy machine
}

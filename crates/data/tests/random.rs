//! Streams of random numbers: pinned, apart from each other, and of the right shares.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;

use loralei_data::{Purpose, Showing, Stream, flipped};

const SHOWING: Showing = Showing { sample: 9, repeat: 3 };

fn draws(mut stream: Stream) -> Vec<u64> {
    (0..10).map(|_| stream.below(100)).collect()
}

/// Computed with a ChaCha8 written in Python from RFC 8439 (64-bit counter and nonce).
#[test]
fn the_numbers_of_a_seed_never_change() {
    let found = draws(Stream::new(5, 2, SHOWING, Purpose::Caption));
    assert_eq!(found, [52, 30, 51, 56, 36, 55, 50, 62, 61, 49]);
    let flips = |repeat| (0..12).map(|sample| u8::from(flipped(7, 0, Showing { sample, repeat }))).collect::<Vec<_>>();
    assert_eq!(flips(0), [0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1]);
    assert_eq!(flips(1), [0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn every_part_of_the_key_gives_other_numbers() {
    let (seed, epoch) = (5, 2);
    let rows: BTreeSet<Vec<u64>> = [
        Stream::new(seed, epoch, SHOWING, Purpose::Caption),
        Stream::new(6, epoch, SHOWING, Purpose::Caption),
        Stream::new(seed, 3, SHOWING, Purpose::Caption),
        Stream::new(seed, epoch, Showing { sample: 8, repeat: 3 }, Purpose::Caption),
        Stream::new(seed, epoch, Showing { sample: 9, repeat: 2 }, Purpose::Caption),
        Stream::new(seed, epoch, SHOWING, Purpose::Flip),
        Stream::new(seed, epoch, SHOWING, Purpose::Order),
    ]
    .map(draws)
    .into();
    assert_eq!(rows.len(), 7);
}

#[test]
fn half_of_the_showings_are_mirrored_and_each_picture_changes() {
    let mut num_flipped = 0;
    for sample in 0..100 {
        let of_sample = (0..100).filter(|&epoch| flipped(1, epoch, Showing { sample, repeat: 0 })).count();
        assert!((25..=75).contains(&of_sample), "{of_sample} of 100"); // 5 standard deviations
        num_flipped += of_sample;
    }
    assert!((4_750..=5_250).contains(&num_flipped), "{num_flipped} of 10000");
}

#[test]
fn chances_are_kept_at_both_ends_and_between() {
    let mut stream = Stream::new(1, 0, SHOWING, Purpose::Caption);
    assert!((0..1_000).all(|_| !stream.chance(0.0) && stream.chance(1.0) && !stream.chance(f64::NAN)));
    let num = (0..10_000).filter(|_| stream.chance(0.1)).count();
    assert!((850..=1_150).contains(&num), "{num}"); // 1000 expected, standard deviation 30
}

#[test]
fn a_shuffle_gives_all_orders_equally_often() {
    let mut counts = std::collections::BTreeMap::new();
    let mut stream = Stream::new(4, 0, SHOWING, Purpose::Caption);
    for _ in 0..6_000 {
        let mut items = [0, 1, 2];
        stream.shuffle(&mut items);
        *counts.entry(items).or_insert(0_u32) += 1;
    }
    assert!(counts.len() == 6 && counts.values().all(|&count| count.abs_diff(1000) < 150), "{counts:?}");
    assert_eq!(stream.below(0), 0);
}

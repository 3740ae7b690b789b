//! Which images are kept from training to be measured on.

use loralei_data::ContentHash;
use loralei_model::{Draw, Purpose};

/// The numbers that images draw are below it.
const RANGE: i64 = 1 << 53;

/// A number for what a file holds, the same wherever it lies and whatever it is called.
pub(crate) fn content_number(content: ContentHash) -> u64 {
    let ContentHash([a, b, c, d, e, f, g, h, ..]) = content;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Whether each of the images, given by what they hold, is kept from training: about `share` of them, 0 to below 1.
///
/// Each image draws a number of its own from the seed and its content, so an image that is added leaves the others where they
/// are, and two copies of one picture are on the same side. At least one image is kept from training where `share` is not 0, and
/// never all: `None` if that cannot be, with fewer than two different images.
pub(crate) fn held_out(seed: u64, contents: &[ContentHash], share: f64) -> Option<Vec<bool>> {
    if share <= 0.0 {
        return Some(vec![false; contents.len()]);
    }
    let draw = |content: &ContentHash| {
        let draw = Draw::new(seed, content_number(*content), 0, Purpose::HoldOut);
        draw.integers(0..RANGE, 1).into_iter().sum::<i64>()
    };
    let drawn: Vec<i64> = contents.iter().map(draw).collect();
    let (least, most) = (drawn.iter().min()?, drawn.iter().max()?);
    let is_held = |number: &i64| number == least || ((*number as f64) < share * RANGE as f64 && number != most);
    (least < most).then(|| drawn.iter().map(is_held).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(range: std::ops::Range<u32>) -> Vec<ContentHash> {
        range.map(|i| ContentHash::of(&i.to_le_bytes())).collect()
    }

    #[test]
    fn about_the_share_is_held_out_and_another_seed_holds_out_others() {
        let contents = contents(0..2000);
        let held = held_out(1, &contents, 0.2).unwrap();
        let count = held.iter().filter(|held| **held).count();
        // Five standard deviations of the binomial law: sqrt(2000 x 0.2 x 0.8) = 17.9.
        assert!((310..=490).contains(&count), "{count}");
        assert_ne!(held, held_out(2, &contents, 0.2).unwrap());
    }

    #[test]
    fn images_that_are_added_leave_the_others_where_they_are() {
        let (few, many) = (contents(0..40), contents(0..60));
        let (before, after) = (held_out(7, &few, 0.3).unwrap(), held_out(7, &many, 0.3).unwrap());
        assert_eq!(before, after[..40]);
        // In whatever order they are found.
        let backwards: Vec<_> = few.iter().rev().copied().collect();
        let held: Vec<bool> = held_out(7, &backwards, 0.3).unwrap().into_iter().rev().collect();
        assert_eq!(held, before);
    }

    #[test]
    fn at_least_one_is_held_out_and_never_all() {
        for (num_images, share) in [(2, 1e-9), (2, 0.999_999), (5, 1e-9), (5, 0.999_999)] {
            for seed in 0..20 {
                let held = held_out(seed, &contents(0..num_images), share).unwrap();
                let count = held.iter().filter(|held| **held).count();
                let expected = if share < 0.5 { 1 } else { num_images as usize - 1 };
                assert_eq!(count, expected, "{num_images} {share} {seed}");
            }
        }
        assert_eq!(held_out(1, &contents(0..1), 0.5), None);
        assert_eq!(held_out(1, &contents(0..1).repeat(3), 0.5), None, "three copies of one picture");
        assert_eq!(held_out(1, &contents(0..1), 0.0), Some(vec![false]));
    }

    #[test]
    fn copies_of_one_picture_are_on_the_same_side() {
        let twice = [contents(0..30), contents(0..30)].concat();
        let held = held_out(3, &twice, 0.4).unwrap();
        assert_eq!(held[..30], held[30..]);
    }
}

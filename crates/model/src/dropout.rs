//! What LoRA leaves out at random while it trains, as a function of the place in the run and the module's name: so that a
//! pass that recomputes leaves out the same.
//!
//! y = W x + s B (M * A x), where the mask M has a number for each row and rank: 0, or what makes up for the zeros. Elements
//! of A x are dropped one by one (Srivastava et al. 2014), ranks for a whole sample, modules for a whole micro-batch; the
//! last as a mask of zeros, so that the factors still have a gradient, which is 0.

use candle_core::{Device, Result, Tensor};
use std::cell::Cell;

use crate::ops::turned;
use crate::random::{Draw, LossTerm, Purpose};

thread_local! {
    static DROPOUT: Cell<Option<Dropout>> = const { Cell::new(None) };
}

/// Runs `f`, forward and backward of a micro-batch, with what `dropout` leaves out. Nothing is outside of such a call.
pub fn with_dropout<R>(dropout: Option<Dropout>, f: impl FnOnce() -> R) -> R {
    turned(&DROPOUT, dropout, f)
}

/// How much is left out: shares from 0 to below 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DropoutRates {
    /// Of the numbers between the factors; the others are divided by 1 - the share.
    pub elements: f64,
    /// Of the ranks, drawn for each sample; the others are divided by 1 - the share.
    pub ranks: f64,
    /// Of the modules, drawn for each micro-batch; the others stay as they are.
    pub modules: f64,
}

impl DropoutRates {
    /// Whether nothing is left out.
    pub fn are_zero(self) -> bool {
        self.elements == 0.0 && self.ranks == 0.0 && self.modules == 0.0
    }
}

/// What is left out at one place of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// How much.
    pub rates: DropoutRates,
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step, from 0.
    pub step: u64,
    /// The micro-batch within the step, from 0.
    pub micro_batch: u64,
    /// Which term of its loss: each drops other things.
    pub term: LossTerm,
}

impl Dropout {
    /// The mask of `module` for rows of shape `rows`, of which the first axis is the samples: (rows.., rank), row-major.
    fn mask(self, module: &str, rows: &[usize], rank: usize) -> Vec<f32> {
        let purposes = Purpose::dropout(self.term, module);
        let [elements, ranks, modules] =
            purposes.map(|purpose| Draw::new(self.seed, self.step, self.micro_batch, purpose));
        let len = rows.iter().product::<usize>() * rank;
        let num_samples = rows.first().copied().unwrap_or(1);
        let DropoutRates { elements: of_elements, ranks: of_ranks, modules: of_modules } = self.rates;
        if of_modules > 0.0 && modules.uniform(0.0, 1.0, 1).iter().any(|drawn| f64::from(*drawn) < of_modules) {
            return vec![0.0; len];
        }
        let mut mask = if of_elements > 0.0 { kept(elements, of_elements, len) } else { vec![1.0; len] };
        if of_ranks > 0.0 && len > 0 {
            let ranks = kept(ranks, of_ranks, num_samples * rank);
            for (sample, ranks) in mask.chunks_exact_mut(len / num_samples).zip(ranks.chunks_exact(rank)) {
                let rows = sample.chunks_exact_mut(rank);
                rows.for_each(|row| row.iter_mut().zip(ranks).for_each(|(kept, of_rank)| *kept *= of_rank));
            }
        }
        mask
    }
}

/// `n` numbers: 0 with the probability `rate`, otherwise 1 / (1 - rate).
fn kept(draw: Draw, rate: f64, n: usize) -> Vec<f32> {
    let kept = (1.0 / (1.0 - rate)) as f32;
    draw.uniform(0.0, 1.0, n).into_iter().map(|drawn| if f64::from(drawn) < rate { 0.0 } else { kept }).collect()
}

/// The mask of `module` if something is left out now: (rows.., rank), f32, on `device`.
///
/// # Errors
/// If there is no memory for it.
pub(crate) fn mask(module: &str, rows: &[usize], rank: usize, device: &Device) -> Result<Option<Tensor>> {
    let Some(dropout) = DROPOUT.get() else { return Ok(None) };
    let shape = [rows, &[rank]].concat();
    Tensor::from_vec(dropout.mask(module, rows, rank), shape, device).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [usize; 3] = [3, 50, 40];
    const RANK: usize = 8;

    fn at(rates: DropoutRates, micro_batch: u64) -> Dropout {
        Dropout { rates, seed: 4, step: 2, micro_batch, term: LossTerm::Subject }
    }

    fn mask(dropout: Dropout, module: &str) -> Vec<f32> {
        dropout.mask(module, &ROWS, RANK)
    }

    /// Within five standard errors of a share of `n`.
    fn is_share(found: f64, share: f64, n: usize) -> bool {
        (found - share).abs() < 5.0 * (share * (1.0 - share) / n as f64).sqrt()
    }

    #[test]
    fn elements_are_dropped_one_by_one_and_the_rest_makes_up_for_them() {
        let mask = mask(at(DropoutRates { elements: 0.2, ..DropoutRates::default() }, 0), "a");
        assert!(mask.iter().all(|x| *x == 0.0 || (*x - 1.25).abs() < 1e-6));
        let share = |numbers: &[f32]| numbers.iter().filter(|x| **x == 0.0).count() as f64 / numbers.len() as f64;
        assert!(is_share(share(&mask), 0.2, mask.len()), "{}", share(&mask));
        // Neighbours know nothing of each other: both zero is the product of the chances.
        for apart in [1, RANK] {
            let both = mask.iter().zip(&mask[apart..]).filter(|(a, b)| **a == 0.0 && **b == 0.0).count();
            assert!(is_share(both as f64 / (mask.len() - apart) as f64, 0.04, mask.len()));
        }
    }

    #[test]
    fn ranks_are_dropped_for_a_sample_as_a_whole_and_for_each_sample_anew() {
        let rates = DropoutRates { ranks: 0.4, ..DropoutRates::default() };
        let (mut dropped, mut differ) = (0, false);
        for micro in 0..100 {
            let mask = mask(at(rates, micro), "a");
            let samples: Vec<&[f32]> = mask.chunks_exact(mask.len() / ROWS[0]).collect();
            for sample in &samples {
                assert!(sample.chunks_exact(RANK).all(|row| row == &sample[..RANK]));
                assert!(sample[..RANK].iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.6).abs() < 1e-6));
                dropped += sample[..RANK].iter().filter(|x| **x == 0.0).count();
            }
            differ |= samples[0] != samples[1];
        }
        let n = 100 * ROWS[0] * RANK;
        assert!(is_share(dropped as f64 / n as f64, 0.4, n), "{dropped} of {n}");
        assert!(differ);
    }

    #[test]
    fn modules_are_dropped_whole_or_left_as_they_are() {
        let rates = DropoutRates { modules: 0.3, ..DropoutRates::default() };
        let mut dropped = 0;
        for micro in 0..1000 {
            let mask = at(rates, micro).mask("a", &[2, 3], RANK);
            assert!(mask.iter().all(|x| *x == 0.0) || mask.iter().all(|x| *x == 1.0));
            dropped += usize::from(mask[0] == 0.0);
        }
        assert!(is_share(f64::from(dropped as u32) / 1000.0, 0.3, 1000), "{dropped}");
    }

    #[test]
    fn every_kind_has_numbers_of_its_own_and_every_module_step_and_term_others() {
        let all = DropoutRates { elements: 0.5, ranks: 0.5, modules: 0.0 };
        let (elements, ranks) = (DropoutRates { ranks: 0.0, ..all }, DropoutRates { elements: 0.0, ..all });
        let product: Vec<f32> =
            mask(at(elements, 0), "a").iter().zip(mask(at(ranks, 0), "a")).map(|(a, b)| a * b).collect();
        assert_eq!(mask(at(all, 0), "a"), product);
        let here = mask(at(all, 0), "a");
        assert_eq!(here, mask(at(all, 0), "a"));
        let prior = Dropout { term: LossTerm::Prior, ..at(all, 0) };
        for other in [mask(at(all, 0), "b"), mask(at(all, 1), "a"), mask(prior, "a")] {
            assert_ne!(here, other);
        }
        assert_ne!(here, mask(Dropout { step: 3, ..at(all, 0) }, "a"));
        assert_ne!(here, mask(Dropout { seed: 5, ..at(all, 0) }, "a"));
    }

    #[test]
    fn nothing_is_dropped_outside_of_the_call() {
        let dropped = || super::mask("a", &[2, 3], 4, &Device::Cpu).unwrap();
        assert!(dropped().is_none());
        let rates = DropoutRates { elements: 0.5, ..DropoutRates::default() };
        let inside = with_dropout(Some(at(rates, 0)), dropped).unwrap();
        assert_eq!(inside.dims(), [2, 3, 4]);
        assert!(dropped().is_none());
    }
}

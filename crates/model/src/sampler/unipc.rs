//! UniPC of second order with B(h) = e^h - 1: a predictor, and a corrector that mends the step before as soon as the
//! network has seen where it led (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 and 6, on the clean latents).

use super::dpmpp_2m::solver_walk;
use super::time_grid::Mix;
use super::{Estimate, Solver, Walk, combine};
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};

const ORDER: usize = 2;

pub(super) struct UniPc {
    /// Each grid point and the end.
    mixes: Vec<Mix>,
    /// The last step's start: the latents, the order it was made with.
    before: Option<(Tensor, usize)>,
    /// The clean latents of the last steps, newest last.
    clean: Vec<Tensor>,
}

impl UniPc {
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize) -> (Walk, Self) {
        let (walk, mixes) = solver_walk(schedule, num_steps);
        (walk, Self { mixes, before: None, clean: Vec::new() })
    }

    /// From grid point `i` to `i + 1`: x' = (sigma'/sigma) x - alpha' (e^-h - 1) (m_0 + `slopes`), where the slopes are
    /// weighted differences of other estimates from m_0.
    fn advance(&self, i: usize, sample: &Tensor, m_0: &Tensor, slopes: &[(f64, &Tensor)]) -> Result<Tensor> {
        let (from, to) = (self.mixes[i], self.mixes[i + 1]);
        let toward = -to.alpha * (-(to.half_log_snr() - from.half_log_snr())).exp_m1();
        let of_m_0 = 1.0 - slopes.iter().map(|(weight, _)| weight).sum::<f64>();
        let mut terms = vec![(to.sigma / from.sigma, sample), (toward * of_m_0, m_0)];
        terms.extend(slopes.iter().map(|(weight, other)| (toward * weight, *other)));
        combine(&terms)
    }

    /// Where the step before `i` began and ended, on the scale of its own length: (lambda_(i-2) - lambda_(i-1)) / h.
    fn ratio(&self, i: usize) -> f64 {
        let lambda = |i: usize| self.mixes[i].half_log_snr();
        (lambda(i - 1) - lambda(i)) / (lambda(i + 1) - lambda(i))
    }

    /// The corrector for the step that led to grid point `i`.
    fn correct(&self, i: usize, start: &Tensor, order: usize, seen: &Tensor) -> Result<Tensor> {
        let m_0 = &self.clean[self.clean.len() - 1];
        if order < ORDER || self.clean.len() < 2 {
            return self.advance(i - 1, start, m_0, &[(0.5, seen)]);
        }
        let hh = -(self.mixes[i].half_log_snr() - self.mixes[i - 1].half_log_snr());
        let (phi, b_h) = (hh.exp_m1() / hh - 1.0, hh.exp_m1());
        let (b_0, b_1) = (phi / b_h, (phi / hh - 0.5) * 2.0 / b_h);
        let r = self.ratio(i - 1);
        // rho_0 + rho_1 = b_0, r rho_0 + rho_1 = b_1
        let rho_0 = (b_0 - b_1) / (1.0 - r);
        let older = &self.clean[self.clean.len() - 2];
        self.advance(i - 1, start, m_0, &[(rho_0 / r, older), (b_0 - rho_0, seen)])
    }
}

impl Solver for UniPc {
    fn step(&mut self, i: usize, sample: &Tensor, estimate: &Estimate, _: Option<&Tensor>) -> Result<Tensor> {
        let sample = match self.before.take() {
            Some((start, order)) => self.correct(i, &start, order, &estimate.clean)?,
            None => sample.clone(),
        };
        self.clean.push(estimate.clean.clone());
        if self.clean.len() > ORDER {
            self.clean.remove(0);
        }
        let steps_left = self.mixes.len() - 1 - i;
        let order = ORDER.min(steps_left).min(i + 1);
        let m_0 = &self.clean[self.clean.len() - 1];
        let next = match order {
            1 => self.advance(i, &sample, m_0, &[])?,
            _ => self.advance(i, &sample, m_0, &[(0.5 / self.ratio(i), &self.clean[self.clean.len() - 2])])?,
        };
        self.before = Some((sample, order));
        Ok(next)
    }
}

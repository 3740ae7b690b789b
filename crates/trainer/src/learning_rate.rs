//! The learning rate as a pure function of the step.
//!
//! Warm-up counts from the first step: step s of w has (s + 1) / w of the full rate, so no step is wasted at rate zero
//! (diffusers and kohya begin at 0). After it the rate falls from 1 to `final_ratio` over the remaining steps; as in
//! diffusers the end is what a step after the last would have, so the last step still learns something at ratio 0.

use crate::config::ScheduleKind;

/// The shape of the learning rate over a run, as a factor of the full rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRateSchedule {
    /// How the rate falls after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear rise at the start, 0 for none.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub steps: u64,
    /// The factor at the end of the run, 0 to 1. Ignored by a constant schedule.
    pub final_ratio: f64,
    /// How often [`ScheduleKind::Restarts`] falls, 1 or more.
    pub cycles: u64,
    /// Exponent of [`ScheduleKind::Polynomial`], above 0.
    pub power: f64,
}

impl LearningRateSchedule {
    /// The factor of optimizer step `step`, counted from 0: within 0 to 1, above 0 during warm-up.
    ///
    /// A step at or beyond the end of the run has `final_ratio`.
    pub fn ratio(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let falling_steps = self.steps.saturating_sub(self.warmup_steps);
        let progress =
            if falling_steps == 0 { 1.0 } else { (step - self.warmup_steps) as f64 / falling_steps as f64 }.min(1.0);
        let left = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            // libm, not the platform's cosine: the rate of a step is the same bits everywhere.
            ScheduleKind::Cosine => half_cosine(progress),
            // As diffusers' `cosine_with_restarts`: the end is the end of the last fall, not the top of another.
            ScheduleKind::Restarts if progress < 1.0 => half_cosine((progress * self.cycles as f64).fract()),
            ScheduleKind::Restarts => 0.0,
            ScheduleKind::Polynomial => libm::pow(1.0 - progress, self.power),
        };
        self.final_ratio + (1.0 - self.final_ratio) * left
    }
}

/// From 1 at 0 to 0 at 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    fn schedule(kind: ScheduleKind) -> LearningRateSchedule {
        LearningRateSchedule { kind, warmup_steps: 20, steps: 120, final_ratio: 0.05, cycles: 4, power: 2.0 }
    }

    #[test]
    fn warm_up_rises_in_equal_parts_to_the_full_rate() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            close(schedule(kind).ratio(0), 0.05);
            close(schedule(kind).ratio(9), 0.5);
            close(schedule(kind).ratio(19), 1.0);
            close(schedule(kind).ratio(20), 1.0);
        }
    }

    #[test]
    fn linear_falls_to_the_final_ratio_in_equal_parts() {
        let linear = schedule(ScheduleKind::Linear);
        close(linear.ratio(45), 0.05 + 0.95 * 0.75);
        close(linear.ratio(119), 0.05 + 0.95 * 0.01);
        close(linear.ratio(120), 0.05);
        close(linear.ratio(5000), 0.05);
    }

    #[test]
    fn cosine_is_half_way_at_the_middle_and_above_the_line_before_it() {
        let cosine = schedule(ScheduleKind::Cosine);
        close(cosine.ratio(70), 0.05 + 0.95 * 0.5);
        // cos(pi / 4) = 1 / sqrt(2)
        close(cosine.ratio(45), 0.05 + 0.95 * 0.5 * (1.0 + 0.5f64.sqrt()));
        close(cosine.ratio(120), 0.05);
    }

    #[test]
    fn restarts_begin_again_from_the_top_and_end_at_the_bottom() {
        let restarts = schedule(ScheduleKind::Restarts);
        // 100 steps in 4 falls of 25.
        close(restarts.ratio(20), 1.0);
        close(restarts.ratio(45), 1.0);
        // cos(pi 5 / 25)
        close(restarts.ratio(50), 0.05 + 0.95 * 0.5 * (1.0 + (1.0 + 5f64.sqrt()) / 4.0));
        assert!(restarts.ratio(119) < 0.06);
        close(restarts.ratio(120), 0.05);
    }

    #[test]
    fn polynomial_falls_as_a_power_of_what_is_left() {
        let polynomial = schedule(ScheduleKind::Polynomial);
        close(polynomial.ratio(45), 0.05 + 0.95 * 0.75 * 0.75);
        close(polynomial.ratio(120), 0.05);
    }

    #[test]
    fn constant_never_falls() {
        close(schedule(ScheduleKind::Constant).ratio(119), 1.0);
        close(schedule(ScheduleKind::Constant).ratio(9999), 1.0);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_is_defined_everywhere() {
        let short = LearningRateSchedule { steps: 10, final_ratio: 0.1, ..schedule(ScheduleKind::Linear) };
        close(short.ratio(9), 0.5);
        close(short.ratio(20), 0.1);
    }
}

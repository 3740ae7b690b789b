//! The measurements of a run, the best of them, and whether to wait for a better one.

use serde::{Deserialize, Serialize};

/// One measurement: a line of `validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidationPoint {
    /// Number of steps made; 0 is before the first.
    pub step: u64,
    /// Mean loss over images and timesteps.
    pub loss: f64,
    /// The same at each timestep, ascending.
    pub bins: Vec<BinLoss>,
    /// The same on as many images that are learned from, where `loss` is not of such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// How far predictions are from the base's, where that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leak: Option<LeakChange>,
    /// Whether it is better than all before it. Never before the first step, when there is nothing to keep.
    #[serde(default)]
    pub best: bool,
}

/// The loss at one timestep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BinLoss {
    /// The timestep.
    pub timestep: i64,
    /// Mean loss over images.
    pub loss: f64,
}

/// Mean of ||e' - e||^2 / ||e||^2, with e the prediction of the base and e' that with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LeakChange {
    /// For the images' captions.
    pub with_trigger: f64,
    /// For the same without the trigger.
    pub without_trigger: f64,
}

/// The measurements of a run so far. A function of them alone, so a resumed run has the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BestTracker {
    points: Vec<ValidationPoint>,
}

impl BestTracker {
    /// Of a run with these measurements behind it.
    pub fn from_history(points: Vec<ValidationPoint>) -> Self {
        let mut tracker = Self::default();
        points.into_iter().for_each(|point| drop(tracker.add(point)));
        tracker
    }

    /// Adds a measurement and gives it back with `best` as it is.
    pub fn add(&mut self, mut point: ValidationPoint) -> ValidationPoint {
        point.best = point.step > 0 && self.points.iter().all(|earlier| point.loss < earlier.loss);
        self.points.push(point.clone());
        point
    }

    /// All measurements.
    pub fn points(&self) -> &[ValidationPoint] {
        &self.points
    }

    /// Whether the run was measured after `step` steps.
    pub fn has(&self, step: u64) -> bool {
        self.points.iter().any(|point| point.step == step)
    }

    /// The best measurement; `None` if none is better than that before the first step.
    pub fn best(&self) -> Option<&ValidationPoint> {
        self.points.iter().rev().find(|point| point.best)
    }

    /// Whether `patience` measurements or more have passed since the last that was better than all before it, or since the
    /// first. Never without a patience.
    pub fn should_stop(&self, patience: Option<u64>) -> bool {
        let Some(patience) = patience else { return false };
        let since = self.points.iter().rev().take_while(|point| !point.best).count() as u64;
        let num_waited = if self.best().is_some() { since } else { since.saturating_sub(1) };
        num_waited >= patience && num_waited > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, loss: f64) -> ValidationPoint {
        let bins = vec![BinLoss { timestep: 125, loss: 2.0 * loss }];
        ValidationPoint { step, loss, bins, train_loss: None, leak: None, best: false }
    }

    fn tracker(losses: &[f64]) -> BestTracker {
        BestTracker::from_history(losses.iter().zip(0..).map(|(loss, i)| point(100 * i, *loss)).collect())
    }

    #[test]
    fn the_best_is_the_lowest_and_the_first_of_equal_ones() {
        let tracker = tracker(&[0.5, 0.3, 0.4, 0.2, 0.2]);
        let best: Vec<bool> = tracker.points().iter().map(|point| point.best).collect();
        assert_eq!(best, [false, true, false, true, false]);
        assert_eq!(tracker.best().map(|point| point.step), Some(300));
        assert!(tracker.has(400) && !tracker.has(50));
    }

    #[test]
    fn what_never_gets_better_than_the_base_has_no_best() {
        assert_eq!(tracker(&[0.2, 0.3, 0.25]).best(), None);
        assert_eq!(tracker(&[0.2]).best(), None);
    }

    #[test]
    fn the_run_stops_after_as_many_measurements_without_a_better_one_as_it_may_wait_for() {
        let stops = |losses: &[f64], patience| tracker(losses).should_stop(patience);
        let losses = [0.5, 0.3, 0.4, 0.35, 0.31];
        let when: Vec<bool> = (1..=losses.len()).map(|n| stops(&losses[..n], Some(2))).collect();
        assert_eq!(when, [false, false, false, true, true]);
        assert!(!stops(&losses, Some(4)) && !stops(&losses, None));
        // Where nothing is ever better than the base, its own measurement is what the others are held against.
        let worse = [0.2, 0.3, 0.3];
        assert_eq!([1, 2, 3].map(|n| stops(&worse[..n], Some(2))), [false, false, true]);
    }

    #[test]
    fn a_measurement_reads_back_as_the_line_that_was_written() {
        let leak = Some(LeakChange { with_trigger: 0.1 + 0.2, without_trigger: 1.0 / 3.0 });
        let full = ValidationPoint { leak, train_loss: Some(0.1), ..point(100, 0.7 / 3.0) };
        let line = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<ValidationPoint>(&line).unwrap(), full);
        let expected = r#"{"step":0,"loss":0.5,"bins":[{"timestep":125,"loss":1.0}],"best":false}"#;
        assert_eq!(serde_json::to_string(&point(0, 0.5)).unwrap(), expected);
    }
}

//! The running mean of the loss that progress shows. A single step's loss says little: it depends on the timesteps drawn.

/// Weight that the past keeps at each step: a mean over about the last 50.
const DECAY: f64 = 0.98;

/// Exponential running mean, corrected for its start: after one loss it is that loss, not a fiftieth of it.
#[derive(Debug, Clone, Default)]
pub struct SmoothedLoss {
    sum: f64,
    weight: f64,
}

impl SmoothedLoss {
    /// A mean of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in `loss` and returns the mean.
    pub fn update(&mut self, loss: f64) -> f64 {
        self.sum = DECAY * self.sum + (1.0 - DECAY) * loss;
        self.weight = DECAY * self.weight + (1.0 - DECAY);
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_weighs_recent_losses_more_and_starts_without_bias() {
        let mut smoothed = SmoothedLoss::new();
        assert!((smoothed.update(3.0) - 3.0).abs() < 1e-12);
        // (0.98 * 3 + 1) / 1.98
        assert!((smoothed.update(1.0) - 3.94 / 1.98).abs() < 1e-12);
        for _ in 0..2000 {
            smoothed.update(0.5);
        }
        assert!((smoothed.update(0.5) - 0.5).abs() < 1e-9);
    }
}

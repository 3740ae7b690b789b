//! Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): every number of a factor moves by the learning rate, in the
//! direction of a sign.
//!
//! u = sign(beta1 m + (1 - beta1) g); the factor shrinks by 1 - lr * weight_decay and moves by -lr u;
//! m = beta2 m + (1 - beta2) g. A gradient of zero after zeros moves nothing.

use super::MovedFactor;
use super::state::{FactorTensors, OptimizerState};
use crate::error::TrainError;

/// Lion's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LionSettings {
    /// Weight of the mean in the direction, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean, in [0, 1).
    pub beta2: f64,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Lion {
    settings: LionSettings,
    /// m.
    momentum: FactorTensors,
}

impl Lion {
    pub(super) fn new(settings: LionSettings) -> Self {
        Self { settings, momentum: FactorTensors::new() }
    }

    pub(super) fn move_factor(&mut self, factor: &MovedFactor<'_>) -> Result<(), TrainError> {
        let LionSettings { beta1, beta2, weight_decay } = self.settings;
        let MovedFactor { name, var, gradient, rate } = factor;
        let momentum = factor.held_in(&self.momentum)?;
        let direction = ((&momentum * beta1)? + (gradient * (1.0 - beta1))?)?.sign()?;
        let decayed = (var.as_detached_tensor() * (1.0 - rate * weight_decay))?;
        var.set(&(decayed - (direction * *rate)?)?)?;
        let momentum = ((momentum * beta2)? + (gradient * (1.0 - beta2))?)?;
        self.momentum.insert((*name).to_owned(), momentum);
        Ok(())
    }

    pub(super) fn save(&self, state: &mut OptimizerState) {
        state.put("momentum", &self.momentum);
    }

    pub(super) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        self.momentum = state.take("momentum")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::OptimizerSettings;
    use super::super::golden_factors::{assert_close, of_slot, of_vars, trained};
    use super::*;

    /// Golden numbers of lion-pytorch 0.2.5, made after `common.py` by:
    /// ```python
    /// from lion_pytorch import Lion
    /// optimizer = Lion(groups, betas=(0.8, 0.95), weight_decay=0.1)
    /// train(optimizer, 6)
    /// show(factors)
    /// show([optimizer.state[factors[2]]["exp_avg"]])
    /// ```
    #[test]
    fn six_steps_at_four_changing_rates_are_those_of_lion_pytorch() {
        let settings = LionSettings { beta1: 0.8, beta2: 0.95, weight_decay: 0.1 };
        let (factors, optimizer) = trained(OptimizerSettings::Lion(settings), 6);
        let expected = [
            0.32111827,
            -1.3295441,
            0.93641627,
            -0.7275231,
            1.5982435,
            -0.112246625,
            -1.7615802,
            0.50770116,
            -1.1429613,
            1.1229993,
            -0.54094017,
            1.791493,
            -1.3509486,
            0.97020394,
            -0.73080635,
            1.5836937,
            -0.08403176,
            -1.7873777,
            0.9042416,
            -0.6566826,
            1.6026764,
            -0.1306555,
            -1.7420264,
            0.4842607,
            -0.72478217,
            1.5887182,
            -0.09055467,
            -1.7838163,
            0.53334683,
            -1.160081,
            1.1567488,
            -0.5375118,
        ];
        let momentum = [-0.008210762, -0.0937682, 0.002600619, 0.07179936, -0.031831823, 0.047366936];
        assert_close(&of_vars(&factors), &expected, 1e-6);
        assert_close(&of_slot(&optimizer.state().tensors["momentum"], 2), &momentum, 1e-6);
    }
}

//! Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1): an average of the factors takes the place of a
//! falling learning rate.
//!
//! z walks by Adam's steps, whose momentum is left out; x is the mean of the z so far, each weighted by the square of its
//! learning rate; gradients are taken at y = (1 - beta1) z + beta1 x. The network holds y, what is learned is x. As in the
//! authors' `AdamWScheduleFreeReference`, the second moment is corrected for its start and y is what decays. That
//! implementation weighs by the largest rate so far, the paper by each step's: they differ only where a rate falls, and this
//! is the paper's.

use super::state::{FactorTensors, OptimizerState};
use super::{AdamWSettings, MovedFactor};
use crate::error::TrainError;

#[derive(Debug, Clone)]
pub(super) struct ScheduleFree {
    settings: AdamWSettings,
    /// z.
    walk: FactorTensors,
    /// x.
    averages: FactorTensors,
    /// v.
    second: FactorTensors,
    /// Sum of the squared rates so far, as parts of the full rates: the full rates cancel.
    weight_sum: f64,
}

impl ScheduleFree {
    pub(super) fn new(settings: AdamWSettings) -> Self {
        let (walk, averages, second) = (FactorTensors::new(), FactorTensors::new(), FactorTensors::new());
        Self { settings, walk, averages, second, weight_sum: 0.0 }
    }

    pub(super) fn averages(&self) -> &FactorTensors {
        &self.averages
    }

    pub(super) fn move_all(&mut self, factors: &[MovedFactor<'_>], t: u64, schedule: f64) -> Result<(), TrainError> {
        self.weight_sum += schedule * schedule;
        let part = if self.weight_sum > 0.0 { schedule * schedule / self.weight_sum } else { 0.0 };
        factors.iter().try_for_each(|factor| self.move_factor(factor, t, part))
    }

    /// `part`: weight of the new z in the mean.
    fn move_factor(&mut self, factor: &MovedFactor<'_>, t: u64, part: f64) -> Result<(), TrainError> {
        let AdamWSettings { beta1, beta2, eps, weight_decay } = self.settings;
        let MovedFactor { name, var, gradient, rate } = factor;
        let y = var.as_detached_tensor();
        // Copies: a variable is written in place.
        let begins = |slot: &FactorTensors| slot.get(*name).map_or_else(|| y.copy(), |held| Ok(held.clone()));
        let (z, x) = (begins(&self.walk)?, begins(&self.averages)?);
        let second = ((factor.held_in(&self.second)? * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = ((&second / (1.0 - beta2.powf(t as f64)))?.sqrt()? + eps)?;
        let z = (z - (y * (rate * weight_decay))?)?;
        let z = (z - ((gradient / denominator)? * *rate)?)?;
        let x = ((x * (1.0 - part))? + (&z * part)?)?;
        var.set(&((&x * beta1)? + (&z * (1.0 - beta1))?)?)?;
        self.walk.insert((*name).to_owned(), z);
        self.averages.insert((*name).to_owned(), x);
        self.second.insert((*name).to_owned(), second);
        Ok(())
    }

    pub(super) fn save(&self, state: &mut OptimizerState) {
        state.put("walk", &self.walk);
        state.put("averages", &self.averages);
        state.put("second", &self.second);
        state.put_scalar("weight_sum", self.weight_sum);
    }

    pub(super) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        (self.walk, self.averages) = (state.take("walk")?, state.take("averages")?);
        self.second = state.take("second")?;
        self.weight_sum = state.take_scalar("weight_sum")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden_factors::{assert_close, factors, flat, full_rate, gradients, of_vars};
    use super::super::{Optimizer, OptimizerSettings};
    use super::*;

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 };

    /// Golden numbers of schedulefree 1.4.1, made after `common.py` by:
    /// ```python
    /// from schedulefree import AdamWScheduleFreeReference
    /// optimizer = AdamWScheduleFreeReference(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    /// optimizer.train()
    /// for step in range(6):
    ///     for i, group in enumerate(optimizer.param_groups):
    ///         group["lr"] = RATES[i] * min(1, (step + 1) / 4)
    ///         factors[i].grad = given(i, step)
    ///     optimizer.step()
    /// show(factors)
    /// optimizer.eval()
    /// show(factors)
    /// ```
    #[test]
    fn six_steps_with_a_warm_up_of_four_are_those_of_the_authors() {
        let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::ScheduleFree(SETTINGS)));
        for step in 0..6 {
            let schedule = ((step + 1) as f64 / 4.0).min(1.0);
            optimizer.step(&factors, &gradients(step), schedule, full_rate).unwrap();
        }
        let y = [
            0.33222875,
            -1.325517,
            0.96567196,
            -0.7116193,
            1.5703292,
            -0.11884026,
            -1.790511,
            0.51078403,
            -1.146903,
            1.1441331,
            -0.5337169,
            1.768983,
            -1.3481306,
            0.96676815,
            -0.718948,
            1.5858806,
            -0.094024785,
            -1.774574,
            0.9845192,
            -0.66452587,
            1.5686862,
            -0.121482186,
            -1.7781799,
            0.51156926,
            -0.71620053,
            1.5925897,
            -0.09627045,
            -1.784205,
            0.5259631,
            -1.1581198,
            1.155601,
            -0.53100085,
        ];
        let x = [
            0.33219132,
            -1.3271585,
            0.9669376,
            -0.71152055,
            1.5731946,
            -0.11695937,
            -1.7918859,
            0.5112447,
            -1.1480106,
            1.1458466,
            -0.53303593,
            1.7676744,
            -1.3481834,
            0.9665368,
            -0.7183759,
            1.586543,
            -0.09496167,
            -1.7752323,
            0.9859137,
            -0.6656416,
            1.57326,
            -0.11885804,
            -1.7821231,
            0.5112889,
            -0.71604717,
            1.5927463,
            -0.09571669,
            -1.7838944,
            0.525758,
            -1.1581672,
            1.1554593,
            -0.5307318,
        ];
        assert_close(&of_vars(&factors), &y, 1e-6);
        assert_close(&flat(optimizer.averages().unwrap().values()), &x, 1e-6);
    }

    #[test]
    fn where_the_rate_falls_the_mean_weighs_each_step_by_its_own_rate() {
        let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::ScheduleFree(SETTINGS)));
        let (mut sum, mut weights) = (vec![0.0; of_vars(&factors).len()], 0.0);
        for (step, schedule) in [0.5, 1.0, 0.25, 0.0].into_iter().enumerate() {
            optimizer.step(&factors, &gradients(step), schedule, full_rate).unwrap();
            let z = flat(optimizer.state().tensors["walk"].values());
            sum.iter_mut().zip(z).for_each(|(sum, z)| *sum += schedule * schedule * f64::from(z));
            weights += schedule * schedule;
        }
        let mean: Vec<f32> = sum.iter().map(|sum| (sum / weights) as f32).collect();
        assert_close(&flat(optimizer.averages().unwrap().values()), &mean, 1e-6);
    }
}

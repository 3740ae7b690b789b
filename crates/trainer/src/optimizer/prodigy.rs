//! Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101, algorithm 4): Adam that finds its step size.
//!
//! d estimates how far the factors, all together, are from where they should be. It grows while gradients go on pointing
//! away from the start p0: with h = d lr (times Adam's bias correction, if on),
//! n = beta3 n + (d / d0) h <g, p0 - p>, s = beta3 s + (d / d0) h g, and d becomes the largest of itself and
//! c n / |s|_1, where beta3 = sqrt(beta2). Adam's moments are those of d g, and a factor moves by h m / (sqrt(v) + d eps).
//! The arithmetic is that of the authors' `prodigyopt`; the limit of d is ours.

use candle_core::{DType, Device, Tensor};

use super::state::{FactorTensors, OptimizerState};
use super::{AdamWSettings, MovedFactor, wide};
use crate::error::TrainError;

/// Prodigy's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProdigySettings {
    /// Those of Adam; weight decay is decoupled, and in proportion to d.
    pub adamw: AdamWSettings,
    /// d0, above 0.
    pub initial_d: f64,
    /// c, above 0.
    pub d_coefficient: f64,
    /// What d never exceeds.
    pub max_d: Option<f64>,
    /// Whether s takes d in the place of h, so that a warm-up does not make d grow too far.
    pub safeguard_warmup: bool,
    /// Whether h has Adam's bias correction.
    pub bias_correction: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Prodigy {
    settings: ProdigySettings,
    /// m.
    first: FactorTensors,
    /// v.
    second: FactorTensors,
    /// s.
    gradient_sum: FactorTensors,
    /// p0.
    start: FactorTensors,
    /// n.
    numerator: f64,
    d: f64,
}

impl Prodigy {
    pub(super) fn new(settings: ProdigySettings) -> Self {
        Self {
            settings,
            first: FactorTensors::new(),
            second: FactorTensors::new(),
            gradient_sum: FactorTensors::new(),
            start: FactorTensors::new(),
            numerator: 0.0,
            d: settings.initial_d,
        }
    }

    pub(super) fn d(&self) -> f64 {
        self.d
    }

    pub(super) fn move_all(&mut self, factors: &[MovedFactor<'_>], t: u64) -> Result<(), TrainError> {
        let AdamWSettings { beta1, beta2, .. } = self.settings.adamw;
        let rate = factors.iter().map(|factor| factor.rate).fold(0.0, f64::max);
        let t = t as f64;
        let correction =
            if self.settings.bias_correction { (1.0 - beta2.powf(t)).sqrt() / (1.0 - beta1.powf(t)) } else { 1.0 };
        let h = self.d * rate * correction;
        for factor in factors {
            self.gather(factor)?;
        }
        self.estimate(factors, h)?;
        factors.iter().try_for_each(|factor| self.move_factor(factor, h))
    }

    /// Moments of d g.
    fn gather(&mut self, factor: &MovedFactor<'_>) -> Result<(), TrainError> {
        let AdamWSettings { beta1, beta2, .. } = self.settings.adamw;
        let (d, gradient) = (self.d, &factor.gradient);
        let first = ((factor.held_in(&self.first)? * beta1)? + (gradient * (d * (1.0 - beta1)))?)?;
        let second = ((factor.held_in(&self.second)? * beta2)? + (gradient.sqr()? * (d * d * (1.0 - beta2)))?)?;
        self.first.insert(factor.name.to_owned(), first);
        self.second.insert(factor.name.to_owned(), second);
        Ok(())
    }

    /// d, from the gradients of this step. On a card this waits for them. Factors that are no longer moved count as if their
    /// gradients were zero.
    fn estimate(&mut self, factors: &[MovedFactor<'_>], h: f64) -> Result<(), TrainError> {
        let ProdigySettings { adamw, initial_d, d_coefficient, max_d, safeguard_warmup, .. } = self.settings;
        let beta3 = adamw.beta2.sqrt();
        let new_part = self.d / initial_d * if safeguard_warmup { self.d } else { h };
        for sum in self.gradient_sum.values_mut() {
            *sum = (&*sum * beta3)?;
        }
        let mut products = Vec::with_capacity(factors.len());
        for MovedFactor { name, var, gradient, .. } in factors {
            let p = var.as_detached_tensor();
            let start = match self.start.get(*name) {
                Some(start) => start.clone(),
                None => p.copy()?, // a variable is written in place
            };
            products.push((gradient * (&start - p)?)?);
            self.start.insert((*name).to_owned(), start);
            let new = (gradient * new_part)?;
            let sum = self.gradient_sum.remove(*name).map_or_else(|| Ok(new.clone()), |held| held + &new)?;
            self.gradient_sum.insert((*name).to_owned(), sum);
        }
        let lengths = self.gradient_sum.values().map(Tensor::abs).collect::<candle_core::Result<Vec<_>>>()?;
        let (product, length) = (sum_of_all(&products)?, sum_of_all(&lengths)?);
        self.numerator = beta3 * self.numerator + self.d / initial_d * h * product;
        if length > 0.0 {
            let grown = self.d.max(d_coefficient * self.numerator / length);
            self.d = max_d.map_or(grown, |max_d| grown.min(max_d));
        }
        Ok(())
    }

    fn move_factor(&mut self, factor: &MovedFactor<'_>, h: f64) -> Result<(), TrainError> {
        let AdamWSettings { eps, weight_decay, .. } = self.settings.adamw;
        let denominator = (factor.held_in(&self.second)?.sqrt()? + self.d * eps)?;
        let decayed = (factor.var.as_detached_tensor() * (1.0 - h * weight_decay))?;
        factor.var.set(&(decayed - ((factor.held_in(&self.first)? / denominator)? * h)?)?)?;
        Ok(())
    }

    pub(super) fn save(&self, state: &mut OptimizerState) {
        state.put("first", &self.first);
        state.put("second", &self.second);
        state.put("gradient_sum", &self.gradient_sum);
        state.put("start", &self.start);
        state.put_scalar("d", self.d);
        state.put_scalar("numerator", self.numerator);
    }

    pub(super) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        (self.first, self.second) = (state.take("first")?, state.take("second")?);
        (self.gradient_sum, self.start) = (state.take("gradient_sum")?, state.take("start")?);
        (self.d, self.numerator) = (state.take_scalar("d")?, state.take_scalar("numerator")?);
        Ok(())
    }
}

/// The sum of all numbers of all tensors: on the device for each, then on the processor in their order.
fn sum_of_all(tensors: &[Tensor]) -> candle_core::Result<f64> {
    let sums = tensors.iter().map(|tensor| tensor.to_dtype(wide(tensor.device()))?.sum_all());
    let sums = Tensor::stack(&sums.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    Ok(sums.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::super::golden_factors::{assert_close, factors, of_vars, pull};
    use super::super::{Optimizer, OptimizerSettings};
    use super::*;
    use candle_core::Var;
    use std::collections::BTreeMap;

    fn settings(is_careful: bool) -> ProdigySettings {
        ProdigySettings {
            adamw: AdamWSettings { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 },
            initial_d: 1e-3,
            d_coefficient: 1.5,
            max_d: None,
            safeguard_warmup: is_careful,
            bias_correction: is_careful,
        }
    }

    /// d after each of ten steps with a warm-up of four, and the last factors.
    fn ten_steps(settings: ProdigySettings) -> (Vec<f32>, BTreeMap<String, Var>) {
        let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::Prodigy(settings)));
        let d = (0..10).map(|step| {
            let schedule = ((step + 1) as f64 / 4.0).min(1.0);
            optimizer.step(&factors, &pull(&factors), schedule, |_| 1.0).unwrap();
            optimizer.scalars()["d"] as f32
        });
        (d.collect(), factors)
    }

    /// Golden numbers of prodigyopt 1.1.2, made after `common.py` by this with `careful` True and False:
    /// ```python
    /// from prodigyopt import Prodigy
    /// pull = lambda i: [0.2, 1, 0.5, 0.05][i] * (factors[i].detach() - 0.75 * filled(SHAPES[i], 50 + 5 * i))
    /// optimizer = Prodigy(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, d0=1e-3, d_coef=1.5,
    ///                     use_bias_correction=careful, safeguard_warmup=careful)
    /// d = []
    /// for step in range(10):
    ///     for i, group in enumerate(optimizer.param_groups):
    ///         group["lr"] = min(1, (step + 1) / 4)
    ///         factors[i].grad = pull(i)
    ///     optimizer.step()
    ///     d.append(optimizer.param_groups[0]["d"])
    /// print(d)
    /// show(factors)
    /// ```
    #[test]
    fn ten_steps_with_and_without_safeguards_are_those_of_the_authors() {
        let (found_d, factors) = ten_steps(settings(true));
        let d = [
            0.001,
            0.001,
            0.001,
            0.001,
            0.0012677936,
            0.0019883462,
            0.003313253,
            0.0054741944,
            0.008584688,
            0.012931813,
        ];
        let expected = [
            0.36556852,
            -1.319081,
            0.9447247,
            -0.6951373,
            1.568667,
            -0.07119298,
            -1.7558413,
            0.552752,
            -1.1318978,
            1.1319076,
            -0.50795406,
            1.7558497,
            -1.3190895,
            0.9447157,
            -0.6951471,
            1.5686591,
            -0.115988754,
            -1.7558491,
            0.94466424,
            -0.6943282,
            1.5686251,
            -0.116193,
            -1.7557644,
            0.50787836,
            -0.6951354,
            1.5686686,
            -0.07119032,
            -1.7558403,
            0.55275625,
            -1.1318963,
            1.1319094,
            -0.507952,
        ];
        assert_close(&found_d, &d, 1e-5);
        assert_close(&of_vars(&factors), &expected, 1e-6);

        let (found_d, factors) = ten_steps(settings(false));
        let d = [
            0.001,
            0.001,
            0.001,
            0.0014007393,
            0.0027845383,
            0.005820569,
            0.011500636,
            0.02175003,
            0.040538542,
            0.07524109,
        ];
        let expected = [
            0.44228235,
            -1.2308352,
            0.85926753,
            -0.61117387,
            1.4788954,
            0.008499835,
            -1.6645931,
            0.62819284,
            -1.0449378,
            1.045156,
            -0.42527324,
            1.6647836,
            -1.2310311,
            0.8590719,
            -0.6114021,
            1.4787242,
            -0.19435674,
            -1.6647712,
            0.8578423,
            -0.6624088,
            1.4779265,
            -0.19998786,
            -1.6627119,
            0.42343152,
            -0.6110909,
            1.4789208,
            0.0086112805,
            -1.6645377,
            0.62835217,
            -1.0448685,
            1.0451831,
            -0.42518303,
        ];
        assert_close(&found_d, &d, 1e-5);
        assert_close(&of_vars(&factors), &expected, 1e-6);
    }

    #[test]
    fn the_estimate_stops_at_its_limit() {
        let (free, _) = ten_steps(settings(false));
        let (capped, _) = ten_steps(ProdigySettings { max_d: Some(0.01), ..settings(false) });
        assert_eq!(capped[..6], free[..6]);
        assert_eq!(capped[6..], [0.01; 4]);
    }

    #[test]
    fn factors_that_are_no_longer_moved_count_as_if_their_gradients_were_zero() {
        let estimates = |is_left_out: bool| -> Vec<f64> {
            let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::Prodigy(settings(true))));
            let one_step = |step: usize| {
                let (mut moved, mut gradients) = (factors.clone(), pull(&factors));
                if step >= 5 {
                    let still: Vec<String> = moved.keys().skip(2).cloned().collect();
                    for name in still {
                        let zero = gradients[&name].zeros_like().unwrap();
                        gradients.insert(name.clone(), zero);
                        if is_left_out {
                            moved.remove(&name);
                            gradients.remove(&name);
                        }
                    }
                }
                optimizer.step(&moved, &gradients, 1.0, |_| 1.0).unwrap();
                optimizer.scalars()["d"]
            };
            (0..9).map(one_step).collect()
        };
        let (left_out, zero) = (estimates(true), estimates(false));
        assert!(left_out[8] > left_out[4], "{left_out:?}");
        left_out.iter().zip(&zero).for_each(|(a, b)| assert!((a / b - 1.0).abs() < 1e-6, "{left_out:?} {zero:?}"));
    }
}

//! AdamW (Loshchilov and Hutter 2019) on named f32 factors, with its moments in the open.
//!
//! The update is that of `torch.optim.AdamW`, in its order: the factor shrinks by 1 - lr * weight_decay, then moves by
//! lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps). The whole state is the step count and two tensors per
//! factor, so a run can be saved and resumed.

use super::MovedFactor;
use super::state::{FactorTensors, OptimizerState};
use crate::error::TrainError;

/// AdamW's constants. The learning rate is given at each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator, above 0.
    pub eps: f64,
    /// Decoupled weight decay: the factor shrinks by lr * `weight_decay` each step. 0 or more.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    /// 0.9, 0.999, 1e-8, weight decay 0.01: those of `torch.optim.AdamW`.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

#[derive(Debug, Clone)]
pub(super) struct AdamW {
    settings: AdamWSettings,
    /// m: running means of the gradients.
    first: FactorTensors,
    /// v: running means of the squared gradients.
    second: FactorTensors,
}

impl AdamW {
    pub(super) fn new(settings: AdamWSettings) -> Self {
        Self { settings, first: FactorTensors::new(), second: FactorTensors::new() }
    }

    /// `t`: this step, from 1.
    pub(super) fn move_factor(&mut self, factor: &MovedFactor<'_>, t: u64) -> Result<(), TrainError> {
        let AdamWSettings { beta1, beta2, eps, weight_decay } = self.settings;
        let MovedFactor { name, var, gradient, rate } = factor;
        let (first, second) = (factor.held_in(&self.first)?, factor.held_in(&self.second)?);
        let first = (&first + ((gradient - &first)? * (1.0 - beta1))?)?;
        let second = ((second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;

        let step_size = rate / (1.0 - beta1.powf(t as f64));
        let root_correction = (1.0 - beta2.powf(t as f64)).sqrt();
        let denominator = ((second.sqrt()? / root_correction)? + eps)?;
        let decayed = (var.as_detached_tensor() * (1.0 - rate * weight_decay))?;
        var.set(&(decayed - ((&first / denominator)? * step_size)?)?)?;

        self.first.insert((*name).to_owned(), first);
        self.second.insert((*name).to_owned(), second);
        Ok(())
    }

    pub(super) fn save(&self, state: &mut OptimizerState) {
        state.put("first", &self.first);
        state.put("second", &self.second);
    }

    pub(super) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        (self.first, self.second) = (state.take("first")?, state.take("second")?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Optimizer;
    use super::super::OptimizerSettings;
    use super::*;
    use crate::gradient_tree::Gradients;
    use candle_core::{Device, Tensor, Var};
    use std::collections::BTreeMap;

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 };

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 37 + seed * 101) % 64) as f32 - 31.5) / 16.0).collect()
    }

    fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn factors() -> BTreeMap<String, Var> {
        let var = |values, shape: &[usize]| Var::from_tensor(&tensor(values, shape)).unwrap();
        BTreeMap::from([("a".to_string(), var(values(6, 1), &[2, 3])), ("b".to_string(), var(values(4, 2), &[4]))])
    }

    fn gradients(step: usize) -> Gradients {
        let small = values(4, 20 + step).iter().map(|x| x * 0.001).collect();
        let a = tensor(values(6, 10 + step), &[2, 3]);
        Gradients::from([("a".to_string(), a), ("b".to_string(), tensor(small, &[4]))])
    }

    fn rate(step: usize) -> impl Fn(&str) -> f64 {
        move |name| if name == "a" { 0.02 } else { 0.005 } / (step + 1) as f64
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(found: &[f32], expected: &[f32], relative: f32) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= relative * e.abs(), "{found:?} are not {expected:?}");
        }
    }

    /// Golden numbers of torch 2.15, made by:
    /// ```python
    /// import torch
    ///
    /// def values(n, seed):  # the same numbers in both languages: exact in f32
    ///     return [((i * 37 + seed * 101) % 64 - 31.5) / 16 for i in range(n)]
    ///
    /// a = torch.nn.Parameter(torch.tensor(values(6, 1)).reshape(2, 3))
    /// b = torch.nn.Parameter(torch.tensor(values(4, 2)))
    /// optimizer = torch.optim.AdamW(
    ///     [{"params": [a], "lr": 0}, {"params": [b], "lr": 0}], betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    /// for step in range(5):
    ///     optimizer.param_groups[0]["lr"] = 0.02 / (step + 1)
    ///     optimizer.param_groups[1]["lr"] = 0.005 / (step + 1)
    ///     a.grad = torch.tensor(values(6, 10 + step)).reshape(2, 3)
    ///     b.grad = torch.tensor(values(4, 20 + step)) * 0.001
    ///     optimizer.step()
    /// state = optimizer.state[a]
    /// print(a.flatten().tolist(), b.tolist(), state["exp_avg"].flatten().tolist(), state["exp_avg_sq"].flatten().tolist(), sep="\n")
    /// ```
    #[test]
    fn five_steps_at_two_changing_rates_are_those_of_pytorch() {
        let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::AdamW(SETTINGS)));
        for step in 0..5 {
            optimizer.step(&factors, &gradients(step), 1.0, rate(step)).unwrap();
        }
        let a = [0.311_863_99, -1.325_491_2, 0.936_935_6, -0.724_594_5, 1.613_462, -0.116_744_53];
        let b = [-1.345_438_5, 0.973_439_9, -0.724_147_1, 1.596_192_6];
        let first = [0.030_477_18, 0.031_029_06, -0.037_579_056, -0.004_627_184, -0.044_075_306, 0.251_316_55];
        let second = [0.141_892_31, 0.125_217_2, 0.136_380_18, 0.112_405_725, 0.112_362_005, 0.141_714_41];
        assert_close(&flat(&factors["a"]), &a, 1e-6);
        assert_close(&flat(&factors["b"]), &b, 1e-6);
        let state = optimizer.state();
        assert_close(&flat(&state.tensors["first"]["a"]), &first, 1e-5);
        assert_close(&flat(&state.tensors["second"]["a"]), &second, 1e-6);
    }

    #[test]
    fn a_factor_follows_the_published_update_in_f64() {
        let (factors, mut optimizer) = (factors(), Optimizer::new(OptimizerSettings::AdamW(SETTINGS)));
        let start = flat(&factors["a"]);
        for step in 0..7 {
            optimizer.step(&factors, &gradients(step), 1.0, rate(step)).unwrap();
        }
        for (i, found) in flat(&factors["a"]).iter().enumerate() {
            let (mut p, mut m, mut v) = (f64::from(start[i]), 0.0, 0.0);
            for step in 0..7usize {
                let (g, lr, t) = (f64::from(values(6, 10 + step)[i]), rate(step)("a"), step as i32 + 1);
                m = 0.9 * m + 0.1 * g;
                v = 0.98 * v + 0.02 * g * g;
                p -= lr * 0.1 * p;
                p -= lr * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.98f64.powi(t))).sqrt() + 1e-6);
            }
            assert!((f64::from(*found) - p).abs() < 1e-6, "element {i}: {found} is not {p}");
        }
    }
}

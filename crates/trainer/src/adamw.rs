//! AdamW (Loshchilov and Hutter 2019) on named f32 factors, with its moments in the open.
//!
//! The update is that of `torch.optim.AdamW`, in its order: the factor shrinks by 1 - lr * weight_decay, then moves by
//! lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps). The whole state is the step count and two tensors per
//! factor, so a run can be saved and resumed.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};

use crate::error::TrainError;
use crate::gradient_tree::Gradients;

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

/// Running means of one factor's gradient, f32, of the factor's shape.
#[derive(Debug, Clone)]
pub struct Moments {
    /// m: running mean of the gradient.
    pub first: Tensor,
    /// v: running mean of the squared gradient.
    pub second: Tensor,
}

/// The optimizer: its constants and its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    settings: AdamWSettings,
    moments: BTreeMap<String, Moments>,
    num_steps: u64,
}

impl AdamW {
    /// An optimizer that has made no step; moments begin at zero.
    pub fn new(settings: AdamWSettings) -> Self {
        Self { settings, moments: BTreeMap::new(), num_steps: 0 }
    }

    /// An optimizer that goes on after `num_steps` steps with `moments` by factor name.
    pub fn from_state(settings: AdamWSettings, num_steps: u64, moments: BTreeMap<String, Moments>) -> Self {
        Self { settings, moments, num_steps }
    }

    /// Steps made so far: t of the bias correction.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// The moments by factor name; empty before the first step.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Makes one step on all `factors`, which are f32, each at the rate `learning_rate(name)`.
    ///
    /// # Errors
    /// [`TrainError::GradientNames`] if `gradients` are not of exactly these factors, before anything has changed;
    /// [`TrainError::Tensor`] if a shape or type does not fit.
    pub fn step(
        &mut self,
        factors: &BTreeMap<String, Var>,
        gradients: &Gradients,
        learning_rate: impl Fn(&str) -> f64,
    ) -> Result<(), TrainError> {
        let without_partner = factors.keys().find(|name| !gradients.contains_key(*name));
        if let Some(name) = without_partner.or_else(|| gradients.keys().find(|name| !factors.contains_key(*name))) {
            return Err(TrainError::GradientNames { name: name.clone() });
        }
        self.num_steps += 1;
        for (name, factor) in factors {
            self.step_factor(name, factor, &gradients[name], learning_rate(name))?;
        }
        Ok(())
    }

    fn step_factor(&mut self, name: &str, factor: &Var, gradient: &Tensor, lr: f64) -> Result<(), TrainError> {
        let AdamWSettings { beta1, beta2, eps, weight_decay } = self.settings;
        let gradient = gradient.to_dtype(DType::F32)?.detach();
        let (first, second) = match self.moments.get(name) {
            Some(Moments { first, second }) => (first.clone(), second.clone()),
            None => (gradient.zeros_like()?, gradient.zeros_like()?),
        };
        let first = (&first + ((&gradient - &first)? * (1.0 - beta1))?)?;
        let second = ((second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;

        let step_size = lr / (1.0 - beta1.powf(self.num_steps as f64));
        let root_correction = (1.0 - beta2.powf(self.num_steps as f64)).sqrt();
        let denominator = ((second.sqrt()? / root_correction)? + eps)?;
        let decayed = (factor.as_detached_tensor() * (1.0 - lr * weight_decay))?;
        factor.set(&(decayed - ((&first / denominator)? * step_size)?)?)?;

        self.moments.insert(name.to_string(), Moments { first, second });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

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
        let (factors, mut optimizer) = (factors(), AdamW::new(SETTINGS));
        for step in 0..5 {
            optimizer.step(&factors, &gradients(step), rate(step)).unwrap();
        }
        let a = [0.311_863_99, -1.325_491_2, 0.936_935_6, -0.724_594_5, 1.613_462, -0.116_744_53];
        let b = [-1.345_438_5, 0.973_439_9, -0.724_147_1, 1.596_192_6];
        let first = [0.030_477_18, 0.031_029_06, -0.037_579_056, -0.004_627_184, -0.044_075_306, 0.251_316_55];
        let second = [0.141_892_31, 0.125_217_2, 0.136_380_18, 0.112_405_725, 0.112_362_005, 0.141_714_41];
        assert_close(&flat(&factors["a"]), &a, 1e-6);
        assert_close(&flat(&factors["b"]), &b, 1e-6);
        assert_close(&flat(&optimizer.moments()["a"].first), &first, 1e-5);
        assert_close(&flat(&optimizer.moments()["a"].second), &second, 1e-6);
    }

    #[test]
    fn a_factor_follows_the_published_update_in_f64() {
        let (factors, mut optimizer) = (factors(), AdamW::new(SETTINGS));
        let start = flat(&factors["a"]);
        for step in 0..7 {
            optimizer.step(&factors, &gradients(step), rate(step)).unwrap();
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

    #[test]
    fn a_resumed_optimizer_makes_the_same_bits() {
        let (straight, mut optimizer) = (factors(), AdamW::new(SETTINGS));
        for step in 0..6 {
            optimizer.step(&straight, &gradients(step), rate(step)).unwrap();
        }
        let (resumed, mut before) = (factors(), AdamW::new(SETTINGS));
        for step in 0..3 {
            before.step(&resumed, &gradients(step), rate(step)).unwrap();
        }
        let mut after = AdamW::from_state(SETTINGS, before.num_steps(), before.moments().clone());
        for step in 3..6 {
            after.step(&resumed, &gradients(step), rate(step)).unwrap();
        }
        for name in ["a", "b"] {
            let bits = |v: &Tensor| flat(v).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&straight[name]), bits(&resumed[name]));
        }
    }

    #[test]
    fn a_factor_without_a_gradient_is_refused_and_nothing_moves() {
        let (factors, mut optimizer) = (factors(), AdamW::new(SETTINGS));
        let mut one_missing = gradients(0);
        one_missing.remove("b");
        let error = optimizer.step(&factors, &one_missing, rate(0)).unwrap_err();
        assert!(error.to_string().contains("`b`"), "{error}");
        assert_eq!(optimizer.num_steps(), 0);
        assert_eq!(flat(&factors["a"]), values(6, 1));
    }
}

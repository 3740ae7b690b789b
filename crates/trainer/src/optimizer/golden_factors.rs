//! Factors, gradients and rates of the tests that compare a rule with another program's: the same in Rust and in Python.
//!
//! ```python
//! # common.py
//! import torch
//!
//! def values(n, seed):  # the same numbers in both languages: exact in f32
//!     return [((i * 37 + seed * 101) % 64 - 31.5) / 16 for i in range(n)]
//!
//! SHAPES = [(2, 1, 3, 2), (3, 2, 1, 1), (2, 3), (2, 2, 2)]
//! RATES = [0.02, 0.01, 0.04, 0.005]
//! filled = lambda shape, seed: torch.tensor(values(torch.Size(shape).numel(), seed)).reshape(shape)
//! factors = [torch.nn.Parameter(filled(shape, i + 1)) for i, shape in enumerate(SHAPES)]
//! groups = [{"params": [p], "lr": 1.0} for p in factors]
//!
//! def given(i, step):  # the second factor's are a thousandth
//!     return filled(SHAPES[i], 10 + 7 * i + step) * (0.001 if i == 1 else 1)
//!
//! def train(optimizer, num_steps):
//!     for step in range(num_steps):
//!         for i, group in enumerate(optimizer.param_groups):
//!             group["lr"] = RATES[i] / (step + 1)
//!             factors[i].grad = given(i, step)
//!         optimizer.step()
//!
//! def show(tensors):
//!     print([x for t in tensors for x in t.detach().flatten().tolist()])
//! ```

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use super::{FactorTensors, Optimizer, OptimizerSettings};
use crate::gradient_tree::Gradients;

const NAMES: [&str; 4] = ["0-conv-down", "1-conv-up", "2-down", "3-three"];
const SHAPES: [&[usize]; 4] = [&[2, 1, 3, 2], &[3, 2, 1, 1], &[2, 3], &[2, 2, 2]];
const RATES: [f64; 4] = [0.02, 0.01, 0.04, 0.005];

/// `filled(SHAPES[i], seed)` times `scale`.
pub(super) fn filled(i: usize, seed: usize, scale: f32) -> Tensor {
    let value = |k: usize| (((k * 37 + seed * 101) % 64) as f32 - 31.5) / 16.0 * scale;
    let n = SHAPES[i].iter().product();
    Tensor::from_vec((0..n).map(value).collect::<Vec<f32>>(), SHAPES[i], &Device::Cpu).unwrap()
}

pub(super) fn factors() -> BTreeMap<String, Var> {
    let var = |i| Var::from_tensor(&filled(i, i + 1, 1.0)).unwrap();
    (0..4).map(|i| (NAMES[i].to_owned(), var(i))).collect()
}

/// `given`.
pub(super) fn gradients(step: usize) -> Gradients {
    let scale = |i| if i == 1 { 0.001 } else { 1.0 };
    (0..4).map(|i| (NAMES[i].to_owned(), filled(i, 10 + 7 * i + step, scale(i)))).collect()
}

/// A spring to each factor: curvature * (factor - 0.75 * its target).
pub(super) fn pull(factors: &BTreeMap<String, Var>) -> Gradients {
    let pull = |i: usize, factor: &Var| {
        let curvature = [0.2, 1.0, 0.5, 0.05][i];
        ((factor.as_detached_tensor() - filled(i, 50 + 5 * i, 0.75)).unwrap() * curvature).unwrap()
    };
    factors.iter().enumerate().map(|(i, (name, factor))| (name.clone(), pull(i, factor))).collect()
}

pub(super) fn full_rate(name: &str) -> f64 {
    RATES[NAMES.iter().position(|known| *known == name).unwrap()]
}

/// `train` from the first factors on; returns the last ones.
pub(super) fn trained(settings: OptimizerSettings, num_steps: usize) -> (BTreeMap<String, Var>, Optimizer) {
    let (factors, mut optimizer) = (factors(), Optimizer::new(settings));
    for step in 0..num_steps {
        optimizer.step(&factors, &gradients(step), 1.0 / (step + 1) as f64, full_rate).unwrap();
    }
    (factors, optimizer)
}

/// All numbers in order.
pub(super) fn flat<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<f32> {
    tensors.into_iter().flat_map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

pub(super) fn of_vars(factors: &BTreeMap<String, Var>) -> Vec<f32> {
    flat(factors.values().map(Var::as_tensor))
}

pub(super) fn of_slot(slot: &FactorTensors, i: usize) -> Vec<f32> {
    flat([&slot[NAMES[i]]])
}

/// Within `relative` of the largest of `expected`.
pub(super) fn assert_close(found: &[f32], expected: &[f32], relative: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= relative * largest, "{found:?} are not {expected:?}");
    }
}

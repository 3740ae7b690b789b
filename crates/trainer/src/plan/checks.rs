//! Settings out of range, collected: a run says all of them at once.

use loralei_model::{DeviceChoice, NumberTypes};

use super::BaseChoice;
use crate::config::{Dtype, ModelConfig};
use crate::error::Violation;

/// What was found wrong so far.
#[derive(Default)]
pub(crate) struct Checks {
    pub(super) violations: Vec<Violation>,
    pub(super) warnings: Vec<String>,
}

impl Checks {
    pub(crate) fn refuse(&mut self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        self.violations.push(Violation { key: key.to_string(), problem: problem.into(), hint: hint.into() });
    }

    pub(crate) fn at_least_one(&mut self, key: &str, value: u64, usual: &str) {
        if value < 1 {
            self.refuse(key, format!("{value} is below 1"), format!("set `{key}` to 1 or more; {usual}"));
        }
    }

    /// Refuses a key unless it is refused already.
    pub(crate) fn refuse_once(&mut self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        if self.violations.iter().all(|violation| violation.key != key) {
            self.refuse(key, problem, hint);
        }
    }

    pub(crate) fn has_violations(&self) -> bool {
        !self.violations.is_empty()
    }

    /// `usual` is what the hint recommends.
    pub(crate) fn within(&mut self, key: &str, value: f64, is_allowed: impl Fn(f64) -> bool, range: &str, usual: f64) {
        if !value.is_finite() || !is_allowed(value) {
            self.refuse(
                key,
                format!("{value} is not {range}"),
                format!("set `{key}` to a number {range}, such as {usual}"),
            );
        }
    }

    pub(super) fn base(&mut self, base: &str) -> BaseChoice {
        if base.trim().is_empty() {
            self.refuse(
                "model.base",
                "is empty",
                "set `model.base` to \"emoji\", a diffusers folder, a checkpoint file or the id of a model on the hub",
            );
        }
        BaseChoice::from(base)
    }

    pub(super) fn number_types(&mut self, model: &ModelConfig) -> (Dtype, NumberTypes) {
        self.violations.extend(model.compute.check(model.ops, model.device == DeviceChoice::Cpu).err());
        let dtype = model.dtype.unwrap_or_else(|| Dtype::usual(model.device));
        let types =
            model.compute.weights(model.weights).number_types(dtype, model.ops, model.device == DeviceChoice::Cpu);
        let types = types.unwrap_or_else(|violation| {
            self.violations.push(violation);
            candle_core::DType::from(dtype).into()
        });
        (dtype, types)
    }
}

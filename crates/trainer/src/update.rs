//! What the summed gradient of a step does: it is clipped, then the optimizer moves the factors.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::adamw::{AdamW, AdamWSettings};
use crate::clip::{clip_global_norm, clip_on_device};
use crate::error::TrainError;
use crate::gradient_tree::StepGradient;
use crate::loss_scale::LossScale;
use crate::network::Network;

/// What one step did.
pub(crate) struct StepDone {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    /// Before clipping. Infinite for a step in f16 that was left out because it overflowed.
    pub(crate) grad_norm: f64,
    pub(crate) learning_rate: f64,
}

/// The same, with numbers that may still be on their way.
pub(crate) struct StepUnderWay {
    step: u64,
    loss: Number,
    grad_norm: Number,
    learning_rate: f64,
}

enum Number {
    Known(f64),
    OnDevice { sum: Tensor, divisor: f64 },
}

impl Number {
    fn read(&self) -> Result<f64, TrainError> {
        match self {
            Self::Known(value) => Ok(*value),
            Self::OnDevice { sum, divisor } => {
                Ok(sum.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()? / divisor)
            }
        }
    }
}

impl StepUnderWay {
    /// Waits for the numbers.
    ///
    /// # Errors
    /// A loss or norm that is not finite.
    pub(crate) fn read(self) -> Result<StepDone, TrainError> {
        let Self { step, learning_rate, .. } = self;
        let (loss, grad_norm) = (self.loss.read()?, self.grad_norm.read()?);
        let is_checked = matches!(self.grad_norm, Number::Known(_));
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteLoss { step, loss });
        }
        if !is_checked && !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteNorm { step });
        }
        Ok(StepDone { step, loss, grad_norm, learning_rate })
    }
}

/// The end of every step, with the optimizer's state.
pub(crate) struct Update {
    device: Device,
    factors: BTreeMap<String, Var>,
    max_grad_norm: Option<f64>,
    adamw: AdamW,
    loss_scale: LossScale,
}

impl Update {
    /// For the factors of `network`, whose base computes in `dtype`.
    pub(crate) fn new(network: &Network, adamw: AdamWSettings, max_grad_norm: Option<f64>, dtype: DType) -> Self {
        Self {
            device: network.device().clone(),
            factors: network.factors().vars(),
            max_grad_norm,
            adamw: AdamW::new(adamw),
            loss_scale: LossScale::for_dtype(dtype),
        }
    }

    /// What the losses are to be multiplied with, and the gradients divided by.
    pub(crate) fn loss_scale(&self) -> &LossScale {
        &self.loss_scale
    }

    /// Moves every factor, each at the rate `rate_of` its key; `learning_rate` is what is reported.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub(crate) fn apply(
        &mut self,
        step: u64,
        mut summed: StepGradient,
        learning_rate: f64,
        rate_of: impl Fn(&str) -> f64,
    ) -> Result<StepUnderWay, TrainError> {
        let waits = self.device.is_cpu() || self.loss_scale.adapts();
        let (loss, grad_norm) = if waits {
            let loss = summed.loss()?;
            if !loss.is_finite() {
                return Err(TrainError::NonFiniteLoss { step, loss });
            }
            let norm = match clip_global_norm(&mut summed.gradients, self.max_grad_norm) {
                Err(TrainError::NonFiniteGradient { .. }) if self.loss_scale.update(false) => {
                    let (loss, grad_norm) = (Number::Known(loss), Number::Known(f64::INFINITY));
                    return Ok(StepUnderWay { step, loss, grad_norm, learning_rate });
                }
                other => other?,
            };
            // Of finite gradients the scale never complains.
            let _ = self.loss_scale.update(true);
            (Number::Known(loss), Number::Known(norm))
        } else {
            let norm = clip_on_device(&mut summed.gradients, self.max_grad_norm)?;
            let loss = Number::OnDevice { sum: summed.loss_sum.clone(), divisor: summed.weight };
            (loss, Number::OnDevice { sum: norm, divisor: 1.0 })
        };
        self.adamw.step(&self.factors, &summed.gradients, rate_of)?;
        Ok(StepUnderWay { step, loss, grad_norm, learning_rate })
    }
}

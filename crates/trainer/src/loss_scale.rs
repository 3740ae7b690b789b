//! The factor on the loss that keeps gradients in the range of f16 (Micikevicius et al. 2018, arXiv 1710.03740), found
//! as `torch.amp.GradScaler` finds it: halved when a gradient overflows, doubled after a long run of good steps.

use candle_core::DType;

use crate::error::TrainError;
use crate::gradient_tree::Gradients;
use crate::optimizer::OptimizerState;

const FIRST: f64 = 65536.0;
const GOOD_STEPS_TO_GROW: u32 = 2000;

/// Multiplies the loss before backward; gradients are divided by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LossScale {
    factor: f64,
    /// Steps since the last change; `None` if the factor never changes.
    good_steps: Option<u32>,
}

impl LossScale {
    /// For a base that computes in `dtype`: only f16 needs one.
    pub(crate) fn for_dtype(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self { factor: FIRST, good_steps: Some(0) },
            _ => Self { factor: 1.0, good_steps: None },
        }
    }

    /// What to multiply the loss with.
    pub(crate) fn factor(&self) -> f64 {
        self.factor
    }

    /// Whether gradients that are not finite are expected now and then.
    pub(crate) fn adapts(&self) -> bool {
        self.good_steps.is_some()
    }

    /// Divides gradients by the factor.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub(crate) fn remove(&self, gradients: &mut Gradients) -> Result<(), TrainError> {
        if self.factor != 1.0 {
            for gradient in gradients.values_mut() {
                *gradient = gradient.affine(1.0 / self.factor, 0.0)?;
            }
        }
        Ok(())
    }

    /// After a step whose gradients were `finite` or not. `false` if the factor cannot get smaller: then it is not the
    /// range of f16 that is at fault.
    #[must_use]
    pub(crate) fn update(&mut self, finite: bool) -> bool {
        let Some(good_steps) = &mut self.good_steps else { return finite };
        if !finite {
            self.factor /= 2.0;
            *good_steps = 0;
            return self.factor >= 1.0;
        }
        *good_steps += 1;
        if *good_steps == GOOD_STEPS_TO_GROW {
            self.factor *= 2.0;
            *good_steps = 0;
        }
        true
    }

    pub(crate) fn save(&self, state: &mut OptimizerState) {
        if let Some(good_steps) = self.good_steps {
            state.put_scalar("loss_scale", self.factor);
            state.put_scalar("loss_scale_good_steps", f64::from(good_steps));
        }
    }

    /// # Errors
    /// [`TrainError::OptimizerState`] if there is none although the factor changes.
    pub(crate) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        if let Some(good_steps) = &mut self.good_steps {
            self.factor = state.take_scalar("loss_scale")?;
            *good_steps = state.take_scalar("loss_scale_good_steps")? as u32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_f16_is_scaled() {
        for dtype in [DType::F32, DType::BF16] {
            let mut scale = LossScale::for_dtype(dtype);
            assert!(scale.factor() == 1.0 && scale.update(true) && !scale.update(false));
        }
    }

    #[test]
    fn it_halves_at_an_overflow_and_doubles_after_two_thousand_good_steps() {
        let mut scale = LossScale::for_dtype(DType::F16);
        assert!(scale.update(false));
        assert_eq!(scale.factor(), FIRST / 2.0);
        for _ in 0..GOOD_STEPS_TO_GROW - 1 {
            assert!(scale.update(true));
        }
        assert_eq!(scale.factor(), FIRST / 2.0);
        assert!(scale.update(true));
        assert_eq!(scale.factor(), FIRST);
    }

    #[test]
    fn it_gives_up_below_one() {
        let mut scale = LossScale::for_dtype(DType::F16);
        assert_eq!((0..40).take_while(|_| scale.update(false)).count(), 16);
    }
}

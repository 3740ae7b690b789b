//! Clipping by the global gradient norm (Pascanu et al. 2013), with PyTorch's rule.
//!
//! The norm is over all factors together, accumulated in f64 in the order of their names, so it neither overflows nor
//! depends on the machine.

use candle_core::{DType, Tensor};

use crate::error::TrainError;
use crate::gradient_tree::Gradients;

/// The Euclidean norm of all gradients together.
///
/// # Errors
/// [`TrainError::NonFiniteGradient`] naming the first factor, by name, with an infinite or undefined gradient;
/// [`TrainError::Tensor`].
pub fn global_norm(gradients: &Gradients) -> Result<f64, TrainError> {
    let mut sum_of_squares = 0.0;
    for (name, gradient) in gradients {
        let values = gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let squares: f64 = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        if !squares.is_finite() {
            return Err(TrainError::NonFiniteGradient { name: name.clone() });
        }
        sum_of_squares += squares;
    }
    Ok(sum_of_squares.sqrt())
}

/// Scales all gradients by `max_norm / (norm + 1e-6)` where that is below 1, and returns the norm before.
///
/// `max_norm`: `None` measures and checks only.
///
/// # Errors
/// As [`global_norm`]; the gradients are then as they were.
pub fn clip_global_norm(gradients: &mut Gradients, max_norm: Option<f64>) -> Result<f64, TrainError> {
    let norm = global_norm(gradients)?;
    if let Some(max_norm) = max_norm {
        // 1e-6 is PyTorch's `clip_grad_norm_`.
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            for gradient in gradients.values_mut() {
                *gradient = gradient.affine(scale, 0.0)?;
            }
        }
    }
    Ok(norm)
}

/// The same without waiting for the device: the norm, a scalar, stays there, and nothing is checked.
///
/// # Errors
/// [`TrainError::Tensor`].
pub fn clip_on_device(gradients: &mut Gradients, max_norm: Option<f64>) -> Result<Tensor, TrainError> {
    let squares = gradients.values().map(|gradient| gradient.to_dtype(DType::F32)?.sqr()?.sum_all());
    let norm = Tensor::stack(&squares.collect::<candle_core::Result<Vec<_>>>()?, 0)?.sum_all()?.sqrt()?;
    if let Some(max_norm) = max_norm {
        let scale = ((&norm + 1e-6)?.recip()? * max_norm)?.minimum(1.0)?;
        for gradient in gradients.values_mut() {
            *gradient = gradient.broadcast_mul(&scale.to_dtype(gradient.dtype())?)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn gradients(a: &[f32], b: &[f32]) -> Gradients {
        let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
        Gradients::from([("a".to_string(), tensor(a)), ("b".to_string(), tensor(b))])
    }

    #[test]
    fn gradients_are_scaled_together_to_the_largest_norm_allowed() {
        // 3^2 + 4^2 + 12^2 = 13^2
        let mut clipped = gradients(&[3.0, -4.0], &[12.0]);
        let norm = clip_global_norm(&mut clipped, Some(2.0)).unwrap();
        assert!((norm - 13.0).abs() < 1e-9);
        assert!((global_norm(&clipped).unwrap() - 2.0).abs() < 1e-5);
        let a = clipped["a"].to_vec1::<f32>().unwrap();
        assert!((a[0] - 6.0 / 13.0).abs() < 1e-6 && (a[1] + 8.0 / 13.0).abs() < 1e-6);
    }

    #[test]
    fn small_gradients_and_no_limit_leave_every_bit() {
        for limit in [Some(13.1), None] {
            let mut kept = gradients(&[3.0, -4.0], &[12.0]);
            assert!((clip_global_norm(&mut kept, limit).unwrap() - 13.0).abs() < 1e-9);
            assert_eq!(kept["a"].to_vec1::<f32>().unwrap(), [3.0, -4.0]);
            assert_eq!(kept["b"].to_vec1::<f32>().unwrap(), [12.0]);
        }
    }

    #[test]
    fn squares_beyond_f32_do_not_overflow() {
        let norm = global_norm(&gradients(&[3e30], &[4e30])).unwrap();
        assert!((norm / 5e30 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_first_factor_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = clip_global_norm(&mut gradients(&[1.0], &[0.5, bad]), Some(1.0)).unwrap_err();
            assert!(error.to_string().contains("`b`"), "{error}");
        }
        let error = global_norm(&gradients(&[f32::NAN], &[f32::NAN])).unwrap_err();
        assert!(error.to_string().contains("`a`"), "{error}");
    }

    #[test]
    fn clipping_on_the_device_is_clipping() {
        for max_norm in [None, Some(2.0), Some(100.0)] {
            let (mut here, mut there) = (gradients(&[3.0, -4.0, 0.5], &[12.0]), gradients(&[3.0, -4.0, 0.5], &[12.0]));
            let norm = clip_global_norm(&mut here, max_norm).unwrap();
            let on_device = clip_on_device(&mut there, max_norm).unwrap().to_scalar::<f32>().unwrap();
            assert!((f64::from(on_device) - norm).abs() < 1e-5 * norm);
            for (name, here) in &here {
                let (here, there) = (here.to_vec1::<f32>().unwrap(), there[name].to_vec1::<f32>().unwrap());
                here.iter().zip(there).for_each(|(a, b)| assert!((a - b).abs() <= 1e-6 * a.abs(), "{a} {b}"));
            }
        }
    }
}

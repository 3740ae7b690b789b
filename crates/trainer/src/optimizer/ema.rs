//! A running mean of the factors (Polyak averaging with exponential weights), which is used in their place.
//!
//! mean = decay * mean + (1 - decay) * factor after each step, from the first factors on. In the beginning the decay is
//! (1 + t) / (10 + t) where that is less, t steps having been made before: the warm-up of TensorFlow's
//! `ExponentialMovingAverage` with `num_updates`.

use std::collections::BTreeMap;

use candle_core::Var;

use super::state::{FactorTensors, OptimizerState};
use crate::error::TrainError;

/// The means.
#[derive(Debug, Clone)]
pub(crate) struct Ema {
    /// Above 0, below 1.
    decay: f64,
    means: FactorTensors,
}

impl Ema {
    /// # Errors
    /// [`TrainError::Tensor`] without memory.
    pub(crate) fn new(decay: f64, factors: &BTreeMap<String, Var>) -> Result<Self, TrainError> {
        let copy = |(name, var): (&String, &Var)| Ok((name.clone(), var.as_detached_tensor().copy()?));
        Ok(Self { decay, means: factors.iter().map(copy).collect::<candle_core::Result<_>>()? })
    }

    pub(crate) fn means(&self) -> &FactorTensors {
        &self.means
    }

    /// After a step; `num_before` were made before it.
    ///
    /// # Errors
    /// [`TrainError::Tensor`].
    pub(crate) fn update(&mut self, factors: &BTreeMap<String, Var>, num_before: u64) -> Result<(), TrainError> {
        let t = num_before as f64;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        for (name, mean) in &mut self.means {
            *mean = ((&*mean * decay)? + (factors[name].as_detached_tensor() * (1.0 - decay))?)?;
        }
        Ok(())
    }

    pub(crate) fn save(&self, state: &mut OptimizerState) {
        state.put("ema", &self.means);
    }

    /// # Errors
    /// [`TrainError::OptimizerState`] if there is none.
    pub(crate) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        let means = state.take("ema")?;
        if let Some(name) = self.means.keys().find(|name| !means.contains_key(*name)) {
            return Err(TrainError::OptimizerState { reason: format!("it has no mean of `{name}`") });
        }
        self.means = means;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden_factors::{assert_close, factors, filled, flat, of_vars};
    use super::*;

    /// Moves every factor to other numbers.
    fn moved(factors: &BTreeMap<String, Var>, step: usize) {
        factors.values().enumerate().for_each(|(i, var)| var.set(&filled(i, 30 + 3 * i + step, 1.0)).unwrap());
    }

    #[test]
    fn the_mean_follows_its_formula_through_the_warm_up_and_after_it() {
        let factors = factors();
        let mut expected: Vec<f64> = of_vars(&factors).into_iter().map(f64::from).collect();
        let mut ema = Ema::new(0.4, &factors).unwrap();
        for step in 0..9 {
            moved(&factors, step);
            ema.update(&factors, step as u64).unwrap();
            // 1/10, 2/11, 3/12, 4/13, 5/14 and 0.4 from 6/15 on.
            let decay = if step < 5 { (1 + step) as f64 / (10 + step) as f64 } else { 0.4 };
            let values = of_vars(&factors);
            expected.iter_mut().zip(values).for_each(|(e, x)| *e = decay * *e + (1.0 - decay) * f64::from(x));
        }
        let expected: Vec<f32> = expected.into_iter().map(|x| x as f32).collect();
        assert_close(&flat(ema.means().values()), &expected, 1e-6);
        assert_ne!(flat(ema.means().values()), of_vars(&factors));
    }

    #[test]
    fn a_state_without_the_mean_of_a_factor_is_refused_by_its_name() {
        let factors = factors();
        let mut ema = Ema::new(0.4, &factors).unwrap();
        let mut state = OptimizerState::default();
        ema.save(&mut state);
        state.tensors.get_mut("ema").unwrap().remove("2-down");
        let error = ema.load(&mut state).unwrap_err();
        assert!(error.to_string().contains("`2-down`"), "{error}");
    }
}

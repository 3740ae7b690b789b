//! Adafactor (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4) at a given learning rate, without momentum.
//!
//! Of the squared gradient only means over rows and over columns are kept, over the last two dimensions, so the state of
//! a factor (r, in) is r + in numbers. The arithmetic is that of `transformers.Adafactor` with `relative_step`,
//! `scale_parameter` and `warmup_init` off: at step t (from 1) both means decay by 1 - t^-0.8, and an update whose root
//! mean square is beyond 1 is scaled down to it.

use candle_core::D;

use super::MovedFactor;
use super::state::{FactorTensors, OptimizerState};
use crate::error::TrainError;

/// Exponent of the decay; the paper's section 7.2.
const DECAY_EXPONENT: f64 = -0.8;
/// Root mean square of the longest update; the paper's section 6.
const CLIP_THRESHOLD: f64 = 1.0;
/// The least that is added to a squared gradient, so that one of zero stays a number in f32; the paper's constant.
const LEAST_EPS: f64 = 1e-30;

/// Adafactor's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdafactorSettings {
    /// Its square is added to the squared gradients, above 0. The paper's constant is 1e-15.
    pub eps: f64,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Adafactor {
    settings: AdafactorSettings,
    /// Means over the last dimension.
    rows: FactorTensors,
    /// Means over the one before.
    columns: FactorTensors,
}

impl Adafactor {
    pub(super) fn new(settings: AdafactorSettings) -> Self {
        Self { settings, rows: FactorTensors::new(), columns: FactorTensors::new() }
    }

    pub(super) fn move_factor(&mut self, factor: &MovedFactor<'_>, t: u64) -> Result<(), TrainError> {
        let AdafactorSettings { eps, weight_decay } = self.settings;
        let MovedFactor { name, var, gradient, rate } = factor;
        let squares = (gradient.sqr()? + (eps * eps).max(LEAST_EPS))?;
        let new_part = (t as f64).powf(DECAY_EXPONENT);
        let mean = |held: &FactorTensors, dim: D| {
            let new = squares.mean_keepdim(dim)?;
            match held.get(*name) {
                Some(held) => (held * (1.0 - new_part))? + (new * new_part)?,
                None => Ok(new), // the first step's decay is 0
            }
        };
        let (rows, columns) = (mean(&self.rows, D::Minus1)?, mean(&self.columns, D::Minus2)?);
        // The squares' estimate is rows columns / mean(rows): its root by parts, which neither over- nor underflows.
        let rows_part = rows.broadcast_div(&rows.mean_keepdim(D::Minus2)?)?.sqrt()?;
        let update = gradient.broadcast_div(&rows_part)?.broadcast_div(&columns.sqrt()?)?;
        let rms = update.sqr()?.mean_all()?.sqrt()?;
        let update = update.broadcast_div(&(rms / CLIP_THRESHOLD)?.maximum(1.0)?)?;
        let decayed = (var.as_detached_tensor() * (1.0 - rate * weight_decay))?;
        var.set(&(decayed - (update * *rate)?)?)?;
        self.rows.insert((*name).to_owned(), rows);
        self.columns.insert((*name).to_owned(), columns);
        Ok(())
    }

    pub(super) fn save(&self, state: &mut OptimizerState) {
        state.put("rows", &self.rows);
        state.put("columns", &self.columns);
    }

    pub(super) fn load(&mut self, state: &mut OptimizerState) -> Result<(), TrainError> {
        (self.rows, self.columns) = (state.take("rows")?, state.take("columns")?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden_factors::{assert_close, factors, full_rate, gradients, of_slot, of_vars, trained};
    use super::super::{Optimizer, OptimizerSettings};
    use super::*;

    /// Golden numbers of transformers 5.24, made after `common.py` by:
    /// ```python
    /// from transformers import Adafactor
    /// optimizer = Adafactor(groups, eps=(1e-4, 1e-3), weight_decay=0.1, relative_step=False, scale_parameter=False)
    /// train(optimizer, 6)
    /// show(factors)
    /// state = optimizer.state[factors[0]]
    /// show([state["exp_avg_sq_row"]])
    /// show([state["exp_avg_sq_col"]])
    /// ```
    #[test]
    fn six_steps_at_four_changing_rates_are_those_of_transformers() {
        let settings = AdafactorSettings { eps: 1e-2, weight_decay: 0.1 };
        let (factors, optimizer) = trained(OptimizerSettings::Adafactor(settings), 6);
        let expected = [
            0.32203496,
            -1.3192812,
            0.9471846,
            -0.70898473,
            1.592966,
            -0.12413723,
            -1.7550024,
            0.50648427,
            -1.1511531,
            1.129514,
            -0.53559333,
            1.7877995,
            -1.3422095,
            0.96595454,
            -0.7189175,
            1.5898823,
            -0.09236481,
            -1.7775818,
            0.9325895,
            -0.67981887,
            1.6074281,
            -0.10223523,
            -1.714775,
            0.49278858,
            -0.7215912,
            1.594599,
            -0.09118862,
            -1.7867411,
            0.53462666,
            -1.1599828,
            1.1549699,
            -0.53589195,
        ];
        let rows = [1.2594669, 1.1890918, 1.5076916, 1.4615773, 1.3442699, 1.3040977];
        let columns = [1.4757923, 1.1617079, 1.2306958, 1.5092676];
        assert_close(&of_vars(&factors), &expected, 1e-6);
        assert_close(&of_slot(&optimizer.state().tensors["rows"], 0), &rows, 1e-6);
        assert_close(&of_slot(&optimizer.state().tensors["columns"], 0), &columns, 1e-6);
    }

    #[test]
    fn a_gradient_of_zero_moves_nothing_but_the_decay_however_small_eps_is() {
        for eps in [1e-8, 1e-30] {
            let (factors, start) = (factors(), of_vars(&factors()));
            let mut optimizer =
                Optimizer::new(OptimizerSettings::Adafactor(AdafactorSettings { eps, weight_decay: 0.0 }));
            let zeros = gradients(0).into_iter().map(|(name, g)| (name, g.zeros_like().unwrap())).collect();
            optimizer.step(&factors, &zeros, 1.0, full_rate).unwrap();
            assert_eq!(of_vars(&factors), start);
        }
    }
}

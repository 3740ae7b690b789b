//! What a page's script draws, as JSON.

use serde::Serialize;

use crate::curve::Curve;
use crate::run_folder::{RunRecord, StepMetrics, Validation};
use crate::sample_table::SampleTable;

/// Seconds between reloads of the page of a run that goes on.
const RELOAD_S: u32 = 30;

/// Curves and pictures of a run. Curves without a number are left out.
#[derive(Debug, Serialize)]
pub(crate) struct RunData {
    /// Only while the run goes on.
    pub reload_s: Option<u32>,
    pub loss: Option<Curve>,
    pub learning_rate: Option<Curve>,
    pub grad_norm: Option<Curve>,
    /// Prodigy's step size.
    pub d: Option<Curve>,
    /// Modules whose norm was cut.
    pub num_scaled: Option<Curve>,
    pub validation: ValidationCurves,
    pub samples: SampleTable,
}

/// Measurements on fixed images. All curves share their steps.
#[derive(Debug, Serialize)]
pub(crate) struct ValidationCurves {
    pub loss: Option<Curve>,
    pub train_loss: Option<Curve>,
    pub best_step: Option<u64>,
    pub bins: Vec<BinCurve>,
    pub leak_with_trigger: Option<Curve>,
    pub leak_without_trigger: Option<Curve>,
}

/// The loss near one timestep.
#[derive(Debug, Serialize)]
pub(crate) struct BinCurve {
    pub timestep: f64,
    pub loss: Curve,
}

impl RunData {
    pub(crate) fn of(record: &RunRecord, samples: SampleTable) -> Self {
        let curve = |value: fn(&StepMetrics) -> Option<f64>| {
            let points = record.metrics.iter().map(|line| (line.step(), value(line)));
            Some(Curve::of(points)).filter(Curve::has_values)
        };
        let goes_on =
            record.status.as_ref().is_some_and(|status| ["preparing", "training"].contains(&status.state.as_str()));
        Self {
            reload_s: goes_on.then_some(RELOAD_S),
            loss: curve(StepMetrics::loss),
            learning_rate: curve(StepMetrics::learning_rate),
            grad_norm: curve(StepMetrics::grad_norm),
            d: curve(StepMetrics::d),
            num_scaled: curve(StepMetrics::num_scaled),
            validation: ValidationCurves::of(record),
            samples,
        }
    }

    pub(crate) fn has_curves(&self) -> bool {
        self.loss.is_some() || self.learning_rate.is_some() || self.validation.loss.is_some()
    }
}

impl ValidationCurves {
    fn of(record: &RunRecord) -> Self {
        let lines = &record.validation;
        let curve = |value: &dyn Fn(&Validation) -> Option<f64>| {
            let points = lines.iter().map(|line| (line.step, value(line)));
            Some(Curve::of(points)).filter(Curve::has_values)
        };
        let mut timesteps: Vec<f64> = lines.iter().flat_map(|line| line.bins.iter().map(|bin| bin.timestep)).collect();
        timesteps.sort_by(f64::total_cmp);
        timesteps.dedup();
        let bin = |timestep: f64| {
            let of_line = |line: &Validation| line.bins.iter().find(|bin| bin.timestep == timestep)?.loss;
            Some(BinCurve { timestep, loss: curve(&of_line)? })
        };
        Self {
            loss: curve(&|line| line.loss),
            train_loss: curve(&|line| line.train_loss),
            best_step: lines.iter().rev().find(|line| line.best).map(|line| line.step),
            bins: timesteps.into_iter().filter_map(bin).collect(),
            leak_with_trigger: curve(&|line| line.leak.as_ref()?.with_trigger),
            leak_without_trigger: curve(&|line| line.leak.as_ref()?.without_trigger),
        }
    }
}

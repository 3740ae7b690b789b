//! How a gradient moves the factors: five rules behind one door.
//!
//! Every rule is a function of (factors, gradients, learning rates, its state), and the state is in the open:
//! [`OptimizerState`] holds all that the next step depends on, so that a run can be saved and go on with the same bits.
//! Factors are named, f32 and of two dimensions or more; state tensors lie where the factors do.

mod adafactor;
mod adamw;
mod ema;
mod factor_pair;
mod factor_rates;
#[cfg(test)]
mod golden_factors;
mod lion;
mod max_norm;
mod preconditioner;
mod prodigy;
mod schedule_free;
mod state;

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::TrainError;
use crate::gradient_tree::Gradients;

use adafactor::Adafactor;
pub use adafactor::AdafactorSettings;
use adamw::AdamW;
pub use adamw::AdamWSettings;
pub(crate) use ema::Ema;
pub(crate) use factor_pair::FactorPair;
pub(crate) use factor_rates::FactorRates;
use lion::Lion;
pub use lion::LionSettings;
pub(crate) use max_norm::MaxNorm;
pub(crate) use preconditioner::Preconditioner;
use prodigy::Prodigy;
pub use prodigy::ProdigySettings;
use schedule_free::ScheduleFree;
pub use state::{FactorTensors, OptimizerState};

/// A rule and its constants. Learning rates are given at each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OptimizerSettings {
    /// Loshchilov and Hutter 2019.
    AdamW(AdamWSettings),
    /// Chen et al. 2023.
    Lion(LionSettings),
    /// Mishchenko and Defazio 2023.
    Prodigy(ProdigySettings),
    /// Defazio et al. 2024.
    ScheduleFree(AdamWSettings),
    /// Shazeer and Stern 2018.
    Adafactor(AdafactorSettings),
}

/// Name and arguments, as kohya's files have them: `AdamW(betas=(0.9, 0.999),eps=0.00000001,weight_decay=0.01)`.
impl fmt::Display for OptimizerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let python = |value: bool| if value { "True" } else { "False" };
        match self {
            Self::AdamW(AdamWSettings { beta1, beta2, eps, weight_decay }) => {
                write!(f, "AdamW(betas=({beta1}, {beta2}),eps={eps},weight_decay={weight_decay})")
            }
            Self::ScheduleFree(AdamWSettings { beta1, beta2, eps, weight_decay }) => {
                write!(f, "AdamWScheduleFree(betas=({beta1}, {beta2}),eps={eps},weight_decay={weight_decay})")
            }
            Self::Lion(LionSettings { beta1, beta2, weight_decay }) => {
                write!(f, "Lion(betas=({beta1}, {beta2}),weight_decay={weight_decay})")
            }
            Self::Prodigy(settings) => {
                let ProdigySettings { initial_d, d_coefficient, max_d, .. } = settings;
                let AdamWSettings { beta1, beta2, eps, weight_decay } = settings.adamw;
                write!(f, "Prodigy(betas=({beta1}, {beta2}),eps={eps},weight_decay={weight_decay}")?;
                write!(f, ",d0={initial_d},d_coef={d_coefficient}")?;
                if let Some(max_d) = max_d {
                    write!(f, ",max_d={max_d}")?;
                }
                let (bias, safeguard) = (python(settings.bias_correction), python(settings.safeguard_warmup));
                write!(f, ",use_bias_correction={bias},safeguard_warmup={safeguard})")
            }
            Self::Adafactor(AdafactorSettings { eps, weight_decay }) => {
                write!(f, "Adafactor(eps={eps},weight_decay={weight_decay},relative_step=False,scale_parameter=False)")
            }
        }
    }
}

/// A rule with its state.
#[derive(Debug, Clone)]
pub struct Optimizer {
    rule: Rule,
    num_steps: u64,
}

#[derive(Debug, Clone)]
enum Rule {
    AdamW(AdamW),
    Lion(Lion),
    Prodigy(Prodigy),
    ScheduleFree(ScheduleFree),
    Adafactor(Adafactor),
}

impl Optimizer {
    /// An optimizer that has made no step.
    pub fn new(settings: OptimizerSettings) -> Self {
        let rule = match settings {
            OptimizerSettings::AdamW(settings) => Rule::AdamW(AdamW::new(settings)),
            OptimizerSettings::Lion(settings) => Rule::Lion(Lion::new(settings)),
            OptimizerSettings::Prodigy(settings) => Rule::Prodigy(Prodigy::new(settings)),
            OptimizerSettings::ScheduleFree(settings) => Rule::ScheduleFree(ScheduleFree::new(settings)),
            OptimizerSettings::Adafactor(settings) => Rule::Adafactor(Adafactor::new(settings)),
        };
        Self { rule, num_steps: 0 }
    }

    /// Steps made so far.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// Makes one step on all `factors`, which are f32, each at the rate `schedule * full_rate(name)`. What is left out of both
    /// `factors` and `gradients` stays as it is, with its state.
    ///
    /// `schedule`: the schedule's part of the full rates at this step, 0 to 1. Prodigy takes the largest rate for all.
    ///
    /// # Errors
    /// [`TrainError::GradientNames`] if `gradients` are not of exactly these factors, before anything has changed;
    /// [`TrainError::Tensor`] if a shape or type does not fit.
    pub fn step(
        &mut self,
        factors: &BTreeMap<String, Var>,
        gradients: &Gradients,
        schedule: f64,
        full_rate: impl Fn(&str) -> f64,
    ) -> Result<(), TrainError> {
        let without_partner = factors.keys().find(|name| !gradients.contains_key(*name));
        if let Some(name) = without_partner.or_else(|| gradients.keys().find(|name| !factors.contains_key(*name))) {
            return Err(TrainError::GradientNames { name: name.clone() });
        }
        self.num_steps += 1;
        let (t, rate) = (self.num_steps, |name: &str| schedule * full_rate(name));
        let mut moved = Vec::with_capacity(factors.len());
        for (name, var) in factors {
            let gradient = gradients[name].to_dtype(DType::F32)?.detach();
            moved.push(MovedFactor { name, var, gradient, rate: rate(name) });
        }
        match &mut self.rule {
            Rule::AdamW(rule) => moved.iter().try_for_each(|factor| rule.move_factor(factor, t)),
            Rule::Lion(rule) => moved.iter().try_for_each(|factor| rule.move_factor(factor)),
            Rule::Prodigy(rule) => rule.move_all(&moved, t),
            Rule::ScheduleFree(rule) => rule.move_all(&moved, t, schedule),
            Rule::Adafactor(rule) => moved.iter().try_for_each(|factor| rule.move_factor(factor, t)),
        }
    }

    /// What the rule found, by its name in `metrics.jsonl`: Prodigy's estimate `d`.
    pub fn scalars(&self) -> BTreeMap<&'static str, f64> {
        match &self.rule {
            Rule::Prodigy(rule) => BTreeMap::from([("d", rule.d())]),
            _ => BTreeMap::new(),
        }
    }

    /// The factors to use instead of those that gradients are taken at, if the rule has such: schedule-free's x. Empty before
    /// the first step.
    pub fn averages(&self) -> Option<&FactorTensors> {
        match &self.rule {
            Rule::ScheduleFree(rule) => Some(rule.averages()),
            _ => None,
        }
    }

    /// All that the next step depends on, besides factors and gradients.
    pub fn state(&self) -> OptimizerState {
        let mut state = OptimizerState { num_steps: self.num_steps, ..OptimizerState::default() };
        match &self.rule {
            Rule::AdamW(rule) => rule.save(&mut state),
            Rule::Lion(rule) => rule.save(&mut state),
            Rule::Prodigy(rule) => rule.save(&mut state),
            Rule::ScheduleFree(rule) => rule.save(&mut state),
            Rule::Adafactor(rule) => rule.save(&mut state),
        }
        state
    }

    /// Goes on from a state that an optimizer of the same settings gave.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] if it is not of this rule.
    pub fn load(&mut self, mut state: OptimizerState) -> Result<(), TrainError> {
        match &mut self.rule {
            Rule::AdamW(rule) => rule.load(&mut state)?,
            Rule::Lion(rule) => rule.load(&mut state)?,
            Rule::Prodigy(rule) => rule.load(&mut state)?,
            Rule::ScheduleFree(rule) => rule.load(&mut state)?,
            Rule::Adafactor(rule) => rule.load(&mut state)?,
        }
        self.num_steps = state.num_steps;
        state.expect_empty()
    }
}

/// A factor in a step.
struct MovedFactor<'a> {
    name: &'a str,
    var: &'a Var,
    /// f32, outside of any graph.
    gradient: Tensor,
    rate: f64,
}

impl MovedFactor<'_> {
    /// Its tensor in `slot`, or zeros.
    fn held_in(&self, slot: &FactorTensors) -> candle_core::Result<Tensor> {
        slot.get(self.name).map_or_else(|| self.gradient.zeros_like(), |held| Ok(held.clone()))
    }
}

/// The number type for sums that must not lose digits: f64, where the device has it.
fn wide(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

#[cfg(test)]
mod tests {
    use super::golden_factors::{factors, full_rate, gradients, of_vars, trained};
    use super::*;

    fn every_rule() -> [OptimizerSettings; 5] {
        let adamw = AdamWSettings { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 };
        [
            OptimizerSettings::AdamW(adamw),
            OptimizerSettings::Lion(LionSettings { beta1: 0.9, beta2: 0.99, weight_decay: 0.1 }),
            OptimizerSettings::Prodigy(ProdigySettings {
                adamw,
                initial_d: 1e-2,
                d_coefficient: 2.0,
                max_d: None,
                safeguard_warmup: false,
                bias_correction: true,
            }),
            OptimizerSettings::ScheduleFree(adamw),
            OptimizerSettings::Adafactor(AdafactorSettings { eps: 1e-8, weight_decay: 0.1 }),
        ]
    }

    fn deep_copies(factors: &BTreeMap<String, Var>) -> BTreeMap<String, Var> {
        let copy = |var: &Var| Var::from_tensor(&var.as_detached_tensor().copy().unwrap()).unwrap();
        factors.iter().map(|(name, var)| (name.clone(), copy(var))).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn ten_steps_straight_have_the_bits_of_four_and_six_after_a_state_was_taken_out_and_put_back() {
        for settings in every_rule() {
            let (straight, of_straight) = trained(settings, 10);
            let (stopped, of_stopped) = trained(settings, 4);
            let (factors, mut optimizer) = (deep_copies(&stopped), Optimizer::new(settings));
            let state = of_stopped.state();
            // What goes on in the first run must not reach into the state that was taken out.
            stopped.values().for_each(|var| var.set(&var.zeros_like().unwrap()).unwrap());
            optimizer.load(state).unwrap();
            for step in 4..10 {
                optimizer.step(&factors, &gradients(step), 1.0 / (step + 1) as f64, full_rate).unwrap();
            }
            assert_eq!(bits(&of_vars(&factors)), bits(&of_vars(&straight)), "{settings}");
            assert_eq!(optimizer.num_steps(), 10);
            let (found, expected) = (optimizer.state(), of_straight.state());
            assert_eq!(found.scalars, expected.scalars, "{settings}");
            assert_ne!(bits(&of_vars(&stopped)), bits(&of_vars(&straight)));
        }
    }

    #[test]
    fn a_state_before_the_first_step_begins_the_run_even_where_empty_slots_got_lost() {
        for settings in every_rule() {
            let mut state = Optimizer::new(settings).state();
            state.tensors.retain(|_, slot| !slot.is_empty());
            let (factors, mut optimizer) = (factors(), Optimizer::new(settings));
            optimizer.load(state).unwrap();
            for step in 0..3 {
                optimizer.step(&factors, &gradients(step), 1.0 / (step + 1) as f64, full_rate).unwrap();
            }
            assert_eq!(bits(&of_vars(&factors)), bits(&of_vars(&trained(settings, 3).0)), "{settings}");
        }
    }

    #[test]
    fn a_state_of_another_rule_is_refused() {
        let states: Vec<OptimizerState> = every_rule().map(|rule| trained(rule, 1).1.state()).into();
        for (i, settings) in every_rule().into_iter().enumerate() {
            for (k, state) in states.iter().enumerate() {
                let loaded = Optimizer::new(settings).load(state.clone());
                assert_eq!(loaded.is_ok(), i == k, "{settings}: {loaded:?}");
            }
        }
    }

    #[test]
    fn a_factor_that_is_left_out_stays_as_it_is_with_its_state() {
        for settings in every_rule() {
            let (factors, mut optimizer) = trained(settings, 3);
            let (held, slots) = (deep_copies(&factors), optimizer.state().tensors);
            let (mut some, mut their) = (factors.clone(), gradients(3));
            let name = "2-down";
            some.remove(name);
            their.remove(name);
            optimizer.step(&some, &their, 0.5, full_rate).unwrap();
            assert_eq!(of_vars(&factors)[18..24], of_vars(&held)[18..24], "{settings}");
            assert_ne!(of_vars(&factors)[..18], of_vars(&held)[..18], "{settings}");
            // Prodigy's estimate is of all factors: only their part in it fades.
            for (slot, before) in slots.iter().filter(|(slot, _)| *slot != "gradient_sum") {
                let after = &optimizer.state().tensors[slot][name];
                let difference = (after - &before[name]).unwrap().abs().unwrap().sum_all().unwrap();
                assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{settings}: {slot}");
            }
        }
    }

    #[test]
    fn a_factor_without_a_gradient_is_refused_and_nothing_moves() {
        for settings in every_rule() {
            let (factors, mut optimizer) = (factors(), Optimizer::new(settings));
            let (start, mut one_missing) = (of_vars(&factors), gradients(0));
            one_missing.remove("2-down");
            let error = optimizer.step(&factors, &one_missing, 1.0, full_rate).unwrap_err();
            assert!(error.to_string().contains("`2-down`"), "{error}");
            assert_eq!(optimizer.num_steps(), 0);
            assert_eq!(of_vars(&factors), start);
        }
    }

    #[test]
    fn names_and_arguments_are_those_of_the_libraries() {
        let names = every_rule().map(|rule| rule.to_string());
        assert_eq!(names[0], "AdamW(betas=(0.9, 0.98),eps=0.000001,weight_decay=0.1)");
        assert_eq!(names[1], "Lion(betas=(0.9, 0.99),weight_decay=0.1)");
        assert_eq!(
            names[2],
            "Prodigy(betas=(0.9, 0.98),eps=0.000001,weight_decay=0.1,d0=0.01,d_coef=2,use_bias_correction=True,\
             safeguard_warmup=False)"
        );
        assert_eq!(names[3], "AdamWScheduleFree(betas=(0.9, 0.98),eps=0.000001,weight_decay=0.1)");
        assert_eq!(names[4], "Adafactor(eps=0.00000001,weight_decay=0.1,relative_step=False,scale_parameter=False)");
    }
}

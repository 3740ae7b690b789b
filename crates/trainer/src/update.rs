//! What the summed gradient of a step does: it is clipped, preconditioned, the optimizer moves the factors, those that got
//! too long are shortened, and the running mean follows. What is off is not computed.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use loralei_model::AdapterSet;

use crate::clip::{clip_global_norm, clip_on_device};
use crate::error::TrainError;
use crate::gradient_tree::{Gradients, StepGradient};
use crate::loss_scale::LossScale;
use crate::optimizer::{Ema, FactorPair, FactorRates, MaxNorm, Optimizer, OptimizerState, Preconditioner};
use crate::plan::OptimizerPlan;

/// What one step did.
pub(crate) struct StepDone {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    /// Before clipping. Infinite for a step in f16 that was left out because it overflowed.
    pub(crate) grad_norm: f64,
    pub(crate) learning_rate: f64,
    /// What only some settings have, by its name in `metrics.jsonl`: `d`, Prodigy's estimate; `num_scaled`, modules that were
    /// shortened.
    pub(crate) scalars: BTreeMap<&'static str, f64>,
}

/// The same, with numbers that may still be on their way.
pub(crate) struct StepUnderWay {
    step: u64,
    loss: Number,
    grad_norm: Number,
    learning_rate: f64,
    scalars: BTreeMap<&'static str, Number>,
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
    /// Which step, from 0.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Waits for the numbers.
    ///
    /// # Errors
    /// A loss or norm that is not finite.
    pub(crate) fn read(self) -> Result<StepDone, TrainError> {
        let Self { step, learning_rate, .. } = self;
        let scalars = self.scalars.iter().map(|(name, number)| Ok((*name, number.read()?)));
        let scalars = scalars.collect::<Result<_, TrainError>>()?;
        let (loss, grad_norm) = (self.loss.read()?, self.grad_norm.read()?);
        let is_checked = matches!(self.grad_norm, Number::Known(_));
        if !loss.is_finite() {
            return Err(TrainError::NonFiniteLoss { step, loss });
        }
        if !is_checked && !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteNorm { step });
        }
        Ok(StepDone { step, loss, grad_norm, learning_rate, scalars })
    }
}

/// The end of every step, with the optimizer's state.
pub(crate) struct Update {
    device: Device,
    factors: BTreeMap<String, Var>,
    pairs: Vec<FactorPair>,
    rates: FactorRates,
    max_grad_norm: Option<f64>,
    preconditioner: Option<Preconditioner>,
    optimizer: Optimizer,
    max_norm: Option<MaxNorm>,
    ema: Option<Ema>,
    loss_scale: LossScale,
}

impl Update {
    /// For `factors`, which lie on `device`, under a base that computes in `dtype`.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] without memory.
    pub(crate) fn new(
        plan: &OptimizerPlan,
        rates: FactorRates,
        factors: &AdapterSet,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, TrainError> {
        let vars = factors.vars();
        Ok(Self {
            device: device.clone(),
            pairs: FactorPair::all_of(factors),
            rates,
            max_grad_norm: plan.max_grad_norm,
            preconditioner: plan.preconditioner_damping.map(|damping| Preconditioner { damping }),
            optimizer: Optimizer::new(plan.settings),
            max_norm: plan.max_norm.map(|limit| MaxNorm { limit }),
            ema: plan.ema_decay.map(|decay| Ema::new(decay, &vars)).transpose()?,
            loss_scale: LossScale::for_dtype(dtype),
            factors: vars,
        })
    }

    /// What the losses are to be multiplied with, and the gradients divided by.
    pub(crate) fn loss_scale(&self) -> &LossScale {
        &self.loss_scale
    }

    /// Moves every factor, each at the part `schedule` of its full rate. A step that overflowed f16 moves nothing.
    ///
    /// # Errors
    /// A loss or gradient that is not finite.
    pub(crate) fn apply(
        &mut self,
        step: u64,
        mut summed: StepGradient,
        schedule: f64,
    ) -> Result<StepUnderWay, TrainError> {
        summed.gradients.retain(|key, _| self.rates.moves(key, step));
        let learning_rate = schedule * self.rates.shown;
        let waits = self.device.is_cpu() || self.loss_scale.adapts();
        let (loss, grad_norm) = if waits {
            let loss = summed.loss()?;
            if !loss.is_finite() {
                return Err(TrainError::NonFiniteLoss { step, loss });
            }
            let norm = match clip_global_norm(&mut summed.gradients, self.max_grad_norm) {
                Err(TrainError::NonFiniteGradient { .. }) if self.loss_scale.update(false) => {
                    let (loss, grad_norm) = (Number::Known(loss), Number::Known(f64::INFINITY));
                    return Ok(StepUnderWay { step, loss, grad_norm, learning_rate, scalars: self.found() });
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
        let num_scaled = self.move_factors(step, summed.gradients, schedule)?;
        let mut scalars = self.found();
        scalars.extend(num_scaled.map(|sum| ("num_scaled", Number::OnDevice { sum, divisor: 1.0 })));
        Ok(StepUnderWay { step, loss, grad_norm, learning_rate, scalars })
    }

    /// Returns how many modules were shortened, if any can be.
    fn move_factors(
        &mut self,
        step: u64,
        mut gradients: Gradients,
        schedule: f64,
    ) -> Result<Option<Tensor>, TrainError> {
        let moves = |key: &String| self.rates.moves(key, step);
        let pairs: Vec<&FactorPair> = self.pairs.iter().filter(|pair| moves(&pair.down)).collect();
        if let Some(preconditioner) = self.preconditioner {
            preconditioner.apply(&pairs, &self.factors, &mut gradients)?;
        }
        let num_before = self.optimizer.num_steps();
        let full_rate = |key: &str| self.rates.of(key);
        if self.rates.text_encoder_steps.iter().any(Option::is_some) {
            let moving = self.factors.iter().filter(|(key, _)| moves(key));
            let moving = moving.map(|(key, var)| (key.clone(), var.clone())).collect();
            self.optimizer.step(&moving, &gradients, schedule, full_rate)?;
        } else {
            self.optimizer.step(&self.factors, &gradients, schedule, full_rate)?;
        }
        let num_scaled = self.max_norm.map(|max_norm| max_norm.apply(&pairs, &self.factors)).transpose()?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.factors, num_before)?;
        }
        Ok(num_scaled)
    }

    fn found(&self) -> BTreeMap<&'static str, Number> {
        self.optimizer.scalars().into_iter().map(|(name, value)| (name, Number::Known(value))).collect()
    }

    /// Runs `f` while the network has the factors that shall be used and saved: the running mean, or what schedule-free
    /// averages. Afterwards, also after an error, it has those that learn, to the bit. Without such means this is `f()`.
    ///
    /// # Errors
    /// What `f` returns, [`TrainError::Tensor`].
    pub(crate) fn with_factors_to_use<R>(&self, f: impl FnOnce() -> Result<R, TrainError>) -> Result<R, TrainError> {
        let Some(means) = self.ema.as_ref().map(Ema::means).or_else(|| self.optimizer.averages()) else { return f() };
        // Copies: a variable is written in place.
        let kept = self.factors.values().map(|var| var.as_detached_tensor().copy());
        let kept = kept.collect::<candle_core::Result<Vec<_>>>()?;
        let result = self.set_factors(means).and_then(|()| f());
        self.factors.values().zip(&kept).try_for_each(|(var, kept)| var.set(kept))?;
        result
    }

    /// A mean of factors of limited updates may itself be a little longer.
    fn set_factors(&self, means: &Gradients) -> Result<(), TrainError> {
        for (key, mean) in means {
            self.factors[key].set(mean)?;
        }
        if let Some(max_norm) = self.max_norm {
            max_norm.apply(&self.pairs.iter().collect::<Vec<_>>(), &self.factors)?;
        }
        Ok(())
    }

    /// All that the next step depends on, besides the factors and what is a function of the step.
    pub(crate) fn state(&self) -> OptimizerState {
        let mut state = self.optimizer.state();
        if let Some(ema) = &self.ema {
            ema.save(&mut state);
        }
        self.loss_scale.save(&mut state);
        state
    }

    /// Goes on from a state of the same settings and factors; its tensors may lie on any device.
    ///
    /// # Errors
    /// [`TrainError::OptimizerState`] if it is of other settings or factors; what is loaded then is undefined.
    pub(crate) fn load(&mut self, state: OptimizerState) -> Result<(), TrainError> {
        let mut state = state.moved_to(&self.device)?;
        let strange = state.tensors.values().flat_map(BTreeMap::keys).find(|key| !self.factors.contains_key(*key));
        if let Some(key) = strange {
            return Err(TrainError::OptimizerState { reason: format!("`{key}` is no factor of this run") });
        }
        if let Some(ema) = &mut self.ema {
            ema.load(&mut state)?;
        }
        self.loss_scale.load(&mut state)?;
        self.optimizer.load(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Checkpointing, Targets};
    use crate::network::Network;
    use crate::optimizer::{AdafactorSettings, AdamWSettings, LionSettings, OptimizerSettings, ProdigySettings};
    use crate::plan::ComponentPlan;
    use loralei_model::{Base, BaseSource, Draw, Purpose};
    use std::path::Path;

    const ADAMW: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 };

    /// A text encoder and a U-Net, linear layers and convolutions of 3x3.
    fn network() -> Network {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1/base");
        let base = Base::open(BaseSource::Folder(folder), None, DType::F32, &Device::Cpu).unwrap();
        let component = |patterns: &[&str]| ComponentPlan {
            targets: Targets::Patterns(patterns.iter().map(|pattern| (*pattern).to_owned()).collect()),
            rank: 3,
            alpha: 6.0,
            subspace: None,
            learning_rate: 1.0,
            blocks: Vec::new(),
        };
        let (unet, text) = (component(&["mid_block.*.attn2.to_k", "mid_block.*.conv1"]), component(&["*.q_proj"]));
        Network::load(&base, Some(&unet), &[Some(text)], 3, Checkpointing::None).unwrap()
    }

    fn rates(network: &Network, text_encoder_steps: Option<u64>) -> FactorRates {
        let vars = network.factors().vars();
        FactorRates { text_encoder_steps: [text_encoder_steps, None], ..FactorRates::uniform(vars.keys(), 0.02) }
    }

    fn update(network: &Network, plan: &OptimizerPlan, text_encoder_steps: Option<u64>, dtype: DType) -> Update {
        Update::new(plan, rates(network, text_encoder_steps), network.factors(), &Device::Cpu, dtype).unwrap()
    }

    fn summed(network: &Network, step: u64) -> StepGradient {
        let gradient = |(i, (key, var)): (usize, (String, Var))| {
            let values = Draw::new(1, step, i as u64, Purpose::Check).uniform(-1.0, 1.0, var.elem_count());
            (key, Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap())
        };
        let gradients = network.factors().vars().into_iter().enumerate().map(gradient).collect();
        StepGradient { gradients, loss_sum: Tensor::new(2f32, &Device::Cpu).unwrap(), weight: 4.0 }
    }

    fn bits(tensors: &BTreeMap<String, Var>) -> Vec<u32> {
        let values = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        tensors.values().flat_map(values).map(f32::to_bits).collect()
    }

    /// Every rule with all that it allows.
    fn full_plans() -> Vec<OptimizerPlan> {
        let prodigy = ProdigySettings {
            adamw: ADAMW,
            initial_d: 1e-2,
            d_coefficient: 1.0,
            max_d: None,
            safeguard_warmup: true,
            bias_correction: true,
        };
        let everything = |settings| OptimizerPlan {
            settings,
            max_grad_norm: Some(0.5),
            preconditioner_damping: Some(0.05),
            ema_decay: Some(0.9),
            max_norm: Some(0.05),
            ..OptimizerPlan::default()
        };
        let free = everything(OptimizerSettings::ScheduleFree(ADAMW));
        vec![
            everything(OptimizerSettings::AdamW(ADAMW)),
            everything(OptimizerSettings::Lion(LionSettings { beta1: 0.9, beta2: 0.99, weight_decay: 0.1 })),
            everything(OptimizerSettings::Prodigy(prodigy)),
            everything(OptimizerSettings::Adafactor(AdafactorSettings { eps: 1e-8, weight_decay: 0.1 })),
            OptimizerPlan { ema_decay: None, max_norm: None, ..free },
        ]
    }

    #[test]
    fn ten_steps_straight_have_the_bits_of_four_and_six_with_everything_on() {
        let run = |network: &Network, update: &mut Update, steps: std::ops::Range<u64>| {
            for step in steps {
                // The second step overflows: it is left out and halves the scale of the loss.
                let mut summed = summed(network, step);
                if step == 1 {
                    summed.gradients.values_mut().for_each(|gradient| *gradient = (&*gradient / 0.0).unwrap());
                }
                update.apply(step, summed, 1.0 / (step + 1) as f64).unwrap();
            }
        };
        let used = |network: &Network, update: &Update| {
            update.with_factors_to_use(|| Ok(bits(&network.factors().vars()))).unwrap()
        };
        for plan in full_plans() {
            let new = |network: &Network| update(network, &plan, Some(6), DType::F16);
            let straight = network();
            let mut of_straight = new(&straight);
            run(&straight, &mut of_straight, 0..10);

            let stopped = network();
            let mut of_stopped = new(&stopped);
            run(&stopped, &mut of_stopped, 0..4);
            let (state, resumed) = (of_stopped.state(), network());
            for (key, var) in resumed.factors().vars() {
                var.set(&stopped.factors().vars()[&key].as_detached_tensor().copy().unwrap()).unwrap();
            }
            let mut of_resumed = new(&resumed);
            of_resumed.load(state).unwrap();
            run(&resumed, &mut of_resumed, 4..10);

            let name = plan.settings;
            assert_eq!(bits(&resumed.factors().vars()), bits(&straight.factors().vars()), "{name}");
            assert_eq!(used(&resumed, &of_resumed), used(&straight, &of_straight), "{name}");
            assert_ne!(used(&straight, &of_straight), bits(&straight.factors().vars()), "{name}");
            assert_eq!(of_resumed.state().scalars, of_straight.state().scalars, "{name}");
            assert_eq!(of_resumed.loss_scale().factor(), 32768.0);
        }
    }

    #[test]
    fn without_settings_a_step_is_the_clipping_and_the_rule_to_the_bit() {
        let (network_a, network_b) = (network(), network());
        let plan = OptimizerPlan { settings: OptimizerSettings::AdamW(ADAMW), ..OptimizerPlan::default() };
        let mut update = update(&network_a, &plan, None, DType::F32);
        let (factors, mut adamw) = (network_b.factors().vars(), Optimizer::new(plan.settings));
        for step in 0..3 {
            let summed = summed(&network_a, step);
            let mut gradients = summed.gradients.clone();
            clip_global_norm(&mut gradients, Some(1.0)).unwrap();
            adamw.step(&factors, &gradients, 0.5, |_| 0.02).unwrap();
            let done = update.apply(step, summed, 0.5).unwrap().read().unwrap();
            assert_eq!((done.loss, done.learning_rate, done.scalars.len()), (0.5, 0.01, 0));
        }
        assert_eq!(bits(&network_a.factors().vars()), bits(&factors));
        // Nothing stands in the place of the factors, so nothing is copied.
        let same = update.with_factors_to_use(|| Ok(bits(&factors))).unwrap();
        assert_eq!(same, bits(&factors));
    }

    #[test]
    fn a_gradient_or_a_loss_that_is_not_finite_moves_nothing() {
        for plan in full_plans() {
            let network = network();
            let mut update = update(&network, &plan, None, DType::F32);
            update.apply(0, summed(&network, 0), 1.0).unwrap();
            let state = |update: &Update| {
                let OptimizerState { num_steps, scalars, tensors } = update.state();
                let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let tensors: Vec<_> = tensors.into_values().flatten().map(|(key, t)| (key, values(t))).collect();
                (num_steps, scalars, tensors)
            };
            let before = (bits(&network.factors().vars()), state(&update));
            for bad in [f32::NAN, f32::INFINITY] {
                let mut gradient = summed(&network, 1);
                let last = gradient.gradients.last_entry().unwrap().into_mut();
                let mut values = last.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                *values.last_mut().unwrap() = bad;
                *last = Tensor::from_vec(values, last.dims(), &Device::Cpu).unwrap();
                let error = update.apply(1, gradient, 1.0).err().unwrap();
                assert!(error.is_non_finite_step() && error.exit_code() == 5, "{error}");
                let loss_sum = Tensor::new(bad, &Device::Cpu).unwrap();
                let error = update.apply(1, StepGradient { loss_sum, ..summed(&network, 1) }, 1.0).err().unwrap();
                assert!(error.is_non_finite_step() && error.exit_code() == 5, "{error}");
            }
            assert_eq!((bits(&network.factors().vars()), state(&update)), before);
        }
    }

    #[test]
    fn what_a_rule_finds_and_how_many_modules_were_shortened_is_told() {
        let (network, plan) = (network(), full_plans().remove(2));
        let done = update(&network, &plan, None, DType::F32).apply(0, summed(&network, 0), 1.0).unwrap();
        assert_eq!(done.read().unwrap().scalars.into_iter().collect::<Vec<_>>(), [("d", 0.01), ("num_scaled", 0.0)]);
        let limited = OptimizerPlan { max_norm: Some(1e-6), ..OptimizerPlan::default() };
        let done = update(&network, &limited, None, DType::F32).apply(0, summed(&network, 0), 1.0).unwrap();
        let num_modules = network.factors().len() as f64;
        assert_eq!(done.read().unwrap().scalars, BTreeMap::from([("num_scaled", num_modules)]));
    }

    #[test]
    fn after_its_part_of_the_run_the_text_encoder_stays_and_its_gradients_do_not_count() {
        for plan in full_plans() {
            let network = network();
            let mut update = update(&network, &plan, Some(2), DType::F32);
            let of_text = |network: &Network, is_text: bool| {
                let mut vars = network.factors().vars();
                vars.retain(|key, _| key.starts_with("lora_te_") == is_text);
                bits(&vars)
            };
            let mut seen = Vec::new();
            for step in 0..4 {
                let mut summed = summed(&network, step);
                summed.gradients.retain(|key, _| step < 2 || key.starts_with("lora_unet_"));
                let of_moving = crate::clip::global_norm(&summed.gradients).unwrap();
                let all = StepGradient { gradients: super::tests::summed(&network, step).gradients, ..summed };
                let done = update.apply(step, all, 1.0).unwrap().read().unwrap();
                assert_eq!(done.grad_norm, of_moving);
                seen.push((of_text(&network, true), of_text(&network, false)));
            }
            assert_ne!(seen[0].0, seen[1].0);
            assert_eq!(seen[1].0, seen[2].0, "{}", plan.settings);
            assert_eq!(seen[2].0, seen[3].0);
            assert_ne!(seen[2].1, seen[3].1);
        }
    }

    #[test]
    fn the_factors_to_use_are_there_for_the_time_of_a_closure_also_if_it_fails() {
        for plan in [full_plans().remove(0), full_plans().remove(4)] {
            let network = network();
            let mut update = update(&network, &plan, None, DType::F32);
            for step in 0..5 {
                update.apply(step, summed(&network, step), 1.0).unwrap();
            }
            let (before, state) = (bits(&network.factors().vars()), update.state());
            let mean = state.tensors.get("ema").or(state.tensors.get("averages")).unwrap();
            let failed: Result<(), _> = update.with_factors_to_use(|| {
                let vars = network.factors().vars();
                for (key, mean) in mean {
                    // The limit of the norm may have shortened it.
                    let ratio =
                        (vars[key].as_tensor() / mean).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert!(ratio.iter().all(|r| *r <= 1.0 + 1e-6 && (r - ratio[0]).abs() < 1e-5), "{key}: {ratio:?}");
                }
                assert_ne!(bits(&vars), before);
                Err(TrainError::EncodedMissing)
            });
            assert!(matches!(failed, Err(TrainError::EncodedMissing)));
            assert_eq!(bits(&network.factors().vars()), before);
        }
    }

    #[test]
    fn a_state_of_other_factors_is_refused_by_name() {
        let network = network();
        let mut other = update(&network, &OptimizerPlan::default(), None, DType::F32);
        other.apply(0, summed(&network, 0), 1.0).unwrap();
        let mut state = other.state();
        let slot = state.tensors.get_mut("first").unwrap();
        let tensor = slot.pop_first().unwrap().1;
        slot.insert("lora_unet_elsewhere.lora_up.weight".to_owned(), tensor);
        let error = other.load(state).unwrap_err();
        assert!(error.to_string().contains("lora_unet_elsewhere"), "{error}");
    }
}

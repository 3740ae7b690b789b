//! `[optimizer]`, `[schedule]`, `[train]` and what of `[lora]` is about the update, checked.

use std::collections::BTreeMap;

use loralei_adapter::keys::{Component, Leaf, parse_kohya_key};

use super::checks::Checks;
use super::{ComponentPlan, Plan};
use crate::config::{
    BlockConfig, OptimizerConfig, OptimizerKind, ProdigyConfig, ScheduleConfig, ScheduleKind, StepsConfig, TrainConfig,
};
use crate::learning_rate::LearningRateSchedule;
use crate::optimizer::{
    AdafactorSettings, AdamWSettings, FactorRates, LionSettings, OptimizerSettings, ProdigySettings,
};

/// How a step moves the factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerPlan {
    /// The rule and its constants.
    pub settings: OptimizerSettings,
    /// Largest global gradient norm, above 0; `None` for no clipping.
    pub max_grad_norm: Option<f64>,
    /// Learning rate of B as a multiple of A's, above 0.
    pub loraplus_ratio: f64,
    /// Damping of the preconditioner, above 0; `None` for none.
    pub preconditioner_damping: Option<f64>,
    /// Decay of the factors' running mean, above 0 and below 1; `None` for none.
    pub ema_decay: Option<f64>,
    /// Longest update of a module, above 0; `None` for no limit.
    pub max_norm: Option<f64>,
    /// Part of the run after which each text encoder stays as it is, above 0, up to 1.
    pub text_encoder_stop_after: [f64; 2],
}

impl Default for OptimizerPlan {
    /// What a run without settings has.
    fn default() -> Self {
        Self {
            settings: OptimizerSettings::AdamW(AdamWSettings::default()),
            max_grad_norm: Some(1.0),
            loraplus_ratio: 1.0,
            preconditioner_damping: None,
            ema_decay: None,
            max_norm: None,
            text_encoder_stop_after: [1.0; 2],
        }
    }
}

impl Plan {
    /// The full learning rate of each factor, given by its key and the path of its layer, and for how long it learns.
    pub(crate) fn factor_rates(&self, factors: impl Iterator<Item = (String, String)>) -> FactorRates {
        let OptimizerPlan { loraplus_ratio, text_encoder_stop_after, .. } = self.optimizer;
        let rate = |key: &str, path: &str| {
            let text_encoder = Component::of_module(key).and_then(Component::text_encoder_index);
            let component = text_encoder.map_or(&self.unet, |index| &self.text_encoders[index]).as_ref();
            let rate = component.map_or(0.0, |component| component.learning_rate * component.ratio_of(path));
            let is_up = parse_kohya_key(key).is_some_and(|(_, leaf)| leaf == Leaf::Up);
            if is_up { rate * loraplus_ratio } else { rate }
        };
        let full: BTreeMap<String, f64> = factors.map(|(key, path)| (key.clone(), rate(&key, &path))).collect();
        let text_encoder_steps =
            text_encoder_stop_after.map(|part| (part < 1.0).then(|| (part * self.steps as f64).ceil() as u64));
        FactorRates { full, shown: self.learning_rate(), text_encoder_steps }
    }
}

impl Checks {
    pub(super) fn optimizer(
        &mut self,
        config: &TrainConfig,
        unet: Option<&ComponentPlan>,
        text_encoders: &[Option<ComponentPlan>; 2],
    ) -> OptimizerPlan {
        let optimizer = &config.optimizer;
        let OptimizerConfig { max_grad_norm, loraplus_ratio, preconditioned, ema_decay, .. } = *optimizer;
        self.within("optimizer.learning_rate", optimizer.full_learning_rate(), |rate| rate > 0.0, "above 0", 1e-4);
        self.within("optimizer.max_grad_norm", max_grad_norm, |norm| norm >= 0.0, "0 or above", 1.0);
        self.within("optimizer.loraplus_ratio", loraplus_ratio, |ratio| ratio > 0.0, "above 0", 16.0);
        let damping = optimizer.preconditioner_damping;
        self.within("optimizer.preconditioner_damping", damping, |damping| damping > 0.0, "above 0", 0.01);
        if let Some(decay) = ema_decay {
            let is_allowed = |decay| decay > 0.0 && decay < 1.0;
            self.within("optimizer.ema_decay", decay, is_allowed, "above 0 and below 1", 0.999);
        }
        let max_norm = config.lora.max_norm;
        if let Some(norm) = max_norm {
            self.within("lora.max_norm", norm, |norm| norm > 0.0, "above 0", 1.0);
        }
        let stop_after = config.lora.text_encoders().map(|(_, text)| text.stop_after);
        self.stop_after(config, unet, text_encoders);
        self.idle_settings(optimizer);
        match optimizer.kind {
            OptimizerKind::Prodigy => self.one_rate_for_all(config, unet, text_encoders),
            OptimizerKind::ScheduleFree => self.one_average(config),
            _ => (),
        }
        OptimizerPlan {
            settings: self.rule(optimizer),
            max_grad_norm: (max_grad_norm > 0.0).then_some(max_grad_norm),
            loraplus_ratio,
            preconditioner_damping: preconditioned.then_some(damping),
            ema_decay,
            max_norm,
            text_encoder_stop_after: stop_after,
        }
    }

    /// The constants of the rule.
    fn rule(&mut self, optimizer: &OptimizerConfig) -> OptimizerSettings {
        let OptimizerConfig { kind, weight_decay, eps, .. } = *optimizer;
        let usual_beta2 = if kind == OptimizerKind::Lion { 0.99 } else { 0.999 };
        let (beta1, beta2) = (optimizer.beta1.unwrap_or(0.9), optimizer.beta2.unwrap_or(usual_beta2));
        self.within("optimizer.weight_decay", weight_decay, |decay| decay >= 0.0, "0 or above", 0.01);
        self.within("optimizer.beta1", beta1, |beta| (0.0..1.0).contains(&beta), "from 0 to below 1", 0.9);
        self.within("optimizer.beta2", beta2, |beta| (0.0..1.0).contains(&beta), "from 0 to below 1", usual_beta2);
        self.within("optimizer.eps", eps, |eps| eps > 0.0, "above 0", 1e-8);
        let ProdigyConfig { initial_d, d_coefficient, max_d, safeguard_warmup, bias_correction } = optimizer.prodigy;
        self.within("optimizer.prodigy.initial_d", initial_d, |d| d > 0.0, "above 0", 1e-6);
        self.within("optimizer.prodigy.d_coefficient", d_coefficient, |factor| factor > 0.0, "above 0", 1.0);
        if let Some(max_d) = max_d {
            let range = format!("at least `optimizer.prodigy.initial_d`, {initial_d}");
            self.within("optimizer.prodigy.max_d", max_d, |max_d| max_d >= initial_d, &range, 1e-3);
        }
        let adamw = AdamWSettings { beta1, beta2, eps, weight_decay };
        match kind {
            OptimizerKind::Adamw => OptimizerSettings::AdamW(adamw),
            OptimizerKind::Lion => OptimizerSettings::Lion(LionSettings { beta1, beta2, weight_decay }),
            OptimizerKind::ScheduleFree => OptimizerSettings::ScheduleFree(adamw),
            OptimizerKind::Adafactor => OptimizerSettings::Adafactor(AdafactorSettings { eps, weight_decay }),
            OptimizerKind::Prodigy => OptimizerSettings::Prodigy(ProdigySettings {
                adamw,
                initial_d,
                d_coefficient,
                max_d,
                safeguard_warmup,
                bias_correction,
            }),
        }
    }

    fn stop_after(
        &mut self,
        config: &TrainConfig,
        unet: Option<&ComponentPlan>,
        text_encoders: &[Option<ComponentPlan>; 2],
    ) {
        let texts = config.lora.text_encoders();
        let mut learning = texts.iter().zip(text_encoders).filter(|(_, plan)| plan.is_some());
        let all_stop = unet.is_none() && learning.all(|((_, text), _)| text.stop_after < 1.0);
        for ((section, text), plan) in texts.iter().zip(text_encoders) {
            let (key, part) = (format!("{section}.stop_after"), text.stop_after);
            let is_allowed = |part| part > 0.0 && part <= 1.0;
            self.within(&key, part, is_allowed, "above 0, up to 1", 0.5);
            if part == 1.0 {
                continue;
            }
            if plan.is_none() {
                self.has_no_effect(&key, part, "the text encoder is not trained");
            } else if all_stop {
                let problem = format!("{part} leaves steps in which nothing is trained: the U-Net has no factors");
                self.refuse_once(&key, problem, "set it to 1, or `train.steps` lower");
            }
        }
    }

    /// Settings that the rule has no use for.
    fn idle_settings(&mut self, optimizer: &OptimizerConfig) {
        let usual = OptimizerConfig::default();
        let kind = optimizer.kind;
        if kind == OptimizerKind::Adafactor {
            for (key, beta) in [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)] {
                if let Some(beta) = beta {
                    let problem = format!(
                        "{beta} has no place in adafactor: it keeps no momentum, and its decay follows the step"
                    );
                    self.refuse(key, problem, "leave it out, or set `optimizer.kind` to \"adamw\"");
                }
            }
        }
        if kind == OptimizerKind::Lion && optimizer.eps != usual.eps {
            self.warnings.push(format!("`optimizer.eps` {} has no effect: lion divides by nothing", optimizer.eps));
        }
        if kind != OptimizerKind::Prodigy && optimizer.prodigy != usual.prodigy {
            self.warnings.push("`[optimizer.prodigy]` has no effect: `optimizer.kind` is not \"prodigy\"".to_owned());
        }
        let damping = optimizer.preconditioner_damping;
        if !optimizer.preconditioned && damping != usual.preconditioner_damping {
            self.warnings.push(format!(
                "`optimizer.preconditioner_damping` {damping} has no effect: `optimizer.preconditioned` is false"
            ));
        }
    }

    /// Prodigy finds one step size for all factors together.
    fn one_rate_for_all(
        &mut self,
        config: &TrainConfig,
        unet: Option<&ComponentPlan>,
        text_encoders: &[Option<ComponentPlan>; 2],
    ) {
        const HINT: &str = "leave it out, or set `optimizer.kind` to \"adamw\"";
        const PROBLEM: &str = "prodigy finds one learning rate for all factors";
        if config.optimizer.loraplus_ratio != 1.0 {
            self.refuse_once("optimizer.loraplus_ratio", format!("is not 1, but {PROBLEM}"), HINT);
        }
        let texts = config.lora.text_encoders();
        let learning = || texts.iter().zip(text_encoders).filter_map(|(text, plan)| Some((text, plan.as_ref()?)));
        let first = unet.map(|unet| ("the U-Net", "lora.unet", unet));
        let first =
            first.or_else(|| learning().next().map(|((section, _), plan)| ("the first text encoder", *section, plan)));
        for ((section, text), plan) in learning() {
            if let Some((name, of_first, first)) = first.filter(|(.., first)| first.learning_rate != plan.learning_rate)
            {
                let section = if text.learning_rate.is_some() { section } else { of_first };
                let problem =
                    format!("{} in {name}, {} in the text encoder: {PROBLEM}", first.learning_rate, plan.learning_rate);
                self.refuse_once(&format!("{section}.learning_rate"), problem, HINT);
            }
        }
        let lora = &config.lora;
        let of_texts = texts.map(|(section, text)| (section, &text.blocks));
        for (section, blocks) in [("lora.unet", &lora.unet.blocks)].into_iter().chain(of_texts) {
            for (i, BlockConfig { learning_rate_ratio, .. }) in blocks.iter().enumerate() {
                // 0 means no factors.
                if let Some(ratio) = learning_rate_ratio.filter(|ratio| *ratio != 1.0 && *ratio != 0.0) {
                    let key = format!("{section}.blocks[{i}].learning_rate_ratio");
                    self.refuse_once(&key, format!("{ratio} is not 1, but {PROBLEM}"), HINT);
                }
            }
        }
        if let Some(rate) = first.map(|(.., component)| component.learning_rate).filter(|rate| *rate <= 0.1) {
            self.warnings.push(format!(
                "a learning rate of {rate} is small for prodigy: it multiplies the rate that prodigy finds, and 1 is usual"
            ));
        }
    }

    /// Schedule-free averages by itself, and what it averages is not what gradients are taken at.
    fn one_average(&mut self, config: &TrainConfig) {
        if config.optimizer.ema_decay.is_some() {
            let hint = "leave it out: what is saved is schedule-free's own mean";
            self.refuse_once("optimizer.ema_decay", "schedule-free is a mean of the factors already", hint);
        }
        if config.lora.max_norm.is_some() {
            let problem = "schedule-free saves other factors than those it moves, and their norm would not be limited";
            self.refuse_once("lora.max_norm", problem, "leave it out, or set `optimizer.kind` to \"adamw\"");
        }
        if config.schedule.kind != ScheduleKind::Constant {
            self.warnings.push(
                "schedule-free takes the place of a falling learning rate: `schedule.kind` \"constant\" is meant for it"
                    .to_owned(),
            );
        }
    }

    pub(super) fn steps(&mut self, train: &StepsConfig) {
        self.at_least_one("train.steps", train.steps, "about 100 for each image is a start");
        if let Some(epochs) = train.epochs {
            self.at_least_one("train.epochs", epochs, "about 100 for a subject");
        }
        self.at_least_one("train.batch_size", train.batch_size as u64, "1 needs the least memory");
        self.at_least_one("train.accumulate", train.accumulate as u64, "1 is the default");
    }

    pub(super) fn schedule(&mut self, schedule: &ScheduleConfig, steps: u64) -> LearningRateSchedule {
        let ScheduleConfig { kind, warmup_steps, final_ratio, cycles, power } = *schedule;
        self.within("schedule.final_ratio", final_ratio, |ratio| (0.0..=1.0).contains(&ratio), "from 0 to 1", 0.05);
        self.at_least_one("schedule.cycles", cycles, "1 is one fall");
        self.within("schedule.power", power, |power| power > 0.0, "above 0", 2.0);
        if warmup_steps > steps {
            self.warnings.push(format!(
                "the learning rate never reaches its full value: `schedule.warmup_steps` is {warmup_steps}, \
                 `train.steps` {steps}"
            ));
        }
        if kind == ScheduleKind::Constant && final_ratio > 0.0 {
            self.warnings.push(format!("`schedule.final_ratio` {final_ratio} has no effect: the schedule is constant"));
        }
        LearningRateSchedule { kind, warmup_steps, steps, final_ratio, cycles, power }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLayers;
    use crate::error::TrainError;

    fn plan(sets: &[&str]) -> Result<Plan, TrainError> {
        let mut layers = ConfigLayers::new();
        for set in ["data.images=photos/cat"].iter().chain(sets) {
            layers.set(set)?;
        }
        Plan::new(&layers.resolve()?.config)
    }

    fn violated_keys(sets: &[&str]) -> Vec<String> {
        match plan(sets).unwrap_err() {
            TrainError::Settings { violations } => violations.into_iter().map(|v| v.key).collect(),
            other => panic!("{other}"),
        }
    }

    fn warnings(sets: &[&str]) -> Vec<String> {
        plan(sets).unwrap().warnings
    }

    #[test]
    fn every_kind_has_its_usual_constants_and_takes_those_that_are_set() {
        let settings = |sets: &[&str]| plan(sets).unwrap().optimizer.settings;
        assert_eq!(plan(&[]).unwrap().optimizer, OptimizerPlan::default());
        let lion = LionSettings { beta1: 0.9, beta2: 0.99, weight_decay: 0.01 };
        assert_eq!(settings(&["optimizer.kind=lion"]), OptimizerSettings::Lion(lion));
        let free = ["optimizer.kind=schedule-free", "optimizer.beta2=0.95", "optimizer.eps=1e-6"];
        let adamw = AdamWSettings { beta2: 0.95, eps: 1e-6, ..AdamWSettings::default() };
        assert_eq!(settings(&free), OptimizerSettings::ScheduleFree(adamw));
        let adafactor = AdafactorSettings { eps: 1e-8, weight_decay: 0.0 };
        let found = settings(&["optimizer.kind=adafactor", "optimizer.weight_decay=0"]);
        assert_eq!(found, OptimizerSettings::Adafactor(adafactor));
        let prodigy = ProdigySettings {
            adamw: AdamWSettings::default(),
            initial_d: 1e-5,
            d_coefficient: 2.0,
            max_d: Some(1e-3),
            safeguard_warmup: false,
            bias_correction: true,
        };
        let sets = [
            "optimizer.kind=prodigy",
            "optimizer.prodigy.initial_d=1e-5",
            "optimizer.prodigy.d_coefficient=2",
            "optimizer.prodigy.max_d=1e-3",
            "optimizer.prodigy.safeguard_warmup=false",
        ];
        assert_eq!(settings(&sets), OptimizerSettings::Prodigy(prodigy));
    }

    #[test]
    fn every_factor_has_the_rate_of_its_component_and_b_loraplus_times_that() {
        let plan = plan(&[
            "lora.unet.learning_rate=3e-4",
            "lora.text_encoder.targets=full",
            "lora.text_encoder.learning_rate=5e-5",
            "lora.text_encoder.stop_after=0.35",
            "optimizer.loraplus_ratio=16",
            "train.steps=50",
        ]);
        let keys = ["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_te_x.lora_up.weight"];
        let rates = plan
            .unwrap()
            .factor_rates(keys.into_iter().map(|key| (key.to_owned(), "mid_block.attentions.0.proj_in".to_owned())));
        assert_eq!(keys.map(|key| rates.of(key)), [3e-4, 16.0 * 3e-4, 16.0 * 5e-5]);
        assert_eq!(rates.shown, 3e-4);
        // 17.5 steps of 50: the 18th is made.
        assert_eq!(rates.text_encoder_steps, [Some(18), None]);
        assert!(rates.moves(keys[2], 17) && !rates.moves(keys[2], 18) && rates.moves(keys[0], 49));
    }

    #[test]
    fn each_text_encoder_has_its_own_rate_and_its_own_end() {
        let plan = plan(&[
            "lora.text_encoder.targets=full",
            "lora.text_encoder.learning_rate=5e-5",
            "lora.text_encoder_2.targets=full",
            "lora.text_encoder_2.learning_rate=2e-5",
            "lora.text_encoder_2.stop_after=0.25",
            "train.steps=50",
        ]);
        let keys = ["lora_unet_x.alpha", "lora_te1_x.lora_up.weight", "lora_te2_x.lora_up.weight"];
        let rates = plan.unwrap().factor_rates(keys.into_iter().map(|key| (key.to_owned(), "x".to_owned())));
        assert_eq!(keys.map(|key| rates.of(key)), [1e-4, 5e-5, 2e-5]);
        assert_eq!(rates.text_encoder_steps, [None, Some(13)]);
        assert_eq!(keys.map(|key| rates.moves(key, 13)), [true, true, false]);
    }

    #[test]
    fn prodigy_refuses_more_than_one_rate() {
        let text = "lora.text_encoder.targets=full";
        let refused = |sets: &[&str]| violated_keys(&[&["optimizer.kind=prodigy", text], sets].concat());
        assert_eq!(refused(&["optimizer.loraplus_ratio=4"]), ["optimizer.loraplus_ratio"]);
        assert_eq!(refused(&["lora.unet.learning_rate=0.5"]), ["lora.unet.learning_rate"]);
        assert_eq!(refused(&["lora.text_encoder.learning_rate=0.5"]), ["lora.text_encoder.learning_rate"]);
        let second = ["lora.unet.targets=none", "lora.text_encoder_2.targets=full"];
        let slower = ["lora.text_encoder_2.learning_rate=0.5"];
        assert_eq!(refused(&[&second[..], &slower].concat()), ["lora.text_encoder_2.learning_rate"]);
        let block =
            |ratio: &str| format!("lora.unet.blocks=[{{ layers = \"mid_block.*\", learning_rate_ratio = {ratio} }}]");
        assert_eq!(refused(&[&block("0.5")]), ["lora.unet.blocks[0].learning_rate_ratio"]);
        for same in [&block("1.0"), &block("0.0"), "lora.text_encoder.learning_rate=1"] {
            assert!(warnings(&["optimizer.kind=prodigy", text, same]).is_empty(), "{same}");
        }
        let small = warnings(&["optimizer.kind=prodigy", "optimizer.learning_rate=1e-4"]);
        assert!(small[0].contains("1 is usual"), "{small:?}");
    }

    #[test]
    fn schedule_free_refuses_a_second_mean_and_a_limit_that_would_not_hold() {
        let kind = "optimizer.kind=schedule-free";
        assert_eq!(violated_keys(&[kind, "optimizer.ema_decay=0.99"]), ["optimizer.ema_decay"]);
        assert_eq!(violated_keys(&[kind, "lora.max_norm=1"]), ["lora.max_norm"]);
        assert!(warnings(&[kind, "schedule.kind=cosine"])[0].contains("constant"));
        assert!(warnings(&[kind, "schedule.warmup_steps=20"]).is_empty());
    }

    #[test]
    fn settings_that_a_kind_has_no_use_for_are_refused_or_said() {
        let adafactor = ["optimizer.kind=adafactor", "optimizer.beta1=0.9", "optimizer.beta2=0.99"];
        assert_eq!(violated_keys(&adafactor), ["optimizer.beta1", "optimizer.beta2"]);
        for (sets, key) in [
            (&["optimizer.kind=lion", "optimizer.eps=1e-6"][..], "`optimizer.eps`"),
            (&["optimizer.prodigy.max_d=1"], "`[optimizer.prodigy]`"),
            (&["optimizer.preconditioner_damping=0.1"], "`optimizer.preconditioner_damping`"),
            (&["lora.text_encoder.stop_after=0.5"], "`lora.text_encoder.stop_after`"),
        ] {
            let said = warnings(sets);
            assert!(said.len() == 1 && said[0].starts_with(key), "{said:?}");
        }
    }

    #[test]
    fn a_text_encoder_that_trains_alone_cannot_stop_before_the_end() {
        let alone = ["lora.unet.targets=none", "lora.text_encoder.targets=full", "lora.text_encoder.stop_after=0.5"];
        assert_eq!(violated_keys(&alone), ["lora.text_encoder.stop_after"]);
        let with_another = [&alone[..], &["lora.text_encoder_2.targets=full"]].concat();
        assert!(plan(&with_another).is_ok(), "the other goes on");
    }
}

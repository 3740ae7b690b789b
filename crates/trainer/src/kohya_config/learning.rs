//! The optimizer, the learning rate over the run, and its length (sd-scripts `library/train_util.py`, `get_optimizer` and
//! `get_scheduler_fix`).

use toml::Value;

use super::Import;
use super::arguments::numbers;

/// kohya's learning rate where none is set.
const USUAL_LEARNING_RATE: f64 = 2e-6;
/// Its number of steps.
const USUAL_STEPS: i64 = 1600;

impl Import {
    pub(super) fn optimizer(&mut self) {
        let kind = self.optimizer_kind();
        self.set("optimizer.kind", kind.0, kind.1);
        self.optimizer_args(kind.0);
        if let Some(norm) = self.arguments.number("max_grad_norm") {
            self.carry("optimizer.max_grad_norm", norm, "max_grad_norm");
        }
        let rate = self.arguments.number("learning_rate");
        let is_needed = |import: &Self, section: &str| {
            let is_frozen = import
                .settings
                .iter()
                .any(|carried| carried.key == format!("{section}.targets") && carried.value.as_str() == Some("none"));
            !is_frozen && !import.has(&format!("{section}.learning_rate"))
        };
        if let Some(rate) = rate {
            self.carry("optimizer.learning_rate", rate, "learning_rate");
        } else if is_needed(self, "lora.unet") || is_needed(self, "lora.text_encoder") {
            self.set("optimizer.learning_rate", USUAL_LEARNING_RATE, "kohya's default");
            self.warn("no learning rate is set: kohya takes 2e-6, which hardly moves a LoRA; 1e-4 is usual");
        }
    }

    /// Our name of the optimizer, and the comment.
    fn optimizer_kind(&mut self) -> (&'static str, String) {
        let is_8_bit = self.arguments.flag("use_8bit_adam");
        let is_lion = self.arguments.flag("use_lion_optimizer");
        let named = self.arguments.text("optimizer_type");
        let Some(name) = named else {
            let (kind, from) = match (is_8_bit, is_lion) {
                (true, _) => ("adamw", "kohya: use_8bit_adam"),
                (_, true) => ("lion", "kohya: use_lion_optimizer"),
                _ => ("adamw", "kohya's default"),
            };
            return (kind, from.to_owned());
        };
        let from = format!("kohya: optimizer_type = {name}");
        let short = name.rsplit('.').next().unwrap_or_default().to_lowercase();
        if short.contains("8bit") || short.contains("paged") {
            self.warn(format!(
                "{name} keeps its moments in 8 bits or elsewhere; here they are 32 bits, 8 bytes a number trained"
            ));
        }
        let kind = match short.trim_start_matches("paged").trim_end_matches("8bit").trim_end_matches("32bit") {
            "adamw" | "adam" => "adamw",
            "lion" => "lion",
            "prodigy" => "prodigy",
            "adafactor" => "adafactor",
            "adamwschedulefree" => "schedule-free",
            other => {
                let (kind, why) = if other.ends_with("schedulefree") {
                    ("schedule-free", "schedule-free AdamW is nearest to it")
                } else if other.starts_with("dadapt") {
                    ("prodigy", "Prodigy comes of it and finds the rate as it does")
                } else {
                    ("adamw", "AdamW takes its place, and the learning rate may not suit it")
                };
                self.warn(format!("the optimizer {name} is not there: {why}"));
                kind
            }
        };
        (kind, from)
    }

    fn optimizer_args(&mut self, kind: &str) {
        for (name, text) in self.arguments.pairs("optimizer_args") {
            let place = format!("optimizer_args: {name}");
            let value = Value::from(text.as_str());
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            let flag = text.eq_ignore_ascii_case("true");
            let (is_prodigy, is_adafactor) = (kind == "prodigy", kind == "adafactor");
            match (name.as_str(), number, numbers(&text).as_deref()) {
                ("weight_decay", Some(decay), _) => self.carry("optimizer.weight_decay", decay, &place),
                ("betas", _, Some([beta1, beta2, rest @ ..])) if !is_adafactor && rest.len() < 2 => {
                    let (beta1, beta2) = (*beta1, *beta2);
                    self.carry("optimizer.beta1", beta1, &place);
                    self.carry("optimizer.beta2", beta2, &place);
                }
                ("eps", Some(eps), _) if kind != "lion" => self.carry("optimizer.eps", eps, &place),
                ("d_coef", Some(factor), _) if is_prodigy => {
                    self.carry("optimizer.prodigy.d_coefficient", factor, &place);
                }
                ("d0", Some(first), _) if is_prodigy => self.carry("optimizer.prodigy.initial_d", first, &place),
                ("safeguard_warmup", ..) if is_prodigy => {
                    self.carry("optimizer.prodigy.safeguard_warmup", flag, &place);
                }
                ("use_bias_correction", ..) if is_prodigy => {
                    self.carry("optimizer.prodigy.bias_correction", flag, &place);
                }
                ("decouple", ..) if flag => self.leave(&place, &value, "weight decay is always decoupled"),
                ("relative_step" | "warmup_init", ..) if !flag => {}
                _ => self.leave(&place, &value, "this optimizer has no such setting here"),
            }
        }
        // Where nothing is said, those optimizers do not decay, and kohya's Prodigy has both safeguards off.
        if kind != "adamw" {
            self.set("optimizer.weight_decay", 0.0, "kohya's default for this optimizer");
        }
        if kind == "prodigy" {
            self.set("optimizer.prodigy.safeguard_warmup", false, "kohya's default");
            self.set("optimizer.prodigy.bias_correction", false, "kohya's default");
        }
        if kind == "adafactor" && !self.has_left("optimizer_args: relative_step") {
            self.warn("Adafactor finds its own rate there unless relative_step=False; here it takes the learning rate");
        }
    }

    fn has_left(&self, key: &str) -> bool {
        self.left_out.iter().any(|left| left.key == key)
    }

    pub(super) fn steps(&mut self) {
        let epochs = self.arguments.count("max_train_epochs").filter(|epochs| *epochs > 0);
        let steps = self.arguments.count("max_train_steps").filter(|steps| *steps > 0);
        match (epochs, steps) {
            (Some(epochs), steps) => {
                self.carry("train.epochs", epochs, "max_train_epochs");
                if let Some(steps) = steps {
                    self.leave("max_train_steps", &steps.into(), "max_train_epochs goes before it");
                }
            }
            (None, Some(steps)) => self.carry("train.steps", steps, "max_train_steps"),
            (None, None) => self.set("train.steps", USUAL_STEPS, "kohya's default"),
        }
        if let Some(accumulate) = self.arguments.count("gradient_accumulation_steps").filter(|n| *n > 0) {
            self.carry("train.accumulate", accumulate, "gradient_accumulation_steps");
        }
        match self.arguments.count("seed") {
            Some(seed) => self.carry("train.seed", seed, "seed"),
            None => self.set("train.seed", 0, "kohya draws one"),
        }
        if self.arguments.flag("gradient_checkpointing") {
            self.carry("train.checkpointing", "block", "gradient_checkpointing");
        }
    }

    pub(super) fn schedule(&mut self) {
        let name = self.arguments.text("lr_scheduler").unwrap_or_else(|| "constant".to_owned());
        let kind = match name.as_str() {
            "constant" | "constant_with_warmup" => "constant",
            "linear" => "linear",
            "cosine" | "cosine_with_min_lr" => "cosine",
            "cosine_with_restarts" => "restarts",
            "polynomial" => "polynomial",
            _ => {
                self.leave("lr_scheduler", &name.as_str().into(), "there is no such schedule; the rate stays constant");
                "constant"
            }
        };
        self.set("schedule.kind", kind, format!("kohya: lr_scheduler = {name}"));
        let cycles = self.arguments.count("lr_scheduler_num_cycles").filter(|cycles| *cycles > 0);
        match cycles {
            Some(cycles) if kind == "restarts" => self.carry("schedule.cycles", cycles, "lr_scheduler_num_cycles"),
            Some(cycles) if cycles > 1 => {
                self.leave("lr_scheduler_num_cycles", &cycles.into(), "only cosine_with_restarts has cycles");
            }
            _ => {}
        }
        let power = self.arguments.number("lr_scheduler_power").filter(|power| *power > 0.0);
        match power {
            Some(power) if kind == "polynomial" => self.carry("schedule.power", power, "lr_scheduler_power"),
            Some(power) if power != 1.0 => {
                self.leave("lr_scheduler_power", &power.into(), "only polynomial has a power");
            }
            _ => {}
        }
        if name == "cosine_with_min_lr"
            && let Some(ratio) = self.arguments.number("lr_scheduler_min_lr_ratio")
        {
            self.carry("schedule.final_ratio", ratio, "lr_scheduler_min_lr_ratio");
        }
        self.warm_up(&name);
    }

    /// A whole number of steps, or a part of the run.
    fn warm_up(&mut self, schedule: &str) {
        const KEY: &str = "lr_warmup_steps";
        let Some(warm_up) = self.arguments.number(KEY).filter(|warm_up| *warm_up > 0.0) else { return };
        let steps = self.arguments.peek_number("max_train_steps").unwrap_or(USUAL_STEPS as f64);
        let has_epochs = self.arguments.peek_number("max_train_epochs").is_some_and(|epochs| epochs > 0.0);
        if schedule == "constant" {
            let reason = "kohya's `constant` has no warm-up; `constant_with_warmup` has";
            self.leave(KEY, &warm_up.into(), reason);
        } else if warm_up >= 1.0 {
            self.carry("schedule.warmup_steps", warm_up as i64, KEY);
        } else if has_epochs {
            let reason = "a part of the run, whose steps are known with the images only: set `schedule.warmup_steps`";
            self.leave(KEY, &warm_up.into(), reason);
        } else {
            let num_steps = (warm_up * steps) as i64;
            self.set("schedule.warmup_steps", num_steps, format!("kohya: {KEY} = {warm_up}, of {steps}"));
        }
    }
}

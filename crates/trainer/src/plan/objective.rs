//! `[noise]` and `[loss]`, checked.

use loralei_model::{Base, NoiseSchedule, Prediction};

use super::Plan;
use super::checks::Checks;
use crate::config::{LossConfig, LossKind, NoiseConfig, Weighting};
use crate::error::Violation;

impl Checks {
    pub(super) fn noise(&mut self, noise: &NoiseConfig) -> NoiseConfig {
        self.within("noise.offset", noise.offset, |offset| offset >= 0.0, "0 or above", 0.05);
        self.within("noise.offset_adaptive", noise.offset_adaptive, f64::is_finite, "finite", 0.01);
        let discount = noise.pyramid_discount;
        self.within("noise.pyramid_discount", discount, |share| (0.0..=1.0).contains(&share), "from 0 to 1", 0.3);
        self.within("noise.input_perturbation", noise.input_perturbation, |gamma| gamma >= 0.0, "0 or above", 0.1);
        if let Some(last) = noise.max_timestep.filter(|last| *last <= noise.min_timestep) {
            let problem = format!("{last} leaves no timestep: `noise.min_timestep` is {}", noise.min_timestep);
            self.refuse("noise.max_timestep", problem, "leave both out for all timesteps");
        }
        let usual = NoiseConfig::default();
        if noise.offset_random && noise.offset == 0.0 {
            self.has_no_effect("noise.offset_random", true, "`noise.offset` is 0");
        }
        if noise.pyramid_iterations == 0 && (discount - usual.pyramid_discount).abs() > 0.0 {
            self.has_no_effect("noise.pyramid_discount", discount, "`noise.pyramid_iterations` is 0");
        }
        noise.clone()
    }

    pub(super) fn loss(&mut self, loss: &LossConfig) -> LossConfig {
        self.within("loss.huber_c", loss.huber_c, |c| c > 0.0, "above 0", 0.1);
        self.within("loss.min_snr_gamma", loss.min_snr_gamma, |gamma| gamma > 0.0, "above 0", 5.0);
        self.within("loss.v_pred_like_loss", loss.v_pred_like_loss, |factor| factor >= 0.0, "0 or above", 0.5);
        let usual = LossConfig::default();
        if !matches!(loss.kind, LossKind::Huber | LossKind::SmoothL1) {
            let why = "`loss.kind` is neither \"huber\" nor \"smooth-l1\"";
            if (loss.huber_c - usual.huber_c).abs() > 0.0 {
                self.has_no_effect("loss.huber_c", loss.huber_c, why);
            }
            if loss.huber_schedule != usual.huber_schedule {
                let name = format!("{:?}", loss.huber_schedule).to_lowercase();
                self.has_no_effect("loss.huber_schedule", name, why);
            }
        }
        if loss.weighting != Weighting::MinSnr && (loss.min_snr_gamma - usual.min_snr_gamma).abs() > 0.0 {
            self.has_no_effect("loss.min_snr_gamma", loss.min_snr_gamma, "`loss.weighting` is not \"min-snr\"");
        }
        *loss
    }

    /// Says that a setting does nothing here.
    pub(super) fn has_no_effect(&mut self, key: &str, value: impl std::fmt::Display, why: &str) {
        self.warnings.push(format!("`{key}` {value} has no effect: {why}"));
    }
}

impl Plan {
    /// Checks what only the base can tell.
    ///
    /// # Errors
    /// The first setting that does not go with this base.
    pub(crate) fn check_base(&self, base: &Base) -> Result<(), Violation> {
        if base.num_text_encoders() < 2 && self.text_encoders[1].is_some() {
            return Err(Violation {
                key: "lora.text_encoder_2.targets".to_owned(),
                problem: "the base has one text encoder".to_owned(),
                hint: "set it to \"none\"; the one is `lora.text_encoder`".to_owned(),
            });
        }
        self.check_objective(&base.noise_schedule())
    }

    /// What is allowed with a base of this schedule but will not do what it is for.
    pub(crate) fn objective_warning(&self, schedule: &NoiseSchedule) -> Option<String> {
        (self.loss.weighting == Weighting::MinSnr && schedule.config().rescale_betas_zero_snr).then(|| {
            "`loss.weighting` \"min-snr\" all but leaves out the noisiest timesteps, which zero terminal SNR is for: their weight \
             is SNR / (SNR + 1)"
                .to_owned()
        })
    }

    /// Checks what only the base can tell: how many timesteps there are and what is predicted.
    ///
    /// # Errors
    /// The first setting that does not go with this base.
    pub(crate) fn check_objective(&self, schedule: &NoiseSchedule) -> Result<(), Violation> {
        let refused = |key: &str, problem: String, hint: &str| {
            Err(Violation { key: key.to_owned(), problem, hint: hint.to_owned() })
        };
        let (noise, num_timesteps) = (&self.noise, schedule.num_timesteps());
        let hint = "leave `noise.min_timestep` and `noise.max_timestep` out for all timesteps";
        if let Some(last) = noise.max_timestep.filter(|last| *last > num_timesteps) {
            return refused(
                "noise.max_timestep",
                format!("{last} is above the base's {num_timesteps} timesteps"),
                hint,
            );
        }
        if noise.min_timestep >= num_timesteps {
            let problem = format!("{} is not below the base's {num_timesteps} timesteps", noise.min_timestep);
            return refused("noise.min_timestep", problem, hint);
        }
        let predicts_v = schedule.prediction() == Prediction::VPrediction;
        if schedule.config().rescale_betas_zero_snr && !predicts_v {
            let problem = "of pure noise there is nothing to predict but itself: zero terminal SNR needs a base that predicts velocity";
            let hint = "set `model.prediction` to \"v\" if the base does, otherwise `model.zero_terminal_snr` to false";
            let is_asked = self.noising.zero_terminal_snr == Some(true);
            let key = if is_asked { "model.zero_terminal_snr" } else { "model.prediction" };
            return refused(key, problem.to_owned(), hint);
        }
        if self.loss.weighting == Weighting::VLikeNoise && !predicts_v {
            let problem = "\"v-like-noise\" is for a base that predicts velocity, and this one predicts noise";
            return refused("loss.weighting", problem.to_owned(), "use \"none\" or \"min-snr\"");
        }
        if self.loss.v_pred_like_loss != 0.0 && predicts_v {
            let problem = "the loss of a base that predicts velocity is that already";
            return refused("loss.v_pred_like_loss", problem.to_owned(), "leave it out");
        }
        Ok(())
    }
}

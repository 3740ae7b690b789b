//! Noise and loss (sd-scripts `train_network.py`, `process_batch`, and `library/custom_train_functions.py`).

use toml::Value;

use super::Import;

/// Numbers that are the same here. 0 turns each off.
const NUMBERS: [(&str, &str); 6] = [
    ("noise_offset", "noise.offset"),
    ("adaptive_noise_scale", "noise.offset_adaptive"),
    ("multires_noise_discount", "noise.pyramid_discount"),
    ("ip_noise_gamma", "noise.input_perturbation"),
    ("huber_c", "loss.huber_c"),
    ("v_pred_like_loss", "loss.v_pred_like_loss"),
];
const COUNTS: [(&str, &str); 3] = [
    ("multires_noise_iterations", "noise.pyramid_iterations"),
    ("min_timestep", "noise.min_timestep"),
    ("max_timestep", "noise.max_timestep"),
];

impl Import {
    pub(super) fn noise_and_loss(&mut self) {
        for (theirs, ours) in NUMBERS {
            if let Some(number) = self.arguments.number(theirs).filter(|number| *number != 0.0) {
                self.carry(ours, number, theirs);
            }
        }
        for (theirs, ours) in COUNTS {
            if let Some(count) = self.arguments.count(theirs).filter(|count| *count != 0) {
                self.carry(ours, count, theirs);
            }
        }
        if self.arguments.flag("noise_offset_random_strength") {
            self.carry("noise.offset_random", true, "noise_offset_random_strength");
        }
        if let Some(kind) = self.arguments.text("loss_type") {
            self.named("loss.kind", "loss_type", &kind, &["l2", "l1", "huber", "smooth_l1"]);
        }
        if let Some(schedule) = self.arguments.text("huber_schedule") {
            self.named("loss.huber_schedule", "huber_schedule", &schedule, &["snr", "exponential", "constant"]);
        }
        if let Some(scale) = self.arguments.number("huber_scale").filter(|scale| *scale != 1.0) {
            self.leave("huber_scale", &scale.into(), "the loss has no such factor; `loss.huber_c` is what it scales");
        }
        self.weighting();
    }

    fn named(&mut self, key: &'static str, theirs: &str, name: &str, known: &[&str]) {
        if known.contains(&name) {
            self.carry(key, name.replace('_', "-"), theirs);
        } else {
            self.leave(theirs, &name.into(), format!("there is no such one here: {}", known.join(", ")));
        }
    }

    /// There several weights are multiplied; here there is one.
    fn weighting(&mut self) {
        let gamma = self.arguments.number("min_snr_gamma").filter(|gamma| *gamma > 0.0);
        let debiased = self.arguments.flag("debiased_estimation_loss");
        let scaled = self.arguments.flag("scale_v_pred_loss_like_noise_pred");
        if let Some(gamma) = gamma {
            self.carry("loss.weighting", "min-snr", "min_snr_gamma");
            self.carry("loss.min_snr_gamma", gamma, "min_snr_gamma");
        }
        for (is_on, name, theirs) in [
            (scaled, "v-like-noise", "scale_v_pred_loss_like_noise_pred"),
            (debiased, "debiased", "debiased_estimation_loss"),
        ] {
            if is_on && self.has("loss.weighting") {
                self.leave(
                    theirs,
                    &Value::Boolean(true),
                    "one weighting is set already, and they are not multiplied here",
                );
            } else if is_on {
                self.carry("loss.weighting", name, theirs);
            }
        }
    }
}

//! The dotted keys of [`TrainConfig`](crate::TrainConfig), and which of them a mistyped one may have meant.

/// Every key that can be set, in the order of the reference. A test holds it against the types.
pub(crate) const KEYS: [&str; 139] = [
    "preset",
    "model.base",
    "model.prediction",
    "model.zero_terminal_snr",
    "model.empty_captions",
    "model.dtype",
    "model.weights",
    "model.compute",
    "model.device",
    "model.ops",
    "model.tf32",
    "data.images",
    "data.size_px",
    "data.width_px",
    "data.height_px",
    "data.buckets",
    "data.bucket_min_px",
    "data.bucket_max_px",
    "data.bucket_step_px",
    "data.no_upscale",
    "data.prompt",
    "data.trigger",
    "data.class",
    "data.repeats",
    "data.alpha",
    "data.outside_mask_weight",
    "data.flip",
    "data.sources",
    "data.strict",
    "data.max_tokens",
    "data.cache",
    "data.captions.from",
    "data.captions.line",
    "data.captions.prefix",
    "data.captions.suffix",
    "data.captions.dropout",
    "data.captions.wildcards",
    "data.captions.shuffle",
    "data.captions.keep_tokens",
    "data.captions.separator",
    "data.captions.keep_tokens_separator",
    "data.captions.tag_dropout",
    "lora.rank",
    "lora.alpha",
    "lora.rslora",
    "lora.dropout",
    "lora.rank_dropout",
    "lora.module_dropout",
    "lora.max_norm",
    "lora.orthogonal",
    "lora.start_from",
    "lora.unet.targets",
    "lora.unet.rank",
    "lora.unet.alpha",
    "lora.unet.learning_rate",
    "lora.unet.blocks",
    "lora.text_encoder.targets",
    "lora.text_encoder.rank",
    "lora.text_encoder.alpha",
    "lora.text_encoder.learning_rate",
    "lora.text_encoder.blocks",
    "lora.text_encoder.stop_after",
    "lora.text_encoder_2.targets",
    "lora.text_encoder_2.rank",
    "lora.text_encoder_2.alpha",
    "lora.text_encoder_2.learning_rate",
    "lora.text_encoder_2.blocks",
    "lora.text_encoder_2.stop_after",
    "optimizer.kind",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.eps",
    "optimizer.max_grad_norm",
    "optimizer.loraplus_ratio",
    "optimizer.preconditioned",
    "optimizer.preconditioner_damping",
    "optimizer.ema_decay",
    "optimizer.prodigy.initial_d",
    "optimizer.prodigy.d_coefficient",
    "optimizer.prodigy.max_d",
    "optimizer.prodigy.safeguard_warmup",
    "optimizer.prodigy.bias_correction",
    "schedule.kind",
    "schedule.warmup_steps",
    "schedule.final_ratio",
    "schedule.cycles",
    "schedule.power",
    "train.steps",
    "train.epochs",
    "train.batch_size",
    "train.accumulate",
    "train.seed",
    "train.checkpointing",
    "noise.offset",
    "noise.offset_adaptive",
    "noise.offset_random",
    "noise.pyramid_iterations",
    "noise.pyramid_discount",
    "noise.input_perturbation",
    "noise.min_timestep",
    "noise.max_timestep",
    "loss.kind",
    "loss.huber_c",
    "loss.huber_schedule",
    "loss.weighting",
    "loss.min_snr_gamma",
    "loss.v_pred_like_loss",
    "prior.kind",
    "prior.weight",
    "prior.every_steps",
    "prior.captions",
    "prior.num_images",
    "prior.prompt",
    "validation.every_steps",
    "validation.hold_out",
    "validation.images",
    "validation.max_images",
    "validation.num_timesteps",
    "validation.patience",
    "validation.leak",
    "samples.prompts",
    "samples.prompts_file",
    "samples.every_steps",
    "samples.negative",
    "samples.seed",
    "samples.steps",
    "samples.guidance_scale",
    "samples.sampler",
    "output.folder",
    "output.name",
    "output.precision",
    "output.save_every_steps",
    "output.keep_snapshots",
    "output.tensorboard",
    "output.author",
    "output.description",
    "output.license",
];

/// What other trainers call it. Compared with the last part of a key.
const OTHER_NAMES: [(&str, &str); 31] = [
    ("lr", "optimizer.learning_rate"),
    ("unet_lr", "lora.unet.learning_rate"),
    ("text_encoder_lr", "lora.text_encoder.learning_rate"),
    ("batch", "train.batch_size"),
    ("train_batch_size", "train.batch_size"),
    ("gradient_accumulation_steps", "train.accumulate"),
    ("gradient_checkpointing", "train.checkpointing"),
    ("max_train_steps", "train.steps"),
    ("epochs", "train.epochs"),
    ("network_dim", "lora.rank"),
    ("network_alpha", "lora.alpha"),
    ("dim", "lora.rank"),
    ("resolution", "data.size_px"),
    ("train_data_dir", "data.images"),
    ("instance_prompt", "data.prompt"),
    ("pretrained_model_name_or_path", "model.base"),
    ("lr_scheduler", "schedule.kind"),
    ("instance_data_dir", "data.images"),
    ("enable_bucket", "data.buckets"),
    ("min_bucket_reso", "data.bucket_min_px"),
    ("max_bucket_reso", "data.bucket_max_px"),
    ("bucket_reso_steps", "data.bucket_step_px"),
    ("bucket_no_upscale", "data.no_upscale"),
    ("num_repeats", "data.repeats"),
    ("flip_aug", "data.flip"),
    ("caption_dropout_rate", "data.captions.dropout"),
    ("caption_tag_dropout_rate", "data.captions.tag_dropout"),
    ("shuffle_caption", "data.captions.shuffle"),
    ("max_token_length", "data.max_tokens"),
    ("prior_loss_weight", "prior.weight"),
    ("output_dir", "output.folder"),
];

/// Whether `key` is a dotted key that can be set: `train.steps`.
pub fn is_config_key(key: &str) -> bool {
    KEYS.contains(&key)
}

/// Every key that can be set, in the order of the reference.
pub(crate) fn config_keys() -> &'static [&'static str] {
    &KEYS
}

/// The key `key` of a section as a whole; `key` itself if there is none.
pub(crate) fn full_key(section: &str, key: &'static str) -> &'static str {
    let whole = KEYS.iter().find(|known| {
        known.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| rest == key)
    });
    whole.copied().unwrap_or(key)
}

/// Whether `key` names a section: `lora.unet`.
pub(crate) fn is_section(key: &str) -> bool {
    KEYS.iter().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The valid key that resembles `key` most: by the whole and by its last part, so that a right name in a wrong section
/// is found as well as a slip of the finger. Names that other trainers use lead to ours.
pub fn nearest_config_key(key: &str) -> &'static str {
    let last = last_part(key);
    if let Some((_, ours)) = OTHER_NAMES.iter().find(|(other, _)| *other == last) {
        return ours;
    }
    let resemblance = |known: &str| {
        strsim::normalized_damerau_levenshtein(key, known)
            + strsim::normalized_damerau_levenshtein(last, last_part(known))
    };
    KEYS.into_iter().max_by(|a, b| resemblance(a).total_cmp(&resemblance(b))).unwrap_or("train.steps")
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainConfig;

    /// The fields that serde knows of a section, out of its message about one it does not know.
    fn fields_of(section: &str) -> Vec<String> {
        let text = if section.is_empty() { "zzz = 1".to_string() } else { format!("[{section}]\nzzz = 1") };
        let message = toml::from_str::<TrainConfig>(&text).unwrap_err().message().to_string();
        let (_, expected) = message.split_once("expected").unwrap();
        expected.split('`').skip(1).step_by(2).map(str::to_string).collect()
    }

    fn collect(section: &str, keys: &mut Vec<String>) {
        for field in fields_of(section) {
            let key = if section.is_empty() { field } else { format!("{section}.{field}") };
            if is_section(&key) { collect(&key, keys) } else { keys.push(key) }
        }
    }

    #[test]
    fn the_list_of_keys_is_that_of_the_types_in_their_order() {
        let mut keys = Vec::new();
        collect("", &mut keys);
        assert_eq!(keys, KEYS);
    }

    #[test]
    fn a_mistyped_key_leads_to_the_one_meant() {
        for (typed, meant) in [
            ("train.stpes", "train.steps"),
            ("train.step", "train.steps"),
            ("steps", "train.steps"),
            ("rank", "lora.rank"),
            ("lora.unet.rnk", "lora.unet.rank"),
            ("unet.rank", "lora.unet.rank"),
            ("optimiser.learning_rate", "optimizer.learning_rate"),
            ("train.lr", "optimizer.learning_rate"),
            ("data.folder", "output.folder"),
            ("network_dim", "lora.rank"),
            ("schedule.warmup", "schedule.warmup_steps"),
        ] {
            assert_eq!(nearest_config_key(typed), meant, "{typed}");
        }
    }

    #[test]
    fn every_other_name_leads_to_a_key_that_exists() {
        for (other, ours) in OTHER_NAMES {
            assert!(is_config_key(ours), "{other} -> {ours}");
        }
    }
}

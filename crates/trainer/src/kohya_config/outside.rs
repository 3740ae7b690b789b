//! What a run leaves and shows, and why some options have no place here.

use super::Import;

/// What is the same under another name.
const TEXTS: [(&str, &str); 4] = [
    ("output_name", "output.name"),
    ("metadata_author", "output.author"),
    ("metadata_description", "output.description"),
    ("metadata_license", "output.license"),
];
const COUNTS: [(&str, &str); 3] = [
    ("save_every_n_steps", "output.save_every_steps"),
    ("validate_every_n_steps", "validation.every_steps"),
    ("sample_every_n_steps", "samples.every_steps"),
];
/// kohya's steps of a picture where a prompt does not say.
const USUAL_SAMPLE_STEPS: i64 = 30;

const BY_EPOCH: &str = "counted in steps here";
const CACHED: &str = "encoded images and captions are always kept: `data.cache`";
const ATTENTION: &str = "attention has one implementation here, which keeps no large matrix";
const LOADING: &str = "images are read on all threads of the processor";
const DEVICE_TYPE: &str = "the number type follows the device: `model.dtype`";
const FACTORS_ARE_F32: &str = "factors are always trained in f32";
const OFTEN: &str = "the newest are kept: `output.keep_snapshots`";
const PICTURES: &str = "pictures are cropped to their centre and keep their colours";
const HUB: &str = "nothing is uploaded";
const WANDB: &str = "figures go to `metrics.jsonl`, and to TensorBoard with `output.tensorboard`";
const ACCELERATE: &str = "one process trains";
const STATE: &str = "every snapshot has its state: `output.save_every_steps`";
const TITLE: &str = "the adapter's metadata are made from the run";
const VERSION: &str = "which version a base is of is read from its files";
const SUBSETS: &str = "not there: a caption is dropped by chance, `data.captions.dropout`";

/// Options without a setting here, and why.
const REASONS: [(&str, &str); 94] = [
    ("adafactor", "there is no such schedule"),
    ("alpha_mask", "set `data.alpha` to \"mask\""),
    ("base_weights", "an adapter is not merged into the base for training"),
    ("base_weights_multiplier", "an adapter is not merged into the base for training"),
    ("cache_info", CACHED),
    ("cache_latents", CACHED),
    ("cache_latents_to_disk", CACHED),
    ("cache_text_encoder_outputs", CACHED),
    ("cache_text_encoder_outputs_to_disk", CACHED),
    ("caption_dropout_every_n_epochs", SUBSETS),
    ("caption_extention", "`.txt` and `.caption` are read"),
    ("caption_extension", "`.txt` and `.caption` are read"),
    ("color_aug", PICTURES),
    ("config_file", "names itself"),
    ("cpu_offload_checkpointing", "`train.checkpointing` is \"none\" or \"block\""),
    ("dataset_class", "a class of Python"),
    ("ddp_gradient_as_bucket_view", ACCELERATE),
    ("ddp_static_graph", ACCELERATE),
    ("ddp_timeout", ACCELERATE),
    ("debug_dataset", "`loralei dataset check --sheet` shows what the network sees"),
    ("deepspeed", ACCELERATE),
    ("dynamo_backend", "nothing is compiled while it runs"),
    ("face_crop_aug_range", PICTURES),
    ("fp8_base", DEVICE_TYPE),
    ("fp8_base_unet", DEVICE_TYPE),
    ("full_bf16", FACTORS_ARE_F32),
    ("full_fp16", FACTORS_ARE_F32),
    ("fused_backward_pass", "the moments of factors are small"),
    ("highvram", LOADING),
    ("huggingface_repo_id", HUB),
    ("huggingface_token", HUB),
    ("initial_epoch", "`--resume` goes on where a run stopped"),
    ("initial_step", "`--resume` goes on where a run stopped"),
    ("ip_noise_gamma_random_strength", "the strength of this noise is not drawn"),
    ("log_config", "`run.toml` in the run's folder has every setting"),
    ("log_prefix", WANDB),
    ("log_tracker_config", WANDB),
    ("log_tracker_name", WANDB),
    ("logging_dir", WANDB),
    ("lowram", LOADING),
    ("lr_decay_steps", "there is no such schedule"),
    ("lr_scheduler_args", "schedules have settings of their own: `[schedule]`"),
    ("lr_scheduler_min_lr_ratio", "only cosine_with_min_lr has it; `schedule.final_ratio`"),
    ("lr_scheduler_timescale", "there is no such schedule"),
    ("lr_scheduler_type", "a class of Python"),
    ("max_data_loader_n_workers", LOADING),
    ("max_validation_steps", "`validation.max_images` limits it"),
    ("mem_eff_attn", ATTENTION),
    ("metadata_file", "captions are read from files beside the images, or from `metadata.jsonl`"),
    ("in_json", "captions are read from files beside the images, or from `metadata.jsonl`"),
    ("metadata_tags", TITLE),
    ("metadata_title", TITLE),
    ("metadata_trigger_phrase", "set `data.trigger`, which is written into the adapter"),
    ("mixed_precision", DEVICE_TYPE),
    ("network_multiplier", "factors are trained at their own strength"),
    ("no_half_vae", "the autoencoder always computes in f32"),
    ("no_metadata", "the adapter always says how it was made"),
    ("output_config", "`loralei train --print-config` prints the settings"),
    ("persistent_data_loader_workers", LOADING),
    ("random_crop", PICTURES),
    ("resize_interpolation", "one filter scales all images"),
    ("resume", "`loralei train --resume` goes on from a snapshot of its own"),
    ("sample_at_first", "pictures are drawn before the first step anyway"),
    ("sample_every_n_epochs", BY_EPOCH),
    ("sample_sampler", "there is no such sampler: ddim, euler-a, dpmpp-2m, unipc, euler"),
    ("save_every_n_epochs", BY_EPOCH),
    ("save_last_n_epochs", OFTEN),
    ("save_last_n_epochs_state", OFTEN),
    ("save_last_n_steps", OFTEN),
    ("save_last_n_steps_state", OFTEN),
    ("save_model_as", "adapters are safetensors"),
    ("save_n_epoch_ratio", BY_EPOCH),
    ("save_state", STATE),
    ("save_state_on_train_end", STATE),
    ("sdpa", ATTENTION),
    ("sdxl", VERSION),
    ("secondary_separator", "not there: tags with a comma inside cannot be told"),
    ("skip_cache_check", CACHED),
    ("skip_image_resolution", "small images are not left out; `data.no_upscale` keeps them at their size"),
    ("skip_until_initial_step", "`--resume` goes on where a run stopped"),
    ("token_warmup_min", "all tags are there from the first step on"),
    ("token_warmup_step", "all tags are there from the first step on"),
    ("tokenizer_cache_dir", "the tokenizer is inside the program"),
    ("torch_compile", "nothing is compiled while it runs"),
    ("training_comment", "set `output.description`"),
    ("v2", VERSION),
    ("vae", "the autoencoder of the base is used"),
    ("vae_batch_size", CACHED),
    ("validate_every_n_epochs", BY_EPOCH),
    ("validation_seed", "noise and images of the validation come from `train.seed`"),
    ("wandb_api_key", WANDB),
    ("wandb_run_name", WANDB),
    ("weighted_captions", "captions are taken as they are, brackets and all"),
    ("xformers", ATTENTION),
];

/// Options in `network_args`.
const NETWORK_REASONS: [(&str, &str); 6] = [
    ("algo", "networks are plain LoRA here"),
    ("preset", "`lora.unet.targets` says which layers"),
    ("use_tucker", "convolutions have two factors here"),
    ("use_conv_cp", "convolutions have two factors here"),
    ("train_norm", "norms have no factors"),
    ("verbose", "nothing to say"),
];

pub(super) fn reason(key: &str) -> Option<&'static str> {
    REASONS.iter().find(|(known, _)| *known == key).map(|(_, reason)| *reason)
}

pub(super) fn network_reason(key: &str) -> Option<&'static str> {
    NETWORK_REASONS.iter().find(|(known, _)| *known == key).map(|(_, reason)| *reason)
}

impl Import {
    pub(super) fn outside(&mut self) {
        for (theirs, ours) in TEXTS {
            if let Some(text) = self.arguments.text(theirs) {
                self.carry(ours, text, theirs);
            }
        }
        for (theirs, ours) in COUNTS {
            if let Some(count) = self.arguments.count(theirs).filter(|count| *count > 0) {
                self.carry(ours, count, theirs);
            }
        }
        if let Some(folder) = self.arguments.text("output_dir") {
            let name = self.settings.iter().find(|carried| carried.key == "output.name");
            let own = name.and_then(|carried| carried.value.as_str()).unwrap_or("last");
            let folder = format!("{}/{own}", folder.trim_end_matches(['/', '\\']));
            self.set("output.folder", folder, "kohya: output_dir; a run has a folder of its own");
        }
        self.precision();
        self.samples();
        if let Some(share) = self.arguments.number("validation_split").filter(|share| *share > 0.0) {
            self.carry("validation.hold_out", share, "validation_split");
        }
        if let Some(tokens) = self.arguments.count("max_token_length").filter(|tokens| *tokens > 0) {
            self.carry("data.max_tokens", tokens, "max_token_length");
        }
        let with = self.arguments.text("log_with");
        if let Some(with) = &with
            && !["tensorboard", "all"].contains(&with.as_str())
        {
            self.leave("log_with", &with.as_str().into(), WANDB);
        } else if with.is_some() || self.arguments.contains("logging_dir") {
            self.leave_argument("logging_dir", "they are in `tensorboard/` in the run's folder");
            self.set("output.tensorboard", true, "kohya: logging_dir or log_with");
        }
    }

    fn precision(&mut self) {
        let Some(name) = self.arguments.text("save_precision") else { return };
        match name.as_str() {
            "fp16" => self.carry("output.precision", "f16", "save_precision"),
            "bf16" => self.carry("output.precision", "bf16", "save_precision"),
            "float" => self.carry("output.precision", "f32", "save_precision"),
            _ => self.leave("save_precision", &name.into(), "is not fp16, bf16 or float"),
        }
    }

    fn samples(&mut self) {
        let Some(file) = self.arguments.text("sample_prompts") else { return };
        if file.to_lowercase().ends_with(".txt") {
            self.carry("samples.prompts_file", file, "sample_prompts");
            self.set("samples.steps", USUAL_SAMPLE_STEPS, "kohya's default");
        } else {
            self.leave("sample_prompts", &file.into(), "prompts are read from a text file, one a line");
        }
        let Some(sampler) = self.arguments.text("sample_sampler") else { return };
        match sampler.as_str() {
            "ddim" => self.carry("samples.sampler", "ddim", "sample_sampler"),
            "euler_a" | "k_euler_a" => self.carry("samples.sampler", "euler-a", "sample_sampler"),
            "euler" | "k_euler" => self.carry("samples.sampler", "euler", "sample_sampler"),
            "dpmsolver++" => self.carry("samples.sampler", "dpmpp-2m", "sample_sampler"),
            _ => self.leave("sample_sampler", &sampler.into(), reason("sample_sampler").unwrap_or_default()),
        }
    }
}

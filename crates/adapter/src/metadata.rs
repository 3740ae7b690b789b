//! What a trainer knows about an adapter, as the metadata that other programs show and sort by.
//!
//! `ss_*` are the entries of sd-scripts, spelled as Python prints values (`True`, `None`, `1e-05`) because readers
//! compare with that text; `modelspec.*` are those of ModelSpec 1.0.1. Three of them decide whether A1111, Forge and
//! SD.Next list the file for the right model: `ss_v2`, `ss_base_model_version` and `modelspec.architecture`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hashes::sha256_hex;
use crate::python_text::{PythonText, iso_8601};

/// The family of the base model, as adapters name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseVersion {
    /// Stable Diffusion 1.x.
    #[default]
    SdV1,
    /// Stable Diffusion 2.x base, 512 px, noise prediction.
    SdV2,
    /// Stable Diffusion 2.x, 768 px, v-prediction.
    SdV2V,
    /// Stable Diffusion XL 1.0.
    SdxlBaseV1,
}

impl BaseVersion {
    pub(crate) fn ss_name(self) -> &'static str {
        match self {
            Self::SdV1 => "sd_v1",
            Self::SdV2 => "sd_v2",
            Self::SdV2V => "sd_v2_v",
            Self::SdxlBaseV1 => "sdxl_base_v1-0",
        }
    }

    pub(crate) fn architecture(self) -> &'static str {
        match self {
            Self::SdV1 => "stable-diffusion-v1/lora",
            Self::SdV2 => "stable-diffusion-v2-512/lora",
            Self::SdV2V => "stable-diffusion-v2-768-v/lora",
            Self::SdxlBaseV1 => "stable-diffusion-xl-v1-base/lora",
        }
    }

    /// Whose module names the tensors have, as sd-scripts states it.
    pub(crate) fn implementation(self) -> &'static str {
        match self {
            Self::SdxlBaseV1 => "https://github.com/Stability-AI/generative-models",
            _ => "diffusers",
        }
    }
}

/// One folder of training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DatasetFolder {
    /// How often each image is seen in an epoch.
    pub n_repeats: u64,
    /// Images in the folder.
    pub img_count: u64,
}

/// How many images were trained at which size: ((width, height) in pixels, count).
pub type Buckets = Vec<((u64, u64), u64)>;

/// What a trainer knows. `None` stands for "not used" and is written as Python's `None` where sd-scripts writes it,
/// left out elsewhere.
///
/// The times, and the date, are the only facts that differ between two runs of the same configuration. They are left
/// out when they are `None`, so that the same seed can give the same file to the byte; a trainer that promises this
/// leaves them `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainingFacts {
    /// Stem of the file. A1111 uses it as the adapter's name in prompts.
    pub output_name: String,
    /// Shown as the adapter's title; the output name if `None`.
    pub title: Option<String>,
    /// Free text for `ss_training_comment`.
    pub training_comment: Option<String>,
    /// From [`session_id`].
    pub session_id: Option<u32>,
    /// Start of the training, seconds since 1970.
    pub started_at_unix_s: Option<u64>,
    /// End of the training, seconds since 1970.
    pub finished_at_unix_s: Option<u64>,
    /// Date of the file for `modelspec.date`, seconds since 1970.
    pub date_unix_s: Option<u64>,
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer steps done.
    pub steps: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Epochs planned.
    pub num_epochs: u64,
    /// Optimizer steps planned.
    pub max_train_steps: u64,
    /// Batches of an epoch.
    pub num_batches_per_epoch: u64,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation_steps: u64,
    /// Whether blocks are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// `no`, `bf16` or `fp16`.
    pub mixed_precision: Option<String>,

    /// Images trained on, repeats included.
    pub num_train_images: u64,
    /// Images for prior preservation.
    pub num_reg_images: u64,
    /// Images that were measured on and not trained on; `None` if there were none.
    pub num_validation_images: Option<u64>,
    /// Images of one micro-batch.
    pub batch_size_per_device: u64,
    /// Images of one micro-batch on all devices.
    pub total_batch_size: u64,
    /// (width, height) in pixels.
    pub resolution_px: (u64, u64),
    /// Whether images keep their aspect in buckets of several sizes.
    pub enable_bucket: bool,
    /// Shortest and longest side of the buckets in pixels.
    pub bucket_limits_px: Option<(u64, u64)>,
    /// Images per size, in the order of their indices.
    pub buckets: Option<Buckets>,
    /// Random horizontal flips.
    pub flip_aug: bool,
    /// Random colours.
    pub color_aug: bool,
    /// Random instead of centred crops.
    pub random_crop: bool,
    /// Whether the tags of a caption are shuffled.
    pub shuffle_caption: bool,
    /// Tags at the start that are never shuffled or dropped.
    pub keep_tokens: u64,
    /// Probability that an image is trained without its caption.
    pub caption_dropout_rate: f64,
    /// Probability that a tag is left out.
    pub caption_tag_dropout_rate: f64,
    /// 75, 150 or 225; 75 if `None`.
    pub max_token_length: Option<u64>,
    /// Whether latents are computed once.
    pub cache_latents: bool,
    /// Folders of training images by name.
    pub dataset_dirs: BTreeMap<String, DatasetFolder>,
    /// Folders of images for prior preservation by name.
    pub reg_dataset_dirs: BTreeMap<String, DatasetFolder>,
    /// Folder to tag to number of images: the tag cloud of A1111.
    pub tag_frequency: BTreeMap<String, BTreeMap<String, u64>>,

    /// Family of the base.
    pub base: BaseVersion,
    /// Whether the base predicts v instead of noise.
    pub v_prediction: bool,
    /// Name of the base model. Not a path: it would tell others about the user's machine.
    pub sd_model_name: Option<String>,
    /// [`crate::CheckpointHashes::legacy`] of the base, if it is one file.
    pub sd_model_hash: Option<String>,
    /// [`crate::CheckpointHashes::sha256`] of the base, if it is one file.
    pub new_sd_model_hash: Option<String>,
    /// Name of a VAE that replaces the base's.
    pub vae_name: Option<String>,
    /// Which layer of the text encoder is used, counted from the last (1).
    pub clip_skip: Option<u64>,

    /// Rank.
    pub network_dim: u64,
    /// Alpha.
    pub network_alpha: f64,
    /// Dropout between the factors.
    pub network_dropout: Option<f64>,
    /// Further settings of the network by name, such as `conv_dim`.
    pub network_args: BTreeMap<String, String>,
    /// Upper limit of the norm of a module's change.
    pub scale_weight_norms: Option<f64>,

    /// Learning rate where no other is given.
    pub learning_rate: f64,
    /// That of the U-Net.
    pub unet_lr: Option<f64>,
    /// Those of the text encoders that are trained; empty if none is.
    pub text_encoder_lr: Vec<f64>,
    /// `constant`, `cosine`, `linear`, ...
    pub lr_scheduler: String,
    /// Steps until the learning rate is reached.
    pub lr_warmup_steps: u64,
    /// Name and settings, as `AdamW(betas=(0.9, 0.999),weight_decay=0.01)`.
    pub optimizer: String,
    /// Limit of the gradient's norm; 0 is none.
    pub max_grad_norm: f64,
    /// Weight of the images for prior preservation.
    pub prior_loss_weight: f64,
    /// `l2`, `huber`, ...
    pub loss_type: String,
    /// Gamma of min-SNR weighting.
    pub min_snr_gamma: Option<f64>,
    /// Whether timesteps are weighted by debiased estimation.
    pub debiased_estimation: Option<bool>,
    /// Where Huber losses turn linear.
    pub huber_c: Option<f64>,
    /// `snr`, `exponential` or `constant`.
    pub huber_schedule: Option<String>,
    /// Offset noise.
    pub noise_offset: Option<f64>,
    /// Whether that is multiplied by a random number.
    pub noise_offset_random_strength: Option<bool>,
    /// What the mean of the latents adds to it.
    pub adaptive_noise_scale: Option<f64>,
    /// Levels of pyramid noise.
    pub multires_noise_iterations: Option<u64>,
    /// How much weaker each of them is.
    pub multires_noise_discount: Option<f64>,
    /// Perturbation of the network's input.
    pub ip_noise_gamma: Option<f64>,
    /// Whether betas are rescaled to a final signal-to-noise ratio of zero.
    pub zero_terminal_snr: bool,

    /// Who made it.
    pub author: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Its licence.
    pub license: Option<String>,
    /// How to use it.
    pub usage_hint: Option<String>,
    /// Tags, separated by commas.
    pub tags: Option<String>,
    /// What to put into a prompt.
    pub trigger_phrase: Option<String>,
    /// A picture as a data URL.
    pub thumbnail: Option<String>,
}

/// A session id that is the same for the same configuration (sd-scripts draws one of the same range at random).
pub fn session_id(config: &[u8]) -> u32 {
    sha256_hex(config).chars().take(8).filter_map(|digit| digit.to_digit(16)).fold(0, |id, digit| id << 4 | digit)
}

impl TrainingFacts {
    /// The metadata for [`crate::Adapter::metadata`]; hashes are added when the adapter is written.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let mut entries = Entries::default();
        self.describe_run(&mut entries);
        self.describe_data(&mut entries);
        self.describe_model_and_network(&mut entries);
        self.describe_optimisation(&mut entries);
        self.describe_for_modelspec(&mut entries);
        entries.0
    }

    fn describe_run(&self, entries: &mut Entries) {
        entries.put("ss_output_name", &self.output_name);
        entries.put("ss_training_comment", &self.training_comment);
        entries.put_known("ss_session_id", self.session_id.map(u64::from).as_ref());
        entries.put_known("ss_training_started_at", self.started_at_unix_s.map(|s| s as f64).as_ref());
        entries.put_known("ss_training_finished_at", self.finished_at_unix_s.map(|s| s as f64).as_ref());
        entries.put("ss_seed", &self.seed);
        entries.put("ss_steps", &self.steps);
        entries.put("ss_epoch", &self.epoch);
        entries.put("ss_num_epochs", &self.num_epochs);
        entries.put("ss_max_train_steps", &self.max_train_steps);
        entries.put("ss_num_batches_per_epoch", &self.num_batches_per_epoch);
        entries.put("ss_gradient_accumulation_steps", &self.gradient_accumulation_steps);
        entries.put("ss_gradient_checkpointing", &self.gradient_checkpointing);
        entries.put("ss_mixed_precision", &self.mixed_precision);
    }

    fn describe_data(&self, entries: &mut Entries) {
        let (width, height) = self.resolution_px;
        entries.put("ss_num_train_images", &self.num_train_images);
        entries.put("ss_num_reg_images", &self.num_reg_images);
        entries.put_known("ss_num_validation_images", self.num_validation_images.as_ref());
        entries.put("ss_batch_size_per_device", &self.batch_size_per_device);
        entries.put("ss_total_batch_size", &self.total_batch_size);
        entries.put("ss_resolution", &format!("({width}, {height})"));
        entries.put("ss_enable_bucket", &self.enable_bucket);
        entries.put("ss_min_bucket_reso", &self.bucket_limits_px.map(|(shortest, _)| shortest));
        entries.put("ss_max_bucket_reso", &self.bucket_limits_px.map(|(_, longest)| longest));
        entries.put("ss_flip_aug", &self.flip_aug);
        entries.put("ss_color_aug", &self.color_aug);
        entries.put("ss_random_crop", &self.random_crop);
        entries.put("ss_shuffle_caption", &self.shuffle_caption);
        entries.put("ss_keep_tokens", &self.keep_tokens);
        entries.put("ss_caption_dropout_rate", &self.caption_dropout_rate);
        entries.put("ss_caption_tag_dropout_rate", &self.caption_tag_dropout_rate);
        entries.put("ss_max_token_length", &self.max_token_length);
        entries.put("ss_cache_latents", &self.cache_latents);
        entries.put("ss_dataset_dirs", &json_object(&self.dataset_dirs, |folder| serde_json::json!(folder)));
        entries.put("ss_reg_dataset_dirs", &json_object(&self.reg_dataset_dirs, |folder| serde_json::json!(folder)));
        entries.put("ss_tag_frequency", &json_object(&self.tag_frequency, |counts| serde_json::json!(counts)));
        entries.put_known("ss_bucket_info", self.buckets.as_ref().map(bucket_info).as_ref());
    }

    fn describe_model_and_network(&self, entries: &mut Entries) {
        let is_v2 = matches!(self.base, BaseVersion::SdV2 | BaseVersion::SdV2V);
        entries.put("ss_v2", &is_v2);
        entries.put("ss_base_model_version", &self.base.ss_name().to_owned());
        entries.put_known("ss_sd_model_name", self.sd_model_name.as_ref());
        entries.put_known("ss_sd_model_hash", self.sd_model_hash.as_ref());
        entries.put_known("ss_new_sd_model_hash", self.new_sd_model_hash.as_ref());
        entries.put_known("ss_vae_name", self.vae_name.as_ref());
        entries.put("ss_clip_skip", &self.clip_skip);
        entries.put("ss_network_module", &"networks.lora".to_owned());
        entries.put("ss_network_dim", &self.network_dim);
        entries.put("ss_network_alpha", &self.network_alpha);
        entries.put("ss_network_dropout", &self.network_dropout);
        entries.put("ss_network_args", &json_object(&self.network_args, |value| serde_json::json!(value)));
        entries.put("ss_scale_weight_norms", &self.scale_weight_norms);
    }

    fn describe_optimisation(&self, entries: &mut Entries) {
        entries.put("ss_learning_rate", &self.learning_rate);
        entries.put("ss_unet_lr", &self.unet_lr);
        entries.put("ss_text_encoder_lr", &self.text_encoder_lr);
        entries.put("ss_lr_scheduler", &self.lr_scheduler);
        entries.put("ss_lr_warmup_steps", &self.lr_warmup_steps);
        entries.put("ss_optimizer", &self.optimizer);
        entries.put("ss_max_grad_norm", &self.max_grad_norm);
        entries.put("ss_prior_loss_weight", &self.prior_loss_weight);
        entries.put("ss_loss_type", &self.loss_type);
        entries.put("ss_min_snr_gamma", &self.min_snr_gamma);
        entries.put("ss_noise_offset", &self.noise_offset);
        entries.put("ss_ip_noise_gamma", &self.ip_noise_gamma);
        entries.put("ss_zero_terminal_snr", &self.zero_terminal_snr);
        entries.put_known("ss_debiased_estimation", self.debiased_estimation.as_ref());
        entries.put_known("ss_huber_c", self.huber_c.as_ref());
        entries.put_known("ss_huber_schedule", self.huber_schedule.as_ref());
        entries.put_known("ss_noise_offset_random_strength", self.noise_offset_random_strength.as_ref());
        entries.put_known("ss_adaptive_noise_scale", self.adaptive_noise_scale.as_ref());
        entries.put_known("ss_multires_noise_iterations", self.multires_noise_iterations.as_ref());
        entries.put_known("ss_multires_noise_discount", self.multires_noise_discount.as_ref());
    }

    fn describe_for_modelspec(&self, entries: &mut Entries) {
        let (width, height) = self.resolution_px;
        let prediction_type = if self.v_prediction { "v" } else { "epsilon" };
        entries.put("modelspec.sai_model_spec", &"1.0.1".to_owned());
        entries.put("modelspec.architecture", &self.base.architecture().to_owned());
        entries.put("modelspec.implementation", &self.base.implementation().to_owned());
        entries.put("modelspec.title", self.title.as_ref().unwrap_or(&self.output_name));
        entries.put("modelspec.resolution", &format!("{width}x{height}"));
        entries.put("modelspec.prediction_type", &prediction_type.to_owned());
        entries.put_known("modelspec.encoder_layer", self.clip_skip.as_ref());
        entries.put_known("modelspec.date", self.date_unix_s.map(iso_8601).as_ref());
        entries.put_known("modelspec.author", self.author.as_ref());
        entries.put_known("modelspec.description", self.description.as_ref());
        entries.put_known("modelspec.license", self.license.as_ref());
        entries.put_known("modelspec.usage_hint", self.usage_hint.as_ref());
        entries.put_known("modelspec.tags", self.tags.as_ref());
        entries.put_known("modelspec.trigger_phrase", self.trigger_phrase.as_ref());
        entries.put_known("modelspec.thumbnail", self.thumbnail.as_ref());
    }
}

#[derive(Default)]
struct Entries(BTreeMap<String, String>);

impl Entries {
    fn put(&mut self, key: &str, value: &impl PythonText) {
        self.0.insert(key.to_owned(), value.python_text());
    }

    /// Leaves an unknown value out instead of writing `None`.
    fn put_known(&mut self, key: &str, value: Option<&impl PythonText>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}

/// A JSON object with sorted keys.
fn json_object<T>(entries: &BTreeMap<String, T>, to_json: impl Fn(&T) -> serde_json::Value) -> String {
    let object: serde_json::Map<_, _> = entries.iter().map(|(key, value)| (key.clone(), to_json(value))).collect();
    serde_json::Value::Object(object).to_string()
}

fn bucket_info(buckets: &Buckets) -> String {
    let by_index = buckets.iter().enumerate().map(|(index, ((width, height), count))| {
        (index.to_string(), serde_json::json!({ "resolution": [width, height], "count": count }))
    });
    let by_index: serde_json::Map<_, _> = by_index.collect();
    serde_json::json!({ "buckets": by_index }).to_string()
}

//! The `config.json` files of a diffusers folder, as far as they decide how a network is built.
//!
//! Keys that change nothing here (training leftovers, names of classes) are ignored; a key that would change the
//! network in a way this program does not know is refused by name, never read over.

use crate::conditioning::PictureSizes;
use crate::error::ModelError;
use crate::weights::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One value for all levels, or one for each.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum PerLevel {
    /// The same everywhere.
    Same(usize),
    /// From the highest resolution down.
    Each(Vec<usize>),
}

impl PerLevel {
    /// The value of a level. A list that is too short repeats its last value.
    pub fn at(&self, level: usize) -> usize {
        match self {
            Self::Same(value) => *value,
            Self::Each(values) => values.get(level).or(values.last()).copied().unwrap_or(1),
        }
    }

    fn is_positive(&self, levels: usize) -> bool {
        match self {
            Self::Same(value) => *value > 0,
            Self::Each(values) => values.len() == levels && values.iter().all(|v| *v > 0),
        }
    }
}

/// `unet/config.json`: a `UNet2DConditionModel` of diffusers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct UnetConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each level, highest resolution first.
    pub block_out_channels: Vec<usize>,
    /// `CrossAttnDownBlock2D` or `DownBlock2D` for each level.
    pub down_block_types: Vec<String>,
    /// Their mirrors, lowest resolution first.
    pub up_block_types: Vec<String>,
    /// `UNetMidBlock2DCrossAttn`, or none.
    pub mid_block_type: Option<String>,
    /// Resnets of a down block (an up block has one more).
    pub layers_per_block: PerLevel,
    /// Transformer blocks of an attention module.
    pub transformer_layers_per_block: PerLevel,
    /// Width of the text.
    pub cross_attention_dim: PerLevel,
    /// In spite of its name the *number* of heads: what diffusers calls a legacy misnomer and keeps.
    pub attention_head_dim: PerLevel,
    /// The number of heads where it is given, instead of `attention_head_dim`.
    pub num_attention_heads: Option<PerLevel>,
    /// Linear (SD 2.x) or 1x1 convolution (SD 1.x) before and after the transformer blocks.
    pub use_linear_projection: bool,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Added to the variance in the resnets' norms.
    pub norm_eps: f64,
    /// cos before sin in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the frequencies' denominator.
    pub freq_shift: f64,
    /// Width of the time embedding; four times the first level's channels if absent.
    pub time_embedding_dim: Option<usize>,
    /// Divides the output of the middle block's resnets.
    pub mid_block_scale_factor: f64,
    /// Padding of the down-sampling convolutions.
    pub downsample_padding: usize,
    /// Side of the latents that it was trained on.
    pub sample_size: Option<PerLevel>,
    /// `text_time` where the network is also told the pooled text and the picture's sizes.
    pub addition_embed_type: Option<String>,
    /// Width of each size there.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled text and all sizes together.
    pub projection_class_embeddings_input_dim: Option<usize>,
}

/// What the network is told besides text and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedConditioning {
    /// Width of the pooled text.
    pub pooled_width: usize,
    /// Width of each of the six sizes.
    pub size_width: usize,
}

impl AddedConditioning {
    /// Width of all together.
    pub fn width(self) -> usize {
        self.pooled_width + PictureSizes::COUNT * self.size_width
    }
}

impl Default for UnetConfig {
    /// SD 1.5's, whose file leaves most of it out.
    fn default() -> Self {
        let names = |first: &str, rest: &str| [first, rest, rest, rest].map(str::to_owned);
        let mut down = names("CrossAttnDownBlock2D", "CrossAttnDownBlock2D").to_vec();
        "DownBlock2D".clone_into(&mut down[3]);
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: down,
            up_block_types: names("UpBlock2D", "CrossAttnUpBlock2D").to_vec(),
            mid_block_type: Some("UNetMidBlock2DCrossAttn".into()),
            layers_per_block: PerLevel::Same(2),
            transformer_layers_per_block: PerLevel::Same(1),
            cross_attention_dim: PerLevel::Same(1280),
            attention_head_dim: PerLevel::Same(8),
            num_attention_heads: None,
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embedding_dim: None,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            sample_size: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
        }
    }
}

/// Keys of `unet/config.json` that must be absent, null, or of this value.
const UNET_FIXED: [(&str, &str); 18] = [
    ("act_fn", "\"silu\""),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1.0"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

impl UnetConfig {
    /// Reads and checks the text of `unet/config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// Text that is not JSON, values that make no network, settings that are not supported.
    pub fn parse(text: &str, path: &str) -> Result<Self> {
        let config: Self = parse(text, path, &UNET_FIXED)?;
        let levels = config.block_out_channels.len();
        let wrong = |reason: String| Err(ModelError::BadConfig { path: path.to_owned(), reason });
        if levels == 0 || config.down_block_types.len() != levels || config.up_block_types.len() != levels {
            return wrong(format!("{levels} levels of channels need as many down and up blocks"));
        }
        for (kind, known) in [(&config.down_block_types, DOWN_BLOCKS), (&config.up_block_types, UP_BLOCKS)] {
            if let Some(unknown) = kind.iter().find(|name| !known.contains(&name.as_str())) {
                return wrong(format!("block type `{unknown}` is not supported, only {}", known.join(" and ")));
            }
        }
        if config.mid_block_type.as_deref().is_some_and(|name| name != "UNetMidBlock2DCrossAttn") {
            return wrong(format!("mid_block_type {:?} is not supported", config.mid_block_type));
        }
        for level in 0..levels {
            let (channels, heads) = (config.block_out_channels[level], config.num_heads(level));
            if channels == 0
                || !channels.is_multiple_of(config.norm_num_groups.max(1))
                || !channels.is_multiple_of(heads.max(1))
            {
                let groups = config.norm_num_groups;
                return wrong(format!("{channels} channels do not divide into {groups} groups and {heads} heads"));
            }
        }
        let lists = [&config.layers_per_block, &config.transformer_layers_per_block, &config.cross_attention_dim];
        if !lists.iter().all(|list| list.is_positive(levels)) || config.norm_num_groups == 0 {
            return wrong(format!("a list with other than {levels} positive entries"));
        }
        match config.addition_embed_type.as_deref() {
            None => {}
            Some("text_time") if config.added_conditioning().is_some() => {}
            Some("text_time") => {
                let reason = "`text_time` needs `addition_time_embed_dim` and a larger \
                              `projection_class_embeddings_input_dim`";
                return wrong(reason.to_owned());
            }
            Some(value) => {
                let (key, value) = ("addition_embed_type".into(), value.to_owned());
                return Err(ModelError::Unsupported { path: path.to_owned(), key, value });
            }
        }
        Ok(config)
    }

    /// What the network is told besides text and time; `None` if nothing.
    pub fn added_conditioning(&self) -> Option<AddedConditioning> {
        self.addition_embed_type.as_ref()?;
        let (size_width, width) = (self.addition_time_embed_dim?, self.projection_class_embeddings_input_dim?);
        let pooled_width = width.checked_sub(PictureSizes::COUNT * size_width).filter(|width| *width > 0)?;
        (size_width > 0).then_some(AddedConditioning { pooled_width, size_width })
    }

    /// Attention heads of a level.
    pub fn num_heads(&self, level: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }

    /// How many times smaller the lowest map is than the latents.
    pub fn total_downsampling(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

const DOWN_BLOCKS: &[&str] = &["CrossAttnDownBlock2D", "DownBlock2D"];
const UP_BLOCKS: &[&str] = &["CrossAttnUpBlock2D", "UpBlock2D"];

/// `text_encoder/config.json`: a `CLIPTextModel` of transformers.
#[derive(Clone, Debug, Deserialize)]
pub struct TextEncoderConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Tokens of a prompt, marks included.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// `quick_gelu` (OpenAI) or `gelu` (OpenCLIP).
    #[serde(default = "default_act")]
    pub hidden_act: String,
    /// Added to the variance in the norms.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// Width of the projected pooled text; the encoder's own width if absent.
    #[serde(default)]
    pub projection_dim: Option<usize>,
}

/// What a base takes of a text encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextOutput {
    /// The last hidden state after the final norm (SD 1.x; SD 2.x, whose files leave the last layer out).
    #[default]
    LastNormed,
    /// The last hidden state but one, as it is. The last layer and the final norm are of no use and not loaded.
    Penultimate,
    /// The same, and the pooled text: the last hidden state after the final norm at the first end mark, projected.
    PenultimateAndPooled,
}

impl TextOutput {
    /// Layers at the end that the context does not see.
    pub fn num_skipped(self) -> usize {
        usize::from(self != Self::LastNormed)
    }

    /// Whether the text as a whole is told too.
    pub fn is_pooled(self) -> bool {
        self == Self::PenultimateAndPooled
    }
}

fn default_positions() -> usize {
    77
}
fn default_act() -> String {
    "quick_gelu".into()
}
fn default_eps() -> f64 {
    1e-5
}

impl TextEncoderConfig {
    /// Reads and checks the text of `text_encoder/config.json`.
    ///
    /// # Errors
    /// Text that is not JSON, values that make no network, settings that are not supported.
    pub fn parse(text: &str, path: &str) -> Result<Self> {
        let config: Self = parse(text, path, &[])?;
        if config.hidden_size == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads.max(1)) {
            let reason = format!("{} heads do not divide width {}", config.num_attention_heads, config.hidden_size);
            return Err(ModelError::BadConfig { path: path.to_owned(), reason });
        }
        if !["quick_gelu", "gelu"].contains(&config.hidden_act.as_str()) {
            let (key, value) = ("hidden_act".into(), config.hidden_act);
            return Err(ModelError::Unsupported { path: path.to_owned(), key, value });
        }
        Ok(config)
    }
}

/// `vae/config.json`: an `AutoencoderKL` of diffusers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Colours of a picture.
    pub in_channels: usize,
    /// Colours of a picture.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, highest resolution first.
    pub block_out_channels: Vec<usize>,
    /// Resnets of an encoder block (a decoder block has one more).
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Whether the middle block has an attention.
    pub mid_block_add_attention: bool,
    /// Latents are multiplied by it, so that their variance is about one.
    pub scaling_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution stands before the decoder.
    pub use_post_quant_conv: bool,
    /// Whether f16 overflows in it.
    pub force_upcast: Option<bool>,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            scaling_factor: 0.18215,
            use_quant_conv: true,
            use_post_quant_conv: true,
            force_upcast: None,
        }
    }
}

impl VaeConfig {
    /// Reads and checks the text of `vae/config.json`.
    ///
    /// # Errors
    /// Text that is not JSON, values that make no network, settings that are not supported.
    pub fn parse(text: &str, path: &str) -> Result<Self> {
        let fixed =
            [("act_fn", "\"silu\""), ("latents_mean", "null"), ("latents_std", "null"), ("shift_factor", "null")];
        let config: Self = parse(text, path, &fixed)?;
        let groups = config.norm_num_groups;
        if config.block_out_channels.is_empty()
            || groups == 0
            || config.block_out_channels.iter().any(|channels| *channels == 0 || !channels.is_multiple_of(groups))
        {
            let reason = format!("channels {:?} do not divide into {groups} groups", config.block_out_channels);
            return Err(ModelError::BadConfig { path: path.to_owned(), reason });
        }
        if !(config.scaling_factor.is_finite() && config.scaling_factor > 0.0) {
            let reason = format!("scaling_factor {} is not a positive number", config.scaling_factor);
            return Err(ModelError::BadConfig { path: path.to_owned(), reason });
        }
        Ok(config)
    }

    /// The scale of SDXL's autoencoder.
    pub(crate) const SDXL_SCALING_FACTOR: f64 = 0.13025;

    /// Whether the scale is that of SD 1.x, which is also the default of programs that save another autoencoder without one:
    /// then `force_upcast` is not set either.
    pub(crate) fn has_scale_of_sd1(&self) -> bool {
        self.scaling_factor == Self::default().scaling_factor && self.force_upcast != Some(true)
    }

    /// How many pixels wide one latent is.
    pub fn downsampling(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// What the U-Net predicts.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity sqrt(a) noise - sqrt(1 - a) x0 (Salimans and Ho 2022, arXiv 2202.00512).
    VPrediction,
}

/// What the user says of the noising process, against or instead of what the base says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduleOverride {
    /// What the network predicts.
    pub prediction: Option<Prediction>,
    /// Whether the last timestep is pure noise.
    pub zero_terminal_snr: Option<bool>,
}

impl From<Option<Prediction>> for ScheduleOverride {
    fn from(prediction: Option<Prediction>) -> Self {
        Self { prediction, zero_terminal_snr: None }
    }
}

impl SchedulerConfig {
    /// The process as the user has it.
    pub(crate) fn overridden(mut self, told: ScheduleOverride) -> Self {
        self.prediction_type = told.prediction.unwrap_or(self.prediction_type);
        self.rescale_betas_zero_snr = told.zero_terminal_snr.unwrap_or(self.rescale_betas_zero_snr);
        self
    }
}

/// How a sampler's timesteps lie within the noising process (Lin et al. 2023, arXiv 2305.08891, table 2).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Equally spaced, both ends included.
    Linspace,
    /// Equally spaced from the first timestep on.
    Leading,
    /// Equally spaced back from the last timestep.
    Trailing,
}

/// `scheduler/scheduler_config.json`: the noising process, and what the base asks of samplers. Where a sampler's key is
/// absent, each sampler has a default of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Steps of the noising process.
    pub num_train_timesteps: usize,
    /// First variance.
    pub beta_start: f64,
    /// Last variance.
    pub beta_end: f64,
    /// `scaled_linear` or `linear`.
    pub beta_schedule: String,
    /// All variances, instead of the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the network was taught to predict.
    pub prediction_type: Prediction,
    /// Shift the schedule so that the last step is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// Where a sampler's timesteps lie.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to the timesteps of leading spacing.
    pub steps_offset: Option<usize>,
    /// Whether the last step of DDIM ends at a signal of 1 instead of the first timestep's.
    pub set_alpha_to_one: Option<bool>,
    /// Whether DDIM clips what it takes for the clean latents.
    pub clip_sample: Option<bool>,
    /// To which range it clips: -this to this.
    pub clip_sample_range: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            rescale_betas_zero_snr: false,
            timestep_spacing: None,
            steps_offset: None,
            set_alpha_to_one: None,
            clip_sample: None,
            clip_sample_range: 1.0,
        }
    }
}

impl SchedulerConfig {
    /// Reads the text of `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// Text that is not JSON, or values that make no schedule.
    pub fn parse(text: &str, path: &str) -> Result<Self> {
        let config: Self = parse(text, path, &[])?;
        if config.trained_betas.is_none() && !["scaled_linear", "linear"].contains(&config.beta_schedule.as_str()) {
            let (key, value) = ("beta_schedule".into(), config.beta_schedule);
            return Err(ModelError::Unsupported { path: path.to_owned(), key, value });
        }
        let betas = config.trained_betas.clone().unwrap_or_else(|| vec![config.beta_start, config.beta_end]);
        if config.num_train_timesteps < 2 || betas.iter().any(|beta| !(*beta > 0.0 && *beta < 1.0)) {
            let reason = "betas must lie between 0 and 1, over at least two timesteps".into();
            return Err(ModelError::BadConfig { path: path.to_owned(), reason });
        }
        Ok(config)
    }
}

fn parse<T: DeserializeOwned>(text: &str, path: &str, fixed: &[(&str, &str)]) -> Result<T> {
    let wrong = |error: serde_json::Error| ModelError::BadConfig { path: path.to_owned(), reason: error.to_string() };
    let value: Value = serde_json::from_str(text).map_err(wrong)?;
    for (key, expected) in fixed {
        let Some(found) = value.get(key).filter(|found| !found.is_null()) else { continue };
        let same = match (found.as_f64(), expected.parse::<f64>().ok()) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-12,
            _ => serde_json::from_str::<Value>(expected).is_ok_and(|expected| *found == expected),
        };
        if !same {
            let (key, value) = ((*key).to_owned(), found.to_string());
            return Err(ModelError::Unsupported { path: path.to_owned(), key, value });
        }
    }
    serde_json::from_value(value).map_err(wrong)
}

#[cfg(test)]
impl UnetConfig {
    /// SDXL's, as its `unet/config.json` has it.
    pub(crate) fn sdxl() -> Self {
        let text = r#"{"block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}"#;
        Self::parse(text, "SDXL").unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_unet_config_is_sd15() {
        let config = UnetConfig::parse(r#"{"cross_attention_dim": 768}"#, "c").unwrap();
        assert_eq!((config.num_heads(3), config.total_downsampling(), config.cross_attention_dim.at(2)), (8, 8, 768));
        assert_eq!(config.down_block_types[3], "DownBlock2D");
    }

    #[test]
    fn a_setting_that_would_change_the_network_is_refused_by_name() {
        for (key, value) in
            [("class_embed_type", "\"timestep\""), ("conv_in_kernel", "5"), ("addition_embed_type", "\"text_image\"")]
        {
            let error = UnetConfig::parse(&format!("{{\"{key}\": {value}}}"), "unet/config.json").unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        assert!(UnetConfig::parse(r#"{"act_fn": "silu", "class_embed_type": null, "conv_in_kernel": 3}"#, "c").is_ok());
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(UnetConfig::parse(r#"{"norm_num_groups": 7}"#, "c").is_err());
        assert!(UnetConfig::parse(r#"{"block_out_channels": [320]}"#, "c").is_err());
        assert!(UnetConfig::parse(r#"{"down_block_types": ["AttnDownBlock2D", "x", "y", "z"]}"#, "c").is_err());
        assert!(VaeConfig::parse(r#"{"scaling_factor": 0}"#, "c").is_err());
        assert!(SchedulerConfig::parse(r#"{"beta_schedule": "sigmoid"}"#, "c").is_err());
        assert!(TextEncoderConfig::parse("{", "c").is_err());
    }
}

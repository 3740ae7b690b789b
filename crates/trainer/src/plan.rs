//! The second stage of the settings: checked, complete, flat. Only a [`Plan`] reaches the run.
//!
//! All violations are found at once. What depends on the base model (sizes it can divide, patterns that match nothing)
//! and on the disk is checked where the model and the images are read.

use std::path::{Path, PathBuf};

use crate::adamw::AdamWSettings;
use crate::config::{
    Checkpointing, Compute, Dtype, LoraConfig, ModelConfig, Ops, OptimizerConfig, SamplesConfig, ScheduleConfig,
    ScheduleKind, StepsConfig, Targets, TrainConfig,
};
use crate::data_plan::{DataPlan, PriorPlan, PriorTerm};
use crate::error::{TrainError, Violation};
use crate::learning_rate::LearningRateSchedule;
use loralei_model::{DeviceChoice, NumberTypes, Prediction, TrainingSize};

/// Which base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseChoice {
    /// The small model inside the program.
    Emoji,
    /// A diffusers folder, a checkpoint file, or the id of a model on a hub.
    Named(String),
}

impl From<&str> for BaseChoice {
    /// What the user calls it.
    fn from(base: &str) -> Self {
        if base == "emoji" { Self::Emoji } else { Self::Named(base.to_owned()) }
    }
}

/// The factors of one component of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentPlan {
    /// Which layers; never [`Targets::None`], and patterns are never empty.
    pub targets: Targets,
    /// Rank, 1 or more.
    pub rank: usize,
    /// The update is scaled by alpha / rank; finite, above 0.
    pub alpha: f64,
    /// Full learning rate, before the schedule; finite, above 0.
    pub learning_rate: f64,
}

/// A training run, checked: every value is within its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The base model.
    pub base: BaseChoice,
    /// What the base predicts, against or instead of what it says.
    pub prediction: Option<Prediction>,
    /// Number type in which the base computes.
    pub dtype: Dtype,
    /// That, and how the frozen weights are kept.
    pub number_types: NumberTypes,
    /// Where the run computes.
    pub device: DeviceChoice,
    /// Which implementation of the operations.
    pub ops: Ops,
    /// What products round to.
    pub compute: Compute,
    /// Whether products of f32 on an NVIDIA card may be rounded.
    pub tf32: bool,
    /// Images, captions, masks.
    pub data: DataPlan,
    /// Factors in the U-Net; `None` if it stays frozen. At least one component is trained.
    pub unet: Option<ComponentPlan>,
    /// Factors in the text encoder; `None` if it stays frozen.
    pub text_encoder: Option<ComponentPlan>,
    /// AdamW's constants.
    pub adamw: AdamWSettings,
    /// Largest global gradient norm, above 0; `None` for no clipping.
    pub max_grad_norm: Option<f64>,
    /// Factor of the components' learning rates at each step.
    pub schedule: LearningRateSchedule,
    /// Optimizer steps, 1 or more.
    pub steps: u64,
    /// Samples in a micro-batch, 1 or more.
    pub batch_size: usize,
    /// Micro-batches in a step, 1 or more.
    pub accumulate: usize,
    /// The seed of all randomness.
    pub seed: u64,
    /// What is kept for the backward pass.
    pub checkpointing: Checkpointing,
    /// What must stay as it was; `None` for no such term.
    pub prior: Option<PriorPlan>,
    /// Pictures before and after; `None` for none.
    pub samples: Option<SamplesConfig>,
    /// The folder of the run.
    pub output_folder: PathBuf,
    /// Name of the adapter file, without `.safetensors`.
    pub output_name: String,
    /// Number type of the adapter file.
    pub precision: Dtype,
    /// Settings that are allowed but will not do what they say, one line each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Checks and resolves `config`. Reads nothing from the disk.
    ///
    /// # Errors
    /// [`TrainError::Settings`] with every violation found.
    pub fn new(config: &TrainConfig) -> Result<Self, TrainError> {
        let mut checks = Checks::default();
        let base = checks.base(&config.model.base);
        let (dtype, number_types) = checks.number_types(&config.model);
        let data = checks.data(&config.data);
        let (unet, text_encoder) = checks.components(&config.lora, config.optimizer.learning_rate);
        let (adamw, max_grad_norm) = checks.optimizer(&config.optimizer);
        checks.steps(&config.train);
        let schedule = checks.schedule(&config.schedule, config.train.steps);
        let prior = checks.prior(&config.prior, &data);
        let samples = checks.samples(&config.samples);
        let (output_folder, output_name) = checks.output(config, data.first_folder());
        if !checks.violations.is_empty() {
            return Err(TrainError::Settings { violations: checks.violations });
        }
        let StepsConfig { steps, batch_size, accumulate, seed, checkpointing } = config.train;
        Ok(Self {
            base,
            prediction: config.model.prediction.map(Prediction::from),
            dtype,
            number_types,
            device: config.model.device,
            ops: config.model.ops,
            compute: config.model.compute,
            tf32: config.model.tf32,
            data,
            unet,
            text_encoder,
            adamw,
            max_grad_norm,
            schedule,
            steps,
            batch_size,
            accumulate,
            seed,
            checkpointing,
            prior,
            samples,
            output_folder,
            output_name,
            precision: config.output.precision,
            warnings: checks.warnings,
        })
    }

    /// What decides how much memory the run takes with images of this size.
    pub fn training_size(&self, width_px: usize, height_px: usize) -> TrainingSize {
        TrainingSize {
            width_px,
            height_px,
            batch_size: self.batch_size,
            text_encoder: self.text_encoder.is_some(),
            rank: self.unet.as_ref().map_or(0, |unet| unet.rank),
            recompute: self.checkpointing == Checkpointing::Block,
            bytes_per_weight: self.number_types.weight_bytes(),
            bytes_per_number: candle_core::DType::from(self.dtype).size_in_bytes() as u64,
        }
    }

    /// Whether class images are learned from.
    pub fn learns_class(&self) -> bool {
        matches!(&self.prior, Some(PriorPlan { kind: PriorTerm::Images { .. }, .. }))
    }

    /// Samples that one optimizer step sees.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }
}

/// What was found wrong so far.
#[derive(Default)]
pub(crate) struct Checks {
    violations: Vec<Violation>,
    warnings: Vec<String>,
}

impl Checks {
    pub(crate) fn refuse(&mut self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        self.violations.push(Violation { key: key.to_string(), problem: problem.into(), hint: hint.into() });
    }

    pub(crate) fn at_least_one(&mut self, key: &str, value: u64, usual: &str) {
        if value < 1 {
            self.refuse(key, format!("{value} is below 1"), format!("set `{key}` to 1 or more; {usual}"));
        }
    }

    /// Refuses a key unless it is refused already.
    pub(crate) fn refuse_once(&mut self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        if self.violations.iter().all(|violation| violation.key != key) {
            self.refuse(key, problem, hint);
        }
    }

    pub(crate) fn has_violations(&self) -> bool {
        !self.violations.is_empty()
    }

    /// `usual` is what the hint recommends.
    pub(crate) fn within(&mut self, key: &str, value: f64, is_allowed: impl Fn(f64) -> bool, range: &str, usual: f64) {
        if !value.is_finite() || !is_allowed(value) {
            self.refuse(
                key,
                format!("{value} is not {range}"),
                format!("set `{key}` to a number {range}, such as {usual}"),
            );
        }
    }

    fn base(&mut self, base: &str) -> BaseChoice {
        if base.trim().is_empty() {
            self.refuse(
                "model.base",
                "is empty",
                "set `model.base` to \"emoji\", a diffusers folder, a checkpoint file or the id of a model on the hub",
            );
        }
        BaseChoice::from(base)
    }

    fn number_types(&mut self, model: &ModelConfig) -> (Dtype, NumberTypes) {
        self.violations.extend(model.compute.check(model.ops, model.device == DeviceChoice::Cpu).err());
        let dtype = model.dtype.unwrap_or_else(|| Dtype::usual(model.device));
        let types =
            model.compute.weights(model.weights).number_types(dtype, model.ops, model.device == DeviceChoice::Cpu);
        let types = types.unwrap_or_else(|violation| {
            self.violations.push(violation);
            candle_core::DType::from(dtype).into()
        });
        (dtype, types)
    }

    fn samples(&mut self, samples: &SamplesConfig) -> Option<SamplesConfig> {
        if !(1..=1000).contains(&samples.steps) {
            self.refuse("samples.steps", format!("{} is not between 1 and 1000", samples.steps), "25 to 30 are usual");
        }
        self.within("samples.guidance_scale", samples.guidance_scale, |g| g >= 0.0, "of 0 or more", 7.5);
        (!samples.prompts.is_empty()).then(|| samples.clone())
    }

    fn components(&mut self, lora: &LoraConfig, learning_rate: f64) -> (Option<ComponentPlan>, Option<ComponentPlan>) {
        let (unet, text) = (&lora.unet, &lora.text_encoder);
        if text.targets == Targets::CrossAttention {
            let hint = "use \"attention\", \"full\", \"none\" or a list of patterns";
            self.refuse("lora.text_encoder.targets", "the text encoder has no cross-attention", hint);
        }
        if unet.targets == Targets::None && text.targets == Targets::None {
            let problem = "nothing to train: the text encoder's targets are \"none\" as well";
            self.refuse("lora.unet.targets", problem, "set one of them to \"attention\" or \"full\"");
        }
        self.rank("lora.rank", lora.rank);
        self.alpha("lora.alpha", lora.alpha);
        let unet = Component {
            section: "lora.unet",
            targets: &unet.targets,
            rank: unet.rank,
            alpha: unet.alpha,
            learning_rate: unet.learning_rate,
        };
        let text = Component {
            section: "lora.text_encoder",
            targets: &text.targets,
            rank: text.rank,
            alpha: text.alpha,
            learning_rate: text.learning_rate,
        };
        (self.component(unet, lora, learning_rate), self.component(text, lora, learning_rate))
    }

    fn component(&mut self, own: Component<'_>, lora: &LoraConfig, learning_rate: f64) -> Option<ComponentPlan> {
        let key = |name: &str| format!("{}.{name}", own.section);
        if let Targets::Patterns(patterns) = own.targets
            && (patterns.is_empty() || patterns.iter().any(|pattern| pattern.trim().is_empty()))
        {
            let hint = "name at least one pattern, such as \"*.attn2.to_k\", or use \"none\"";
            self.refuse(&key("targets"), "is an empty list or has an empty pattern", hint);
        }
        if let Some(rank) = own.rank {
            self.rank(&key("rank"), rank);
        }
        self.alpha(&key("alpha"), own.alpha);
        if let Some(rate) = own.learning_rate {
            self.within(&key("learning_rate"), rate, |rate| rate > 0.0, "above 0", 1e-4);
        }
        if *own.targets == Targets::None {
            return None;
        }
        let rank = own.rank.unwrap_or(lora.rank);
        Some(ComponentPlan {
            targets: own.targets.clone(),
            rank,
            alpha: own.alpha.or(lora.alpha).unwrap_or(rank as f64),
            learning_rate: own.learning_rate.unwrap_or(learning_rate),
        })
    }

    fn rank(&mut self, key: &str, rank: usize) {
        self.at_least_one(key, rank as u64, "4 to 32 is usual");
    }

    fn alpha(&mut self, key: &str, alpha: Option<f64>) {
        if let Some(alpha) = alpha {
            self.within(key, alpha, |alpha| alpha > 0.0, "above 0", 4.0);
        }
    }

    fn optimizer(&mut self, optimizer: &OptimizerConfig) -> (AdamWSettings, Option<f64>) {
        let OptimizerConfig { learning_rate, weight_decay, beta1, beta2, eps, max_grad_norm } = *optimizer;
        self.within("optimizer.learning_rate", learning_rate, |rate| rate > 0.0, "above 0", 1e-4);
        self.within("optimizer.weight_decay", weight_decay, |decay| decay >= 0.0, "0 or above", 0.01);
        self.within("optimizer.beta1", beta1, |beta| (0.0..1.0).contains(&beta), "from 0 to below 1", 0.9);
        self.within("optimizer.beta2", beta2, |beta| (0.0..1.0).contains(&beta), "from 0 to below 1", 0.999);
        self.within("optimizer.eps", eps, |eps| eps > 0.0, "above 0", 1e-8);
        self.within("optimizer.max_grad_norm", max_grad_norm, |norm| norm >= 0.0, "0 or above", 1.0);
        (AdamWSettings { beta1, beta2, eps, weight_decay }, (max_grad_norm > 0.0).then_some(max_grad_norm))
    }

    fn steps(&mut self, train: &StepsConfig) {
        self.at_least_one("train.steps", train.steps, "about 100 for each image is a start");
        self.at_least_one("train.batch_size", train.batch_size as u64, "1 needs the least memory");
        self.at_least_one("train.accumulate", train.accumulate as u64, "1 is the default");
    }

    fn schedule(&mut self, schedule: &ScheduleConfig, steps: u64) -> LearningRateSchedule {
        let ScheduleConfig { kind, warmup_steps, final_ratio } = *schedule;
        self.within("schedule.final_ratio", final_ratio, |ratio| (0.0..=1.0).contains(&ratio), "from 0 to 1", 0.05);
        if warmup_steps > steps {
            self.warnings.push(format!(
                "the learning rate never reaches its full value: `schedule.warmup_steps` is {warmup_steps}, \
                 `train.steps` {steps}"
            ));
        }
        if kind == ScheduleKind::Constant && final_ratio > 0.0 {
            self.warnings.push(format!("`schedule.final_ratio` {final_ratio} has no effect: the schedule is constant"));
        }
        LearningRateSchedule { kind, warmup_steps, steps, final_ratio }
    }

    fn output(&mut self, config: &TrainConfig, images: &Path) -> (PathBuf, String) {
        let last_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let folder = config
            .output
            .folder
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(last_name(images).unwrap_or_else(|| "lora".to_string())));
        if folder.as_os_str().is_empty() {
            self.refuse("output.folder", "is empty", "name a folder, such as runs/my-cat");
        }
        let name = config.output.name.clone().or_else(|| last_name(&folder)).unwrap_or_else(|| "lora".to_string());
        if name.trim().is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
            let hint = "give a plain file name without folder and ending, such as my-cat";
            self.refuse("output.name", format!("{name:?} is not a file name"), hint);
        }
        (folder, name)
    }
}

/// The settings of one component before the shared ones fill the gaps.
#[derive(Clone, Copy)]
struct Component<'a> {
    section: &'static str,
    targets: &'a Targets,
    rank: Option<usize>,
    alpha: Option<f64>,
    learning_rate: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_layers::ConfigLayers;
    use loralei_model::WeightType;

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

    #[test]
    fn each_value_out_of_range_is_refused_under_its_own_key() {
        for set in [
            "lora.rank=0",
            "lora.alpha=0",
            "lora.unet.rank=0",
            "lora.unet.alpha=-1",
            "lora.text_encoder.learning_rate=0",
            "lora.unet.learning_rate=nan",
            "lora.unet.targets=[]",
            "lora.text_encoder.targets=[\"*.q_proj\", \" \"]",
            "lora.text_encoder.targets=cross-attention",
            "lora.unet.targets=none",
            "optimizer.learning_rate=0.0",
            "optimizer.learning_rate=inf",
            "optimizer.weight_decay=-0.1",
            "optimizer.beta1=1.0",
            "optimizer.beta2=-0.1",
            "optimizer.eps=0",
            "optimizer.max_grad_norm=nan",
            "schedule.final_ratio=1.5",
            "train.steps=0",
            "train.batch_size=0",
            "train.accumulate=0",
            "prior.weight=0",
            "prior.every_steps=0",
            "data.size_px=0",
            "data.width_px=4",
            "data.images=",
            "data.repeats=0",
            "data.captions.dropout=1.5",
            "data.captions.tag_dropout=-0.1",
            "data.captions.separator=",
            "data.outside_mask_weight=2",
            "data.max_tokens=100",
            "data.bucket_step_px=0",
            "data.bucket_max_px=9000",
            "data.bucket_min_px=2000",
            "data.cache=",
            "model.base=",
            "output.folder=",
            "output.name=a/b",
            "output.name=..",
        ] {
            let key = set.split_once('=').unwrap().0;
            assert_eq!(violated_keys(&[set]), [key], "{set}");
        }
    }

    #[test]
    fn products_of_bf16_are_refused_where_nothing_multiplies_them() {
        let error = |sets: &[&str]| plan(sets).unwrap_err().to_string();
        assert!(error(&["model.compute=bf16", "model.ops=generic"]).contains("our kernels"));
        assert!(error(&["model.compute=bf16", "model.device=metal"]).contains("for the processor"));
        let of_processor = plan(&["model.compute=bf16"]);
        assert_eq!(of_processor.is_ok(), loralei_model::ops::multiplies_bf16());
        if let Ok(plan) = of_processor {
            assert_eq!(
                (plan.compute, plan.number_types.weights),
                (Compute::Bf16, WeightType::Exactly(candle_core::DType::BF16))
            );
        }
    }

    #[test]
    fn weights_are_narrow_where_our_kernels_compute_and_of_the_dtype_elsewhere() {
        let kept = |sets: &[&str]| plan(sets).unwrap().number_types.weights;
        let exactly = |dtype: Dtype| WeightType::Exactly(dtype.into());
        assert_eq!(kept(&[]), WeightType::Half);
        assert_eq!(kept(&["model.dtype=bf16"]), WeightType::Half);
        assert_eq!(kept(&["model.weights=f32"]), exactly(Dtype::F32));
        assert_eq!(kept(&["model.weights=bf16", "model.ops=generic"]), exactly(Dtype::Bf16));
        assert_eq!(kept(&["model.ops=generic"]), exactly(Dtype::F32));
        assert_eq!(kept(&["model.device=metal", "model.dtype=f16"]), exactly(Dtype::F16));
        assert_eq!(kept(&["model.device=metal", "model.dtype=f32", "model.weights=f32"]), exactly(Dtype::F32));
        let error = plan(&["model.device=metal", "model.dtype=bf16", "model.weights=f16"]).unwrap_err();
        assert_eq!(error.to_string(), "`model.weights`: f16 on a card that computes in bf16");
        assert!(error.hint().unwrap().contains("auto") && error.exit_code() == 2);
    }

    #[test]
    fn all_violations_are_reported_at_once_each_with_a_hint() {
        let error = plan(&["lora.rank=0", "train.steps=0", "optimizer.eps=-1"]).unwrap_err();
        let text = error.to_string();
        assert!(!text.contains('\n'));
        for key in ["`lora.rank`: 0 is below 1", "`train.steps`: 0 is below 1", "`optimizer.eps`: -1 is not above 0"] {
            assert!(text.contains(key), "{text}");
        }
        assert_eq!(error.hint().unwrap().matches("set `").count(), 3);
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_component_takes_what_it_does_not_set_from_the_shared_settings() {
        let inherited =
            plan(&["lora.rank=8", "optimizer.learning_rate=2e-3", "lora.text_encoder.targets=full"]).unwrap();
        let unet = ComponentPlan { targets: Targets::Attention, rank: 8, alpha: 8.0, learning_rate: 2e-3 };
        assert_eq!(inherited.unet, Some(unet.clone()));
        assert_eq!(inherited.text_encoder, Some(ComponentPlan { targets: Targets::Full, ..unet }));

        let own = plan(&[
            "lora.rank=8",
            "lora.unet.rank=16",
            "lora.text_encoder.targets=attention",
            "lora.text_encoder.rank=2",
            "lora.text_encoder.alpha=1",
            "lora.text_encoder.learning_rate=5e-5",
        ])
        .unwrap();
        let unet = ComponentPlan { targets: Targets::Attention, rank: 16, alpha: 16.0, learning_rate: 1e-4 };
        let text = ComponentPlan { targets: Targets::Attention, rank: 2, alpha: 1.0, learning_rate: 5e-5 };
        assert_eq!((own.unet, own.text_encoder), (Some(unet), Some(text)));

        let shared_alpha = plan(&["lora.alpha=3", "lora.unet.rank=16"]).unwrap();
        assert_eq!(shared_alpha.unet.map(|unet| (unet.rank, unet.alpha)), Some((16, 3.0)));
        assert_eq!(shared_alpha.text_encoder, None);
    }

    #[test]
    fn the_run_is_named_after_its_images_unless_it_has_a_name() {
        let named = |sets: &[&str]| plan(sets).map(|plan| (plan.output_folder, plan.output_name)).unwrap();
        assert_eq!(named(&[]), (PathBuf::from("runs/cat"), "cat".to_string()));
        assert_eq!(named(&["output.folder=out/first"]), (PathBuf::from("out/first"), "first".to_string()));
        assert_eq!(named(&["output.name=tabby"]), (PathBuf::from("runs/cat"), "tabby".to_string()));
    }

    #[test]
    fn width_and_height_override_the_size_one_by_one() {
        let plan = plan(&["data.size_px=256", "data.height_px=384"]).unwrap();
        assert_eq!(plan.data.largest_px(), (256, 384));
    }

    #[test]
    fn settings_without_effect_are_said() {
        let short = plan(&["train.steps=10", "schedule.warmup_steps=20", "schedule.final_ratio=0.1"]).unwrap();
        assert_eq!(short.warnings.len(), 2, "{:?}", short.warnings);
        assert!(plan(&["train.steps=20", "schedule.warmup_steps=20"]).unwrap().warnings.is_empty());
    }

    #[test]
    fn a_source_that_cannot_be_is_refused_by_its_number_and_key() {
        let source = |text: &str| violated_keys(&[&format!("data.sources=[{{ images = \"b\", {text} }}]")]);
        assert_eq!(source("repeats = 0"), ["data.sources[0].repeats"]);
        assert_eq!(source("size_px = 4"), ["data.sources[0].size_px"]);
        assert_eq!(source("captions = { dropout = 2.0 }"), ["data.sources[0].captions.dropout"]);
        assert_eq!(source("weight = -1.0"), ["data.sources[0].weight"]);
        assert_eq!(source("sizepx = 4"), ["data.sources[0]"]);
    }

    #[test]
    fn a_prior_needs_what_it_speaks_of() {
        assert_eq!(violated_keys(&["prior.kind=images"]), ["prior.prompt"]);
        assert_eq!(violated_keys(&["prior.kind=base", "prior.captions=class"]), ["prior.captions"]);
        assert_eq!(violated_keys(&["prior.kind=base", "prior.captions=[]"]), ["prior.captions"]);
        for sets in [
            &["prior.kind=images", "data.class=cat"][..],
            &["prior.kind=images", "prior.prompt=a cat"],
            &["prior.kind=images", "data.sources=[{ images = \"cats\", role = \"class\" }]"],
            &["prior.kind=base", "prior.captions=class", "data.class=cat"],
        ] {
            assert!(plan(sets).is_ok(), "{sets:?}");
        }
    }

    #[test]
    fn zero_turns_clipping_off() {
        assert_eq!(plan(&["optimizer.max_grad_norm=0"]).unwrap().max_grad_norm, None);
        assert_eq!(plan(&["optimizer.max_grad_norm=0.5"]).unwrap().max_grad_norm, Some(0.5));
    }
}

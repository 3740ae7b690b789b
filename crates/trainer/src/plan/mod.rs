//! The second stage of the settings: checked, complete, flat. Only a [`Plan`] reaches the run.
//!
//! All violations are found at once. What depends on the base model (sizes it can divide, patterns that match nothing)
//! and on the disk is checked where the model and the images are read.

mod checks;
mod components;
mod data;
mod objective;
mod optimizer;
mod output;

use std::path::PathBuf;

use crate::config::{
    Checkpointing, Compute, Dtype, EmptyCaptions, LossConfig, NoiseConfig, Ops, SamplesConfig, StepsConfig, TrainConfig,
};
use crate::error::TrainError;
use crate::learning_rate::LearningRateSchedule;
use loralei_model::{DeviceChoice, DropoutRates, NumberTypes, Prediction, ScheduleOverride, TrainingSize};

pub(crate) use checks::Checks;
pub use components::{BlockPlan, ComponentPlan};
pub use data::{DataPlan, PriorPlan, PriorTerm, SourcePlan};
pub use optimizer::OptimizerPlan;
pub use output::{CardPlan, MeasuredOn, ValidationPlan};
pub(crate) use output::{usual_snapshot_steps, usual_validation_steps};

/// Which base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseChoice {
    /// The small model inside the program.
    Emoji,
    /// A diffusers folder, a checkpoint file, or the id of a model on a hub.
    Named(String),
}

impl BaseChoice {
    /// What the user calls it.
    pub fn name(&self) -> &str {
        match self {
            Self::Emoji => "emoji",
            Self::Named(name) => name,
        }
    }
}

impl From<&str> for BaseChoice {
    /// What the user calls it.
    fn from(base: &str) -> Self {
        if base == "emoji" { Self::Emoji } else { Self::Named(base.to_owned()) }
    }
}

/// A training run, checked: every value is within its range.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The base model.
    pub base: BaseChoice,
    /// Its noising process, against or instead of what it says.
    pub noising: ScheduleOverride,
    /// What stands for a caption without text.
    pub empty_captions: EmptyCaptions,
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
    /// Factors in each text encoder, in the order of the base; `None` for one that stays frozen, or that the base does not have.
    pub text_encoders: [Option<ComponentPlan>; 2],
    /// How a step moves the factors.
    pub optimizer: OptimizerPlan,
    /// What the factors leave out while they train.
    pub dropout: DropoutRates,
    /// Adapter whose factors the run begins with.
    pub start_from: Option<PathBuf>,
    /// The noise, checked.
    pub noise: NoiseConfig,
    /// The loss, checked.
    pub loss: LossConfig,
    /// Factor of the components' learning rates at each step.
    pub schedule: LearningRateSchedule,
    /// Optimizer steps, 1 or more; not those of the run if `epochs` is set.
    pub steps: u64,
    /// Epochs, 1 or more, where these give the length of the run.
    pub epochs: Option<u64>,
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
    /// Pictures as the run goes on; `None` for none.
    pub samples: Option<SamplesConfig>,
    /// What is measured as the run goes on; `None` for nothing.
    pub validation: Option<ValidationPlan>,
    /// The folder of the run.
    pub output_folder: PathBuf,
    /// Name of the adapter file, without `.safetensors`.
    pub output_name: String,
    /// Steps between snapshots; 0: only at the end. `None`: a tenth of the run.
    pub save_every_steps: Option<u64>,
    /// Snapshots that are kept, 1 or more.
    pub keep_snapshots: usize,
    /// Whether TensorBoard's file is written.
    pub tensorboard: bool,
    /// Number type of the adapter file.
    pub precision: Dtype,
    /// What its user says of it.
    pub card: CardPlan,
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
        let (unet, text_encoders) = checks.components(&config.lora, config.optimizer.full_learning_rate());
        let optimizer = checks.optimizer(config, unet.as_ref(), &text_encoders);
        let (dropout, start_from) = (checks.dropout(&config.lora), checks.start_from(&config.lora));
        checks.orthogonal(&config.lora, &config.optimizer);
        let (noise, loss) = (checks.noise(&config.noise), checks.loss(&config.loss));
        checks.steps(&config.train);
        let schedule = checks.schedule(&config.schedule, config.train.steps);
        let prior = checks.prior(&config.prior, &data);
        let samples = checks.samples(&config.samples);
        let validation = checks.validation(&config.validation, data.trigger.is_some());
        let (output_folder, output_name) = checks.output(config, data.first_folder());
        if !checks.violations.is_empty() {
            return Err(TrainError::Settings { violations: checks.violations });
        }
        let StepsConfig { steps, epochs, batch_size, accumulate, seed, checkpointing } = config.train;
        Ok(Self {
            base,
            noising: ScheduleOverride {
                prediction: config.model.prediction.map(Prediction::from),
                zero_terminal_snr: config.model.zero_terminal_snr,
            },
            empty_captions: config.model.empty_captions,
            dtype,
            number_types,
            device: config.model.device,
            ops: config.model.ops,
            compute: config.model.compute,
            tf32: config.model.tf32,
            data,
            unet,
            text_encoders,
            optimizer,
            dropout,
            start_from,
            noise,
            loss,
            schedule,
            steps,
            epochs,
            batch_size,
            accumulate,
            seed,
            checkpointing,
            prior,
            samples,
            validation,
            output_folder,
            output_name,
            save_every_steps: config.output.save_every_steps,
            keep_snapshots: config.output.keep_snapshots,
            tensorboard: config.output.tensorboard,
            precision: config.output.precision,
            card: CardPlan::of(&config.output),
            warnings: checks.warnings,
        })
    }

    /// What decides how much memory the run takes with images of this size.
    pub fn training_size(&self, width_px: usize, height_px: usize) -> TrainingSize {
        TrainingSize {
            width_px,
            height_px,
            batch_size: self.batch_size,
            text_encoders: self.text_encoders.each_ref().map(Option::is_some),
            rank: self.unet.as_ref().map_or(0, ComponentPlan::largest_rank),
            recompute: self.checkpointing == Checkpointing::Block,
            is_cpu: self.device == DeviceChoice::Cpu,
            bytes_per_weight: self.number_types.weight_bytes(),
            bytes_per_number: candle_core::DType::from(self.dtype).size_in_bytes() as u64,
        }
    }

    /// Whether a text encoder learns.
    pub fn learns_text(&self) -> bool {
        self.text_encoders.iter().any(Option::is_some)
    }

    /// The parts of the base that learn: the U-Net, then the text encoders.
    pub(crate) fn components(&self) -> impl Iterator<Item = &ComponentPlan> {
        self.unet.iter().chain(self.text_encoders.iter().flatten())
    }

    /// Whether class images are learned from.
    pub fn learns_class(&self) -> bool {
        matches!(&self.prior, Some(PriorPlan { kind: PriorTerm::Images { .. }, .. }))
    }

    /// Steps of the run with images of which an epoch has so many micro-batches.
    pub fn steps_of(&self, batches_per_epoch: u64) -> u64 {
        let of_epochs = |epochs: u64| epochs.saturating_mul(batches_per_epoch).div_ceil(self.accumulate as u64).max(1);
        self.epochs.map_or(self.steps, of_epochs)
    }

    /// The same run with its length in steps.
    #[must_use]
    pub(crate) fn with_steps(&self, steps: u64) -> Self {
        let mut plan = self.clone();
        (plan.steps, plan.schedule.steps, plan.epochs) = (steps, steps, None);
        plan
    }

    /// The numbers of the class images' micro-batches that `step` sees, one for each of its own.
    pub(crate) fn class_batches(&self, step: u64) -> Vec<u64> {
        let accumulate = self.accumulate as u64;
        let prior = self.prior.as_ref().filter(|prior| step.is_multiple_of(prior.every_steps));
        match prior.map(|prior| (&prior.kind, prior.every_steps)) {
            Some((PriorTerm::Images { .. }, every_steps)) => {
                (0..accumulate).map(|micro| step / every_steps * accumulate + micro).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Samples that one optimizer step sees.
    pub fn samples_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLayers;
    use crate::config::Targets;
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
            "lora.text_encoder_2.targets=cross-attention",
            "lora.text_encoder_2.learning_rate=0",
            "lora.unet.targets=none",
            "lora.dropout=1",
            "lora.rank_dropout=-0.1",
            "lora.module_dropout=nan",
            "lora.start_from=",
            "noise.offset=-0.1",
            "noise.offset_adaptive=inf",
            "noise.pyramid_discount=1.5",
            "noise.input_perturbation=-1",
            "noise.max_timestep=0",
            "loss.huber_c=0",
            "loss.min_snr_gamma=0",
            "loss.v_pred_like_loss=-1",
            "optimizer.learning_rate=0.0",
            "optimizer.learning_rate=inf",
            "optimizer.weight_decay=-0.1",
            "optimizer.beta1=1.0",
            "optimizer.beta2=-0.1",
            "optimizer.eps=0",
            "optimizer.max_grad_norm=nan",
            "optimizer.loraplus_ratio=0",
            "optimizer.preconditioner_damping=0",
            "optimizer.ema_decay=1",
            "optimizer.ema_decay=0",
            "optimizer.prodigy.initial_d=0",
            "optimizer.prodigy.d_coefficient=-1",
            "optimizer.prodigy.max_d=1e-9",
            "lora.max_norm=0",
            "lora.text_encoder.stop_after=0",
            "lora.text_encoder.stop_after=1.5",
            "lora.text_encoder_2.stop_after=0",
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
            "samples.steps=0",
            "samples.prompts=[\"a dog --x 1\"]",
            "samples.prompts_file=",
            "validation.hold_out=1.0",
            "validation.hold_out=-0.1",
            "validation.images=",
            "validation.max_images=0",
            "validation.num_timesteps=0",
            "validation.num_timesteps=1001",
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
        for sets in [&["model.weights=int8"][..], &["model.weights=int8", "model.device=metal", "model.dtype=bf16"]] {
            assert_eq!(kept(sets), WeightType::Int8, "{sets:?}");
        }
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
    fn a_fixed_a_is_refused_beside_what_is_about_learning_it() {
        let fixed = plan(&["lora.orthogonal=3", "lora.text_encoder.targets=attention"]).unwrap();
        let [text_encoder, _] = fixed.text_encoders;
        assert_eq!([fixed.unet, text_encoder].map(|component| component.unwrap().subspace), [Some(3); 2]);
        let others = [
            ("lora.start_from=a.safetensors", "lora.start_from"),
            ("optimizer.loraplus_ratio=16", "optimizer.loraplus_ratio"),
            ("optimizer.preconditioned=true", "optimizer.preconditioned"),
        ];
        for (set, key) in others {
            assert_eq!(violated_keys(&["lora.orthogonal=0", set]), [key]);
            assert!(plan(&[set]).is_ok(), "{set}");
        }
    }

    #[test]
    fn a_component_takes_what_it_does_not_set_from_the_shared_settings() {
        let inherited =
            plan(&["lora.rank=8", "optimizer.learning_rate=2e-3", "lora.text_encoder.targets=full"]).unwrap();
        let component = |rank, alpha, learning_rate| ComponentPlan {
            targets: Targets::Attention,
            rank,
            alpha,
            subspace: None,
            learning_rate,
            blocks: Vec::new(),
        };
        let unet = component(8, 8.0, 2e-3);
        assert_eq!(inherited.unet, Some(unet.clone()));
        assert_eq!(inherited.text_encoders, [Some(ComponentPlan { targets: Targets::Full, ..unet }), None]);

        let own = plan(&[
            "lora.rank=8",
            "lora.unet.rank=16",
            "lora.text_encoder.targets=attention",
            "lora.text_encoder.rank=2",
            "lora.text_encoder.alpha=1",
            "lora.text_encoder.learning_rate=5e-5",
            "lora.text_encoder_2.targets=attention",
            "lora.text_encoder_2.rank=3",
        ])
        .unwrap();
        let texts = [component(2, 1.0, 5e-5), component(3, 3.0, 1e-4)];
        assert_eq!((own.unet, own.text_encoders), (Some(component(16, 16.0, 1e-4)), texts.map(Some)));

        let shared_alpha = plan(&["lora.alpha=3", "lora.unet.rank=16"]).unwrap();
        assert_eq!(shared_alpha.unet.map(|unet| (unet.rank, unet.alpha)), Some((16, 3.0)));
        assert_eq!(shared_alpha.text_encoders, [None, None]);
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
    fn settings_of_noise_and_loss_without_effect_are_said() {
        for (sets, key) in [
            (&["noise.offset_random=true"][..], "noise.offset_random"),
            (&["noise.pyramid_discount=0.5"], "noise.pyramid_discount"),
            (&["loss.huber_c=0.2"], "loss.huber_c"),
            (&["loss.kind=l1", "loss.huber_schedule=constant"], "loss.huber_schedule"),
            (&["loss.weighting=debiased", "loss.min_snr_gamma=3"], "loss.min_snr_gamma"),
            (&["lora.text_encoder.blocks=[{ layers = \"*\" }]"], "lora.text_encoder.blocks"),
            (
                &["lora.unet.blocks=[{ layers = \"*\", rank = 2, learning_rate_ratio = 0.0 }]"],
                "lora.unet.blocks[0].rank",
            ),
            (&["lora.rslora=true"], "lora.rslora"),
        ] {
            let warnings = plan(sets).unwrap().warnings;
            assert_eq!(warnings.len(), 1, "{sets:?}: {warnings:?}");
            assert!(warnings[0].contains(&format!("`{key}`")), "{warnings:?}");
        }
        for sets in [
            &["noise.offset=0.1", "noise.offset_random=true"][..],
            &["noise.pyramid_iterations=6", "noise.pyramid_discount=0.5"],
            &["loss.kind=smooth-l1", "loss.huber_c=0.2", "loss.huber_schedule=exponential"],
            &["loss.weighting=min-snr", "loss.min_snr_gamma=3"],
            &["lora.rslora=true", "lora.alpha=8"],
        ] {
            assert!(plan(sets).unwrap().warnings.is_empty(), "{sets:?}");
        }
    }

    #[test]
    fn a_block_that_cannot_be_is_refused_by_its_number_and_key() {
        let block = |text: &str| violated_keys(&[&format!("lora.unet.blocks=[{{ layers = \"a\" }}, {{ {text} }}]")]);
        assert_eq!(block("rank = 2"), ["lora.unet.blocks[1].layers"]);
        assert_eq!(block("layers = \"b\", rank = 0"), ["lora.unet.blocks[1].rank"]);
        assert_eq!(block("layers = \"b\", alpha = -1.0"), ["lora.unet.blocks[1].alpha"]);
        let ratio = "layers = \"b\", learning_rate_ratio = -0.5";
        assert_eq!(block(ratio), ["lora.unet.blocks[1].learning_rate_ratio"]);
    }

    #[test]
    fn blocks_take_what_they_do_not_set_from_their_component_and_the_first_match_counts() {
        let blocks = "lora.unet.blocks=[{ layers = \"mid_block.*\", rank = 2 }, { layers = \"*.attn2.*\", alpha = 3.0, \
                      learning_rate_ratio = 0.5 }, { layers = \"up*\", learning_rate_ratio = 0.0 }]";
        let unet = plan(&["lora.rank=8", blocks]).unwrap().unet.unwrap();
        let block = |layers: &str, rank, alpha, learning_rate_ratio| BlockPlan {
            layers: layers.to_owned(),
            rank,
            alpha,
            learning_rate_ratio,
        };
        let expected = [block("mid_block.*", 2, 2.0, 1.0), block("*.attn2.*", 8, 3.0, 0.5), block("up*", 8, 8.0, 0.0)];
        assert_eq!(unet.blocks, expected);
        let ratios = [("mid_block.0.attn2.to_k", 1.0), ("up.0.attn2.to_k", 0.5), ("up.0.attn1", 0.0), ("down.0", 1.0)];
        for (path, ratio) in ratios {
            assert!((unet.ratio_of(path) - ratio).abs() < 1e-12, "{path}");
        }
        let shared_alpha = plan(&["lora.alpha=3", blocks]).unwrap().unet.unwrap();
        assert_eq!(shared_alpha.blocks[0].alpha, 3.0);
        assert_eq!(plan(&["lora.rank=8", blocks]).unwrap().training_size(64, 64).rank, 8);
        let large = plan(&["lora.unet.blocks=[{ layers = \"a\", rank = 32 }]"]).unwrap();
        assert_eq!(large.training_size(64, 64).rank, 32);
    }

    #[test]
    fn rslora_divides_alpha_by_the_root_of_each_rank() {
        let blocks = "lora.unet.blocks=[{ layers = \"a\", rank = 4 }]";
        let unet = plan(&["lora.rank=16", "lora.alpha=6", "lora.rslora=true", blocks]).unwrap().unet.unwrap();
        assert!((unet.alpha / 16.0 - 6.0 / 4.0).abs() < 1e-12);
        assert!((unet.blocks[0].alpha / 4.0 - 6.0 / 2.0).abs() < 1e-12);
    }

    #[test]
    fn what_the_base_cannot_do_is_refused_when_it_is_known() {
        use loralei_model::{NoiseSchedule, SchedulerConfig};
        let refused = |set: &str, prediction_type| {
            let config = SchedulerConfig { prediction_type, ..SchedulerConfig::default() };
            plan(&[set]).unwrap().check_objective(&NoiseSchedule::new(&config)).err().map(|violation| violation.key)
        };
        for (set, of_noise, of_velocity) in [
            ("noise.max_timestep=1001", true, true),
            ("noise.max_timestep=1000", false, false),
            ("noise.min_timestep=1000", true, true),
            ("noise.min_timestep=999", false, false),
            ("loss.weighting=v-like-noise", true, false),
            ("loss.weighting=debiased", false, false),
            ("loss.v_pred_like_loss=0.5", false, true),
        ] {
            let key = set.split_once('=').unwrap().0.to_owned();
            assert_eq!(refused(set, Prediction::Epsilon), of_noise.then_some(key.clone()), "{set}");
            assert_eq!(refused(set, Prediction::VPrediction), of_velocity.then_some(key), "{set}");
        }
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
    fn a_run_is_measured_on_what_the_settings_name() {
        let measured_on = |sets: &[&str]| plan(sets).unwrap().validation.map(|validation| validation.measured_on);
        assert_eq!(measured_on(&[]), Some(MeasuredOn::Training));
        assert_eq!(measured_on(&["validation.hold_out=0.2"]), Some(MeasuredOn::HeldOut(0.2)));
        let both = ["validation.hold_out=0.2", "validation.images=others"];
        assert_eq!(measured_on(&both), Some(MeasuredOn::Folder(PathBuf::from("others"))));
        assert_eq!(measured_on(&["validation.every_steps=0"]), None);
        let leak = |sets: &[&str]| plan(sets).unwrap().validation.unwrap().leak;
        assert_eq!([leak(&[]), leak(&["data.trigger=sks"])], [false, true]);
        assert!(!leak(&["data.trigger=sks", "validation.leak=false"]));
        assert_eq!(plan(&["validation.patience=0"]).unwrap().validation.unwrap().patience, None);
    }

    #[test]
    fn settings_of_validation_and_pictures_without_effect_are_said() {
        let warnings = |sets: &[&str]| plan(sets).unwrap().warnings;
        for sets in [
            &["validation.hold_out=0.2", "validation.images=others"][..],
            &["validation.patience=3"],
            &["validation.every_steps=0", "validation.hold_out=0.1"],
            &["samples.every_steps=50"],
        ] {
            assert_eq!(warnings(sets).len(), 1, "{sets:?}");
        }
        for sets in [
            &["validation.patience=3", "validation.hold_out=0.2"][..],
            &["validation.every_steps=0"],
            &["samples.every_steps=50", "samples.prompts=[\"a\"]"],
        ] {
            assert!(warnings(sets).is_empty(), "{sets:?}");
        }
    }

    #[test]
    fn zero_turns_clipping_off() {
        assert_eq!(plan(&["optimizer.max_grad_norm=0"]).unwrap().optimizer.max_grad_norm, None);
        assert_eq!(plan(&["optimizer.max_grad_norm=0.5"]).unwrap().optimizer.max_grad_norm, Some(0.5));
    }
}

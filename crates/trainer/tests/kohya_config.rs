//! Settings of kohya's trainer become a plan that says the same, and what has no place is listed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and writes its own inputs

use loralei_model::Base;
use loralei_trainer::{
    BaseSource, Checkpointing, HuberSchedule, KohyaConfigError, KohyaImport, LossKind, Network, OptimizerKind, Plan,
    PredictionKind, PriorKind, ScheduleKind, Targets, TrainConfig, Weighting,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kohya_config").join(name)
}

/// The import of a text, in a file of this name.
fn import_as(name: &str, text: &str) -> KohyaImport {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    KohyaImport::read(&[path]).unwrap()
}

fn import(text: &str) -> KohyaImport {
    import_as("options.toml", text)
}

fn config(import: &KohyaImport) -> TrainConfig {
    toml::from_str(&import.text).unwrap_or_else(|error| panic!("{error}\n{}", import.text))
}

/// The settings of options, with a folder, and without a complaint.
fn options(text: &str) -> TrainConfig {
    let imported = import(&format!("train_data_dir = \"p\"\nlearning_rate = 1e-4\n{text}"));
    let config = config(&imported);
    Plan::new(&config).unwrap_or_else(|error| panic!("{error}\n{}", imported.text));
    config
}

fn left(import: &KohyaImport, key: &str) -> String {
    let found = import.left_out.iter().find(|left| left.key == key);
    found.unwrap_or_else(|| panic!("{key} is not in {:?}", import.left_out)).reason.clone()
}

#[test]
fn a_subset_goes_before_its_data_set_and_that_before_what_is_general() {
    let imported = KohyaImport::read(&[fixture("datasets.toml")]).unwrap();
    let config = config(&imported);
    let plan = Plan::new(&config).unwrap();
    let sources = plan.data.sources(64);
    let found: Vec<_> = sources
        .iter()
        .map(|source| {
            let name = source.path.to_string_lossy().rsplit('\\').next().unwrap().to_owned();
            let prompt = source.captions.prompt.clone().unwrap_or_default();
            (name, source.captions.keep_tokens, source.repeats, prompt)
        })
        .collect();
    let expected = [
        ("fox", 2, Some(1), "ohwx fox"),
        ("hare", 3, Some(5), "zwx hare"),
        ("owl", 1, Some(1), ""),
        ("animals", 1, Some(1), "animal"),
    ];
    assert_eq!(found, expected.map(|(name, keep, repeats, prompt)| (name.into(), keep, repeats, prompt.into())));
    assert!(sources.iter().all(|source| source.captions.shuffle && !source.flip));
    let sizes: Vec<_> = sources.iter().map(|source| (source.buckets.width_px, source.buckets.height_px)).collect();
    assert_eq!(sizes, [(512, 512), (512, 512), (768, 640), (512, 512)]);
    let buckets: Vec<_> = sources.iter().map(|source| (source.buckets.enabled, source.buckets.max_px)).collect();
    assert_eq!(buckets[0], (true, 896));
    assert_eq!((buckets[2].0, buckets[3]), (false, (true, 896)), "buckets are off in kohya where nothing is set");

    assert_eq!((config.prior.kind, config.prior.every_steps, config.prior.num_images), (PriorKind::Images, 1, 1));
    assert_eq!(plan.batch_size, 4);
    assert!(imported.warnings.iter().any(|warning| warning.contains("[4, 4, 4, 2]")), "{:?}", imported.warnings);
    assert!(left(&imported, "datasets[1].subsets[0].metadata_file").contains("metadata.jsonl"));
    assert!(left(&imported, "datasets[1].subsets[0].color_aug").contains("colours"));
}

#[test]
fn options_of_captions_keep_their_meaning() {
    let imported = KohyaImport::read(&[fixture("captions.toml")]).unwrap();
    let config = config(&imported);
    Plan::new(&config).unwrap();
    let (data, captions) = (&config.data, &config.data.captions);
    assert_eq!(data.images.as_deref(), Some(Path::new("pictures/robots")));
    assert_eq!((data.size_px, data.buckets, data.no_upscale, data.flip), (640, true, true, true));
    assert_eq!((data.bucket_min_px, data.bucket_max_px), (Some(256), Some(1024)), "kohya's, whatever the size");
    assert_eq!((data.repeats, captions.shuffle, captions.tag_dropout, captions.dropout), (Some(2), true, 0.1, 0.05));
    assert_eq!(captions.prefix.as_deref(), Some("a robot, chrome |||"));
    assert_eq!(captions.suffix.as_deref(), Some(", sky ||| sharp"));
    assert_eq!(captions.keep_tokens_separator.as_deref(), Some("|||"));
    assert_eq!((captions.wildcards, captions.line), (true, loralei_trainer::LineChoice::Random));
    assert_eq!((config.lora.rank, config.lora.alpha, config.optimizer.learning_rate), (4, None, None), "not kohya's");
    left(&imported, "datasets[0].secondary_separator");
    left(&imported, "datasets[0].skip_image_resolution");
    assert_eq!(imported.left_out.len(), 2, "color_aug is off, .txt is read anyway");
}

#[test]
fn options_of_a_whole_run_are_carried_and_the_rest_is_listed() {
    let imported = KohyaImport::read(&[fixture("options.toml")]).unwrap();
    let config = config(&imported);
    let plan = Plan::new(&config).unwrap();
    assert_eq!(config.model.base, "models/sd15.safetensors");
    assert_eq!((config.data.size_px, config.data.height_px, config.data.repeats), (512, Some(768), None));
    assert_eq!((config.data.bucket_min_px, config.data.max_tokens), (Some(320), 150));
    let lora = &config.lora;
    assert_eq!((lora.rank, lora.alpha, lora.dropout, lora.rank_dropout), (32, Some(16.0), 0.05, 0.1));
    assert_eq!((lora.max_norm, lora.unet.learning_rate), (Some(1.0), Some(2e-4)));
    assert!(matches!(&lora.unet.targets, Targets::Patterns(patterns) if patterns.len() == 4));
    let ranks: Vec<_> = lora.unet.blocks.iter().map(|block| (block.layers.as_str(), block.rank, block.alpha)).collect();
    let conv = (Some(8), Some(4.0));
    let layers = ["*.resnets.*.conv?", "*.downsamplers.*", "*.upsamplers.*"];
    assert_eq!(ranks, layers.map(|layers| (layers, conv.0, conv.1)));
    assert_eq!((&lora.text_encoder.targets, lora.text_encoder.learning_rate), (&Targets::Full, Some(5e-5)));
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.kind, optimizer.learning_rate), (OptimizerKind::Adamw, Some(1e-4)));
    assert_eq!((optimizer.weight_decay, optimizer.beta1, optimizer.beta2), (0.05, Some(0.9), Some(0.98)));
    assert_eq!((optimizer.eps, optimizer.max_grad_norm, optimizer.loraplus_ratio), (1e-7, 0.5, 16.0));
    let schedule = &config.schedule;
    assert_eq!((schedule.kind, schedule.cycles, schedule.warmup_steps), (ScheduleKind::Restarts, 3, 100));
    assert_eq!((plan.steps, plan.batch_size, plan.accumulate, plan.seed), (2000, 3, 2, 42));
    assert_eq!(config.train.checkpointing, Checkpointing::Block);
    assert_eq!((config.noise.offset, config.noise.input_perturbation), (0.05, 0.1));
    assert_eq!((config.noise.pyramid_iterations, config.noise.pyramid_discount), (6, 0.25));
    assert_eq!(config.noise.max_timestep, Some(900));
    let loss = &config.loss;
    assert_eq!((loss.kind, loss.huber_schedule, loss.huber_c), (LossKind::SmoothL1, HuberSchedule::Exponential, 0.2));
    assert_eq!((loss.weighting, loss.min_snr_gamma), (Weighting::MinSnr, 5.0));
    assert_eq!((config.prior.kind, config.output.tensorboard), (PriorKind::None, true));
    assert_eq!((plan.output_folder.as_path(), plan.output_name.as_str()), (Path::new("out/fox"), "fox"));
    assert_eq!((config.output.save_every_steps, config.samples.every_steps), (Some(250), 200));
    assert_eq!(config.samples.steps, 30);

    let keys: Vec<&str> = imported.left_out.iter().map(|left| left.key.as_str()).collect();
    let expected = [
        "clip_skip",
        "network_args: block_lr_zero_threshold",
        "logging_dir",
        "a_key_of_the_future",
        "cache_latents",
        "mixed_precision",
        "save_every_n_epochs",
        "save_model_as",
        "xformers",
    ];
    let expected: Vec<&str> = expected.into_iter().filter(|key| !key.starts_with("network_args")).collect();
    assert_eq!(keys, expected);
    assert!(left(&imported, "a_key_of_the_future").contains("known"));
    for key in keys {
        assert!(imported.text.contains(&format!("# - {key} = ")), "{key} is not in the file");
    }
}

#[test]
fn every_key_is_carried_listed_or_off() {
    let imported = KohyaImport::read(&[fixture("options.toml")]).unwrap();
    let sections: toml::Table = toml::from_str(&std::fs::read_to_string(fixture("options.toml")).unwrap()).unwrap();
    let keys: Vec<&String> = sections.values().flat_map(|section| section.as_table().unwrap().keys()).collect();
    assert!(keys.len() > 55, "{}", keys.len());
    let (body, _) = imported.text.split_once("\n# What differs").unwrap();
    let silent = keys.into_iter().filter(|key| {
        let is_carried = body.lines().any(|line| {
            let comment = line.split_once("# kohya").map_or("", |(_, comment)| comment);
            comment.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == key.as_str())
        });
        !is_carried && !imported.left_out.iter().any(|left| &left.key == *key)
    });
    let silent: Vec<&str> = silent.map(String::as_str).collect();
    let off = ["v2", "v_parameterization", "vae", "reg_data_dir", "network_train_unet_only", "zero_terminal_snr"];
    let so_anyway = ["caption_extension", "network_module", "prior_loss_weight"];
    let expected = off.into_iter().chain(so_anyway);
    let sorted = |keys: Vec<&str>| BTreeSet::from_iter(keys).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(sorted(silent), sorted(expected.collect()));
}

#[test]
fn what_kohya_takes_where_nothing_is_set_is_written_out() {
    let imported = import("train_data_dir = \"p\"\n");
    let config = config(&imported);
    assert_eq!((config.lora.rank, config.lora.alpha), (4, Some(1.0)));
    assert_eq!((config.optimizer.learning_rate, config.train.steps), (Some(2e-6), 1600));
    assert_eq!((&config.lora.unet.targets, &config.lora.text_encoder.targets), (&Targets::Full, &Targets::Full));
    assert!(!config.data.buckets);
    for said in ["network_alpha is not set", "no learning rate is set", "caption_extension is not set"] {
        assert!(imported.warnings.iter().any(|warning| warning.contains(said)), "{said}: {:?}", imported.warnings);
    }
    assert!(imported.text.contains("alpha = 1.0  # kohya's default"), "{}", imported.text);
}

#[test]
fn which_component_is_trained_is_as_there() {
    let targets = |text: &str| {
        let lora = options(text).lora;
        (lora.unet.targets, lora.text_encoder.targets)
    };
    assert_eq!(targets("network_train_unet_only = true"), (Targets::Full, Targets::None));
    assert_eq!(targets("text_encoder_lr = 0"), (Targets::Full, Targets::None));
    assert_eq!(targets("text_encoder_lr = [0.0, 1e-5]"), (Targets::Full, Targets::None));
    assert_eq!(targets("network_train_text_encoder_only = true"), (Targets::None, Targets::Full));
    assert_eq!(targets("unet_lr = 0.0"), (Targets::None, Targets::Full));
    assert_eq!(options("text_encoder_lr = [3e-5]").lora.text_encoder.learning_rate, Some(3e-5));
    assert_eq!(options("network_dim = 8\nnetwork_alpha = 0").lora.alpha, Some(8.0), "0 is the rank");
}

#[test]
fn settings_of_sdxl_train_both_text_encoders_at_the_rate_that_kohya_takes() {
    let base = "pretrained_model_name_or_path = \"models/ponyDiffusionV6XL.safetensors\"\n";
    let lora = |text: &str| options(&format!("{base}{text}")).lora;
    let both = lora("text_encoder_lr = [3e-5, 1e-5]\nunet_lr = 1e-4");
    assert_eq!((&both.text_encoder.targets, &both.text_encoder_2.targets), (&Targets::Full, &Targets::Full));
    let rates = (both.text_encoder.learning_rate, both.text_encoder_2.learning_rate, both.unet.learning_rate);
    assert_eq!(rates, (Some(3e-5), Some(3e-5), Some(1e-4)));
    let none = lora("network_train_unet_only = true");
    assert_eq!((none.text_encoder.targets, none.text_encoder_2.targets), (Targets::None, Targets::None));
    assert_eq!(options("").lora.text_encoder_2.targets, Targets::None, "a base that is not known to have two");

    let imported = import(&format!(
        "train_data_dir = \"p\"\nlearning_rate = 1e-4\nresolution = \"1024,1024\"\nenable_bucket = true\n\
         {base}v_parameterization = true\nzero_terminal_snr = true\nsdxl = true\nno_half_vae = true\n\
         cache_text_encoder_outputs = true\ntext_encoder_lr = [3e-5, 1e-5]\n"
    ));
    let model = config(&imported).model;
    assert_eq!((model.prediction, model.zero_terminal_snr), (Some(PredictionKind::V), Some(true)));
    for said in ["takes the first for all text encoders", "set `data.bucket_max_px` to 2048"] {
        assert!(imported.warnings.iter().any(|warning| warning.contains(said)), "{said}: {:?}", imported.warnings);
    }
    assert!(left(&imported, "no_half_vae").contains("f32") && left(&imported, "sdxl").contains("read from its files"));
    assert!(left(&imported, "cache_text_encoder_outputs").contains("data.cache"));
}

#[test]
fn optimizers_have_the_constants_that_they_have_there() {
    let prodigy = options(
        "optimizer_type = \"prodigy\"\noptimizer_args = [\"d_coef=0.8\", \"use_bias_correction=True\", \"decouple=True\", \
         \"betas=(0.9, 0.99)\"]",
    )
    .optimizer;
    assert_eq!((prodigy.kind, prodigy.weight_decay), (OptimizerKind::Prodigy, 0.0));
    assert_eq!((prodigy.prodigy.d_coefficient, prodigy.prodigy.bias_correction), (0.8, true));
    assert!(!prodigy.prodigy.safeguard_warmup, "off in kohya unless it is asked for");
    assert_eq!((prodigy.beta1, prodigy.beta2), (Some(0.9), Some(0.99)));
    for (name, kind, decay) in [
        ("PagedAdamW8bit", OptimizerKind::Adamw, 0.01),
        ("Lion8bit", OptimizerKind::Lion, 0.0),
        ("AdaFactor", OptimizerKind::Adafactor, 0.0),
        ("schedulefree.AdamWScheduleFree", OptimizerKind::ScheduleFree, 0.0),
        ("DAdaptAdam", OptimizerKind::Prodigy, 0.0),
        ("SGDNesterov", OptimizerKind::Adamw, 0.01),
    ] {
        let found = options(&format!("optimizer_type = \"{name}\"")).optimizer;
        assert_eq!((found.kind, found.weight_decay), (kind, decay), "{name}");
    }
    assert_eq!(options("use_lion_optimizer = true").optimizer.kind, OptimizerKind::Lion);
    let text = options("optimizer_args = \"weight_decay=0.1 betas=0.8,0.95\"").optimizer;
    assert_eq!((text.weight_decay, text.beta2), (0.1, Some(0.95)), "one text with spaces");
}

#[test]
fn the_schedule_warms_up_by_steps_or_by_a_part_of_the_run() {
    let warm_up = |text: &str| options(text).schedule.warmup_steps;
    assert_eq!(warm_up("lr_scheduler = \"cosine\"\nlr_warmup_steps = 30"), 30);
    assert_eq!(warm_up("lr_scheduler = \"cosine\"\nlr_warmup_steps = 0.1"), 160, "of 1600");
    assert_eq!(warm_up("lr_scheduler = \"constant_with_warmup\"\nlr_warmup_steps = \"20\""), 20);
    let constant = import("train_data_dir = \"p\"\nlr_warmup_steps = 30\n");
    assert_eq!(config(&constant).schedule.warmup_steps, 0);
    assert!(left(&constant, "lr_warmup_steps").contains("constant"));
    let epochs =
        import("train_data_dir = \"p\"\nmax_train_epochs = 8\nlr_scheduler = \"linear\"\nlr_warmup_steps = 0.1\n");
    assert_eq!(config(&epochs).train.epochs, Some(8));
    left(&epochs, "lr_warmup_steps");
    let lowest = options("lr_scheduler = \"cosine_with_min_lr\"\nlr_scheduler_min_lr_ratio = 0.1").schedule;
    assert_eq!((lowest.kind, lowest.final_ratio), (ScheduleKind::Cosine, 0.1));
    let power = options("lr_scheduler = \"polynomial\"\nlr_scheduler_power = 2").schedule;
    assert_eq!((power.kind, power.power), (ScheduleKind::Polynomial, 2.0));
}

#[test]
fn ranks_and_rates_of_blocks_are_those_of_kohyas_numbering() {
    let mut dims = vec!["8"; 25];
    (dims[2], dims[12], dims[24]) = ("16", "0", "4");
    let text = format!(
        "network_dim = 8\nnetwork_alpha = 2\nnetwork_args = [\"block_dims={}\", \"down_lr_weight=1,1,1,1,.5\", \
         \"up_lr_weight=zeros+.25\"]",
        dims.join(",")
    );
    let blocks = options(&text).lora.unet.blocks;
    let found = |layers: &str| {
        let block = blocks.iter().find(|block| block.layers == layers);
        block.map(|block| (block.rank, block.alpha, block.learning_rate_ratio))
    };
    assert_eq!(found("down_blocks.0.attentions.0.*"), None, "block 1 is as the U-Net is");
    assert_eq!(found("down_blocks.0.attentions.1.*"), Some((Some(16), None, None)), "block 2");
    assert_eq!(found("down_blocks.1.attentions.0.*"), Some((None, None, Some(0.5))), "block 4");
    assert_eq!(found("mid_block.attentions.0.*"), Some((None, None, Some(0.0))), "a rank of 0 is no factors");
    assert_eq!(found("up_blocks.1.attentions.0.*"), Some((None, None, Some(0.25))), "block 16");
    assert_eq!(found("up_blocks.3.attentions.2.*"), Some((Some(4), None, Some(0.25))), "block 24");
    assert!(blocks.iter().all(|block| !block.layers.contains("resnets")), "no factors in convolutions");

    let curve = options("network_args = [\"down_lr_weight=cosine\"]").lora.unet.blocks;
    let first = curve.iter().find(|block| block.layers == "down_blocks.0.attentions.0.*").unwrap();
    let weight = (std::f64::consts::FRAC_PI_2 * 10.0 / 11.0).sin();
    assert!((first.learning_rate_ratio.unwrap() - weight).abs() < 1e-12, "block 1 of 12");
}

#[test]
fn both_files_together_are_one_run_and_the_data_sets_go_before_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let (options, datasets) = (folder.path().join("run.toml"), folder.path().join("data.json"));
    std::fs::write(&options, "[a]\nresolution = 256\nkeep_tokens = 7\ntrain_data_dir = \"x\"\nlearning_rate = 1e-3\n")
        .unwrap();
    let json = r#"{"datasets": [{"resolution": 320, "keep_tokens": null, "subsets": [{"image_dir": "pictures"}]}]}"#;
    std::fs::write(&datasets, json).unwrap();
    let both = KohyaImport::read(&[options.clone(), datasets.clone()]).unwrap();
    let found = config(&both);
    assert_eq!((found.data.size_px, found.data.captions.keep_tokens), (320, 7));
    assert_eq!(
        (found.data.images.as_deref(), found.optimizer.learning_rate),
        (Some(Path::new("pictures")), Some(1e-3))
    );
    left(&both, "train_data_dir");

    let named = format!("dataset_config = {:?}\nlearning_rate = 1e-3\n", datasets.display().to_string());
    std::fs::write(&options, named).unwrap();
    assert_eq!(config(&KohyaImport::read(std::slice::from_ref(&options)).unwrap()).data.size_px, 320, "it is followed");

    let twice = KohyaImport::read(&[options.clone(), options]).unwrap_err();
    assert!(matches!(twice, KohyaConfigError::Twice { .. }), "{twice}");
    let missing = KohyaImport::read(&[folder.path().join("no.toml")]).unwrap_err();
    assert!(missing.to_string().contains("no.toml"));
}

#[test]
fn values_that_are_none_for_their_key_are_listed_and_not_guessed() {
    let imported = import("train_data_dir = \"p\"\nnetwork_dim = \"many\"\nresolution = \"large\"\nseed = -1\n");
    for key in ["network_dim", "resolution", "seed"] {
        left(&imported, key);
    }
    assert_eq!(config(&imported).lora.rank, 4);
    let broken = tempfile::tempdir().unwrap();
    let path = broken.path().join("a.toml");
    std::fs::write(&path, "a = 1\nb = \n").unwrap();
    let error = KohyaImport::read(&[path]).unwrap_err().to_string();
    assert!(error.contains("line 2") && !error.contains('\n'), "{error}");
}

#[test]
fn a_masked_loss_has_its_folder_of_masks() {
    let masked = options("masked_loss = true\nconditioning_data_dir = \"masks\"\nresolution = 512");
    let sources = Plan::new(&masked).unwrap().data.sources(64);
    assert_eq!(sources.iter().map(|source| source.path.display().to_string()).collect::<Vec<_>>(), ["p", "masks"]);
    assert_eq!(sources[1].role, loralei_data::Role::Mask);
    assert_eq!(options("alpha_mask = true").data.alpha.0, loralei_data::Alpha::Mask);
}

#[test]
fn a_rank_of_convolutions_gives_factors_to_kohyas_layers_and_no_other() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd1/base");
    let (dtype, device) = (candle_core::DType::F32, candle_core::Device::Cpu);
    let base = Base::open(BaseSource::Folder(folder.into()), None, dtype, &device).unwrap();
    let weights = base.unet_weights().unwrap();
    let in_blocks = |path: &str, kinds: &[&str]| kinds.iter().any(|kind| path.split('.').any(|part| part == *kind));
    let expected = |kinds: &[&str]| -> BTreeSet<String> {
        let layers = weights.names().filter(|name| weights.info(name).unwrap().shape.len() > 1);
        let paths = layers.filter_map(|name| name.strip_suffix(".weight")).filter(|path| in_blocks(path, kinds));
        paths.map(|path| format!("lora_unet_{}", path.replace('.', "_"))).collect()
    };
    let found = |text: &str| -> BTreeSet<String> {
        let plan = Plan::new(&options(&format!("network_train_unet_only = true\n{text}"))).unwrap();
        let network = Network::load(&base, plan.unet.as_ref(), &[], 0, Checkpointing::None).unwrap();
        network.factors().to_adapter().unwrap().modules.into_keys().collect()
    };
    let all = ["attentions", "resnets", "downsamplers", "upsamplers"];
    assert_eq!(found("network_args = [\"conv_dim=2\", \"conv_alpha=1\"]"), expected(&all));
    assert_eq!(found(""), expected(&["attentions"]));
}

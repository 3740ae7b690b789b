//! What LoRA does while it trains: what it leaves out, layers that differ, and a run that begins with an adapter.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and its files need no atomic write

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Adapter, SaveDtype};
use loralei_model::{Base, BaseSource, Checkpointing as Recompute, Dropout, DropoutRates, LossTerm};
use loralei_trainer::{
    Checkpointing, ConfigLayers, Draw, Ended, Gradients, MicroBatch, Network, Plan, Purpose, RunOptions, Text,
    TrainError, train,
};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn source() -> BaseSource {
    BaseSource::Folder(golden("sd1/base"))
}

fn base() -> Base {
    Base::open(source(), None, DType::F32, &Device::Cpu).unwrap()
}

fn adapter() -> Adapter {
    Adapter::read(&golden("sd1/adapter.safetensors")).unwrap()
}

fn batch(dropout: Option<Dropout>) -> MicroBatch {
    let normal = |step| {
        let values = Draw::new(1, step, 0, Purpose::Noise).standard_normal(2 * 4 * 12 * 8);
        Tensor::from_vec(values, (2, 4, 12, 8), &Device::Cpu).unwrap()
    };
    MicroBatch { dropout, ..MicroBatch::new(normal(0), normal(1), vec![120, 840]) }
}

fn text(base: &Base) -> Text {
    let tokenizer = base.tokenizer(0).unwrap();
    let ids: Vec<i64> = ["a dog", "sks"].iter().flat_map(|c| tokenizer.encode(c).unwrap().input_ids).collect();
    Text::tokens(vec![Tensor::from_vec(ids, (2, 77), &Device::Cpu).unwrap()])
}

fn dropout(elements: f64, ranks: f64, modules: f64, step: u64) -> Dropout {
    let rates = DropoutRates { elements, ranks, modules };
    Dropout { rates, seed: 5, step, micro_batch: 1, term: LossTerm::Subject }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Loss, prediction and gradients.
fn learn(network: &Network, batch: &MicroBatch, text: &Text, is_prior: bool) -> (f64, Vec<f32>, Gradients) {
    let run = if is_prior { Network::run_prior } else { Network::run };
    let outcome = run(network, batch, text, 1.0).unwrap();
    let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
    (outcome.weighted_loss.to_scalar().unwrap(), numbers(&outcome.prediction), gradients)
}

#[test]
fn recompute_leaves_out_the_same_so_gradients_are_the_same_to_the_bit_where_they_are_without_dropout() {
    let (base, adapter) = (base(), adapter());
    let text = text(&base);
    let networks =
        [Recompute::None, Recompute::Block].map(|kept| Network::with_adapter(&base, &adapter, kept).unwrap());
    let (_, plain, _) = learn(&networks[0], &batch(None), &text, false);
    for (is_prior, step) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let batch = batch(Some(dropout(0.2, 0.3, 0.25, step)));
        let [(loss, prediction, whole), (loss_again, prediction_again, again)] =
            [0, 1].map(|i| learn(&networks[i], &batch, &text, is_prior));
        assert_ne!(prediction, plain);
        assert_eq!(loss.to_bits(), loss_again.to_bits(), "prior {is_prior}, step {step}");
        assert_eq!(prediction, prediction_again);
        assert_eq!(whole.len(), 2 * networks[0].factors().len());
        let left_out = whole.values().filter(|gradient| numbers(gradient).iter().all(|x| *x == 0.0)).count();
        assert!(left_out > 0 && left_out < whole.len() / 2, "{left_out} of {}", whole.len());
        for (key, gradient) in &whole {
            let (gradient, again) = (numbers(gradient), numbers(&again[key]));
            // Before the middle, gradients of several blocks meet, and recompute adds them in another order: always.
            let is_same = if key.contains("_up_blocks") || key.contains("_mid_block") {
                gradient == again
            } else {
                distance(&gradient, &again) <= 1e-5 * distance(&gradient, &vec![0.0; gradient.len()])
            };
            assert!(is_same, "prior {is_prior}, step {step}: {key} by {}", distance(&gradient, &again));
        }
    }
}

#[test]
fn what_is_left_out_is_right_on_average_and_another_step_leaves_out_something_else() {
    let (base, adapter) = (base(), adapter());
    let text = text(&base);
    let network = Network::with_adapter(&base, &adapter, Recompute::None).unwrap();
    let predict = |dropout| learn(&network, &batch(dropout), &text, false).1;
    let (plain, n) = (predict(None), 64);
    let mut mean = vec![0.0; plain.len()];
    let mut spread = 0.0;
    for step in 0..n {
        let prediction = predict(Some(dropout(0.05, 0.05, 0.0, step)));
        spread += distance(&prediction, &plain) / n as f64;
        mean.iter_mut().zip(prediction).for_each(|(mean, x)| *mean += x / n as f32);
    }
    // A mean of 64 is 8 times nearer than one, but for what is not linear.
    assert!(spread > 0.0 && distance(&mean, &plain) < spread / 3.0, "{spread} {}", distance(&mean, &plain));
    let at = |step| predict(Some(dropout(0.2, 0.2, 0.2, step)));
    assert_eq!(at(0), at(0));
    assert_ne!(at(0), at(1));
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn the_base_of_the_prior_knows_of_nothing_that_is_left_out() {
    let base = base();
    let text = text(&base);
    // B = 0: whatever is left out, the adapted network is the base.
    let mut zeroed = adapter();
    zeroed.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    let network = Network::with_adapter(&base, &zeroed, Recompute::None).unwrap();
    let all = Some(dropout(0.5, 0.5, 0.5, 0));
    let plain = learn(&network, &batch(None), &text, false).1;
    assert_eq!(learn(&network, &batch(all), &text, false).1, plain);
    let (loss, prediction, _) = learn(&network, &batch(all), &text, true);
    assert!(loss == 0.0 && prediction == plain, "{loss}");
    // And after training steps, nothing is left out of what is drawn or measured.
    let network = Network::with_adapter(&base, &adapter(), Recompute::None).unwrap();
    let before = learn(&network, &batch(None), &text, false).1;
    learn(&network, &batch(all), &text, false);
    assert_eq!(learn(&network, &batch(None), &text, false).1, before);
}

/// A run of some steps on the octopus, with `settings`.
fn run(place: &Path, name: &str, settings: &[&str]) -> Result<Ended, TrainError> {
    let mut layers = ConfigLayers::new();
    let octopus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/octopus");
    layers.set_text("data.images", octopus.to_str().unwrap()).unwrap();
    layers.set_text("output.folder", place.join(name).to_str().unwrap()).unwrap();
    let common = ["data.size_px=32", "data.cache=off", "train.steps=6", "train.batch_size=2", "train.accumulate=2"];
    for setting in common.iter().chain(&["optimizer.learning_rate=1e-2", "train.seed=3"]).chain(settings) {
        layers.set(setting).unwrap();
    }
    let resolved = layers.resolve().unwrap();
    train(&Plan::new(&resolved.config).unwrap(), source(), &RunOptions::new(&resolved), &mut |_| ())
}

fn trained(place: &Path, name: &str, settings: &[&str]) -> Adapter {
    Adapter::read(&run(place, name, settings).unwrap().adapter().path).unwrap()
}

#[test]
fn a_run_with_everything_on_is_the_same_twice_and_says_so_in_its_file() {
    let place = tempfile::tempdir().unwrap();
    let settings = [
        "lora.dropout=0.1",
        "lora.rank_dropout=0.2",
        "lora.module_dropout=0.1",
        "noise.offset=0.05",
        "noise.offset_adaptive=0.01",
        "noise.offset_random=true",
        "noise.pyramid_iterations=6",
        "noise.input_perturbation=0.1",
        "noise.min_timestep=10",
        "loss.kind=huber",
        "loss.weighting=min-snr",
        "prior.kind=base",
        "lora.text_encoder.targets=attention",
    ];
    let (first, second) = (trained(place.path(), "a", &settings), trained(place.path(), "b", &settings));
    assert!(first.modules == second.modules);
    assert!(first.modules_that_never_moved().is_empty());
    let block = trained(place.path(), "c", &[&settings[..], &["train.checkpointing=block"]].concat());
    for (name, module) in &first.modules {
        let scale = module.up.data.iter().fold(0f32, |most, x| most.max(x.abs()));
        let furthest = module.up.data.iter().zip(&block.modules[name].up.data).map(|(a, b)| (a - b).abs());
        assert!(furthest.fold(0f32, f32::max) < 1e-2 * scale, "{name}");
    }
    for (key, value) in [
        ("ss_network_dropout", "0.1"),
        ("ss_network_args", "{\"module_dropout\":\"0.1\",\"rank_dropout\":\"0.2\"}"),
        ("ss_noise_offset", "0.05"),
        ("ss_adaptive_noise_scale", "0.01"),
        ("ss_noise_offset_random_strength", "True"),
        ("ss_multires_noise_iterations", "6"),
        ("ss_multires_noise_discount", "0.3"),
        ("ss_ip_noise_gamma", "0.1"),
        ("ss_loss_type", "huber"),
        ("ss_huber_c", "0.1"),
        ("ss_huber_schedule", "snr"),
        ("ss_min_snr_gamma", "5.0"),
    ] {
        assert_eq!(first.metadata[key], value, "{key}");
    }
}

#[test]
fn the_file_of_rslora_says_alpha_by_the_root_of_the_rank_to_every_program() {
    let place = tempfile::tempdir().unwrap();
    let blocks = "lora.unet.blocks=[{ layers = \"*.attn2.to_k\", rank = 2 }]";
    let settings = ["lora.rank=8", "lora.alpha=6", "lora.rslora=true", "output.precision=f32", blocks];
    let adapter = trained(place.path(), "rslora", &settings);
    let mut ranks = [0; 9];
    for (name, module) in &adapter.modules {
        let rank = if name.ends_with("attn2_to_k") { 2 } else { 8 };
        ranks[module.rank()] += 1;
        assert_eq!(module.rank(), rank, "{name}");
        assert!((f64::from(module.scale()) - 6.0 / (rank as f64).sqrt()).abs() < 1e-6, "{name}: {}", module.scale());
    }
    assert!(ranks[2] > 0 && ranks[8] > 0);
    let said = format!("{{\"unet_blocks\":\"*.attn2.to_k=rank 2 alpha {} rate 1\"}}", 6.0 * 2f64.sqrt());
    assert_eq!(adapter.metadata["ss_network_args"], said);
}

fn plan(settings: &[&str]) -> Plan {
    let mut layers = ConfigLayers::new();
    for setting in ["data.images=a"].iter().chain(settings) {
        layers.set(setting).unwrap();
    }
    Plan::new(&layers.resolve().unwrap().config).unwrap()
}

fn load(base: &Base, plan: &Plan) -> Result<Network, TrainError> {
    Network::load(base, plan.unet.as_ref(), &plan.text_encoders, plan.seed, Checkpointing::None)
}

#[test]
fn a_ratio_of_zero_gives_no_factors_and_nothing_left_to_train_is_refused() {
    let base = base();
    let blocks = "lora.unet.blocks=[{ layers = \"mid_block.*\", learning_rate_ratio = 0.5 }, \
                  { layers = \"*.attn1.*\", learning_rate_ratio = 0.0 }]";
    let plan_of_blocks = plan(&[blocks]);
    let network = load(&base, &plan_of_blocks).unwrap();
    let has = |part: &str| network.factors().modules().filter(|factors| factors.path().contains(part)).count();
    assert!(has("mid_block.") > 0 && has(".attn2.") > 0);
    assert!(network.factors().modules().all(|f| f.path().starts_with("mid_block.") || !f.path().contains(".attn1.")));
    for key in network.factors().vars().keys() {
        let expected = if key.contains("mid_block") { 0.5 } else { 1.0 };
        let unet = plan_of_blocks.unet.as_ref().unwrap();
        let ratio = unet.ratio_of(network.factors().path_of(key).unwrap());
        assert!((ratio - expected).abs() < 1e-12, "{key}");
    }
    let nothing = plan(&["lora.unet.blocks=[{ layers = \"*\", learning_rate_ratio = 0.0 }]"]);
    let error = load(&base, &nothing).err().unwrap();
    assert!(error.to_string().contains("no layer to train") && error.exit_code() == 2, "{error}");
    let idle = plan(&["lora.unet.blocks=[{ layers = \"mid_block.*\" }, { layers = \"middle*\" }]"]);
    let error = load(&base, &idle).err().unwrap();
    assert!(error.to_string().contains("middle*") && error.exit_code() == 2, "{error}");
}

/// The settings that train what the golden adapter holds, with `more_ranks` and alpha times `factor`.
fn settings_of_the_adapter(more_ranks: usize, factor: f32) -> Vec<String> {
    let adapter = adapter();
    let of_component = |(section, prefix): (&str, &str)| {
        let module = adapter.modules.iter().find(|(name, _)| name.starts_with(prefix)).unwrap().1;
        let (rank, alpha) = (module.rank() + more_ranks, module.alpha.unwrap() * factor);
        [
            format!("lora.{section}.targets=full"),
            format!("lora.{section}.rank={rank}"),
            format!("lora.{section}.alpha={alpha}"),
        ]
    };
    [("unet", "lora_unet"), ("text_encoder", "lora_te")].into_iter().flat_map(of_component).collect()
}

#[test]
fn a_run_begins_as_the_adapter_it_starts_from_whatever_its_alpha() {
    let base = base();
    let text = text(&base);
    let path = golden("sd1/adapter.safetensors");
    let adapter = adapter();
    let expected = Network::with_adapter(&base, &adapter, Recompute::None).unwrap();
    let expected = learn(&expected, &batch(None), &text, false).1;
    for (factor, is_said) in [(1.0, false), (2.0, true), (0.3, true)] {
        let settings = settings_of_the_adapter(0, factor);
        let plan = plan(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        let network = load(&base, &plan).unwrap();
        assert_ne!(learn(&network, &batch(None), &text, false).1, expected);
        let said = network.start_from(&base, &path).unwrap();
        assert_eq!(!said.is_empty(), is_said, "{said:?}");
        let found = learn(&network, &batch(None), &text, false).1;
        let apart = distance(&found, &expected) / distance(&expected, &vec![0.0; expected.len()]);
        assert!(if is_said { apart < 1e-6 } else { found == expected }, "alpha times {factor}: {apart}");
        // What it writes adds the same, with the alpha of the run.
        let written = network.factors().to_adapter().unwrap();
        for (name, module) in &written.modules {
            let alpha = adapter.modules[name].alpha.unwrap() * factor;
            assert!((module.alpha.unwrap() - alpha).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn an_adapter_of_other_layers_or_ranks_is_refused_with_what_differs() {
    let base = base();
    let place = tempfile::tempdir().unwrap();
    let refused = |settings: &[String], path: &Path| {
        let plan = plan(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        let network = load(&base, &plan).unwrap();
        let before = network.factors().vars().values().map(|var| numbers(var.as_tensor())).collect::<Vec<_>>();
        let error = network.start_from(&base, path).unwrap_err();
        let after = network.factors().vars().values().map(|var| numbers(var.as_tensor())).collect::<Vec<_>>();
        assert!(before == after, "a refused adapter leaves the factors alone");
        assert!(
            error.exit_code() == 2 && error.hint().unwrap().contains("lora.rank") && !error.to_string().contains('\n')
        );
        error.to_string()
    };
    let path = golden("sd1/adapter.safetensors");
    let rank = adapter().modules.values().next().unwrap().rank();
    let other_rank = refused(&settings_of_the_adapter(1, 1.0), &path);
    assert!(other_rank.contains(&format!("has rank {rank} in the file and {} in the run", rank + 1)), "{other_rank}");
    assert!(other_rank.contains("more"), "{other_rank}");
    let mut fewer = settings_of_the_adapter(0, 1.0);
    fewer.push("lora.text_encoder.targets=none".to_owned());
    assert!(refused(&fewer, &path).contains("is in the file and not trained"));
    let mut smaller = adapter();
    let gone = smaller.modules.keys().next().unwrap().clone();
    smaller.modules.remove(&gone);
    let path = place.path().join("smaller.safetensors");
    smaller.write(&path, SaveDtype::F32).unwrap();
    let error = refused(&settings_of_the_adapter(0, 1.0), &path);
    assert!(error.contains(&format!("`{gone}` is trained and not in the file")) && !error.contains("more"), "{error}");
}

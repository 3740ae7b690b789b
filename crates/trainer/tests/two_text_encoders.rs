//! Training on a base with two text encoders that is told the sizes of pictures: what reaches a batch, what empty captions are,
//! what learns, and what the file says.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic, and its files need no atomic write

use candle_core::{DType, Device, Tensor};
use loralei_adapter::keys::Component;
use loralei_adapter::{Adapter, TensorFile, TensorView, write_tensors};
use loralei_data::RgbImage;
use loralei_model::{Base, BaseSource, Checkpointing as Recompute, DeviceChoice};
use loralei_trainer::{
    Checkpointing, Compute, ConfigLayers, Dtype, Event, LeakProbes, LeakPrompt, LeakScore, MicroBatch, Network, Ops,
    Plan, RunOptions, Start, StepVerification, Text, TrainError, TrainingData, Validation, WeightDtype, train,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const NUM_TIMESTEPS: usize = 1000;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn source(name: &str) -> BaseSource {
    BaseSource::Folder(golden(name).join("base"))
}

fn base() -> Base {
    Base::open(source("sdxl"), None, DType::F32, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Pictures of one square size of the run, each cut on another side, with captions.
struct Place {
    folder: tempfile::TempDir,
    side_px: u32,
}

/// Width and height of the pictures beyond the run's, in pixels.
const SURPLUS_PX: [(u32, u32); 4] = [(37, 0), (0, 21), (5, 0), (0, 0)];

fn caption(image: usize) -> String {
    format!("sks thing {image}, red, green, blue")
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), side_px: 2 * base().size_multiple_px() as u32 };
        std::fs::create_dir_all(place.images()).unwrap();
        for (i, (right, below)) in SURPLUS_PX.into_iter().enumerate() {
            let seed = 29 * i as u32;
            let busy = RgbImage::from_fn(place.side_px + right, place.side_px + below, |x, y| {
                let mixed = (x * 7 + y * 13 + seed) ^ (x * y);
                [mixed, mixed >> 2, mixed << 1].map(|value| value as u8).into()
            });
            busy.save(place.images().join(format!("{i}.png"))).unwrap();
            std::fs::write(place.images().join(format!("{i}.txt")), caption(i)).unwrap();
        }
        place
    }

    fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    fn layers(&self, sets: &[&str]) -> ConfigLayers {
        let mut layers = ConfigLayers::new();
        layers.set_text("data.images", &self.images().display().to_string()).unwrap();
        layers.set_text("data.cache", &self.folder.path().join("store").display().to_string()).unwrap();
        layers.set_text("output.folder", &self.folder.path().join("run").display().to_string()).unwrap();
        layers.set(&format!("data.size_px={}", self.side_px)).unwrap();
        let common = ["data.buckets=false", "train.batch_size=4", "train.steps=4", "train.seed=7"];
        common.iter().chain(sets).for_each(|set| layers.set(set).unwrap());
        layers
    }

    fn plan(&self, sets: &[&str]) -> Plan {
        Plan::new(&self.layers(sets).resolve().unwrap().config).unwrap()
    }

    /// A run, with what it said.
    fn train(&self, base: &str, sets: &[&str]) -> (Result<PathBuf, TrainError>, Vec<String>) {
        self.train_until(base, sets, Start::New, None)
    }

    fn train_until(
        &self,
        base: &str,
        sets: &[&str],
        start: Start,
        until: Option<u64>,
    ) -> (Result<PathBuf, TrainError>, Vec<String>) {
        let resolved = self.layers(sets).resolve().unwrap();
        let options = RunOptions { start, until, ..RunOptions::new(&resolved) };
        let mut said = Vec::new();
        let mut events = |event: Event| {
            if let Event::Note { message } | Event::Warning { message } = event {
                said.push(message);
            }
        };
        let ended = train(&Plan::new(&resolved.config).unwrap(), source(base), &options, &mut events);
        (ended.map(|ended| ended.adapter().path.clone()), said)
    }
}

fn prepare(plan: &Plan) -> TrainingData {
    TrainingData::prepare(plan, &base(), &mut |_| ()).unwrap().1
}

#[test]
fn a_batch_is_told_each_original_and_the_cut_really_made_and_of_a_mirrored_picture_the_other_side() {
    let place = Place::new();
    let plan = place.plan(&["data.flip=true"]);
    let data = prepare(&plan);
    let side = place.side_px as f32;
    let mut seen = BTreeSet::new();
    for step in 0..12 {
        let (batch, _) = data.subject(&plan, step, 0, NUM_TIMESTEPS).unwrap();
        let told = batch.time_ids.unwrap().to_vec2::<f32>().unwrap();
        let shown = data.images.subject.shown(step);
        assert_eq!((told.len(), shown.len()), (4, 4));
        for (told, shown) in told.into_iter().zip(shown) {
            let path = data.images.subject.path(shown.image);
            let number: usize = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let (right, below) = SURPLUS_PX[number];
            // An odd surplus leaves its extra pixel on the right, which is the left of the mirrored picture.
            let left = if shown.is_mirrored { right.div_ceil(2) } else { right / 2 };
            let expected = [side + below as f32, side + right as f32, (below / 2) as f32, left as f32, side, side];
            assert_eq!(told, expected, "{number} mirrored {}", shown.is_mirrored);
            seen.insert((number, shown.is_mirrored));
        }
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

/// Asks for no text too.
const NO_TEXT: [&str; 2] = ["prior.kind=base", "prior.captions=[\"\", \"a toy\"]"];

#[test]
fn a_caption_without_text_is_zeros_of_context_and_pooled_where_the_base_asks_or_the_settings() {
    let place = Place::new();
    let is_zero = |x: &Tensor| numbers(x).iter().all(|x| *x == 0.0);
    // Captions that are new at every showing are encoded as they come, others before.
    let varying = ["data.captions.shuffle=true", "train.steps=400"];
    for (sets, are_zeros, stays) in [
        (&[][..], true, false),
        (&["model.empty_captions=zeros"][..], true, false),
        (&["model.empty_captions=encoded"][..], false, false),
        (&varying[..], true, true),
    ] {
        let mut encoder_stays = false;
        let mut events = |event: Event| {
            encoder_stays |= matches!(event, Event::Note { message } if message.contains("stays in memory"));
        };
        let plan = place.plan(&[&NO_TEXT[..], sets].concat());
        let (_, data) = TrainingData::prepare(&plan, &base(), &mut events).unwrap();
        let encode = |caption: &str| match data.captions.text(&[caption]).unwrap() {
            Text::Encoded(text) => (text.context, text.pooled.unwrap()),
            Text::Tokens { .. } => panic!("tokens"),
        };
        let ((context, pooled), (no_context, no_pooled)) = (encode(&caption(0)), encode(""));
        assert_eq!((context.dims(), pooled.dims()), (&[1, 77, 12 + 16][..], &[1, 16][..]), "both side by side");
        assert_eq!((no_context.dims(), no_pooled.dims()), (context.dims(), pooled.dims()));
        assert!(!is_zero(&context) && !is_zero(&pooled), "{sets:?}");
        assert_eq!((is_zero(&no_context), is_zero(&no_pooled)), (are_zeros, are_zeros), "{sets:?}");
        assert_eq!(encoder_stays, stays, "{sets:?}");
    }
}

#[test]
fn no_text_is_zeros_too_where_encoders_learn_and_teaches_them_nothing() {
    let place = Place::new();
    let sets = ["lora.text_encoder.targets=full", "lora.text_encoder_2.targets=full"];
    for (more, learns_of_nothing) in [("model.empty_captions=auto", false), ("model.empty_captions=encoded", true)] {
        let plan = place.plan(&[&sets[..], &[more]].concat());
        let data = prepare(&plan);
        let network = with_the_adapter("sdxl");
        let (batch, _) = data.subject(&plan, 0, 0, NUM_TIMESTEPS).unwrap();
        let text_gradients = |captions: &[&str]| {
            let text = data.captions.text(captions).unwrap();
            let outcome = network.run(&batch, &text, 1.0).unwrap();
            let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
            assert_eq!(gradients.len(), 2 * network.factors().len());
            let of_text = gradients.iter().filter(|(key, _)| key.starts_with("lora_te"));
            of_text.flat_map(|(_, gradient)| numbers(gradient)).map(|x| f64::from(x).powi(2)).sum::<f64>()
        };
        let [told, nothing] = [["sks thing 0"; 4], [""; 4]].map(|captions| text_gradients(&captions));
        assert!(told > 0.0 && (nothing > 0.0) == learns_of_nothing, "{more}: {told} {nothing}");
    }
}

fn with_the_adapter(case: &str) -> Network {
    let base = Base::open(source(case), None, DType::F32, &Device::Cpu).unwrap();
    let adapter = Adapter::read(&golden(case).join("adapter.safetensors")).unwrap();
    Network::with_adapter(&base, &adapter, Recompute::None).unwrap()
}

#[test]
fn with_one_text_encoder_an_empty_caption_is_encoded_unless_the_settings_say_zeros() {
    let place = Place::new();
    let base = Base::open(source("sd1"), None, DType::F32, &Device::Cpu).unwrap();
    let context = |set: &str| {
        let plan = place.plan(&[&NO_TEXT[..], &["data.size_px=32", set]].concat());
        let (_, data) = TrainingData::prepare(&plan, &base, &mut |_| ()).unwrap();
        let Text::Encoded(text) = data.captions.text(&[""]).unwrap() else { panic!("tokens") };
        assert!(text.pooled.is_none());
        numbers(&text.context)
    };
    let encoded = context("model.empty_captions=encoded");
    assert!(encoded.iter().any(|x| *x != 0.0) && context("model.empty_captions=auto") == encoded);
    assert!(context("model.empty_captions=zeros").iter().all(|x| *x == 0.0));
}

#[test]
fn captions_are_kept_between_runs_with_their_pooled_text() {
    let place = Place::new();
    let (plan, mut phases) = (place.plan(&[]), Vec::new());
    let mut texts = Vec::new();
    for _ in 0..2 {
        let mut started = 0;
        let mut events = |event: Event| {
            if let Event::PhaseStarted { name, .. } = event {
                started += usize::from(name == "encoding captions");
            }
        };
        let (_, data) = TrainingData::prepare(&plan, &base(), &mut events).unwrap();
        let Text::Encoded(text) = data.captions.text(&[&caption(0), &caption(1)]).unwrap() else { panic!() };
        texts.push((numbers(&text.context), numbers(&text.pooled.unwrap())));
        phases.push(started);
    }
    assert!(phases == [1, 0] && texts[0] == texts[1], "{phases:?}");
    assert_ne!(texts[0].1[..16], texts[0].1[16..], "each caption has its own");
}

#[test]
fn a_run_says_what_learns_and_writes_the_names_and_the_metadata_that_other_programs_read() {
    let sets = [
        "lora.text_encoder.targets=full",
        "lora.text_encoder.learning_rate=1e-3",
        "lora.text_encoder_2.targets=attention",
        "lora.text_encoder_2.rank=3",
        "optimizer.learning_rate=1e-2",
        "data.flip=true",
        "data.trigger=sks",
        "prior.kind=base",
        "data.captions.dropout=0.3",
        "samples.prompts=[\"sks thing\"]",
        "samples.steps=2",
    ];
    for (case, prediction, zero) in [("sdxl", "epsilon", "False"), ("sdxl-v", "v", "True")] {
        let place = Place::new();
        let (written, said) = place.train(case, &sets);
        let path = written.unwrap();
        let adapter = Adapter::read(&path).unwrap();
        let count = |component| adapter.modules.keys().filter(|m| Component::of_module(m) == Some(component)).count();
        // Three layers each, of which nobody reads the first encoder's last: six modules a layer and four.
        assert_eq!((count(Component::TextEncoder1), count(Component::TextEncoder2)), (2 * 6, 3 * 4));
        let unet = count(Component::Unet);
        let learns = format!("learns: U-Net {unet} modules, text encoder 1 12 modules, text encoder 2 12 modules");
        assert!(said.contains(&learns), "{said:?}");
        assert!(said.iter().any(|line| line.starts_with("predicts ")), "{said:?}");
        assert!(adapter.modules_that_never_moved().is_empty());
        let file = TensorFile::open(&path).unwrap();
        for key in file.names() {
            let starts = ["lora_unet_input_blocks_", "lora_unet_middle_block_1_", "lora_unet_output_blocks_"];
            let texts = ["lora_te1_text_model_encoder_layers_", "lora_te2_text_model_encoder_layers_"];
            assert!(starts.iter().chain(&texts).any(|start| key.starts_with(start)), "{key}");
        }
        for (key, value) in [
            ("ss_base_model_version", "sdxl_base_v1-0"),
            ("ss_v2", "False"),
            ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
            ("modelspec.implementation", "https://github.com/Stability-AI/generative-models"),
            ("modelspec.prediction_type", prediction),
            ("ss_zero_terminal_snr", zero),
            ("ss_text_encoder_lr", "[0.001, 0.01]"),
        ] {
            assert_eq!(adapter.metadata[key], value, "{case} {key}");
        }
        // It is where another run can begin.
        let again = format!("lora.start_from={}", path.display());
        let run = format!("output.folder={}", place.folder.path().join("again").display());
        place.train(case, &[&sets[..], &[again.as_str(), run.as_str()]].concat()).0.unwrap();
    }
}

#[test]
fn a_run_goes_on_to_the_bit_and_each_encoder_stops_when_it_is_told_to() {
    let place = Place::new();
    let sets = [
        "lora.text_encoder.targets=full",
        "lora.text_encoder_2.targets=full",
        "lora.text_encoder_2.stop_after=0.5",
        "train.steps=6",
        "output.precision=f32",
        "optimizer.learning_rate=1e-2",
    ];
    let whole = Adapter::read(&place.train("sdxl", &sets).0.unwrap()).unwrap();
    let folder = format!("output.folder={}", place.folder.path().join("parts").display());
    let sets = [&sets[..], &[folder.as_str(), "output.name=run"]].concat();
    let half = Adapter::read(&place.train_until("sdxl", &sets, Start::New, Some(3)).0.unwrap()).unwrap();
    let resume = Start::Resume { anyway: false };
    let parts = Adapter::read(&place.train_until("sdxl", &sets, resume, None).0.unwrap()).unwrap();
    assert!(whole.modules == parts.modules);
    for (name, module) in &parts.modules {
        let stopped = Component::of_module(name) == Some(Component::TextEncoder2);
        assert_eq!(half.modules[name] == *module, stopped, "{name}");
    }
}

#[test]
fn one_encoder_learns_alone_and_the_other_only_reads() {
    let place = Place::new();
    for (alone, component) in
        [("lora.text_encoder", Component::TextEncoder1), ("lora.text_encoder_2", Component::TextEncoder2)]
    {
        let plan = place.plan(&["lora.unet.targets=none", &format!("{alone}.targets=full")]);
        let network = Network::load(&base(), plan.unet.as_ref(), &plan.text_encoders, 3, Checkpointing::None).unwrap();
        assert_eq!(network.text_encoders().len(), 2);
        assert!(network.factors().modules().all(|f| Component::of_module(f.module()) == Some(component)));
        let data = prepare(&plan);
        let (batch, text) = data.subject(&plan, 0, 0, NUM_TIMESTEPS).unwrap();
        let outcome = network.run(&batch, &text, 1.0).unwrap();
        let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
        let learns = |(key, gradient): (&String, &Tensor)| {
            key.ends_with("lora_down.weight") || numbers(gradient).iter().any(|x| *x != 0.0)
        };
        assert!(gradients.len() == 2 * network.factors().len() && gradients.iter().all(learns), "{alone}");
    }
}

#[test]
fn what_does_not_go_with_the_base_is_refused_by_its_key() {
    let place = Place::new();
    let refused = |case: &str, sets: &[&str]| place.train(case, sets).0.unwrap_err().to_string();
    let second = refused("sd1", &["lora.text_encoder_2.targets=attention", "data.size_px=32"]);
    assert!(second.contains("`lora.text_encoder_2.targets`: the base has one text encoder"), "{second}");
    let noise = refused("sdxl", &["model.zero_terminal_snr=true"]);
    assert!(noise.contains("`model.zero_terminal_snr`") && noise.contains("velocity"), "{noise}");
    let noise = refused("sdxl-v", &["model.prediction=epsilon"]);
    assert!(noise.contains("`model.prediction`"), "{noise}");
    let (ended, said) = place.train("sdxl-v", &["loss.weighting=min-snr", "lora.text_encoder.stop_after=1"]);
    ended.unwrap();
    assert!(said.iter().any(|line| line.contains("min-snr") && line.contains("zero terminal SNR")), "{said:?}");
    let folder = format!("output.folder={}", place.folder.path().join("v").display());
    let (ended, said) = place.train("sdxl", &["model.prediction=v", "model.zero_terminal_snr=true", &folder]);
    assert_eq!(Adapter::read(&ended.unwrap()).unwrap().metadata["modelspec.prediction_type"], "v");
    assert!(said.iter().any(|line| line == "predicts velocity (v), as told; zero terminal SNR, as told"), "{said:?}");
}

#[test]
fn validation_and_the_leak_ask_with_the_sizes_that_they_are_of() {
    let place = Place::new();
    let plan = place.plan(&["data.trigger=sks", "data.class=toy"]);
    let data = prepare(&plan);
    let network = with_the_adapter("sdxl");
    let mut validation = Validation::prepare(&plan, &data).unwrap().unwrap();
    let point = validation.measure(&network, &data, 0).unwrap();
    assert!(point.loss > 0.0 && point.leak.unwrap().with_trigger > 0.0);
    // By hand: the mean over the same questions, one by one, with the sizes of each picture.
    let probes = LeakProbes::without_pictures((12, 8), 3, network.schedule(), 5).unwrap();
    let text = data.captions.text(&[&caption(0)]).unwrap();
    let Text::Encoded(encoded) = text else { panic!("tokens") };
    let ask = |network: &Network, time_ids: &Tensor| -> Vec<f32> {
        let batch = MicroBatch {
            time_ids: Some(time_ids.clone()),
            ..MicroBatch::new(probes.latents.clone(), probes.noise.clone(), probes.timesteps.clone())
        };
        let text = Text::Encoded(encoded.repeated(3).unwrap());
        numbers(&network.run(&batch, &text, 1.0).unwrap().prediction)
    };
    let px = (base().vae_config().downsampling() * 12, base().vae_config().downsampling() * 8);
    let told = [px.0, px.1, 0, 0, px.0, px.1].map(|x| x as f32);
    let told = Tensor::from_vec(told.repeat(3), (3, 6), &Device::Cpu).unwrap();
    let mut zeroed = Adapter::read(&golden("sdxl/adapter.safetensors")).unwrap();
    zeroed.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    let plain = Network::with_adapter(&base(), &zeroed, Recompute::None).unwrap();
    let (adapted, unchanged) = (ask(&network, &told), ask(&plain, &told));
    let part = adapted.len() / 3;
    let change = |i: usize| {
        let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
        let (a, b) = (&adapted[i * part..(i + 1) * part], &unchanged[i * part..(i + 1) * part]);
        squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
            / squares(&mut b.iter().map(|b| f64::from(*b)))
    };
    let expected = (0..3).map(change).sum::<f64>() / 3.0;
    let prompt = LeakPrompt { prompt: "sks".into(), has_trigger: true, text: Text::Encoded(encoded.clone()) };
    // The text is encoded before, so only the U-Net's factors change anything: as in `ask`.
    let score = LeakScore::measure(&network, &probes, &[prompt], &mut |_| ()).unwrap();
    assert!((score.with_trigger / expected - 1.0).abs() < 1e-4, "{} {expected}", score.with_trigger);
}

/// Runs the golden batch of `case` without the tensor `left_out`, and with `more`.
fn verify(case: &str, left_out: &str, more: Option<(&str, TensorView<'_>)>) -> Result<(), TrainError> {
    let folder = tempfile::tempdir().unwrap();
    let (path, from) = (folder.path().join("batch.safetensors"), golden(case).join("batch.safetensors"));
    let file = TensorFile::open(&from).unwrap();
    let (floats, integers): (Vec<&str>, Vec<&str>) = file
        .names()
        .filter(|name| *name != left_out)
        .partition(|name| file.info(name).unwrap().dtype == loralei_adapter::Dtype::F32);
    let shape = |name: &str| file.info(name).unwrap().shape.clone();
    let floats: Vec<_> = floats.into_iter().map(|name| (name, shape(name), file.read_f32(name).unwrap())).collect();
    let integers: Vec<_> = integers.into_iter().map(|name| (name, shape(name), file.read_i64(name).unwrap())).collect();
    let floats = floats.iter().map(|(name, shape, values)| (*name, TensorView::f32(shape, values)));
    let integers = integers.iter().map(|(name, shape, values)| (*name, TensorView::i64(shape, values)));
    let views = floats.chain(integers).chain(more).map(|(name, view)| (name.to_owned(), view)).collect();
    write_tensors(&path, &views, &BTreeMap::new()).unwrap();
    let adapter = golden(case).join("adapter.safetensors");
    let verification = StepVerification {
        base: source(case),
        schedule: None.into(),
        adapter: &adapter,
        batch: &path,
        learning_rate: 1e-3,
        weight_decay: 1e-2,
        dtype: Dtype::F32,
        weights: WeightDtype::F32,
        compute: Compute::F32,
        device: DeviceChoice::Cpu,
        ops: Ops::Auto,
        checkpointing: Checkpointing::None,
    };
    verification.run(|_, _| ()).map(drop)
}

#[test]
fn the_batch_of_a_step_must_have_what_the_base_is_told_and_nothing_else() {
    for name in ["input_ids_2", "time_ids"] {
        let error = verify("sdxl", name, None).unwrap_err().to_string();
        assert!(error.contains(&format!("it has no tensor `{name}`")), "{error}");
    }
    let (ids, sizes) = (vec![1; 20 * 2 * 77], vec![64.0; 20 * 2 * 6]);
    for (name, view) in
        [("input_ids_2", TensorView::i64(&[20, 2, 77], &ids)), ("time_ids", TensorView::f32(&[20, 2, 6], &sizes))]
    {
        let error = verify("sd1", "", Some((name, view))).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
}

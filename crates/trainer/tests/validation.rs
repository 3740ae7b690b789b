//! What a run is measured on and what it draws on its way: the same at any time, and without effect on the run.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use candle_core::{DType, Device, Tensor};
use loralei_adapter::Adapter;
use loralei_data::RgbImage;
use loralei_model::{Base, BaseSource, Checkpointing};
use loralei_trainer::{
    BeforeAfter, ConfigLayers, Draw, Event, LossConfig, MicroBatch, Network, Plan, Purpose, ResolvedConfig, RunOptions,
    SampleLine, Samples, Start, Text, TrainingData, TrainingImages, Validation, ValidationPoint, train,
};
use std::collections::BTreeSet;
use std::fs;
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

/// The adapter with B = 0: it changes nothing.
fn zeroed() -> Adapter {
    let mut adapter = adapter();
    adapter.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    adapter
}

fn network(base: &Base, adapter: &Adapter) -> Network {
    Network::with_adapter(base, adapter, Checkpointing::Block).unwrap()
}

/// Ten pictures of three shapes with a trigger in all captions, one of them masked.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (i, (width, height)) in
            [(64, 64), (96, 40), (40, 96), (64, 66), (100, 42)].repeat(2).into_iter().enumerate()
        {
            place.picture("images", &i.to_string(), (width, height), i as u32);
        }
        let mask = RgbImage::from_fn(64, 64, |x, _| [if x < 24 { 255 } else { 0 }; 3].into());
        mask.save(place.images().join("0-masklabel.png")).unwrap();
        place
    }

    fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn images(&self) -> PathBuf {
        self.folder("images")
    }

    fn picture(&self, folder: &str, name: &str, (width, height): (u32, u32), seed: u32) {
        let busy = RgbImage::from_fn(width, height, |x, y| {
            let mixed = (x * 7 + y * 13 + seed * 29) ^ (x * y);
            [mixed, mixed >> 2, mixed << 1].map(|value| value as u8).into()
        });
        let folder = self.folder(folder);
        busy.save(folder.join(format!("{name}.png"))).unwrap();
        fs::write(folder.join(format!("{name}.txt")), format!("a dog on tile {name}, red, blue")).unwrap();
    }

    fn plan(&self, sets: &[&str]) -> Plan {
        self.config(sets).1
    }

    fn config(&self, sets: &[&str]) -> (ResolvedConfig, Plan) {
        let mut layers = ConfigLayers::new();
        layers.set_text("data.images", &self.images().display().to_string()).unwrap();
        layers.set_text("data.cache", &self.folder("store").display().to_string()).unwrap();
        layers.set_text("output.folder", &self.folder("run").display().to_string()).unwrap();
        let common = ["data.size_px=64", "train.batch_size=2", "train.steps=6", "train.seed=7", "data.trigger=sks"];
        for set in common.iter().chain(sets) {
            layers.set(set).unwrap();
        }
        let resolved = layers.resolve().unwrap();
        let plan = Plan::new(&resolved.config).unwrap();
        (resolved, plan)
    }
}

fn prepare(plan: &Plan) -> (TrainingImages, TrainingData) {
    TrainingData::prepare(plan, &base(), &mut |_| ()).unwrap()
}

fn measure(plan: &Plan, adapter: &Adapter, step: u64) -> ValidationPoint {
    let (_, data) = prepare(plan);
    let mut validation = Validation::prepare(plan, &data).unwrap().unwrap();
    validation.measure(&network(&base(), adapter), &data, step).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// A text encoder that learns, so that captions are tokens.
const TEXT: &str = "lora.text_encoder.targets=attention";

#[test]
fn a_measurement_is_a_function_of_the_factors_alone() {
    let place = Place::new();
    let plan =
        place.plan(&["validation.hold_out=0.4", TEXT, "data.captions.shuffle=true", "data.captions.dropout=0.9"]);
    let (_, data) = prepare(&plan);
    let mut validation = Validation::prepare(&plan, &data).unwrap().unwrap();
    let base = base();
    let (learned, new) = (network(&base, &adapter()), network(&base, &zeroed()));
    let first = validation.measure(&learned, &data, 3).unwrap();
    // Other factors in between, another step, another process, other settings of the run.
    validation.measure(&new, &data, 4).unwrap();
    let again = validation.measure(&learned, &data, 3).unwrap();
    assert_eq!(first, again);
    let other = ["train.accumulate=3", "optimizer.learning_rate=1", "data.repeats=4", "data.captions.tag_dropout=0.5"];
    let sets = ["validation.hold_out=0.4", TEXT].into_iter().chain(other).collect::<Vec<_>>();
    assert_eq!(measure(&place.plan(&sets), &adapter(), 3), first);
    assert_ne!(measure(&place.plan(&[&sets[..], &["train.seed=8"]].concat()), &adapter(), 3).loss, first.loss);
    let ValidationPoint { loss, bins, train_loss, leak, .. } = &first;
    assert_eq!(bins.iter().map(|bin| bin.timestep).collect::<Vec<_>>(), [125, 375, 625, 875]);
    assert!((bins.iter().map(|bin| bin.loss).sum::<f64>() / 4.0 - loss).abs() < 1e-12);
    assert!(train_loss.is_some_and(|other| (other - loss).abs() > 1e-6));
    assert!(leak.is_some_and(|leak| leak.with_trigger > 1e-4 && leak.without_trigger > 1e-4));
}

/// By the door that training uses, one image and one timestep at a time, with noise from its definition.
#[test]
fn the_loss_is_that_of_training_at_the_posteriors_mean_with_the_documented_noise() {
    let place = Place::new();
    let plan =
        place.plan(&["validation.max_images=10", "validation.num_timesteps=3", TEXT, "data.outside_mask_weight=0.25"]);
    let (images, data) = prepare(&plan);
    let network = network(&base(), &adapter());
    let point = Validation::prepare(&plan, &data).unwrap().unwrap().measure(&network, &data, 0).unwrap();
    assert_eq!(point.train_loss, None, "it is measured on what is learned from");

    let vae = base().load_vae().unwrap();
    let mut sums = [0.0; 3];
    let mut has_mask = false;
    for picture in &images.subject {
        let fitted = picture.fitted(4, false).unwrap();
        let (h, w) = (fitted.pixels.height_px as usize, fitted.pixels.width_px as usize);
        let pixels = Tensor::from_vec(fitted.pixels.data, (1, h, w, 3), &Device::Cpu).unwrap();
        let latents = (vae.encode(&pixels).unwrap().mean * vae.scaling_factor()).unwrap();
        let mask = fitted.mask.map(|mask| {
            has_mask = true;
            let weights = mask.data.iter().map(|white| 0.25 + 0.75 * white).collect::<Vec<_>>();
            Tensor::from_vec(weights, (1, 1, h / 4, w / 4), &Device::Cpu).unwrap()
        });
        let name = picture.sample.path.file_stem().unwrap().to_string_lossy().into_owned();
        let caption = format!("sks, a dog on tile {name}, red, blue");
        let ids = base().tokenizer(0).unwrap().encode(&caption).unwrap().input_ids;
        let text = Text::tokens(vec![Tensor::from_vec(ids, (1, 77), &Device::Cpu).unwrap()]);
        let content = u64::from_le_bytes(picture.surveyed.content.0[..8].try_into().unwrap());
        for (bin, timestep) in [166, 500, 833].into_iter().enumerate() {
            let noise = Draw::new(7, content, bin as u64, Purpose::Validation).standard_normal(latents.elem_count());
            let noise = Tensor::from_vec(noise, latents.shape(), &Device::Cpu).unwrap();
            let (latents, loss_mask) = (latents.clone(), mask.clone());
            let batch = MicroBatch {
                latents,
                noise,
                timesteps: vec![timestep],
                loss_mask,
                sample_weight: None,
                input_noise: None,
                time_ids: None,
                loss: LossConfig::default(),
                dropout: None,
            };
            sums[bin] += network.run(&batch, &text, 1.0).unwrap().weighted_loss.to_scalar::<f64>().unwrap();
        }
    }
    assert!(has_mask);
    for (bin, sum) in point.bins.iter().zip(sums) {
        let expected = sum / images.subject.len() as f64;
        assert!((bin.loss / expected - 1.0).abs() < 1e-4, "{}: {} {expected}", bin.timestep, bin.loss);
    }
}

#[test]
fn the_leak_of_factors_that_changed_nothing_is_zero_with_a_frozen_and_a_trained_text_encoder() {
    let place = Place::new();
    for sets in [&["data.class=dog"][..], &[TEXT]] {
        let plan = place.plan(sets);
        let (_, data) = prepare(&plan);
        let network = if plan.learns_text() {
            network(&base(), &zeroed())
        } else {
            Network::load(&base(), plan.unet.as_ref(), &[], 7, plan.checkpointing).unwrap()
        };
        let leak =
            Validation::prepare(&plan, &data).unwrap().unwrap().measure(&network, &data, 0).unwrap().leak.unwrap();
        assert!(leak.with_trigger == 0.0 && leak.without_trigger == 0.0, "{leak:?}");
    }
    assert_eq!(measure(&place.plan(&[TEXT, "validation.leak=false"]), &adapter(), 1).leak, None);
    assert_eq!(measure(&place.plan(&[TEXT, "data.trigger="]), &adapter(), 1).leak, None);
}

#[test]
fn images_that_are_held_out_are_in_no_batch_and_in_no_count() {
    let place = Place::new();
    let plan = place.plan(&["validation.hold_out=0.3", "data.repeats=2"]);
    let (images, data) = prepare(&plan);
    let names = |pictures: &[loralei_data::Picture]| -> BTreeSet<PathBuf> {
        pictures.iter().map(|picture| picture.sample.path.clone()).collect()
    };
    let (held, kept) = (names(&images.validation), names(&images.subject));
    assert!(!held.is_empty() && held.is_disjoint(&kept) && held.len() + kept.len() == 10);
    assert_eq!(images.places.iter().map(|place| place.num_images).sum::<usize>(), kept.len());
    let (subject, per_epoch) = (&data.images.subject, data.images.subject.batches_per_epoch());
    assert_eq!(subject.sizes().iter().map(|(_, count)| count).sum::<u64>(), 2 * kept.len() as u64);
    let shown: BTreeSet<String> =
        (0..3 * per_epoch).flat_map(|index| subject.shown(index)).map(|shown| shown.caption).collect();
    let captions = |paths: &BTreeSet<PathBuf>| -> BTreeSet<String> {
        let caption = |path: &PathBuf| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            format!("sks, a dog on tile {name}, red, blue")
        };
        paths.iter().map(caption).collect()
    };
    assert_eq!(shown, captions(&kept), "each caption belongs to one image");
    assert_eq!(subject.first_captions().collect::<BTreeSet<_>>(), captions(&kept));
    // One more image does not change sides of the others.
    place.picture("images", "another", (64, 64), 99);
    let after = names(&prepare(&plan).0.validation);
    assert!(after.is_superset(&held) && after.len() <= held.len() + 1, "{held:?} {after:?}");
    // The adapter's file counts what was learned from.
    let (resolved, plan) = place.config(&["validation.hold_out=0.3", "train.steps=1"]);
    let ended = train(&plan, source(), &RunOptions::new(&resolved), &mut |_| ()).unwrap();
    let metadata = Adapter::read(&ended.adapter().path).unwrap().metadata;
    let num_kept = 11 - after.len();
    assert_eq!(metadata["ss_num_train_images"], num_kept.to_string());
    assert_eq!(metadata["ss_num_validation_images"], after.len().to_string());
    assert!(metadata["ss_dataset_dirs"].contains(&format!("\"img_count\":{num_kept}")), "{metadata:?}");
    for path in &after {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!metadata["ss_tag_frequency"].contains(&format!("tile {name}\"")), "{name}");
    }
}

#[test]
fn a_folder_of_its_own_is_measured_on_under_the_rules_of_the_data() {
    let place = Place::new();
    place.picture("other", "x", (96, 40), 50);
    place.picture("other", "3", (64, 66), 3); // the same as one that is learned from
    let folder = format!("validation.images={}", place.folder("other").display());
    let plan = place.plan(&[&folder, TEXT]);
    let mut warnings = Vec::new();
    let mut events = |event| {
        if let Event::Warning { message } = event {
            warnings.push(message);
        }
    };
    let (images, data) = TrainingData::prepare(&plan, &base(), &mut events).unwrap();
    assert_eq!((images.subject.len(), images.validation.len(), data.images.validation.len()), (10, 2, 2));
    assert!(warnings.iter().any(|warning| warning.contains("1 images of `validation.images`")), "{warnings:?}");
    let mut validation = Validation::prepare(&plan, &data).unwrap().unwrap();
    let point = validation.measure(&network(&base(), &adapter()), &data, 1).unwrap();
    assert!(point.leak.unwrap().with_trigger > 0.0, "the trigger is put in front there too");
    assert!(point.train_loss.is_some());
}

#[test]
fn measuring_leaves_what_is_learned_to_the_byte() {
    let place = Place::new();
    let (with, without) = (place.config(&["lora.rank=2"]), place.config(&["lora.rank=2", "validation.every_steps=0"]));
    let learned = |(resolved, plan): &(ResolvedConfig, Plan)| {
        let options = RunOptions { start: Start::Overwrite, ..RunOptions::new(resolved) };
        let ended = train(plan, source(), &options, &mut |_| ()).unwrap();
        Adapter::read(&ended.adapter().path).unwrap().modules
    };
    assert_eq!(learned(&with), learned(&without));
}

/// Losses of two steps with something done between them.
fn losses(plan: &Plan, data: &TrainingData, network: &Network, between: impl FnOnce(&Network)) -> Vec<Vec<f32>> {
    let step = |step| {
        let (batch, text) = data.subject(plan, step, 0, 1000).unwrap();
        let outcome = network.run(&batch, &text, 1.0).unwrap();
        let gradients = network.factors().take_gradients(&outcome.gradients).unwrap();
        let mut all = vec![outcome.weighted_loss.to_scalar::<f64>().unwrap() as f32];
        all.extend(gradients.values().flat_map(numbers));
        all
    };
    let first = step(0);
    between(network);
    vec![first, step(1)]
}

#[test]
fn drawing_and_measuring_leave_the_next_step_as_it_was_to_the_bit() {
    let place = Place::new();
    for text in ["lora.text_encoder.targets=none", TEXT] {
        let plan =
            place.plan(&[text, "samples.prompts=[\"sks on sand --w 32 --s 2\", \"a dog --s 2\"]", "data.size_px=32"]);
        let (_, data) = prepare(&plan);
        let base = base();
        let new = || {
            let (unet, text) = (plan.unet.as_ref(), &plan.text_encoders);
            Network::load(&base, unet, text, 7, plan.checkpointing).unwrap()
        };
        let mut samples = Samples::prepare(&plan, &base, &mut |_| ()).unwrap().unwrap();
        let mut validation = Validation::prepare(&plan, &data).unwrap().unwrap();
        let plain = losses(&plan, &data, &new(), |_| ());
        let drawn = losses(&plan, &data, &new(), |network| {
            assert_eq!(samples.draw(network, 1, &mut |_| ()).unwrap().len(), 2);
            validation.measure(network, &data, 1).unwrap();
        });
        assert!(plain == drawn, "{text}");
    }
}

fn sample_lines(place: &Place, plan: &Plan, step: u64, adapter: &Adapter) -> (Vec<SampleLine>, Vec<String>) {
    let base = base();
    let mut warnings = Vec::new();
    let mut events = |event| {
        if let Event::Warning { message } = event {
            warnings.push(message);
        }
    };
    let mut samples = Samples::prepare(plan, &base, &mut events).unwrap().unwrap();
    let lines = samples.draw(&network(&base, adapter), step, &mut events).unwrap();
    assert!(lines.iter().all(|line| place.folder("run").join(&line.file).is_file()));
    (lines, warnings)
}

#[test]
fn pictures_say_how_they_were_drawn_and_follow_their_flags() {
    let place = Place::new();
    let prompts =
        "samples.prompts=[\"sks on sand --n blue --w 50 --h 32 --d 9 --s 2 --l 3 --ss euler_a --g 2\", \"a dog\"]";
    let plan =
        place.plan(&[prompts, "samples.seed=40", "samples.steps=3", "output.name=mine", "data.size_px=32", TEXT]);
    let (lines, warnings) = sample_lines(&place, &plan, 500, &adapter());
    let line = |number: usize, prompt: &str, seed, width_px, height_px| SampleLine {
        step: 500,
        file: format!("samples/000500-{number}.png"),
        prompt: prompt.to_owned(),
        seed,
        width_px,
        height_px,
    };
    assert_eq!(lines, [line(1, "sks on sand", 9, 48, 32), line(2, "a dog", 41, 32, 32)]);
    assert!(warnings.len() == 2 && warnings[0].contains("48 x 32") && warnings[1].contains("--g"), "{warnings:?}");
    let parameters = |file: &str| {
        let bytes = fs::read(place.folder("run").join(file)).unwrap();
        loralei_picture::read_parameters(&bytes).unwrap().unwrap()
    };
    let first = parameters(&lines[0].file);
    let expected = "sks on sand <lora:mine:1>\nNegative prompt: blue\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 9, \
                    Size: 48x32, Model: base";
    assert!(first.starts_with(expected), "{first}");
    assert!(
        parameters(&lines[1].file)
            .starts_with("a dog <lora:mine:1>\nSteps: 3, Sampler: DDIM, CFG scale: 7.5, Seed: 41")
    );
    let sheet = loralei_data::decode(&place.folder("run").join("samples/000500.png")).unwrap();
    assert!(sheet.width() > 256 && sheet.height() < sheet.width(), "two side by side");
}

#[test]
fn before_and_after_are_the_first_and_the_last_pictures() {
    let place = Place::new();
    let plan =
        place.plan(&["samples.prompts=[\"sks on sand\", \"a dog\"]", "samples.steps=2", "data.size_px=32", TEXT]);
    let (first, _) = sample_lines(&place, &plan, 0, &zeroed());
    let (last, _) = sample_lines(&place, &plan, 6, &adapter());
    let found = BeforeAfter::write(&plan, &first, &last, &mut |_| ()).unwrap().unwrap();
    assert!(found.path.is_file());
    assert!(found.changed_with_trigger.unwrap() > 0.0 && found.changed_without_trigger.unwrap() > 0.0);
    let same = BeforeAfter::write(&plan, &first, &first, &mut |_| ()).unwrap().unwrap();
    assert!(same.changed_with_trigger.unwrap() == 0.0 && same.changed_without_trigger.unwrap() == 0.0);
    // A prompt that was changed on the way has no counterpart.
    let mut changed = last.clone();
    changed[0].prompt = "other".to_owned();
    let found = BeforeAfter::write(&plan, &first, &changed, &mut |_| ()).unwrap().unwrap();
    assert_eq!(found.changed_with_trigger, None);
    assert_eq!(BeforeAfter::write(&plan, &first, &[], &mut |_| ()).unwrap(), None);
}

#[test]
fn a_file_of_prompts_is_read_again_and_one_that_is_gone_leaves_the_last() {
    let place = Place::new();
    let file = place.folder("prompts").join("prompts.txt");
    fs::write(&file, "# two\nsks --s 1\n\na cat --s 1\n").unwrap();
    let path = format!("samples.prompts_file={}", file.display());
    let plan = place.plan(&[&path, "data.size_px=32"]);
    let (base, network) = (base(), Network::load(&base(), plan.unet.as_ref(), &[], 7, plan.checkpointing).unwrap());
    let mut samples = Samples::prepare(&plan, &base, &mut |_| ()).unwrap().unwrap();
    let mut warnings = Vec::new();
    let mut draw = |step| {
        let mut events = |event| {
            if let Event::Warning { message } = event {
                warnings.push(message);
            }
        };
        let lines = samples.draw(&network, step, &mut events).unwrap();
        (lines.into_iter().map(|line| line.prompt).collect::<Vec<_>>(), warnings.len())
    };
    assert_eq!(draw(0), (vec!["sks".to_owned(), "a cat".to_owned()], 0));
    fs::write(&file, "a bird --s 1\n").unwrap();
    assert_eq!(draw(1), (vec!["a bird".to_owned()], 0));
    fs::write(&file, "a bird --x 1\n").unwrap();
    assert_eq!(draw(2), (vec!["a bird".to_owned()], 1));
    fs::remove_file(&file).unwrap();
    assert_eq!(draw(3), (vec!["a bird".to_owned()], 2));
    assert!(warnings[0].contains("--x") && warnings[1].contains("prompts.txt"), "{warnings:?}");
    let error = Samples::prepare(&plan, &base, &mut |_| ()).map(drop).unwrap_err();
    assert_eq!(error.exit_code(), 2);
}

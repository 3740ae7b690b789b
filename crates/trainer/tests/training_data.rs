//! What a run sees, from a folder to micro-batches: order, sizes, masks, mirrored images, captions, and the store between
//! runs.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // files of a test need no atomic write

use candle_core::{DType, Device, Tensor};
use loralei_data::RgbImage;
use loralei_model::{Base, BaseSource, LossTerm};
use loralei_trainer::{
    ConfigLayers, Draw, Event, LossConfig, MicroBatch, Plan, Purpose, Text, TrainingData, Weighting,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const NUM_TIMESTEPS: usize = 1000;

fn base() -> Base {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd1/base");
    Base::open(BaseSource::Folder(folder), None, DType::F32, &Device::Cpu).unwrap()
}

/// A folder with pictures of three shapes, one of them masked in its left half, and captions.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (i, (width, height)) in [(64, 64), (96, 40), (40, 96), (100, 42), (64, 66)].into_iter().enumerate() {
            place.picture(&format!("{i}.png"), width, height, i as u32);
            fs::write(place.images().join(format!("{i}.txt")), format!("thing {i}, red, blue, green")).unwrap();
        }
        let mask = image(64, 64, |x, _| [if x < 32 { 255 } else { 0 }; 3]);
        mask.save(place.images().join("0-masklabel.png")).unwrap();
        place
    }

    fn images(&self) -> PathBuf {
        let path = self.0.path().join("images");
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn picture(&self, name: &str, width: u32, height: u32, seed: u32) {
        let busy = image(width, height, |x, y| {
            let mixed = (x * 7 + y * 13 + seed * 29) ^ (x * y);
            [mixed, mixed >> 2, mixed << 1].map(|value| value as u8)
        });
        busy.save(self.images().join(name)).unwrap();
    }

    fn plan(&self, sets: &[&str]) -> Plan {
        let mut layers = ConfigLayers::new();
        layers.set_text("data.images", &self.images().display().to_string()).unwrap();
        layers.set_text("data.cache", &self.store().display().to_string()).unwrap();
        for set in ["data.size_px=64", "train.batch_size=2", "train.steps=20", "train.seed=7"].iter().chain(sets) {
            layers.set(set).unwrap();
        }
        Plan::new(&layers.resolve().unwrap().config).unwrap()
    }
}

/// The data, and how many images and captions were encoded for it.
fn prepare(plan: &Plan) -> (TrainingData, BTreeMap<String, u64>, Vec<String>) {
    let (mut phases, mut warnings) = (BTreeMap::new(), Vec::new());
    let mut events = |event: Event| match event {
        Event::PhaseStarted { name, total: Some(total) } => drop(phases.insert(name, total)),
        Event::Warning { message } => warnings.push(message),
        _ => {}
    };
    let (_, data) = TrainingData::prepare(plan, &base(), &mut events).unwrap();
    (data, phases, warnings)
}

fn image(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| pixel(x, y).into())
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn batch(data: &TrainingData, plan: &Plan, step: u64) -> (MicroBatch, Tensor) {
    let (batch, text) = data.subject(plan, step, 0, NUM_TIMESTEPS).unwrap();
    let Text::Encoded(text) = text else { panic!("tokens") };
    (batch, text.context)
}

#[test]
fn every_image_is_seen_as_often_as_it_is_repeated_in_each_epoch_and_a_restart_goes_on_the_same() {
    let place = Place::new();
    let plan = place.plan(&["data.repeats=3", "data.captions.shuffle=true", "data.flip=true", "train.steps=50"]);
    let (first, again) = (prepare(&plan).0, prepare(&plan).0);
    let per_epoch = first.images.subject.batches_per_epoch();
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let mut seen = [0; 5];
        let mut order = Vec::new();
        for index in epoch * per_epoch..(epoch + 1) * per_epoch {
            let shown = first.images.subject.shown(index);
            assert!((1..=2).contains(&shown.len()));
            shown.iter().for_each(|shown| seen[shown.image] += 1);
            order.extend(shown);
        }
        assert_eq!(seen, [3; 5], "epoch {epoch}");
        orders.push(order);
    }
    assert_ne!(orders[0], orders[1]);
    // Any step alone, in another process, as a resumed run asks for it.
    for step in [17, 3, 40] {
        assert_eq!(first.images.subject.shown(step), again.images.subject.shown(step));
        let ((a, a_text), (b, b_text)) = (batch(&first, &plan, step), batch(&again, &plan, step));
        assert_eq!((numbers(&a.latents), numbers(&a_text)), (numbers(&b.latents), numbers(&b_text)), "step {step}");
        assert_eq!((a.timesteps, numbers(&a.noise)), (b.timesteps, numbers(&b.noise)));
    }
}

#[test]
fn batches_have_one_size_and_small_buckets_are_kept() {
    let place = Place::new();
    let plan = place.plan(&[]);
    let (data, ..) = prepare(&plan);
    let mut shapes = BTreeMap::new();
    for step in 0..data.images.subject.batches_per_epoch() {
        let (batch, _) = batch(&data, &plan, step);
        let (b, c, h, w) = batch.latents.dims4().unwrap();
        assert_eq!((c, batch.timesteps.len()), (4, b));
        *shapes.entry((w, h)).or_insert(0) += b;
    }
    // 64 x 64 twice; wide ones twice; a tall one alone. Latents are a quarter of the side.
    let counts: Vec<usize> = shapes.values().copied().collect();
    assert_eq!((shapes.len(), shapes[&(16, 16)], counts.iter().sum::<usize>()), (3, 2, 5), "{shapes:?}");
    assert!(shapes.iter().any(|((w, h), count)| w > h && *count == 2), "{shapes:?}");
}

#[test]
fn the_loss_counts_where_the_mask_is_white_and_as_little_as_asked_elsewhere() {
    let place = Place::new();
    let plan = place.plan(&["data.outside_mask_weight=0.25"]);
    let (data, ..) = prepare(&plan);
    let mut masked = 0;
    for step in 0..data.images.subject.batches_per_epoch() {
        let (batch, _) = batch(&data, &plan, step);
        let Some(mask) = batch.loss_mask else { continue };
        let (b, one, h, w) = mask.dims4().unwrap();
        assert_eq!((one, h, w), (1, 16, 16));
        let shown = data.images.subject.shown(step);
        for (i, row) in mask.reshape((b, h * w)).unwrap().to_vec2::<f32>().unwrap().into_iter().enumerate() {
            let expected = |x: usize| if shown[i].image == 0 && x >= 8 { 0.25 } else { 1.0 };
            assert!((0..h * w).all(|j| (row[j] - expected(j % w)).abs() < 1e-6), "{row:?}");
            masked += usize::from(shown[i].image == 0);
        }
    }
    assert_eq!(masked, 1);
}

#[test]
fn a_mirrored_image_is_encoded_and_its_mask_is_mirrored_with_it() {
    let place = Place::new();
    let plan = place.plan(&["data.flip=true", "data.repeats=8", "train.batch_size=1"]);
    let (data, phases, _) = prepare(&plan);
    assert_eq!(phases["encoding images"], 10, "both sides of five");
    let (mut straight, mut mirrored) = (None, None);
    for step in 0..data.images.subject.batches_per_epoch() {
        let shown = &data.images.subject.shown(step)[0];
        if shown.image == 0 {
            // The same draw for both, so that only the mean and the spread differ.
            let draw = loralei_trainer::Draw::new(1, 1, 1, loralei_trainer::Purpose::LatentSample);
            let latents = data.images.latents(&data.images.subject, std::slice::from_ref(shown), draw).unwrap();
            if shown.is_mirrored { mirrored = Some(latents) } else { straight = Some(latents) }
        }
    }
    let (straight, mirrored) = (straight.unwrap(), mirrored.unwrap());
    let (a, b) = (numbers(&straight.loss_mask.unwrap()), numbers(&mirrored.loss_mask.unwrap()));
    assert!(a.chunks(16).zip(b.chunks(16)).all(|(a, b)| a.iter().rev().eq(b.iter())), "the mask");
    let flipped: Vec<f32> = numbers(&straight.latents).chunks(16).flat_map(|row| row.iter().rev().copied()).collect();
    assert_ne!(numbers(&mirrored.latents), flipped, "latents of the mirror image are no mirror image of latents");
}

#[test]
fn a_second_start_encodes_nothing_and_whatever_changes_is_encoded_anew() {
    let place = Place::new();
    let count = |sets: &[&str]| {
        let (_, phases, _) = prepare(&place.plan(sets));
        let of = |name: &str| phases.get(name).copied().unwrap_or_default();
        (of("encoding images"), of("encoding captions"))
    };
    assert_eq!(count(&[]), (5, 5));
    assert_eq!(count(&[]), (0, 0), "all is there");
    assert_eq!(count(&["train.seed=8", "lora.rank=2", "train.batch_size=1"]), (0, 0), "what does not matter");
    assert_eq!(count(&["data.buckets=false"]), (3, 0), "other crops; the square ones are the same");
    assert_eq!(count(&["data.alpha=black"]), (5, 0));
    assert_eq!(count(&["data.trigger=zqx"]), (0, 5));
    assert_eq!(count(&["data.max_tokens=150"]), (0, 5));
    // The same name, size and number of bytes, and other pixels in a file that is not compressed.
    let path = place.images().join("3.bmp");
    fs::remove_file(place.images().join("3.png")).unwrap();
    image(100, 42, |x, y| [x as u8, y as u8, 9]).save(&path).unwrap();
    assert_eq!(count(&[]), (1, 0));
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x80;
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_eq!(count(&[]), (1, 0), "an image changed behind an old date");
    image(64, 64, |_, y| [if y < 32 { 255 } else { 0 }; 3]).save(place.images().join("0-masklabel.png")).unwrap();
    assert_eq!(count(&[]), (1, 0), "another mask");
    // What a killed run, or a failing disk, leaves behind.
    let files: Vec<PathBuf> = fs::read_dir(place.store())
        .unwrap()
        .flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap())
        .map(|f| f.unwrap().path())
        .collect();
    for file in files {
        let length = fs::metadata(&file).unwrap().len();
        fs::File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    }
    assert_eq!(count(&[]), (5, 5), "all damaged");
    assert_eq!(count(&[]), (0, 0));
}

#[test]
fn two_runs_at_once_share_a_store() {
    let place = Place::new();
    let plan = place.plan(&["data.flip=true"]);
    let latents = || numbers(&batch(&prepare(&plan).0, &plan, 0).0.latents);
    let both = std::thread::scope(|scope| {
        let runs = [scope.spawn(latents), scope.spawn(latents)];
        runs.map(|run| run.join().unwrap())
    });
    assert_eq!(both[0], both[1]);
    assert_eq!(latents(), both[0]);
}

#[test]
fn memory_and_store_give_the_same_numbers() {
    let place = Place::new();
    let (kept, lost) = (place.plan(&[]), place.plan(&["data.cache=off"]));
    let (a, b) = (batch(&prepare(&kept).0, &kept, 1), batch(&prepare(&lost).0, &lost, 1));
    assert_eq!((numbers(&a.0.latents), numbers(&a.1)), (numbers(&b.0.latents), numbers(&b.1)));
}

#[test]
fn long_captions_go_in_chunks_that_the_encoder_reads_one_by_one() {
    let place = Place::new();
    let words: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
    fs::write(place.images().join("2.txt"), words.join(" ")).unwrap();
    let at = |sets: &[&str]| {
        let plan = place.plan(sets);
        let (data, _, warnings) = prepare(&plan);
        let step = (0..10).find(|step| data.images.subject.shown(*step)[0].image == 2).unwrap();
        (batch(&data, &plan, step).1, warnings)
    };
    let ((short, cut), (long, whole)) = (at(&[]), at(&["data.max_tokens=225"]));
    assert_eq!((short.dim(1).unwrap(), long.dim(1).unwrap()), (77, 3 * 77));
    assert!(cut.iter().any(|warning| warning.contains("do not fit") && warning.contains("w99")), "{cut:?}");
    assert_eq!(whole.iter().filter(|warning| warning.contains("do not fit")).count(), 1, "300 tokens: {whole:?}");
    let first = long.narrow(1, 0, 77).unwrap().contiguous().unwrap();
    let distance = numbers(&first).iter().zip(numbers(&short)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance < 1e-5, "{distance}");
    let second = numbers(&long.narrow(1, 77, 77).unwrap().contiguous().unwrap());
    assert!(
        second.iter().zip(numbers(&first)).any(|(a, b)| (a - b).abs() > 1e-3),
        "the second chunk is text of its own"
    );
}

#[test]
fn an_encoder_that_stays_gives_what_one_that_is_dropped_gives() {
    let place = Place::new();
    // So many steps that shuffled captions are new each time, against captions that never change.
    let varying = place.plan(&["data.captions.shuffle=true", "train.steps=400"]);
    let (data, phases, _) = prepare(&varying);
    assert!(!phases.contains_key("encoding captions"));
    let (_, context) = batch(&data, &varying, 4);
    let captions: Vec<String> = data.images.subject.shown(4).into_iter().map(|shown| shown.caption).collect();
    for (i, caption) in captions.iter().enumerate() {
        fs::write(place.images().join(format!("{i}.txt")), caption).unwrap();
    }
    let fixed = place.plan(&[]);
    let (data, ..) = prepare(&fixed);
    let Text::Encoded(kept) = data.captions.text(&captions.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    else {
        panic!("tokens")
    };
    assert_eq!(numbers(&kept.context), numbers(&context));
}

#[test]
fn an_image_that_breaks_off_is_left_out_and_said_or_stops_the_run() {
    let place = Place::new();
    let bytes = fs::read(place.images().join("1.png")).unwrap();
    fs::write(place.images().join("1.png"), &bytes[..bytes.len() / 2]).unwrap();
    let plan = place.plan(&[]);
    let (data, _, warnings) = prepare(&plan);
    assert_eq!(data.images.subject.len(), 4);
    assert!(warnings.iter().any(|warning| warning.contains("left out") && warning.contains("1.png")), "{warnings:?}");
    let strict = place.plan(&["data.strict=true"]);
    let error = TrainingData::prepare(&strict, &base(), &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("1.png") && error.exit_code() == 3, "{error}");
}

#[test]
fn settings_of_noise_loss_and_dropout_hold_for_images_of_the_class_too_each_with_numbers_of_its_own() {
    let place = Place::new();
    let class = place.0.path().join("class");
    fs::create_dir_all(&class).unwrap();
    for name in ["a.png", "b.png"] {
        image(64, 64, |x, y| [x as u8, y as u8, 7]).save(class.join(name)).unwrap();
    }
    let class = format!("data.sources=[{{ images = {class:?}, role = \"class\" }}]");
    let common = ["prior.kind=images", "prior.num_images=2", "data.class=thing", &class];
    let plain = place.plan(&common);
    let settings = ["noise.offset=0.1", "noise.input_perturbation=0.2", "noise.min_timestep=100", "lora.dropout=0.3"];
    let more = ["noise.max_timestep=200", "loss.weighting=min-snr"];
    let changed = place.plan(&[&common[..], &settings, &more].concat());
    let (data, ..) = prepare(&plain);
    let mut offsets = Vec::new();
    for (is_class, term) in [(false, LossTerm::Subject), (true, LossTerm::Prior)] {
        let batch = |plan: &Plan| {
            let batch = if is_class {
                data.class(plan, 3, 3, 0, NUM_TIMESTEPS)
            } else {
                data.subject(plan, 3, 0, NUM_TIMESTEPS)
            };
            batch.unwrap().0
        };
        let (before, after) = (batch(&plain), batch(&changed));
        // Switched off, all is as it was: plain noise, all timesteps, the mean squared error.
        let [noise, timesteps] = match term {
            LossTerm::Subject => [Purpose::Noise, Purpose::Timesteps],
            LossTerm::Prior => [Purpose::PriorNoise, Purpose::PriorTimesteps],
        };
        let draw = |purpose| Draw::new(plain.seed, 3, 0, purpose);
        assert_eq!(numbers(&before.noise), draw(noise).standard_normal(before.noise.elem_count()));
        assert_eq!(before.timesteps, draw(timesteps).integers(0..1000, before.timesteps.len()));
        assert!(before.input_noise.is_none() && before.dropout.is_none() && before.loss == LossConfig::default());

        assert_eq!(numbers(&before.latents), numbers(&after.latents));
        assert!(after.timesteps.iter().all(|t| (100..200).contains(t)));
        assert_eq!(after.loss.weighting, Weighting::MinSnr);
        let dropout = after.dropout.unwrap();
        assert_eq!((dropout.term, dropout.step, dropout.seed), (term, 3, changed.seed));
        let pixels = before.noise.dim(2).unwrap() * before.noise.dim(3).unwrap();
        let added = numbers(&(&after.noise - &before.noise).unwrap());
        let normals = draw(Purpose::OffsetNoise(term)).standard_normal(added.len() / pixels);
        assert!(added.iter().enumerate().all(|(i, added)| (added - 0.1 * normals[i / pixels]).abs() < 1e-6));
        offsets.push(normals[0]);
        let perturbed = numbers(&(after.input_noise.unwrap() - &after.noise).unwrap());
        let normals = draw(Purpose::InputPerturbation(term)).standard_normal(perturbed.len());
        assert!(perturbed.iter().zip(normals).all(|(perturbed, normal)| (perturbed - 0.2 * normal).abs() < 1e-6));
    }
    assert!((offsets[0] - offsets[1]).abs() > 1e-6);
}

#[test]
fn what_the_base_cannot_do_is_refused_before_any_image_is_read() {
    let plan = Place::new().plan(&["loss.weighting=v-like-noise"]);
    let error = TrainingData::prepare(&plan, &base(), &mut |event| panic!("{event:?}")).err().unwrap();
    assert!(error.to_string().contains("loss.weighting") && error.exit_code() == 2, "{error}");
}

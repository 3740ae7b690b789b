//! Bases with two text encoders in every layout: read from an independent conversion, written and read back, told from
//! models that look like them, merged and extracted.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{AdapterFile, Array, Change, Dtype, LoraModule, TensorFile, TensorView, write_tensors};
use loralei_model::{
    Base, BaseDescription, BaseLayers, BaseSource, Checkpointing, Conditioning, EncodedText, ExtractionSettings,
    ForeignModel, Layout, ModelError, Prediction, PredictionOrigin, ScheduleOverride, Targets, TrainingSize,
    WeightBytes, convert, extract, merge,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PROJECTION: &str = "conditioner.embedders.1.model.text_projection";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn try_open(path: &Path) -> Result<Base, ModelError> {
    Base::open(BaseSource::at_path(path), None, DType::F32, &Device::Cpu)
}

fn open(path: &Path) -> Base {
    try_open(path).unwrap()
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}

/// The configurations of a golden base, beside which a single file may lie, and the place for the file.
fn configurations(name: &str) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    copy(&golden(name).join("base"), place.path());
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        for entry in std::fs::read_dir(place.path().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let path = place.path().join("model.safetensors");
    (place, path)
}

/// The golden single file beside the configurations that tensors cannot tell.
fn single_file(name: &str) -> (tempfile::TempDir, PathBuf) {
    let (place, path) = configurations(name);
    std::fs::copy(golden(name).join("single-file.safetensors"), &path).unwrap();
    (place, path)
}

/// Tensors of a file, to be written with changes.
#[derive(Clone)]
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn read(path: &Path) -> Self {
        let file = TensorFile::open(path).unwrap();
        let of = |name: &str| {
            let info = file.info(name).unwrap();
            (name.to_owned(), (info.dtype, info.shape.clone(), file.read_bytes(name).unwrap()))
        };
        Self(file.names().map(of).collect())
    }

    fn write(&self, path: &Path, metadata: &[(&str, &str)]) {
        let views =
            self.0.iter().map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::raw(*dtype, shape, bytes)));
        let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        write_tensors(path, &views.collect(), &metadata).unwrap();
    }

    fn set(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.insert(name.to_owned(), (Dtype::F32, shape.to_vec(), bytes));
    }
}

/// Numbers without a pattern.
fn numbers(shape: &[usize], seed: usize) -> Array {
    let count = shape.iter().product::<usize>();
    let data = (0..count).map(|i| (((i * 7919 + seed * 104_729) % 10_007) as f32 / 5003.0 - 1.0) * 1.7).collect();
    Array { shape: shape.to_vec(), data }
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_vec(numbers(shape, seed).data, shape, &Device::Cpu).unwrap()
}

/// What the networks make of the same numbers: context and pooled text of two captions, prediction, decoded picture.
fn outputs(base: &Base) -> Vec<Vec<f32>> {
    let encoded = |index: usize, captions: [&str; 2]| {
        let tokenizer = base.tokenizer(index).unwrap();
        let ids: Vec<i64> = captions.iter().flat_map(|text| tokenizer.encode(text).unwrap().input_ids).collect();
        let ids = Tensor::from_vec(ids, (2, 77), &Device::Cpu).unwrap();
        base.load_text_encoder(index, None).unwrap().forward(&ids, 0, Checkpointing::None).unwrap()
    };
    let text = [encoded(0, ["photo of the sks dog!", "dog"]), encoded(1, ["the dog", "photo of the sks dog!"])];
    let text = EncodedText::side_by_side(&text).unwrap();
    let sizes =
        Tensor::new(&[[900f32, 1100.0, 3.0, 17.0, 96.0, 64.0], [64.0, 64.0, 0.0, 0.0, 96.0, 64.0]], &Device::Cpu);
    let told = Conditioning::new(text.clone(), Some(sizes.unwrap()));
    let latents = tensor(&[2, 4, 12, 8], 1);
    let unet = base.load_unet(None).unwrap();
    let prediction = unet.forward(&latents, &[417.0, 81.0], &told, Checkpointing::None).unwrap();
    let picture = base.load_vae().unwrap().decode(&latents.narrow(0, 0, 1).unwrap()).unwrap();
    let all = [text.context, text.pooled.unwrap(), prediction, picture];
    all.iter().map(|xs| xs.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |xs: &mut dyn Iterator<Item = f32>| xs.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn the_original_layout_gives_what_the_folder_gives_to_the_bit() {
    for name in ["sdxl", "sdxl-v"] {
        let (_place, path) = single_file(name);
        let (single, folder) = (open(&path), open(&golden(name).join("base")));
        assert_eq!(outputs(&single), outputs(&folder), "{name}");
        assert_eq!(single.warnings(), &[] as &[String]);
    }
}

#[test]
fn a_folder_written_as_one_file_and_back_gives_the_same_to_the_bit() {
    for (name, marks) in [("sdxl", &[][..]), ("sdxl-v", &["v_pred", "ztsnr"])] {
        let place = tempfile::tempdir().unwrap();
        let folder = open(&golden(name).join("base"));
        let expected = outputs(&folder);
        let (file, again) = (place.path().join("one.safetensors"), place.path().join("again"));
        let mut last = (0, 0);
        convert(&folder, &file, Layout::SingleFile, None, &mut |done, total| last = (done, total)).unwrap();
        assert!(last.0 == last.1 && last.0 > 100, "{last:?}");
        let written = TensorFile::open(&file).unwrap();
        let found: Vec<&str> = written.names().filter(|name| !name.contains('.')).collect();
        assert_eq!(found, marks, "{name}");
        // Nothing but the file is needed: configurations and both tokenizers travel in it.
        let single = open(&file);
        assert_eq!(outputs(&single), expected, "{name} as a file");
        assert_eq!(single.noise_schedule().prediction(), folder.noise_schedule().prediction());
        assert_eq!(single.zeros_for_empty_prompt(), folder.zeros_for_empty_prompt());
        convert(&single, &again, Layout::Diffusers, None, &mut |_, _| {}).unwrap();
        let again = open(&again);
        assert_eq!(outputs(&again), expected, "{name} as a folder");
        let zero_snr = |base: &Base| base.noise_schedule().config().rescale_betas_zero_snr;
        assert_eq!((zero_snr(&single), zero_snr(&again)), (zero_snr(&folder), zero_snr(&folder)));
    }
}

#[test]
fn a_written_file_has_the_tensors_of_the_independent_conversion() {
    for name in ["sdxl", "sdxl-v"] {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("one.safetensors");
        convert(&open(&golden(name).join("base")), &file, Layout::SingleFile, None, &mut |_, _| {}).unwrap();
        let ours = TensorFile::open(&file).unwrap();
        let theirs = TensorFile::open(&golden(name).join("single-file.safetensors")).unwrap();
        for key in ours.names() {
            assert_eq!(ours.info(key), theirs.info(key), "{name} {key}");
            assert_eq!(ours.read_f32(key).unwrap(), theirs.read_f32(key).unwrap(), "{name} {key}");
        }
        let ours = |key: &str| ours.info(key).is_some();
        // The two projections differ in that one is the other transposed: were it square and symmetric, nothing would show.
        let weight = open(&golden(name).join("base")).text_encoder_weights(1).unwrap();
        let weight = weight.read_f32("text_projection.weight").unwrap();
        assert_ne!(theirs.read_f32(PROJECTION).unwrap(), weight);
        let parts = ["model.diffusion_model.", "conditioner.embedders.0.", "conditioner.embedders.1.model."];
        let read = |key: &&str| parts.iter().any(|part| key.starts_with(part)) || ["v_pred", "ztsnr"].contains(key);
        let passenger = |key: &str| key.ends_with("position_ids") || key.ends_with("logit_scale");
        let missing: Vec<&str> = theirs.names().filter(read).filter(|key| !ours(key) && !passenger(key)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
    }
}

#[test]
fn half_precision_is_written_and_read() {
    let place = tempfile::tempdir().unwrap();
    let base = open(&golden("sdxl-v").join("base"));
    let full = outputs(&base);
    for (dtype, limit) in [(Dtype::F16, 1e-2), (Dtype::Bf16, 6e-2)] {
        let file = place.path().join(format!("{dtype}.safetensors"));
        convert(&base, &file, Layout::SingleFile, Some(dtype), &mut |_, _| {}).unwrap();
        let written = TensorFile::open(&file).unwrap();
        assert!(written.names().all(|name| written.info(name).unwrap().dtype == dtype));
        for (half, full) in outputs(&open(&file)).iter().zip(&full) {
            let d = distance(half, full);
            assert!(d > 0.0 && d < limit, "{dtype}: {d}");
        }
    }
}

#[test]
fn a_first_encoder_without_its_level_and_passengers_are_read() {
    let (_place, path) = single_file("sdxl");
    let expected = outputs(&open(&path));
    let mut tensors = Tensors::read(&path);
    tensors.0 = tensors
        .0
        .into_iter()
        .map(|(name, value)| (name.replace("transformer.text_model.", "transformer."), value))
        .collect();
    for (name, shape) in [
        ("conditioner.embedders.1.model.logit_scale", &[][..]),
        ("conditioner.embedders.1.model.attn_mask", &[2, 2]),
        ("conditioner.embedders.0.transformer.text_projection.weight", &[2, 2]),
        ("denoiser.sigmas", &[3]),
        ("model_ema.decay", &[]),
        ("vae.surprise", &[1]),
    ] {
        tensors.set(name, shape, &vec![0.5; shape.iter().product()]);
    }
    tensors.write(&path, &[]);
    assert_eq!(outputs(&open(&path)), expected);
}

/// The base's own numbers are moved to those of the published matrix, whose orientation can be told.
#[test]
fn a_projection_is_read_by_its_numbers_where_they_tell_and_else_by_its_name() {
    let (place, path) = single_file("sdxl");
    let original = Tensors::read(&path);
    let (_, shape, bytes) = original.0[PROJECTION].clone();
    let values = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>();
    let (rows, columns) = (shape[0], shape[1]);
    let transposed = |matrix: &[f32], rows: usize, columns: usize| -> Vec<f32> {
        (0..columns).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| matrix[i * columns + j]).collect()
    };
    let weight = format!("{PROJECTION}.weight");
    let pooled = |base: &Base| outputs(base).swap_remove(1);
    for is_published in [false, true] {
        let mut matrix = values(&bytes); // as the original has it
        if is_published {
            (matrix[1], matrix[columns]) = (0.0218, -0.0037);
        }
        let turned = transposed(&matrix, rows, columns);
        let write = |name: &str, matrix: &[f32], dtype: Dtype| {
            let mut tensors = original.clone();
            tensors.0.remove(PROJECTION);
            let bytes = |x: &f32| match dtype {
                Dtype::F16 => half::f16::from_f32(*x).to_le_bytes().to_vec(),
                Dtype::Bf16 => half::bf16::from_f32(*x).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            };
            tensors.0.insert(name.to_owned(), (dtype, shape.clone(), matrix.iter().flat_map(bytes).collect()));
            tensors.write(&path, &[]);
            open(&path)
        };
        let right = write(PROJECTION, &matrix, Dtype::F32);
        let expected = pooled(&right);
        assert!(right.warnings().is_empty());
        let by_name = write(&weight, &turned, Dtype::F32);
        assert!(by_name.warnings().is_empty());
        assert_eq!(pooled(&by_name), expected);
        for (name, matrix) in [(PROJECTION, &turned), (weight.as_str(), &matrix)] {
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let swapped = write(name, matrix, dtype);
                let d = distance(&pooled(&swapped), &expected);
                if is_published {
                    assert!(
                        matches!(swapped.warnings(), [warning] if warning.contains("transposed")),
                        "{name} {dtype}"
                    );
                    assert!(d < 1e-2 && (d == 0.0) == (dtype == Dtype::F32), "{name} {dtype}: {d}");
                } else {
                    assert!(swapped.warnings().is_empty() && d > 0.1, "{name}: {d}");
                }
            }
        }
        if is_published {
            // A folder can be wrong too; what is written from it is right, in both layouts.
            let folder = place.path().join("folder");
            copy(&golden("sdxl").join("base"), &folder);
            let file = folder.join("text_encoder_2/model.safetensors");
            let mut tensors = Tensors::read(&file);
            tensors.set("text_projection.weight", &shape, &matrix);
            tensors.write(&file, &[("format", "pt")]);
            let wrong = open(&folder);
            assert_eq!((wrong.warnings().len(), pooled(&wrong)), (1, expected.clone()));
            for (layout, target) in [(Layout::SingleFile, "right.safetensors"), (Layout::Diffusers, "right")] {
                let target = place.path().join(target);
                convert(&wrong, &target, layout, None, &mut |_, _| {}).unwrap();
                let right = open(&target);
                assert_eq!((right.warnings().len(), pooled(&right)), (0, expected.clone()), "{layout:?}");
            }
        }
    }
}

#[test]
fn marks_are_stronger_than_the_scheduler_and_that_than_the_metadata() {
    let (place, path) = single_file("sdxl");
    let scheduler = place.path().join("scheduler/scheduler_config.json");
    let tensors = Tensors::read(&path);
    let mut marked = tensors.clone();
    marked.set("v_pred", &[0], &[]);
    let mut both = marked.clone();
    both.set("ztsnr", &[0], &[]);
    let kept = |prediction: Option<&str>| {
        let mut config = json!({"beta_schedule": "scaled_linear"});
        if let Some(prediction) = prediction {
            config["prediction_type"] = json!(prediction);
        }
        config.to_string()
    };
    let (epsilon, velocity) = (Prediction::Epsilon, Prediction::VPrediction);
    let v = [("modelspec.prediction_type", "v")];
    for (tensors, config, metadata, expected) in [
        (&both, Some(kept(Some("epsilon"))), &[][..], (velocity, true, PredictionOrigin::Mark)),
        (&marked, Some(kept(Some("epsilon"))), &[], (velocity, false, PredictionOrigin::Mark)),
        (&marked, None, &[], (velocity, false, PredictionOrigin::Mark)),
        (&both, None, &[("modelspec.prediction_type", "epsilon")], (velocity, true, PredictionOrigin::Mark)),
        (&tensors, Some(kept(Some("epsilon"))), &v, (epsilon, false, PredictionOrigin::SchedulerConfig)),
        (&tensors, Some(kept(Some("v_prediction"))), &[], (velocity, false, PredictionOrigin::SchedulerConfig)),
        (&tensors, Some(kept(None)), &v, (velocity, false, PredictionOrigin::Metadata)),
        (&tensors, None, &v, (velocity, false, PredictionOrigin::Metadata)),
        (&tensors, None, &[("modelspec.prediction_type", "epsilon")], (epsilon, false, PredictionOrigin::Metadata)),
        (&tensors, Some(kept(None)), &[], (epsilon, false, PredictionOrigin::Default)),
        (&tensors, None, &[], (epsilon, false, PredictionOrigin::Default)),
    ] {
        tensors.write(&path, metadata);
        match &config {
            Some(text) => std::fs::write(&scheduler, text).unwrap(),
            None => _ = std::fs::remove_file(&scheduler),
        }
        let said = |told: ScheduleOverride| {
            let base = Base::open(BaseSource::at_path(&path), told, DType::F32, &Device::Cpu).unwrap();
            let schedule = base.noise_schedule();
            (schedule.prediction(), schedule.config().rescale_betas_zero_snr, base.prediction_origin())
        };
        assert_eq!(said(ScheduleOverride::default()), expected, "{config:?} {metadata:?}");
        for prediction in [epsilon, velocity] {
            let told = ScheduleOverride { prediction: Some(prediction), zero_terminal_snr: None };
            assert_eq!(said(told), (prediction, expected.1, PredictionOrigin::Told));
        }
        let told = ScheduleOverride { prediction: None, zero_terminal_snr: Some(!expected.1) };
        assert_eq!(said(told), (expected.0, !expected.1, expected.2));
    }
    let folder = |name: &str| open(&golden(name).join("base"));
    assert_eq!(folder("sdxl-v").predicts(), "velocity (v), zero terminal SNR, by its scheduler's configuration");
    assert_eq!(folder("sdxl").predicts(), "noise (epsilon), by its scheduler's configuration");
}

#[test]
fn the_scale_of_another_autoencoder_is_corrected_with_a_warning_and_written_right() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("folder");
    copy(&golden("sdxl").join("base"), &folder);
    let path = folder.join("vae/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    (config["scaling_factor"], config["force_upcast"]) = (json!(0.18215), Value::Null);
    std::fs::write(&path, config.to_string()).unwrap();
    let base = open(&folder);
    assert!(matches!(base.warnings(), [warning] if warning.contains("0.18215")));
    assert_eq!(outputs(&base), outputs(&open(&golden("sdxl").join("base"))));
    for (layout, target) in [(Layout::SingleFile, "right.safetensors"), (Layout::Diffusers, "right")] {
        let target = place.path().join(target);
        convert(&base, &target, layout, None, &mut |_, _| {}).unwrap();
        let right = open(&target);
        assert_eq!((right.vae_config().scaling_factor, right.warnings().len()), (0.13025, 0), "{layout:?}");
    }
}

#[test]
fn what_the_user_says_of_the_noising_process_is_written_by_a_conversion() {
    let place = tempfile::tempdir().unwrap();
    let told = ScheduleOverride { prediction: Some(Prediction::VPrediction), zero_terminal_snr: Some(true) };
    let base = BaseSource::at_path(&golden("sdxl").join("base"));
    let base = Base::open(base, told, DType::F32, &Device::Cpu).unwrap();
    for (layout, target) in [(Layout::SingleFile, "v.safetensors"), (Layout::Diffusers, "v")] {
        let target = place.path().join(target);
        convert(&base, &target, layout, None, &mut |_, _| {}).unwrap();
        let schedule = open(&target).noise_schedule();
        assert_eq!((schedule.prediction(), schedule.config().rescale_betas_zero_snr), (Prediction::VPrediction, true));
    }
}

fn refused(path: &Path) -> ForeignModel {
    match try_open(path) {
        Err(ModelError::Foreign { found, .. }) => found,
        other => panic!("{}: {:?}", path.display(), other.map(|base| base.name())),
    }
}

#[test]
fn models_that_look_like_sdxl_are_refused_by_name() {
    let (place, path) = single_file("sdxl");
    let tensors = Tensors::read(&path);
    let with = |more: &[(&str, &[usize])]| {
        let mut tensors = tensors.clone();
        more.iter().for_each(|(name, shape)| tensors.set(name, shape, &vec![0.0; shape.iter().product()]));
        tensors.write(&path, &[]);
        refused(&path)
    };
    assert_eq!(with(&[("edm_mean", &[1]), ("edm_std", &[1])]), ForeignModel::Edm);
    assert_eq!(with(&[("edm_vpred.sigma_max", &[]), ("v_pred", &[0])]), ForeignModel::Edm);
    let first = "model.diffusion_model.input_blocks.0.0.weight";
    assert_eq!(with(&[(first, &[32, 9, 3, 3])]), ForeignModel::Inpainting);
    let refiner = with(&[("conditioner.embedders.0.model.ln_final.weight", &[48])]);
    assert_eq!(refiner, ForeignModel::SdxlRefiner);
    assert!(refiner.to_string().contains("refiner"));

    let folder = place.path().join("folder");
    copy(&golden("sdxl").join("base"), &folder);
    let set = |file: &str, key: &str, value: Value| {
        let path = folder.join(file);
        let before = std::fs::read_to_string(&path).unwrap();
        let mut config: Value = serde_json::from_str(&before).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        (path, before)
    };
    let restore = |(path, before): (PathBuf, String)| std::fs::write(path, before).unwrap();
    let before = set("unet/config.json", "in_channels", json!(9));
    assert_eq!(refused(&folder), ForeignModel::Inpainting);
    restore(before);
    let before = set("scheduler/scheduler_config.json", "_class_name", json!("EDMDPMSolverMultistepScheduler"));
    assert_eq!(refused(&folder), ForeignModel::Edm);
    restore(before);
    let before = set("vae/config.json", "latents_mean", json!([0.1, 0.2, 0.3, 0.4]));
    assert!(try_open(&folder).err().unwrap().to_string().contains("latents_mean"));
    restore(before);
    open(&folder);
    let width = open(&folder).text_widths()[1];
    set("unet/config.json", "cross_attention_dim", json!(width));
    std::fs::remove_dir_all(folder.join("text_encoder")).unwrap();
    assert_eq!(refused(&folder), ForeignModel::SdxlRefiner);
    // A folder that lacks an encoder is no refiner.
    set("unet/config.json", "cross_attention_dim", json!(2 * width));
    assert!(matches!(try_open(&folder), Err(ModelError::MissingFile { .. })));
}

#[test]
fn a_description_names_both_encoders_and_counts_what_trains() {
    let base = open(&golden("sdxl-v").join("base"));
    let found = BaseDescription::of(&base).unwrap();
    let names: Vec<&str> = found.parts.iter().map(|part| part.name).collect();
    assert_eq!(names, ["U-Net", "text encoder 1", "text encoder 2", "autoencoder"]);
    assert_eq!((found.family, found.zero_terminal_snr), ("Stable Diffusion XL", true));
    assert_eq!(
        (found.prediction, found.prediction_origin),
        (Prediction::VPrediction, PredictionOrigin::SchedulerConfig)
    );
    assert_eq!(found.latent_scale.to_bits(), 0.13025f64.to_bits());
    for part in &found.parts[..3] {
        assert!(part.num_in_matrices + part.num_in_kernels < part.num_parameters && part.num_in_matrices > 0);
    }
    let size = TrainingSize {
        width_px: 256,
        height_px: 128,
        batch_size: 2,
        text_encoders: [false; 2],
        rank: 4,
        recompute: false,
        is_cpu: true,
        bytes_per_weight: WeightBytes { matrices: 4, kernels: 2 },
        bytes_per_number: 4,
    };
    let bytes = |size: TrainingSize| found.training_bytes(size);
    let narrow = TrainingSize { bytes_per_weight: WeightBytes { matrices: 1, kernels: 2 }, ..size };
    assert_eq!(bytes(size) - bytes(narrow), 3 * found.parts[0].num_in_matrices);
    let [first, second] = [[true, false], [false, true]].map(|text_encoders| TrainingSize { text_encoders, ..size });
    // Either needs both encoders' weights; only the second one's text reaches the time embedding.
    let weights: u64 = found.parts[1..3].iter().map(|part| 4 * part.num_parameters).sum();
    assert!(bytes(first) > bytes(size) + weights && bytes(second) > bytes(first));
}

/// Factors for one layer of each network and of each kind.
fn adapter(base: &Base) -> AdapterFile {
    let layers = BaseLayers::of(base).unwrap();
    let mut adapter = AdapterFile::read(&golden("sd1").join("adapter.safetensors")).unwrap();
    adapter.changes.clear();
    for (seed, module) in [
        "lora_unet_add_embedding_linear_1",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_up_blocks_1_resnets_0_conv1",
        "lora_te1_text_model_encoder_layers_0_self_attn_v_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_k_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ]
    .into_iter()
    .enumerate()
    {
        let shape = layers.weight(module).unwrap().unwrap_or_else(|| panic!("{module}")).shape;
        let (mut down, mut up) = (vec![3], vec![shape[0], 3]);
        down.extend(&shape[1..]);
        up.extend(vec![1; shape.len() - 2]);
        let scaled = |array: Array| Array { data: array.data.iter().map(|x| 0.1 * x).collect(), ..array };
        let (down, up) = (scaled(numbers(&down, seed)), scaled(numbers(&up, seed + 50)));
        adapter.changes.insert(module.to_owned(), Change::Lora(LoraModule { down, up, alpha: Some(2.0) }));
    }
    adapter
}

#[test]
fn adapters_are_merged_and_extracted_alike_in_both_layouts() {
    for name in ["sdxl", "sdxl-v"] {
        merge_and_extract(name);
    }
}

fn merge_and_extract(name: &str) {
    let (_place, path) = single_file(name);
    let folder = golden(name).join("base");
    let adapter = adapter(&open(&folder));
    let results = tempfile::tempdir().unwrap();
    let before = outputs(&open(&folder));
    let mut merged = Vec::new();
    for (base, target) in [(&folder, "folder"), (&path, "model.safetensors")] {
        let output = results.path().join(target);
        let report = merge(&open(base), &[(&adapter, 0.7)], &output, None, &mut |_, _| ()).unwrap();
        assert_eq!((report.num_modules, report.notes), (adapter.changes.len(), Vec::new()));
        assert_eq!(open(&output).predicts(), open(base).predicts());
        let found = outputs(&open(&output));
        for (found, before) in found.iter().zip(&before).take(3) {
            assert!(distance(found, before) > 1e-3, "{target}");
        }
        merged.push(found);
        // What was merged is found again, and nothing else.
        let settings = ExtractionSettings {
            rank: 3,
            conv_rank: Some(3),
            unet: Targets::Patterns(vec!["*".to_owned()]),
            text_encoder: Targets::Patterns(vec!["*".to_owned()]),
            clamp: 1.0,
        };
        let extraction = extract(&open(base), &open(&output), &settings, "x", &mut |_, _| ()).unwrap();
        let modules: Vec<&String> = extraction.adapter.modules.keys().collect();
        assert_eq!(modules, adapter.changes.keys().collect::<Vec<_>>());
        for layer in &extraction.layers {
            assert!(layer.relative_error < 1e-4, "{layer:?}");
        }
        assert!(!extraction.unchanged.iter().any(|module| module.contains("text_projection")));
    }
    for (folder, file) in merged[0].iter().zip(&merged[1]) {
        assert_eq!(folder, file);
    }
}

#[test]
fn layers_by_module_name_are_the_same_in_both_layouts_and_the_projection_is_none() {
    let (_place, path) = single_file("sdxl");
    let (folder, single) = (open(&golden("sdxl").join("base")), open(&path));
    let (folder, single) = (BaseLayers::of(&folder).unwrap(), BaseLayers::of(&single).unwrap());
    let modules: Vec<&str> = folder.modules().collect();
    assert!(!modules.iter().any(|module| module.contains("text_projection")));
    for prefix in ["lora_te1_text_model_encoder_layers_1_", "lora_te2_text_model_encoder_layers_2_"] {
        assert!(modules.iter().any(|module| module.starts_with(prefix)), "{prefix}");
    }
    for module in modules {
        let weight = single.weight(module).unwrap().unwrap_or_else(|| panic!("{module} is missing"));
        assert_eq!(weight.data, folder.weight(module).unwrap().unwrap().data, "{module}");
    }
}

//! Pictures against diffusers: the same noise, text and scheduler must end in the same latents. The golden files are
//! made by `tests/golden/make_samples.py`.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Adapter, TensorFile};
use loralei_model::{
    AdapterUse, Base, BaseSource, DrawingSettings, EncodedPrompts, ImageSide, NoiseSchedule, NoiseSource, Sampler,
    SamplerKind, SchedulerConfig, TextSide,
};
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn base(name: &str) -> Base {
    Base::open(BaseSource::Folder(case(name).join("base")), None, DType::F32, &Device::Cpu).unwrap()
}

struct Golden {
    file: TensorFile,
    prompts: Vec<String>,
    negative: String,
    guidance_scale: f64,
}

impl Golden {
    fn open(name: &str) -> Self {
        let facts = std::fs::read_to_string(case(name).join("samples.json")).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        Self {
            file: TensorFile::open(&case(name).join("samples.safetensors")).unwrap(),
            prompts: facts["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect(),
            negative: facts["negative_prompt"].as_str().unwrap().to_owned(),
            guidance_scale: facts["guidance"].as_f64().unwrap(),
        }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let shape = self.file.info(name).unwrap().shape.clone();
        Tensor::from_vec(self.file.read_f32(name).unwrap(), shape, &Device::Cpu).unwrap()
    }

    fn draw(
        &self,
        base: &Base,
        adapter: Option<AdapterUse>,
        strength: f32,
        (kind, steps): (SamplerKind, usize),
    ) -> Tensor {
        let (text, image) = (TextSide::load(base, adapter).unwrap(), ImageSide::load(base, adapter).unwrap());
        text.set_strength(strength);
        image.set_strength(strength);
        let encoded: Vec<EncodedPrompts> =
            self.prompts.iter().map(|prompt| text.encode(prompt, &self.negative, 1).unwrap()).collect();
        let latents = self.tensor("latents");
        let (_, _, h, w) = latents.dims4().unwrap();
        let noise = NoiseSource::Given { latents, steps: Some(self.tensor("noise")) };
        let settings = DrawingSettings { sampler: kind, steps, guidance_scale: self.guidance_scale };
        let side = base.vae_config().downsampling();
        image.draw(&encoded, &noise, (w * side, h * side), &settings, &mut |_| {}).unwrap()
    }
}

/// ||a - b|| / ||b||
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    f64::from(norm(&(a - b).unwrap()) / norm(b))
}

#[test]
fn every_sampler_ends_where_that_of_diffusers_does() {
    for name in ["sd1", "sd2"] {
        let (golden, base) = (Golden::open(name), base(name));
        for (kind, sampler, _) in SamplerKind::ALL {
            for (steps, prefix) in [(10, "final"), (7, "final7")] {
                let key = format!("{prefix}.{sampler}");
                if golden.file.info(&key).is_none() {
                    continue;
                }
                let error = relative(&golden.draw(&base, None, 1.0, (kind, steps)), &golden.tensor(&key));
                println!("{name} {key} {error:.1e}");
                assert!(error < 1e-4, "{name} {key}: {error:.1e}");
            }
        }
    }
}

#[test]
fn an_adapter_moves_the_picture_as_in_diffusers_merged_or_not() {
    for name in ["sd1", "sd2"] {
        let (golden, base) = (Golden::open(name), base(name));
        let adapter = Adapter::read(&case(name).join("adapter.safetensors")).unwrap();
        let plain = golden.tensor("final.ddim");
        for scale in [1.0, -0.5] {
            let expected = golden.tensor(&format!("final.ddim.adapter{}", if scale == 1.0 { "1" } else { "-0.5" }));
            assert!(relative(&expected, &plain) > 0.05, "the adapter does something");
            let beside = AdapterUse { adapter: &adapter, merged: false };
            let drawn = golden.draw(&base, Some(beside), scale, (SamplerKind::Ddim, 10));
            let error = relative(&drawn, &expected);
            assert!(error < 1e-4, "{name} {scale}: {error:.1e}");

            let scaled = Adapter::sum(&[(&adapter, scale)]).unwrap();
            let merged = AdapterUse { adapter: &scaled, merged: true };
            let error = relative(&golden.draw(&base, Some(merged), 1.0, (SamplerKind::Ddim, 10)), &expected);
            assert!(error < 1e-4, "{name} {scale} merged: {error:.1e}");
        }
    }
}

#[test]
fn two_adapters_at_half_are_one_at_full() {
    let (golden, base) = (Golden::open("sd1"), base("sd1"));
    let adapter = Adapter::read(&case("sd1").join("adapter.safetensors")).unwrap();
    let twice = Adapter::sum(&[(&adapter, 1.5), (&adapter, -0.5)]).unwrap();
    let drawn = golden.draw(&base, Some(AdapterUse { adapter: &twice, merged: false }), 1.0, (SamplerKind::Ddim, 10));
    let error = relative(&drawn, &golden.tensor("final.ddim.adapter1"));
    assert!(error < 1e-4, "{error:.1e}");
}

#[test]
fn clip_skip_two_takes_the_layer_before_the_last() {
    for name in ["sd1", "sd2"] {
        let golden = Golden::open(name);
        let text = TextSide::load(&base(name), None).unwrap();
        for (clip_skip, key) in [(1, "text"), (2, "text.clip_skip2")] {
            let expected = golden.tensor(key);
            for (i, prompt) in golden.prompts.iter().enumerate() {
                let encoded = text.encode(prompt, "", clip_skip).unwrap().prompt;
                let error = relative(&encoded, &expected.narrow(0, i, 1).unwrap());
                assert!(error < 1e-4, "{name} {key} {i}: {error:.1e}");
            }
        }
        assert!(text.encode("a", "", 3).is_err() && text.encode("a", "", 0).is_err());
    }
}

#[test]
fn a_seed_gives_the_same_picture_alone_and_in_company() {
    let base = base("sd1");
    let (text, image) = (TextSide::load(&base, None).unwrap(), ImageSide::load(&base, None).unwrap());
    let encoded = text.encode("photo of the dog", "sks", 1).unwrap();
    let settings = DrawingSettings { sampler: SamplerKind::EulerAncestral, steps: 6, guidance_scale: 4.0 };
    let draw = |seeds: &[u64]| {
        let noise = NoiseSource::Seeds(seeds.to_vec());
        image.draw(&vec![encoded.clone(); seeds.len()], &noise, (32, 48), &settings, &mut |_| {}).unwrap()
    };
    let together = draw(&[5, 9, 5]);
    assert_eq!(together.dims(), [3, 4, 12, 8]);
    let picture = |i| together.narrow(0, i, 1).unwrap();
    assert!(relative(&draw(&[9]), &picture(1)) < 1e-5);
    assert!(relative(&picture(2), &picture(0)) < 1e-5 && relative(&picture(1), &picture(0)) > 0.1);
}

#[test]
fn a_prompt_longer_than_a_chunk_goes_in_several_and_weights_change_it() {
    let text = TextSide::load(&base("sd1"), None).unwrap();
    let long = "dog of the ".repeat(40);
    let encoded = text.encode(&long, "sks", 1).unwrap();
    let (length, negative) = (encoded.prompt.dim(1).unwrap(), encoded.negative.dim(1).unwrap());
    assert!(length >= 2 * 77 && length % 77 == 0 && negative == length, "{length} {negative}");
    // Each chunk is what its words give alone: the words of the second are not those of the first.
    let alone = text.encode("dog of the dog BREAK photo", "", 1).unwrap().prompt;
    let first = text.encode("dog of the dog", "", 1).unwrap().prompt;
    let second = text.encode("photo", "", 1).unwrap().prompt;
    assert_eq!(relative(&alone.narrow(1, 0, 77).unwrap(), &first), 0.0);
    assert_eq!(relative(&alone.narrow(1, 77, 77).unwrap(), &second), 0.0);

    let weighted = text.encode("dog (of:1.4) the dog", "", 1).unwrap().prompt;
    // Token 2 is weighted; all are scaled together so that the mean stays.
    let mean = |xs: &Tensor| xs.mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((mean(&weighted) / mean(&first) - 1.0).abs() < 1e-3);
    let at = |xs: &Tensor, token: usize| xs.narrow(1, token, 1).unwrap().flatten_all().unwrap();
    let ratio = |token: usize| mean(&(at(&weighted, token) / at(&first, token)).unwrap());
    let plain = ratio(1);
    assert!((ratio(2) / plain - 1.4).abs() < 1e-3, "{} {plain}", ratio(2));
    assert!((ratio(3) / plain - 1.0).abs() < 1e-3);
}

#[test]
fn samplers_without_a_network_follow_those_of_diffusers() {
    let text = std::fs::read_to_string(case("samplers.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, (1, 4, 2, 3), &Device::Cpu).unwrap();
    // The file's formula stands for the network.
    let predict = |xs: &Tensor, t: f64| {
        let (slope, shift) = (0.8 * (1.0 + 0.25 * (t / 100.0).cos()), 0.1 * (t / 50.0).sin());
        ((xs.tanh().unwrap() * slope).unwrap() + shift).unwrap()
    };
    let runs = golden["runs"].as_array().unwrap();
    assert!(runs.len() >= 24);
    for run in runs {
        let name = run["schedule"].as_str().unwrap();
        let config = SchedulerConfig::parse(&golden["schedules"][name].to_string(), name).unwrap();
        let kind = SamplerKind::from_name(run["sampler"].as_str().unwrap()).unwrap();
        let steps = run["steps"].as_u64().unwrap() as usize;
        let mut sampler = Sampler::new(kind, &NoiseSchedule::new(&config), steps);
        let mut latents = sampler.begin(&tensor(numbers(&golden["latents"]))).unwrap();
        for step in 0..steps {
            let timestep = sampler.timestep().unwrap();
            let expected = run["timesteps"][step].as_f64().unwrap();
            assert!((timestep - expected).abs() < 1e-3, "{kind:?} {name} {steps}: {timestep} {expected}");
            let fresh = sampler.wants_noise().then(|| tensor(numbers(&golden["noise"][step])));
            latents = sampler.step(&latents, &predict(&latents, timestep), fresh.as_ref()).unwrap();
        }
        let error = relative(&latents, &tensor(numbers(&run["final"])));
        // Where the noise is 4096 times the signal, diffusers' own f32 keeps no more digits.
        let limit = if name == "zero-snr-v" { 1e-3 } else { 1e-4 };
        assert!(error < limit, "{kind:?} {name} {steps}: {error:.1e}");
        assert!(sampler.timestep().is_none() && sampler.step(&latents, &latents, None).is_err());
    }
}

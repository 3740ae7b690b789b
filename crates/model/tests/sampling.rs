//! Pictures against diffusers: the same noise, text and scheduler must end in the same latents. The golden files are
//! made by `tests/golden/make_samples.py`.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use loralei_adapter::{Adapter, TensorFile};
use loralei_model::{
    AdapterUse, Base, BaseSource, DrawingSettings, EncodedPrompts, ImageSide, NoiseSchedule, NoiseSource, PictureSizes,
    Sampler, SamplerKind, SchedulerConfig, TextSide,
};
use std::path::{Path, PathBuf};

const CASES: [&str; 4] = ["sd1", "sd2", "sdxl", "sdxl-v"];
/// Those that are told the pooled text and the sizes of pictures.
const TOLD_SIZES: [&str; 2] = ["sdxl", "sdxl-v"];

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
    /// Original and crop, height before width.
    told_sizes: Option<[(usize, usize); 2]>,
}

impl Golden {
    fn open(name: &str) -> Self {
        let facts = std::fs::read_to_string(case(name).join("samples.json")).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        let pair = |name: &str| -> Option<(usize, usize)> {
            let of = |i: usize| facts["told_sizes"][name][i].as_u64().map(|px| px as usize);
            of(0).zip(of(1))
        };
        Self {
            told_sizes: pair("original_size").zip(pair("crops_coords_top_left")).map(<[_; 2]>::from),
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

    fn draw(&self, base: &Base, adapter: Option<AdapterUse>, strength: f32, sampler: (SamplerKind, usize)) -> Tensor {
        self.draw_told(base, (adapter, strength), sampler, Some(&self.negative), PictureSizes::whole)
    }

    /// `sizes` makes of the picture's size, in pixels, what the network is told.
    fn draw_told(
        &self,
        base: &Base,
        (adapter, strength): (Option<AdapterUse>, f32),
        (kind, steps): (SamplerKind, usize),
        negative: Option<&str>,
        sizes: impl Fn((usize, usize)) -> PictureSizes,
    ) -> Tensor {
        let (text, image) = (TextSide::load(base, adapter).unwrap(), ImageSide::load(base, adapter).unwrap());
        text.set_strength(strength);
        image.set_strength(strength);
        let encoded: Vec<EncodedPrompts> =
            self.prompts.iter().map(|prompt| text.encode(prompt, negative, 1).unwrap()).collect();
        let latents = self.tensor("latents");
        let (_, _, h, w) = latents.dims4().unwrap();
        let noise = NoiseSource::Given { latents, steps: Some(self.tensor("noise")) };
        let side = base.vae_config().downsampling();
        let size_px = (w * side, h * side);
        let settings =
            DrawingSettings { sampler: kind, steps, guidance_scale: self.guidance_scale, sizes: sizes(size_px) };
        image.draw(&encoded, &noise, size_px, &settings, &mut |_| {}).unwrap()
    }
}

/// ||a - b|| / ||b||
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    f64::from(norm(&(a - b).unwrap()) / norm(b))
}

#[test]
fn every_sampler_ends_where_that_of_diffusers_does() {
    for name in CASES {
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
    for name in CASES {
        let (golden, base) = (Golden::open(name), base(name));
        let adapter = Adapter::read(&case(name).join("adapter.safetensors")).unwrap();
        for (kind, scale) in [SamplerKind::Ddim, SamplerKind::Euler].map(|kind| [(kind, 1.0), (kind, -0.5)]).concat() {
            let plain = format!("final.{}", kind.name());
            let key = format!("{plain}.adapter{scale}");
            if golden.file.info(&key).is_none() {
                continue;
            }
            let expected = golden.tensor(&key);
            assert!(relative(&expected, &golden.tensor(&plain)) > 0.05, "the adapter does something");
            let beside = AdapterUse { adapter: &adapter, merged: false };
            let error = relative(&golden.draw(&base, Some(beside), scale, (kind, 10)), &expected);
            assert!(error < 1e-4, "{name} {key}: {error:.1e}");

            let scaled = Adapter::sum(&[(&adapter, scale)]).unwrap();
            let merged = AdapterUse { adapter: &scaled, merged: true };
            let error = relative(&golden.draw(&base, Some(merged), 1.0, (kind, 10)), &expected);
            assert!(error < 1e-4, "{name} {key} merged: {error:.1e}");
        }
    }
}

#[test]
fn an_empty_negative_prompt_is_encoded_and_zeros_stand_for_an_absent_one() {
    for name in TOLD_SIZES {
        let (golden, base) = (Golden::open(name), base(name));
        for (kind, negative) in
            [SamplerKind::Ddim, SamplerKind::Euler].map(|kind| [(kind, Some("")), (kind, None)]).concat()
        {
            let key = format!("final.{}.{}", kind.name(), if negative.is_some() { "empty" } else { "absent" });
            let drawn = golden.draw_told(&base, (None, 1.0), (kind, 10), negative, PictureSizes::whole);
            let error = relative(&drawn, &golden.tensor(&key));
            assert!(error < 1e-4, "{name} {key}: {error:.1e}");
        }
        let differ = |a: &str, b: &str| relative(&golden.tensor(a), &golden.tensor(b)) > 0.05;
        assert!(differ("final.euler.empty", "final.euler.absent") && differ("final.euler", "final.euler.empty"));
    }
}

#[test]
fn the_network_is_told_the_original_size_and_the_crop() {
    for name in TOLD_SIZES {
        let (golden, base) = (Golden::open(name), base(name));
        let [original, crop] = golden.told_sizes.unwrap();
        let width_first = |(h, w)| (w, h);
        let told =
            |target_px| PictureSizes { original_px: width_first(original), crop_px: width_first(crop), target_px };
        for kind in [SamplerKind::Ddim, SamplerKind::Euler] {
            let expected = golden.tensor(&format!("final.{}.sizes", kind.name()));
            assert!(relative(&expected, &golden.tensor(&format!("final.{}", kind.name()))) > 0.01);
            let drawn = golden.draw_told(&base, (None, 1.0), (kind, 10), Some(&golden.negative), told);
            let error = relative(&drawn, &expected);
            assert!(error < 1e-4, "{name} {kind:?}: {error:.1e}");
        }
    }
}

#[test]
fn prompts_of_two_encoders_are_those_of_diffusers_with_and_without_an_adapter() {
    for name in TOLD_SIZES {
        let golden = Golden::open(name);
        let adapter = Adapter::read(&case(name).join("adapter.safetensors")).unwrap();
        for (strength, suffix) in [(0.0, ""), (1.0, ".adapter1"), (-0.5, ".adapter-0.5")] {
            let beside = AdapterUse { adapter: &adapter, merged: false };
            let text = TextSide::load(&base(name), Some(beside)).unwrap();
            text.set_strength(strength);
            for (i, prompt) in golden.prompts.iter().enumerate() {
                let encoded = text.encode(prompt, Some(&golden.negative), 1).unwrap();
                for (ours, key, i) in [
                    (&encoded.prompt.context, "text", i),
                    (encoded.prompt.pooled.as_ref().unwrap(), "pooled", i),
                    (&encoded.negative.context, "negative_text", 0),
                    (encoded.negative.pooled.as_ref().unwrap(), "negative_pooled", 0),
                ] {
                    let error = relative(ours, &golden.tensor(&format!("{key}{suffix}")).narrow(0, i, 1).unwrap());
                    assert!(error < 1e-5, "{name} {key}{suffix} {i}: {error:.1e}");
                }
            }
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
    for name in CASES {
        let golden = Golden::open(name);
        let text = TextSide::load(&base(name), None).unwrap();
        for (clip_skip, key) in [(1, "text"), (2, "text.clip_skip2")] {
            let expected = golden.tensor(key);
            for (i, prompt) in golden.prompts.iter().enumerate() {
                let encoded = text.encode(prompt, Some(""), clip_skip).unwrap().prompt;
                let error = relative(&encoded.context, &expected.narrow(0, i, 1).unwrap());
                assert!(error < 1e-4, "{name} {key} {i}: {error:.1e}");
                if let Some(pooled) = encoded.pooled {
                    let error = relative(&pooled, &golden.tensor("pooled").narrow(0, i, 1).unwrap());
                    assert!(error < 1e-4, "{name} pooled at clip skip {clip_skip} {i}: {error:.1e}");
                }
            }
        }
        assert!(text.encode("a", Some(""), 3).is_err() && text.encode("a", Some(""), 0).is_err());
    }
}

#[test]
fn a_seed_gives_the_same_picture_alone_and_in_company() {
    let base = base("sd1");
    let (text, image) = (TextSide::load(&base, None).unwrap(), ImageSide::load(&base, None).unwrap());
    let encoded = text.encode("photo of the dog", Some("sks"), 1).unwrap();
    let settings = DrawingSettings {
        sampler: SamplerKind::EulerAncestral,
        steps: 6,
        guidance_scale: 4.0,
        sizes: PictureSizes::whole((16, 8)),
    };
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
    let encoded = text.encode(&long, Some("sks"), 1).unwrap();
    let (length, negative) = (encoded.prompt.num_tokens(), encoded.negative.num_tokens());
    assert!(length >= 2 * 77 && length % 77 == 0 && negative == length, "{length} {negative}");
    // Each chunk is what its words give alone: the words of the second are not those of the first.
    let alone = text.encode("dog of the dog BREAK photo", Some(""), 1).unwrap().prompt.context;
    let first = text.encode("dog of the dog", Some(""), 1).unwrap().prompt.context;
    let second = text.encode("photo", Some(""), 1).unwrap().prompt.context;
    assert_eq!(relative(&alone.narrow(1, 0, 77).unwrap(), &first), 0.0);
    assert_eq!(relative(&alone.narrow(1, 77, 77).unwrap(), &second), 0.0);

    let weighted = text.encode("dog (of:1.4) the dog", Some(""), 1).unwrap().prompt.context;
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
    assert_eq!(runs.len(), golden["schedules"].as_object().unwrap().len() * SamplerKind::ALL.len() * 3);
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
        let limit = if config.rescale_betas_zero_snr { 1e-3 } else { 1e-4 };
        println!("{kind:?} {name} {steps} {error:.1e}");
        assert!(error < limit, "{kind:?} {name} {steps}: {error:.1e}");
        assert!(sampler.timestep().is_none() && sampler.step(&latents, &latents, None).is_err());
    }
}

//! Pictures against diffusers: the same noise, text and scheduler must end in the same latents. The golden files are
//! made by `tests/golden/make_samples.py`.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use loralei_adapter::TensorFile;
use loralei_model::{
    AdapterUse, Base, BaseSource, DrawingSettings, EncodedPrompts, ImageSide, NoiseSource, SamplerKind, TextSide,
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

//! Gradients of a network that is told the pooled text and sizes: through the embedded time into every resnet, and none where
//! nothing learns. The bases are the golden ones of SDXL.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use loralei_adapter::Adapter;
use loralei_model::ops::{OpTimes, Pass, op_times};
use loralei_model::{
    AdapterSet, Base, BaseSource, Checkpointing, Conditioning, Draw, EncodedText, Injection, PictureSizes, Purpose,
    Unet,
};
use std::path::{Path, PathBuf};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn base(name: &str) -> Base {
    Base::open(BaseSource::Folder(case(name).join("base")), None, DType::F32, &Device::Cpu).unwrap()
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let values = Draw::new(seed, 0, 0, Purpose::Check).standard_normal(shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Two pictures under two texts; the prediction's product with fixed numbers.
fn loss(unet: &Unet, context: &Tensor, pooled: &Tensor, checkpointing: Checkpointing) -> Tensor {
    let sizes = [((1500, 1001), (0, 16)), ((640, 3333), (7, 0))].map(|(original_px, crop_px)| PictureSizes {
        original_px,
        crop_px,
        target_px: (1216, 832),
    });
    let text = EncodedText { context: context.clone(), pooled: Some(pooled.clone()) };
    let told = Conditioning::new(text, Some(PictureSizes::tensor(&sizes).unwrap()));
    let prediction = unet.forward(&normal(1, &[2, 4, 8, 12]), &[700.0, 31.0], &told, checkpointing).unwrap();
    (prediction * normal(2, &[2, 4, 8, 12])).unwrap().sum_all().unwrap()
}

fn texts(base: &Base) -> (Tensor, Tensor) {
    let width = base.unet_config().cross_attention_dim.at(0);
    (normal(3, &[2, 9, width]), normal(4, &[2, base.pooled_width().unwrap()]))
}

fn distance(ours: &Tensor, theirs: &Tensor) -> f64 {
    let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    f64::from(norm(&(ours - theirs).unwrap()) / norm(theirs))
}

#[test]
fn the_gradient_of_the_pooled_text_adds_up_over_all_resnets_with_and_without_recompute() {
    for name in ["sdxl", "sdxl-v"] {
        let base = base(name);
        let unet = base.load_unet(None).unwrap();
        let (context, pooled) = texts(&base);
        let of = |checkpointing| {
            let (context, pooled) = (Var::from_tensor(&context).unwrap(), Var::from_tensor(&pooled).unwrap());
            let gradients = loss(&unet, &context, &pooled, checkpointing).backward().unwrap();
            [gradients.get(&context).unwrap().clone(), gradients.get(&pooled).unwrap().clone()]
        };
        let (none, block) = (of(Checkpointing::None), of(Checkpointing::Block));
        for (none, block) in none.iter().zip(&block) {
            let d = distance(block, none);
            assert!(d < 1e-5, "{name}: {d}");
        }
        // The slope along the gradient is its norm.
        let norm = none[1].sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let at = |step: f64| {
            let moved = (&pooled + (&none[1] * (step / f64::from(norm))).unwrap()).unwrap();
            f64::from(loss(&unet, &context, &moved, Checkpointing::None).to_scalar::<f32>().unwrap())
        };
        let slope = (at(0.01) - at(-0.01)) / 0.02;
        assert!((slope / f64::from(norm) - 1.0).abs() < 5e-3, "{name}: slope {slope}, gradient {norm}");
    }
}

/// How often an operation ran.
fn calls(times: &OpTimes, name: &'static str, pass: Pass) -> u64 {
    times.get(&(name, pass)).map_or(0, |time| time.calls)
}

#[test]
fn nothing_before_the_first_transformer_is_recorded_when_the_text_does_not_learn() {
    let base = base("sdxl");
    let adapter = Adapter::read(&case("sdxl").join("adapter.safetensors")).unwrap();
    let injection = Injection::from_adapter("lora_unet_", &adapter);
    let unet = base.load_unet(Some(&injection)).unwrap();
    let factors = AdapterSet::new(injection.finish("U-Net").unwrap());
    let (context, pooled) = texts(&base);
    let run = |pooled: &Tensor, checkpointing| {
        let (loss, forward) = op_times(|| loss(&unet, &context, pooled, checkpointing));
        let (gradients, backward) = op_times(|| loss.backward().unwrap());
        assert_eq!(factors.take_gradients(&gradients).unwrap().len(), 2 * factors.len());
        [calls(&forward, "frozen-conv2d", Pass::Forward), calls(&backward, "frozen-conv2d", Pass::Backward)]
    };
    // conv_in; two resnets and a downsampler of down_blocks.0; the first resnet of down_blocks.1, whose shortcut is a
    // linear layer here.
    let [forward, backward] = run(&pooled, Checkpointing::None);
    assert!(forward == 40 && backward == forward - (1 + 5 + 2), "{forward} {backward}");
    assert_eq!(run(&pooled, Checkpointing::Block)[1], backward);
    // With a text that learns, the embedded time reaches all but conv_in and what stands before the time in the first resnet.
    let learning = Var::from_tensor(&pooled).unwrap();
    let [forward, backward] = run(&learning, Checkpointing::None);
    assert!(backward == forward - 2, "{forward} {backward}");
}

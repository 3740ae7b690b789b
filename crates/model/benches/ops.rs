//! Forward and backward of every operation on the processor, at the sizes of SD 1.5 with one picture of 256 px.
//!
//! Throughput is in FLOP for products, as [`loralei_model::UnetCost`] counts them (not the factors' own, nor what backward
//! makes again), and in numbers of the input for everything else. Backward starts from ones and gives every gradient that a
//! training step asks for.
//!
//! Axis legend: b batch, h w height width, c channels, l tokens, r rank.

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use criterion::{Criterion, SamplingMode, Throughput};
use loralei_model::ops::{self, Activation, ConvGeometry};
use loralei_model::{Draw, Purpose};
use std::time::Duration;

/// Side and channels of the maps on the U-Net's four levels.
const LEVELS: [(usize, usize); 4] = [(32, 320), (16, 640), (8, 1280), (4, 1280)];
const HEADS: usize = 8;
const GROUPS: usize = 32;
/// Tokens of the text.
const TEXT: usize = 77;
/// Width of the inner layer of the text encoder.
const TEXT_INNER: usize = 3072;
const RANK: usize = 4;
/// alpha / r
const SCALE: f64 = 0.5;

fn main() -> Result<()> {
    // The operations are called from a thread of the pool, as in the program.
    rayon::ThreadPoolBuilder::new().build().map_err(Error::wrap)?.install(|| {
        let mut criterion = Criterion::default()
            .without_plots()
            .sample_size(10)
            .nresamples(2_000)
            .warm_up_time(Duration::from_millis(100))
            .measurement_time(Duration::from_millis(500))
            .configure_from_args();
        linear_layers(&mut criterion)?;
        convolutions(&mut criterion)?;
        attentions(&mut criterion)?;
        norms(&mut criterion)?;
        pointwise(&mut criterion)?;
        criterion.final_summary();
        Ok(())
    })
}

/// Work of a pass: FLOP, or numbers.
#[derive(Clone, Copy)]
struct Work {
    forward: usize,
    backward: usize,
}

impl Work {
    /// A product of a frozen weight: backward is one of the same size.
    fn layer(multiplications: usize) -> Self {
        Self { forward: 2 * multiplications, backward: 2 * multiplications }
    }

    fn numbers(xs: &Var) -> Self {
        Self { forward: xs.elem_count(), backward: xs.elem_count() }
    }
}

/// Times `op` under `name` at `size`; all `inputs` carry gradients.
fn measure(
    criterion: &mut Criterion,
    (name, size): (&str, &str),
    work: Work,
    inputs: &[&Var],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let tracked: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
    let plain: Vec<Tensor> = inputs.iter().map(|x| x.as_detached_tensor()).collect();
    let output = op(&tracked)?;
    output.backward()?; // what fails does so here
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(work.forward as u64));
    group.bench_function(format!("forward/{size}"), |bencher| bencher.iter(|| op(&plain)));
    group.throughput(Throughput::Elements(work.backward as u64));
    group.bench_function(format!("backward/{size}"), |bencher| bencher.iter(|| output.backward()));
    group.finish();
    Ok(())
}

/// Numbers between -1 and 1.
fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let numbers = Draw::new(0, 0, 0, Purpose::Check).uniform(-1.0, 1.0, shape.elem_count());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn input(shape: impl Into<candle_core::Shape>) -> Result<Var> {
    Var::from_tensor(&random(shape)?)
}

/// The types of weights to measure at level `level`: f16, as a run keeps them; f32 where a pass is bound by arithmetic, and
/// where it is bound by reading the weight.
fn weight_types(level: usize) -> &'static [DType] {
    if level.is_multiple_of(LEVELS.len() - 1) { &[DType::F16, DType::F32] } else { &[DType::F16] }
}

/// The way into the feed-forward, c -> 8 c, and a projection of attention with factors, c -> c.
fn linear_layers(criterion: &mut Criterion) -> Result<()> {
    for (level, (side, c)) in LEVELS.into_iter().enumerate() {
        let tokens = side * side;
        let (xs, weight, bias) = (input((1, tokens, c))?, random((8 * c, c))?, random(8 * c)?);
        for dtype in weight_types(level) {
            let (weight, size) = (weight.to_dtype(*dtype)?, format!("{tokens}x{c} to {} {}", 8 * c, dtype.as_str()));
            let work = Work::layer(tokens * c * 8 * c);
            measure(criterion, ("linear", &size), work, &[&xs], |x| ops::linear(&x[0], &weight, Some(&bias)))?;
        }
        let (down, up, weight) = (input((RANK, c))?, input((c, RANK))?, random((c, c))?.to_dtype(DType::F16)?);
        let (size, work) = (format!("{tokens}x{c} to {c} f16"), Work::layer(tokens * c * c));
        measure(criterion, ("lora_linear", &size), work, &[&xs, &down, &up], |x| {
            ops::lora_linear(&x[0], &x[1], &x[2], &weight, None, SCALE)
        })?;
    }
    Ok(())
}

/// 3x3, c -> c.
fn convolutions(criterion: &mut Criterion) -> Result<()> {
    let same = ConvGeometry::same(3);
    let halving = ConvGeometry { stride: 2, ..same };
    for (level, (side, c)) in LEVELS.into_iter().enumerate() {
        let (xs, weight, bias) = (input((1, side, side, c))?, random((c, 3, 3, c))?, random(c)?);
        let (narrow, work) = (weight.to_dtype(DType::F16)?, Work::layer(side * side * 9 * c * c));
        for dtype in weight_types(level) {
            let (weight, size) = (weight.to_dtype(*dtype)?, format!("{side}x{side}x{c} {}", dtype.as_str()));
            measure(criterion, ("conv2d", &size), work, &[&xs], |x| ops::conv2d(&x[0], &weight, Some(&bias), same))?;
        }
        let size = format!("{side}x{side}x{c} f16");
        let (down, up) = (input((RANK, c, 3, 3))?, input((c, RANK, 1, 1))?);
        measure(criterion, ("lora_conv2d", &size), work, &[&xs, &down, &up], |x| {
            ops::lora_conv2d(&x[0], &x[1], &x[2], &narrow, Some(&bias), same, SCALE)
        })?;
        if level + 1 < LEVELS.len() {
            let work = Work::layer(side * side / 4 * 9 * c * c);
            measure(criterion, ("conv2d stride 2", &size), work, &[&xs], |x| {
                ops::conv2d(&x[0], &narrow, Some(&bias), halving)
            })?;
        }
    }
    Ok(())
}

fn attentions(criterion: &mut Criterion) -> Result<()> {
    for (name, (side, width), keys) in [
        ("attention to itself", LEVELS[0], None),
        ("attention to itself", LEVELS[1], None),
        ("attention to the text", LEVELS[0], Some(TEXT)),
    ] {
        let (queries, keys) = (side * side, keys.unwrap_or(side * side));
        let (q, k, v) = (input((1, queries, width))?, input((1, keys, width))?, input((1, keys, width))?);
        let product = 2 * queries * keys * width;
        let work = Work { forward: 2 * product, backward: 4 * product };
        let size = format!("{queries}x{keys}, {HEADS} heads of {}", width / HEADS);
        measure(criterion, (name, &size), work, &[&q, &k, &v], |x| ops::attention(&x[0], &x[1], &x[2], HEADS, false))?;
    }
    Ok(())
}

fn norms(criterion: &mut Criterion) -> Result<()> {
    for (side, c) in LEVELS {
        let (xs, gain, bias) = (input((1, side, side, c))?, random(c)?, random(c)?);
        let size = format!("{side}x{side}x{c}");
        for (name, silu) in [("group_norm", false), ("group_norm with SiLU", true)] {
            measure(criterion, (name, &size), Work::numbers(&xs), &[&xs], |x| {
                ops::group_norm(&x[0], &gain, &bias, GROUPS, 1e-5, silu)
            })?;
        }
        let (tokens, size) = (input((1, side * side, c))?, format!("{}x{c}", side * side));
        measure(criterion, ("layer_norm", &size), Work::numbers(&tokens), &[&tokens], |x| {
            ops::layer_norm(&x[0], &gain, &bias, 1e-5)
        })?;
    }
    Ok(())
}

fn pointwise(criterion: &mut Criterion) -> Result<()> {
    for (level, (side, c)) in LEVELS.into_iter().enumerate() {
        let (gates, size) = (input((1, side * side, 8 * c))?, format!("{}x{}", side * side, 8 * c));
        measure(criterion, ("geglu", &size), Work::numbers(&gates), &[&gates], |x| ops::geglu(&x[0]))?;
        let (xs, shift, size) = (input((1, side, side, c))?, input((1, c))?, format!("{side}x{side}x{c}"));
        measure(criterion, ("add_per_sample", &size), Work::numbers(&xs), &[&xs, &shift], |x| {
            ops::add_per_sample(&x[0], &x[1])
        })?;
        if level > 0 {
            measure(criterion, ("upsample_nearest", &size), Work::numbers(&xs), &[&xs], |x| {
                ops::upsample_nearest(&x[0])
            })?;
        }
    }
    let (inner, size) = (input((1, TEXT, TEXT_INNER))?, format!("{TEXT}x{TEXT_INNER}"));
    measure(criterion, ("activation QuickGelu", &size), Work::numbers(&inner), &[&inner], |x| {
        ops::activation(&x[0], Activation::QuickGelu)
    })
}

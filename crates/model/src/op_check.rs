//! Every operation on a device against our kernels on the processor: value and gradients, on fresh random inputs.
//!
//! The shapes are drawn too, and odd on purpose: height and width differ, batches hold more than one sample, alpha is not
//! the rank. On the processor itself, what is held against the kernels is the other implementation.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::ops::{self, Activation, ConvGeometry, FrozenMatrix};
use crate::random::{Draw, Purpose};

/// How far an operation was off.
#[derive(Clone, Debug, PartialEq)]
pub struct OpCheck {
    /// The operation.
    pub name: String,
    /// |device - processor| / |processor|, the worst of the value and the gradient of every input. Infinite if something
    /// is not finite.
    pub error: f64,
}

/// Checks all operations on `device` in `dtype`, with inputs and shapes from `seed`.
///
/// # Errors
/// An operation that fails.
pub fn check_ops(device: &Device, dtype: DType, seed: u64) -> Result<Vec<OpCheck>> {
    cases(&mut Chance { seed, draws: 0 })?.iter().map(|case| case.check(device, dtype)).collect()
}

/// How much error a sound device makes: sums in another order, and roundings of intermediate numbers.
pub fn op_tolerance(device: &Device, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2e-2,
        DType::F16 => 5e-3,
        _ if device.is_cpu() => 1e-5,
        _ => 1e-4,
    }
}

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An operation on given inputs.
struct Case {
    name: String,
    /// What carries gradients.
    inputs: Vec<Tensor>,
    /// Whether the inputs after the first are LoRA factors, which are f32 whatever the base computes in.
    has_factors: bool,
    /// What carries none.
    frozen: Vec<Tensor>,
    /// Applied to the inputs, then the frozen tensors.
    op: Op,
}

impl Case {
    fn new(
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        frozen: &[&Tensor],
        op: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> Self {
        let frozen = frozen.iter().map(|x| (*x).clone()).collect();
        Self { name: name.into(), inputs, has_factors: false, frozen, op: Box::new(op) }
    }

    fn with_factors(self) -> Self {
        Self { has_factors: true, ..self }
    }

    fn check(&self, device: &Device, dtype: DType) -> Result<OpCheck> {
        let expected = self.run(&Device::Cpu, dtype)?;
        let found =
            if device.is_cpu() { ops::without_kernels(|| self.run(device, dtype))? } else { self.run(device, dtype)? };
        let mut error = 0.0f64;
        for (found, expected) in found.iter().zip(&expected) {
            error = error.max(distance(found, expected)?);
        }
        Ok(OpCheck { name: self.name.clone(), error })
    }

    /// The output, and the gradients of a fixed projection of it.
    fn run(&self, device: &Device, dtype: DType) -> Result<Vec<Tensor>> {
        let cast =
            |x: &Tensor, is_factor: bool| x.to_dtype(if is_factor { DType::F32 } else { dtype })?.to_device(device);
        let inputs =
            self.inputs.iter().enumerate().map(|(i, x)| Var::from_tensor(&cast(x, self.has_factors && i > 0)?));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let mut all: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
        for frozen in &self.frozen {
            all.push(cast(frozen, false)?);
        }
        let output = (self.op)(&all)?;
        let projection = Chance { seed: 0, draws: 0 }.normal(output.dims())?;
        let projected = (&output * cast(&projection, false)?)?;
        let gradients = projected.to_dtype(DType::F32)?.sum_all()?.backward()?;
        let mut results = vec![output.detach()];
        for (i, input) in inputs.iter().enumerate() {
            let Some(gradient) = gradients.get(input) else {
                candle_core::bail!("{}: input {i} got no gradient", self.name)
            };
            results.push(gradient.clone());
        }
        Ok(results)
    }
}

fn distance(found: &Tensor, expected: &Tensor) -> Result<f64> {
    let flat = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (found, expected) = (flat(found)?, flat(expected)?);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    Ok(if error.is_finite() && found.len() == expected.len() { error } else { f64::INFINITY })
}

/// Numbers and sizes, each draw different.
struct Chance {
    seed: u64,
    draws: u64,
}

impl Chance {
    fn next(&mut self) -> Draw {
        self.draws += 1;
        Draw::new(self.seed, self.draws, 0, Purpose::Check)
    }

    fn size(&mut self, from: usize, to: usize) -> usize {
        let drawn = self.next().integers(from as i64..to as i64 + 1, 1);
        drawn.first().map_or(from, |size| *size as usize)
    }

    fn normal(&mut self, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(self.next().standard_normal(shape.iter().product()), shape, &Device::Cpu)
    }

    /// (b, h, w) with more than one sample, and even sides that differ.
    fn map(&mut self) -> [usize; 3] {
        let (b, h) = (self.size(2, 3), 2 * self.size(3, 7));
        [b, h, h + 2 * self.size(1, 3)]
    }

    /// alpha / r, with alpha other than r.
    fn scale(&mut self, rank: usize) -> f64 {
        (rank + self.size(1, 5)) as f64 / rank as f64
    }
}

fn cases(chance: &mut Chance) -> Result<Vec<Case>> {
    let mut all = linear_cases(chance)?;
    let downsample = ConvGeometry { stride: 2, pad_before: 1, pad_after: 1 };
    let one_sided = ConvGeometry { stride: 2, pad_before: 0, pad_after: 1 };
    for (name, kernel, geometry) in [
        ("3x3", 3, ConvGeometry::same(3)),
        ("1x1", 1, ConvGeometry::same(1)),
        ("3x3 stride 2", 3, downsample),
        ("3x3 stride 2, one-sided", 3, one_sided),
    ] {
        let (num_in, num_out) = (chance.size(5, 40), chance.size(5, 40));
        all.extend(conv_cases(chance, name, kernel, geometry, (num_in, num_out))?);
    }
    // Channels that fill registers, which our kernels multiply in another way.
    let (num_in, num_out) = (16 * chance.size(1, 3), 16 * chance.size(1, 3));
    all.extend(conv_cases(chance, "3x3, squares", 3, ConvGeometry::same(3), (num_in, num_out))?);
    all.extend(norm_cases(chance)?);
    all.extend(attention_cases(chance)?);
    all.extend(pointwise_cases(chance)?);
    Ok(all)
}

fn linear_cases(chance: &mut Chance) -> Result<Vec<Case>> {
    let (b, l, num_in, num_out) = (chance.size(2, 4), chance.size(5, 40), chance.size(8, 72), chance.size(8, 72));
    let rank = chance.size(2, 7);
    let x = chance.normal(&[b, l, num_in])?;
    let (weight, bias) = (chance.normal(&[num_out, num_in])?, chance.normal(&[num_out])?);
    let (down, up) = (chance.normal(&[rank, num_in])?, chance.normal(&[num_out, rank])?);
    let scale = chance.scale(rank);
    let plain = |x: &[Tensor]| ops::linear(&x[0], &x[1], None);
    let biased = |x: &[Tensor]| ops::linear(&x[0], &x[1], Some(&x[2]));
    let lora = move |x: &[Tensor]| ops::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), scale);
    let matrix = FrozenMatrix::quantized(&weight)?;
    let in_8_bits = move |x: &[Tensor]| {
        let matrix = matrix.to_device(x[0].device())?;
        ops::lora_linear(&x[0], &x[1], &x[2], &matrix, Some(&x[3]), scale)
    };
    let all = vec![x.clone(), down, up];
    Ok(vec![
        Case::new("linear", vec![x.clone()], &[&weight], plain),
        Case::new("linear, bias", vec![x], &[&weight, &bias], biased),
        Case::new("linear, LoRA", all.clone(), &[&weight, &bias], lora).with_factors(),
        Case::new("linear in 8 bits, LoRA", all, &[&bias], in_8_bits).with_factors(),
    ])
}

fn conv_cases(
    chance: &mut Chance,
    name: &str,
    kernel: usize,
    geometry: ConvGeometry,
    (num_in, num_out): (usize, usize),
) -> Result<Vec<Case>> {
    let [b, h, w] = chance.map();
    let rank = chance.size(2, 7);
    let x = chance.normal(&[b, h, w, num_in])?;
    let (weight, bias) = (chance.normal(&[num_out, kernel, kernel, num_in])?, chance.normal(&[num_out])?);
    let (down, up) = (chance.normal(&[rank, num_in, kernel, kernel])?, chance.normal(&[num_out, rank, 1, 1])?);
    let scale = chance.scale(rank);
    let plain = move |x: &[Tensor]| ops::conv2d(&x[0], &x[1], Some(&x[2]), geometry);
    let lora = move |x: &[Tensor]| ops::lora_conv2d(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), geometry, scale);
    Ok(vec![
        Case::new(format!("convolution {name}"), vec![x.clone()], &[&weight, &bias], plain),
        Case::new(format!("convolution {name}, LoRA"), vec![x, down, up], &[&weight, &bias], lora).with_factors(),
    ])
}

fn norm_cases(chance: &mut Chance) -> Result<Vec<Case>> {
    let ([b, h, w], groups) = (chance.map(), chance.size(2, 5));
    let channels = groups * chance.size(2, 9);
    // A mean far from zero shows a variance that is computed without centring.
    let x = (chance.normal(&[b, h, w, channels])? + 2.0)?;
    let (gain, bias) = (chance.normal(&[channels])?, chance.normal(&[channels])?);
    let frozen = [&gain, &bias];
    let group = |silu| move |x: &[Tensor]| ops::group_norm(&x[0], &x[1], &x[2], groups, 1e-5, silu);
    let layer = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5);
    Ok(vec![
        Case::new("group norm", vec![x.clone()], &frozen, group(false)),
        Case::new("group norm, SiLU", vec![x.clone()], &frozen, group(true)),
        Case::new("layer norm", vec![x], &frozen, layer),
    ])
}

fn attention_cases(chance: &mut Chance) -> Result<Vec<Case>> {
    let (b, num_heads) = (chance.size(2, 3), chance.size(2, 5));
    let (width, pixels, tokens) = (num_heads * chance.size(4, 40), chance.size(30, 140), chance.size(7, 29));
    let mut inputs = |keys: usize| -> Result<Vec<Tensor>> {
        [pixels, keys, keys].iter().map(|l| chance.normal(&[b, *l, width])).collect()
    };
    let op = |causal| move |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], num_heads, causal);
    Ok(vec![
        Case::new("attention to itself", inputs(pixels)?, &[], op(false)),
        Case::new("attention to the text", inputs(tokens)?, &[], op(false)),
        Case::new("attention, causal", inputs(pixels)?, &[], op(true)),
    ])
}

fn pointwise_cases(chance: &mut Chance) -> Result<Vec<Case>> {
    let ([b, h, w], channels) = (chance.map(), 2 * chance.size(4, 20));
    let x = (chance.normal(&[b, h, w, channels])? * 2.0)?;
    let shift = chance.normal(&[b, channels])?;
    let pointwise = |kind| move |x: &[Tensor]| ops::activation(&x[0], kind);
    Ok(vec![
        Case::new("GELU", vec![x.clone()], &[], pointwise(Activation::Gelu)),
        Case::new("quick GELU", vec![x.clone()], &[], pointwise(Activation::QuickGelu)),
        Case::new("SiLU", vec![x.clone()], &[], pointwise(Activation::Silu)),
        Case::new("GEGLU", vec![x.clone()], &[], |x| ops::geglu(&x[0])),
        Case::new("upsample", vec![x.clone()], &[], |x| ops::upsample_nearest(&x[0])),
        Case::new("add per sample", vec![x, shift], &[], |x| ops::add_per_sample(&x[0], &x[1])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_implementations_agree_whatever_the_seed() {
        for (dtype, seed) in [(DType::F32, 0), (DType::F32, 1), (DType::F32, 2), (DType::BF16, 3), (DType::F16, 4)] {
            let tolerance = op_tolerance(&Device::Cpu, dtype);
            let checks = check_ops(&Device::Cpu, dtype, seed).unwrap();
            assert_eq!(checks.len(), 26);
            for check in checks {
                assert!(check.error <= tolerance, "{dtype:?} {seed}: {check:?}");
            }
        }
    }

    #[test]
    fn what_is_wrong_or_not_finite_is_seen() {
        let x = Chance { seed: 1, draws: 0 }.normal(&[2, 3]).unwrap();
        assert_eq!(distance(&x, &x).unwrap(), 0.0);
        assert!((distance(&(&x * 1.5).unwrap(), &x).unwrap() - 0.5).abs() < 1e-6);
        let broken = (&x / 0.0).unwrap();
        assert!(distance(&broken, &x).unwrap().is_infinite() && distance(&x, &broken).unwrap().is_infinite());
    }
}

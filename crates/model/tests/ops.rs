//! Every operation against a plain composition of candle's own differentiable operations (f32 and bf16), and against
//! finite differences (f64): values and the gradient of every input that carries one. Each is run on our kernels and on
//! candle's tensor operations.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

use candle_core::{DType, Device, Result, Tensor, Var};
use loralei_model::ops::{self, Activation, ConvGeometry, FrozenMatrix, LoraScale, composed};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

struct Draw(ChaCha8Rng);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn normal(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| StandardNormal.sample(&mut self.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let flat = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The output for `inputs` and the gradients of a random projection of it.
fn run(op: Op, inputs: &[Tensor], projection: &Tensor) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let output = op(&tensors).unwrap();
    let projected = (&output * projection.to_dtype(output.dtype()).unwrap()).unwrap();
    let gradients = projected.to_dtype(DType::F64).unwrap().sum_all().unwrap().backward().unwrap();
    (output.detach(), vars.iter().map(|v| gradients.get(v).expect("a gradient for every input").clone()).collect())
}

/// Checks `ours` against `oracle`. Both get the inputs, then the frozen tensors, in the dtype under test.
fn check(name: &str, inputs: &[Tensor], frozen: &[Tensor], ours: Op, oracle: Op) {
    let cast = |x: &[Tensor], dtype| x.iter().map(|x| x.to_dtype(dtype).unwrap()).collect::<Vec<_>>();
    let closed =
        |op: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], frozen: &[Tensor]| op(&[inputs, frozen].concat());
    let exact = cast(inputs, DType::F64);
    let frozen64 = cast(frozen, DType::F64);
    let output = closed(oracle, &exact, &frozen64).unwrap();
    let projection = Draw::new(99).normal(output.dims());
    // The oracle in f64 against finite differences would only test candle; ours in f64 against both is the point.
    let (expected, expected_gradients) = run(&|x| closed(oracle, x, &frozen64), &exact, &projection);
    for (dtype, tolerance) in [(DType::F64, 2e-6), (DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        let (frozen, inputs) = (cast(frozen, dtype), cast(inputs, dtype));
        let kernels = run(&|x| closed(ours, x, &frozen), &inputs, &projection);
        let generic = ops::without_kernels(|| run(&|x| closed(ours, x, &frozen), &inputs, &projection));
        for (path, (value, gradients)) in [("kernels", kernels), ("generic", generic)] {
            let name = format!("{name} {dtype:?} {path}");
            assert_eq!(value.dtype(), dtype, "{name}");
            assert_eq!(value.dims(), expected.dims(), "{name}");
            assert!(distance(&value, &expected) < tolerance, "{name} value: {}", distance(&value, &expected));
            for (i, (ours, theirs)) in gradients.iter().zip(&expected_gradients).enumerate() {
                assert_eq!(ours.dtype(), dtype, "{name}");
                let d = distance(ours, theirs);
                assert!(d < tolerance, "{name} gradient of input {i}: {d}");
            }
        }
    }
    finite_differences(name, &|x| closed(ours, x, &frozen64), &exact, &projection);
    ops::without_kernels(|| finite_differences(name, &|x| closed(ours, x, &frozen64), &exact, &projection));
}

/// Central differences along random directions: d/dt <projection, op(x + t v)> = <gradient, v>.
fn finite_differences(name: &str, op: Op, inputs: &[Tensor], projection: &Tensor) {
    let (_, gradients) = run(op, inputs, projection);
    let dot = |a: &Tensor, b: &Tensor| (a * b).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    let mut draw = Draw::new(7);
    for (i, gradient) in gradients.iter().enumerate() {
        for _ in 0..3 {
            let direction = draw.normal(inputs[i].dims());
            let at = |t: f64| {
                let mut moved = inputs.to_vec();
                moved[i] = (&inputs[i] + (&direction * t).unwrap()).unwrap();
                dot(&op(&moved).unwrap(), projection)
            };
            let h = 1e-5;
            let (slope, expected) = ((at(h) - at(-h)) / (2.0 * h), dot(gradient, &direction));
            assert!((slope - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{name} input {i}: {slope} {expected}");
        }
    }
}

#[test]
fn frozen_linear_matches() {
    let mut draw = Draw::new(1);
    let inputs = [draw.normal(&[2, 5, 7])];
    let frozen = [draw.normal(&[11, 7]), draw.normal(&[11])];
    check("linear", &inputs, &frozen, &|x| ops::linear(&x[0], &x[1], Some(&x[2])), &|x| {
        composed::linear(&x[0], &x[1], Some(&x[2]))
    });
    check("linear without bias", &inputs, &frozen[..1], &|x| ops::linear(&x[0], &x[1], None), &|x| {
        composed::linear(&x[0], &x[1], None)
    });
}

#[test]
fn lora_linear_matches() {
    let mut draw = Draw::new(2);
    let inputs = [draw.normal(&[2, 5, 7]), draw.normal(&[3, 7]), draw.normal(&[11, 3])];
    let frozen = [draw.normal(&[11, 7]), draw.normal(&[11])];
    check(
        "lora linear",
        &inputs,
        &frozen,
        &|x| ops::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), 0.375),
        &|x| composed::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), 0.375),
    );
}

#[test]
fn layers_in_eight_bits_are_those_of_the_matrix_that_they_stand_for() {
    let mut draw = Draw::new(12);
    for (num_in, num_out, rank) in [(7, 11, 3), (64, 50, 4), (131, 96, 5)] {
        let inputs = [draw.normal(&[2, 5, num_in]), draw.normal(&[rank, num_in]), draw.normal(&[num_out, rank])];
        let matrix = FrozenMatrix::quantized(&draw.normal(&[num_out, num_in])).unwrap();
        let frozen = [matrix.to_dense(DType::F64).unwrap(), draw.normal(&[num_out])];
        check("linear in 8 bits", &inputs[..1], &frozen, &|x| ops::linear(&x[0], &matrix, Some(&x[2])), &|x| {
            composed::linear(&x[0], &x[1], Some(&x[2]))
        });
        check(
            "lora linear in 8 bits",
            &inputs,
            &frozen,
            &|x| ops::lora_linear(&x[0], &x[1], &x[2], &matrix, Some(&x[4]), 0.375),
            &|x| composed::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), 0.375),
        );
    }
}

/// Numbers as a mask has them: zeros among others, no two rows alike.
fn mask(draw: &mut Draw, shape: &[usize]) -> Tensor {
    let normal = draw.normal(shape);
    let kept = normal.ge(-0.3).unwrap().to_dtype(DType::F64).unwrap();
    ((normal.abs().unwrap() + 0.5).unwrap() * kept).unwrap().to_dtype(DType::F32).unwrap()
}

#[test]
fn a_mask_between_the_factors_of_a_linear_layer_matches() {
    let mut draw = Draw::new(21);
    let inputs = [draw.normal(&[2, 5, 7]), draw.normal(&[3, 7]), draw.normal(&[11, 3])];
    let frozen = [draw.normal(&[11, 7]), draw.normal(&[11])];
    let scale = LoraScale::masked(0.375, &mask(&mut draw, &[2, 5, 3]));
    check(
        "masked lora linear",
        &inputs,
        &frozen,
        &|x| ops::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), scale.clone()),
        &|x| composed::lora_linear(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), scale.clone()),
    );
    let of_others = LoraScale::masked(0.375, &mask(&mut draw, &[2, 3, 5]));
    let x = [&inputs[..], &frozen].concat();
    assert!(ops::lora_linear(&x[0], &x[1], &x[2], &x[3], None, of_others).is_err());
}

#[test]
fn a_mask_between_the_factors_of_a_convolution_matches() {
    let mut draw = Draw::new(22);
    let downsample = ConvGeometry { stride: 2, pad_before: 1, pad_after: 1 };
    for (kernel, geometry, [h, w, num_in, num_out], output) in [
        (3, ConvGeometry::same(3), [6, 4, 5, 7], [6, 4]),
        (1, ConvGeometry::same(1), [6, 4, 5, 7], [6, 4]),
        (3, downsample, [6, 4, 5, 7], [3, 2]),
        (3, ConvGeometry::same(3), [13, 18, 32, 16], [13, 18]),
    ] {
        let (down, up) = (draw.normal(&[3, num_in, kernel, kernel]), draw.normal(&[num_out, 3, 1, 1]));
        let inputs = [draw.normal(&[2, h, w, num_in]), down, up];
        let frozen = [draw.normal(&[num_out, kernel, kernel, num_in]), draw.normal(&[num_out])];
        let scale = LoraScale::masked(0.4, &mask(&mut draw, &[2, output[0], output[1], 3]));
        check(
            &format!("masked lora conv {kernel} {geometry:?} of {h} x {w} x {num_in} to {num_out}"),
            &inputs,
            &frozen,
            &|x| ops::lora_conv2d(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), geometry, scale.clone()),
            &|x| composed::lora_conv2d(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), geometry, scale.clone()),
        );
    }
}

#[test]
fn products_of_bf16_are_near_those_of_f32_and_not_the_same() {
    let mut draw = Draw::new(11);
    let f32s = |x: Tensor| x.to_dtype(DType::F32).unwrap();
    let inputs = [draw.normal(&[2, 10, 14, 32]), draw.normal(&[3, 32]), draw.normal(&[48, 3])].map(f32s);
    let scaled = |x: Tensor, scale: f64| f32s((x * scale).unwrap());
    let (weight, kernel) = (scaled(draw.normal(&[48, 32]), 0.15), scaled(draw.normal(&[32, 3, 3, 48]), 0.03));
    let projection = draw.normal(&[2, 140, 32]);
    let op = |x: &[Tensor], weight: &FrozenMatrix, kernel: &Tensor| {
        let y = ops::lora_linear(&x[0], &x[1], &x[2], weight, None, 0.5)?;
        let y = ops::conv2d(&y, kernel, None, ConvGeometry::same(3))?.reshape((2, 140, 32))?;
        ops::attention(&y, &y, &y, 2, false)
    };
    let (expected, expected_gradients) = run(&|x| op(x, &(&weight).into(), &kernel), &inputs, &projection);
    let in_8_bits = FrozenMatrix::quantized(&weight).unwrap();
    for stored in [Some(DType::F32), Some(DType::F16), Some(DType::BF16), None] {
        let of = |x: &Tensor| x.to_dtype(stored.unwrap_or(DType::F16)).unwrap();
        let (matrix, kernel) = (stored.map_or(in_8_bits.clone(), |_| of(&weight).into()), of(&kernel));
        let (value, gradients) = ops::with_bf16_products(|| run(&|x| op(x, &matrix, &kernel), &inputs, &projection));
        let d = distance(&value, &expected);
        assert!(d < 2e-2 && (d > 1e-4 || !ops::multiplies_bf16()), "{stored:?}: {d}");
        for (ours, theirs) in gradients.iter().zip(&expected_gradients) {
            assert!(distance(ours, theirs) < 4e-2, "{stored:?}: {}", distance(ours, theirs));
        }
    }
}

#[test]
fn convolutions_match() {
    let mut draw = Draw::new(3);
    let downsample = ConvGeometry { stride: 2, pad_before: 1, pad_after: 1 };
    let vae_downsample = ConvGeometry { stride: 2, pad_before: 0, pad_after: 1 };
    let pointwise_strided = ConvGeometry { stride: 2, pad_before: 0, pad_after: 0 };
    // The last two fill registers, so that they are multiplied by squares of 2x2 and of 4x4 outputs.
    for (kernel, geometry, [h, w, num_in, num_out]) in [
        (3, ConvGeometry::same(3), [6, 4, 5, 7]),
        (1, ConvGeometry::same(1), [6, 4, 5, 7]),
        (3, downsample, [6, 4, 5, 7]),
        (3, vae_downsample, [6, 4, 5, 7]),
        (1, pointwise_strided, [6, 4, 5, 7]),
        (3, ConvGeometry::same(3), [4, 6, 16, 32]),
        (3, ConvGeometry::same(3), [13, 18, 32, 16]),
    ] {
        let (down, up) = (draw.normal(&[3, num_in, kernel, kernel]), draw.normal(&[num_out, 3, 1, 1]));
        let inputs = [draw.normal(&[2, h, w, num_in]), down, up];
        let frozen = [draw.normal(&[num_out, kernel, kernel, num_in]), draw.normal(&[num_out])];
        check(
            &format!("conv {kernel} {geometry:?} of {h} x {w} x {num_in} to {num_out}"),
            &inputs[..1],
            &frozen,
            &|x| ops::conv2d(&x[0], &x[1], Some(&x[2]), geometry),
            &|x| composed::conv2d(&x[0], &x[1], Some(&x[2]), geometry),
        );
        check(
            &format!("lora conv {kernel} {geometry:?} of {h} x {w} x {num_in} to {num_out}"),
            &inputs,
            &frozen,
            &|x| ops::lora_conv2d(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), geometry, 0.4),
            &|x| composed::lora_conv2d(&x[0], &x[1], &x[2], &x[3], Some(&x[4]), geometry, 0.4),
        );
    }
}

#[test]
fn convolution_in_many_tiles_equals_the_oracle() {
    let mut draw = Draw::new(4);
    // 2 * 80 * 72 patches of 9 * 96 numbers are three tiles
    let x = draw.normal(&[2, 80, 72, 96]).to_dtype(DType::F32).unwrap();
    let w = draw.normal(&[8, 3, 3, 96]).to_dtype(DType::F32).unwrap();
    let projection = draw.normal(&[2, 80, 72, 8]);
    let same = ConvGeometry::same(3);
    let (ours, d_ours) = run(&|x| ops::conv2d(&x[0], &w, None, same), std::slice::from_ref(&x), &projection);
    let (theirs, d_theirs) = run(&|x| composed::conv2d(&x[0], &w, None, same), &[x], &projection);
    assert!(distance(&ours, &theirs) < 1e-5 && distance(&d_ours[0], &d_theirs[0]) < 1e-5);
}

#[test]
fn norms_match() {
    let mut draw = Draw::new(5);
    // a mean far from zero shows a variance computed without centring
    let x = (draw.normal(&[2, 9, 13, 12]) + 3.0).unwrap();
    let frozen = [draw.normal(&[12]), draw.normal(&[12])];
    for silu in [false, true] {
        check(
            &format!("group norm, silu {silu}"),
            std::slice::from_ref(&x),
            &frozen,
            &|x| ops::group_norm(&x[0], &x[1], &x[2], 4, 1e-5, silu),
            &|x| composed::group_norm(&x[0], &x[1], &x[2], 4, 1e-5, silu),
        );
    }
    check("layer norm", &[x], &frozen, &|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5), &|x| {
        composed::layer_norm(&x[0], &x[1], &x[2], 1e-5)
    });
}

#[test]
fn attention_matches() {
    let mut draw = Draw::new(6);
    for (queries, keys, causal) in [(9, 9, false), (9, 5, false), (9, 9, true)] {
        let inputs = [draw.normal(&[2, queries, 12]), draw.normal(&[2, keys, 12]), draw.normal(&[2, keys, 12])];
        check(
            &format!("attention {queries} {keys} {causal}"),
            &inputs,
            &[],
            &|x| ops::attention(&x[0], &x[1], &x[2], 3, causal),
            &|x| composed::attention(&x[0], &x[1], &x[2], 3, causal),
        );
    }
}

#[test]
fn attention_over_many_tiles_equals_the_oracle() {
    let mut draw = Draw::new(8);
    let inputs: Vec<Tensor> = (0..3).map(|_| draw.normal(&[1, 700, 16]).to_dtype(DType::F32).unwrap()).collect();
    let projection = draw.normal(&[1, 700, 16]);
    for causal in [false, true] {
        let (ours, d_ours) = run(&|x| ops::attention(&x[0], &x[1], &x[2], 2, causal), &inputs, &projection);
        let (theirs, d_theirs) = run(&|x| composed::attention(&x[0], &x[1], &x[2], 2, causal), &inputs, &projection);
        assert!(distance(&ours, &theirs) < 1e-5);
        d_ours.iter().zip(&d_theirs).for_each(|(a, b)| assert!(distance(a, b) < 1e-5));
    }
}

#[test]
fn activations_match() {
    let mut draw = Draw::new(9);
    let x = (draw.normal(&[3, 5, 8]) * 2.5).unwrap();
    for kind in [Activation::Gelu, Activation::QuickGelu, Activation::Silu] {
        check(&format!("{kind:?}"), std::slice::from_ref(&x), &[], &|x| ops::activation(&x[0], kind), &|x| {
            composed::activation(&x[0], kind)
        });
    }
    check("geglu", &[x], &[], &|x| ops::geglu(&x[0]), &|x| composed::geglu(&x[0]));
}

#[test]
fn upsample_and_shift_match() {
    let mut draw = Draw::new(10);
    let (x, shift) = (draw.normal(&[2, 3, 4, 5]), draw.normal(&[2, 5]));
    check("upsample", std::slice::from_ref(&x), &[], &|x| ops::upsample_nearest(&x[0]), &|x| {
        composed::upsample_nearest(&x[0])
    });
    check("shift", &[x, shift], &[], &|x| ops::add_per_sample(&x[0], &x[1]), &|x| {
        composed::add_per_sample(&x[0], &x[1])
    });
}

#[test]
fn a_view_gives_what_its_copy_gives() {
    let mut draw = Draw::new(11);
    let x = draw.normal(&[4, 6, 2]).to_dtype(DType::F32).unwrap();
    let w = draw.normal(&[3, 4]).to_dtype(DType::F32).unwrap();
    let view = x.permute((2, 1, 0)).unwrap(); // (2, 6, 4)
    assert!(!view.is_contiguous());
    let copy = view.contiguous().unwrap();
    assert_eq!(distance(&ops::linear(&view, &w, None).unwrap(), &ops::linear(&copy, &w, None).unwrap()), 0.0);
}

#[test]
fn wrong_shapes_are_errors() {
    let mut draw = Draw::new(12);
    let (x, map) = (draw.normal(&[2, 3, 8]), draw.normal(&[2, 3, 3, 8]));
    assert!(ops::linear(&x, draw.normal(&[4, 7]), None).is_err());
    assert!(
        ops::lora_linear(&x, &draw.normal(&[2, 8]), &draw.normal(&[5, 2]), draw.normal(&[4, 8]), None, 1.0).is_err()
    );
    assert!(ops::conv2d(&map, &draw.normal(&[4, 3, 3, 7]), None, ConvGeometry::same(3)).is_err());
    assert!(ops::group_norm(&map, &draw.normal(&[8]), &draw.normal(&[8]), 3, 1e-5, false).is_err());
    assert!(ops::attention(&x, &x, &x, 3, false).is_err());
    assert!(ops::geglu(&draw.normal(&[2, 3])).is_err());
}

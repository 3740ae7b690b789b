//! Recompute keeps the outputs that take long, and its gradients are those of the graph that kept everything.
#![allow(clippy::unwrap_used)]

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use loralei_model::ops::{self, ConvGeometry, FrozenMatrix, OpTimes, Pass, Segment, is_recording, op_times, recompute};
use loralei_model::{Draw, Purpose};
use std::sync::{Arc, Mutex};

/// b, h, w, channels: 9 * 112 multiplications per number of a 3x3 convolution are worth keeping, 112 of a 1x1 are not.
const MAP: (usize, usize, usize, usize) = (2, 26, 20, 112);
const RANK: usize = 3;

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(Draw::new(seed, 0, 0, Purpose::Check).uniform(-0.3, 0.3, count), shape, &Device::Cpu).unwrap()
}

/// A convolution with factors, a norm, a linear layer with factors, attention over 520 tokens, a narrow linear layer.
struct Piece {
    kernel: Tensor,
    weight: FrozenMatrix,
    gain: Tensor,
    factors: Vec<Var>,
    gradients: Mutex<Vec<Tensor>>,
}

impl Piece {
    fn new(in_8_bits: bool) -> Self {
        let c = MAP.3;
        let weight = random(2, &[c, c]);
        let shapes: [&[usize]; 4] = [&[RANK, c, 3, 3], &[c, RANK, 1, 1], &[RANK, c], &[c, RANK]];
        let factors = (10..).zip(shapes).map(|(seed, shape)| Var::from_tensor(&random(seed, shape)).unwrap());
        Self {
            kernel: random(1, &[c, 3, 3, c]),
            weight: if in_8_bits { FrozenMatrix::quantized(&weight).unwrap() } else { weight.into() },
            gain: random(3, &[c]),
            factors: factors.collect(),
            gradients: Mutex::default(),
        }
    }

    fn factor(&self, i: usize) -> Tensor {
        if is_recording() { self.factors[i].as_tensor().clone() } else { self.factors[i].as_detached_tensor() }
    }
}

impl Segment for Piece {
    fn forward(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let (b, h, w, c) = MAP;
        let same = ConvGeometry::same(3);
        let hidden = ops::lora_conv2d(&inputs[0], &self.factor(0), &self.factor(1), &self.kernel, None, same, 0.7)?;
        let hidden = ops::group_norm(&hidden, &self.gain, &self.gain, 8, 1e-5, true)?;
        let hidden = ops::conv2d(&hidden, &self.kernel, Some(&self.gain), same)?;
        let tokens = hidden.reshape((b, h * w, c))?;
        let q = ops::lora_linear(&tokens, &self.factor(2), &self.factor(3), &self.weight, None, 1.3)?;
        ops::linear(&ops::attention(&q, &tokens, &tokens, 4, false)?, &self.weight, None)
    }

    fn has_factors(&self) -> bool {
        true
    }

    fn keep_gradients(&self, gradients: &GradStore) -> Result<()> {
        let of_factors = self.factors.iter().map(|factor| gradients.get(factor).unwrap().clone());
        *self.gradients.lock().unwrap() = of_factors.collect();
        Ok(())
    }
}

/// Gradients of the input and the factors, and what ran.
fn learn((dtype, in_8_bits): (DType, bool), again: bool) -> (Vec<Vec<f32>>, OpTimes) {
    let (b, h, w, c) = MAP;
    let piece = Arc::new(Piece::new(in_8_bits));
    let input = Var::from_tensor(&random(4, &[b, h, w, c]).to_dtype(dtype).unwrap()).unwrap();
    let upstream = random(5, &[b, h * w, c]).to_dtype(dtype).unwrap();
    let (gradients, times) = op_times(|| {
        let segment: Arc<dyn Segment> = piece.clone();
        let output = if again { recompute(&segment, &[&input]) } else { segment.forward(&[input.as_tensor().clone()]) };
        let gradients = (output.unwrap() * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
        if !again {
            piece.keep_gradients(&gradients).unwrap();
        }
        gradients.get(&input).unwrap().clone()
    });
    let all = [vec![gradients], piece.gradients.lock().unwrap().clone()].concat();
    let numbers = |x: &Tensor| x.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    (all.iter().map(numbers).collect(), times)
}

#[test]
fn gradients_are_those_of_the_whole_graph_to_the_bit() {
    for kept in [(DType::F32, false), (DType::BF16, false), (DType::F32, true), (DType::BF16, true)] {
        let ((whole, _), (again, _)) = (learn(kept, false), learn(kept, true));
        assert_eq!(whole.len(), 5);
        assert!(whole.iter().all(|gradient| gradient.iter().any(|x| x.abs() > 1e-4)), "{kept:?}");
        assert!(whole == again, "{kept:?}");
    }
}

#[test]
fn what_takes_long_runs_once_and_what_does_not_runs_again() {
    let (whole, again) = (learn((DType::F32, true), false).1, learn((DType::F32, true), true).1);
    let calls = |times: &OpTimes, name| times.get(&(name, Pass::Forward)).map_or(0, |time| time.calls);
    for name in ["lora-conv2d", "frozen-conv2d", "attention"] {
        assert_eq!((calls(&whole, name), calls(&again, name)), (1, 1), "{name}");
    }
    for name in ["lora-linear", "frozen-linear", "group-norm"] {
        assert_eq!((calls(&whole, name), calls(&again, name)), (1, 2), "{name}");
    }
}

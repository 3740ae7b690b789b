//! Inputs of layers while a network runs: what a layer with factors hands over, and what is kept of it.
//!
//! Kept of the rows X (rows, in) of a layer are the sums of X^T X and A X^T X over all passes, in f32. Layers that are given the
//! same tensor in a pass, as q, k and v are, share one sum. A run that records nothing pays one look at a switch of its thread.

use crate::lora::LoraFactors;
use candle_core::{DType, Device, Result, Tensor, TensorId};
use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What is kept of the inputs of all layers.
#[derive(Default)]
pub(crate) struct Recorder {
    /// What each row counts.
    pub(crate) weight: f64,
    /// Calls of [`Recorder::during`]: the same tensor counts again in the next one.
    num_passes: usize,
    inputs: Vec<SharedInput>,
    layers: BTreeMap<String, Layer>,
}

/// The input of one layer or of several.
struct SharedInput {
    /// What was added last, and in which pass.
    last: (TensorId, usize),
    gram: Tensor, // (in, in)
}

struct Layer {
    input: usize,
    /// A X^T X of the factors at hand: (r, in).
    projected: Option<Tensor>,
}

impl Recorder {
    /// Runs `f` on this thread while the inputs of layers with factors are added here.
    pub(crate) fn during<R>(&mut self, f: impl FnOnce() -> R) -> R {
        /// Takes the sums back, also if `f` panics.
        struct Return<'a>(&'a mut Recorder);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                *self.0 = RECORDER.take().unwrap_or_default();
            }
        }
        self.num_passes += 1;
        RECORDER.set(Some(std::mem::take(self)));
        let _return = Return(self);
        f()
    }

    /// A X^T X by module since the last call: (r, in), row-major, on the processor.
    pub(crate) fn take_projected(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let taken = self.layers.iter_mut().filter_map(|(module, layer)| Some((module, layer.projected.take()?)));
        taken.map(|(module, projected)| Ok((module.clone(), values(&projected)?))).collect()
    }

    /// X^T X by module: (in, in), row-major, on the processor. What is shared comes once for each layer; each sum goes when its
    /// last layer has it.
    pub(crate) fn into_grams(self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut num_left = vec![0; self.inputs.len()];
        self.layers.values().for_each(|layer| num_left[layer.input] += 1);
        let mut grams: Vec<Option<Tensor>> = self.inputs.into_iter().map(|input| Some(input.gram)).collect();
        let mut by_module = BTreeMap::new();
        for (module, Layer { input, .. }) in self.layers {
            num_left[input] -= 1;
            let gram = if num_left[input] == 0 { grams[input].take() } else { grams[input].clone() };
            if let Some(gram) = gram {
                by_module.insert(module, values(&gram)?);
            }
        }
        Ok(by_module)
    }

    fn add(&mut self, module: &str, down: &Tensor, xs: &Tensor) -> Result<()> {
        let num_in = xs.dim(candle_core::D::Minus1)?;
        let rows = xs.detach().to_dtype(DType::F32)?.reshape(((), num_in))?; // (rows, in)
        let by_input = rows.t()?;
        let projected =
            (down.to_dtype(DType::F32)?.reshape(((), num_in))?.matmul(&by_input)?.matmul(&rows)? * self.weight)?;
        let this = (xs.id(), self.num_passes);
        let gram = || rows.t()?.matmul(&rows)? * self.weight;
        if let Some(layer) = self.layers.get_mut(module) {
            let input = &mut self.inputs[layer.input];
            if input.last != this {
                (input.last, input.gram) = (this, (&input.gram + gram()?)?);
            }
            layer.projected = Some(match layer.projected.take() {
                Some(sum) => (sum + projected)?,
                None => projected,
            });
            return Ok(());
        }
        let same = self.inputs.iter().position(|input| input.last == this);
        let input = if let Some(input) = same {
            input
        } else {
            self.inputs.push(SharedInput { last: this, gram: gram()? });
            self.inputs.len() - 1
        };
        self.layers.insert(module.to_owned(), Layer { input, projected: Some(projected) });
        Ok(())
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// Hands over the input `xs` (.., in) of a layer, if this thread records. Kernels of more than one pixel are left out.
pub(crate) fn observe(factors: &LoraFactors, xs: &Tensor) -> Result<()> {
    RECORDER.with_borrow_mut(|recorder| match recorder {
        Some(recorder) if !factors.has_wide_kernel() => recorder.add(factors.module(), &factors.tensors().0, xs),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv2d, Linear};
    use crate::lora::{FactorValues, Injection, LayerShape, Targets};
    use crate::ops::{ConvGeometry, without_graph};
    use crate::random::{Draw, Purpose};
    use crate::weights::Source;

    fn normal(shape: &[usize], place: u64) -> Tensor {
        let values = Draw::new(3, place, 0, Purpose::Check).standard_normal(shape.iter().product());
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    struct Layers {
        q: Linear,
        k: Linear,
        projection: Conv2d,
        wide: Conv2d,
    }

    fn layers() -> Layers {
        let values = |module: &str, shape: LayerShape| {
            let (down, up) = shape.factor_shapes(2);
            let drawn = |shape: Vec<usize>, place| {
                Draw::new(1, place, 0, Purpose::factor_init(module)).standard_normal(shape.iter().product())
            };
            FactorValues { down: drawn(down, 0), up: drawn(up, 1), alpha: 3.0, rank: 2 }
        };
        let injection = Injection::new("lora_", Targets::Patterns(vec!["*".to_owned()]), Box::new(values));
        let source = Source::random(5, DType::F32, &Device::Cpu, Some(&injection));
        let at = |name: &str| source.root().at(name);
        Layers {
            q: at("q").linear(4, 6, false).unwrap(),
            k: at("k").linear(4, 5, true).unwrap(),
            projection: at("projection").conv2d(4, 3, 1, ConvGeometry::same(1)).unwrap(),
            wide: at("wide").conv2d(4, 3, 3, ConvGeometry::same(3)).unwrap(),
        }
    }

    /// scale * m^T n over the rows of all tensors, in f64.
    fn sum_of_products(passes: &[Tensor], scale: f64) -> Vec<f64> {
        let rows = passes.iter().flat_map(|xs| xs.reshape(((), 4)).unwrap().to_vec2::<f32>().unwrap());
        let mut sum = vec![0.0; 16];
        for row in rows {
            for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                sum[i * 4 + j] += scale * f64::from(row[i]) * f64::from(row[j]);
            }
        }
        sum
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} {expected}");
        }
    }

    #[test]
    fn sums_are_those_of_all_rows_of_all_passes_and_wide_kernels_are_left_out() {
        let layers = layers();
        let (tokens, maps) = ([normal(&[2, 3, 4], 0), normal(&[1, 5, 4], 1)], [normal(&[2, 3, 2, 4], 2)]);
        let mut recorder = Recorder { weight: 0.5, ..Recorder::default() };
        let run = || {
            without_graph(|| {
                let mut outputs = Vec::new();
                for xs in &tokens {
                    outputs.extend([layers.q.forward(xs).unwrap(), layers.k.forward(xs).unwrap()]);
                }
                outputs.extend([layers.projection.forward(&maps[0]).unwrap(), layers.wide.forward(&maps[0]).unwrap()]);
                outputs.iter().map(|ys| values(ys).unwrap()).collect::<Vec<_>>()
            })
        };
        let recorded = recorder.during(run);
        assert_eq!(recorded, run(), "outputs are the same to the bit with and without recording");
        assert_eq!(recorder.during(run), recorded);

        let projected = recorder.take_projected().unwrap();
        let down = layers.k.lora.as_ref().unwrap().tensors().0.to_vec2::<f32>().unwrap();
        let gram = sum_of_products(&tokens, 1.0);
        let expected = down.iter().flat_map(|row| {
            (0..4).map(|j| (0..4).map(|i| f64::from(row[i]) * gram[i * 4 + j]).sum()).collect::<Vec<f64>>()
        });
        assert_close(&projected["lora_k"], &expected.collect::<Vec<_>>());
        assert!(recorder.take_projected().unwrap().is_empty(), "what was taken is not there any more");

        assert_eq!(recorder.inputs.len(), 2, "q and k share one sum");
        let grams = recorder.into_grams().unwrap();
        assert_eq!(grams.keys().collect::<Vec<_>>(), ["lora_k", "lora_projection", "lora_q"]);
        assert_close(&grams["lora_q"], &gram);
        assert_close(&grams["lora_projection"], &sum_of_products(&maps, 1.0));
        assert_eq!(grams["lora_k"], grams["lora_q"]);
    }
}

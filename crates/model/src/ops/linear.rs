//! y = x W^T + bias, with W frozen, and the same with a low-rank term: y = x W^T + bias + s (x A^T) B^T.
//!
//! Backward, with u = s dY B (m, r): dX = dY W + u A; dA = u^T x; dB = s dY^T (x A^T). Neither the product B A nor a
//! gradient of W is ever formed, and nothing but x is kept (Hu et al. 2021, arXiv 2106.09685, equation 3).

use super::gemm::{Cores, Matrix, gemm};
use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// A frozen linear layer.
///
/// `xs`: (.., in); `weight`: (out, in); `bias`: (out). Returns (.., out) in the dtype of `xs`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let frozen = Frozen::new(xs, weight, bias)?;
    if !generic::has_kernel(xs) {
        return generic::linear(xs, weight, bias);
    }
    xs.apply_op1(FrozenLinear(frozen))
}

/// A frozen linear layer with a LoRA term of strength `scale` = alpha / r.
///
/// `xs`: (.., in); `down` (A): (r, in) and `up` (B): (out, r), or the same with two trailing axes of one, as 1x1
/// convolutions have them; `weight`: (out, in). Returns (.., out) in the dtype of `xs`. Gradients: `xs`, `down`, `up`.
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_linear(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let frozen = Frozen::new(xs, weight, bias)?;
    let rank = down.dim(0)?;
    if down.elem_count() != rank * frozen.num_in || up.elem_count() != rank * frozen.num_out {
        bail!("LoRA factors {:?} and {:?} do not fit a weight of shape {:?}", down.shape(), up.shape(), weight.shape());
    }
    if !generic::has_kernel(xs) {
        return generic::lora_linear(xs, down, up, weight, bias, scale);
    }
    xs.apply_op3(down, up, LoraLinear { frozen, rank, scale })
}

/// What both operations hold: the weight, which no graph ever sees.
struct Frozen {
    weight: Tensor,
    bias: Option<Tensor>,
    num_in: usize,
    num_out: usize,
}

impl Frozen {
    fn new(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (num_out, num_in) = weight.dims2()?;
        if xs.dims().last() != Some(&num_in) {
            bail!("a linear layer of {num_in} inputs was given {:?}", xs.shape());
        }
        Ok(Self { weight: weight.detach(), bias: bias.map(Tensor::detach), num_in, num_out })
    }

    fn out_shape(&self, layout: &Layout) -> Shape {
        let mut dims = layout.dims().to_vec();
        dims.pop();
        dims.push(self.num_out);
        dims.into()
    }

    fn forward<T: Number>(&self, x: &[T]) -> Result<Vec<T>> {
        let m = x.len() / self.num_in;
        let mut y = rows_of::<T>(self.bias.as_ref(), m, self.num_out)?;
        with_numbers(&self.weight, |w: &[T]| {
            let (x, w) = (Matrix::new(x, m, self.num_in), Matrix::new(w, self.num_out, self.num_in));
            gemm(&mut y, self.bias.is_some(), T::ONE, x, w.t(), Cores::All); // (m, out)
            Ok(())
        })?;
        Ok(y)
    }

    fn backward<T: Number>(&self, dy: &[T]) -> Result<Vec<T>> {
        let m = dy.len() / self.num_out;
        let mut dx = vec![T::default(); m * self.num_in];
        with_numbers(&self.weight, |w: &[T]| {
            let (dy, w) = (Matrix::new(dy, m, self.num_out), Matrix::new(w, self.num_out, self.num_in));
            gemm(&mut dx, false, T::ONE, dy, w, Cores::All); // (m, in)
            Ok(())
        })?;
        Ok(dx)
    }
}

/// `m` rows that each hold the bias: what a product is then added to. Zeros without a bias.
pub(crate) fn rows_of<T: Number>(bias: Option<&Tensor>, m: usize, n: usize) -> Result<Vec<T>> {
    let mut rows = vec![T::default(); m * n];
    if let Some(bias) = bias {
        with_numbers(bias, |bias: &[T]| {
            rows.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
            Ok(())
        })?;
    }
    Ok(rows)
}

/// (dX unless x needs none, dA, dB)
pub(crate) type LoraGradients<T> = (Option<Vec<T>>, Vec<T>, Vec<T>);

struct FrozenLinear(Frozen);

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => to_storage(self.0.forward::<T>(&numbers(x, layout)?)?, dtype)?);
        Ok((y, self.0.out_shape(layout)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(dy, |dy: &[T]| self.0.backward(dy))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

struct LoraLinear {
    frozen: Frozen,
    rank: usize,
    scale: f64,
}

impl LoraLinear {
    fn forward<T: Number>(&self, x: &[T], down: &[T], up: &[T]) -> Result<Vec<T>> {
        let Frozen { num_in, num_out, .. } = self.frozen;
        let m = x.len() / num_in;
        let mut y = self.frozen.forward(x)?;
        let mut z = vec![T::default(); m * self.rank];
        let down = Matrix::new(down, self.rank, num_in);
        gemm(&mut z, false, T::ONE, Matrix::new(x, m, num_in), down.t(), Cores::All); // (m, r)
        let up = Matrix::new(up, num_out, self.rank);
        gemm(&mut y, true, T::real(self.scale), Matrix::new(&z, m, self.rank), up.t(), Cores::All); // (m, out)
        Ok(y)
    }

    fn backward<T: Number>(
        &self,
        x: &[T],
        down: &[T],
        up: &[T],
        dy: &[T],
        x_needs_it: bool,
    ) -> Result<LoraGradients<T>> {
        let Frozen { num_in, num_out, .. } = self.frozen;
        let (m, r, s) = (x.len() / num_in, self.rank, T::real(self.scale));
        let (xs, dys) = (Matrix::new(x, m, num_in), Matrix::new(dy, m, num_out));
        let mut u = vec![T::default(); m * r];
        gemm(&mut u, false, s, dys, Matrix::new(up, num_out, r), Cores::All); // s dY B: (m, r)
        let mut z = vec![T::default(); m * r];
        gemm(&mut z, false, T::ONE, xs, Matrix::new(down, r, num_in).t(), Cores::All); // x A^T: (m, r)
        let mut d_down = vec![T::default(); r * num_in];
        gemm(&mut d_down, false, T::ONE, Matrix::new(&u, m, r).t(), xs, Cores::All); // u^T x: (r, in)
        let mut d_up = vec![T::default(); num_out * r];
        gemm(&mut d_up, false, s, dys.t(), Matrix::new(&z, m, r), Cores::All); // s dY^T z: (out, r)
        let dx = if x_needs_it {
            let mut dx = self.frozen.backward(dy)?;
            gemm(&mut dx, true, T::ONE, Matrix::new(&u, m, r), Matrix::new(down, r, num_in), Cores::All); // + u A
            Some(dx)
        } else {
            None
        };
        Ok((dx, d_down, d_up))
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        down: &CpuStorage,
        down_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => {
            let (down, up) = (numbers::<T>(down, down_layout)?, numbers::<T>(up, up_layout)?);
            to_storage(self.forward(&numbers(x, x_layout)?, &down, &up)?, dtype)?
        });
        Ok((y, self.frozen.out_shape(x_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        down: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_compute_type!(x.dtype(), T => {
            let (dx, d_down, d_up) = with_numbers(x, |xs: &[T]| {
                with_numbers(down, |a: &[T]| with_numbers(up, |b: &[T]| {
                    with_numbers(dy, |dy: &[T]| self.backward(xs, a, b, dy, x.track_op()))
                }))
            })?;
            Ok((
                dx.map(|dx| to_tensor(dx, x.shape(), x.dtype())).transpose()?,
                Some(to_tensor(d_down, down.shape(), down.dtype())?),
                Some(to_tensor(d_up, up.shape(), up.dtype())?),
            ))
        })
    }
}

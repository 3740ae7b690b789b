//! y = x W^T + bias, with W frozen, and the same with a low-rank term: y = x W^T + bias + s (x A^T) B^T.
//!
//! Backward, with u = s dY B (m, r): dX = dY W + u A; dA = u^T x; dB = s dY^T (x A^T). A mask multiplies x A^T and u. Neither the product B A nor a
//! gradient of W is ever formed, and nothing but x and x A^T is kept (Hu et al. 2021, arXiv 2106.09685, equation 3).

use super::frozen_matrix::FrozenMatrix;
use super::generic;
use super::kept::{Given, Left, kept};
use super::lora_scale::LoraScale;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::product::{Columns, Cores, Initial, Out, Precision, Rows, Stored, Term, product};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// A frozen linear layer.
///
/// `xs`: (.., in); `weight`: (out, in); `bias`: (out). Returns (.., out) in the dtype of `xs`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(xs: &Tensor, weight: impl Into<FrozenMatrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    let frozen = Frozen::new(xs, weight.into(), bias)?;
    if !generic::has_kernel(xs) {
        return generic::linear(xs, frozen.weight, bias);
    }
    kept(frozen.num_in, |given, _| xs.apply_op1(FrozenLinear { frozen, given }))
}

/// A frozen linear layer with a LoRA term of strength `scale`: alpha / r, or that and a mask (.., r).
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
    weight: impl Into<FrozenMatrix>,
    bias: Option<&Tensor>,
    scale: impl Into<LoraScale>,
) -> Result<Tensor> {
    let frozen = Frozen::new(xs, weight.into(), bias)?;
    let (rank, scale) = (down.dim(0)?, scale.into());
    if down.elem_count() != rank * frozen.num_in || up.elem_count() != rank * frozen.num_out {
        let shape = frozen.weight.dims2()?;
        bail!("LoRA factors {:?} and {:?} do not fit a weight of shape {shape:?}", down.shape(), up.shape());
    }
    scale.check(xs.elem_count() / frozen.num_in.max(1), rank)?;
    if !generic::has_kernel(xs) {
        return generic::lora_linear(xs, down, up, frozen.weight, bias, scale);
    }
    kept(frozen.num_in, |given, left| {
        xs.apply_op3(down, up, LoraLinear { frozen, rank, scale, given, low_rank: LowRank(left) })
    })
}

/// What both operations hold: the weight, which no graph ever sees.
struct Frozen {
    weight: FrozenMatrix,
    bias: Option<Tensor>,
    num_in: usize,
    num_out: usize,
    precision: Precision,
}

impl Frozen {
    fn new(xs: &Tensor, weight: FrozenMatrix, bias: Option<&Tensor>) -> Result<Self> {
        let (num_out, num_in) = weight.dims2()?;
        if xs.dims().last() != Some(&num_in) {
            bail!("a linear layer of {num_in} inputs was given {:?}", xs.shape());
        }
        Ok(Self { weight, bias: bias.map(Tensor::detach), num_in, num_out, precision: Precision::of_this_thread() })
    }

    fn out_shape(&self, layout: &Layout) -> Shape {
        let mut dims = layout.dims().to_vec();
        dims.pop();
        dims.push(self.num_out);
        dims.into()
    }

    /// X W^T + bias + the low-rank addition `z` (m, r) times `up` (out, r): (m, out).
    fn forward<T: Number>(&self, x: &[T], addition: Option<(&[T], &[T])>) -> Result<Vec<T>> {
        let mut y = vec![T::default(); x.len() / self.num_in * self.num_out];
        self.weight.with_stored(|weight| {
            with_bias(self.bias.as_ref(), |initial| {
                let (rows, columns) = (Rows::strided(x, self.num_in), Columns::weight(weight, 0, self.num_in));
                let mut terms = vec![Term::new(rows, columns, self.num_in).rounded(self.precision)];
                terms.extend(addition.map(|(z, up)| {
                    let r = up.len() / self.num_out;
                    Term::new(Rows::strided(z, r), Columns::weight(Stored::Wide(up), 0, r), r)
                }));
                product(Out::new(&mut y, self.num_out), initial, &terms, Cores::All);
                Ok(())
            })
        })?;
        Ok(y)
    }

    /// dY W + the low-rank addition `u` (m, r) times `down` (r, in): (m, in).
    fn backward<T: Number>(&self, dy: &[T], addition: Option<(&[T], &[T])>) -> Result<Vec<T>> {
        let mut dx = vec![T::default(); dy.len() / self.num_out * self.num_in];
        self.weight.with_stored(|weight| {
            let (rows, columns) = (Rows::strided(dy, self.num_out), Columns::matrix(weight, 0, self.num_in));
            let mut terms = vec![Term::new(rows, columns, self.num_out).rounded(self.precision)];
            terms.extend(addition.map(|(u, down)| {
                let r = down.len() / self.num_in;
                let columns = Columns::matrix(Stored::Wide(down), 0, self.num_in);
                Term::new(Rows::strided(u, r), columns, r)
            }));
            product(Out::new(&mut dx, self.num_in), Initial::Zero, &terms, Cores::All);
            Ok(())
        })?;
        Ok(dx)
    }
}

/// Calls `f` with what a product of `n` columns starts from.
pub(crate) fn with_bias<T: Number, R>(bias: Option<&Tensor>, f: impl FnOnce(Initial<T>) -> Result<R>) -> Result<R> {
    match bias {
        Some(bias) => with_numbers(bias, |bias: &[T]| f(Initial::Bias(bias))),
        None => f(Initial::Zero),
    }
}

/// `x` (m, k) times the transpose of `columns` (n, k), where n is a rank, scaled: (m, n).
///
/// # Errors
/// If a mask is not on the CPU.
pub(crate) fn narrow_product<T: Number>(
    scale: &LoraScale,
    x: &[T],
    columns: Columns<T>,
    k: usize,
    n: usize,
) -> Result<Vec<T>> {
    let mut z = vec![T::default(); x.len() / k * n];
    let terms = [Term::new(Rows::strided(x, k), columns, k)];
    product(Out::new(&mut z, n), Initial::Zero, &terms, Cores::All);
    scale.apply(&mut z)?;
    Ok(z)
}

/// Z^T X with `z` (m, r) and `x` (m, n): (r, n). How the gradients of both factors are summed over the rows.
pub(crate) fn summed_over_rows<T: Number>(z: &[T], r: usize, x: &[T], n: usize) -> Vec<T> {
    let mut sum = vec![T::default(); r * n];
    let columns = Columns::matrix(Stored::Wide(x), 0, n);
    let terms = [Term::new(Rows::transposed(z, r), columns, z.len() / r)];
    product(Out::new(&mut sum, n), Initial::Zero, &terms, Cores::All);
    sum
}

/// (r, n) -> (n, r)
pub(crate) fn transposed<T: Copy>(x: &[T], n: usize) -> Vec<T> {
    (0..n).flat_map(|column| x.iter().skip(column).step_by(n).copied()).collect()
}

/// (dX unless x needs none, dA unless A is fixed, dB)
pub(crate) type LoraGradients<T> = (Option<Vec<T>>, Option<Vec<T>>, Vec<T>);

struct FrozenLinear {
    frozen: Frozen,
    given: Given,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (dtype, shape) = (candle_core::backend::BackendStorage::dtype(x), self.frozen.out_shape(layout));
        if let Some(y) = self.given.take(shape.elem_count())? {
            return Ok((y, shape));
        }
        let y = with_compute_type!(dtype, T => {
            let x = numbers::<T>(x, layout)?;
            to_storage(timed(self.name(), Pass::Forward, || self.frozen.forward(&x, None))?, dtype)?
        });
        Ok((y, shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(dy, |dy: &[T]| timed(self.name(), Pass::Backward, || self.frozen.backward(dy, None)))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

struct LoraLinear {
    frozen: Frozen,
    rank: usize,
    scale: LoraScale,
    given: Given,
    low_rank: LowRank,
}

/// s x A^T (m, r), which forward leaves for backward: a hundredth of the activations, and as much work as the rest of what a
/// factor adds to forward.
pub(crate) struct LowRank(pub(crate) Left);

impl LowRank {
    /// Keeps it.
    pub(crate) fn keep<T: Number>(&self, z: Vec<T>) {
        self.0.get_or_init(|| T::to_cpu_storage_owned(z));
    }

    /// Calls `f` with it, or with what `make` makes if forward left none.
    pub(crate) fn with<T: Number, R>(
        &self,
        make: impl FnOnce() -> Result<Vec<T>>,
        f: impl FnOnce(&[T]) -> R,
    ) -> Result<R> {
        if self.0.get().is_none() {
            self.keep(make()?);
        }
        let Some(z) = self.0.get() else { bail!("a low-rank product was kept and is gone") };
        Ok(f(T::cpu_storage_as_slice(z)?))
    }
}

impl LoraLinear {
    fn forward<T: Number>(&self, x: &[T], down: &[T], up: &[T]) -> Result<Vec<T>> {
        let (r, num_in) = (self.rank, self.frozen.num_in);
        let down = Columns::weight(Stored::Wide(down), 0, num_in);
        let z = narrow_product(&self.scale, x, down, num_in, r)?; // s x A^T: (m, r)
        let y = self.frozen.forward(x, Some((&z, up)))?;
        self.low_rank.keep(z);
        Ok(y)
    }

    fn backward<T: Number>(
        &self,
        x: &[T],
        down: &[T],
        up: &[T],
        dy: &[T],
        (x_needs_it, down_needs_it): (bool, bool),
    ) -> Result<LoraGradients<T>> {
        let Frozen { num_in, num_out, .. } = self.frozen;
        let (r, s) = (self.rank, &self.scale);
        let u = narrow_product(s, dy, Columns::matrix(Stored::Wide(up), 0, r), num_out, r)?; // s dY B: (m, r)
        let z = || narrow_product(s, x, Columns::weight(Stored::Wide(down), 0, num_in), num_in, r); // s x A^T: (m, r)
        let d_down = down_needs_it.then(|| summed_over_rows(&u, r, x, num_in)); // u^T x: (r, in)
        let d_up = |z: &[T]| transposed(&summed_over_rows(z, r, dy, num_out), num_out); // s dY^T (x A^T): (out, r)
        let d_up = self.low_rank.with(z, d_up)?;
        let dx = if x_needs_it { Some(self.frozen.backward(dy, Some((&u, down)))?) } else { None };
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
        let (dtype, shape) = (candle_core::backend::BackendStorage::dtype(x), self.frozen.out_shape(x_layout));
        if let Some(y) = self.given.take(shape.elem_count())? {
            return Ok((y, shape));
        }
        let y = with_compute_type!(dtype, T => {
            let (down, up) = (numbers::<T>(down, down_layout)?, numbers::<T>(up, up_layout)?);
            let x = numbers::<T>(x, x_layout)?;
            to_storage(timed(self.name(), Pass::Forward, || self.forward(&x, &down, &up))?, dtype)?
        });
        Ok((y, shape))
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
                    with_numbers(dy, |dy: &[T]| {
                        timed(self.name(), Pass::Backward, || self.backward(xs, a, b, dy, (x.track_op(), down.track_op())))
                    })
                }))
            })?;
            Ok((
                dx.map(|dx| to_tensor(dx, x.shape(), x.dtype())).transpose()?,
                d_down.map(|d_down| to_tensor(d_down, down.shape(), down.dtype())).transpose()?,
                Some(to_tensor(d_up, up.shape(), up.dtype())?),
            ))
        })
    }
}

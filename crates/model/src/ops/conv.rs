//! Convolution of channels-last maps with a frozen kernel, alone and with a low-rank term.
//!
//! As products over patches (im2col), in tiles of bounded memory: Y = col W^T, and backward dcol = dY W, added back to
//! the map. The LoRA term is the linear one over patches: s (col A^T) B^T, with A a kernel of r channels and B a 1x1
//! convolution. The kernel is used as it lies for both directions, so nothing about it is kept twice.

use super::gemm::{Cores, Matrix, gemm, rows_per_task};
use super::generic;
use super::im2col::Patches;
use super::linear::{LoraGradients, linear, lora_linear, rows_of};
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Stride and padding of a convolution, the same for both axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Step between output pixels, at least 1.
    pub stride: usize,
    /// Zeros before the first row and column.
    pub pad_before: usize,
    /// Zeros after the last row and column.
    pub pad_after: usize,
}

impl ConvGeometry {
    /// A convolution that keeps the size: stride 1, padded by half the kernel.
    pub fn same(kernel: usize) -> Self {
        Self { stride: 1, pad_before: kernel / 2, pad_after: kernel / 2 }
    }
}

/// A convolution with a frozen kernel.
///
/// `xs`: (b, h, w, in); `weight`: (out, kh, kw, in) with kh = kw; `bias`: (out). Returns (b, h', w', out).
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
    if let Some(matrix) = as_matrix(weight, geometry)? {
        return linear(xs, &matrix, bias);
    }
    let frozen = Frozen::new(xs, weight, bias, geometry)?;
    if !generic::has_kernel(xs) {
        return generic::conv2d(xs, weight, bias, geometry);
    }
    xs.apply_op1(FrozenConv(frozen))
}

/// A convolution with a frozen kernel and a LoRA term of strength `scale` = alpha / r.
///
/// `down` (A): (r, in, kh, kw), `up` (B): (out, r, 1, 1), the shapes of the file; the rest as in [`conv2d`].
/// Gradients: `xs`, `down`, `up`.
///
/// # Errors
/// If the shapes do not fit.
pub fn lora_conv2d(
    xs: &Tensor,
    down: &Tensor,
    up: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    scale: f64,
) -> Result<Tensor> {
    if let Some(matrix) = as_matrix(weight, geometry)? {
        return lora_linear(xs, down, up, &matrix, bias, scale);
    }
    let frozen = Frozen::new(xs, weight, bias, geometry)?;
    let (rank, kernel) = (down.dim(0)?, frozen.patches.kernel);
    if down.dims() != [rank, frozen.patches.channels, kernel, kernel] || up.elem_count() != rank * frozen.num_out {
        bail!("LoRA factors {:?} and {:?} do not fit a kernel of shape {:?}", down.shape(), up.shape(), weight.shape());
    }
    if !generic::has_kernel(xs) {
        return generic::lora_conv2d(xs, down, up, weight, bias, geometry, scale);
    }
    xs.apply_op3(down, up, LoraConv { frozen, rank, scale })
}

/// A 1x1 convolution of stride 1 is a linear layer: its kernel as (out, in).
fn as_matrix(weight: &Tensor, geometry: ConvGeometry) -> Result<Option<Tensor>> {
    let (num_out, kh, kw, num_in) = weight.dims4()?;
    let pointwise = kh == 1 && kw == 1 && geometry == ConvGeometry::same(1);
    pointwise.then(|| weight.reshape((num_out, num_in))).transpose()
}

struct Frozen {
    weight: Tensor,
    bias: Option<Tensor>,
    batch: usize,
    num_out: usize,
    patches: Patches,
}

/// Numbers in one tile of patches: 16 MB in f32.
const TILE_NUMBERS: usize = 1 << 22;

impl Frozen {
    fn new(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Self> {
        let (batch, height, width, channels) = xs.dims4()?;
        let (num_out, kernel, kw, num_in) = weight.dims4()?;
        let ConvGeometry { stride, pad_before, pad_after } = geometry;
        let padded = |size: usize| size + pad_before + pad_after;
        if kernel != kw || num_in != channels || stride == 0 || padded(height.min(width)) < kernel {
            bail!("a convolution of kernel {:?} and {geometry:?} was given {:?}", weight.shape(), xs.shape());
        }
        let out = |size: usize| (padded(size) - kernel) / stride + 1;
        let (out_height, out_width) = (out(height), out(width));
        let patches = Patches { height, width, channels, kernel, stride, pad: pad_before, out_height, out_width };
        Ok(Self { weight: weight.detach(), bias: bias.map(Tensor::detach), batch, num_out, patches })
    }

    fn out_shape(&self) -> Shape {
        (self.batch, self.patches.out_height, self.patches.out_width, self.num_out).into()
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.batch * self.patches.out_height * self.patches.out_width;
        let step = (TILE_NUMBERS / self.patches.patch_len()).max(16);
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// Calls `f` with the kernel as (out, patch).
    fn with_kernel<T: Number, R>(&self, f: impl FnOnce(Matrix<T>) -> Result<R>) -> Result<R> {
        with_numbers(&self.weight, |w| f(Matrix::new(w, self.num_out, self.patches.patch_len())))
    }

    fn input_len(&self) -> usize {
        self.batch * self.patches.height * self.patches.width * self.patches.channels
    }

    fn rows_of_tile<'a, T>(&self, y: &'a [T], tile: &Range<usize>) -> &'a [T] {
        &y[tile.start * self.num_out..tile.end * self.num_out]
    }
}

struct FrozenConv(Frozen);

impl FrozenConv {
    fn forward<T: Number>(&self, x: &[T]) -> Result<Vec<T>> {
        let Self(frozen) = self;
        let rows = frozen.out_shape().elem_count() / frozen.num_out;
        let mut y = rows_of::<T>(frozen.bias.as_ref(), rows, frozen.num_out)?;
        frozen.with_kernel(|w| {
            let (n, len) = (frozen.num_out, frozen.patches.patch_len());
            if let Some(rows) = rows_per_task(rows, n, len) {
                // A task's patches are still in its core's cache when they are multiplied.
                y.par_chunks_mut(rows * n).enumerate().for_each(|(i, y)| {
                    let tile = i * rows..i * rows + y.len() / n;
                    let col = frozen.patches.gather_here(x, tile.clone());
                    gemm(y, frozen.bias.is_some(), T::ONE, Matrix::new(&col, tile.len(), len), w.t(), Cores::This);
                });
                return Ok(y);
            }
            for tile in frozen.tiles() {
                let col = frozen.patches.gather(x, tile.clone());
                let col = Matrix::new(&col, tile.len(), frozen.patches.patch_len());
                let y = &mut y[tile.start * frozen.num_out..tile.end * frozen.num_out];
                gemm(y, frozen.bias.is_some(), T::ONE, col, w.t(), Cores::All);
            }
            Ok(y)
        })
    }

    fn backward<T: Number>(&self, dy: &[T]) -> Result<Vec<T>> {
        let Self(frozen) = self;
        let mut dx = vec![T::default(); frozen.input_len()];
        frozen.with_kernel(|w| {
            for tile in frozen.tiles() {
                let dy = Matrix::new(frozen.rows_of_tile(dy, &tile), tile.len(), frozen.num_out);
                let mut d_col = vec![T::default(); tile.len() * frozen.patches.patch_len()];
                gemm(&mut d_col, false, T::ONE, dy, w, Cores::All);
                frozen.patches.scatter_add(&d_col, tile, &mut dx);
            }
            Ok(dx)
        })
    }
}

impl CustomOp1 for FrozenConv {
    fn name(&self) -> &'static str {
        "frozen-conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(x);
        let y = with_compute_type!(dtype, T => to_storage(self.forward::<T>(&numbers(x, layout)?)?, dtype)?);
        Ok((y, self.0.out_shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        with_compute_type!(x.dtype(), T => {
            let dx = with_numbers(dy, |dy: &[T]| self.backward(dy))?;
            to_tensor(dx, x.shape(), x.dtype()).map(Some)
        })
    }
}

struct LoraConv {
    frozen: Frozen,
    rank: usize,
    scale: f64,
}

/// (r, in, kh, kw) -> (r, kh kw in), the order of a patch; `inverse` goes back.
fn reorder<T: Number>(down: &[T], patches: &Patches, inverse: bool) -> Vec<T> {
    let (taps, channels) = (patches.kernel * patches.kernel, patches.channels);
    let mut out = vec![T::default(); down.len()];
    for (out, down) in out.chunks_exact_mut(taps * channels).zip(down.chunks_exact(taps * channels)) {
        for c in 0..channels {
            for tap in 0..taps {
                let (file, patch) = (c * taps + tap, tap * channels + c);
                if inverse { out[file] = down[patch] } else { out[patch] = down[file] }
            }
        }
    }
    out
}

impl LoraConv {
    fn forward<T: Number>(&self, x: &[T], down: &[T], up: &[T]) -> Result<Vec<T>> {
        let Frozen { num_out, patches, .. } = &self.frozen;
        let (n, r, len) = (*num_out, self.rank, patches.patch_len());
        let down = reorder(down, patches, false);
        let mut y = rows_of::<T>(self.frozen.bias.as_ref(), self.frozen.out_shape().elem_count() / n, n)?;
        self.frozen.with_kernel(|w| {
            for tile in self.frozen.tiles() {
                let rows = tile.len();
                let col = patches.gather(x, tile.clone());
                let col = Matrix::new(&col, rows, len);
                let y = &mut y[tile.start * n..tile.end * n];
                gemm(y, self.frozen.bias.is_some(), T::ONE, col, w.t(), Cores::All);
                let mut z = vec![T::default(); rows * r];
                gemm(&mut z, false, T::ONE, col, Matrix::new(&down, r, len).t(), Cores::All);
                let (z, up) = (Matrix::new(&z, rows, r), Matrix::new(up, n, r));
                gemm(y, true, T::real(self.scale), z, up.t(), Cores::All);
            }
            Ok(y)
        })
    }

    fn backward<T: Number>(
        &self,
        x: &[T],
        down: &[T],
        up: &[T],
        dy: &[T],
        x_needs_it: bool,
    ) -> Result<LoraGradients<T>> {
        let Frozen { num_out, patches, .. } = &self.frozen;
        let (n, r, len, s) = (*num_out, self.rank, patches.patch_len(), T::real(self.scale));
        let down = reorder(down, patches, false);
        let (down, up) = (Matrix::new(&down, r, len), Matrix::new(up, n, r));
        let (mut d_down, mut d_up) = (vec![T::default(); r * len], vec![T::default(); n * r]);
        let mut dx = vec![T::default(); if x_needs_it { self.frozen.input_len() } else { 0 }];
        self.frozen.with_kernel(|w| {
            for tile in self.frozen.tiles() {
                let rows = tile.len();
                let dy = Matrix::new(self.frozen.rows_of_tile(dy, &tile), rows, n);
                let mut u = vec![T::default(); rows * r];
                gemm(&mut u, false, s, dy, up, Cores::All); // s dY B: (rows, r)
                let u = Matrix::new(&u, rows, r);
                let col = patches.gather(x, tile.clone());
                let col = Matrix::new(&col, rows, len);
                let mut z = vec![T::default(); rows * r];
                gemm(&mut z, false, T::ONE, col, down.t(), Cores::All); // col A^T: (rows, r)
                gemm(&mut d_down, true, T::ONE, u.t(), col, Cores::All);
                gemm(&mut d_up, true, s, dy.t(), Matrix::new(&z, rows, r), Cores::All);
                if x_needs_it {
                    let mut d_col = vec![T::default(); rows * len];
                    gemm(&mut d_col, false, T::ONE, dy, w, Cores::All);
                    gemm(&mut d_col, true, T::ONE, u, down, Cores::All);
                    patches.scatter_add(&d_col, tile, &mut dx);
                }
            }
            Ok(())
        })?;
        Ok((x_needs_it.then_some(dx), reorder(&d_down, patches, true), d_up))
    }
}

impl CustomOp3 for LoraConv {
    fn name(&self) -> &'static str {
        "lora-conv2d"
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
        Ok((y, self.frozen.out_shape()))
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

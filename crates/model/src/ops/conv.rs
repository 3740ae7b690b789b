//! Convolution of channels-last maps with a frozen kernel, alone and with a low-rank term.
//!
//! One product for each tap of the kernel, of the pixels that the tap reads with its slice of the kernel; backward, of the
//! pixels that read one with the same slice the other way round. The LoRA term is s B (A * x), with A a kernel of r
//! channels and B a 1x1 convolution. The kernel is used as it lies for both directions, so nothing of it is kept twice.

use super::generic;
use super::kept::{Given, kept};
use super::linear::{
    LoraGradients, LowRank, linear, lora_linear, narrow_product, summed_over_rows, transposed, with_bias,
};
use super::lora_scale::LoraScale;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers, with_stored};
use super::product::{Columns, Cores, Initial, Out, PADDING, Precision, Rows, Stored, Term, product};
use super::taps::Taps;
use super::timing::{Pass, timed};
use super::winograd::{self, Maps, Square, best_square};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

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

    /// Pixels of the output along an axis of so many in the input, for a kernel that fits it.
    pub(crate) fn output(self, size: usize, kernel: usize) -> usize {
        (size + self.pad_before + self.pad_after).saturating_sub(kernel) / self.stride.max(1) + 1
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
    kept(frozen.multiplications(), |given, _| xs.apply_op1(FrozenConv { frozen, given }))
}

/// A convolution with a frozen kernel and a LoRA term of strength `scale`: alpha / r, or that and a mask (b, h', w', r).
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
    scale: impl Into<LoraScale>,
) -> Result<Tensor> {
    if let Some(matrix) = as_matrix(weight, geometry)? {
        return lora_linear(xs, down, up, &matrix, bias, scale);
    }
    let frozen = Frozen::new(xs, weight, bias, geometry)?;
    let (rank, kernel) = (down.dim(0)?, frozen.taps.kernel);
    let scale = scale.into();
    if down.dims() != [rank, frozen.taps.channels, kernel, kernel] || up.elem_count() != rank * frozen.num_out {
        bail!("LoRA factors {:?} and {:?} do not fit a kernel of shape {:?}", down.shape(), up.shape(), weight.shape());
    }
    scale.check(frozen.taps.output_pixels(), rank)?;
    if !generic::has_kernel(xs) {
        return generic::lora_conv2d(xs, down, up, weight, bias, geometry, scale);
    }
    kept(frozen.multiplications(), |given, left| {
        xs.apply_op3(down, up, LoraConv { frozen, rank, scale, given, low_rank: LowRank(left) })
    })
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
    num_out: usize,
    taps: Taps,
    precision: Precision,
}

impl Frozen {
    fn new(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Self> {
        let (batch, height, width, channels) = xs.dims4()?;
        let (num_out, kernel, kw, num_in) = weight.dims4()?;
        let ConvGeometry { stride, pad_before, pad_after } = geometry;
        let padded = |size: usize| size + pad_before + pad_after;
        if kernel != kw || num_in != channels || stride == 0 || padded(height.min(width)) < kernel {
            bail!("a convolution of kernel {:?} and {geometry:?} was given {:?}", weight.shape(), xs.shape());
        }
        let (out_height, out_width) = (geometry.output(height, kernel), geometry.output(width, kernel));
        let taps = Taps { batch, height, width, channels, kernel, stride, pad: pad_before, out_height, out_width };
        if xs.elem_count().max(taps.output_pixels() * num_out) >= PADDING as usize {
            bail!("a convolution of {:?} is larger than its tables can say", xs.shape());
        }
        Ok(Self {
            weight: weight.detach(),
            bias: bias.map(Tensor::detach),
            num_out,
            taps,
            precision: Precision::of_this_thread(),
        })
    }

    /// Multiplications per number of the result.
    fn multiplications(&self) -> usize {
        self.taps.count() * self.taps.channels
    }

    fn out_shape(&self) -> Shape {
        (self.taps.batch, self.taps.out_height, self.taps.out_width, self.num_out).into()
    }

    /// The convolution of `x` + bias + the low-rank addition `z` (pixels, r) times `up` (out, r): (pixels, out).
    fn forward<T: Number>(&self, x: &[T], addition: Option<(&[T], &[T])>) -> Result<Vec<T>> {
        let (n, c) = (self.num_out, self.taps.channels);
        let mut y = vec![T::default(); self.taps.output_pixels() * n];
        let addition = addition.map(|(z, up)| {
            let r = up.len() / n;
            Term::new(Rows::strided(z, r), Columns::weight(Stored::Wide(up), 0, r), r)
        });
        with_stored(&self.weight, |kernel| {
            with_bias(self.bias.as_ref(), |initial| {
                if let Some((maps, square)) = self.square(c, n) {
                    let tap = |tap| Columns::weight(kernel, tap * c, 9 * c);
                    winograd::convolve(&mut y, x, maps, (c, n), square, initial, tap);
                    if let Some(addition) = addition {
                        product(Out::new(&mut y, n), Initial::Out, &[addition], Cores::All);
                    }
                    return Ok(());
                }
                let tables = self.tables();
                let mut terms = taps_of(x, &tables, kernel, c, self.precision);
                terms.extend(addition);
                product(Out::new(&mut y, n), initial, &terms, Cores::All);
                Ok(())
            })
        })?;
        Ok(y)
    }

    /// How to make it with fewer multiplications, where that is worth it.
    fn square(&self, num_in: usize, num_out: usize) -> Option<(Maps, Square)> {
        let Taps { batch, height, width, kernel, stride, pad, out_height, out_width, .. } = self.taps;
        let maps = Maps { batch, height, width };
        let is_same = kernel == 3 && stride == 1 && pad == 1 && (height, width) == (out_height, out_width);
        is_same.then(|| best_square(maps, num_in, num_out, self.precision)).flatten().map(|square| (maps, square))
    }

    /// For each tap, where its pixels start.
    fn tables(&self) -> Vec<Vec<u32>> {
        (0..self.taps.count()).map(|tap| self.taps.read_by(tap)).collect()
    }

    /// The gradient of the map from `dy` (pixels, out), and from the low-rank addition `u` (pixels, r) with the kernel
    /// `down` (r, kh kw in).
    fn backward<T: Number>(&self, dy: &[T], addition: Option<(&[T], &[T])>) -> Result<Vec<T>> {
        let (n, c, taps) = (self.num_out, self.taps.channels, self.taps.count());
        let inputs = self.taps.inputs_by_taps();
        let starts = self.taps.starts(&inputs);
        let readers =
            |width: usize| -> Vec<Vec<u32>> { (0..taps).map(|tap| self.taps.readers(&inputs, tap, width)).collect() };
        let mut dx = vec![T::default(); self.taps.input_pixels() * c];
        with_stored(&self.weight, |kernel| {
            if let Some((maps, square)) = self.square(n, c) {
                let tap = |tap| Columns::matrix(kernel, (8 - tap) * c, 9 * c);
                winograd::convolve(&mut dx, dy, maps, (n, c), square, Initial::Zero, tap);
            } else {
                let tables = readers(n);
                let terms = taps_back(dy, &tables, kernel, c, self.precision);
                product(Out::permuted(&mut dx, &starts, c), Initial::Zero, &terms, Cores::All);
            }
            Ok(())
        })?;
        if let Some((u, down)) = addition {
            let tables = readers(down.len() / (taps * c));
            let terms = taps_back(u, &tables, Stored::Wide(down), c, Precision::Full);
            product(Out::permuted(&mut dx, &starts, c), Initial::Out, &terms, Cores::All);
        }
        Ok(dx)
    }
}

/// The terms of a convolution of `x` with a kernel (n, kh kw c): (k = c).
fn taps_of<'a, T: Number>(
    x: &'a [T],
    tables: &'a [Vec<u32>],
    kernel: Stored<'a, T>,
    c: usize,
    precision: Precision,
) -> Vec<Term<'a, T>> {
    by_tap(x, tables, c, precision, |tap| Columns::weight(kernel, tap * c, tables.len() * c))
}

/// The terms of the gradient of a map of `c` channels, from `dy` and a kernel (n, kh kw c): (k = n).
fn taps_back<'a, T: Number>(
    dy: &'a [T],
    tables: &'a [Vec<u32>],
    kernel: Stored<'a, T>,
    c: usize,
    precision: Precision,
) -> Vec<Term<'a, T>> {
    let stride = tables.len() * c;
    by_tap(dy, tables, kernel.len() / stride, precision, |tap| Columns::matrix(kernel, tap * c, stride))
}

/// A term for each tap: the rows that its table finds in `x`, times its columns.
fn by_tap<'a, T: Number>(
    x: &'a [T],
    tables: &'a [Vec<u32>],
    k: usize,
    precision: Precision,
    columns: impl Fn(usize) -> Columns<'a, T>,
) -> Vec<Term<'a, T>> {
    let term =
        |(tap, table): (usize, &'a Vec<u32>)| Term::new(Rows::table(x, table), columns(tap), k).rounded(precision);
    tables.iter().enumerate().map(term).collect()
}

struct FrozenConv {
    frozen: Frozen,
    given: Given,
}

impl CustomOp1 for FrozenConv {
    fn name(&self) -> &'static str {
        "frozen-conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (dtype, shape) = (candle_core::backend::BackendStorage::dtype(x), self.frozen.out_shape());
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

struct LoraConv {
    frozen: Frozen,
    rank: usize,
    scale: LoraScale,
    given: Given,
    low_rank: LowRank,
}

/// (r, in, kh, kw) -> (r, kh kw in): the order in which the taps of a kernel are read.
fn by_taps<T: Number>(down: &[T], taps: &Taps) -> Vec<T> {
    let (taps, channels) = (taps.count(), taps.channels);
    let mut ordered = vec![T::default(); down.len()];
    for (ordered, down) in ordered.chunks_exact_mut(taps * channels).zip(down.chunks_exact(taps * channels)) {
        for tap in 0..taps {
            (0..channels).for_each(|c| ordered[tap * channels + c] = down[c * taps + tap]);
        }
    }
    ordered
}

impl LoraConv {
    fn forward<T: Number>(&self, x: &[T], down: &[T], up: &[T]) -> Result<Vec<T>> {
        let down = by_taps(down, &self.frozen.taps);
        let z = self.down(x, &down, &self.frozen.tables())?;
        let y = self.frozen.forward(x, Some((&z, up)))?;
        self.low_rank.keep(z);
        Ok(y)
    }

    /// The scaled convolution of `x` with A, `down` (r, kh kw in): (pixels, r).
    fn down<T: Number>(&self, x: &[T], down: &[T], tables: &[Vec<u32>]) -> Result<Vec<T>> {
        let taps = &self.frozen.taps;
        let mut z = vec![T::default(); taps.output_pixels() * self.rank];
        let terms = taps_of(x, tables, Stored::Wide(down), taps.channels, Precision::Full);
        product(Out::new(&mut z, self.rank), Initial::Zero, &terms, Cores::All);
        self.scale.apply(&mut z)?;
        Ok(z)
    }

    fn backward<T: Number>(
        &self,
        x: &[T],
        down: &[T],
        up: &[T],
        dy: &[T],
        (x_needs_it, down_needs_it): (bool, bool),
    ) -> Result<LoraGradients<T>> {
        let Frozen { num_out, taps, .. } = &self.frozen;
        let (n, r, s) = (*num_out, self.rank, &self.scale);
        let (down, tables) = (by_taps(down, taps), self.frozen.tables());
        let u = narrow_product(s, dy, Columns::matrix(Stored::Wide(up), 0, r), n, r)?; // s dY B: (pixels, r)
        let d_down = || {
            let mut d_down = vec![T::default(); down.len()];
            for (tap, table) in tables.iter().enumerate() {
                let mut of_tap = vec![T::default(); r * taps.channels]; // u^T x of the pixels that the tap reads
                let (rows, columns) = (Rows::transposed(&u, r), Columns::table(x, table));
                let terms = [Term::new(rows, columns, table.len())];
                product(Out::new(&mut of_tap, taps.channels), Initial::Zero, &terms, Cores::All);
                let d_down = d_down.iter_mut().skip(tap).step_by(taps.count());
                d_down.zip(&of_tap).for_each(|(d_down, of_tap)| *d_down = *of_tap);
            }
            d_down
        };
        let d_down = down_needs_it.then(d_down);
        let z = || self.down(x, &down, &tables); // s A * x: (pixels, r)
        let d_up = |z: &[T]| transposed(&summed_over_rows(z, r, dy, n), n); // s dY^T z: (out, r)
        let d_up = self.low_rank.with(z, d_up)?;
        let dx = if x_needs_it { Some(self.frozen.backward(dy, Some((&u, &down)))?) } else { None };
        Ok((dx, d_down, d_up))
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
        let (dtype, shape) = (candle_core::backend::BackendStorage::dtype(x), self.frozen.out_shape());
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

//! 3x3 convolutions of stride 1 with fewer multiplications (Lavin and Gray 2015, arXiv 1509.09308): the map is cut into
//! squares of 2x2 or 4x4 outputs; squares and kernels are transformed, multiplied point by point, and transformed back.
//! Y = A^T [(G g G^T) * (B^T d B)] A, where the product sums over the channels: one matrix product for each of the 16 or 36
//! points, with 4 or 2.25 multiplications for an output and channel instead of 9.
//!
//! The kernel is transformed anew in every pass, panel by panel, in the second cache: kept, it would take 16/9 or 4 times
//! its memory. A number of the result is off by some roundings more than the plain sum's: |error| / |result| in f32 is
//! below 1e-6 with 2x2 and below 1e-5 with 4x4 squares (test below).

mod points;
mod transform;

use super::product::{Columns, Initial, Instructions, Kernel, Panels, Precision, Start, Tile, Writable};
use points::{Four, Points, Two};
use rayon::prelude::*;
use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;
use transform::{CHANNELS, Transform};

/// Outputs along an edge of a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Square {
    Two,
    Four,
}

/// Maps of one size, channels-last.
#[derive(Clone, Copy)]
pub(crate) struct Maps {
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Maps {
    fn squares(self, edge: usize) -> usize {
        self.batch * self.height.div_ceil(edge) * self.width.div_ceil(edge)
    }
}

/// What bringing one tap of a kernel in order costs, in multiplications of sixteen lanes: an estimate from its
/// instructions, which decides only the speed.
const TAP_COST: usize = 3;

/// The way with the least work for each pair of an input and an output channel, if it is not the plain sum; none where
/// channels do not fill registers.
pub(crate) fn best_square(maps: Maps, num_in: usize, num_out: usize, precision: Precision) -> Option<Square> {
    // Squares are always multiplied in full, because their transformation would make more of the rounding.
    let speed = if precision == Precision::Bf16 { 2 } else { 1 };
    let plain = 9 * (maps.batch * maps.height * maps.width / speed + TAP_COST);
    let of = |edge: usize| (edge + 2) * (edge + 2) * (maps.squares(edge) + 2 * TAP_COST);
    let (two, four) = (of(2), of(4));
    if !num_in.is_multiple_of(CHANNELS) || !num_out.is_multiple_of(CHANNELS) || plain <= two.min(four) {
        return None;
    }
    Some(if four < two { Square::Four } else { Square::Two })
}

/// The convolution of `x` (b, h, w, in) padded by one, and the bias that `initial` may be, into `y` (b, h, w, out). `kernel`
/// gives the tap (3 ky + kx) as a matrix of `num_in` x `num_out`.
pub(crate) fn convolve<'a, T: Kernel>(
    y: &mut [T],
    x: &[T],
    maps: Maps,
    (num_in, num_out): (usize, usize),
    square: Square,
    initial: Initial<T>,
    kernel: impl Fn(usize) -> Columns<'a, T>,
) {
    let taps: [Columns<T>; 9] = from_fn(kernel);
    let bias = match initial {
        Initial::Zero => None,
        Initial::Bias(bias) => Some(bias),
        Initial::Out => unreachable!("squares are written, not added"),
    };
    let convolution = Convolution { maps, num_in, num_out, bias, taps: &taps };
    match square {
        Square::Two => convolution.run::<Two, 2, 4>(x, y),
        Square::Four => convolution.run::<Four, 4, 6>(x, y),
    }
}

/// Channels of one block: the transformed kernel of a panel has up to 300 KB in f32.
const BLOCK_K: usize = 64;
/// Squares of one task: their products have up to 300 KB in f32.
const TASK_SQUARES: usize = 64;
/// Numbers of transformed squares that are held at a time: 32 MB in f32.
const HELD_NUMBERS: usize = 1 << 23;

struct Convolution<'a, T> {
    maps: Maps,
    num_in: usize,
    num_out: usize,
    bias: Option<&'a [T]>,
    taps: &'a [Columns<'a, T>; 9],
}

/// What a thread works in: the taps of a block as they are and transformed, and the products.
#[derive(Default)]
struct Scratch<T> {
    taps: [Panels<T>; 9],
    kernel: Vec<T>,
    products: Vec<T>,
}

impl<T: Kernel> Convolution<'_, T> {
    fn run<P: Points<OUT, SPAN>, const OUT: usize, const SPAN: usize>(&self, x: &[T], y: &mut [T]) {
        let instructions = Instructions::of_this_processor();
        let width = T::panel_width(instructions);
        // An odd number of cache lines from one square to the next, so that they fall on different ones.
        let stride = (SPAN * SPAN * self.num_in).next_multiple_of(2 * CHANNELS) + CHANNELS;
        let (all, held) = (self.maps.squares(OUT), (HELD_NUMBERS / stride).max(TASK_SQUARES));
        let y = Writable::new(y);
        for first in (0..all).step_by(held) {
            let squares = first..all.min(first + held);
            let transformed = self.transformed::<P, OUT, SPAN>(x, squares.clone(), stride);
            let panels = self.num_out.div_ceil(width);
            let blocks = squares.len().div_ceil(TASK_SQUARES);
            (0..blocks * panels).into_par_iter().for_each_init(Scratch::default, |scratch, i| {
                let (block, panel) = (i / panels, i % panels * width);
                let part = block * squares.len() / blocks..(block + 1) * squares.len() / blocks;
                let cols = panel..self.num_out.min(panel + width);
                let rows = &transformed[part.start * stride..part.end * stride];
                let products = self.products::<P, OUT, SPAN>(instructions, rows, stride, &cols, scratch);
                let part = squares.start + part.start..squares.start + part.end;
                self.write::<P, OUT, SPAN>(products, part, &cols, &y);
            });
        }
    }

    /// B^T d B of `squares`: for each, `stride` numbers from the one before, (SPAN^2, in).
    fn transformed<P: Points<OUT, SPAN>, const OUT: usize, const SPAN: usize>(
        &self,
        x: &[T],
        squares: Range<usize>,
        stride: usize,
    ) -> Vec<T> {
        let c = self.num_in;
        let mut transformed = vec![T::default(); squares.len() * stride];
        transformed.par_chunks_exact_mut(stride).zip(squares).for_each(|(out, square)| {
            let (b, y, x_at) = self.corner::<OUT>(square);
            let pixel = |i: usize, j: usize| {
                let (y, x_at) = ((y + i).checked_sub(1)?, (x_at + j).checked_sub(1)?);
                let inside = y < self.maps.height && x_at < self.maps.width;
                inside.then(|| x[((b * self.maps.height + y) * self.maps.width + x_at) * c..][..c].as_ptr())
            };
            let mut points = out.chunks_exact_mut(c).map(<[T]>::as_mut_ptr);
            let transform = Transform::<T, P::Input, SPAN, SPAN> {
                from: from_fn(|i| from_fn(|j| pixel(i, j))),
                to: from_fn(|_| from_fn(|_| points.next())),
                channels: c,
                addend: None,
                axis: PhantomData,
            };
            // SAFETY: pixels and points are slices of `c` numbers.
            #[allow(unsafe_code)]
            unsafe {
                transform.run();
            }
        });
        transformed
    }

    /// The products of the transformed squares `rows` with the transformed kernel's columns `cols`: (SPAN^2, squares, width).
    fn products<'s, P: Points<OUT, SPAN>, const OUT: usize, const SPAN: usize>(
        &self,
        instructions: Instructions,
        rows: &[T],
        stride: usize,
        cols: &Range<usize>,
        scratch: &'s mut Scratch<T>,
    ) -> &'s [T] {
        let (width, points) = (T::panel_width(instructions), SPAN * SPAN);
        let squares = rows.len() / stride;
        let Scratch { taps, kernel, products } = scratch;
        products.resize(points * squares * width, T::default());
        kernel.resize(points * BLOCK_K * width, T::default());
        taps.iter_mut().for_each(|panels| panels.make_room(instructions, width, width));
        for first in (0..self.num_in).step_by(BLOCK_K) {
            let block = first..self.num_in.min(first + BLOCK_K);
            for (panels, columns) in taps.iter_mut().zip(self.taps) {
                panels.fill(columns, block.clone(), cols.clone(), Precision::Full);
            }
            let panel_width = taps[0].first_width();
            transform_kernel::<T, P, OUT, SPAN>(taps, kernel, block.len() * panel_width);
            let next = block.end..self.num_in.min(block.end + BLOCK_K);
            for point in 0..points {
                for tap in point * 9 / points..(point + 1) * 9 / points {
                    self.taps[tap].fetch(&next, cols, 0, 1);
                }
                let rows = &rows[point * self.num_in + block.start..];
                let panel = &kernel[point * BLOCK_K * width..][..block.len() * panel_width];
                let out = &mut products[point * squares * width..(point + 1) * squares * width];
                let start = if block.start == 0 { Start::Zero } else { Start::Out };
                multiply(instructions, rows, stride, squares, panel, panel_width, out, width, start);
            }
        }
        products
    }

    /// A^T m A of the products of `squares`, to their pixels in `y`.
    fn write<P: Points<OUT, SPAN>, const OUT: usize, const SPAN: usize>(
        &self,
        products: &[T],
        squares: Range<usize>,
        cols: &Range<usize>,
        y: &Writable<T>,
    ) {
        let width = products.len() / (SPAN * SPAN * squares.len());
        for (at, square) in squares.clone().enumerate() {
            let (b, first_y, first_x) = self.corner::<OUT>(square);
            let point =
                |i: usize, j: usize| products[((i * SPAN + j) * squares.len() + at) * width..][..cols.len()].as_ptr();
            let pixel = |i: usize, j: usize| {
                let (y_at, x_at) = (first_y + i, first_x + j);
                let pixel = (b * self.maps.height + y_at) * self.maps.width + x_at;
                // SAFETY: every pixel belongs to one square, every column to one panel.
                #[allow(unsafe_code)]
                let part = || unsafe { y.part(pixel * self.num_out + cols.start, cols.len()) }.as_mut_ptr();
                (y_at < self.maps.height && x_at < self.maps.width).then(part)
            };
            let transform = Transform::<T, P::Output, SPAN, OUT> {
                from: from_fn(|i| from_fn(|j| Some(point(i, j)))),
                to: from_fn(|i| from_fn(|j| pixel(i, j))),
                channels: cols.len(),
                addend: self.bias.map(|bias| bias[cols.clone()].as_ptr()),
                axis: PhantomData,
            };
            // SAFETY: points, pixels and bias are slices of as many numbers as there are columns.
            #[allow(unsafe_code)]
            unsafe {
                transform.run();
            }
        }
    }

    /// Batch item, row and column of a square's first output.
    fn corner<const OUT: usize>(&self, square: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.maps.height.div_ceil(OUT), self.maps.width.div_ceil(OUT));
        (square / (rows * columns), square / columns % rows * OUT, square % columns * OUT)
    }
}

/// G g G^T of all channels of a block and columns of a panel, which lie in the same order in taps and points.
fn transform_kernel<T: Kernel, P: Points<OUT, SPAN>, const OUT: usize, const SPAN: usize>(
    taps: &[Panels<T>; 9],
    kernel: &mut [T],
    count: usize,
) {
    let of_point = kernel.len() / (SPAN * SPAN);
    let mut points = kernel.chunks_exact_mut(of_point).map(|point| point[..count].as_mut_ptr());
    let transform = Transform::<T, P::Kernel, 3, SPAN> {
        from: from_fn(|i| from_fn(|j| Some(taps[3 * i + j].numbers()[..count].as_ptr()))),
        to: from_fn(|_| from_fn(|_| points.next())),
        channels: count,
        addend: None,
        axis: PhantomData,
    };
    // SAFETY: taps and points are slices of `count` numbers.
    #[allow(unsafe_code)]
    unsafe {
        transform.run();
    }
}

/// out (squares, out_stride) = start + rows (squares, k) panel (k, width).
#[allow(clippy::too_many_arguments)] // three matrices with their sizes
fn multiply<T: Kernel>(
    instructions: Instructions,
    rows: &[T],
    stride: usize,
    squares: usize,
    panel: &[T],
    width: usize,
    out: &mut [T],
    out_stride: usize,
    start: Start<T>,
) {
    let k = panel.len() / width;
    assert!(out.len() == squares * out_stride && width <= out_stride && rows.len() >= (squares - 1) * stride + k);
    let tiles = squares.div_ceil(T::most_rows(instructions));
    for i in 0..tiles {
        let tile = i * squares / tiles..(i + 1) * squares / tiles;
        let mut pointers = [std::ptr::null_mut(); super::product::HIGHEST];
        for (pointer, row) in pointers.iter_mut().zip(tile.clone()) {
            *pointer = out[row * out_stride..].as_mut_ptr();
        }
        let tile = Tile {
            rows: rows[tile.start * stride..].as_ptr(),
            row_stride: stride,
            k,
            panel: panel.as_ptr(),
            panel_width: width,
            cols: width,
            out: &pointers[..tile.len()],
            start,
        };
        // SAFETY: the assertion above: rows have `k` numbers, the panel `k` rows, `out` `width` numbers in each row.
        #[allow(unsafe_code)]
        unsafe {
            T::tile(instructions, &tile);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::Stored;
    use super::*;
    use crate::random::{Draw, Purpose};

    fn draw(seed: u64, count: usize) -> Vec<f32> {
        Draw::new(seed, 0, 0, Purpose::Check).standard_normal(count)
    }

    #[test]
    fn both_squares_are_the_plain_sum_within_their_roundings() {
        for (batch, height, width, num_in, num_out) in [(1, 4, 4, 32, 32), (2, 7, 5, 80, 48), (1, 17, 30, 48, 112)] {
            let maps = Maps { batch, height, width };
            let x = draw(1, batch * height * width * num_in);
            let (kernel, bias) = (draw(2, num_out * 9 * num_in), draw(3, num_out));
            let at = |b: usize, y: usize, x_at: usize| {
                let inside = (1..=height).contains(&y) && (1..=width).contains(&x_at);
                inside.then(|| ((b * height + y - 1) * width + x_at - 1) * num_in)
            };
            let mut expected = Vec::new();
            for (b, y, x_at) in
                (0..batch * height * width).map(|i| (i / (height * width), i / width % height, i % width))
            {
                for n in 0..num_out {
                    let mut sum = bias[n] as f64;
                    for tap in 0..9 {
                        let Some(from) = at(b, y + tap / 3, x_at + tap % 3) else { continue };
                        let taps = &kernel[(n * 9 + tap) * num_in..][..num_in];
                        sum += taps.iter().zip(&x[from..]).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                    }
                    expected.push(sum);
                }
            }
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let size = norm(&mut expected.iter().copied());
            for (square, tolerance) in [(Square::Two, 1e-6), (Square::Four, 1e-5)] {
                let mut y = vec![f32::NAN; expected.len()];
                let tap = |tap| Columns::weight(Stored::Wide(&kernel), tap * num_in, 9 * num_in);
                convolve(&mut y, &x, maps, (num_in, num_out), square, Initial::Bias(&bias), tap);
                let error = norm(&mut y.iter().zip(&expected).map(|(a, b)| *a as f64 - b)) / size;
                assert!(error < tolerance, "{square:?} {maps_:?}: {error}", maps_ = (batch, height, width));
            }
        }
    }

    #[test]
    fn in_f64_the_transformations_are_exact() {
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let (maps, c, n) = (Maps { batch: 1, height: 6, width: 9 }, 48, 16);
        let (x, kernel) = (wide(draw(1, 54 * c)), wide(draw(2, n * 9 * c)));
        let run = |square| {
            let mut y = vec![0f64; 54 * n];
            let tap = |tap| Columns::weight(Stored::Wide(&kernel), tap * c, 9 * c);
            convolve(&mut y, &x, maps, (c, n), square, Initial::Zero, tap);
            y
        };
        let (two, four) = (run(Square::Two), run(Square::Four));
        assert!(two.iter().zip(&four).all(|(a, b)| (a - b).abs() < 1e-11 * (1.0 + a.abs())));
    }

    #[test]
    fn the_square_follows_the_size() {
        let of = |side, channels| {
            best_square(Maps { batch: 1, height: side, width: side }, channels, channels, Precision::Full)
        };
        assert_eq!(of(64, 320), Some(Square::Four));
        assert_eq!(of(16, 640), Some(Square::Four));
        assert_eq!((of(2, 1280), of(64, 4)), (None, None));
    }
}

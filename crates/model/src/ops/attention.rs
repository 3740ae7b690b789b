//! Scaled dot-product attention over all heads: O = softmax(Q K^T / sqrt(d)) V, by tiles of queries and keys.
//!
//! No tokens x tokens matrix is ever kept: forward makes the scores of one tile at a time, drops them and leaves the log
//! sum exp L of each row; backward makes them again (Dao et al. 2022, arXiv 2205.14135). Backward of one tile, with
//! P = exp(s Q K^T - L) and dP = dO V^T: dS = s P * (dP - rowsum(dO * O)); dQ += dS K; dK += dS^T Q; dV += P^T dO. Kept
//! are q, k, v, O and L.

use super::generic;
use super::kept::{Given, Left, kept};
use super::linear::transposed;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::product::{Columns, Cores, Initial, Out, Precision, Rows, Stored, Term, product};
use super::real::{Real, maximum, sum_by, vectorized};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Attention of `num_heads` heads.
///
/// `q`: (b, l, n d); `k`, `v`: (b, keys, n d), heads side by side on the last axis. With `causal`, token i sees keys
/// 0..=i. Returns (b, l, n d). Gradients: q, k, v.
///
/// # Errors
/// If the shapes do not fit each other or the heads do not divide the width.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: usize, causal: bool) -> Result<Tensor> {
    let (b, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    if k.dims() != [b, keys, width] || v.dims() != k.dims() || num_heads == 0 || width % num_heads != 0 {
        bail!("attention of {num_heads} heads over {:?}, {:?}, {:?}", q.shape(), k.shape(), v.shape());
    }
    if causal && queries != keys {
        bail!("causal attention needs as many keys as queries, not {keys} for {queries}");
    }
    if !generic::has_kernel(q) {
        return generic::attention(q, k, v, num_heads, causal);
    }
    let (head_size, precision) = (width / num_heads, Precision::of_this_thread());
    kept(2 * keys, |given, log_sums| {
        let op = Attention { batch: b, queries, keys, num_heads, head_size, causal, precision, given, log_sums };
        q.apply_op3(k, v, op)
    })
}

struct Attention {
    batch: usize,
    queries: usize,
    keys: usize,
    num_heads: usize,
    head_size: usize,
    causal: bool,
    precision: Precision,
    given: Given,
    /// log sum exp of the scores of each query, (b, n, l), f64, which forward leaves for backward.
    log_sums: Left,
}

/// Queries of a tile.
const TILE_QUERIES: usize = 256;
/// Keys of a tile: its scores take 256 KB in f32, which stay in the second cache of one core.
const TILE_KEYS: usize = 256;

/// A batch item and a head.
type Head = (usize, usize);

/// (dQ, dK, dV)
type InputGradients<T> = (Vec<T>, Vec<T>, Vec<T>);

impl Attention {
    fn width(&self) -> usize {
        self.num_heads * self.head_size
    }

    fn scale<T: Number>(&self) -> T {
        T::real(1.0 / (self.head_size as f64).sqrt())
    }

    /// `x` (b, tokens, n d) from row `first` of a head on: rows of d numbers, each the width after the one before.
    fn head<'a, T>(&self, x: &'a [T], tokens: usize, (b, n): Head, first: usize) -> &'a [T] {
        &x[(b * tokens + first) * self.width() + n * self.head_size..]
    }

    /// The scores of `queries` and `keys` of a head, not yet scaled: (queries, keys).
    fn scores<T: Number>(
        &self,
        scores: &mut Vec<T>,
        q: &[T],
        k: &[T],
        head: Head,
        queries: &Range<usize>,
        keys: &Range<usize>,
    ) {
        let (width, d) = (self.width(), self.head_size);
        let q = Rows::strided(self.head(q, self.queries, head, queries.start), width);
        let k = Columns::weight(Stored::Wide(self.head(k, self.keys, head, keys.start)), 0, width);
        scores.resize(queries.len() * keys.len(), T::default());
        self.multiply(scores, keys.len(), Initial::Zero, Term::new(q, k, d));
    }

    /// How many of `keys` the query in `row` sees.
    fn visible(&self, row: usize, keys: &Range<usize>) -> usize {
        if self.causal { (row + 1).clamp(keys.start, keys.end) - keys.start } else { keys.len() }
    }

    /// O (b, l, n d) and the log sum exp of the scores (b, n, l).
    fn forward<T: Number>(&self, q: &[T], k: &[T], v: &[T]) -> (Vec<T>, Vec<f64>) {
        let tiles = self.queries.div_ceil(TILE_QUERIES);
        let pieces: Vec<_> = (0..self.batch * self.num_heads * tiles)
            .into_par_iter()
            .map_init(Vec::new, |scores, i| {
                let queries = i % tiles * TILE_QUERIES..self.queries.min((i % tiles + 1) * TILE_QUERIES);
                self.forward_tile(scores, q, k, v, self.nth_head(i / tiles), &queries)
            })
            .collect();
        let mut o = vec![T::default(); q.len()];
        o.par_chunks_mut(self.queries * self.width()).enumerate().for_each(|(b, o)| {
            for n in 0..self.num_heads {
                for (i, o) in o.chunks_mut(TILE_QUERIES * self.width()).enumerate() {
                    scatter_head(o, &pieces[(b * self.num_heads + n) * tiles + i].0, n, self.head_size, self.width());
                }
            }
        });
        (o, pieces.into_iter().flat_map(|(_, log_sums)| log_sums).collect())
    }

    fn nth_head(&self, i: usize) -> Head {
        (i / self.num_heads, i % self.num_heads)
    }

    /// The same for some queries of one head: (queries, d), (queries). Each tile of keys brings a new largest score, by
    /// which what was summed so far is corrected.
    fn forward_tile<T: Number>(
        &self,
        scores: &mut Vec<T>,
        q: &[T],
        k: &[T],
        v: &[T],
        head: Head,
        queries: &Range<usize>,
    ) -> (Vec<T>, Vec<f64>) {
        let (d, scale) = (self.head_size, self.scale::<T>());
        let mut o = vec![T::default(); queries.len() * d];
        let mut sums = vec![(T::real(f64::NEG_INFINITY), T::default()); queries.len()];
        for keys in tiles(self.keys, TILE_KEYS) {
            if self.visible(queries.end - 1, &keys) == 0 {
                break;
            }
            self.scores(scores, q, k, head, queries, &keys);
            let rows = scores.chunks_exact_mut(keys.len()).zip(o.chunks_exact_mut(d)).zip(&mut sums);
            for (row, ((scores, o), (top, sum))) in rows.enumerate() {
                let visible = self.visible(queries.start + row, &keys);
                vectorized(
                    #[inline(always)]
                    || {
                        let (new_top, new_sum) = exponentials(scores, visible, scale, *top);
                        let correction = Real::exp(*top - new_top);
                        o.iter_mut().for_each(|o| *o *= correction);
                        (*top, *sum) = (new_top, *sum * correction + new_sum);
                    },
                );
            }
            let v = Columns::matrix(Stored::Wide(self.head(v, self.keys, head, keys.start)), 0, self.width());
            let term = Term::new(Rows::strided(scores, keys.len()), v, keys.len());
            self.multiply(&mut o, d, Initial::Out, term);
        }
        for (o, (_, sum)) in o.chunks_exact_mut(d).zip(&sums) {
            o.iter_mut().for_each(|o| *o /= *sum);
        }
        (o, sums.into_iter().map(|(top, sum)| top.as_f64() + sum.as_f64().ln()).collect())
    }

    /// (dQ, dK, dV), each contiguous; one head of one batch item is one task.
    fn backward<T: Number>(&self, q: &[T], k: &[T], v: &[T], o: &[T], d_o: &[T]) -> Result<InputGradients<T>> {
        let (width, d) = (self.width(), self.head_size);
        let log_sums = self.log_sums.get_or_init(|| CpuStorage::F64(self.forward(q, k, v).1));
        let CpuStorage::F64(log_sums) = log_sums else { bail!("sums of attention that are not f64") };
        let heads: Vec<_> = (0..self.batch * self.num_heads)
            .into_par_iter()
            .map(|i| {
                let log_sums = &log_sums[i * self.queries..(i + 1) * self.queries];
                self.backward_head(q, k, v, o, d_o, log_sums, self.nth_head(i))
            })
            .collect();
        let join = |tokens: usize, pick: fn(&HeadGradients<T>) -> &Vec<T>| {
            let mut out = vec![T::default(); self.batch * tokens * width];
            out.par_chunks_mut(tokens * width).enumerate().for_each(|(b, out)| {
                for n in 0..self.num_heads {
                    scatter_head(out, pick(&heads[b * self.num_heads + n]), n, d, width);
                }
            });
            out
        };
        Ok((join(self.queries, |h| &h.dq), join(self.keys, |h| &h.dk), join(self.keys, |h| &h.dv)))
    }

    #[allow(clippy::too_many_arguments)] // the seven operands of the equations
    fn backward_head<T: Number>(
        &self,
        q: &[T],
        k: &[T],
        v: &[T],
        o: &[T],
        d_o: &[T],
        log_sums: &[f64],
        head: Head,
    ) -> HeadGradients<T> {
        let (d, width, scale) = (self.head_size, self.width(), self.scale::<T>());
        let mut dq = vec![T::default(); self.queries * d];
        let (mut dk, mut dv) = (vec![T::default(); self.keys * d], vec![T::default(); self.keys * d]);
        let dots: Vec<T> = (0..self.queries)
            .map(|row| {
                let [o, d_o] = [o, d_o].map(|x| &self.head(x, self.queries, head, row)[..d]);
                sum_by(d, |i| o[i] * d_o[i]) // rowsum(P dP)
            })
            .collect();
        let (mut weights, mut ds) = (Vec::new(), Vec::new());
        for keys in tiles(self.keys, TILE_KEYS) {
            // dK^T and dV^T: the long side of the scores fills whole registers.
            let (mut dk_t, mut dv_t) = (vec![T::default(); d * keys.len()], vec![T::default(); d * keys.len()]);
            let k_tile = self.head(k, self.keys, head, keys.start);
            for queries in tiles(self.queries, TILE_QUERIES) {
                self.scores(&mut weights, q, k, head, &queries, &keys);
                self.scores(&mut ds, d_o, v, head, &queries, &keys); // dP
                let rows = weights.chunks_exact_mut(keys.len()).zip(ds.chunks_exact_mut(keys.len()));
                for (row, (p, ds)) in queries.clone().zip(rows) {
                    let (visible, log_sum, dot) = (self.visible(row, &keys), T::real(log_sums[row]), dots[row]);
                    vectorized(
                        #[inline(always)]
                        || {
                            for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
                                *p = Real::exp(p.times_plus(scale, -log_sum));
                                *ds = *p * (*ds - dot) * scale;
                            }
                        },
                    );
                    p[visible..].fill(T::default());
                    ds[visible..].fill(T::default());
                }
                let columns = |x| Columns::matrix(Stored::Wide(x), 0, keys.len());
                let [q_t, d_o_t] =
                    [q, d_o].map(|x| Rows::transposed(self.head(x, self.queries, head, queries.start), width));
                // dO^T P, Q^T dS, dS K
                self.multiply(&mut dv_t, keys.len(), Initial::Out, Term::new(d_o_t, columns(&weights), queries.len()));
                self.multiply(&mut dk_t, keys.len(), Initial::Out, Term::new(q_t, columns(&ds), queries.len()));
                let k_columns = Columns::matrix(Stored::Wide(k_tile), 0, width);
                let term = Term::new(Rows::strided(&ds, keys.len()), k_columns, keys.len());
                self.multiply(&mut dq[queries.start * d..queries.end * d], d, Initial::Out, term);
            }
            dk[keys.start * d..keys.end * d].copy_from_slice(&transposed(&dk_t, keys.len()));
            dv[keys.start * d..keys.end * d].copy_from_slice(&transposed(&dv_t, keys.len()));
        }
        HeadGradients { dq, dk, dv }
    }

    /// One product into `out` (m, n) on this thread.
    fn multiply<T: Number>(&self, out: &mut [T], n: usize, initial: Initial<T>, term: Term<T>) {
        product(Out::new(out, n), initial, &[term.rounded(self.precision)], Cores::This);
    }
}

/// 0..count in tiles of `length`, but for the last.
fn tiles(count: usize, length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(length).map(move |first| first..count.min(first + length))
}

/// Gradients of one head, each (tokens, d).
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// exp(scale s - top) of the first `visible` scores, where `top` is the largest of scale s and of `top_so_far`; the rest
/// become zero. Returns `top` and the sum.
#[inline(always)]
fn exponentials<T: Number>(scores: &mut [T], visible: usize, scale: T, top_so_far: T) -> (T, T) {
    let (scores, hidden) = scores.split_at_mut(visible);
    hidden.fill(T::default());
    if scores.is_empty() {
        return (top_so_far, T::default());
    }
    let top = top_so_far.largest(maximum(scores) * scale);
    scores.iter_mut().for_each(|s| *s = Real::exp(s.times_plus(scale, -top)));
    (top, sum_by(visible, |i| scores[i]))
}

/// Writes `head` (rows, d) to its place in `out` (rows, n d).
fn scatter_head<T: Copy>(out: &mut [T], head: &[T], n: usize, d: usize, width: usize) {
    for (out, head) in out.chunks_exact_mut(width).zip(head.chunks_exact(d)) {
        out[n * d..(n + 1) * d].copy_from_slice(head);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(q);
        if let Some(o) = self.given.take(q_layout.shape().elem_count())? {
            return Ok((o, q_layout.shape().clone()));
        }
        let o = with_compute_type!(dtype, T => {
            let (k, v) = (numbers::<T>(k, k_layout)?, numbers::<T>(v, v_layout)?);
            let q = numbers::<T>(q, q_layout)?;
            let (o, log_sums) = timed(self.name(), Pass::Forward, || self.forward(&q, &k, &v));
            self.log_sums.get_or_init(|| CpuStorage::F64(log_sums));
            to_storage(o, dtype)?
        });
        Ok((o, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        d_o: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_compute_type!(q.dtype(), T => {
            let (dq, dk, dv) = with_numbers(q, |q: &[T]| with_numbers(k, |k: &[T]| with_numbers(v, |v: &[T]| {
                with_numbers(o, |o: &[T]| with_numbers(d_o, |d_o: &[T]| {
                    timed(self.name(), Pass::Backward, || self.backward(q, k, v, o, d_o))
                }))
            })))?;
            let gradient = |x: &Tensor, dx| -> Result<Option<Tensor>> {
                if x.track_op() { to_tensor(dx, x.shape(), x.dtype()).map(Some) } else { Ok(None) }
            };
            Ok((gradient(q, dq)?, gradient(k, dk)?, gradient(v, dv)?))
        })
    }
}

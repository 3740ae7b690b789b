//! Scaled dot-product attention over all heads: O = softmax(Q K^T / sqrt(d)) V, by tiles of query rows.
//!
//! No tokens x tokens matrix is ever kept: forward makes the scores of one tile at a time, drops them and leaves the log
//! sum exp L of each row; backward makes them again (Dao et al. 2022, arXiv 2205.14135, without the online softmax: a tile
//! holds whole rows, so its memory is linear in the number of keys). Backward of one tile, with P = exp(s Q K^T - L) and
//! dP = dO V^T: dS = s P * (dP - rowsum(dO * O)); dQ = dS K; dK += dS^T Q; dV += P^T dO. Kept are q, k, v, O and L.

use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::product::{Columns, Cores, Initial, Out, Rows, Stored, Term, product};
use super::real::{Real, maximum, sum_by, vectorized};
use super::timing::{Pass, timed};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

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
    q.apply_op3(
        k,
        v,
        Attention {
            batch: b,
            queries,
            keys,
            num_heads,
            head_size: width / num_heads,
            causal,
            log_sums: OnceLock::new(),
        },
    )
}

struct Attention {
    batch: usize,
    queries: usize,
    keys: usize,
    num_heads: usize,
    head_size: usize,
    causal: bool,
    /// log sum exp of the scores of each query, (b, n, l), which forward leaves for backward.
    log_sums: OnceLock<Vec<f64>>,
}

/// Scores per tile: 512 KB in f32, which stays in the second cache of one core.
const TILE_SCORES: usize = 1 << 17;

/// A batch item and a head.
type Head = (usize, usize);

impl Attention {
    fn width(&self) -> usize {
        self.num_heads * self.head_size
    }

    fn tile_rows(&self) -> usize {
        (TILE_SCORES / self.keys).clamp(32, 192)
    }

    fn scale<T: Number>(&self) -> T {
        T::real(1.0 / (self.head_size as f64).sqrt())
    }

    /// `x` (b, tokens, n d) from row `first` of a head on: rows of d numbers, each the width after the one before.
    fn head<'a, T>(&self, x: &'a [T], tokens: usize, (b, n): Head, first: usize) -> &'a [T] {
        &x[(b * tokens + first) * self.width() + n * self.head_size..]
    }

    /// The scores of query rows `first..first + rows`, not yet scaled: (rows, keys).
    fn scores<T: Number>(&self, q: &[T], k: &[T], head: Head, first: usize, rows: usize) -> Vec<T> {
        let (width, d) = (self.width(), self.head_size);
        let q = Rows::strided(self.head(q, self.queries, head, first), width);
        let k = Columns::weight(Stored::Wide(self.head(k, self.keys, head, 0)), 0, width);
        multiplied(rows, self.keys, Term { rows: q, columns: k, k: d })
    }

    /// How many keys the query in `row` sees.
    fn visible(&self, row: usize) -> usize {
        if self.causal { row + 1 } else { self.keys }
    }

    /// O (b, l, n d) and the log sum exp of the scores (b, n, l).
    fn forward<T: Number>(&self, q: &[T], k: &[T], v: &[T]) -> (Vec<T>, Vec<f64>) {
        let (tile, tiles) = (self.tile_rows(), self.queries.div_ceil(self.tile_rows()));
        let pieces: Vec<_> = (0..self.batch * self.num_heads * tiles)
            .into_par_iter()
            .map(|i| {
                let (head, first) = (self.nth_head(i / tiles), i % tiles * tile);
                self.forward_tile(q, k, v, head, first, tile.min(self.queries - first))
            })
            .collect();
        let mut o = vec![T::default(); q.len()];
        o.par_chunks_mut(self.queries * self.width()).enumerate().for_each(|(b, o)| {
            for n in 0..self.num_heads {
                for (i, o) in o.chunks_mut(tile * self.width()).enumerate() {
                    scatter_head(o, &pieces[(b * self.num_heads + n) * tiles + i].0, n, self.head_size, self.width());
                }
            }
        });
        (o, pieces.into_iter().flat_map(|(_, log_sums)| log_sums).collect())
    }

    fn nth_head(&self, i: usize) -> Head {
        (i / self.num_heads, i % self.num_heads)
    }

    /// The same for query rows `first..first + rows` of one head: (rows, d), (rows).
    fn forward_tile<T: Number>(
        &self,
        q: &[T],
        k: &[T],
        v: &[T],
        head: Head,
        first: usize,
        rows: usize,
    ) -> (Vec<T>, Vec<f64>) {
        let (d, keys, scale) = (self.head_size, self.keys, self.scale::<T>());
        let mut weights = self.scores(q, k, head, first, rows);
        let sums: Vec<(T, T)> = weights
            .chunks_exact_mut(keys)
            .enumerate()
            .map(|(row, scores)| {
                let visible = self.visible(first + row);
                vectorized(
                    #[inline(always)]
                    || exponentials(scores, visible, scale),
                )
            })
            .collect();
        let v = Columns::matrix(Stored::Wide(self.head(v, keys, head, 0)), 0, self.width());
        let mut o = multiplied(rows, d, Term { rows: Rows::strided(&weights, keys), columns: v, k: keys });
        for (o, (_, sum)) in o.chunks_exact_mut(d).zip(&sums) {
            o.iter_mut().for_each(|o| *o = *o / *sum);
        }
        (o, sums.into_iter().map(|(top, sum)| top.as_f64() + sum.as_f64().ln()).collect())
    }

    /// (dQ, dK, dV), each contiguous; one head of one batch item is one task.
    fn backward<T: Number>(&self, q: &[T], k: &[T], v: &[T], o: &[T], d_o: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let (width, d) = (self.width(), self.head_size);
        let made;
        let log_sums = match self.log_sums.get() {
            Some(log_sums) => log_sums,
            None => {
                made = self.forward(q, k, v).1;
                &made
            }
        };
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
        (join(self.queries, |h| &h.dq), join(self.keys, |h| &h.dk), join(self.keys, |h| &h.dv))
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
        let (d, keys, width, scale) = (self.head_size, self.keys, self.width(), self.scale::<T>());
        let mut dq = vec![T::default(); self.queries * d];
        let (mut dk, mut dv) = (vec![T::default(); keys * d], vec![T::default(); keys * d]);
        let (k_head, v_head) = (self.head(k, keys, head, 0), self.head(v, keys, head, 0));
        for (i, dq) in dq.chunks_mut(self.tile_rows() * d).enumerate() {
            let (first, rows) = (i * self.tile_rows(), dq.len() / d);
            let mut weights = self.scores(q, k, head, first, rows);
            let [q, o, d_o] = [q, o, d_o].map(|x| self.head(x, self.queries, head, first));
            let v_columns = Columns::weight(Stored::Wide(v_head), 0, width);
            let mut ds = multiplied(rows, keys, Term { rows: Rows::strided(d_o, width), columns: v_columns, k: d }); // dP
            for (row, (p, ds)) in weights.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
                let (o, d_o) = (&o[row * width..row * width + d], &d_o[row * width..row * width + d]);
                let (visible, log_sum) = (self.visible(first + row), T::real(log_sums[first + row]));
                vectorized(
                    #[inline(always)]
                    || {
                        let dot = sum_by(d, |i| o[i] * d_o[i]); // rowsum(P dP)
                        for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
                            *p = Real::exp(*p * scale - log_sum);
                            *ds = *p * (*ds - dot) * scale;
                        }
                    },
                );
                p[visible..].fill(T::default());
                ds[visible..].fill(T::default());
            }
            let rows_of = |x| Columns::matrix(Stored::Wide(x), 0, width);
            let transposed = |x| Rows::transposed(x, keys);
            add(&mut dv, d, Term { rows: transposed(&weights), columns: rows_of(d_o), k: rows }); // P^T dO
            add(&mut dk, d, Term { rows: transposed(&ds), columns: rows_of(q), k: rows }); // dS^T Q
            add(dq, d, Term { rows: Rows::strided(&ds, keys), columns: rows_of(k_head), k: keys }); // dS K
        }
        HeadGradients { dq, dk, dv }
    }
}

/// One product on this thread: (m, n).
fn multiplied<T: Number>(m: usize, n: usize, term: Term<T>) -> Vec<T> {
    let mut out = vec![T::default(); m * n];
    product(Out::new(&mut out, n), Initial::Zero, &[term], Cores::This);
    out
}

/// Adds a product to `out` (m, n) on this thread.
fn add<T: Number>(out: &mut [T], n: usize, term: Term<T>) {
    product(Out::new(out, n), Initial::Out, &[term], Cores::This);
}

/// Gradients of one head, each (tokens, d).
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// exp(scale s - top) of the first `visible` scores, where `top` is the largest of scale s; the rest become zero. Returns
/// `top` and the sum.
#[inline(always)]
fn exponentials<T: Number>(scores: &mut [T], visible: usize, scale: T) -> (T, T) {
    let (scores, hidden) = scores.split_at_mut(visible);
    let top = maximum(scores) * scale;
    scores.iter_mut().for_each(|s| *s = Real::exp(*s * scale - top));
    hidden.fill(T::default());
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
        let o = with_compute_type!(dtype, T => {
            let (k, v) = (numbers::<T>(k, k_layout)?, numbers::<T>(v, v_layout)?);
            let q = numbers::<T>(q, q_layout)?;
            let (o, log_sums) = timed(self.name(), Pass::Forward, || self.forward(&q, &k, &v));
            self.log_sums.get_or_init(|| log_sums);
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
                    Ok(timed(self.name(), Pass::Backward, || self.backward(q, k, v, o, d_o)))
                }))
            })))?;
            let gradient = |x: &Tensor, dx| -> Result<Option<Tensor>> {
                if x.track_op() { to_tensor(dx, x.shape(), x.dtype()).map(Some) } else { Ok(None) }
            };
            Ok((gradient(q, dq)?, gradient(k, dk)?, gradient(v, dv)?))
        })
    }
}

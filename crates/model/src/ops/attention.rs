//! Scaled dot-product attention over all heads: O = softmax(Q K^T / sqrt(d)) V, by tiles of query rows.
//!
//! No tokens x tokens matrix is ever kept: forward makes the scores of one tile at a time and drops them; backward
//! makes them again (Dao et al. 2022, arXiv 2205.14135, without the online softmax: a tile holds whole rows, so its
//! memory is linear in the number of keys). Backward of one tile, with P the weights and dP = dO V^T:
//! dS = P * (dP - rowsum(P * dP)); dQ = s dS K; dK += s dS^T Q; dV += P^T dO. Only q, k, v are kept.

use super::gemm::{Cores, Matrix, gemm};
use super::generic;
use super::numbers::{Number, numbers, to_storage, to_tensor, with_compute_type, with_numbers};
use super::real::{maximum, sum_by, vectorized};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

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
    q.apply_op3(k, v, Attention { batch: b, queries, keys, num_heads, head_size: width / num_heads, causal })
}

struct Attention {
    batch: usize,
    queries: usize,
    keys: usize,
    num_heads: usize,
    head_size: usize,
    causal: bool,
}

/// Scores per tile: 256 KB in f32, which stays in the cache of one core.
const TILE_SCORES: usize = 1 << 16;

impl Attention {
    fn width(&self) -> usize {
        self.num_heads * self.head_size
    }

    fn tile_rows(&self) -> usize {
        (TILE_SCORES / self.keys).clamp(8, 256)
    }

    fn scale<T: Number>(&self) -> T {
        T::real(1.0 / (self.head_size as f64).sqrt())
    }

    /// Head `n` of batch item `b` in `x` (b, tokens, n d), from row `first` on: (rows, d).
    fn head<'a, T>(
        &self,
        x: &'a [T],
        tokens: usize,
        (b, n): (usize, usize),
        first: usize,
        rows: usize,
    ) -> Matrix<'a, T> {
        let start = (b * tokens + first) * self.width() + n * self.head_size;
        Matrix::strided(&x[start..], rows, self.head_size, self.width())
    }

    /// The attention weights of query rows `first..first + rows`: (rows, keys).
    fn weights<T: Number>(&self, q: &[T], k: &[T], at: (usize, usize), first: usize, rows: usize) -> Vec<T> {
        let mut scores = vec![T::default(); rows * self.keys];
        let (q, k) = (self.head(q, self.queries, at, first, rows), self.head(k, self.keys, at, 0, self.keys));
        gemm(&mut scores, false, self.scale(), q, k.t(), Cores::This);
        for (row, scores) in scores.chunks_exact_mut(self.keys).enumerate() {
            let visible = if self.causal { first + row + 1 } else { self.keys };
            vectorized(
                #[inline(always)]
                || softmax(scores, visible),
            );
        }
        scores
    }

    fn forward<T: Number>(&self, q: &[T], k: &[T], v: &[T]) -> Vec<T> {
        let (width, d, tile) = (self.width(), self.head_size, self.tile_rows());
        let mut o = vec![T::default(); q.len()];
        for b in 0..self.batch {
            let o = &mut o[b * self.queries * width..(b + 1) * self.queries * width];
            o.par_chunks_mut(tile * width).enumerate().for_each(|(i, o)| {
                let rows = o.len() / width;
                (0..self.num_heads)
                    .into_par_iter()
                    .map(|n| {
                        let weights = self.weights(q, k, (b, n), i * tile, rows);
                        let mut head = vec![T::default(); rows * d];
                        let v = self.head(v, self.keys, (b, n), 0, self.keys);
                        gemm(&mut head, false, T::ONE, Matrix::new(&weights, rows, self.keys), v, Cores::This);
                        head
                    })
                    .collect::<Vec<_>>()
                    .iter()
                    .enumerate()
                    .for_each(|(n, head)| scatter_head(o, head, n, d, width));
            });
        }
        o
    }

    /// (dQ, dK, dV), each contiguous; one head of one batch item is one task.
    fn backward<T: Number>(&self, q: &[T], k: &[T], v: &[T], d_o: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let (width, d) = (self.width(), self.head_size);
        let heads: Vec<_> = (0..self.batch * self.num_heads)
            .into_par_iter()
            .map(|i| self.backward_head(q, k, v, d_o, (i / self.num_heads, i % self.num_heads)))
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

    fn backward_head<T: Number>(&self, q: &[T], k: &[T], v: &[T], d_o: &[T], at: (usize, usize)) -> HeadGradients<T> {
        let (d, keys, tile) = (self.head_size, self.keys, self.tile_rows());
        let mut dq = vec![T::default(); self.queries * d];
        let (mut dk, mut dv) = (vec![T::default(); keys * d], vec![T::default(); keys * d]);
        let (k_head, v_head) = (self.head(k, keys, at, 0, keys), self.head(v, keys, at, 0, keys));
        for (i, dq) in dq.chunks_mut(tile * d).enumerate() {
            let rows = dq.len() / d;
            let weights = self.weights(q, k, at, i * tile, rows);
            let d_o = self.head(d_o, self.queries, at, i * tile, rows);
            gemm(&mut dv, true, T::ONE, Matrix::new(&weights, rows, keys).t(), d_o, Cores::This); // P^T dO
            let mut ds = vec![T::default(); rows * keys];
            gemm(&mut ds, false, T::ONE, d_o, v_head.t(), Cores::This); // dP
            for (ds, p) in ds.chunks_exact_mut(keys).zip(weights.chunks_exact(keys)) {
                vectorized(
                    #[inline(always)]
                    || {
                        let dot = sum_by(keys, |j| ds[j] * p[j]);
                        ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - dot));
                    },
                );
            }
            let ds = Matrix::new(&ds, rows, keys);
            gemm(dq, false, self.scale(), ds, k_head, Cores::This);
            let q = self.head(q, self.queries, at, i * tile, rows);
            gemm(&mut dk, true, self.scale(), ds.t(), q, Cores::This);
        }
        HeadGradients { dq, dk, dv }
    }
}

/// Gradients of one head, each (tokens, d).
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// Softmax over the first `visible` scores; the rest become zero.
#[inline(always)]
fn softmax<T: Number>(scores: &mut [T], visible: usize) {
    let (scores, hidden) = scores.split_at_mut(visible);
    let top = maximum(scores);
    scores.iter_mut().for_each(|s| *s = super::real::Real::exp(*s - top));
    let total = T::ONE / sum_by(visible, |i| scores[i]);
    scores.iter_mut().for_each(|s| *s *= total);
    hidden.fill(T::default());
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
            to_storage(self.forward(&numbers(q, q_layout)?, &k, &v), dtype)?
        });
        Ok((o, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _o: &Tensor,
        d_o: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_compute_type!(q.dtype(), T => {
            let (dq, dk, dv) = with_numbers(q, |q: &[T]| with_numbers(k, |k: &[T]| with_numbers(v, |v: &[T]| {
                with_numbers(d_o, |d_o: &[T]| Ok(self.backward(q, k, v, d_o)))
            })))?;
            let gradient = |x: &Tensor, dx| -> Result<Option<Tensor>> {
                if x.track_op() { to_tensor(dx, x.shape(), x.dtype()).map(Some) } else { Ok(None) }
            };
            Ok((gradient(q, dq)?, gradient(k, dk)?, gradient(v, dv)?))
        })
    }
}

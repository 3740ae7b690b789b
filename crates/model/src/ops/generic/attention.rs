//! See [`crate::ops::attention`] for the maths: by tiles of query rows, so that no tokens x tokens matrix is kept.

use super::super::recorded::recorded;
use super::wide;
use candle_core::{D, DType, Result, Tensor};

/// Scores of all heads in one tile: 128 MB in f32.
const TILE_SCORES: usize = 1 << 25;

pub(in crate::ops) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: usize, causal: bool) -> Result<Tensor> {
    let heads = Heads { num_heads, causal };
    let output = heads.forward(&q.detach(), &k.detach(), &v.detach())?;
    let (queries, keys, values) = (q.detach(), k.detach(), v.detach());
    let tracked = [q, k, v].map(Tensor::track_op);
    recorded("generic-attention", &[q, k, v], output, move |d_o| {
        let gradients = heads.backward(&queries, &keys, &values, d_o)?;
        Ok(gradients.into_iter().zip(tracked).map(|(gradient, tracked)| tracked.then_some(gradient)).collect())
    })
}

#[derive(Clone, Copy)]
struct Heads {
    num_heads: usize,
    causal: bool,
}

impl Heads {
    /// (b, l, n d) -> (b, n, l, d)
    fn split(self, xs: &Tensor) -> Result<Tensor> {
        let (b, l, width) = xs.dims3()?;
        xs.contiguous()?.reshape((b, l, self.num_heads, width / self.num_heads))?.transpose(1, 2)?.contiguous()
    }

    /// (b, n, l, d) -> (b, l, n d)
    fn join(xs: &Tensor) -> Result<Tensor> {
        let (b, n, l, d) = xs.dims4()?;
        xs.transpose(1, 2)?.contiguous()?.reshape((b, l, n * d))
    }

    /// First query and number of queries of each tile.
    fn tiles(q: &Tensor, k: &Tensor) -> Result<Vec<(usize, usize)>> {
        let (b, n, queries, _) = q.dims4()?;
        let rows = (TILE_SCORES / (b * n * k.dim(2)?).max(1)).clamp(1, queries.max(1));
        Ok((0..queries).step_by(rows).map(|first| (first, rows.min(queries - first))).collect())
    }

    /// softmax(q k^T / sqrt d) of some query rows, the first of which is `first`: (b, n, rows, keys), f32 or f64.
    fn weights(self, q: &Tensor, k: &Tensor, first: usize) -> Result<Tensor> {
        let scale = 1.0 / (q.dim(3)? as f64).sqrt();
        let mut scores = (wide(&q.matmul(&k.t()?)?)? * scale)?;
        if self.causal {
            let (rows, keys) = (q.dim(2)? as u32, k.dim(2)? as u32);
            let hidden: Vec<f32> = (0..rows)
                .flat_map(|row| {
                    (0..keys).map(move |key| if key > row + first as u32 { f32::NEG_INFINITY } else { 0.0 })
                })
                .collect();
            let hidden = Tensor::from_vec(hidden, (rows as usize, keys as usize), q.device())?;
            scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
        }
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
    }

    fn forward(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.split(q)?, self.split(k)?, self.split(v)?);
        let tiles = Self::tiles(&q, &k)?.into_iter().map(|(first, rows)| {
            self.weights(&q.narrow(2, first, rows)?.contiguous()?, &k, first)?.to_dtype(v.dtype())?.matmul(&v)
        });
        Self::join(&Tensor::cat(&tiles.collect::<Result<Vec<_>>>()?, 2)?)
    }

    fn backward(self, q: &Tensor, k: &Tensor, v: &Tensor, d_o: &Tensor) -> Result<[Tensor; 3]> {
        let (q, k, v, d_o) = (self.split(q)?, self.split(k)?, self.split(v)?, self.split(d_o)?);
        let scale = 1.0 / (q.dim(3)? as f64).sqrt();
        let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
        for (first, rows) in Self::tiles(&q, &k)? {
            let (q, d_o) = (q.narrow(2, first, rows)?.contiguous()?, d_o.narrow(2, first, rows)?.contiguous()?);
            let weights = self.weights(&q, &k, first)?; // P: (b, n, rows, keys)
            let d_weights = wide(&d_o.matmul(&v.t()?)?)?; // dP
            let along = (&weights * &d_weights)?.sum_keepdim(D::Minus1)?;
            let d_scores = ((&weights * d_weights.broadcast_sub(&along)?)? * scale)?.to_dtype(q.dtype())?; // s dS
            dq.push(d_scores.matmul(&k)?);
            // Summed in f32: with many tiles, half precision would lose the small ones.
            add(&mut dk, &d_scores.transpose(2, 3)?.matmul(&q)?)?;
            add(&mut dv, &weights.to_dtype(d_o.dtype())?.transpose(2, 3)?.matmul(&d_o)?)?;
        }
        let sum = |sum: Option<Tensor>, like: &Tensor, dtype: DType| match sum {
            Some(sum) => Self::join(&sum.to_dtype(dtype)?),
            None => Self::join(&like.zeros_like()?),
        };
        let dq = Self::join(&Tensor::cat(&dq, 2)?)?;
        Ok([dq, sum(dk, &k, k.dtype())?, sum(dv, &v, v.dtype())?])
    }
}

fn add(sum: &mut Option<Tensor>, part: &Tensor) -> Result<()> {
    let part = wide(part)?;
    *sum = Some(match sum.take() {
        None => part,
        Some(sum) => (sum + part)?,
    });
    Ok(())
}

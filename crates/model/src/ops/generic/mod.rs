//! The operations again, made of candle's tensor operations, with the same closed-form backwards: what runs on a
//! device for which there is no kernel of ours.
//!
//! Forward and backward are computed without a graph and recorded as one operation each, so a frozen weight has no
//! gradient here either, and only what the kernels keep is kept. Products run in the dtype of the activations;
//! statistics, softmax and nonlinearities of bf16 and f16 run in f32 and are narrowed once.

mod attention;
mod conv;
mod linear;
mod norm;
mod pointwise;

use super::recompute::turned_off;
use candle_core::{DType, Result, Tensor};
use std::cell::Cell;

pub(super) use attention::attention;
pub(super) use conv::{conv2d, lora_conv2d};
pub(super) use linear::{linear, lora_linear};
pub(super) use norm::{group_norm, layer_norm};
pub(super) use pointwise::{activation, add_per_sample, geglu, upsample_nearest};

thread_local! {
    static KERNELS_ARE_ON: Cell<bool> = const { Cell::new(true) };
}

/// Runs `f` on this thread with the operations made of candle's tensor operations, also where there are kernels.
pub fn without_kernels<R>(f: impl FnOnce() -> R) -> R {
    turned_off(&KERNELS_ARE_ON, f)
}

/// Whether an operation on `xs` is to run on a kernel of ours.
pub(super) fn has_kernel(xs: &Tensor) -> bool {
    xs.device().is_cpu() && KERNELS_ARE_ON.get()
}

/// Half-precision numbers as f32, others as they are; without a graph.
fn wide(xs: &Tensor) -> Result<Tensor> {
    match xs.dtype() {
        DType::BF16 | DType::F16 => xs.detach().to_dtype(DType::F32),
        _ => Ok(xs.detach()),
    }
}

/// `xs` (.., c) as (m, c), contiguous, without a graph.
fn rows(xs: &Tensor) -> Result<Tensor> {
    let width = xs.dims().last().copied().unwrap_or(1);
    xs.detach().contiguous()?.reshape(((), width))
}

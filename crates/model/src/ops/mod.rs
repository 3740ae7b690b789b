//! Differentiable operations, each with a backward that forms only the gradients a LoRA trainer needs.
//!
//! Why they exist: candle's fused layers drop the graph in silence, and its matrix and convolution backward forms
//! the gradients of frozen weights too (`docs/design.md`). Here a frozen weight lives *inside* the operation, so no
//! gradient of it can ever be formed; at most three inputs carry gradients.
//!
//! Conventions, in all files of this module:
//! - Activations are channels-last: `(b, h, w, c)` for maps, `(b, l, c)` for tokens. A convolution and an attention
//!   then read the same memory, without a copy between them.
//! - Kernels of convolutions are `(out, kh, kw, in)`; LoRA factors keep the shapes of the file.
//! - f32 and f64 are computed as they are; bf16 and f16 are widened to f32, computed, and narrowed once at the end.
//! - An operation has two implementations: kernels for the CPU, and `generic`, made of candle's tensor operations, for
//!   devices without kernels of ours. [`composed`] is a third one, only for tests.
//! - Every reduction is cut at fixed places, never by the number of threads: the same input gives the same bytes.
//!
//! Axis legend: b batch, h w height width, c channels, l tokens, n heads, d head size, r rank, m rows.

mod activation;
mod attention;
pub mod composed;
mod conv;
mod frozen_matrix;
mod generic;
mod group_norm;
mod kept;
mod layer_norm;
mod linear;
mod lora_scale;
mod numbers;
mod product;
mod real;
mod recompute;
mod recorded;
mod shift;
mod taps;
mod timing;
mod upsample;
mod winograd;

pub use activation::{Activation, activation, geglu};
pub use attention::attention;
pub use conv::{ConvGeometry, conv2d, lora_conv2d};
pub use frozen_matrix::FrozenMatrix;
pub(crate) use frozen_matrix::quantize_row;
pub use generic::without_kernels;
pub use group_norm::group_norm;
pub(crate) use kept::is_worth_keeping;
pub use layer_norm::layer_norm;
pub use linear::{linear, lora_linear};
pub use lora_scale::LoraScale;
pub use product::{multiplies_bf16, with_bf16_products};
pub use recompute::{Segment, is_recording, recompute, without_graph};
pub(crate) use recompute::{turned, turned_off};
pub use shift::add_per_sample;
pub use timing::{OpTime, OpTimes, Pass, op_times};
pub use upsample::upsample_nearest;

//! Singular values and vectors of changes of weights: of a product from its factors, and of a dense matrix from a random
//! sketch of it.
//!
//! In f64 throughout but for the products with a dense matrix. One matrix is one thread's work, so that nothing depends
//! on the number of threads; whoever has many modules spreads them with rayon.

mod dense;
mod product;
mod svd;

pub use dense::truncated_svd;
pub(crate) use dense::{dense_singular_values, matrix_shape};
pub(crate) use product::{product_singular_values, product_svd, stacked_svd};
pub use svd::Svd;
pub(crate) use svd::num_above_rounding;

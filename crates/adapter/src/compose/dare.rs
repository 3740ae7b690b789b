//! DARE: drop and rescale (Yu et al. 2023, arXiv 2311.03099), on the changes written out.
//!
//! Each entry of each member is kept with the probability `density` and then divided by it, so that the expectation is the
//! plain sum. Which entries those are is a function of (seed, module, member, entry).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::error::AdapterError;

use super::dense_rows::{row_blocks, write_rows};
use super::layer::Layer;
use super::ties::rows_and_columns;

/// The summed change of a layer, (out, in * kh * kw) row-major. No more than this one matrix is in memory whole.
pub(crate) fn of_layer(layer: &Layer<'_>, density: f64, seed: u64) -> Result<Vec<f32>, AdapterError> {
    let (num_rows, num_columns) = rows_and_columns(&layer.weight_shape());
    let mut sum = vec![0.0; num_rows * num_columns];
    let mut block = Vec::new();
    for (term, module) in layer.terms.iter().zip(layer.scaled_terms()?) {
        let mut draws = Draws::new(seed, layer.name, term.member, density);
        for rows in row_blocks(num_rows) {
            let to = &mut sum[rows.start * num_columns..rows.end * num_columns];
            block.resize(to.len(), 0.0);
            write_rows(&module, rows, &mut block);
            for (sum, value) in to.iter_mut().zip(&block) {
                if draws.next_is_kept() {
                    *sum += value / density as f32;
                }
            }
        }
    }
    Ok(sum)
}

/// The entries of one change in their order.
struct Draws {
    random: ChaCha8Rng,
    /// Draws of 32 bits below this are kept.
    limit: u64,
}

impl Draws {
    fn new(seed: u64, module: &str, member: usize, density: f64) -> Self {
        let key = Sha256::digest(format!("dare {seed} {member} {module}"));
        Self { random: ChaCha8Rng::from_seed(key.into()), limit: (density * 2_f64.powi(32)) as u64 }
    }

    fn next_is_kept(&mut self) -> bool {
        u64::from(self.random.next_u32()) < self.limit
    }
}

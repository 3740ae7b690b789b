//! TIES: trim, elect sign and merge (Yadav et al. 2023, arXiv 2306.01708), on the changes written out.
//!
//! 1. Of each member's change the largest entries by size are kept, a share `density` of all.
//! 2. For each entry the sign with the larger mass over all members is elected: the sign of the sum.
//! 3. The entry is the mean of those members that have the elected sign there.
//!
//! Scales are in the changes before, so they take part in the election; PEFT multiplies by them after it, which is the
//! same for equal scales and lets a negative one vote for what it takes away.

use crate::error::AdapterError;

use super::dense_rows::{row_blocks, write_rows};
use super::layer::Layer;

/// The merged change of a layer, (out, in * kh * kw) row-major. No more than this one matrix is in memory whole.
pub(crate) fn of_layer(layer: &Layer<'_>, density: f64) -> Result<Vec<f32>, AdapterError> {
    let terms = layer.scaled_terms()?;
    let (num_rows, num_columns) = rows_and_columns(&layer.weight_shape());
    let mut merged = vec![0.0; num_rows * num_columns];
    let mut trims = Vec::with_capacity(terms.len());
    for term in &terms {
        for rows in row_blocks(num_rows) {
            let to = rows.start * num_columns..rows.end * num_columns;
            write_rows(term, rows, &mut merged[to]);
        }
        trims.push(Trim::to_density(&merged, density));
    }
    for rows in row_blocks(num_rows) {
        let to = &mut merged[rows.start * num_columns..rows.end * num_columns];
        let mut blocks = vec![vec![0.0; to.len()]; terms.len()];
        for ((term, trim), block) in terms.iter().zip(&mut trims).zip(&mut blocks) {
            write_rows(term, rows.clone(), block);
            trim.apply(block);
        }
        elect_and_merge(&blocks, to);
    }
    Ok(merged)
}

/// (out, in * kh * kw).
pub(crate) fn rows_and_columns(weight_shape: &[usize]) -> (usize, usize) {
    (weight_shape.first().copied().unwrap_or(0), weight_shape.iter().skip(1).product())
}

/// TIES of values that are all in memory: for each entry of `members`, all of one length.
pub(crate) fn ties(mut members: Vec<Vec<f32>>, density: f64) -> Vec<f32> {
    for values in &mut members {
        Trim::to_density(values, density).apply(values);
    }
    let mut merged = vec![0.0; members.first().map_or(0, Vec::len)];
    elect_and_merge(&members, &mut merged);
    merged
}

fn elect_and_merge(trimmed: &[Vec<f32>], merged: &mut [f32]) {
    for (at, merged) in merged.iter_mut().enumerate() {
        let values = || trimmed.iter().map(|values| values[at]);
        let mass: f32 = values().sum();
        let agreeing = values().filter(|value| if mass >= 0.0 { *value > 0.0 } else { *value < 0.0 });
        let (sum, count) = agreeing.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        *merged = sum / count.max(1) as f32;
    }
}

/// What is kept of one member: entries above a size, and the first few of exactly that size.
struct Trim {
    /// Bits of the smallest size that is kept; those of positive floats are in the order of their values.
    smallest: u32,
    /// How many of that size are still to be kept.
    num_of_smallest: usize,
}

fn size_bits(value: f32) -> u32 {
    value.abs().to_bits()
}

impl Trim {
    /// Keeps floor(density * n) entries, at least one. Counts the upper, then the lower half of the bits: two passes, and
    /// neither a copy nor a sort.
    fn to_density(values: &[f32], density: f64) -> Self {
        let num_kept = ((density * values.len() as f64) as usize).clamp(1, values.len().max(1));
        let mut counts = vec![0_usize; 1 << 16];
        values.iter().for_each(|value| counts[(size_bits(*value) >> 16) as usize] += 1);
        let (upper, above) = bucket_of(&counts, num_kept);
        counts.fill(0);
        let in_bucket = values.iter().map(|value| size_bits(*value)).filter(|bits| bits >> 16 == upper);
        in_bucket.for_each(|bits| counts[(bits & 0xffff) as usize] += 1);
        let (lower, above_in_bucket) = bucket_of(&counts, num_kept - above);
        Self { smallest: (upper << 16) | lower, num_of_smallest: num_kept - above - above_in_bucket }
    }

    /// Sets the others to zero. Blocks of a change must come in their order.
    fn apply(&mut self, values: &mut [f32]) {
        for value in values {
            let bits = size_bits(*value);
            let is_last = bits == self.smallest && self.num_of_smallest > 0;
            self.num_of_smallest -= usize::from(is_last);
            if bits < self.smallest || (bits == self.smallest && !is_last) {
                *value = 0.0;
            }
        }
    }
}

/// The bucket, counted from the largest down, that holds entry number `wanted`, and how many entries are above it.
fn bucket_of(counts: &[usize], wanted: usize) -> (u32, usize) {
    let mut above = 0;
    for (bucket, count) in counts.iter().enumerate().rev() {
        if above + count >= wanted {
            return (bucket as u32, above);
        }
        above += count;
    }
    (0, above)
}

//! The exact sum of adapters, by concatenation along the rank.
//!
//! s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]: stacked factors give the sum of the changes without an error beyond
//! rounding, at the price of the ranks adding up.

use std::collections::BTreeMap;

use crate::compose::{Layer, Member, layers_of};
use crate::error::AdapterError;
use crate::{Adapter, Array, LoraModule};

impl Adapter {
    /// The adapter whose change of every weight is the sum of the given ones, each times its scale.
    ///
    /// A scale may be negative, or 0 (which keeps the rank). A module may be in only some of the adapters. The rank of
    /// each module is the sum of the ranks, alpha equals it, and the scales are in `up`. If a 1x1 convolution is given
    /// in two dimensions here and in four there, the sum has four. There is no metadata. No adapters give an empty one.
    ///
    /// # Errors
    /// [`AdapterError::BadScale`] if a scale is not finite, [`AdapterError::WeightShapes`] naming a module that belongs
    /// to differently shaped weights, and the errors of [`LoraModule::check`].
    pub fn sum(adapters: &[(&Adapter, f32)]) -> Result<Adapter, AdapterError> {
        let members: Vec<_> = adapters.iter().map(|&(adapter, scale)| Member { adapter, scale }).collect();
        let sum = |layer: &Layer| Ok((layer.name.to_owned(), layer.sum()?));
        let modules = layers_of(&members)?.iter().map(sum).collect::<Result<_, AdapterError>>()?;
        Ok(Adapter { modules, metadata: BTreeMap::new() })
    }
}

/// The sum of modules that have passed their check, with alpha = rank. One alone gets its scale into `up`.
pub(crate) fn concatenate(name: &str, terms: &[(&LoraModule, f32)]) -> Result<LoraModule, AdapterError> {
    let weight = terms.first().map(|(module, _)| weight_shape(module)).unwrap_or_default();
    for (module, _) in terms {
        let second = weight_shape(module);
        if without_unit_kernel(&second) != without_unit_kernel(&weight) {
            return Err(AdapterError::WeightShapes { module: name.to_owned(), first: weight, second });
        }
    }
    let rank: usize = terms.iter().map(|(module, _)| module.rank()).sum();
    let num_rows = weight.first().copied().unwrap_or(0);
    let down: Vec<f32> = terms.iter().flat_map(|(module, _)| &module.down.data).copied().collect();
    let mut up = Vec::with_capacity(num_rows * rank);
    for row in 0..num_rows {
        for (module, scale) in terms {
            let factor = f64::from(*scale) * f64::from(module.scale());
            let columns = &module.up.data[row * module.rank()..(row + 1) * module.rank()];
            up.extend(columns.iter().map(|value| (factor * f64::from(*value)) as f32));
        }
    }

    let is_convolution = terms.iter().any(|(module, _)| module.down.shape.len() == 4);
    let kernel = weight.get(2..).filter(|kernel| !kernel.is_empty()).unwrap_or(&[1, 1]);
    let mut down_shape = vec![rank, weight.get(1).copied().unwrap_or(0)];
    let mut up_shape = vec![num_rows, rank];
    if is_convolution {
        down_shape.extend(kernel);
        up_shape.extend([1, 1]);
    }
    let (down, up) = (Array { shape: down_shape, data: down }, Array { shape: up_shape, data: up });
    let sum = LoraModule { down, up, alpha: Some(rank as f32) };
    sum.check(name)?; // a large scale may have left the range of f32
    Ok(sum)
}

/// The shape of the weight that a module changes: (out, in) or (out, in, kh, kw).
pub(crate) fn weight_shape(module: &LoraModule) -> Vec<usize> {
    module.up.shape.iter().take(1).chain(module.down.shape.iter().skip(1)).copied().collect()
}

/// The shape of a weight without the kernel of a 1x1 convolution, which is a linear layer.
pub fn without_unit_kernel(shape: &[usize]) -> &[usize] {
    shape.strip_suffix(&[1, 1]).filter(|rest| rest.len() == 2).unwrap_or(shape)
}

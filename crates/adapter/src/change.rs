//! What an adapter does to the weight of one layer, in any of the forms that people train.
//!
//! Formulas and scales are those of `LyCORIS`; how they lie in files is in each kind's own file.

mod dora;
mod full;
mod hadamard;
mod kernel;
mod kronecker;
mod leaves;
mod matrix;
mod tucker;

use crate::error::AdapterError;
use crate::{Array, LoraModule};
pub use dora::DoraModule;
pub use full::FullModule;
pub use hadamard::HadamardModule;
use kernel::is_same_weight;
pub use kronecker::{KroneckerFactor, KroneckerModule};
use leaves::Leaves;
use matrix::Matrix;
use std::collections::BTreeMap;
pub use tucker::TuckerModule;

/// The most numbers of a weight that a change may stand for. Factors of a few kB can name a weight of any size; the largest
/// of SDXL has 30 million.
const MAX_WEIGHT_NUMBERS: usize = 1 << 27;

/// The change of one layer's weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Two factors (Hu et al. 2021).
    Lora(LoraModule),
    /// Three: a convolution in Tucker form (LoCon of LyCORIS).
    Tucker(TuckerModule),
    /// The product, entry by entry, of two low-rank matrices (LoHa).
    Hadamard(HadamardModule),
    /// A Kronecker product (LoKr).
    Kronecker(KroneckerModule),
    /// A low-rank change of the direction, and the lengths of rows or columns apart from it (DoRA).
    Dora(DoraModule),
    /// The whole difference.
    Full(FullModule),
}

impl Change {
    /// Makes a change of the tensors of one module by their leaves: what follows the module's name and dot in a kohya key, as
    /// `lora_down.weight`, `hada_w1_a`, `dora_scale`, `diff`. Which leaves there are tells the kind.
    ///
    /// # Errors
    /// [`AdapterError::UnknownLeaf`], [`AdapterError::MissingLeaf`], [`AdapterError::AlphaShape`], and those of
    /// [`Change::check`].
    pub fn from_leaves(module: &str, leaves: BTreeMap<String, Array>) -> Result<Self, AdapterError> {
        let mut leaves = Leaves::new(module, leaves);
        let magnitude = leaves.take_any("dora_scale");
        let change = Self::of_kind(module, &mut leaves)?;
        leaves.finish()?;
        let change = match magnitude {
            Some(magnitude) => Self::Dora(DoraModule { direction: Box::new(change), magnitude }),
            None => change,
        };
        change.check(module)?;
        Ok(change)
    }

    fn of_kind(module: &str, leaves: &mut Leaves) -> Result<Self, AdapterError> {
        Ok(if leaves.has_any_like("hada_") {
            Self::Hadamard(HadamardModule::from_leaves(module, leaves)?)
        } else if leaves.has_any_like("lokr_") {
            Self::Kronecker(KroneckerModule::from_leaves(module, leaves)?)
        } else if leaves.has("diff") || leaves.has("w_norm") {
            Self::Full(FullModule::from_leaves(leaves)?)
        } else if leaves.has("lora_mid.weight") {
            Self::Tucker(TuckerModule::from_leaves(leaves)?)
        } else {
            let (down, up) = (leaves.take("lora_down.weight")?, leaves.take("lora_up.weight")?);
            Self::Lora(LoraModule { down, up, alpha: leaves.alpha()? })
        })
    }

    /// Its tensors by their leaves, alpha without dimensions: what [`Change::from_leaves`] takes.
    pub fn leaves(&self) -> Vec<(&'static str, Array)> {
        let alpha = self.alpha().map(|alpha| ("alpha", Array { shape: Vec::new(), data: vec![alpha] }));
        self.arrays().into_iter().map(|(leaf, array)| (leaf, array.clone())).chain(alpha).collect()
    }

    fn arrays(&self) -> Vec<(&'static str, &Array)> {
        match self {
            Self::Lora(module) => vec![("lora_down.weight", &module.down), ("lora_up.weight", &module.up)],
            Self::Tucker(module) => module.arrays(),
            Self::Hadamard(module) => module.arrays(),
            Self::Kronecker(module) => module.arrays(),
            Self::Dora(module) => {
                let mut arrays = module.direction.arrays();
                arrays.push(("dora_scale", &module.magnitude));
                arrays
            }
            Self::Full(module) => module.arrays(),
        }
    }

    /// What people call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Lora(_) => "LoRA",
            Self::Tucker(_) => "LoCon (Tucker)",
            Self::Hadamard(_) => "LoHa",
            Self::Kronecker(_) => "LoKr",
            Self::Dora(_) => "DoRA",
            Self::Full(_) => "full difference",
        }
    }

    /// Rank of the factors as stored; `None` where there are none.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Lora(module) => Some(module.rank()),
            Self::Tucker(module) => Some(module.rank()),
            Self::Hadamard(module) => Some(module.rank()),
            Self::Kronecker(module) => module.rank(),
            Self::Dora(module) => module.direction.rank(),
            Self::Full(_) => None,
        }
    }

    /// As in the file.
    pub fn alpha(&self) -> Option<f32> {
        match self {
            Self::Lora(module) => module.alpha,
            Self::Tucker(module) => module.alpha,
            Self::Hadamard(module) => module.alpha,
            Self::Kronecker(module) => module.alpha,
            Self::Dora(module) => module.direction.alpha(),
            Self::Full(_) => None,
        }
    }

    /// Numbers of all its tensors but alpha.
    pub fn num_parameters(&self) -> usize {
        self.arrays().iter().map(|(_, array)| array.data.len()).sum()
    }

    /// Shape of the weight: (out, in) or (out, in, kh, kw). LoHa and LoKr of a convolution may have (out, in * kh * kw)
    /// where the layer's name does not tell the kernel. The change must pass [`Change::check`].
    pub fn weight_shape(&self) -> Vec<usize> {
        match self {
            Self::Lora(module) => {
                module.up.shape.iter().take(1).chain(module.down.shape.iter().skip(1)).copied().collect()
            }
            Self::Tucker(module) => module.weight_shape(),
            Self::Hadamard(module) => module.weight_shape(),
            Self::Kronecker(module) => module.weight_shape(),
            Self::Dora(module) => module.direction.weight_shape(),
            Self::Full(module) => module.weight.shape.clone(),
        }
    }

    /// Whether it can be added to a weight of this shape: its own, a 1x1 convolution for a linear layer or the other way
    /// round, or a convolution whose kernel LoHa or LoKr have flattened.
    pub fn fits(&self, weight_shape: &[usize]) -> bool {
        is_same_weight(&self.weight_shape(), weight_shape)
    }

    /// Checks that the tensors belong together, that all numbers are finite, and that the weight is not larger than any real
    /// one. `module` serves messages.
    ///
    /// # Errors
    /// [`AdapterError::FactorShapes`] or [`AdapterError::ChangeShapes`], [`AdapterError::NonFinite`],
    /// [`AdapterError::BadAlpha`], [`AdapterError::ChangeTooLarge`].
    pub fn check(&self, module: &str) -> Result<(), AdapterError> {
        if let Self::Lora(lora) = self {
            lora.check(module)?;
        } else {
            let arrays = self.arrays();
            let is_whole = arrays.iter().all(|(_, array)| !array.data.is_empty() && array.is_complete());
            if !is_whole || !self.is_sound(module)? {
                let shapes = arrays.iter().map(|(leaf, array)| format!("{leaf} {:?}", array.shape)).collect();
                return Err(AdapterError::ChangeShapes { module: module.to_owned(), kind: self.kind(), shapes });
            }
            if let Some((leaf, _)) = arrays.iter().find(|(_, array)| array.data.iter().any(|x| !x.is_finite())) {
                return Err(AdapterError::NonFinite { tensor: format!("{module}.{leaf}") });
            }
            if let Some(alpha) = self.alpha().filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
                return Err(AdapterError::BadAlpha { module: module.to_owned(), alpha });
            }
        }
        let shape = self.weight_shape();
        let size = shape.iter().try_fold(1_usize, |size, dim| size.checked_mul(*dim));
        if size.is_none_or(|size| size > MAX_WEIGHT_NUMBERS) {
            return Err(AdapterError::ChangeTooLarge { module: module.to_owned(), shape });
        }
        Ok(())
    }

    /// Whether the shapes belong together. Nothing else may look at shapes before.
    fn is_sound(&self, module: &str) -> Result<bool, AdapterError> {
        Ok(match self {
            Self::Lora(_) => true,
            Self::Tucker(tucker) => tucker.is_sound(),
            Self::Hadamard(hadamard) => hadamard.is_sound(),
            Self::Kronecker(kronecker) => kronecker.is_sound(),
            Self::Dora(dora) => {
                dora.direction.check(module)?;
                dora.is_sound()
            }
            Self::Full(full) => full.is_sound(),
        })
    }

    /// The same as plain LoRA, exactly, where that is possible: `None` for DoRA and whole differences. The scale may move from
    /// alpha into the factors. The change must pass [`Change::check`].
    ///
    /// The rank stays in Tucker form, is squared for LoHa, and the product of both sides' ranks for LoKr; it is never above the
    /// weight's shorter side but where the file's own is.
    pub fn to_low_rank(&self) -> Option<LoraModule> {
        match self {
            Self::Lora(module) => Some(module.clone()),
            Self::Tucker(module) => Some(module.to_low_rank()),
            Self::Hadamard(module) => Some(module.to_low_rank()),
            Self::Kronecker(module) => Some(module.to_low_rank()),
            Self::Dora(_) | Self::Full(_) => None,
        }
    }

    /// What is added to `weight` at `strength`, row-major, in the weight's shape where it is given. Only DoRA needs the
    /// weight: there it is strength * (DoRA(W) - W), as ComfyUI and A1111 have it, so that strength 0 is the base and 1 the
    /// trained weight. Products are summed in f32.
    ///
    /// # Errors
    /// Those of [`Change::check`]; [`AdapterError::WeightShapes`] for a weight of another shape,
    /// [`AdapterError::NeedsWeight`] for a DoRA without one.
    pub fn delta(&self, weight: Option<&Array>, strength: f32) -> Result<Array, AdapterError> {
        self.check(self.kind())?;
        let own = self.weight_shape();
        if let Some(weight) = weight.filter(|weight| !self.fits(&weight.shape) || !weight.is_complete()) {
            let second = weight.shape.clone();
            return Err(AdapterError::WeightShapes { module: self.kind().to_owned(), first: own, second });
        }
        let data = match self {
            Self::Lora(module) => {
                let (up, down) = (Matrix::flattened(&module.up), Matrix::flattened(&module.down));
                up.product(&down, strength * module.scale()).data.into_owned()
            }
            Self::Tucker(module) => return Self::Lora(module.to_low_rank()).delta(weight, strength),
            Self::Hadamard(module) => module.delta(strength),
            Self::Kronecker(module) => module.delta(strength),
            Self::Dora(module) => {
                let weight = weight.ok_or(AdapterError::NeedsWeight { kind: self.kind() })?;
                module.delta(weight, strength)?
            }
            Self::Full(module) => module.weight.data.iter().map(|value| strength * value).collect(),
        };
        Ok(Array { shape: weight.map_or(own, |weight| weight.shape.clone()), data })
    }

    /// What is added to the layer's bias at `strength`: (out). Only whole differences have one.
    pub fn bias_delta(&self, strength: f32) -> Option<Array> {
        match self {
            Self::Full(FullModule { bias: Some(bias), .. }) => {
                let data = bias.data.iter().map(|value| strength * value).collect();
                Some(Array { shape: bias.shape.clone(), data })
            }
            _ => None,
        }
    }
}

/// Factors in the shapes that files have for a weight of this shape.
fn low_rank_module(up: Matrix, down: Matrix, weight_shape: &[usize], alpha: f32) -> LoraModule {
    let (mut up_shape, mut down_shape) = (vec![up.rows, up.columns], vec![down.rows]);
    down_shape.extend(&weight_shape[1..]);
    if weight_shape.len() == 4 {
        up_shape.extend([1, 1]);
    }
    LoraModule {
        down: Array { shape: down_shape, data: down.data.into_owned() },
        up: Array { shape: up_shape, data: up.data.into_owned() },
        alpha: Some(alpha),
    }
}

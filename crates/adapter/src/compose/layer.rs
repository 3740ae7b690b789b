//! The changes that several adapters make to one layer.

use std::collections::BTreeMap;

use crate::concatenation::{concatenate, weight_shape};
use crate::error::AdapterError;
use crate::{Adapter, LoraModule};

/// One of the adapters to compose.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Plain LoRA.
    pub adapter: &'a Adapter,
    /// Its strength: any finite number.
    pub scale: f32,
}

/// A member's change of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a> {
    /// Which member, from 0.
    pub(crate) member: usize,
    pub(crate) module: &'a LoraModule,
    pub(crate) scale: f32,
}

/// A layer, and the members that change it: at least one.
#[derive(Debug, Clone)]
pub(crate) struct Layer<'a> {
    /// kohya's module name.
    pub(crate) name: &'a str,
    pub(crate) terms: Vec<Term<'a>>,
}

/// In the order of names. All modules pass their check and fit each other.
pub(crate) fn layers_of<'a>(members: &[Member<'a>]) -> Result<Vec<Layer<'a>>, AdapterError> {
    let mut by_name: BTreeMap<&str, Vec<Term<'a>>> = BTreeMap::new();
    for (index, Member { adapter, scale }) in members.iter().enumerate() {
        if !scale.is_finite() {
            return Err(AdapterError::BadScale { scale: *scale });
        }
        for (name, module) in &adapter.modules {
            module.check(name)?;
            by_name.entry(name).or_default().push(Term { member: index, module, scale: *scale });
        }
    }
    Ok(by_name.into_iter().map(|(name, terms)| Layer { name, terms }).collect())
}

impl Layer<'_> {
    /// The plain sum, with the scales in `up` and alpha = rank.
    pub(crate) fn sum(&self) -> Result<LoraModule, AdapterError> {
        let terms: Vec<_> = self.terms.iter().map(|term| (term.module, term.scale)).collect();
        concatenate(self.name, &terms)
    }

    /// Each member's change alone, in the order of terms, with its scale in `up` and alpha = rank.
    pub(crate) fn scaled_terms(&self) -> Result<Vec<LoraModule>, AdapterError> {
        self.terms.iter().map(|term| concatenate(self.name, &[(term.module, term.scale)])).collect()
    }

    /// (out, in) or (out, in, kh, kw), the longer form if members differ in how they give a 1x1 convolution.
    pub(crate) fn weight_shape(&self) -> Vec<usize> {
        self.terms.iter().map(|term| weight_shape(term.module)).max_by_key(Vec::len).unwrap_or_default()
    }

    pub(crate) fn largest_rank(&self) -> usize {
        self.terms.iter().map(|term| term.module.rank()).max().unwrap_or(1)
    }
}

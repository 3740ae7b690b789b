//! What keeps an adapter that is right in itself from being loaded rightly by other programs.
//!
//! Each of these was found by running the programs (diffusers, A1111, ComfyUI, InvokeAI, stable-diffusion.cpp,
//! additional-networks) on such files.

use std::collections::{BTreeMap, BTreeSet};

use crate::keys::Component;
use crate::kohya::Adapter;

const TEXT_PROJECTIONS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];

/// A trap in an adapter; Display says which programs fall into it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortabilityIssue {
    /// Modules of one component have different ranks.
    MixedRanks {
        /// The component.
        component: Component,
        /// Its ranks.
        ranks: BTreeSet<usize>,
    },
    /// Modules of one component have different alphas.
    MixedAlphas {
        /// The component.
        component: Component,
    },
    /// Rank 1 together with an alpha.
    RankOneWithAlpha,
    /// A text encoder's attention lacks some of its four projections.
    IncompleteTextAttention {
        /// Name of the attention, up to and including `self_attn`.
        attention: String,
    },
    /// Nothing in the file has the width of the text.
    NoTextWidth,
    /// Prefixes for one and for two text encoders in one file.
    MixedTextPrefixes,
}

impl std::fmt::Display for PortabilityIssue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MixedRanks { component, ranks } => {
                let prefix = component.prefix();
                write!(
                    f,
                    "{prefix}* has the ranks {ranks:?}: diffusers 0.35 scales those that differ from most wrongly"
                )
            }
            Self::MixedAlphas { component } => {
                let prefix = component.prefix();
                write!(f, "{prefix}* has several alphas: diffusers uses the most frequent one for all")
            }
            Self::RankOneWithAlpha => f.write_str(
                "rank 1 with an alpha: stable-diffusion.cpp takes another rank and the adapter all but vanishes",
            ),
            Self::IncompleteTextAttention { attention } => {
                write!(f, "{attention}_* lacks some of q, k, v, out: diffusers drops or refuses the others")
            }
            Self::NoTextWidth => f.write_str(
                "neither cross-attention (attn2_to_k, attn2_to_v) nor text attention: InvokeAI cannot import it",
            ),
            Self::MixedTextPrefixes => {
                f.write_str("lora_te_* beside lora_te1_* or lora_te2_*: every program ignores or refuses one of them")
            }
        }
    }
}

impl Adapter {
    /// The traps in this adapter, in a fixed order; empty if every program will load it completely and with the right
    /// scale.
    pub fn portability_issues(&self) -> Vec<PortabilityIssue> {
        let mut issues = self.uneven_scales();
        if self.modules.values().any(|module| module.rank() == 1 && module.alpha.is_some()) {
            issues.push(PortabilityIssue::RankOneWithAlpha);
        }
        issues.extend(self.incomplete_text_attentions());
        let has_text_width = |name: &str| {
            ["attn2_to_k", "attn2_to_v"].iter().any(|end| name.ends_with(end)) || name.contains("_self_attn_")
        };
        if !self.modules.keys().any(|name| has_text_width(name)) {
            issues.push(PortabilityIssue::NoTextWidth);
        }
        let components: BTreeSet<_> = self.modules.keys().filter_map(|name| Component::of_module(name)).collect();
        let has = |component| components.contains(&component);
        if has(Component::TextEncoder) && (has(Component::TextEncoder1) || has(Component::TextEncoder2)) {
            issues.push(PortabilityIssue::MixedTextPrefixes);
        }
        issues
    }

    fn uneven_scales(&self) -> Vec<PortabilityIssue> {
        let mut by_component: BTreeMap<Component, (BTreeSet<usize>, BTreeSet<Option<u32>>)> = BTreeMap::new();
        for (name, module) in &self.modules {
            let Some(component) = Component::of_module(name) else { continue };
            let (ranks, alphas) = by_component.entry(component).or_default();
            ranks.insert(module.rank());
            alphas.insert(module.alpha.map(f32::to_bits));
        }
        let mut issues = Vec::new();
        for (component, (ranks, alphas)) in by_component {
            if alphas.len() > 1 {
                issues.push(PortabilityIssue::MixedAlphas { component });
            }
            if ranks.len() > 1 {
                issues.push(PortabilityIssue::MixedRanks { component, ranks });
            }
        }
        issues
    }

    fn incomplete_text_attentions(&self) -> Vec<PortabilityIssue> {
        let mut projections: BTreeMap<&str, usize> = BTreeMap::new();
        for name in self.modules.keys() {
            let attention = TEXT_PROJECTIONS.iter().find_map(|end| name.strip_suffix(end)?.strip_suffix('_'));
            if let Some(attention) = attention.filter(|attention| attention.ends_with("_self_attn")) {
                *projections.entry(attention).or_default() += 1;
            }
        }
        let incomplete = projections.into_iter().filter(|(_, count)| *count < TEXT_PROJECTIONS.len());
        incomplete
            .map(|(attention, _)| PortabilityIssue::IncompleteTextAttention { attention: attention.to_owned() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Array, LoraModule};

    /// Name, rank, alpha.
    type Module<'a> = (&'a str, usize, Option<f32>);

    fn adapter(modules: &[Module]) -> Adapter {
        let filled = |shape: [usize; 2]| Array { shape: shape.to_vec(), data: vec![0.5; shape[0] * shape[1]] };
        let module = |rank, alpha| LoraModule { down: filled([rank, 3]), up: filled([5, rank]), alpha };
        let modules = modules.iter().map(|(name, rank, alpha)| ((*name).to_owned(), module(*rank, *alpha)));
        Adapter { modules: modules.collect(), ..Adapter::default() }
    }

    const CROSS: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";

    #[test]
    fn even_adapters_have_no_issue_even_if_components_differ() {
        let text = |end| format!("lora_te_text_model_encoder_layers_0_self_attn_{end}");
        let mut modules = vec![(CROSS.to_owned(), 4, Some(2.0)), ("lora_unet_a".to_owned(), 4, Some(2.0))];
        modules.extend(TEXT_PROJECTIONS.map(|end| (text(end), 8, Some(8.0))));
        let borrowed: Vec<_> = modules.iter().map(|(name, rank, alpha)| (name.as_str(), *rank, *alpha)).collect();
        assert_eq!(adapter(&borrowed).portability_issues(), []);
    }

    #[test]
    fn every_trap_is_found() {
        let component = Component::Unet;
        let attention = "lora_te_x_self_attn".to_owned();
        let cases: [(&[Module], Vec<PortabilityIssue>); 6] = [
            (
                &[(CROSS, 4, Some(2.0)), ("lora_unet_a", 8, Some(2.0))],
                vec![PortabilityIssue::MixedRanks { component, ranks: [4, 8].into() }],
            ),
            (
                &[(CROSS, 4, None), ("lora_unet_a", 4, Some(2.0))], // none means 4
                vec![PortabilityIssue::MixedAlphas { component }],
            ),
            (&[(CROSS, 1, Some(1.0))], vec![PortabilityIssue::RankOneWithAlpha]),
            (
                &[(CROSS, 4, None), ("lora_te_x_self_attn_q_proj", 4, None)],
                vec![PortabilityIssue::IncompleteTextAttention { attention }],
            ),
            (&[("lora_unet_attn1_to_k", 4, None)], vec![PortabilityIssue::NoTextWidth]),
            (
                &[(CROSS, 4, None), ("lora_te_mlp_fc1", 4, None), ("lora_te2_mlp_fc1", 4, None)],
                vec![PortabilityIssue::MixedTextPrefixes],
            ),
        ];
        for (modules, expected) in cases {
            assert_eq!(adapter(modules).portability_issues(), expected);
        }
        assert_eq!(adapter(&[(CROSS, 1, None)]).portability_issues(), []);
    }
}

//! One rank for each component.
//!
//! diffusers knows one rank and one alpha for a component; what differs, it scales wrongly. Rows of zeros in `down` and
//! columns of zeros in `up` bring a module to a larger rank without changing it.

use std::collections::BTreeMap;

use crate::keys::Component;
use crate::{Array, LoraModule};

/// How much larger a component may become by zeros.
const MOST_GROWTH: f64 = 1.5;

/// Brings the modules of a component, all of scale 1, to their largest rank and gives them one alpha. Where that would
/// make it more than half as large again, ranks stay and alpha is left out, which means the same scale of 1: only older
/// diffusers read that wrongly. Rank 1 goes without alpha too, since stable-diffusion.cpp takes the wrong rank there.
pub(crate) fn even_ranks(modules: &mut BTreeMap<String, LoraModule>) {
    let mut by_component: BTreeMap<Option<Component>, Vec<&mut LoraModule>> = BTreeMap::new();
    for (name, module) in modules {
        by_component.entry(Component::of_module(name)).or_default().push(module);
    }
    for modules in by_component.into_values() {
        let rank = modules.iter().map(|module| module.rank()).max().unwrap_or(1);
        let num_values = |rank_of: &dyn Fn(&LoraModule) -> usize| -> usize {
            modules.iter().map(|module| values_per_rank(module) * rank_of(module)).sum()
        };
        let growth = num_values(&|_| rank) as f64 / num_values(&LoraModule::rank).max(1) as f64;
        for module in modules {
            if growth <= MOST_GROWTH {
                pad(module, rank);
                module.alpha = (rank > 1).then_some(rank as f32);
            } else {
                module.alpha = None;
            }
        }
    }
}

fn values_per_rank(module: &LoraModule) -> usize {
    (module.down.data.len() + module.up.data.len()) / module.rank().max(1)
}

fn pad(module: &mut LoraModule, rank: usize) {
    let old_rank = module.rank();
    if rank <= old_rank {
        return;
    }
    let num_columns = module.down.data.len() / old_rank.max(1);
    module.down.data.resize(rank * num_columns, 0.0);
    let mut up = vec![0.0; module.up.data.len() / old_rank.max(1) * rank];
    for (padded, row) in up.chunks_exact_mut(rank).zip(module.up.data.chunks_exact(old_rank.max(1))) {
        padded[..old_rank].copy_from_slice(row);
    }
    let with_rank = |shape: &[usize], at: usize| {
        let mut shape = shape.to_vec();
        shape[at] = rank;
        shape
    };
    module.down.shape = with_rank(&module.down.shape, 0);
    module.up = Array { shape: with_rank(&module.up.shape, 1), data: up };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(rank: usize, width: usize, out: usize) -> LoraModule {
        let numbers = |count: usize| (0..count).map(|i| (i * 7 % 11) as f32 - 4.5).collect();
        LoraModule {
            down: Array { shape: vec![rank, width, 1, 1], data: numbers(rank * width) },
            up: Array { shape: vec![out, rank, 1, 1], data: numbers(out * rank) },
            alpha: Some(rank as f32),
        }
    }

    fn of(ranks: &[(&str, usize)]) -> BTreeMap<String, LoraModule> {
        ranks.iter().map(|(name, rank)| ((*name).to_owned(), module(*rank, 5, 7))).collect()
    }

    #[test]
    fn a_component_gets_one_rank_and_alpha_and_the_same_changes() {
        let before = of(&[("lora_te_a", 9), ("lora_unet_a", 3), ("lora_unet_b", 4)]);
        let mut modules = before.clone();
        even_ranks(&mut modules);
        let ranks: Vec<_> = modules.values().map(|module| (module.rank(), module.alpha)).collect();
        assert_eq!(ranks, [(9, Some(9.0)), (4, Some(4.0)), (4, Some(4.0))]);
        for (name, module) in &modules {
            assert!(module.check(name).is_ok());
            assert_eq!(module.delta(), before[name].delta());
        }
    }

    #[test]
    fn ranks_stay_where_zeros_would_be_most_of_the_file() {
        let before = of(&[("lora_unet_a", 2), ("lora_unet_b", 2), ("lora_unet_c", 40)]);
        let mut modules = before.clone();
        even_ranks(&mut modules);
        for (name, module) in &modules {
            assert_eq!((module.rank(), module.alpha), (before[name].rank(), None));
            assert_eq!(module.delta(), before[name].delta());
        }
    }

    #[test]
    fn rank_one_has_no_alpha() {
        let mut modules = of(&[("lora_unet_a", 1)]);
        even_ranks(&mut modules);
        assert_eq!(modules["lora_unet_a"].alpha, None);
    }
}

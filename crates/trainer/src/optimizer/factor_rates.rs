//! How fast each factor learns, and for how long.

use std::collections::BTreeMap;

use loralei_adapter::keys::Component;

/// The full learning rates of a run, before the schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FactorRates {
    /// By key of the factor.
    pub(crate) full: BTreeMap<String, f64>,
    /// The one that progress shows.
    pub(crate) shown: f64,
    /// Steps after which each text encoder's factors stay as they are; `None` if they learn to the end.
    pub(crate) text_encoder_steps: [Option<u64>; 2],
}

impl FactorRates {
    /// One rate for all factors under `keys`, to the end.
    pub(crate) fn uniform<'a>(keys: impl IntoIterator<Item = &'a String>, rate: f64) -> Self {
        let full = keys.into_iter().map(|key| (key.clone(), rate)).collect();
        Self { full, shown: rate, text_encoder_steps: [None; 2] }
    }

    /// Full rate of the factor under `key`; 0 of a factor that is not known.
    pub(crate) fn of(&self, key: &str) -> f64 {
        self.full.get(key).copied().unwrap_or(0.0)
    }

    /// Whether the factor under `key` moves in `step`, counted from 0.
    pub(crate) fn moves(&self, key: &str, step: u64) -> bool {
        let index = Component::of_module(key).and_then(Component::text_encoder_index);
        index.and_then(|index| self.text_encoder_steps[index]).is_none_or(|steps| step < steps)
    }
}

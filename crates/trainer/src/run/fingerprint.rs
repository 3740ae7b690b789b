//! What a run is: everything its numbers depend on, by name, so that a resumed run can say what differs.

use std::collections::BTreeMap;

use loralei_adapter::{AdapterError, StreamedHash, sha256_hex};
use loralei_model::Base;

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::plan::Plan;
use crate::training_data::TrainingData;

/// Settings that do not change what is learned, or that are compared by content instead: whole keys, and sections.
const FREE: [&str; 17] = [
    "preset",
    "model.base",
    "data.images",
    "data.sources",
    "data.cache",
    "data.strict",
    "train.steps",
    "train.epochs",
    "prior.captions",
    "lora.start_from",
    "validation.every_steps",
    "validation.max_images",
    "validation.num_timesteps",
    "validation.patience",
    "validation.leak",
    "samples.",
    "output.",
];

/// Digits of a hash that are kept: enough to tell files apart, short enough to be read.
const DIGITS: usize = 16;

/// By name: a setting, `base` or `data`; what it is, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) BTreeMap<String, String>);

impl Fingerprint {
    /// Of a run with these settings and data on `base`.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(crate) fn of(config: &TrainConfig, plan: &Plan, base: &Base, data: &TrainingData) -> Result<Self, TrainError> {
        let is_free = |key: &str| FREE.iter().any(|free| key == *free || free.ends_with('.') && key.starts_with(free));
        let mut fields: BTreeMap<String, String> =
            config.values().into_iter().filter(|(key, _)| !is_free(key)).collect();
        fields.insert("the base".to_owned(), short_hash(&of_base(base)?));
        let (images, class) = (&data.images.subject, &data.images.class);
        let mut of_images = vec![format!("{:?}", data.prior_captions)];
        of_images.extend(images.fingerprint().chain(class.fingerprint()));
        let counts = format!("{} images, {} of the class", images.len(), class.len());
        fields.insert("the data".to_owned(), format!("{counts}, {}", short_hash(&of_images)));
        if let Some(path) = &plan.start_from {
            let bytes = std::fs::read(path);
            let bytes = bytes.map_err(|source| AdapterError::Read { path: path.clone(), source })?;
            fields.insert("the adapter it began with".to_owned(), sha256_hex(&bytes)[..DIGITS].to_owned());
        }
        Ok(Self(fields))
    }

    /// How `now` differs from what the snapshot was made with, one line a field.
    pub(crate) fn differences(&self, now: &Self) -> Vec<String> {
        let names = self.0.keys().chain(now.0.keys().filter(|name| !self.0.contains_key(*name)));
        let said = |text: Option<&String>| text.map_or("unset", String::as_str).to_owned();
        let differing = names.filter(|name| self.0.get(*name) != now.0.get(*name));
        differing.map(|name| format!("{name}: {} -> {}", said(self.0.get(name)), said(now.0.get(name)))).collect()
    }
}

fn of_base(base: &Base) -> Result<Vec<String>, TrainError> {
    let mut parts = vec![base.unet_weights()?.sketch()?, base.vae_weights()?.sketch()?];
    for i in 0..base.num_text_encoders() {
        parts.push(base.text_encoder_weights(i)?.sketch()?);
    }
    parts.push(format!("{:?}", base.noise_schedule().config()));
    Ok(parts)
}

fn short_hash(parts: &[String]) -> String {
    let mut hash = StreamedHash::default();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update(b"\n");
    }
    hash.hex()[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::is_config_key;

    #[test]
    fn every_free_setting_exists() {
        for free in FREE {
            assert!(free.ends_with('.') || is_config_key(free), "{free}");
        }
    }

    #[test]
    fn differences_name_the_field_and_both_values() {
        let of = |fields: &[(&str, &str)]| {
            Fingerprint(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let (then, now) = (of(&[("a", "1"), ("b", "2"), ("c", "3")]), of(&[("a", "1"), ("b", "7"), ("d", "4")]));
        assert_eq!(then.differences(&now), ["b: 2 -> 7", "c: 3 -> unset", "d: unset -> 4"]);
        assert!(then.differences(&then).is_empty());
    }
}

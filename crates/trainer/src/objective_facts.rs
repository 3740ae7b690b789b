//! What an adapter's metadata says about noise, loss and dropout, in the words of sd-scripts.

use std::collections::BTreeMap;

use loralei_adapter::TrainingFacts;

use crate::config::{HuberSchedule, LossKind, Weighting};
use crate::plan::{ComponentPlan, Plan};

impl Plan {
    /// Facts of which only these are known.
    pub(crate) fn objective_facts(&self) -> TrainingFacts {
        let (noise, loss, dropout) = (&self.noise, &self.loss, self.dropout);
        let if_used = |value: f64| (value != 0.0).then_some(value);
        let has_pyramid = noise.pyramid_iterations > 0;
        let is_huber = matches!(loss.kind, LossKind::Huber | LossKind::SmoothL1);
        TrainingFacts {
            network_dropout: if_used(dropout.elements),
            network_args: self.network_args(),
            loss_type: match loss.kind {
                LossKind::L2 => "l2",
                LossKind::L1 => "l1",
                LossKind::Huber => "huber",
                LossKind::SmoothL1 => "smooth_l1",
            }
            .to_owned(),
            huber_c: is_huber.then_some(loss.huber_c),
            huber_schedule: is_huber.then(|| {
                match loss.huber_schedule {
                    HuberSchedule::Snr => "snr",
                    HuberSchedule::Exponential => "exponential",
                    HuberSchedule::Constant => "constant",
                }
                .to_owned()
            }),
            min_snr_gamma: (loss.weighting == Weighting::MinSnr).then_some(loss.min_snr_gamma),
            debiased_estimation: (loss.weighting == Weighting::Debiased).then_some(true),
            noise_offset: if_used(noise.offset),
            noise_offset_random_strength: noise.offset_random.then_some(true),
            adaptive_noise_scale: if_used(noise.offset_adaptive),
            multires_noise_iterations: has_pyramid.then_some(noise.pyramid_iterations as u64),
            multires_noise_discount: has_pyramid.then_some(noise.pyramid_discount),
            ip_noise_gamma: if_used(noise.input_perturbation),
            ..TrainingFacts::default()
        }
    }

    /// Settings of the factors beyond rank and alpha. Those of sd-scripts have its names; blocks, whose layers it numbers, are
    /// said by our patterns.
    fn network_args(&self) -> BTreeMap<String, String> {
        let rates = [("rank_dropout", self.dropout.ranks), ("module_dropout", self.dropout.modules)];
        let mut args: BTreeMap<String, String> = rates
            .into_iter()
            .filter(|(_, rate)| *rate != 0.0)
            .map(|(name, rate)| (name.to_owned(), rate.to_string()))
            .collect();
        let ratio = self.optimizer.loraplus_ratio;
        let subspace = self.components().next().and_then(|component| component.subspace);
        args.extend(subspace.map(|number| ("orthogonal".to_owned(), number.to_string())));
        args.extend((ratio != 1.0).then(|| ("loraplus_lr_ratio".to_owned(), ratio.to_string())));
        let [first, second] = &self.text_encoders;
        let named = [("unet_blocks", &self.unet), ("text_encoder_blocks", first), ("text_encoder_2_blocks", second)];
        for (name, component) in named {
            let blocks = component.as_ref().map(blocks_in_words).unwrap_or_default();
            if !blocks.is_empty() {
                args.insert(name.to_owned(), blocks);
            }
        }
        args
    }
}

/// `PATTERN=rank R alpha A rate X; ...`
fn blocks_in_words(component: &ComponentPlan) -> String {
    let blocks = component.blocks.iter().map(|block| {
        format!("{}=rank {} alpha {} rate {}", block.layers, block.rank, block.alpha, block.learning_rate_ratio)
    });
    blocks.collect::<Vec<_>>().join("; ")
}

//! What programs stumble over, counted once.

use std::collections::{BTreeMap, BTreeSet};

use crate::adapter_file::{AdapterFile, Format};
use crate::base_family::BaseFamily;
use crate::change::Change;
use crate::formats::dotted_key::{PEFT_PREFIX, component_prefix};
use crate::formats::dotted_reader::METADATA_KEY;
use crate::keys::Component;
use crate::source_key::{KeySpelling, SourceKey};

const TEXT_PROJECTIONS: [&str; 4] = ["q_proj", "k_proj", "v_proj", "out_proj"];
const ATTENTION_ENDS: [&str; 4] = ["_to_q", "_to_k", "_to_v", "_to_out_0"];

pub(super) struct Facts<'a> {
    pub(super) keys: &'a [SourceKey],
    pub(super) changes: &'a BTreeMap<String, Change>,
    pub(super) metadata: &'a BTreeMap<String, String>,
    pub(super) format: Format,
    pub(super) family: BaseFamily,
}

impl<'a> Facts<'a> {
    pub(super) fn of(file: &'a AdapterFile) -> Self {
        let AdapterFile { keys, changes, metadata, format, .. } = file;
        Self { keys, changes, metadata, format: *format, family: file.family() }
    }

    pub(super) fn is_kohya(&self) -> bool {
        self.format == Format::Kohya
    }

    pub(super) fn has_spelling(&self, spelling: KeySpelling) -> bool {
        self.keys.iter().any(|key| key.spelling == spelling)
    }

    pub(super) fn has_component(&self, component: Component) -> bool {
        self.changes.keys().any(|module| Component::of_module(module) == Some(component))
    }

    pub(super) fn change(&self, key: &SourceKey) -> Option<&Change> {
        self.changes.get(key.module.as_deref()?)
    }

    pub(super) fn count(&self, is_counted: impl Fn(&str, &Change) -> bool) -> usize {
        self.changes.iter().filter(|(module, change)| is_counted(module, change)).count()
    }

    /// `proj_in` and `proj_out` with another number of dimensions than this family's layers.
    pub(super) fn has_wrong_projections(&self, family: BaseFamily, num_dims: usize) -> bool {
        let is_wrong = |module: &str, change: &Change| {
            is_projection(module) && change.weight_shape().len() == num_dims && matches!(change, Change::Lora(_))
        };
        self.family == family && self.count(is_wrong) > 0
    }

    /// Text attentions that have some of q, k, v, out and not all: which they have.
    pub(super) fn incomplete_text_attentions(&self, component: Component) -> BTreeMap<&'a str, BTreeSet<&'static str>> {
        let mut attentions: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
        for module in self.changes.keys().filter(|module| Component::of_module(module) == Some(component)) {
            let found =
                TEXT_PROJECTIONS.iter().find_map(|end| Some((module.strip_suffix(end)?.strip_suffix('_')?, *end)));
            if let Some((attention, end)) = found.filter(|(attention, _)| attention.ends_with("_self_attn")) {
                attentions.entry(attention).or_default().insert(end);
            }
        }
        attentions.retain(|_, ends| ends.len() < TEXT_PROJECTIONS.len());
        attentions
    }

    /// Attention layers of the U-Net whose alpha is not the most frequent one of the U-Net. Those without one are scaled by 1
    /// everywhere.
    pub(super) fn num_uneven_attention_alphas(&self) -> usize {
        self.num_uneven(|change| change.alpha().map(f32::to_bits), true)
    }

    /// Modules of the U-Net whose rank is not its most frequent one.
    pub(super) fn num_uneven_ranks(&self) -> usize {
        self.num_uneven(Change::rank, false)
    }

    fn num_uneven<T: Ord + Copy>(&self, value: impl Fn(&Change) -> Option<T>, only_attention: bool) -> usize {
        let unet = || self.changes.iter().filter(|(module, _)| Component::of_module(module) == Some(Component::Unet));
        let mut counts: BTreeMap<T, usize> = BTreeMap::new();
        unet().filter_map(|(_, change)| value(change)).for_each(|found| *counts.entry(found).or_default() += 1);
        let usual = counts.into_iter().max_by_key(|(_, count)| *count).map(|(found, _)| found);
        unet()
            .filter(|(module, _)| !only_attention || is_attention(module))
            .filter(|(_, change)| value(change).is_some() && value(change) != usual)
            .count()
    }

    /// Components in the header's settings that have no tensors there, and the other way round.
    pub(super) fn settings_lack_a_component(&self) -> bool {
        let Some(text) = self.metadata.get(METADATA_KEY) else { return false };
        let component = |component| component_prefix(component);
        let wanted: BTreeSet<&str> =
            self.changes.keys().filter_map(|module| Component::of_module(module)).map(component).collect();
        wanted.iter().any(|prefix| !text.contains(&format!("\"{prefix}")))
    }

    /// The width by which InvokeAI tells the base.
    pub(super) fn has_telling_width(&self) -> bool {
        self.changes.iter().any(|(module, change)| {
            let is_telling =
                module.ends_with("attn2_to_k") || module.ends_with("attn2_to_v") || module.contains("_self_attn_");
            is_telling && matches!(change.weight_shape().get(1), Some(768 | 1024 | 2048))
        })
    }

    /// A file that says nothing of the family by which A1111 and Forge list it.
    pub(super) fn is_hidden_from_lists(&self) -> bool {
        let entry = |key: &str| self.metadata.get(key).map(String::as_str).unwrap_or_default();
        let has_metadata = self.metadata.keys().any(|key| key.starts_with("ss_") || key.starts_with("modelspec."));
        match self.family {
            BaseFamily::Sdxl => has_metadata && !entry("ss_base_model_version").starts_with("sdxl_"),
            BaseFamily::Sd2 => has_metadata && entry("ss_v2") != "True",
            BaseFamily::Sd1 | BaseFamily::Unknown => false,
        }
    }
}

/// Dotted keys of any generation.
pub(super) fn is_dotted(key: &SourceKey) -> bool {
    use KeySpelling::{LinearLayer, LoraDown, Peft, Processor};
    matches!(key.spelling, Processor | LoraDown | LinearLayer | Peft)
}

/// Keys with kohya's module names.
pub(super) fn is_kohya_key(key: &SourceKey) -> bool {
    matches!(key.spelling, KeySpelling::Kohya | KeySpelling::KohyaOriginal)
}

pub(super) fn is_text(key: &SourceKey) -> bool {
    key.module.as_deref().and_then(Component::of_module).is_some_and(Component::is_text_encoder)
}

pub(super) fn is_of(key: &SourceKey, component: Component) -> bool {
    key.module.as_deref().and_then(Component::of_module) == Some(component)
}

pub(super) fn is_attention(module: &str) -> bool {
    Component::of_module(module) == Some(Component::Unet) && ATTENTION_ENDS.iter().any(|end| module.ends_with(end))
}

pub(super) fn is_projection(module: &str) -> bool {
    module.contains("_attentions_") && (module.ends_with("_proj_in") || module.ends_with("_proj_out"))
}

pub(super) fn has_peft_prefix(key: &SourceKey) -> bool {
    key.key.starts_with(PEFT_PREFIX)
}

pub(super) fn has_component_prefix(key: &SourceKey) -> bool {
    ["unet.", "text_encoder.", "text_encoder_2."].iter().any(|prefix| key.key.starts_with(prefix))
}

pub(super) fn leaf(key: &SourceKey) -> &str {
    key.key.split_once('.').map_or("", |(_, leaf)| leaf)
}

pub(super) fn is_alpha(key: &SourceKey) -> bool {
    key.key.rsplit_once('.').is_some_and(|(_, leaf)| leaf == "alpha")
}

/// Layers that sd-scripts never trains and therefore does not know.
pub(super) fn is_outside_of_blocks(module: &str) -> bool {
    ["conv_in", "conv_out", "time_embedding_", "add_embedding_"]
        .iter()
        .any(|start| module.strip_prefix(Component::Unet.prefix()).is_some_and(|name| name.starts_with(start)))
}

/// DoRA with one length for each row of the weight.
pub(super) fn is_row_dora(change: &Change) -> bool {
    let Change::Dora(dora) = change else { return false };
    dora.magnitude.shape.first() == dora.direction.weight_shape().first()
}

//! Which Stable Diffusion an adapter belongs to, as far as its layers tell.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Adapter;
use crate::concatenation::weight_shape;
use crate::keys::Component;

/// A family of bases whose adapters fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFamily {
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Stable Diffusion XL.
    Sdxl,
    /// Neither the layers nor the metadata tell.
    Unknown,
}

impl BaseFamily {
    /// As people write it: `Stable Diffusion 1.x`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Sdxl => "Stable Diffusion XL",
            Self::Unknown => "unknown",
        }
    }

    /// Told by the width of the text in cross-attention (768, 1024, 2048), then by the width of the text encoder, then by
    /// the metadata, then by the prefixes of two text encoders. `layers` are kohya's module names with the shapes of the
    /// weights that are changed.
    pub fn of<'a>(
        mut layers: impl Iterator<Item = (&'a str, Vec<usize>)> + Clone,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        let inputs = |is_wanted: fn(Component, &str) -> bool| {
            layers.clone().find_map(move |(module, shape)| {
                let component = Component::of_module(module)?;
                is_wanted(component, module).then(|| shape.get(1).copied())?
            })
        };
        let cross = inputs(|component, module| {
            component == Component::Unet && (module.ends_with("attn2_to_k") || module.ends_with("attn2_to_v"))
        });
        let text = inputs(|component, module| {
            component == Component::TextEncoder && (module.contains("_self_attn_") || module.ends_with("_mlp_fc1"))
        });
        let by_width = match (cross, text) {
            (Some(768), _) | (None, Some(768)) => Some(Self::Sd1),
            (Some(1024), _) | (None, Some(1024)) => Some(Self::Sd2),
            (Some(2048), _) => Some(Self::Sdxl),
            _ => None,
        };
        by_width.or_else(|| Self::of_metadata(metadata)).unwrap_or_else(|| {
            let has_two = layers.any(|(module, _)| {
                matches!(Component::of_module(module), Some(Component::TextEncoder1 | Component::TextEncoder2))
            });
            if has_two { Self::Sdxl } else { Self::Unknown }
        })
    }

    /// The same for plain LoRA.
    pub fn of_adapter(adapter: &Adapter) -> Self {
        let layers = adapter.modules.iter().map(|(name, module)| (name.as_str(), weight_shape(module)));
        Self::of(layers, &adapter.metadata)
    }

    fn of_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let entry = |name: &str| metadata.get(name).map(String::as_str).unwrap_or_default();
        let (version, architecture) = (entry("ss_base_model_version"), entry("modelspec.architecture"));
        let says = |version_start: &str, architecture_start: &str| {
            version.starts_with(version_start) || architecture.starts_with(architecture_start)
        };
        match () {
            () if says("sdxl", "stable-diffusion-xl") => Some(Self::Sdxl),
            () if says("sd_v2", "stable-diffusion-v2") => Some(Self::Sd2),
            () if says("sd_v1", "stable-diffusion-v1") => Some(Self::Sd1),
            () => None,
        }
    }
}

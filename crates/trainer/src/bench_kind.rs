//! The networks that `bench step` measures: of the true size of a family, with random weights.

use loralei_model::{ModelError, UnetConfig};
use serde::Serialize;

/// A family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchKind {
    /// Stable Diffusion 1.5.
    #[default]
    Sd15,
    /// Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952).
    Sdxl,
}

/// What differs from the defaults of [`UnetConfig`], which are those of SD 1.x but for the text's width.
const SD15: &str = r#"{"cross_attention_dim": 768}"#;
const SDXL: &str = r#"{
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "use_linear_projection": true, "sample_size": 128,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}"#;

impl BenchKind {
    /// Its U-Net, as its `unet/config.json` describes it.
    ///
    /// # Errors
    /// None that a test would not have met.
    pub fn unet(self) -> Result<UnetConfig, ModelError> {
        match self {
            Self::Sd15 => UnetConfig::parse(SD15, "SD 1.5"),
            Self::Sdxl => UnetConfig::parse(SDXL, "SDXL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loralei_model::UnetCost;

    #[test]
    fn a_lora_step_at_512_px_takes_the_arithmetic_that_is_known_of_each_family() {
        // Without products of attention, SD 1.x takes 339 GMAC a forward pass (Kim et al. 2023, arXiv 2305.15798).
        for (kind, forward_gflop, step_gflop) in [(BenchKind::Sd15, 803, 1732), (BenchKind::Sdxl, 1588, 3232)] {
            let cost = UnetCost::new(&kind.unet().unwrap(), 64, 64, 77);
            assert_eq!(cost.forward_flops() / 1_000_000_000, forward_gflop, "{kind:?}");
            assert_eq!(cost.lora_step_flops() / 1_000_000_000, step_gflop, "{kind:?}");
        }
    }
}

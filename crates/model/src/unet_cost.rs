//! How much arithmetic the U-Net takes: multiplications with addition (MACs) of its products and convolutions. Norms,
//! nonlinearities and sums are left out, as usual: they cost time, but not arithmetic.

use crate::config::UnetConfig;
use crate::time_embedding::TimeEmbedding;

/// The MACs of one forward pass of one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnetCost {
    /// Of layers with weights: linear layers and convolutions.
    pub layer_macs: u64,
    /// Of the products of attention: Q K^T and P V.
    pub attention_macs: u64,
}

impl UnetCost {
    /// For latents of `height` x `width` under a text of `tokens`.
    pub fn new(config: &UnetConfig, height: usize, width: usize, tokens: usize) -> Self {
        let mut count = Count { config, height, width, tokens, cost: Self::default() };
        count.network();
        count.cost
    }

    /// Floating-point operations of a forward pass: 2 a MAC.
    pub fn forward_flops(self) -> u64 {
        2 * (self.layer_macs + self.attention_macs)
    }

    /// Floating-point operations of a LoRA step: forward, and backward to the activations. A layer's backward is one
    /// product of the same size, since its weight is frozen; an attention product's is two. What is computed twice to
    /// save memory does not count, nor do the factors' own products (0.1 % at rank 4).
    pub fn lora_step_flops(self) -> u64 {
        2 * (2 * self.layer_macs + 3 * self.attention_macs)
    }
}

struct Count<'a> {
    config: &'a UnetConfig,
    height: usize,
    width: usize,
    tokens: usize,
    cost: UnetCost,
}

impl Count<'_> {
    fn network(&mut self) {
        let config = self.config;
        let (channels, last) = (&config.block_out_channels, config.block_out_channels.len() - 1);
        let time_width = TimeEmbedding::width(config);
        self.layer(1, channels[0] + time_width, time_width);
        if let Some(added) = config.added_conditioning() {
            self.layer(1, added.width() + time_width, time_width);
        }
        self.conv3x3(0, config.in_channels, channels[0]);
        for level in 0..=last {
            self.down_block(level);
        }
        if config.mid_block_type.is_some() {
            self.resnet(last, channels[last], channels[last]);
            self.transformer(last);
            self.resnet(last, channels[last], channels[last]);
        }
        for i in 0..=last {
            self.up_block(i, last - i);
        }
        self.conv3x3(0, channels[0], config.out_channels);
    }

    fn down_block(&mut self, level: usize) {
        let channels = &self.config.block_out_channels;
        let (from_above, num_out) = (channels[level.saturating_sub(1)], channels[level]);
        for i in 0..self.config.layers_per_block.at(level) {
            self.resnet(level, if i == 0 { from_above } else { num_out }, num_out);
            if self.config.down_block_types[level] == "CrossAttnDownBlock2D" {
                self.transformer(level);
            }
        }
        if level + 1 < channels.len() {
            self.conv3x3(level + 1, num_out, num_out);
        }
    }

    fn up_block(&mut self, i: usize, level: usize) {
        let channels = &self.config.block_out_channels;
        let num_out = channels[level];
        let from_below = channels[(level + 1).min(channels.len() - 1)];
        let from_above = channels[level.saturating_sub(1)];
        let num_resnets = self.config.layers_per_block.at(level) + 1;
        for j in 0..num_resnets {
            let hidden = if j == 0 { from_below } else { num_out };
            let skip = if j + 1 == num_resnets { from_above } else { num_out };
            self.resnet(level, hidden + skip, num_out);
            if self.config.up_block_types[i] == "CrossAttnUpBlock2D" {
                self.transformer(level);
            }
        }
        if level > 0 {
            self.conv3x3(level - 1, num_out, num_out);
        }
    }

    fn resnet(&mut self, level: usize, num_in: usize, num_out: usize) {
        self.conv3x3(level, num_in, num_out);
        self.layer(1, TimeEmbedding::width(self.config), num_out);
        self.conv3x3(level, num_out, num_out);
        if num_in != num_out {
            self.layer(self.pixels(level), num_in, num_out);
        }
    }

    fn transformer(&mut self, level: usize) {
        let (pixels, tokens) = (self.pixels(level), self.tokens);
        let c = self.config.block_out_channels[level];
        let context = self.config.cross_attention_dim.at(level);
        self.layer(pixels, c, 2 * c); // in and out
        for _ in 0..self.config.transformer_layers_per_block.at(level) {
            self.layer(pixels, c, 4 * c); // to itself: q, k, v, out
            self.attention(pixels, pixels, c);
            self.layer(pixels, c, 2 * c); // to the text: q, out
            self.layer(tokens, context, 2 * c); // k, v
            self.attention(pixels, tokens, c);
            self.layer(pixels, c, 12 * c); // feed-forward: 8 in, 4 out
        }
    }

    fn pixels(&self, level: usize) -> usize {
        (self.height >> level) * (self.width >> level)
    }

    /// `level` is that of its output.
    fn conv3x3(&mut self, level: usize, num_in: usize, num_out: usize) {
        self.layer(self.pixels(level), 9 * num_in, num_out);
    }

    fn layer(&mut self, rows: usize, num_in: usize, num_out: usize) {
        self.cost.layer_macs += (rows * num_in * num_out) as u64;
    }

    fn attention(&mut self, queries: usize, keys: usize, width: usize) {
        self.cost.attention_macs += 2 * (queries * keys * width) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sd15(side: usize) -> UnetCost {
        let config = UnetConfig::parse(r#"{"cross_attention_dim": 768}"#, "c").unwrap();
        UnetCost::new(&config, side, side, 77)
    }

    #[test]
    fn sd15_costs_what_is_published() {
        // 339 GMAC for SD 1.x without the products of attention (Kim et al. 2023, arXiv 2305.15798).
        let cost = sd15(64);
        assert_eq!(cost.layer_macs / 100_000_000, 3386, "{cost:?}");
        assert_eq!((cost.attention_macs + 50_000_000) / 100_000_000, 630, "{cost:?}");
        assert_eq!(cost.forward_flops() / 1_000_000_000, 803);
        assert_eq!((cost.lora_step_flops() + 5_000_000_000) / 10_000_000_000, 173);
    }

    // Worked out apart from this code, from the shapes of diffusers' network.
    #[test]
    fn sdxl_costs_what_its_shapes_say() {
        let config = UnetConfig::sdxl();
        for (size_px, forward, step) in [(512, 1.59, 3.23), (768, 3.64, 7.54), (1024, 6.76, 14.3)] {
            let cost = UnetCost::new(&config, size_px / 8, size_px / 8, 77);
            for (flops, expected) in [(cost.forward_flops(), forward), (cost.lora_step_flops(), step)] {
                assert!((flops as f64 / 1e12 / expected - 1.0).abs() < 4e-3, "{size_px} px: {flops}, not {expected} T");
            }
        }
    }

    #[test]
    fn other_sizes_are_not_proportional_to_their_area() {
        let gmac = |side| sd15(side).forward_flops() as f64 / 2e9;
        for (side, expected) in [(32, 90.1), (48, 211.5), (64, 401.6), (96, 1074.0)] {
            assert!((gmac(side) / expected - 1.0).abs() < 1e-3, "{side}: {}", gmac(side));
        }
    }
}

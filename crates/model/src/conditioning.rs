//! What the U-Net is told besides noisy latents and time: the encoded text and, where the base has learned to listen, the text
//! as a whole and the sizes that a picture had (Podell et al. 2023, "SDXL", arXiv 2307.01952, sections 2.1 and 2.2).

use candle_core::{Device, Result, Tensor};

/// Texts as the U-Net takes them.
#[derive(Clone, Debug)]
pub struct EncodedText {
    /// Vectors of the tokens: (b, tokens, width).
    pub context: Tensor,
    /// One vector of the whole text, where the base has one: (b, pooled width).
    pub pooled: Option<Tensor>,
}

impl EncodedText {
    /// The same text as several encoders see it: vectors of a token side by side. At most one of them pools.
    ///
    /// # Errors
    /// Texts of different lengths.
    pub fn side_by_side(of_encoders: &[Self]) -> Result<Self> {
        let contexts: Vec<&Tensor> = of_encoders.iter().map(|text| &text.context).collect();
        let pooled = of_encoders.iter().find_map(|text| text.pooled.clone());
        Ok(Self { context: Tensor::cat(&contexts, 2)?, pooled })
    }

    /// Several batches as one.
    ///
    /// # Errors
    /// Texts of different lengths, of which some are pooled and others not.
    pub fn cat(batches: &[&Self]) -> Result<Self> {
        let along = |parts: Vec<&Tensor>| Tensor::cat(&parts, 0);
        let pooled: Option<Vec<&Tensor>> = batches.iter().map(|text| text.pooled.as_ref()).collect();
        Ok(Self {
            context: along(batches.iter().map(|text| &text.context).collect())?,
            pooled: pooled.map(along).transpose()?,
        })
    }

    /// Applies `f` to both tensors, whose first axis are the texts.
    ///
    /// # Errors
    /// As `f`.
    pub fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { context: f(&self.context)?, pooled: self.pooled.as_ref().map(&f).transpose()? })
    }

    /// One text, `b` times.
    ///
    /// # Errors
    /// No memory.
    pub fn repeated(&self, b: usize) -> Result<Self> {
        self.map(|x| if x.rank() == 3 { x.repeat((b, 1, 1)) } else { x.repeat((b, 1)) })
    }

    /// Tokens of each text, marks and padding included.
    pub fn num_tokens(&self) -> usize {
        self.context.dims().get(1).copied().unwrap_or_default()
    }
}

/// The size of a picture, and how it came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureSizes {
    /// Width and height before anything was done to it, in pixels.
    pub original_px: (usize, usize),
    /// Pixels that were cut off on the left and at the top, after scaling.
    pub crop_px: (usize, usize),
    /// Width and height as the network sees it, in pixels.
    pub target_px: (usize, usize),
}

impl PictureSizes {
    /// How many numbers say it.
    pub(crate) const COUNT: usize = 6;

    /// A picture of `size_px` (width, height) that nothing was done to.
    pub fn whole(size_px: (usize, usize)) -> Self {
        Self { original_px: size_px, crop_px: (0, 0), target_px: size_px }
    }

    /// Original height and width, cut off at the top and on the left, target height and width, as diffusers' `time_ids`.
    pub fn time_ids(self) -> [f32; 6] {
        let [original, crop, target] = [self.original_px, self.crop_px, self.target_px];
        [original.1, original.0, crop.1, crop.0, target.1, target.0].map(|px| px as f32)
    }

    /// Those of several pictures: (b, 6), f32, on the processor.
    ///
    /// # Errors
    /// No memory.
    pub fn tensor(pictures: &[Self]) -> Result<Tensor> {
        let values: Vec<f32> = pictures.iter().flat_map(|sizes| sizes.time_ids()).collect();
        Tensor::from_vec(values, (pictures.len(), Self::COUNT), &Device::Cpu)
    }
}

/// What the prediction depends on besides latents and time.
#[derive(Clone, Debug)]
pub struct Conditioning {
    /// The text.
    pub text: EncodedText,
    /// Sizes of the pictures, [`PictureSizes::time_ids`] of each: (b, 6), f32. A network that does not listen to sizes leaves
    /// them out.
    pub time_ids: Option<Tensor>,
}

impl Conditioning {
    /// Conditioning on the vectors of tokens alone: (b, tokens, width).
    pub fn text(context: Tensor) -> Self {
        Self { text: EncodedText { context, pooled: None }, time_ids: None }
    }

    /// Conditioning on texts for pictures of the same number.
    pub fn new(text: EncodedText, time_ids: Option<Tensor>) -> Self {
        Self { text, time_ids }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_height_before_width_and_top_before_left() {
        let sizes = PictureSizes { original_px: (1500, 1000), crop_px: (7, 16), target_px: (1216, 832) };
        assert_eq!(sizes.time_ids(), [1000.0, 1500.0, 16.0, 7.0, 832.0, 1216.0]);
        assert_eq!(PictureSizes::whole((64, 32)).time_ids(), [32.0, 64.0, 0.0, 0.0, 32.0, 64.0]);
    }
}

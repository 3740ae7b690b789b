//! Pictures of prompts and seeds, by the networks at hand, a few at a time.

use candle_core::Tensor;
use loralei_model::{
    Base, Conditioner, DrawingSettings, EncodedPrompts, ModelError, NoiseSchedule, NoiseSource, TextEncoder, TextStage,
    Unet, Vae, draw_latents, ops,
};
use loralei_picture::Picture;

use crate::error::TrainError;

/// Latents that are drawn together: as many pictures as this is times theirs, so that large ones come one by one.
pub(crate) const LATENTS_AT_ONCE: usize = 64 * 64;

/// What is needed to draw.
pub(crate) struct Drawer<'a> {
    pub(crate) base: &'a Base,
    pub(crate) unet: &'a Unet,
    pub(crate) schedule: &'a NoiseSchedule,
    pub(crate) vae: &'a Vae,
}

/// A picture to draw.
#[derive(Debug, Clone)]
pub(crate) struct PictureRequest {
    pub(crate) prompts: EncodedPrompts,
    pub(crate) seed: u64,
    /// Width and height, which the base must take.
    pub(crate) size_px: (usize, usize),
    pub(crate) settings: DrawingSettings,
}

impl PictureRequest {
    /// Whether both can be drawn together.
    fn fits(&self, other: &Self) -> bool {
        self.size_px == other.size_px
            && self.settings == other.settings
            && self.prompts.prompt.num_tokens() == other.prompts.prompt.num_tokens()
    }
}

/// Prompts with their negative prompts, as the U-Net takes them.
///
/// # Errors
/// Text that the tokenizer cannot encode.
pub(crate) fn encode(
    base: &Base,
    encoders: &[&TextEncoder],
    prompts: &[(&str, &str)],
) -> Result<Vec<EncodedPrompts>, TrainError> {
    let tokenizers = (0..encoders.len()).map(|i| base.tokenizer(i)).collect::<Result<Vec<_>, _>>()?;
    let stages = tokenizers.iter().zip(encoders).map(|(tokenizer, encoder)| TextStage { tokenizer, encoder });
    let conditioner = Conditioner::new(stages.collect(), 1)?.with_zeros_for_absent(base.zeros_for_empty_prompt());
    let encode = |(prompt, negative): &(&str, &str)| conditioner.encode(prompt, given(negative));
    Ok(ops::without_graph(|| prompts.iter().map(encode).collect::<Result<Vec<_>, _>>())?)
}

/// Settings cannot leave a negative prompt out: an empty one is none.
pub(crate) fn given(negative: &str) -> Option<&str> {
    (!negative.is_empty()).then_some(negative)
}

impl Drawer<'_> {
    /// How many of this size are drawn together.
    pub(crate) fn at_once(&self, size_px: (usize, usize)) -> usize {
        let (_, height, width) = self.latents(size_px);
        (LATENTS_AT_ONCE / (height * width).max(1)).max(1)
    }

    /// A picture of each request. `progress` is told of steps made.
    ///
    /// # Errors
    /// A tensor operation that fails, a picture whose numbers are not finite.
    pub(crate) fn pictures(
        &self,
        requests: &[PictureRequest],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<Picture>, TrainError> {
        let mut pictures = Vec::with_capacity(requests.len());
        let alike = requests.chunk_by(PictureRequest::fits);
        for requests in alike.flat_map(|alike| alike.chunks(self.at_once(alike[0].size_px))) {
            let PictureRequest { size_px, settings, .. } = requests[0];
            let prompts: Vec<EncodedPrompts> = requests.iter().map(|request| request.prompts.clone()).collect();
            let noise = NoiseSource::Seeds(requests.iter().map(|request| request.seed).collect());
            let step = &mut |_| progress(requests.len());
            let size = self.latents(size_px);
            let latents = draw_latents(self.unet, self.schedule, &prompts, &noise, size, &settings, step)?;
            for (j, request) in requests.iter().enumerate() {
                pictures.push(self.decode(&latents.narrow(0, j, 1)?, request)?);
            }
        }
        Ok(pictures)
    }

    /// Channels, height and width.
    fn latents(&self, (width_px, height_px): (usize, usize)) -> (usize, usize, usize) {
        let vae = self.base.vae_config();
        let side = vae.downsampling();
        (vae.latent_channels, height_px / side, width_px / side)
    }

    fn decode(&self, latents: &Tensor, request: &PictureRequest) -> Result<Picture, TrainError> {
        let pixels = ops::without_graph(|| self.vae.decode(latents))?.flatten_all()?.to_vec1::<f32>()?;
        if pixels.iter().any(|value| !value.is_finite()) {
            return Err(ModelError::NonFinitePicture { seed: request.seed }.into());
        }
        Ok(Picture::from_unit(&pixels, (request.size_px.0 as u32, request.size_px.1 as u32))?)
    }
}

//! PNG files: a picture, and the text that says how it was drawn.
//!
//! The text goes where the web interfaces put it: keyword `parameters`, before the pixels; a `tEXt` chunk where it is
//! Latin-1, else an uncompressed `iTXt` chunk, which is UTF-8 (PNG specification, third edition, 11.3.3).

use std::io::Cursor;

use crate::{Picture, PictureError};

/// Keyword of the text chunk.
pub const PARAMETERS_KEYWORD: &str = "parameters";

impl Picture {
    /// The bytes of a PNG file, 8-bit RGB, with `parameters` (see [`GenerationParameters`](crate::GenerationParameters))
    /// in its text chunk. The same picture and text give the same bytes. NUL, which the chunk cannot hold, becomes a
    /// space.
    ///
    /// # Errors
    /// If the encoder refuses, which it has no reason to.
    pub fn to_png(&self, parameters: Option<&str>) -> Result<Vec<u8>, PictureError> {
        self.encode(parameters).map_err(|cause| PictureError::Encode { cause })
    }

    fn encode(&self, parameters: Option<&str>) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width_px(), self.height_px());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Balanced);
        if let Some(text) = parameters {
            let (keyword, text) = (PARAMETERS_KEYWORD.to_owned(), text.replace('\0', " "));
            if text.chars().all(|char| u32::from(char) < 0x100) {
                encoder.add_text_chunk(keyword, text)?;
            } else {
                encoder.add_itxt_chunk(keyword, text)?;
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.rgb())?;
        writer.finish()?;
        Ok(bytes)
    }
}

/// The text under the keyword `parameters` of a PNG file's `bytes`, from whichever kind of text chunk holds it, before
/// or after the pixels; `None` where there is none. The pixels are not decoded.
///
/// # Errors
/// If the bytes are no PNG, if the file is cut off or damaged, or if a compressed text unpacks to more than 2 MiB.
pub fn read_parameters(bytes: &[u8]) -> Result<Option<String>, PictureError> {
    parameters_of(bytes).map_err(|cause| PictureError::Decode { cause })
}

fn parameters_of(bytes: &[u8]) -> Result<Option<String>, png::DecodingError> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    reader.finish()?;
    let info = reader.info();
    if let Some(chunk) = info.utf8_text.iter().find(|chunk| chunk.keyword == PARAMETERS_KEYWORD) {
        return chunk.get_text().map(Some);
    }
    if let Some(chunk) = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == PARAMETERS_KEYWORD) {
        return Ok(Some(chunk.text.clone()));
    }
    let compressed = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == PARAMETERS_KEYWORD);
    compressed.map(png::text_metadata::ZTXtChunk::get_text).transpose()
}

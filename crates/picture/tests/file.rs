//! PNG files, read back by the `png` decoder and by our own reader of the text.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use loralei_picture::{Picture, PictureError, read_parameters};

fn picture() -> Picture {
    Picture::from_rgb(7, 5, (0..105).map(|value| (value * 37 % 256) as u8).collect()).unwrap()
}

/// Keyword, text, and whether it was an `iTXt` chunk.
type Text = (String, String, bool);

/// Width, height, bytes and texts, as the decoder gives them.
fn decoded(bytes: &[u8]) -> (u32, u32, Vec<u8>, Vec<Text>) {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
    let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut rgb).unwrap();
    assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|text| (text.keyword.clone(), text.text.clone(), false));
    let utf8 = info.utf8_text.iter().map(|text| {
        assert!(!text.compressed);
        (text.keyword.clone(), text.get_text().unwrap(), true)
    });
    (frame.width, frame.height, rgb, latin1.chain(utf8).collect())
}

#[test]
fn pixels_come_back_and_the_same_picture_gives_the_same_bytes() {
    let bytes = picture().to_png(None).unwrap();
    assert_eq!(decoded(&bytes), (7, 5, picture().rgb().to_vec(), vec![]));
    assert_eq!(bytes, picture().to_png(None).unwrap());
    assert_eq!(read_parameters(&bytes).unwrap(), None);
}

#[test]
fn latin_text_is_a_text_chunk_and_any_other_an_international_one() {
    for (text, is_itxt) in [
        ("a cat\nSteps: 30", false),
        ("caf\u{e9} \u{ff}, \u{a3}5", false),
        ("\u{732b} \u{1f419} z\u{142}oty\nSteps: 30", true),
        ("", false),
    ] {
        let bytes = picture().to_png(Some(text)).unwrap();
        let (.., rgb, texts) = decoded(&bytes);
        assert_eq!(texts, [("parameters".to_owned(), text.to_owned(), is_itxt)]);
        assert_eq!(rgb, picture().rgb());
        assert_eq!(read_parameters(&bytes).unwrap().as_deref(), Some(text));
    }
}

#[test]
fn a_nul_in_the_text_becomes_a_space() {
    for text in ["a\0b", "\u{732b}\0b"] {
        let bytes = picture().to_png(Some(text)).unwrap();
        assert_eq!(read_parameters(&bytes).unwrap().unwrap(), text.replace('\0', " "));
    }
}

#[test]
fn text_of_other_programs_is_found_compressed_and_after_the_pixels() {
    let other = |chunk: &dyn Fn(&mut png::Writer<&mut Vec<u8>>)| {
        let mut bytes = Vec::new();
        let mut writer = png::Encoder::new(&mut bytes, 1, 1).write_header().unwrap();
        let comment = png::text_metadata::TEXtChunk::new("Comment", "no parameters");
        writer.write_text_chunk(&comment).unwrap();
        writer.write_image_data(&[9]).unwrap();
        chunk(&mut writer);
        writer.finish().unwrap();
        bytes
    };
    let latin1 = other(&|writer| {
        writer.write_text_chunk(&png::text_metadata::ZTXtChunk::new("parameters", "caf\u{e9}")).unwrap();
    });
    assert_eq!(read_parameters(&latin1).unwrap().as_deref(), Some("caf\u{e9}"));
    let utf8 = other(&|writer| {
        let mut chunk = png::text_metadata::ITXtChunk::new("parameters", "\u{732b}");
        chunk.compressed = true;
        writer.write_text_chunk(&chunk).unwrap();
    });
    assert_eq!(read_parameters(&utf8).unwrap().as_deref(), Some("\u{732b}"));
    assert_eq!(read_parameters(&other(&|_| ())).unwrap(), None);
}

#[test]
fn what_is_no_whole_png_is_an_error() {
    let bytes = picture().to_png(Some("a cat")).unwrap();
    for num_bytes in 0..bytes.len() - 12 {
        let error = read_parameters(&bytes[..num_bytes]).unwrap_err();
        assert!(matches!(error, PictureError::Decode { .. }), "{num_bytes}: {error}");
    }
    assert!(read_parameters(b"\xff\xd8\xff\xe0 a JPEG").unwrap_err().hint().is_some());
}

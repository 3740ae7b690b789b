//! The text of the generation parameters.

use loralei_picture::{AdapterUse, GenerationParameters};

fn adapter(name: &str, scale: f64, hash: Option<&str>) -> AdapterUse {
    AdapterUse { name: name.to_owned(), scale, hash: hash.map(str::to_owned) }
}

fn version() -> String {
    format!("Version: loralei {}", env!("CARGO_PKG_VERSION"))
}

#[test]
fn everything_is_written_in_the_order_of_the_web_interface() {
    let parameters = GenerationParameters {
        prompt: "a cat,\nin oil".to_owned(),
        negative_prompt: "blurry, text".to_owned(),
        adapters: vec![adapter("oil-v1.2", 0.8, Some("0123456789abcdef0123")), adapter("noise", -0.5, None)],
        steps: Some(30),
        sampler: Some("DPM++ 2M".to_owned()),
        guidance: Some(7.5),
        seed: Some(u64::MAX),
        size_px: Some((512, 768)),
        original_size_px: Some((1024, 768)),
        crop_px: Some((0, 16)),
        model_hash: Some("6ce0161689".to_owned()),
        model: Some("v1-5-pruned".to_owned()),
        clip_skip: Some(2),
    };
    let expected = "a cat,\nin oil <lora:oil-v1.2:0.8> <lora:noise:-0.5>\nNegative prompt: blurry, text\n\
        Steps: 30, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 18446744073709551615, Size: 512x768, Original size: 1024x768, Crop: 0x16, \
        Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, Lora hashes: \"oil-v1.2: 0123456789ab\", ";
    assert_eq!(parameters.to_string(), format!("{expected}{}", version()));
}

#[test]
fn what_is_not_known_is_left_out() {
    assert_eq!(GenerationParameters::default().to_string(), format!("\n{}", version()));
    let parameters = GenerationParameters { adapters: vec![adapter("oil", 1.0, None)], ..Default::default() };
    assert_eq!(parameters.to_string(), format!("<lora:oil:1>\n{}", version()));
}

#[test]
fn values_that_would_break_the_list_are_json_strings() {
    for (model, written) in [
        ("sd, pruned", r#""sd, pruned""#),
        ("C:\\models\\sd", r#""C:\\models\\sd""#),
        ("two\nlines", r#""two\nlines""#),
        ("\"quoted\"", r#""\"quoted\"""#),
        ("\u{732b}, \u{e9}", "\"\u{732b}, \u{e9}\""),
        ("plain \"name\" 1.5", "plain \"name\" 1.5"),
    ] {
        let parameters = GenerationParameters { model: Some(model.to_owned()), ..Default::default() };
        assert_eq!(parameters.to_string(), format!("\nModel: {written}, {}", version()));
    }
}

#[test]
fn names_of_adapters_cannot_end_their_mention_early() {
    let parameters = GenerationParameters {
        prompt: "a cat".to_owned(),
        adapters: vec![adapter("a:b>c,\nd", 1.0, Some("ab")), adapter("z\u{142}oty", 2.0, Some("cd"))],
        ..Default::default()
    };
    let expected = "a cat <lora:a_b_c__d:1> <lora:z\u{142}oty:2>\nLora hashes: \"a_b_c__d: ab, z\u{142}oty: cd\", ";
    assert_eq!(parameters.to_string(), format!("{expected}{}", version()));
}

//! CLIP's own vocabulary, for bases that bring no tokenizer: see `vocabulary/README.md`.

use crate::tokenizer::TokenizerFiles;
use serde_json::{Map, Value, json};

const MERGES: &str = include_str!("../vocabulary/merges.txt");

/// Entries of the vocabulary.
pub(crate) const NUM_TOKENS: usize = 49_408;

/// The tokenizer's files as a diffusers folder has them. `pad_token` is `!` in SD 2.x and the end mark in SD 1.x.
pub(crate) fn tokenizer_files(pad_token: &str) -> TokenizerFiles {
    TokenizerFiles {
        path: "CLIP's vocabulary".into(),
        tokenizer_json: None,
        vocab: Some(vocabulary()),
        merges: Some(format!("#version: 0.2\n{MERGES}")),
        config: Some(tokenizer_config(pad_token)),
    }
}

/// As transformers writes it.
fn tokenizer_config(pad_token: &str) -> String {
    let config = json!({
        "tokenizer_class": "CLIPTokenizer", "do_lower_case": true, "model_max_length": 77, "errors": "replace",
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": pad_token, "add_prefix_space": false,
    });
    format!("{config:#}\n")
}

/// `vocab.json`: the bytes, the bytes at the end of a word, what each merge makes, the marks.
fn vocabulary() -> String {
    let bytes = byte_letters().map(String::from);
    let at_end = byte_letters().map(|letter| format!("{letter}</w>"));
    let merged = MERGES.lines().map(|pair| pair.replace(' ', ""));
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    let tokens = bytes.chain(at_end).chain(merged).chain(marks);
    let entries: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    Value::Object(entries).to_string()
}

/// The letter that stands for each byte: printable ones for themselves, then the others from U+0100 on.
fn byte_letters() -> impl Iterator<Item = char> {
    let is_printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let num_others = (0..256).filter(|byte| !is_printable(byte)).count() as u32;
    (0..256).filter(is_printable).chain(0x100..0x100 + num_others).filter_map(char::from_u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    // from transformers import CLIPTokenizer; CLIPTokenizer.from_pretrained("openai/clip-vit-large-patch14")
    // The ids are published in many places: "a photo of a cat" is 320 1125 539 320 2368.
    #[test]
    fn known_sentences_have_their_published_ids() {
        let tokenizer = Tokenizer::new(&tokenizer_files("<|endoftext|>"), 77).unwrap();
        let tokens = tokenizer.encode("A photo  of a cat").unwrap().input_ids;
        assert_eq!(tokens[..8], [49406, 320, 1125, 539, 320, 2368, 49407, 49407]);
        assert_eq!(tokens.len(), 77);
        let tokenizer = Tokenizer::new(&tokenizer_files("!"), 77).unwrap();
        assert_eq!(tokenizer.encode("a dog").unwrap().input_ids[..5], [49406, 320, 1929, 49407, 0]);
    }

    #[test]
    fn every_token_has_one_number() {
        let entries: Map<String, Value> = serde_json::from_str(&vocabulary()).unwrap();
        assert_eq!(entries.len(), NUM_TOKENS);
        assert_eq!((&entries["!"], &entries["<|endoftext|>"]), (&json!(0), &json!(49407)));
    }
}

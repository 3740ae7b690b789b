//! CLIP's tokenizer: lower-cased byte-pair encoding with `</w>` at the end of a word, between two marks, padded to 77.
//! From `tokenizer.json`, or from `vocab.json` and `merges.txt`, with the marks that `tokenizer_config.json` names.

use crate::clip_vocabulary;
use crate::error::ModelError;
use crate::weights::Result;
use serde_json::{Value, json};
use tokenizers::AddedToken;

/// The text of a tokenizer's files, as far as a base has them.
#[derive(Clone, Debug, Default)]
pub struct TokenizerFiles {
    /// Names the folder in errors.
    pub path: String,
    /// `tokenizer.json`.
    pub tokenizer_json: Option<String>,
    /// `vocab.json`.
    pub vocab: Option<String>,
    /// `merges.txt`.
    pub merges: Option<String>,
    /// `tokenizer_config.json`.
    pub config: Option<String>,
}

/// A prompt as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Start mark, tokens, end mark, padding: as many as the encoder has positions, for each chunk.
    pub input_ids: Vec<i64>,
    /// Tokens of the text that did not fit and were cut, marks not counted.
    pub num_cut: usize,
}

/// How long a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextLength {
    /// Its tokens, marks not counted.
    pub num_tokens: usize,
    /// Bytes of the text that fit; all of it if nothing is cut. The first of what is cut follows.
    pub kept_bytes: usize,
}

/// The tokenizer of one text encoder.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: i64,
    end: i64,
    pad: i64,
    positions: usize,
}

/// How CLIP cuts text into words before the merges.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

impl Tokenizer {
    /// Makes the tokenizer for an encoder of `positions` tokens.
    ///
    /// # Errors
    /// Files that are missing or make no tokenizer, marks that are not in the vocabulary.
    pub fn new(files: &TokenizerFiles, positions: usize) -> Result<Self> {
        let wrong = |reason: String| ModelError::BadTokenizer { path: files.path.clone(), reason };
        let config: Value = match &files.config {
            Some(text) => serde_json::from_str(text).map_err(|e| wrong(format!("tokenizer_config.json: {e}")))?,
            None => Value::Null,
        };
        let mark = |key: &str, default: &str| {
            let found = config.get(key).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            found.unwrap_or(default).to_owned()
        };
        let (start, end) = (mark("bos_token", "<|startoftext|>"), mark("eos_token", "<|endoftext|>"));
        let pad = mark("pad_token", &end);
        let mut inner: tokenizers::Tokenizer = match (&files.tokenizer_json, &files.vocab, &files.merges) {
            (Some(json), _, _) => json.parse().map_err(|e| wrong(format!("tokenizer.json: {e}")))?,
            (None, Some(vocab), Some(merges)) => from_vocabulary(vocab, merges, &end).map_err(wrong)?,
            _ => return Err(wrong("neither tokenizer.json nor vocab.json with merges.txt is there".into())),
        };
        // Cutting, padding and the marks are done here, so that a file cannot do them a second time.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        // The padding too: where it is `!`, as in SD 2.x, an exclamation mark of the text is this token and no other.
        let special = [&start, &end, &pad].map(|token| AddedToken::from(token.clone(), true).normalized(false));
        if let Some(missing) = [&start, &end, &pad].iter().find(|t| inner.token_to_id(t).is_none()) {
            return Err(wrong(format!("the mark `{missing}` is not in the vocabulary")));
        }
        inner.add_special_tokens(special).map_err(|e| wrong(e.to_string()))?;
        let id = |token: &str| i64::from(inner.token_to_id(token).unwrap_or_default());
        let (start, end, pad) = (id(&start), id(&end), id(&pad));
        Ok(Self { inner, start, end, pad, positions: positions.max(2) })
    }

    /// The mark at the end of a text.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Whether both give every text the same ids, as far as their vocabularies, merges and marks tell.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        // A byte-pair vocabulary lists what its merges make, in their order.
        let marks = |this: &Self| (this.start, this.end, this.pad, this.positions);
        marks(self) == marks(other) && self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// The text as ids, cut to what fits.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        self.encode_in_chunks(text, 1)
    }

    /// The text as ids in `num_chunks` chunks, each with marks of its own and as many as the encoder has positions; cut to
    /// what fits.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn encode_in_chunks(&self, text: &str, num_chunks: usize) -> Result<Tokens> {
        let ids = self.ids(text)?;
        let room = self.room();
        let kept = &ids[..ids.len().min(num_chunks * room)];
        let chunk = |i: usize| self.with_marks(&kept[kept.len().min(i * room)..]);
        Ok(Tokens { input_ids: (0..num_chunks).flat_map(chunk).collect(), num_cut: ids.len() - kept.len() })
    }

    /// The text as ids, however many, without marks.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn ids(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.encoding(text)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    fn encoding(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.inner.encode(text, false).map_err(|e| ModelError::BadTokenizer {
            path: "tokenizer".into(),
            reason: format!("cannot encode {text:?}: {e}"),
        })
    }

    /// CLIP's own tokenizer, for captions before there is a base.
    ///
    /// # Errors
    /// None that could be met: the vocabulary is part of the program.
    pub fn of_clip() -> Result<Self> {
        const POSITIONS: usize = 77;
        Self::new(&clip_vocabulary::tokenizer_files("<|endoftext|>"), POSITIONS)
    }

    /// How long a text is, and which part of it the first `max_tokens` tokens are.
    ///
    /// # Errors
    /// Text that the tokenizer cannot encode.
    pub fn measure(&self, text: &str, max_tokens: usize) -> Result<TextLength> {
        let encoding = self.encoding(text)?;
        let num_tokens = encoding.get_ids().len();
        let cut = encoding.get_offsets().get(max_tokens).map_or(text.len(), |(start, _)| *start);
        Ok(TextLength { num_tokens, kept_bytes: text.floor_char_boundary(cut) })
    }

    /// Tokens of a text that fit between the marks: 75 of 77 positions.
    pub fn room(&self) -> usize {
        self.positions - 2
    }

    /// Start mark, at most [`Tokenizer::room`] ids, end mark, padding.
    pub fn with_marks(&self, ids: &[i64]) -> Vec<i64> {
        let mut input_ids = vec![self.start];
        input_ids.extend(&ids[..ids.len().min(self.room())]);
        input_ids.push(self.end);
        input_ids.resize(self.positions, self.pad);
        input_ids
    }
}

/// The same description that newer bases bring as `tokenizer.json`, made from the two older files.
fn from_vocabulary(vocab: &str, merges: &str, unknown: &str) -> std::result::Result<tokenizers::Tokenizer, String> {
    let vocab: Value = serde_json::from_str(vocab).map_err(|e| format!("vocab.json: {e}"))?;
    let pairs = merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
    let merges = pairs
        .map(|line| line.split_once(' ').map(|(left, right)| [left, right]))
        .collect::<Option<Vec<_>>>()
        .ok_or("merges.txt has a line that is not a pair")?;
    let words = json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let one_space = json!({"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "});
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null, "decoder": null,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, one_space, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, bytes]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges
        },
    });
    description.to_string().parse().map_err(|e| format!("vocab.json and merges.txt: {e}"))
}

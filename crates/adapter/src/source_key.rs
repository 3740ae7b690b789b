//! The keys of an adapter as they stood in its file: what other programs look at.

/// Which program's habit a key follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySpelling {
    /// `lora_unet_down_blocks_..`, `lora_te_..`
    Kohya,
    /// `lora_unet_input_blocks_..`: the block names of Stable Diffusion as first published.
    KohyaOriginal,
    /// `..attn1.processor.to_q_lora.down.weight`
    Processor,
    /// `..to_q.lora.down.weight`
    LoraDown,
    /// `..q_proj.lora_linear_layer.down.weight`
    LinearLayer,
    /// `..to_q.lora_A.weight`
    Peft,
    /// `unet:7:up`, or the place in a list
    Position,
    /// A learned token.
    Embedding,
    /// Nothing that belongs to an adapter.
    Unknown,
}

/// One tensor's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceKey {
    /// As in the file.
    pub key: String,
    /// kohya's name of the module that it belongs to.
    pub module: Option<String>,
    /// How it is spelled.
    pub spelling: KeySpelling,
    /// The tensor's shape in the file.
    pub shape: Vec<usize>,
}

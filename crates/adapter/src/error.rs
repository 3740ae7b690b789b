//! What can go wrong with tensor files and adapters.

use std::io;
use std::path::PathBuf;

use crate::{BaseFamily, Dtype};

/// The error of this crate. Display is one line; [`AdapterError::hint`] says what the user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum AdapterError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} was written but did not read back as it should; the file that was there before is untouched", .path.display())]
    ReadBack { path: PathBuf, source: Box<AdapterError> },
    #[error("{}: tensor {tensor} differs from what was written", .path.display())]
    ContentDiffers { path: PathBuf, tensor: String },
    #[error("{} is not a regular file", .path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is {kind}, not a safetensors file", .path.display())]
    Foreign { path: PathBuf, kind: ForeignFormat },
    #[error("{} is truncated: {expected_bytes} bytes expected, {found_bytes} found", .path.display())]
    Truncated { path: PathBuf, expected_bytes: u64, found_bytes: u64 },
    #[error("{}: {extra_bytes} bytes that belong to no tensor follow the last one", .path.display())]
    TrailingBytes { path: PathBuf, extra_bytes: u64 },
    #[error("{}: a header of {header_bytes} bytes is over the limit of {limit_bytes}", .path.display())]
    HeaderTooLarge { path: PathBuf, header_bytes: u64, limit_bytes: u64 },
    #[error("{}: the header is not valid", .path.display())]
    HeaderJson { path: PathBuf, source: serde_json::Error },
    #[error("{}: the header does not start with an opening brace", .path.display())]
    HeaderNotObject { path: PathBuf },
    #[error("{}: more than {limit} tensors", .path.display())]
    TooManyTensors { path: PathBuf, limit: usize },
    #[error("{}: tensor name {name:?} is not 1 to 512 bytes of printable text", .path.display())]
    BadTensorName { path: PathBuf, name: String },
    #[error("{}: the name {name} occurs twice in the header", .path.display())]
    DuplicateName { path: PathBuf, name: String },
    #[error("{}: tensor {tensor} has the unsupported element type {dtype}", .path.display())]
    UnsupportedDtype { path: PathBuf, tensor: String, dtype: String },
    #[error("{}: tensor {tensor} has {rank} dimensions; at most {limit} are read", .path.display())]
    RankTooHigh { path: PathBuf, tensor: String, rank: usize, limit: usize },
    #[error("{}: tensor {tensor} of shape {shape:?} and type {dtype} does not fill bytes {begin}..{end}", .path.display())]
    ByteRange { path: PathBuf, tensor: String, dtype: Dtype, shape: Vec<u64>, begin: u64, end: u64 },
    #[error("{}: tensor {tensor} starts at byte {found} where {expected} is due (a hole or an overlap)", .path.display())]
    NotContiguous { path: PathBuf, tensor: String, expected: u64, found: u64 },
    #[error("{} calls `{call}`, which no checkpoint needs: refused", .path.display())]
    UnsafePickle { path: PathBuf, call: String },
    #[error("{}: its pickle has the operation {operation}, which PyTorch does not write: refused", .path.display())]
    PickleOperation { path: PathBuf, operation: &'static str },
    #[error("{}: its pickle is not valid before byte {position}: {problem}", .path.display())]
    BadPickle { path: PathBuf, position: u64, problem: &'static str },
    #[error("{} is not a valid zip archive: {problem}", .path.display())]
    BadZip { path: PathBuf, problem: &'static str },
    #[error("{} is a zip archive, but not one of PyTorch: it has no data.pkl", .path.display())]
    NotTorch { path: PathBuf },
    #[error("{} was written on a big-endian machine", .path.display())]
    BigEndian { path: PathBuf },
    #[error("{}: no tensors at the top or under state_dict", .path.display())]
    NoTensors { path: PathBuf },
    #[error("{}: tensor {tensor} does not lie inside its storage, or its storage inside the file", .path.display())]
    OutsideStorage { path: PathBuf, tensor: String },
    #[error("{}: tensor {tensor} is missing", .path.display())]
    MissingTensor { path: PathBuf, tensor: String },
    #[error("{}: tensor {tensor} holds {dtype}, but {wanted} is needed", .path.display())]
    WrongDtype { path: PathBuf, tensor: String, dtype: Dtype, wanted: &'static str },
    #[error("{}: not a valid index of shards", .path.display())]
    IndexJson { path: PathBuf, source: serde_json::Error },
    #[error("{}: {shard:?} is not the plain name of a shard in the same folder", .path.display())]
    BadShardName { path: PathBuf, shard: String },
    #[error("{}: tensor {tensor} should be in shard {}, which does not have it", .index.display(), .shard.display())]
    ShardLacksTensor { index: PathBuf, shard: PathBuf, tensor: String },
    #[error("tensor {tensor} of shape {shape:?} was given {num_values} values")]
    DataLength { tensor: String, shape: Vec<usize>, num_values: usize },
    #[error("tensor {tensor} cannot be stored as {dtype}")]
    CannotStoreAs { tensor: String, dtype: Dtype },
    #[error("{tensor}: the value {value:e} does not fit {dtype}")]
    Overflow { tensor: String, value: f32, dtype: Dtype },
    #[error("{tensor} holds a value that is not a finite number")]
    NonFinite { tensor: String },
    #[error("{}: {key} is no key of an adapter that is known", .path.display())]
    UnknownKey { path: PathBuf, key: String },
    #[error("{}: no LoRA module inside", .path.display())]
    NoModules { path: PathBuf },
    #[error("{module}: factors of shape {down:?} (down) and {up:?} (up) do not belong together")]
    FactorShapes { module: String, down: Vec<usize>, up: Vec<usize> },
    #[error("{module}: alpha {alpha} is not a positive number")]
    BadAlpha { module: String, alpha: f32 },
    #[error("{module}: alpha of shape {shape:?} is not one number")]
    AlphaShape { module: String, shape: Vec<usize> },
    #[error("{module}: changes of weights of shape {first:?} and {second:?} cannot be added")]
    WeightShapes { module: String, first: Vec<usize>, second: Vec<usize> },
    #[error("an adapter cannot have the scale {scale}")]
    BadScale { scale: f32 },
    #[error("{module}: not the name of a module in a kohya file")]
    BadModuleName { module: String },
    #[error("the metadata entry {key} does not go together with kohya keys")]
    ForbiddenMetadata { key: String },
    #[error("{}: no adapter in this folder", .path.display())]
    NoAdapter { path: PathBuf },
    #[error("{}: the adapter's settings cannot be used: {problem}", .path.display())]
    AdapterSettings { path: PathBuf, problem: String },
    #[error("{}: {num_pairs} pairs of factors ({part}) are not those of the layers below {classes}", .path.display())]
    LayerOrder { path: PathBuf, part: &'static str, num_pairs: usize, classes: String },
    #[error("{module} is changed by {kind}, which two factors cannot give")]
    NotLowRank { module: String, kind: &'static str },
    #[error("{module}: {format} cannot carry it: {reason}")]
    CannotCarry { module: String, format: &'static str, reason: String },
    #[error("{module}: {} make no {kind}", .shapes.join(", "))]
    ChangeShapes { module: String, kind: &'static str, shapes: Vec<String> },
    #[error("{module}: a weight of shape {shape:?} is larger than any of a real model")]
    ChangeTooLarge { module: String, shape: Vec<usize> },
    #[error("{module} has no {leaf}")]
    MissingLeaf { module: String, leaf: String },
    #[error("{module}.{leaf} belongs to no known kind of change")]
    UnknownLeaf { module: String, leaf: String },
    #[error("the change of a {kind} depends on the weight that it changes")]
    NeedsWeight { kind: &'static str },
    #[error("{module}: its singular values cannot be computed")]
    NoSingularValues { module: String },
    #[error("an adapter cannot be resized to {setting}")]
    BadResize { setting: String },
    #[error("{setting} must be {expected}, not {value}")]
    ComposeSetting { setting: &'static str, value: String, expected: &'static str },
    #[error("{module}: the recorded inputs are not those of this layer")]
    LayerGramShape { module: String },
    #[error("{first} is for {}, {second} for {}", .first_family.name(), .second_family.name())]
    BaseFamilies { first: String, first_family: BaseFamily, second: String, second_family: BaseFamily },
}

/// Files that people take for safetensors files, recognised by their first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum ForeignFormat {
    Zip,
    Pickle,
    GitLfsPointer,
    Html,
    Gguf,
}

impl std::fmt::Display for ForeignFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ForeignFormat::Zip => "a zip archive (probably a PyTorch .ckpt, .pt or .bin)",
            ForeignFormat::Pickle => "a Python pickle (an old PyTorch .ckpt, .pt or .bin)",
            ForeignFormat::GitLfsPointer => "a Git LFS pointer",
            ForeignFormat::Html => "a web page",
            ForeignFormat::Gguf => "a GGUF file",
        })
    }
}

impl AdapterError {
    /// Whether the disk (or the folder's permissions) is to blame rather than the content of a file. A program maps
    /// these to its exit code for disk trouble, all others to the one for bad model files.
    pub fn is_disk(&self) -> bool {
        match self {
            AdapterError::Write { .. } | AdapterError::ReadBack { .. } => true,
            // A wrong path is the user's model file, not a failing disk.
            AdapterError::Read { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            _ => false,
        }
    }

    /// What the user can do about it, as one line without a full stop; `None` where nothing useful can be said.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            AdapterError::Read { source, .. } => return read_hint(source.kind()).map(str::to_owned),
            AdapterError::Write { source, .. } => return write_hint(source.kind()).map(str::to_owned),
            AdapterError::ReadBack { .. } => "the disk may be failing; write to another one",
            AdapterError::NotAFile { .. } => "give the path of a .safetensors file",
            AdapterError::Foreign { kind, .. } => kind.hint(),
            AdapterError::Truncated { .. } => "the download or copy was cut short; get the file again",
            AdapterError::TrailingBytes { .. }
            | AdapterError::HeaderTooLarge { .. }
            | AdapterError::HeaderJson { .. }
            | AdapterError::HeaderNotObject { .. }
            | AdapterError::TooManyTensors { .. }
            | AdapterError::BadTensorName { .. }
            | AdapterError::DuplicateName { .. }
            | AdapterError::RankTooHigh { .. }
            | AdapterError::ByteRange { .. }
            | AdapterError::NotContiguous { .. } => {
                "the file is damaged, made to mislead, or no safetensors file; get it again from a source you trust"
            }
            AdapterError::UnsafePickle { .. } => {
                "nothing was run; do not open the file with other programs either, and get the model as .safetensors \
                 from a source you trust"
            }
            AdapterError::PickleOperation { .. }
            | AdapterError::BadPickle { .. }
            | AdapterError::BadZip { .. }
            | AdapterError::OutsideStorage { .. } => {
                "the download was cut short, or the file is damaged or made to mislead; get it again from a source \
                 you trust"
            }
            AdapterError::NotTorch { .. } => "give a .safetensors file, or a .ckpt, .pt or .bin that PyTorch wrote",
            AdapterError::BigEndian { .. } => "save it again on an ordinary machine, best as .safetensors",
            AdapterError::NoTensors { .. } => "save `model.state_dict()`, best as .safetensors",
            AdapterError::UnsupportedDtype { .. } => "save the model as F32, F16 or BF16",
            AdapterError::IndexJson { .. } | AdapterError::BadShardName { .. } => "get the *.index.json file again",
            AdapterError::ShardLacksTensor { .. } => {
                "index and shards are of different versions; get all of them again"
            }
            AdapterError::Overflow { dtype: Dtype::F16, .. } => {
                "training has probably diverged (try a lower learning rate); BF16 or F32 would hold the value"
            }
            AdapterError::Overflow { .. } | AdapterError::NonFinite { .. } => {
                "training has diverged; try a lower learning rate"
            }
            AdapterError::UnknownKey { key, .. } => return Some(unknown_key_hint(key).to_owned()),
            AdapterError::NoModules { .. } => "give a LoRA file, not a checkpoint or an embedding",
            AdapterError::FactorShapes { .. } => {
                "plain LoRA has down (rank, in) and up (out, rank), with (k, k) and (1, 1) appended for convolutions"
            }
            AdapterError::BadAlpha { .. } => "alpha must be above 0; alpha = rank is the usual choice",
            AdapterError::WeightShapes { .. } => "adapters of different base models cannot be used together",
            AdapterError::BadScale { .. } => "give a finite number, such as 1, 0.7 or -0.5",
            AdapterError::ForbiddenMetadata { .. } => "diffusers refuses a file that has both; leave the entry out",
            AdapterError::NoAdapter { .. } => {
                "a folder of PEFT has adapter_config.json, one of diffusers pytorch_lora_weights.safetensors"
            }
            AdapterError::AdapterSettings { .. } => "get the file again, or save the adapter as plain LoRA",
            AdapterError::LayerOrder { .. } => {
                "such files hold no names; only those for Stable Diffusion 1.x and 2.x can be told apart"
            }
            AdapterError::NotLowRank { .. } => "merge it into a base with `loralei adapter merge` instead",
            AdapterError::CannotCarry { .. } => "convert to kohya, which carries everything",
            AdapterError::ChangeShapes { .. }
            | AdapterError::ChangeTooLarge { .. }
            | AdapterError::MissingLeaf { .. } => {
                "the file is damaged, or was not written by a program that trains adapters"
            }
            AdapterError::UnknownLeaf { .. } => "LoRA, LoCon, LoHa, LoKr, DoRA and whole differences are read",
            AdapterError::NeedsWeight { .. } => "give the base with --base",
            AdapterError::NoSingularValues { .. } => "a number is not finite, or far too large",
            AdapterError::BadResize { .. } => "give a rank from 1 on, or a share above 0 and at most 1, such as 0.95",
            AdapterError::BaseFamilies { .. } => "compose adapters of one family of base models",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn read_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Some("check the path"),
        io::ErrorKind::PermissionDenied => Some("check the permissions of the file and its folder"),
        _ => None,
    }
}

fn write_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::NotFound => Some("the folder must exist first"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("free some space, or write elsewhere"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("write to a folder that you may change")
        }
        _ => None,
    }
}

impl ForeignFormat {
    fn hint(self) -> &'static str {
        match self {
            ForeignFormat::Zip | ForeignFormat::Pickle => {
                "such files can run code when they are loaded; convert it to .safetensors with a tool you trust"
            }
            ForeignFormat::GitLfsPointer => "fetch the file itself with `git lfs pull`",
            ForeignFormat::Html => "the download went wrong; download the file again, signed in if it needs that",
            ForeignFormat::Gguf => "get the .safetensors version of this model",
        }
    }
}

/// Says which kind of file a key that a kohya LoRA does not have comes from.
fn unknown_key_hint(key: &str) -> &'static str {
    let has = |part: &str| key.contains(part);
    if has("lora_mid") {
        "this is a LoCon in Tucker form; only plain LoRA is read"
    } else if has("hada_w") {
        "this is a LoHa; only plain LoRA is read"
    } else if has("lokr_w") {
        "this is a LoKr; only plain LoRA is read"
    } else if has("dora_scale") || has("lora_magnitude_vector") {
        "this is a DoRA, which programs apply in different ways; only plain LoRA is read"
    } else if has("lora_A") || has("lora_B") || has("_lora.") || has(".lora.") || has("lora_linear_layer") {
        "this file has diffusers or PEFT keys; only kohya keys (lora_unet_..., lora_te_...) are read"
    } else if key.starts_with("unet:") || key.starts_with("text_encoder:") {
        "this file has the keys of cloneofsimo/lora; only kohya keys (lora_unet_..., lora_te_...) are read"
    } else if has("first_stage_model") || has("model.diffusion_model") || has("down_blocks.") {
        "this is a whole model, not an adapter"
    } else {
        "only lora_down.weight, lora_up.weight and alpha of lora_unet_... and lora_te..._... are read"
    }
}

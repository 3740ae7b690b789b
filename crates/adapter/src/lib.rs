//! LoRA adapters for Stable Diffusion as files and as algebra. Knows no network and no tensor library.
//!
//! The types that matter:
//!
//! - [`Adapter`]: the modules of a LoRA file by name, and its metadata. Reads and writes the kohya layout, the only one
//!   that every image program loads completely.
//! - [`LoraModule`]: the two factors of one layer and their alpha.
//! - [`Adapter::sum`]: several adapters, each at its scale, as one.
//! - [`TensorFile`]: the one guarded reader of safetensors files, for adapters and checkpoints alike.
//! - [`TorchFile`]: the same for PyTorch's files, read as data: nothing in them is ever executed.
//! - [`TensorFiles`]: a checkpoint of either format, in one file or in several.
//! - [`write_tensors`] (from memory), [`write_tensors_streamed`] (one tensor at a time) and [`atomic_write`]: the one
//!   way in which files are written: whole, synchronised, read back, or not at all. The same content always gives the
//!   same bytes.
//! - [`TrainingFacts`]: what a trainer knows, as the `ss_*` and `modelspec.*` metadata that programs show.
//!
//! [`Adapter::portability_issues`] tells which other programs would misread an adapter, and why.
//! Names of keys live in [`keys`], and nowhere else.
//!
//! ```
//! use loralei_adapter::{Adapter, Array, LoraModule, SaveDtype, keys};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let name = keys::kohya_module("lora_unet_", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q");
//! let module = LoraModule {
//!     down: Array { shape: vec![2, 3], data: vec![1.0, 2.0, 3.0, -1.0, 0.5, 4.0] },
//!     up: Array { shape: vec![1, 2], data: vec![0.5, -2.0] },
//!     alpha: Some(1.0),
//! };
//! let adapter = Adapter { modules: [(name.clone(), module)].into(), ..Adapter::default() };
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("octopus.safetensors");
//! adapter.write(&path, SaveDtype::F16)?;
//! assert_eq!(Adapter::read(&path)?.modules[&name].delta().data, [1.25, 0.0, -3.25]); // 1/2 * up * down
//! # Ok(())
//! # }
//! ```

mod adapter_file;
mod atomic_file;
mod base_family;
mod byte_cursor;
mod byte_source;
mod change;
mod compatibility;
pub mod compose;
mod concatenation;
mod conversion;
mod dtype;
mod elements;
mod error;
mod extraction;
mod file_hashes;
mod formats;
mod hashes;
mod inspection;
pub mod keys;
mod kohya;
mod layer_name;
mod linear_algebra;
mod low_rank;
mod measures;
mod metadata;
mod pickle;
mod pickle_globals;
mod pickle_machine;
mod pickle_opcodes;
mod portability;
mod python_text;
mod resize;
mod source_key;
mod streamed_writer;
mod strided_view;
mod subspace;
mod tensor_bytes;
mod tensor_file;
mod tensor_file_writer;
mod tensor_files;
mod tensor_header;
mod tensor_layout;
mod torch_file;
mod torch_state;
mod trigger_words;
mod zip_directory;

pub use adapter_file::{AdapterFile, BlockNames, Format};
pub use atomic_file::{atomic_write, atomic_write_bytes, remove_unfinished, replace_bytes};
pub use base_family::BaseFamily;
pub use change::{Change, DoraModule, FullModule, HadamardModule, KroneckerFactor, KroneckerModule, TuckerModule};
pub use compatibility::{Compatibility, IgnoredKeys, ProgramReport, Verdict, WrongScale};
pub use concatenation::without_unit_kernel;
pub use conversion::ConversionNote;
pub use dtype::Dtype;
pub use error::{AdapterError, ForeignFormat};
pub use extraction::{ExtractedModule, extract_module};
pub use hashes::{AdapterHashes, CheckpointHashes, StreamedHash, sha256_hex};
pub use inspection::{BaseMeasures, BaseWeights, Comparison, Inspection, ModuleMeasures, SubspaceSimilarity};
pub use kohya::{Adapter, SaveDtype};
pub use layer_name::LayerName;
pub use linear_algebra::{Svd, truncated_svd};
pub use low_rank::{Array, LoraModule};
pub use metadata::{BaseVersion, Buckets, DatasetFolder, TrainingFacts, session_id};
pub use portability::PortabilityIssue;
pub use resize::{KeptRanks, ResizeReport, ResizedModule};
pub use source_key::{KeySpelling, SourceKey};
pub use streamed_writer::{TensorValues, write_tensors_streamed};
pub use tensor_bytes::TensorBytes;
pub use tensor_file::{TensorFile, TensorInfo};
pub use tensor_file_writer::{TensorView, write_tensors};
pub use tensor_files::TensorFiles;
pub use torch_file::TorchFile;

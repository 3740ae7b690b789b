//! Keys with kohya's module names: plain LoRA and all that `LyCORIS` has.

use crate::TensorFiles;
use crate::error::AdapterError;
use crate::formats::module_path::{has_original_blocks, with_diffusers_blocks};
use crate::formats::reading::{Content, Leaves, read_array, source_key};
use crate::keys::{bundled_embedding, split_kohya_key};
use crate::source_key::KeySpelling;

pub(crate) fn read(files: &TensorFiles) -> Result<Content, AdapterError> {
    let mut content = Content::default();
    let mut leaves = Leaves::default();
    for key in files.names() {
        if let Some(token) = bundled_embedding(key) {
            content.embeddings.insert(token.to_owned(), read_array(files, key)?);
            content.keys.push(source_key(files, key, None, KeySpelling::Embedding));
            continue;
        }
        let found = split_kohya_key(key).and_then(|(module, leaf)| {
            if has_original_blocks(module) {
                Some((with_diffusers_blocks(module)?, leaf, KeySpelling::KohyaOriginal))
            } else {
                Some((module.to_owned(), leaf, KeySpelling::Kohya))
            }
        });
        let Some((module, leaf, spelling)) = found else {
            content.keys.push(source_key(files, key, None, KeySpelling::Unknown));
            continue;
        };
        leaves.add(files.path(), key, &module, leaf, read_array(files, key)?)?;
        content.keys.push(source_key(files, key, Some(module), spelling));
    }
    content.changes = leaves.into_changes()?;
    Ok(content)
}

//! The order of a safetensors file and its header.
//!
//! Both are those of the reference library (larger element types first, then by name; header padded with spaces to 8
//! bytes), so hashes of the content agree with other programs.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use crate::error::AdapterError;
use crate::tensor_header::{self, LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY};
use crate::{TensorFile, TensorInfo};

/// Tensors in file order, from those sorted by name.
pub(crate) fn in_file_order<T>(tensors: &BTreeMap<String, T>, info: impl Fn(&T) -> &TensorInfo) -> Vec<(&str, &T)> {
    let mut in_order: Vec<(&str, &T)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    // Stable, so by name within a type.
    in_order.sort_by_key(|(_, tensor)| Reverse(info(tensor).dtype));
    in_order
}

/// The bytes in front of the tensors: the header's length and the header. `metadata` of `Some(empty)` gives an empty
/// entry, as other programs write it. `path` only serves messages.
pub(crate) fn header<'a>(
    path: &Path,
    in_file_order: impl Iterator<Item = (&'a str, &'a TensorInfo)>,
    metadata: Option<&BTreeMap<String, String>>,
) -> Result<Vec<u8>, AdapterError> {
    let mut entries = Vec::new();
    if let Some(metadata) = metadata {
        let pairs: Vec<String> = metadata.iter().map(|(key, value)| format!("{}:{}", json(key), json(value))).collect();
        entries.push(format!("{}:{{{}}}", json(METADATA_KEY), pairs.join(",")));
    }
    let mut begin = 0;
    for (name, info) in in_file_order {
        if !tensor_header::is_tensor_name(name) {
            return Err(tensor_header::bad_name(path, name));
        }
        let too_large = || AdapterError::CannotStoreAs { tensor: name.to_owned(), dtype: info.dtype };
        let end = num_bytes(info).and_then(|num_bytes| num_bytes.checked_add(begin)).ok_or_else(too_large)?;
        let shape: Vec<String> = info.shape.iter().map(usize::to_string).collect();
        entries.push(format!(
            r#"{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
            json(name),
            info.dtype,
            shape.join(",")
        ));
        begin = end;
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let header_bytes = header.len() as u64;
    if header_bytes > MAX_HEADER_BYTES {
        let path = path.to_owned();
        return Err(AdapterError::HeaderTooLarge { path, header_bytes, limit_bytes: MAX_HEADER_BYTES });
    }
    Ok([header_bytes.to_le_bytes().as_slice(), &header].concat())
}

/// Checks that a file that was just written has these tensors and this metadata, as far as its header says.
pub(crate) fn compare_header<T>(
    path: &Path,
    file: &TensorFile,
    tensors: &BTreeMap<String, T>,
    info: impl Fn(&T) -> &TensorInfo,
    metadata: &BTreeMap<String, String>,
) -> Result<(), AdapterError> {
    let differs = |tensor: &str| AdapterError::ContentDiffers { path: path.to_owned(), tensor: tensor.to_owned() };
    if file.metadata() != metadata {
        return Err(differs(METADATA_KEY));
    }
    if let Some(unknown) = file.names().find(|name| !tensors.contains_key(*name)) {
        return Err(differs(unknown));
    }
    match tensors.iter().find(|(name, tensor)| file.info(name) != Some(info(tensor))) {
        Some((name, _)) => Err(differs(name)),
        None => Ok(()),
    }
}

fn num_bytes(info: &TensorInfo) -> Option<u64> {
    let element_bytes = info.dtype.size_bytes() as u64;
    info.shape.iter().try_fold(element_bytes, |product, dim| product.checked_mul(*dim as u64))
}

/// A JSON string. Text always has one, so nothing can fail here.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

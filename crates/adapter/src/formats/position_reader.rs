//! cloneofsimo's files: factors by position.

use std::collections::BTreeMap;

use crate::change::Change;
use crate::error::AdapterError;
use crate::formats::cloneofsimo::{EMBEDDING_MARK, classes, name_layers, name_list, pairs, parse_key, part_name};
use crate::formats::reading::{Content, read_array, source_key};
use crate::keys::Component;
use crate::source_key::KeySpelling;
use crate::{Array, LoraModule, TensorFiles};

/// Up and down by position.
type Factors = BTreeMap<usize, (Option<Array>, Option<Array>)>;

pub(crate) fn read(files: &TensorFiles) -> Result<Content, AdapterError> {
    let mut content = Content::default();
    let mut parts: BTreeMap<Component, Factors> = BTreeMap::new();
    let mut list = Factors::new();
    let mut places = Vec::new();
    for key in files.names() {
        if files.metadata().get(key).is_some_and(|value| value == EMBEDDING_MARK) {
            content.embeddings.insert(key.to_owned(), read_array(files, key)?);
            content.keys.push(source_key(files, key, None, KeySpelling::Embedding));
        } else if let Some((component, index, is_up)) = parse_key(key) {
            put(parts.entry(component).or_default(), index, is_up, read_array(files, key)?);
            check_rank(files, key, component, index)?;
            places.push((key, Some(component), index));
        } else if let Some(index) = list_index(key) {
            // up, down, up, down, ...
            put(&mut list, index / 2, index % 2 == 0, read_array(files, key)?);
            places.push((key, None, index / 2));
        } else {
            content.keys.push(source_key(files, key, None, KeySpelling::Unknown));
        }
    }
    let mut order: BTreeMap<Option<Component>, Vec<String>> = BTreeMap::new();
    let mut add = |part: Option<Component>, named: Vec<(String, LoraModule)>| {
        order.insert(part, named.iter().map(|(module, _)| module.clone()).collect());
        content.changes.extend(named.into_iter().map(|(module, pair)| (module, Change::Lora(pair))));
    };
    for (component, factors) in parts {
        let pairs = pairs(files.path(), part_name(component), factors)?;
        let classes = classes(files.path(), files.metadata(), component)?;
        add(Some(component), name_layers(files.path(), component, &classes, pairs)?);
    }
    if !list.is_empty() {
        add(None, name_list(files.path(), pairs(files.path(), "list", list)?)?);
    }
    for (key, part, index) in places {
        let module = order.get(&part).and_then(|modules| modules.get(index)).cloned();
        content.keys.push(source_key(files, key, module, KeySpelling::Position));
    }
    Ok(content)
}

fn put(factors: &mut Factors, index: usize, is_up: bool, array: Array) {
    let (up, down) = factors.entry(index).or_default();
    *(if is_up { up } else { down }) = Some(array);
}

fn list_index(key: &str) -> Option<usize> {
    let is_number = (1..=6).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| key.parse().ok())?
}

/// The rank in the metadata must be the tensors'.
fn check_rank(files: &TensorFiles, key: &str, component: Component, index: usize) -> Result<(), AdapterError> {
    let name = format!("{}:{index}:rank", part_name(component));
    let Some(text) = files.metadata().get(&name) else { return Ok(()) };
    let dim = usize::from(key.ends_with("up")); // the rank is the second of up, the first of down
    let rank = files.info(key).and_then(|info| info.shape.get(dim).copied());
    if rank.is_some() && text.parse().ok() == rank {
        return Ok(());
    }
    let problem = format!("{name} is {text:.20?}, but the tensors have rank {}", rank.unwrap_or(0));
    Err(AdapterError::AdapterSettings { path: files.path().to_owned(), problem })
}

//! cloneofsimo's safetensors file: every layer below some classes, in their order, without alphas.

use std::collections::BTreeMap;
use std::path::Path;

use crate::base_family::BaseFamily;
use crate::conversion::{ConversionNote, Outgoing, fold_alpha, has_exact_scale};
use crate::error::AdapterError;
use crate::formats::cloneofsimo::{EMBEDDING_MARK, part_name};
use crate::formats::visit_order::{FeedForwardPlace, STRUCTURES, Visited, Widths, text_order, unet_order};
use crate::keys::Component;
use crate::tensor_file_writer::write_tensors;
use crate::{Array, LoraModule, SaveDtype, TensorView};

const FORMAT: &str = "cloneofsimo";
/// From few layers to all: the first list that has all of an adapter's is taken.
const UNET_LISTS: [&[&str]; 5] = [
    &["CrossAttention", "Attention"],
    &["CrossAttention", "Attention", "GEGLU"],
    &["Transformer2DModel"],
    &["CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"],
    &["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
];
const TEXT_LISTS: [&[&str]; 2] = [&["CLIPAttention"], &["CLIPAttention", "CLIPMLP"]];
/// Layers of CLIP-L and of the part of OpenCLIP-H that SD 2.x has.
const SD1_TEXT_LAYERS: usize = 12;
const SD2_TEXT_LAYERS: usize = 23;

pub(crate) fn write(
    outgoing: &mut Outgoing,
    embeddings: &BTreeMap<String, Array>,
    path: &Path,
) -> Result<(), AdapterError> {
    let mut metadata = outgoing.metadata.clone();
    metadata.retain(|key, _| !(key.starts_with("sshs_") || key == "modelspec.hash_sha256"));
    if metadata.len() < outgoing.metadata.len() {
        outgoing.notes.push(ConversionNote::HashesLeftOut);
    }
    let mut parts: BTreeMap<Component, BTreeMap<String, LoraModule>> = BTreeMap::new();
    let (mut num_folded, mut is_exact) = (0, true);
    for (module, change) in std::mem::take(&mut outgoing.changes) {
        let component = Component::of_module(&module).unwrap_or(Component::Unet);
        if matches!(component, Component::TextEncoder1 | Component::TextEncoder2) || outgoing.family == BaseFamily::Sdxl
        {
            return Err(cannot_carry(&module, "it has no order for the layers of SDXL"));
        }
        let mut lora = outgoing.low_rank(&module, &change)?;
        is_exact &= has_exact_scale(&lora);
        num_folded += usize::from(fold_alpha(&mut lora));
        parts.entry(component).or_default().insert(module, lora);
    }
    if num_folded > 0 {
        outgoing.notes.push(ConversionNote::AlphasFolded { num_modules: num_folded });
    }
    if !is_exact && outgoing.asked_dtype.is_none() && outgoing.own_dtype != SaveDtype::F32 {
        outgoing.own_dtype = SaveDtype::F32;
        outgoing.notes.push(ConversionNote::StoredAsF32);
    }
    let mut arrays: BTreeMap<String, Array> = BTreeMap::new();
    for (component, modules) in parts {
        let part = part_name(component);
        let (classes, pairs, num_zero) = in_order(component, outgoing.family, modules)?;
        if num_zero > 0 {
            outgoing.notes.push(ConversionNote::ZeroLayersAdded { num_layers: num_zero });
        }
        metadata.insert(part.to_owned(), serde_json::json!(classes).to_string());
        for (index, pair) in pairs.into_iter().enumerate() {
            metadata.insert(format!("{part}:{index}:rank"), pair.rank().to_string());
            arrays.insert(format!("{part}:{index}:down"), pair.down);
            arrays.insert(format!("{part}:{index}:up"), pair.up);
        }
    }
    for (token, vector) in embeddings {
        metadata.insert(token.clone(), EMBEDDING_MARK.to_owned());
        arrays.insert(token.clone(), vector.clone());
    }
    let dtype = outgoing.dtype().into();
    let tensors: BTreeMap<String, TensorView<'_>> = arrays
        .iter()
        .map(|(key, array)| (key.clone(), TensorView::f32_stored_as(dtype, &array.shape, &array.data)))
        .collect();
    write_tensors(path, &tensors, &metadata)
}

/// The classes, a pair for each of their layers, and how many of these are zeros that the adapter does not have.
fn in_order(
    component: Component,
    family: BaseFamily,
    mut modules: BTreeMap<String, LoraModule>,
) -> Result<(Vec<String>, Vec<LoraModule>, usize), AdapterError> {
    let (classes, order) = covering_order(component, family, &modules)?;
    let (mut widths, mut are_convolutions) = (Widths::default(), false);
    for layer in &order {
        if let Some(lora) = modules.get(&layer.module) {
            if !widths.learn(layer, &weight_shape(lora)) {
                return Err(cannot_carry(&layer.module, "its shape is not that of this layer of SD 1.x or 2.x"));
            }
            are_convolutions |= layer.module.ends_with("_proj_in") && lora.down.shape.len() == 4;
        }
    }
    let mut pairs = Vec::with_capacity(order.len());
    let mut num_zero = 0;
    for layer in order {
        let pair = if let Some(lora) = modules.remove(&layer.module) {
            lora
        } else {
            num_zero += 1;
            let shape = widths.shape_of(&layer, are_convolutions);
            let shape =
                shape.ok_or_else(|| cannot_carry(&layer.module, "the adapter lacks it, and its size is not known"))?;
            zero_pair(&shape)
        };
        pairs.push(pair);
    }
    Ok((classes, pairs, num_zero))
}

fn covering_order(
    component: Component,
    family: BaseFamily,
    modules: &BTreeMap<String, LoraModule>,
) -> Result<(Vec<String>, Vec<Visited>), AdapterError> {
    let place = FeedForwardPlace::BetweenAttentions; // as the program's own time had it
    let lists: &[&[&str]] = if component.is_text_encoder() { &TEXT_LISTS } else { &UNET_LISTS };
    let num_layers = match family {
        BaseFamily::Sd1 => SD1_TEXT_LAYERS,
        BaseFamily::Sd2 => SD2_TEXT_LAYERS,
        _ => num_text_layers(modules),
    };
    let mut uncovered = None;
    for structure in STRUCTURES {
        for list in lists {
            let classes: Vec<String> = list.iter().map(|class| (*class).to_owned()).collect();
            let order = if component.is_text_encoder() {
                text_order(&classes, num_layers)
            } else {
                unet_order(structure, &classes, place)
            };
            let has = |module: &String| order.iter().any(|layer| layer.module == *module);
            match modules.keys().find(|module| !has(module)) {
                None if is_of_structure(&order, modules) => return Ok((classes, order)),
                None => {}
                Some(module) => uncovered = Some(module.clone()),
            }
        }
    }
    let module = uncovered.unwrap_or_else(|| component.prefix().to_owned());
    Err(cannot_carry(&module, "it is below none of the classes whose layers this format counts"))
}

/// Whether the shapes agree: levels of another structure would have other widths.
fn is_of_structure(order: &[Visited], modules: &BTreeMap<String, LoraModule>) -> bool {
    let mut widths = Widths::default();
    let fits = order
        .iter()
        .all(|layer| modules.get(&layer.module).is_none_or(|lora| widths.learn(layer, &weight_shape(lora))));
    fits && order.iter().all(|layer| modules.contains_key(&layer.module) || widths.shape_of(layer, false).is_some())
}

fn weight_shape(lora: &LoraModule) -> Vec<usize> {
    lora.up.shape.iter().take(1).chain(lora.down.shape.iter().skip(1)).copied().collect()
}

/// One more than the highest layer that has a change.
fn num_text_layers(modules: &BTreeMap<String, LoraModule>) -> usize {
    let index = |module: &String| module.split("_layers_").nth(1)?.split('_').next()?.parse::<usize>().ok();
    modules.keys().filter_map(index).max().map_or(0, |highest| highest.saturating_add(1).min(1000))
}

fn zero_pair(shape: &[usize]) -> LoraModule {
    let zeros = |shape: Vec<usize>| Array { data: vec![0.0; shape.iter().product()], shape };
    let (mut down, mut up) = (vec![1], vec![shape[0], 1]);
    down.extend(&shape[1..]);
    up.extend(vec![1; shape.len() - 2]);
    LoraModule { down: zeros(down), up: zeros(up), alpha: None }
}

fn cannot_carry(module: &str, reason: &str) -> AdapterError {
    AdapterError::CannotCarry { module: module.to_owned(), format: FORMAT, reason: reason.to_owned() }
}

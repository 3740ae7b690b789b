//! The first LoRA files for Stable Diffusion, of cloneofsimo/lora: pairs of factors by position.
//!
//! A safetensors file has `unet:<i>:up`, `unet:<i>:down` and the same of `text_encoder`; its metadata the classes of each
//! part as a JSON list, `<part>:<i>:rank`, and `<embed>` for each tensor that is a learned token. A `.pt` file is a list up,
//! down, up, down, ... of one part. There is no alpha: the scale is 1.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::AdapterError;
use crate::formats::visit_order::{
    FeedForwardPlace, STRUCTURES, Visited, Widths, text_order, unet_order, unknown_class,
};
use crate::keys::Component;
use crate::{Array, LoraModule};

/// What the metadata has for a tensor that is a token.
pub(crate) const EMBEDDING_MARK: &str = "<embed>";
pub(crate) const UNET_DEFAULT: [&str; 3] = ["CrossAttention", "Attention", "GEGLU"];
pub(crate) const TEXT_DEFAULT: [&str; 1] = ["CLIPAttention"];
const PARTS: [(&str, Component); 2] = [("unet", Component::Unet), ("text_encoder", Component::TextEncoder)];

/// `unet:7:up` taken apart: part, position, whether up.
pub(crate) fn parse_key(key: &str) -> Option<(Component, usize, bool)> {
    let mut words = key.split(':');
    let (part, index, factor) = (words.next()?, words.next()?, words.next()?);
    let (_, component) = PARTS.into_iter().find(|(name, _)| *name == part)?;
    let is_up = match factor {
        "up" => true,
        "down" => false,
        _ => return None,
    };
    let is_number = (1..=5).contains(&index.len()) && index.bytes().all(|byte| byte.is_ascii_digit());
    (words.next().is_none() && is_number).then_some(())?;
    Some((component, index.parse().ok()?, is_up))
}

pub(crate) fn part_name(component: Component) -> &'static str {
    if component.is_text_encoder() { PARTS[1].0 } else { PARTS[0].0 }
}

/// The classes that the metadata has for a part.
pub(crate) fn classes(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    component: Component,
) -> Result<Vec<String>, AdapterError> {
    let part = part_name(component);
    let wrong = |problem: String| AdapterError::AdapterSettings { path: path.to_owned(), problem };
    let Some(text) = metadata.get(part) else {
        let default: &[&str] = if component.is_text_encoder() { &TEXT_DEFAULT } else { &UNET_DEFAULT };
        return Ok(default.iter().map(|class| (*class).to_owned()).collect());
    };
    let classes: Vec<String> =
        serde_json::from_str(text).map_err(|error| wrong(format!("{part} is no list of classes ({error})")))?;
    match unknown_class(component, &classes) {
        Some(class) => Err(wrong(format!("the order of the layers below {class:.60?} is not known"))),
        None => Ok(classes),
    }
}

/// Names for the pairs of a part, by the order in which that time's diffusers had its layers.
///
/// # Errors
/// [`AdapterError::LayerOrder`] if the shapes are not those of these layers of SD 1.x or 2.x.
pub(crate) fn name_layers(
    path: &Path,
    component: Component,
    classes: &[String],
    pairs: Vec<LoraModule>,
) -> Result<Vec<(String, LoraModule)>, AdapterError> {
    let num_pairs = pairs.len();
    let Some(order) = candidates(component, classes, num_pairs).into_iter().find(|order| fits(order, &pairs)) else {
        let (part, classes) = (part_name(component), classes.join(", "));
        return Err(AdapterError::LayerOrder { path: path.to_owned(), part, num_pairs, classes });
    };
    Ok(order.into_iter().map(|layer| layer.module).zip(pairs).collect())
}

/// The orders that a part of so many layers may have.
fn candidates(component: Component, classes: &[String], num_pairs: usize) -> Vec<Vec<Visited>> {
    let orders: Vec<Vec<Visited>> = if component.is_text_encoder() {
        let for_each_layer = text_order(classes, 1).len().max(1);
        vec![text_order(classes, num_pairs / for_each_layer)]
    } else {
        let orders = |structure| FeedForwardPlace::ALL.map(|place| unet_order(structure, classes, place));
        STRUCTURES.into_iter().flat_map(orders).collect()
    };
    orders.into_iter().filter(|order| order.len() == num_pairs && num_pairs > 0).collect()
}

fn fits(order: &[Visited], pairs: &[LoraModule]) -> bool {
    let mut widths = Widths::default();
    order.iter().zip(pairs).all(|(layer, pair)| {
        let shape: Vec<usize> = pair.up.shape.iter().take(1).chain(pair.down.shape.iter().skip(1)).copied().collect();
        widths.learn(layer, &shape)
    })
}

/// Names for a list without metadata: the part and the classes are those whose shapes fit.
pub(crate) fn name_list(path: &Path, pairs: Vec<LoraModule>) -> Result<Vec<(String, LoraModule)>, AdapterError> {
    let lists: [(Component, &[&str]); 5] = [
        (Component::TextEncoder, &TEXT_DEFAULT),
        (Component::Unet, &UNET_DEFAULT),
        (Component::Unet, &["CrossAttention", "Attention"]),
        (Component::Unet, &["ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"]),
        (Component::Unet, &["Transformer2DModel"]),
    ];
    let fitting = lists.into_iter().find_map(|(component, classes)| {
        let classes: Vec<String> = classes.iter().map(|class| (*class).to_owned()).collect();
        let has_fit = candidates(component, &classes, pairs.len()).iter().any(|order| fits(order, &pairs));
        has_fit.then_some((component, classes))
    });
    if let Some((component, classes)) = fitting {
        return name_layers(path, component, &classes, pairs);
    }
    let (part, classes) = ("list", "any known class".to_owned());
    Err(AdapterError::LayerOrder { path: path.to_owned(), part, num_pairs: pairs.len(), classes })
}

/// Pairs in the order of their positions, which must be 0, 1, 2, ...
pub(crate) fn pairs(
    path: &Path,
    part: &str,
    factors: BTreeMap<usize, (Option<Array>, Option<Array>)>,
) -> Result<Vec<LoraModule>, AdapterError> {
    let mut pairs = Vec::with_capacity(factors.len());
    for (expected, (index, (up, down))) in factors.into_iter().enumerate() {
        let missing = |factor: &str| AdapterError::MissingTensor {
            path: path.to_owned(),
            tensor: format!("{part}:{expected}:{factor}"),
        };
        if index != expected {
            return Err(missing("up"));
        }
        let (up, down) = (up.ok_or_else(|| missing("up"))?, down.ok_or_else(|| missing("down"))?);
        let pair = LoraModule { down, up, alpha: None };
        pair.check(&format!("{part}:{index}"))?;
        pairs.push(pair);
    }
    Ok(pairs)
}

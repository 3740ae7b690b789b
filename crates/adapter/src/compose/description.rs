//! Metadata of a composition: what programs need to list it, what calls it, and whence it came.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::settings::{ComposeSettings, Method};
use crate::error::AdapterError;
use crate::{Adapter, BaseFamily, BaseVersion, LoraModule};

/// Which base it is for: what the members agree on stays.
const OF_THE_BASE: [&str; 14] = [
    "ss_v2",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_vae_name",
    "ss_clip_skip",
    "ss_resolution",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "modelspec.encoder_layer",
    "modelspec.license",
];
/// Texts of all members side by side, each once.
const JOINED: [(&str, &str); 4] = [
    ("modelspec.trigger_phrase", ", "),
    ("modelspec.usage_hint", "; "),
    ("modelspec.tags", ", "),
    ("modelspec.author", ", "),
];
/// {folder: {tag: images}}, where A1111 finds the words of an adapter.
const TAG_FREQUENCY: &str = "ss_tag_frequency";

/// A member as the metadata names it.
#[derive(Debug, Clone, Copy)]
pub struct MemberOrigin<'a> {
    /// Stem of its file.
    pub name: &'a str,
    /// Its strength.
    pub scale: f32,
    /// With its metadata.
    pub adapter: &'a Adapter,
}

/// The metadata for `composed`, made of `members`, with this title. Nothing in it depends on the time.
///
/// # Errors
/// [`AdapterError::BaseFamilies`] for members of different families of base models, by their layers or, where these do
/// not tell, by their metadata.
pub fn describe(
    members: &[MemberOrigin<'_>],
    settings: &ComposeSettings,
    composed: &Adapter,
    title: &str,
) -> Result<BTreeMap<String, String>, AdapterError> {
    let mut entries = entries_of_family(common_family(members)?);
    for key in OF_THE_BASE {
        let values: BTreeSet<&String> = members.iter().filter_map(|member| member.adapter.metadata.get(key)).collect();
        if let (Some(value), 1) = (values.first(), values.len()) {
            entries.insert(key.to_owned(), (*value).clone());
        }
    }
    for (key, separator) in JOINED {
        let mut values: Vec<&str> = Vec::new();
        for value in members.iter().filter_map(|member| member.adapter.metadata.get(key)) {
            if !value.is_empty() && !values.contains(&value.as_str()) {
                values.push(value);
            }
        }
        if !values.is_empty() {
            entries.insert(key.to_owned(), values.join(separator));
        }
    }
    entries.extend(tag_frequency(members).map(|tags| (TAG_FREQUENCY.to_owned(), tags)));

    let names: Vec<&str> = members.iter().map(|member| member.name).collect();
    let parts: Vec<String> = members.iter().map(|member| format!("{} at {}", member.name, member.scale)).collect();
    let (rank, alpha) = (only(composed, |module| module.rank().to_string()), only(composed, alpha_text));
    let own = [
        ("modelspec.sai_model_spec", "1.0.1".to_owned()),
        ("modelspec.title", title.to_owned()),
        ("modelspec.merged_from", names.join(", ")),
        ("ss_output_name", title.to_owned()),
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", rank),
        ("ss_network_alpha", alpha),
        ("ss_network_args", "{}".to_owned()),
        ("ss_training_comment", format!("{}: {}", method_text(settings), parts.join(", "))),
    ];
    entries.extend(own.map(|(key, value)| (key.to_owned(), value)));
    Ok(entries)
}

fn alpha_text(module: &LoraModule) -> String {
    f64::from(module.alpha.unwrap_or(module.rank() as f32)).to_string()
}

/// What all modules have, or `Dynamic`, as sd-scripts' resizing says it.
fn only(adapter: &Adapter, of: impl Fn(&LoraModule) -> String) -> String {
    let values: BTreeSet<String> = adapter.modules.values().map(of).collect();
    match values.len() {
        1 => values.into_iter().next().unwrap_or_default(),
        _ => "Dynamic".to_owned(),
    }
}

/// As `composed by ties (density 0.5, seed 0)`.
fn method_text(settings: &ComposeSettings) -> String {
    let mut numbers = Vec::new();
    numbers.extend(settings.rank.map(|rank| format!("rank {rank}")));
    numbers.extend((settings.method == Method::Budget).then(|| format!("budget {}", settings.budget)));
    numbers.extend(settings.method.has_density().then(|| format!("density {}", settings.density)));
    numbers.extend((settings.method == Method::Fusion).then(|| format!("ridge {}", settings.ridge)));
    numbers.extend((settings.method == Method::Dare).then(|| format!("seed {}", settings.seed)));
    let numbers = if numbers.is_empty() { String::new() } else { format!(" ({})", numbers.join(", ")) };
    format!("composed by {}{numbers}", settings.method.name())
}

/// The family of all members of which one is known.
fn common_family(members: &[MemberOrigin<'_>]) -> Result<BaseFamily, AdapterError> {
    let families = members.iter().map(|member| (member.name, BaseFamily::of_adapter(member.adapter)));
    let mut known = families.filter(|(_, family)| *family != BaseFamily::Unknown);
    let Some((first, family)) = known.next() else { return Ok(BaseFamily::Unknown) };
    match known.find(|(_, other)| *other != family) {
        None => Ok(family),
        Some((second, other)) => Err(AdapterError::BaseFamilies {
            first: first.to_owned(),
            first_family: family,
            second: second.to_owned(),
            second_family: other,
        }),
    }
}

/// The entries that decide whether programs list the file, for members whose metadata does not have them.
fn entries_of_family(family: BaseFamily) -> BTreeMap<String, String> {
    let version = match family {
        BaseFamily::Sd1 => BaseVersion::SdV1,
        BaseFamily::Sd2 => BaseVersion::SdV2,
        BaseFamily::Sdxl => BaseVersion::SdxlBaseV1,
        BaseFamily::Unknown => return BTreeMap::new(),
    };
    let is_v2 = if family == BaseFamily::Sd2 { "True" } else { "False" };
    let entries = [
        ("ss_v2", is_v2),
        ("ss_base_model_version", version.ss_name()),
        ("modelspec.architecture", version.architecture()),
        ("modelspec.implementation", version.implementation()),
    ];
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The folders of all members; where two have one of the same name, its tags are added up. Text that is not such an
/// object is left out.
fn tag_frequency(members: &[MemberOrigin<'_>]) -> Option<String> {
    let mut folders: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for text in members.iter().filter_map(|member| member.adapter.metadata.get(TAG_FREQUENCY)) {
        let object: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
        for (folder, tags) in object {
            let Value::Object(tags) = tags else { continue };
            let merged = folders.entry(folder).or_default();
            for (tag, count) in tags {
                let count = count.as_u64().unwrap_or(0);
                let sum = merged.entry(tag).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }
    if folders.is_empty() { None } else { serde_json::to_string(&folders).ok() }
}

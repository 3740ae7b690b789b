//! The built-in presets, and how a configuration names them.

use serde::{Deserialize, Serialize};

/// Name and TOML text of each.
pub const PRESETS: [(&str, &str); 15] = [
    ("concept-sd15", include_str!("../../../../configs/concept-sd15.toml")),
    ("concept-sd21", include_str!("../../../../configs/concept-sd21.toml")),
    ("concept-sdxl", include_str!("../../../../configs/concept-sdxl.toml")),
    ("sdxl-12gb", include_str!("../../../../configs/sdxl-12gb.toml")),
    ("sdxl-24gb", include_str!("../../../../configs/sdxl-24gb.toml")),
    ("sdxl-6gb", include_str!("../../../../configs/sdxl-6gb.toml")),
    ("sdxl-8gb", include_str!("../../../../configs/sdxl-8gb.toml")),
    ("style-emoji", include_str!("../../../../configs/style-emoji.toml")),
    ("style-sd15", include_str!("../../../../configs/style-sd15.toml")),
    ("style-sd21", include_str!("../../../../configs/style-sd21.toml")),
    ("style-sdxl", include_str!("../../../../configs/style-sdxl.toml")),
    ("subject-emoji", include_str!("../../../../configs/subject-emoji.toml")),
    ("subject-sd15", include_str!("../../../../configs/subject-sd15.toml")),
    ("subject-sd21", include_str!("../../../../configs/subject-sd21.toml")),
    ("subject-sdxl", include_str!("../../../../configs/subject-sdxl.toml")),
];

/// One name, or several of which the later are stronger: `"subject-sdxl"`, `["subject-sdxl", "sdxl-8gb"]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected the name of a preset, or a list of names")]
pub enum PresetNames {
    /// The only one.
    One(String),
    /// The weakest first.
    Several(Vec<String>),
}

impl PresetNames {
    /// All of them, the weakest first.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

//! Element types of tensor files.

/// The element types this crate reads, in the order in which the reference safetensors library lays tensors out.
///
/// The derived `Ord` is that order (the library sorts descending), so the variants must not be rearranged.
/// Source: `Dtype` of safetensors 0.8. The 4, 6 and 8-bit floats and the complex type are left out on purpose: none of
/// the programs that exchange Stable Diffusion LoRA files agree on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

const NAMES: [(&str, Dtype); 13] = [
    ("BOOL", Dtype::Bool),
    ("U8", Dtype::U8),
    ("I8", Dtype::I8),
    ("I16", Dtype::I16),
    ("U16", Dtype::U16),
    ("F16", Dtype::F16),
    ("BF16", Dtype::Bf16),
    ("I32", Dtype::I32),
    ("U32", Dtype::U32),
    ("F32", Dtype::F32),
    ("F64", Dtype::F64),
    ("I64", Dtype::I64),
    ("U64", Dtype::U64),
];

impl Dtype {
    /// The type of this name in a safetensors header (`F16`, `BF16`, `F32`, ...), if it is on the allow-list.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].0
    }

    /// Bytes of one element: 1, 2, 4 or 8.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::I32 | Dtype::U32 | Dtype::F32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_type() {
        for (name, dtype) in NAMES {
            assert_eq!(dtype.name(), name);
            assert_eq!(Dtype::from_name(name), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F8_E4M3"), None);
    }

    #[test]
    fn order_and_sizes_are_those_of_the_reference_library() {
        let theirs: Vec<safetensors::Dtype> =
            NAMES.iter().map(|(name, _)| serde_json::from_value(serde_json::Value::from(*name)).unwrap()).collect();
        assert!(theirs.is_sorted());
        for ((_, ours), theirs) in NAMES.iter().zip(theirs) {
            assert_eq!(ours.size_bytes() * 8, theirs.bitsize());
        }
        assert!(NAMES.iter().map(|(_, dtype)| *dtype).is_sorted());
    }
}

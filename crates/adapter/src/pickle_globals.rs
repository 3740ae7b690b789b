//! The Python names that a checkpoint may mention.
//!
//! A pickle is a program: it names functions and says with which arguments they are to be called. Nothing is called
//! here. What is needed to find the tensors is understood, what is known to be mere data beside them is skipped, and
//! any other name refuses the file.

use crate::Dtype;

/// What a name on the list means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    /// A tensor from storage, offset, shape and strides.
    RebuildTensor,
    /// A parameter: the tensor it is given.
    RebuildParameter,
    /// An ordered dictionary.
    OrderedDict,
    /// A shape: the tuple it is given.
    Size,
    /// The storage of this element type.
    Storage(Dtype),
    /// Data without meaning for the weights.
    Opaque,
}

/// Looks a name up; `None` refuses the file.
pub(crate) fn lookup(module: &str, name: &str) -> Option<Global> {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch", "Size") => Some(Global::Size),
        ("torch", name) => torch_name(name),
        ("torch.storage", "UntypedStorage") => Some(Global::Storage(Dtype::U8)),
        _ => OPAQUE.contains(&(module, name)).then_some(Global::Opaque),
    }
}

fn torch_name(name: &str) -> Option<Global> {
    let dtype = match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::Bool,
        "device" | "float32" | "float16" | "bfloat16" | "float64" | "int64" | "int32" | "uint8" | "bool" => {
            return Some(Global::Opaque);
        }
        _ => return None,
    };
    Some(Global::Storage(dtype))
}

/// Containers, numbers and the state that training programs leave in their files.
const OPAQUE: [(&str, &str); 35] = [
    ("__builtin__", "bool"),
    ("__builtin__", "bytearray"),
    ("__builtin__", "complex"),
    ("__builtin__", "dict"),
    ("__builtin__", "float"),
    ("__builtin__", "frozenset"),
    ("__builtin__", "int"),
    ("__builtin__", "list"),
    ("__builtin__", "set"),
    ("__builtin__", "str"),
    ("__builtin__", "tuple"),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("builtins", "bool"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "dict"),
    ("builtins", "float"),
    ("builtins", "frozenset"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "set"),
    ("builtins", "str"),
    ("builtins", "tuple"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("pytorch_lightning.callbacks", "ModelCheckpoint"),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_known() {
        assert_eq!(lookup("torch", "HalfStorage"), Some(Global::Storage(Dtype::F16)));
        assert_eq!(lookup("numpy", "dtype"), Some(Global::Opaque));
        let dangerous = [
            ("builtins", "eval"),
            ("builtins", "exec"),
            ("builtins", "getattr"),
            ("__builtin__", "__import__"),
            ("os", "system"),
            ("posix", "system"),
            ("subprocess", "Popen"),
            ("torch", "load"),
            ("torch", "hub.load"),
            ("torch.storage", "_load_from_bytes"),
            ("numpy", "load"),
            ("collections", "namedtuple"),
            ("functools", "partial"),
            ("", ""),
        ];
        for (module, name) in dangerous {
            assert_eq!(lookup(module, name), None, "{module}.{name}");
        }
    }
}

//! The formats that adapters come in.

pub(crate) mod adapter_place;
pub(crate) mod cloneofsimo;
pub(crate) mod dotted_key;
pub(crate) mod dotted_reader;
pub(crate) mod dotted_writer;
pub(crate) mod kohya_reader;
pub(crate) mod kohya_writer;
pub(crate) mod lora_config;
pub(crate) mod module_path;
pub(crate) mod position_reader;
pub(crate) mod position_writer;
pub(crate) mod reading;
pub(crate) mod visit_order;

//! The commands, each as one function from its arguments to its output.

pub(crate) mod adapter;
mod adapters;
pub(crate) mod base;
pub(crate) mod bench;
pub(crate) mod dataset;
mod dataset_sheet;
mod dataset_text;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod import_config;
pub(crate) mod init;
pub(crate) mod model;
mod new_file;
mod print_config;
pub(crate) mod run;
mod summary;
pub(crate) mod train;
pub(crate) mod verify;

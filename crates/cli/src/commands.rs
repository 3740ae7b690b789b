//! One module per command.

pub(crate) mod base;
pub(crate) mod doctor;
pub(crate) mod train;
pub(crate) mod verify;

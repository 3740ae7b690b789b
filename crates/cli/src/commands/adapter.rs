//! `loralei adapter`: what is in an adapter, and adapters made of others.

mod check;
mod compose;
mod convert;
mod extract;
mod inspect;
mod merge;
mod resize;

use loralei_adapter::{ConversionNote, SaveDtype};
use loralei_trainer::{Dtype, Event};

use crate::args::adapter::AdapterCommand;
use crate::report::Reporter;

pub(crate) fn run(command: &AdapterCommand, reporter: &mut Reporter) -> anyhow::Result<()> {
    match command {
        AdapterCommand::Inspect(arguments) => inspect::run(arguments, reporter),
        AdapterCommand::Check(arguments) => check::run(arguments, reporter),
        AdapterCommand::Convert(arguments) => convert::run(arguments, reporter),
        AdapterCommand::Resize(arguments) => resize::run(arguments, reporter),
        AdapterCommand::Extract(arguments) => extract::run(arguments, reporter),
        AdapterCommand::Merge(arguments) => merge::run(arguments, reporter),
        AdapterCommand::Compose(arguments) => compose::run(arguments, reporter),
    }
}

fn save_dtype(dtype: Dtype) -> SaveDtype {
    match dtype {
        Dtype::F32 => SaveDtype::F32,
        Dtype::Bf16 => SaveDtype::Bf16,
        Dtype::F16 => SaveDtype::F16,
    }
}

/// A warning where something was lost.
fn told(note: &ConversionNote) -> Event {
    let message = note.to_string();
    match note {
        ConversionNote::EmbeddingsLeftOut { .. }
        | ConversionNote::MetadataLeftOut { .. }
        | ConversionNote::HashesLeftOut
        | ConversionNote::TextLevel => Event::Warning { message },
        _ => Event::Note { message },
    }
}

//! `loralei adapter convert`.

use std::io::{Write, stdout};

use loralei_adapter::AdapterFile;
use loralei_trainer::{Event, TrainError};

use crate::args::adapter::ConvertArguments;
use crate::commands::adapter::{save_dtype, told};
use crate::commands::new_file::refuse_existing;
use crate::report::Reporter;

pub(crate) fn run(arguments: &ConvertArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let ConvertArguments { input, output, to, dtype, force } = arguments;
    refuse_existing(output, *force)?;
    let file = AdapterFile::read(input).map_err(TrainError::from)?;
    let notes = file.write(output, *to, dtype.map(save_dtype)).map_err(TrainError::from)?;
    let (modules, from) = (file.changes.len(), file.format.name());
    let family = file.family().name();
    let message = format!("{modules} modules from {from} to {}, base {family}", to.name());
    reporter.show(&Event::Note { message });
    for note in notes {
        reporter.show(&told(&note));
    }
    reporter.finish();
    writeln!(stdout(), "{}", output.display())?;
    Ok(())
}

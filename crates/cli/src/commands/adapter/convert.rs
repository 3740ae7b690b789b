//! `loralei adapter convert`.

use std::io::{Write, stdout};

use loralei_adapter::{AdapterFile, BaseFamily, BlockNames, Format};
use loralei_trainer::{Event, TrainError};

use crate::args::adapter::ConvertArguments;
use crate::commands::adapter::{save_dtype, told};
use crate::commands::adapters::read;
use crate::commands::new_file::refuse_existing;
use crate::report::Reporter;
use crate::usage::UsageError;

pub(crate) fn run(arguments: &ConvertArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let ConvertArguments { input, output, to, names, dtype, force } = arguments;
    if names.is_some() && *to != Format::Kohya {
        let message = format!("--names does nothing with --to {}", to.name());
        return Err(UsageError::new(message, "only kohya's keys have blocks of two names: leave it out").into());
    }
    refuse_existing(output, *force)?;
    let file = read(input, reporter)?;
    let family = file.family();
    if *names == Some(BlockNames::Original) && !matches!(family, BaseFamily::Sdxl | BaseFamily::Unknown) {
        let message = format!("no program looks for original block names in an adapter of {}", family.name());
        return Err(UsageError::new(message, "--names original is for Stable Diffusion XL: leave it out").into());
    }
    let file = AdapterFile { block_names: *names, ..file };
    let notes = file.write(output, *to, dtype.map(save_dtype)).map_err(TrainError::from)?;
    let (modules, from) = (file.changes.len(), file.format.name());
    let message = format!("{modules} modules from {from} to {}, base {}", to.name(), family.name());
    reporter.show(&Event::Note { message });
    for note in notes {
        reporter.show(&told(&note));
    }
    reporter.finish();
    writeln!(stdout(), "{}", output.display())?;
    Ok(())
}

//! `loralei import-config`: settings of kohya's trainer as ours.

use std::io::{Write, stdout};

use loralei_trainer::{Event, KohyaImport, LeftOut};

use crate::args::ImportConfigArguments;
use crate::commands::new_file::write_new;
use crate::report::Reporter;
use crate::usage::UsageError;

pub(crate) fn run(arguments: &ImportConfigArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let imported =
        KohyaImport::read(&arguments.files).map_err(|error| UsageError::new(error.to_string(), error.hint()))?;
    if let Some(path) = &arguments.output {
        write_new(path, &imported.text, arguments.force)?;
        writeln!(stdout(), "{}", path.display())?;
    } else {
        stdout().write_all(imported.text.as_bytes())?;
    }
    for message in imported.warnings {
        reporter.show(&Event::Warning { message });
    }
    for LeftOut { key, value, reason } in imported.left_out {
        reporter.show(&Event::Note { message: format!("not carried over: {key} = {value}: {reason}") });
    }
    Ok(())
}

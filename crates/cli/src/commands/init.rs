//! `loralei init`: a first configuration for a folder of images.

use std::io::{Write, stdout};
use std::path::PathBuf;

use candle_core::{DType, Device};
use loralei_model::{Base, BaseDescription, DeviceChoice};
use loralei_trainer::{BaseChoice, Event, FirstConfigRequest};

use crate::args::InitArguments;
use crate::commands::new_file::write_new;
use crate::commands::{base, dataset_text};
use crate::report::Reporter;

pub(crate) fn run(arguments: &InitArguments, reporter: &mut Reporter) -> anyhow::Result<()> {
    let description = describe(&arguments.base, reporter);
    let request = FirstConfigRequest {
        folder: &arguments.folder,
        goal: arguments.goal,
        base: &arguments.base,
        description: description.as_ref(),
        free_bytes: DeviceChoice::Cpu.free_bytes(),
        trigger: arguments.trigger.as_deref(),
        class: arguments.class.as_deref(),
    };
    let first = request.choose()?;
    let path = arguments.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.toml", first.name)));
    write_new(&path, &first.text, arguments.force)?;
    for (what, lines) in [("found", &first.found), ("chose", &first.chosen)] {
        for line in lines {
            reporter.show(&Event::Note { message: format!("{what}  {line}") });
        }
    }
    reporter.show(&Event::Note { message: format!("next   loralei train {}", path.display()) });
    writeln!(stdout(), "{}", path.display())?;
    Ok(())
}

/// What the base is. One that is not on the disk is only written down.
fn describe(name: &str, reporter: &mut Reporter) -> Option<BaseDescription> {
    let described = base::source_on_disk(&BaseChoice::from(name), reporter).and_then(|source| {
        let base = Base::open(source, None, DType::F32, &Device::Cpu).map_err(base::model)?;
        base::warn(&base, reporter);
        BaseDescription::of(&base).map_err(base::model)
    });
    match described {
        Ok(description) => Some(description),
        Err(error) => {
            let why = dataset_text::one_line(&error.to_string());
            reporter.show(&Event::Warning { message: format!("the base `{name}` is not looked at: {why}") });
            None
        }
    }
}

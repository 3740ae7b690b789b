//! Trains an adapter from a program of one's own: settings, plan, run.
//!
//! ```text
//! cargo run --release -p loralei-trainer --example train_folder -- BASE_FOLDER IMAGES_FOLDER OUTPUT_FOLDER
//! ```

use loralei_trainer::{BaseSource, ConfigLayers, Event, Plan, RunOptions, train};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, images, output] = &arguments[..] else {
        return Err("usage: train_folder BASE_FOLDER IMAGES_FOLDER OUTPUT_FOLDER".into());
    };
    let mut layers = ConfigLayers::new();
    for (key, value) in [("model.base", base), ("data.images", images), ("output.folder", output)] {
        layers.set_text(key, value)?;
    }
    layers.set("train.steps=100")?;
    layers.set("data.prompt=a photo of the subject")?;
    let resolved = layers.resolve()?;
    let plan = Plan::new(&resolved.config)?;

    // candle walks its graph by recursion: a run wants a thread with a large stack.
    let base = BaseSource::Folder(base.into());
    let run = move || {
        train(&plan, base, &RunOptions::new(&resolved), &mut |event| {
            if let Event::Step(step) = event {
                let _ = writeln!(std::io::stderr(), "step {} loss {:.4}", step.step, step.loss);
            }
        })
    };
    let handle = std::thread::Builder::new().stack_size(256 << 20).spawn(run)?;
    let ended = handle.join().map_err(|_| "the run panicked")??;
    writeln!(std::io::stdout(), "{}", ended.adapter().path.display())?;
    Ok(())
}

//! Prints the learning rate of a run at every tenth of it: `cargo run -p loralei-trainer --example learning_rate -- CONFIG.toml`.

use std::error::Error;
use std::io::{Write, stdout};
use std::path::Path;

use loralei_trainer::{ConfigLayers, Plan};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "configs/quickstart.toml".to_string());
    let mut layers = ConfigLayers::new();
    layers.file(Path::new(&path))?;
    let plan = Plan::new(&layers.resolve()?.config)?;
    let component = plan.unet.iter().chain(plan.text_encoders.iter().flatten()).next().ok_or("nothing is trained")?;
    for tenth in 0..=10 {
        let step = (plan.steps - 1) * tenth / 10;
        writeln!(stdout(), "step {step:>6}  {:.3e}", component.learning_rate * plan.schedule.ratio(step))?;
    }
    Ok(())
}

//! Prints what is in a LoRA file: modules, ranks, scales and norms, then the metadata.
//!
//! ```text
//! cargo run -p loralei-adapter --example describe -- octopus.safetensors
//! ```

use std::path::Path;

use loralei_adapter::{Adapter, AdapterError};

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "an example is a program")]
fn main() -> std::process::ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: describe ADAPTER.safetensors");
        return 2.into();
    };
    match describe(Path::new(&path)) {
        Ok(text) => {
            println!("{text}");
            0.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            if error.is_disk() { 6.into() } else { 4.into() }
        }
    }
}

fn describe(path: &Path) -> Result<String, AdapterError> {
    let adapter = Adapter::read(path)?;
    let modules = adapter.modules.iter().map(|(name, module)| {
        let (rank, scale, norm) = (module.rank(), module.scale(), module.delta_norm());
        format!("{name}: rank {rank}, scale {scale}, norm {norm:.4}, down {:?}", module.down.shape)
    });
    let metadata = adapter.metadata.iter().map(|(key, value)| format!("{key} = {value}"));
    Ok(modules.chain(metadata).collect::<Vec<_>>().join("\n"))
}

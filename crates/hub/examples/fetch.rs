//! Downloads a base from the hub, or finds it in the cache, and prints where it is.
//!
//! ```text
//! cargo run --release -p loralei-hub --example fetch -- OWNER/NAME[/FILE][@REVISION]
//! ```

use std::path::PathBuf;

use loralei_hub::{BaseOptions, Hub, HubError, HubEvent, HubSettings};

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "an example is a program")]
fn main() -> std::process::ExitCode {
    let Some(id) = std::env::args().nth(1) else {
        eprintln!("usage: fetch OWNER/NAME[/FILE][@REVISION]");
        return 2.into();
    };
    match fetch(&id) {
        Ok(path) => {
            println!("{}", path.display());
            0.into()
        }
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            if error.is_disk() { 6.into() } else { 4.into() }
        }
    }
}

#[allow(clippy::print_stderr, reason = "an example is a program")]
fn fetch(id: &str) -> Result<PathBuf, HubError> {
    let hub = Hub::new(HubSettings::from_env()?)?;
    hub.fetch_base(&id.parse()?, &BaseOptions::default(), &mut |event| match event {
        HubEvent::Progress { file, done_bytes, total_bytes: Some(total) } => {
            eprint!("\r{file}: {} of {} MB", done_bytes / 1_000_000, total / 1_000_000);
        }
        HubEvent::Progress { .. } => {}
        other => eprintln!("\n{other:?}"),
    })
}

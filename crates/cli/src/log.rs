//! Warnings of the libraries on stderr, above the progress bar. `LORALEI_LOG` takes a filter such as `debug`.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::report::has_colors;

/// From here on, what the libraries log is shown.
pub(crate) fn start(bars: &MultiProgress) {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).with_env_var("LORALEI_LOG");
    let bars = bars.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.from_env_lossy())
        .with_ansi(has_colors())
        .with_target(false)
        .without_time()
        .with_writer(move || AboveBars(bars.clone()));
    // Fails only if there is a subscriber already, which then shows the warnings.
    let _ = subscriber.try_init();
}

/// stderr, with the progress bar out of the way while something is written.
struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

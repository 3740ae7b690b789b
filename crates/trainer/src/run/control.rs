//! What is asked of a run while it works: by a signal to its process, or by files that are put into its folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals of one process to its run. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Control {
    is_interrupted: Arc<AtomicBool>,
    has_something_to_save: Arc<AtomicBool>,
}

/// What the process is to do at a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// Wait: the run finishes its step, saves and ends.
    Waits,
    /// End at once: nothing is lost that could be saved, or the user insists.
    Now,
}

impl Control {
    /// Of a run that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal to end has come. May be called from any thread.
    pub fn interrupt(&self) -> Interruption {
        let came_before = self.is_interrupted.swap(true, Ordering::SeqCst);
        if came_before || !self.has_something_to_save.load(Ordering::SeqCst) {
            Interruption::Now
        } else {
            Interruption::Waits
        }
    }

    /// Whether a signal to end has come.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::SeqCst)
    }

    /// From here on the run has learned something that is not on the disk, or has not.
    pub(crate) fn set_something_to_save(&self, has_something: bool) {
        self.has_something_to_save.store(has_something, Ordering::SeqCst);
    }
}

/// Something that is asked of a run by a file of this name in its folder. The run removes the file when it has done it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Draw the samples after the present step.
    Sample,
    /// Write a snapshot after the present step.
    Save,
    /// End after the present step, with a snapshot.
    Stop,
}

impl Request {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Sample, Self::Save, Self::Stop];

    /// Name of the file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Sample => "sample-now",
            Self::Save => "save-now",
            Self::Stop => "stop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_waits_where_there_is_something_to_save_and_the_second_never_does() {
        let control = Control::new();
        control.set_something_to_save(true);
        assert_eq!((control.is_interrupted(), control.interrupt()), (false, Interruption::Waits));
        assert_eq!((control.is_interrupted(), control.clone().interrupt()), (true, Interruption::Now));
        assert_eq!(Control::new().interrupt(), Interruption::Now);
    }
}

//! A decoder's panic as an error, and in silence: what a broken file does to a decoder is no news for the terminal.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::thread;

thread_local! {
    static IS_SILENT: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or the text of its panic.
///
/// The first call puts a hook in front of the program's panic hook, which swallows the message of panics of this
/// thread while `work` runs and hands on every other.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // A thread that is unwinding must not touch the hook; it then only costs a message.
    if !thread::panicking() {
        HOOK.call_once(|| {
            let outer = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // A thread that is shutting down has no flag any more.
                if !IS_SILENT.try_with(Cell::get).unwrap_or(false) {
                    outer(info);
                }
            }));
        });
    }
    let was_silent = IS_SILENT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_SILENT.set(was_silent);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panic").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::caught;

    #[test]
    #[expect(clippy::panic)]
    fn a_caught_panic_is_silent_and_any_other_is_told() {
        static NUM_TOLD: AtomicUsize = AtomicUsize::new(0);
        panic::set_hook(Box::new(|_| {
            NUM_TOLD.fetch_add(1, Ordering::SeqCst);
        }));
        assert_eq!(caught(|| 7), Ok(7));
        let number = 3;
        assert_eq!(caught(|| -> () { panic!("no {number}") }), Err("no 3".to_owned()));
        assert_eq!(caught(|| caught(|| -> () { panic!("inner") })), Ok(Err("inner".to_owned())));
        assert_eq!(NUM_TOLD.load(Ordering::SeqCst), 0);
        assert!(panic::catch_unwind(|| panic!("outside")).is_err());
        assert!(caught(|| std::thread::spawn(|| panic!("elsewhere")).join()).is_ok_and(|joined| joined.is_err()));
        assert_eq!(NUM_TOLD.load(Ordering::SeqCst), 2);
    }
}

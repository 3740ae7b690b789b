//! Where the time of a step goes, by operation and direction, on the thread that measures.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// The value; also what recompute computes again.
    Forward,
    /// The gradients.
    Backward,
}

/// What one kind of operation took in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpTime {
    /// How often it ran.
    pub calls: u64,
    /// How long in all.
    pub elapsed: Duration,
}

/// Times by operation and direction.
pub type OpTimes = BTreeMap<(&'static str, Pass), OpTime>;

thread_local! {
    static TIMES: RefCell<Option<OpTimes>> = const { RefCell::new(None) };
}

/// Runs `f` and measures the kernels that this thread calls in it. What lies between kernels is in none of the times.
pub fn op_times<R>(f: impl FnOnce() -> R) -> (R, OpTimes) {
    let outer = TIMES.replace(Some(OpTimes::new()));
    let result = f();
    (result, TIMES.replace(outer).unwrap_or_default())
}

/// Runs a kernel; `name` is what its time is counted under.
pub(crate) fn timed<R>(name: &'static str, pass: Pass, kernel: impl FnOnce() -> R) -> R {
    if TIMES.with_borrow(Option::is_none) {
        return kernel();
    }
    let started = Instant::now();
    let result = kernel();
    let elapsed = started.elapsed();
    TIMES.with_borrow_mut(|times| {
        if let Some(times) = times {
            let time = times.entry((name, pass)).or_default();
            time.calls += 1;
            time.elapsed += elapsed;
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_counted_only_where_somebody_measures() {
        let work = |name| timed(name, Pass::Forward, || std::thread::sleep(Duration::from_millis(2)));
        work("a");
        let ((), times) = op_times(|| {
            work("a");
            work("a");
            timed("a", Pass::Backward, || ());
        });
        let forward = times[&("a", Pass::Forward)];
        assert!(forward.calls == 2 && forward.elapsed >= Duration::from_millis(4), "{times:?}");
        assert_eq!(times[&("a", Pass::Backward)].calls, 1);
        assert_eq!(op_times(|| ()).1, OpTimes::new());
    }
}

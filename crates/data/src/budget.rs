//! Memory as a number of bytes that threads take and give back, so that large pictures wait for each other.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many bytes, shared.
#[derive(Debug)]
pub(crate) struct Budget {
    total_bytes: u64,
    free_bytes: Mutex<u64>,
    given_back: Condvar,
}

/// Bytes taken from a budget; dropping gives them back.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(total_bytes: u64) -> Self {
        Self { total_bytes, free_bytes: Mutex::new(total_bytes), given_back: Condvar::new() }
    }

    /// Waits until `bytes` are free and takes them; of more than there are in all, takes all.
    pub(crate) fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(self.total_bytes);
        let free = self.free_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.given_back.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.free_bytes.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.given_back.notify_all();
    }
}

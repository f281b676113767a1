//! Panics end here: r2d2 loses a slot for ever when `connect()` or `is_valid()` panics, and both
//! run a user's code (an instrumentation, a connection type of their own).

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What was called has panicked; the panic's own message is on standard error already.
#[derive(Debug)]
pub(crate) struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection, or an instrumentation set on it, panicked")
    }
}

/// Runs `work`. Whatever it was working on must be thrown away when it panicked.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// Locks what no panic leaves half changed: a few assignments, and no user's code. So a poisoned lock
/// is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

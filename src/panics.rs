//! Catches panics of user code. r2d2 loses a slot permanently when `connect()` or `is_valid()`
//! panics, and both run user code: an instrumentation, or a custom connection type.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The called code has panicked; the panic hook has already reported the message, by default on
/// standard error.
#[derive(Debug)]
pub(crate) struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection, or the application's `on_connect`, `health_check` or instrumentation, panicked")
    }
}

/// Runs `work` and catches a panic. After a panic, the caller must discard the data that `work` was
/// changing.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Panicked)
}

/// Locks a mutex and ignores poisoning. Only for mutexes under which a few assignments and no user
/// code run, so that a panic cannot leave the data half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! All peers down: the wait of a connecting thread for the first peer that returns.
//!
//! After a failed connect, r2d2 puts the slot to sleep for up to half of the pool's
//! `connection_timeout` (15 seconds by default), so it would notice a recovery that late. Therefore
//! one of r2d2's workers waits here and is woken when a connection can be opened again. Workers that several
//! pools may share do not wait (`login/dial.rs`).

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::panics::lock;

/// The length of an outage after which no thread waits any more.
///
/// A waiting thread keeps its pool alive, and each one that leaves is replaced by the next. An
/// application that drops its pool and builds a new one until its database is back would otherwise
/// keep all those pools alive. After an outage of this length, half a minute more matters little.
const MAX_WAITED_OUTAGE: Duration = Duration::from_secs(5 * 60);

/// The state of the current outage, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first connect of this outage failed and returned the full error to its caller.
    reported_at: Option<Instant>,
    /// Wakes the thread that waits. Dropping the sender makes that thread return with an error.
    waiter: Option<Sender<()>>,
}

/// What the caller does after a failed connect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Return the full error: this is the first failure of the outage, the outage lasts too long,
    /// the wait has timed out, or another thread waits now.
    Fail,
    /// Try again: a peer may be up.
    TryAgain,
}

impl Outage {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for the end of the outage after a failed connect, for at most `longest`.
    ///
    /// The first caller of an outage returns at once, to report the full error. A later caller
    /// waits and replaces the caller that waited before it. `is_over` is evaluated again after the
    /// caller has been registered, so that the end of the outage cannot be missed.
    pub(crate) fn wait(
        &self,
        now: Instant,
        longest: Duration,
        is_over: impl Fn() -> bool,
    ) -> NextStep {
        if is_over() {
            return if longest.is_zero() { NextStep::Fail } else { NextStep::TryAgain };
        }
        let (wake, woken) = bounded(1);
        {
            let state = &mut *self.lock();
            let reported_at = *state.reported_at.get_or_insert(now);
            if reported_at == now || now.saturating_duration_since(reported_at) > MAX_WAITED_OUTAGE
            {
                return NextStep::Fail;
            }
            state.waiter = Some(wake);
        }
        if is_over() || woken.recv_timeout(longest).is_ok() {
            NextStep::TryAgain
        } else {
            NextStep::Fail
        }
    }

    /// Ends the outage and wakes the waiting thread: a peer is up.
    pub(crate) fn end(&self) {
        let state = &mut *self.lock();
        state.reported_at = None;
        if let Some(waiter) = state.waiter.take() {
            let _ = waiter.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A wait that is longer than the test takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn first_caller_fails_and_later_callers_replace_each_other_until_the_outage_ends() {
        let outage = Outage::default();
        let start = Instant::now();
        let later = |millis| start + Duration::from_millis(millis);
        let not_over = || false;
        assert_eq!(
            outage.wait(start, LONG, not_over),
            NextStep::Fail,
            "the first caller reports the error"
        );
        thread::scope(|scope| {
            let one = scope.spawn(|| outage.wait(later(1), LONG, not_over));
            while outage.lock().waiter.is_none() {
                thread::yield_now();
            }
            let other = scope.spawn(|| outage.wait(later(2), LONG, not_over));
            assert_eq!(
                one.join().expect("no panic"),
                NextStep::Fail,
                "the next caller replaces the waiting one"
            );
            outage.end();
            assert_eq!(
                other.join().expect("no panic"),
                NextStep::TryAgain,
                "the end of the outage wakes the caller"
            );
        });
        assert_eq!(
            outage.wait(later(3), LONG, not_over),
            NextStep::Fail,
            "the first caller of the next outage fails"
        );
        assert_eq!(
            outage.wait(later(4), LONG, || true),
            NextStep::TryAgain,
            "an outage that has ended calls for a retry"
        );
        assert_eq!(
            outage.wait(later(5), Duration::ZERO, not_over),
            NextStep::Fail,
            "a wait of zero length fails"
        );
        assert_eq!(
            outage.wait(later(3) + MAX_WAITED_OUTAGE + LONG, LONG, not_over),
            NextStep::Fail,
            "no caller waits in an outage that lasts too long"
        );
    }
}

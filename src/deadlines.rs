//! Deadlines of blocking calls. The checker cancels each call that is still running at its
//! deadline.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::panics::{catch_panic, lock};

/// Cancels a call. Runs on the checker's thread.
pub(crate) type Cancel = Box<dyn FnOnce(CancelReason) + Send>;

/// Why a call is canceled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// The deadline has passed; the value is the current time.
    Deadline(Instant),
    /// The pool is closed, so no caller waits for the result any more.
    PoolClosed,
}

/// The pending calls that have a deadline.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    next: u64,
    calls: BTreeMap<Ticket, Call>,
    /// No deadline is earlier than this. A call that ends leaves it as it is, so that the end of a call
    /// costs no search, and at most one wake-up of the checker for nothing.
    earliest: Option<Instant>,
    closed: bool,
}

struct Call {
    at: Instant,
    cancel: Cancel,
}

/// Identifies one pending call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Registers a call that is canceled with `cancel` unless it has ended by `at`. Also returns
    /// whether the checker has to be woken, because it waits for no deadline as early as this one.
    pub(crate) fn register(
        &self,
        at: Instant,
        cancel: impl FnOnce(CancelReason) + Send + 'static,
    ) -> (Ticket, bool) {
        let pending = &mut *self.lock();
        pending.next += 1;
        let ticket = Ticket(pending.next);
        let is_first = pending.earliest.is_none_or(|earliest| at < earliest);
        if !pending.closed {
            pending.calls.insert(ticket, Call { at, cancel: Box::new(cancel) });
            if is_first {
                pending.earliest = Some(at);
            }
        }
        (ticket, is_first)
    }

    /// Unregisters a call that has ended. Returns whether it ended in time; otherwise it has been
    /// canceled, or is being canceled.
    pub(crate) fn unregister(&self, ticket: Ticket) -> bool {
        let ended = self.lock().calls.remove(&ticket);
        ended.is_some()
    }

    /// Cancels the calls whose deadline has passed at `now`. Returns the next deadline.
    pub(crate) fn cancel_overdue(&self, now: Instant) -> Option<Instant> {
        let (overdue, next) = {
            let Pending { calls, earliest, .. } = &mut *self.lock();
            if earliest.is_none_or(|earliest| earliest > now) {
                return *earliest;
            }
            let (overdue, pending): (BTreeMap<_, _>, BTreeMap<_, _>) =
                mem::take(calls).into_iter().partition(|(_, call)| call.at <= now);
            *calls = pending;
            *earliest = calls.values().map(|call| call.at).min();
            (overdue, *earliest)
        };
        cancel(overdue, CancelReason::Deadline(now));
        next
    }

    /// Moves every deadline by the time for which the whole process was suspended: the calls had no
    /// chance to end meanwhile.
    pub(crate) fn postpone(&self, by: Duration) {
        let Pending { calls, earliest, .. } = &mut *self.lock();
        calls.values_mut().map(|call| &mut call.at).chain(earliest).for_each(|at| *at += by);
    }

    /// Cancels all pending calls, because the checker ends. Returns whether there were any.
    pub(crate) fn cancel_all(&self) -> bool {
        let calls = mem::take(&mut self.lock().calls);
        let is_any_pending = !calls.is_empty();
        cancel(calls, CancelReason::PoolClosed);
        is_any_pending
    }

    /// Drops all pending calls and ignores new ones: the checker has ended.
    pub(crate) fn close(&self) {
        let calls = {
            let pending = &mut *self.lock();
            pending.closed = true;
            mem::take(&mut pending.calls)
        };
        drop(calls);
    }
}

/// Cancels calls, without the lock. A panic ends here, because the checker goes on.
fn cancel(calls: BTreeMap<Ticket, Call>, reason: CancelReason) {
    for call in calls.into_values() {
        let _ = catch_panic(|| (call.cancel)(reason));
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn call_that_has_not_ended_by_its_deadline_is_canceled() {
        let deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let canceled: Arc<Mutex<Vec<(u64, CancelReason)>>> = Arc::default();
        let register = |seconds| {
            let canceled = canceled.clone();
            let cancel = move |reason| canceled.lock().expect("no panic").push((seconds, reason));
            deadlines.register(at(seconds), cancel)
        };
        let seen = || std::mem::take(&mut *canceled.lock().expect("no panic"));

        let (five, is_first) = register(5);
        assert!(is_first, "the only deadline is the earliest one");
        let (three, is_first) = register(3);
        assert!(is_first, "a deadline before all others is the earliest one");
        let (four, is_first) = register(4);
        assert!(!is_first, "a deadline after another one is not the earliest one");

        assert!(deadlines.unregister(four), "the call ended before its deadline");
        let next = deadlines.cancel_overdue(at(3));
        assert_eq!((seen(), next), (vec![(3, CancelReason::Deadline(at(3)))], Some(at(5))));
        assert!(!deadlines.unregister(three), "the call was canceled at its deadline");

        deadlines.postpone(Duration::from_secs(2));
        deadlines.cancel_overdue(at(6));
        assert_eq!(seen(), vec![], "a postponed deadline has not passed yet");
        assert!(deadlines.cancel_all(), "a call is pending");
        deadlines.close();
        assert_eq!(
            seen(),
            vec![(5, CancelReason::PoolClosed)],
            "all pending calls are canceled when the pool closes"
        );
        assert!(!deadlines.unregister(five));
        let (late, _) = register(9);
        assert!(!deadlines.unregister(late), "calls are not registered after the close");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn calls_that_end_in_time_wake_the_checker_once() {
        let deadlines = Deadlines::default();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut wakes = 0;
        for call in 0..100 {
            let at = now + second + call * second / 100;
            let (ticket, is_first) = deadlines.register(at, |_| panic!("the call ends in time"));
            wakes += u32::from(is_first);
            assert!(deadlines.unregister(ticket), "the call ended before its deadline");
        }
        assert_eq!(wakes, 1, "one wake-up is enough for calls with ever later deadlines");
        assert_eq!(deadlines.cancel_overdue(now), Some(now + second));
        assert_eq!(deadlines.cancel_overdue(now + second), None, "no call is pending");
        assert!(deadlines.register(now + 9 * second, |_| {}).1);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn deadlines_are_postponed_by_the_time_for_which_the_process_was_suspended() {
        let deadlines = Deadlines::default();
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let (canceled, cancels) = unbounded();
        deadlines.register(now + second, move |_| canceled.send(()).expect("the test receives"));
        deadlines.postpone(5 * second);
        deadlines.cancel_overdue(now + 5 * second);
        assert!(
            cancels.is_empty(),
            "a call is not canceled for time in which the process was suspended"
        );
        deadlines.cancel_overdue(now + 6 * second);
        assert_eq!(cancels.len(), 1, "the call is canceled at its postponed deadline");
    }
}

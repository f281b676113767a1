//! What must have ended by a certain time, or is cut off then: the checker's list.

use std::fmt;
use std::mem;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::panics::lock;

/// What is done to a call that has not ended in time. It runs on the checker's thread.
pub(crate) type Cut = Box<dyn FnOnce(Late) + Send>;

/// Why a call is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It is now this late.
    At(Instant),
    /// The pool is gone, and nobody waits for it any more.
    NobodyWaits,
}

/// The calls that are bounded.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    next: u64,
    calls: Vec<Call>,
    closed: bool,
}

struct Call {
    ticket: Ticket,
    at: Instant,
    cut: Cut,
}

/// One call on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Deadlines {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// A call begins that must have ended at `at`, or `cut` is run. Says whether the checker has to
    /// look at the list again, because nothing on it is due before that.
    pub(crate) fn begin(
        &self,
        at: Instant,
        cut: impl FnOnce(Late) + Send + 'static,
    ) -> (Ticket, bool) {
        let pending = &mut *self.lock();
        pending.next += 1;
        let ticket = Ticket(pending.next);
        let is_first = pending.calls.iter().all(|call| at < call.at);
        if !pending.closed {
            pending.calls.push(Call { ticket, at, cut: Box::new(cut) });
        }
        (ticket, is_first)
    }

    /// The call has ended. Says whether it was in time: else it is being cut off, or was.
    pub(crate) fn end(&self, ticket: Ticket) -> bool {
        let ended = {
            let calls = &mut self.lock().calls;
            let at = calls.iter().position(|call| call.ticket == ticket);
            at.map(|at| calls.swap_remove(at))
        };
        ended.is_some()
    }

    /// What is to be cut off at `now`, and when to look again.
    pub(crate) fn take_overdue(&self, now: Instant) -> (Vec<Cut>, Option<Instant>) {
        let pending = &mut *self.lock();
        let mut overdue = Vec::new();
        while let Some(at) = pending.calls.iter().position(|call| call.at <= now) {
            overdue.push(pending.calls.swap_remove(at).cut);
        }
        (overdue, pending.calls.iter().map(|call| call.at).min())
    }

    /// The whole process stood still for so long: what is bounded had no chance to end meanwhile.
    pub(crate) fn postpone(&self, by: Duration) {
        self.lock().calls.iter_mut().for_each(|call| call.at += by);
    }

    /// All that is on the list, due or not.
    pub(crate) fn take_all(&self) -> Vec<Cut> {
        self.lock().calls.drain(..).map(|call| call.cut).collect()
    }

    /// Nobody will look at the list any more.
    pub(crate) fn close(&self) {
        let calls = {
            let pending = &mut *self.lock();
            pending.closed = true;
            mem::take(&mut pending.calls)
        };
        drop(calls);
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

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn what_has_not_ended_is_cut_off_when_it_is_due() {
        let deadlines = Deadlines::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let cut_off: Arc<Mutex<Vec<(u64, Late)>>> = Arc::default();
        let begin = |seconds| {
            let cut_off = cut_off.clone();
            let cut = move |late| cut_off.lock().expect("no panic").push((seconds, late));
            deadlines.begin(at(seconds), cut)
        };
        let run = |cuts: Vec<Cut>, late| cuts.into_iter().for_each(|cut| cut(late));
        let seen = || std::mem::take(&mut *cut_off.lock().expect("no panic"));

        let (five, looks) = begin(5);
        assert!(looks, "nothing else is due");
        let (three, looks) = begin(3);
        assert!(looks, "it is due sooner");
        let (four, looks) = begin(4);
        assert!(!looks, "the checker looks before that");

        assert!(deadlines.end(four), "it has ended in time");
        let (cuts, next) = deadlines.take_overdue(at(3));
        run(cuts, Late::At(at(3)));
        assert_eq!((seen(), next), (vec![(3, Late::At(at(3)))], Some(at(5))));
        assert!(!deadlines.end(three), "it was cut off");

        deadlines.postpone(Duration::from_secs(2));
        assert_eq!(deadlines.take_overdue(at(6)).0.len(), 0, "time has stood still");
        run(deadlines.take_all(), Late::NobodyWaits);
        deadlines.close();
        assert_eq!(seen(), vec![(5, Late::NobodyWaits)], "at the end all are");
        assert!(!deadlines.end(five));
        let (late, _) = begin(9);
        assert!(!deadlines.end(late), "after the end nothing is put on the list");
    }
}

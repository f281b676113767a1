//! The event log: writes events of the peers to the log, keeps the history that a snapshot shows,
//! and queues events for the application's event handler.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use log::{Level, log};

use crate::events::{Event, EventKind};
use crate::fault::Fault;
use crate::panics::{catch_panic, lock};

/// The number of state changes that a snapshot shows. With three peers that go down and come back,
/// this covers about a dozen outages.
const HISTORY_LEN: usize = 100;

/// The number of events that may wait for a slow event handler or a slow logger: as many as one
/// fault of a large pool causes at once.
const QUEUE_LEN: usize = 4096;

/// The target of all log records of this crate, whichever module writes them.
pub(crate) const LOG_TARGET: &str = "diesel_peers";

/// A new event of a peer, before it gets its timestamp.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) peer: Arc<str>,
    pub(crate) in_service: bool,
    pub(crate) kind: EventKind,
}

/// Records events for the log, the history and the event handler.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    /// The name of the pool.
    pool: String,
    history: Mutex<VecDeque<Event>>,
    queue: Option<Sender<Event>>,
    dropped: AtomicU64,
    unwritten: Mutex<Unwritten>,
}

/// State changes that are not in the log yet, and whether a thread is writing them.
#[derive(Debug, Default)]
struct Unwritten {
    events: VecDeque<Event>,
    is_being_written: bool,
}

impl EventLog {
    /// Creates an event log with a queue for an event handler, and returns the receiving end of the
    /// queue.
    pub(crate) fn with_queue() -> (Self, Receiver<Event>) {
        let (queue, events) = bounded(QUEUE_LEN);
        (Self { queue: Some(queue), ..Self::default() }, events)
    }

    /// Sets the name of the pool, which each line of the log has as a key.
    pub(crate) fn of_pool(mut self, name: &str) -> Self {
        name.clone_into(&mut self.pool);
        self
    }

    /// Adds events to the history and queues them for the event handler and the log. Called with
    /// the lock of the peers held, so that events are recorded in the order in which the peers
    /// changed.
    #[expect(clippy::disallowed_methods, reason = "the time of day is only shown")]
    pub(crate) fn record(&self, events: impl IntoIterator<Item = NewEvent>) {
        for NewEvent { peer, in_service, kind } in events {
            let is_transition = kind.is_transition();
            if !is_transition && self.queue.is_none() {
                continue;
            }
            let at = SystemTime::now();
            let event = Event { at, peer: peer.to_string(), in_service, kind };
            if is_transition {
                push(&mut lock(&self.history), HISTORY_LEN, event.clone());
                push(&mut lock(&self.unwritten).events, QUEUE_LEN, event.clone());
            }
            // After the end of the pool nobody receives events, and none is missed.
            let sent = self.queue.as_ref().map(|queue| queue.try_send(event));
            if let Some(Err(TrySendError::Full(_))) = sent {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes the queued state changes to the log. Called without any lock, because a logger is
    /// user code.
    ///
    /// One thread writes at a time, and also writes what other threads queue meanwhile. This keeps
    /// the lines in order and makes a logger safe that calls this function itself.
    pub(crate) fn write_log(&self) {
        let mut unwritten = lock(&self.unwritten);
        if mem::replace(&mut unwritten.is_being_written, true) {
            return;
        }
        while let Some(event) = unwritten.events.pop_front() {
            drop(unwritten);
            // A panic in the logger would cost r2d2 a slot, or end the checker.
            let _ = catch_panic(|| write(&self.pool, &event));
            unwritten = lock(&self.unwritten);
        }
        unwritten.is_being_written = false;
    }

    /// Returns the last state changes, the newest last.
    pub(crate) fn history(&self) -> Vec<Event> {
        lock(&self.history).iter().cloned().collect()
    }

    /// Returns how many events were dropped because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Appends an event, and drops the oldest one when there are already `limit` events.
fn push(events: &mut VecDeque<Event>, limit: usize, event: Event) {
    if events.len() == limit {
        events.pop_front();
    }
    events.push_back(event);
}

/// Writes one log line for a state change.
fn write(pool: &str, event: &Event) {
    let Event { peer, kind, .. } = event;
    let (peer, name) = (&**peer, kind.as_str());
    match (level(event), reason(kind)) {
        (level, Some(reason)) => {
            log!(
                target: LOG_TARGET, level, pool = pool, peer = peer, event = name, reason = reason; "{event}"
            );
        }
        (level, None) => {
            log!(target: LOG_TARGET, level, pool = pool, peer = peer, event = name; "{event}");
        }
    }
}

fn level(event: &Event) -> Level {
    match &event.kind {
        EventKind::Down { fault: Fault::Misconfigured, .. } | EventKind::Misconfigured { .. } => {
            Level::Error
        }
        // An operator has already taken the peer out of service, because of this fault or before a
        // shutdown.
        EventKind::Down { .. } | EventKind::Full { .. } if !event.in_service => Level::Info,
        EventKind::Down { .. }
        | EventKind::Full { .. }
        | EventKind::AtLimit { .. }
        | EventKind::TransactionInDoubt { .. }
        | EventKind::TransactionUnresolved { .. }
        | EventKind::Slow { .. }
        | EventKind::QueriesAborted { .. } => Level::Warn,
        _ => Level::Info,
    }
}

fn reason(kind: &EventKind) -> Option<&str> {
    match kind {
        EventKind::Down { reason, .. }
        | EventKind::Full { reason }
        | EventKind::Misconfigured { reason }
        | EventKind::ConnectFailed { reason, .. }
        | EventKind::TransactionInDoubt { reason }
        | EventKind::TransactionUnresolved { reason } => Some(reason),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn log_level_follows_from_the_need_for_action() {
        let down =
            |fault| EventKind::Down { reason: String::new(), fault, next_check: Duration::ZERO };
        let full = EventKind::Full { reason: String::new() };
        for (kind, in_service, expected) in [
            (down(Fault::PeerDown), true, Level::Warn),
            (down(Fault::PeerDown), false, Level::Info),
            (down(Fault::Misconfigured), true, Level::Error),
            (down(Fault::Misconfigured), false, Level::Error),
            (full.clone(), true, Level::Warn),
            (full, false, Level::Info),
            (EventKind::QueriesAborted { hung: 1, aborted: 1 }, true, Level::Warn),
            (EventKind::Draining, false, Level::Info),
            (EventKind::HasRoom, true, Level::Info),
        ] {
            let case = format!("{kind:?}, in service: {in_service}");
            let at = SystemTime::UNIX_EPOCH;
            let event = Event { at, peer: "db0".to_owned(), in_service, kind };
            assert_eq!(level(&event), expected, "{case}");
        }
    }
}

//! What has happened to the peers: the log, the history that a snapshot shows, and the queue to the
//! application's event handler.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{Level, log};

use crate::event::{Event, EventKind};
use crate::fault::Fault;
use crate::panics::{catch_panic, lock};
use crate::peers::counters::Counter;

/// How many changes of state a snapshot shows: of three peers that go down and come back, those of the
/// last dozen outages.
const HISTORY: usize = 100;

/// How many events wait for a handler that takes its time, or a logger: what a fault of a large pool
/// causes at once.
const QUEUE: usize = 4096;

/// The log's target, wherever in the crate the line comes from.
pub(crate) const TARGET: &str = "diesel_peers";

/// Something that has happened to a peer just now.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) peer: Arc<str>,
    pub(crate) in_service: bool,
    pub(crate) kind: EventKind,
}

/// Where news go.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    history: Mutex<VecDeque<Event>>,
    queue: Option<Sender<Event>>,
    dropped: Counter,
    unwritten: Mutex<Unwritten>,
}

/// Changes of state that are not in the log yet, and whether somebody is at it.
#[derive(Debug, Default)]
struct Unwritten {
    events: VecDeque<Event>,
    is_being_written: bool,
}

impl Journal {
    /// A journal that is read by somebody, and what they read.
    pub(crate) fn with_reader() -> (Self, Receiver<Event>) {
        let (queue, events) = bounded(QUEUE);
        (Self { queue: Some(queue), ..Self::default() }, events)
    }

    /// Keeps what has happened, and queues it for the reader and the log: under the lock of the peers, so
    /// that the order is theirs.
    #[expect(clippy::disallowed_methods, reason = "the time of day is only shown")]
    pub(crate) fn keep(&self, news: impl IntoIterator<Item = News>) {
        for News { peer, in_service, kind } in news {
            let is_transition = kind.is_transition();
            if !is_transition && self.queue.is_none() {
                continue;
            }
            let at = SystemTime::now();
            let event = Event { at, peer: peer.to_string(), in_service, kind };
            if is_transition {
                push(&mut lock(&self.history), HISTORY, event.clone());
                push(&mut lock(&self.unwritten).events, QUEUE, event.clone());
            }
            if self.queue.as_ref().is_some_and(|queue| queue.try_send(event).is_err()) {
                self.dropped.add_one();
            }
        }
    }

    /// Logs what was kept, outside every lock: a logger is user code. While one thread is at it the others
    /// leave theirs to it, so that the lines are in order, and a logger may come by here itself.
    pub(crate) fn log(&self) {
        let mut unwritten = lock(&self.unwritten);
        if mem::replace(&mut unwritten.is_being_written, true) {
            return;
        }
        while let Some(event) = unwritten.events.pop_front() {
            drop(unwritten);
            // This runs where a panic costs a slot or the checker.
            let _ = catch_panic(|| write(&event));
            unwritten = lock(&self.unwritten);
        }
        unwritten.is_being_written = false;
    }

    /// The last changes of state, the newest last.
    pub(crate) fn history(&self) -> Vec<Event> {
        lock(&self.history).iter().cloned().collect()
    }

    /// How many events found the queue full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.get()
    }
}

/// The oldest one goes when there are too many.
fn push(events: &mut VecDeque<Event>, most: usize, event: Event) {
    if events.len() == most {
        events.pop_front();
    }
    events.push_back(event);
}

/// One line for each change of state.
fn write(event: &Event) {
    let Event { peer, kind, .. } = event;
    let (peer, what) = (&**peer, kind.as_str());
    match (level(event), reason(kind)) {
        (level, Some(reason)) => {
            log!(target: TARGET, level, peer = peer, event = what, reason = reason; "{event}");
        }
        (level, None) => log!(target: TARGET, level, peer = peer, event = what; "{event}"),
    }
}

fn level(event: &Event) -> Level {
    match &event.kind {
        EventKind::Down { fault: Fault::Misconfigured, .. } | EventKind::Misconfigured { .. } => {
            Level::Error
        }
        // Somebody has taken it out of service because of that, or before they stop it.
        EventKind::Down { .. } | EventKind::Full { .. } if !event.in_service => Level::Info,
        EventKind::Down { .. } | EventKind::Full { .. } | EventKind::QueriesAborted { .. } => {
            Level::Warn
        }
        _ => Level::Info,
    }
}

fn reason(kind: &EventKind) -> Option<&str> {
    match kind {
        EventKind::Down { reason, .. }
        | EventKind::Full { reason }
        | EventKind::Misconfigured { reason }
        | EventKind::ConnectFailed { reason, .. } => Some(reason),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn levels_are_by_what_is_to_be_done() {
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
            let what = format!("{kind:?}, in service: {in_service}");
            let at = SystemTime::UNIX_EPOCH;
            let event = Event { at, peer: "db0".to_owned(), in_service, kind };
            assert_eq!(level(&event), expected, "{what}");
        }
    }
}

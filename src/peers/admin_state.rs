//! What an operator wants of a peer, and how far that is done. No check and no timer writes it. Pure.

use std::mem;
use std::time::Instant;

use crate::event::EventKind;

/// Whether an operator lets a peer serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminState {
    Ready,
    /// It gets no new work, and its links end as they come back. One that `then_remove` is removed then.
    Draining {
        since: Instant,
        then_remove: bool,
    },
    /// The pool has no session there.
    Drained {
        since: Instant,
    },
    /// It is no peer any more. Its place is kept until nothing leads there, and then may be another's.
    Removed,
}

impl AdminState {
    /// No new work from now on; and it is removed once it is drained if it `then_remove`.
    pub(super) fn drain(&mut self, then_remove: bool, now: Instant) -> Option<EventKind> {
        match *self {
            Self::Ready => {
                *self = Self::Draining { since: now, then_remove };
                Some(EventKind::Draining)
            }
            Self::Draining { since, then_remove: false } => {
                *self = Self::Draining { since, then_remove };
                None
            }
            Self::Drained { .. } if then_remove => {
                *self = Self::Removed;
                Some(EventKind::Removed)
            }
            Self::Draining { .. } | Self::Drained { .. } | Self::Removed => None,
        }
    }

    /// It serves again.
    pub(super) fn resume(&mut self) -> Option<EventKind> {
        let was_on = mem::replace(self, Self::Ready) == Self::Ready;
        (!was_on).then_some(EventKind::Resumed)
    }

    /// The pool has no session there any more: what follows, of one that is being drained.
    pub(super) fn has_emptied(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let Self::Draining { since, then_remove } = *self else { return None };
        *self = if then_remove { Self::Removed } else { Self::Drained { since: now } };
        let took = now.saturating_duration_since(since);
        Some([Some(EventKind::Drained { took }), then_remove.then_some(EventKind::Removed)])
    }
}

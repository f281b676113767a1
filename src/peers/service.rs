//! What an operator wants of a peer, and how far that is done. No check and no timer writes it. Pure.

use std::mem;
use std::time::Instant;

use crate::event::EventKind;

/// Whether an operator lets a peer serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    On,
    /// It gets no new work, and its links end as they come back. One that `leaves` is removed then.
    Draining {
        since: Instant,
        leaves: bool,
    },
    /// The pool has no session there.
    Drained {
        since: Instant,
    },
    /// It is no peer any more. Its place is kept until nothing leads there, and then may be another's.
    Gone,
}

impl Service {
    /// No new work from now on; and it is removed once it is drained if it `leaves`.
    pub(super) fn drain(&mut self, leaves: bool, now: Instant) -> Option<EventKind> {
        match *self {
            Self::On => {
                *self = Self::Draining { since: now, leaves };
                Some(EventKind::Draining)
            }
            Self::Draining { since, leaves: false } => {
                *self = Self::Draining { since, leaves };
                None
            }
            Self::Drained { .. } if leaves => {
                *self = Self::Gone;
                Some(EventKind::Removed)
            }
            Self::Draining { .. } | Self::Drained { .. } | Self::Gone => None,
        }
    }

    /// It serves again.
    pub(super) fn resume(&mut self) -> Option<EventKind> {
        let was_on = mem::replace(self, Self::On) == Self::On;
        (!was_on).then_some(EventKind::Resumed)
    }

    /// The pool has no session there any more: what follows, of one that is being drained.
    pub(super) fn has_emptied(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let Self::Draining { since, leaves } = *self else { return None };
        *self = if leaves { Self::Gone } else { Self::Drained { since: now } };
        let took = now.saturating_duration_since(since);
        Some([Some(EventKind::Drained { took }), leaves.then_some(EventKind::Removed)])
    }
}
